package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// testImage is an image of random layers, and its bytes as an OCI layout.
type testImage struct {
	image  v1.Image // nil for an index
	layout string   // folder
	digest string   // of the manifest or index
	blobs  []string // every sha256, hex, manifests included, sorted by the file system
}

// without is the image less one blob.
func (i testImage) without(digest string) testImage {
	i.blobs = slices.DeleteFunc(slices.Clone(i.blobs), func(d string) bool { return "sha256:"+d == digest })
	return i
}

// newImage makes a single-platform image of five layers, 40 MB in all.
func newImage(t *testing.T) testImage {
	t.Helper()
	return writeLayout(t, platformImage(t, 8<<20, 5, "amd64"))
}

// newIndex makes a multi-platform index, 30 MB in all.
func newIndex(t *testing.T) testImage {
	t.Helper()
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, architecture := range []string{"amd64", "arm64"} {
		index = mutate.AppendManifests(index, mutate.IndexAddendum{
			Add:        platformImage(t, 5<<20, 3, architecture),
			Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: architecture}},
		})
	}
	dir := t.TempDir()
	path, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	if err := path.AppendIndex(index); err != nil {
		t.Fatal(err)
	}
	digest, err := index.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return testImage{layout: dir, digest: digest.String(), blobs: layoutBlobs(t, dir)}
}

func platformImage(t *testing.T, layerBytes int64, layers int, architecture string) v1.Image {
	t.Helper()
	image, err := random.Image(layerBytes, int64(layers))
	if err != nil {
		t.Fatal(err)
	}
	image = mutate.MediaType(image, types.OCIManifestSchema1)
	image = mutate.ConfigMediaType(image, types.OCIConfigJSON)
	config, err := image.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", architecture
	if image, err = mutate.ConfigFile(image, config); err != nil {
		t.Fatal(err)
	}
	return image
}

func writeLayout(t *testing.T, image v1.Image) testImage {
	t.Helper()
	dir := t.TempDir()
	path, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	if err := path.AppendImage(image); err != nil {
		t.Fatal(err)
	}
	digest, err := image.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return testImage{image: image, layout: dir, digest: digest.String(), blobs: layoutBlobs(t, dir)}
}

// layoutBlobs are the digests of a layout's blobs, each recomputed from its bytes.
func layoutBlobs(t *testing.T, dir string) []string {
	t.Helper()
	var digests []string
	err := filepath.WalkDir(filepath.Join(dir, "blobs", "sha256"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		raw, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		sum := sha256.Sum256(raw)
		if hex.EncodeToString(sum[:]) != d.Name() {
			t.Errorf("%s has other bytes than its name says", path)
		}
		digests = append(digests, d.Name())
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return digests
}

// sameBlobs fails where the pulled layout lacks a blob of want.
func sameBlobs(t *testing.T, want testImage, dir string) {
	t.Helper()
	got := map[string]bool{}
	for _, digest := range layoutBlobs(t, dir) {
		got[digest] = true
	}
	for _, digest := range want.blobs {
		if !got[digest] {
			t.Errorf("blob %s was not pulled", digest)
		}
	}
}
