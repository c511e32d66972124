package xrpc

import (
	"encoding/base64"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/bluesky-social/indigo/atproto/atcrypto"
	"github.com/bluesky-social/indigo/atproto/identity"

	"atcr.io/test/vectors"
)

// keyIn is the key that a DID document names.
func keyIn(t *testing.T, kind, multibase string) atcrypto.PublicKey {
	t.Helper()
	document := identity.DIDDocument{DID: "did:plc:abc", VerificationMethod: []identity.DocVerificationMethod{{
		ID: "did:plc:abc#atproto", Type: kind, Controller: "did:plc:abc", PublicKeyMultibase: multibase,
	}}}
	who := identity.ParseIdentity(&document)
	key, err := who.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// Would catch a token's signature that passes with another algorithm's name or in another form than the fixed one, and
// a key that is read otherwise from a DID document in its older form.
func TestSignatureVectors(t *testing.T) {
	t.Parallel()
	var fixtures []struct {
		Comment, MessageBase64, Algorithm, DIDDocSuite, PublicKeyDID, PublicKeyMultibase, SignatureBase64 string
		ValidSignature                                                                                    bool
		Tags                                                                                              []string
	}
	if err := json.Unmarshal(vectors.Read(t, "atproto/atcrypto/testdata/signature-fixtures.json"), &fixtures); err != nil || len(fixtures) < 6 {
		t.Fatal(len(fixtures), err)
	}
	for _, f := range fixtures {
		key := keyIn(t, "Multikey", strings.TrimPrefix(f.PublicKeyDID, "did:key:"))
		if key.DIDKey() != f.PublicKeyDID {
			t.Errorf("%s: the key is read as %s", f.Comment, key.DIDKey())
		}
		// Documents' older form of a P-256 key is the uncompressed one, which these are not.
		if f.Algorithm == "ES256K" && !keyIn(t, f.DIDDocSuite, f.PublicKeyMultibase).Equal(key) {
			t.Errorf("%s: the key is another in a document's older form", f.Comment)
		}
		message, err := base64.RawStdEncoding.DecodeString(f.MessageBase64)
		if err != nil {
			t.Fatal(err)
		}
		signature, err := base64.RawStdEncoding.DecodeString(f.SignatureBase64)
		if err != nil {
			t.Fatal(err)
		}
		// A token may have the high S that a commit may not.
		want := f.ValidSignature || slices.Contains(f.Tags, "high-s")
		for _, alg := range []string{"ES256", "ES256K", "none", ""} {
			if verifyWith(key, alg, message, signature) != (want && alg == f.Algorithm) {
				t.Errorf("%s, named %s", f.Comment, alg)
			}
		}
	}
}
