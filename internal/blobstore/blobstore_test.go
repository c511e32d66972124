package blobstore_test

import (
	"testing"

	"atcr.io/internal/blobstore"
	"atcr.io/internal/oci"
)

// Would catch an object that is deleted as garbage while its blob is being pushed again, since its key does
// not tell the digest.
func TestKeyDigest(t *testing.T) {
	t.Parallel()
	d := oci.FromBytes([]byte("x"))
	for _, key := range []string{blobstore.BlobKey(d), blobstore.PointerKey(d)} {
		if got, ok := blobstore.KeyDigest(key); !ok || got != d {
			t.Errorf("%s: %s %v", key, got, ok)
		}
	}
	for _, key := range []string{
		"", "/", "data", "docker/registry/v2/blobs/", "docker/registry/v2/blobs/sha256/", "docker/registry/v2/blobs/sha256/ab/cd/data",
		"docker/registry/v2/blobs/sha256/00/" + d.Hex() + "/data", "atcr/pointers/", "atcr/uploads/" + d.Hex(), "sha256/" + d.Hex(),
	} {
		if got, ok := blobstore.KeyDigest(key); ok {
			t.Errorf("%s: %s", key, got)
		}
	}
}
