package plc_test

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"testing"

	"github.com/bluesky-social/indigo/atproto/atcrypto"

	"atcr.io/internal/plc"
	"atcr.io/test/vectors"
)

// Would catch a key whose did:key is not the one that others make of it, and one that an operation may not name.
func TestDIDKeyVectors(t *testing.T) {
	t.Parallel()
	var keys []struct{ PrivateKeyBytesHex, PublicDIDKey string }
	if err := json.Unmarshal(vectors.Read(t, "atproto/atcrypto/testdata/w3c_didkey_K256.json"), &keys); err != nil || len(keys) < 2 {
		t.Fatal(len(keys), err)
	}
	for _, k := range keys {
		raw, err := hex.DecodeString(k.PrivateKeyBytesHex)
		if err != nil {
			t.Fatal(err)
		}
		private, err := atcrypto.ParsePrivateBytesK256(raw)
		if err != nil {
			t.Fatal(err)
		}
		op := plc.Operation{
			Type: plc.TypeOperation, RotationKeys: []string{k.PublicDIDKey}, AlsoKnownAs: []string{}, Services: map[string]plc.Service{},
			VerificationMethods: map[string]string{"atproto": k.PublicDIDKey},
		}
		if err := op.Sign(private); err != nil {
			t.Fatal(err)
		}
		if err := op.Verify(op.RotationKeys); err != nil {
			t.Errorf("%s: %v", k.PublicDIDKey, err)
		}
		if public, err := private.PublicKey(); err != nil || public.DIDKey() != k.PublicDIDKey {
			t.Errorf("%s, want %s: %v", public.DIDKey(), k.PublicDIDKey, err)
		}
	}
}

// Would catch a library that takes a signature which the protocol does not have, of an operation or a commit: high S,
// and DER.
func TestSignatureVectors(t *testing.T) {
	t.Parallel()
	var fixtures []struct {
		Comment, MessageBase64, PublicKeyDID, SignatureBase64 string
		ValidSignature                                        bool
	}
	if err := json.Unmarshal(vectors.Read(t, "atproto/atcrypto/testdata/signature-fixtures.json"), &fixtures); err != nil || len(fixtures) < 6 {
		t.Fatal(len(fixtures), err)
	}
	for _, f := range fixtures {
		key, err := atcrypto.ParsePublicDIDKey(f.PublicKeyDID)
		if err != nil {
			t.Errorf("%s: %v", f.Comment, err)
			continue
		}
		message, err := base64.RawStdEncoding.DecodeString(f.MessageBase64)
		if err != nil {
			t.Fatal(err)
		}
		signature, err := base64.RawStdEncoding.DecodeString(f.SignatureBase64)
		if err != nil {
			t.Fatal(err)
		}
		if err := key.HashAndVerify(message, signature); (err == nil) != f.ValidSignature {
			t.Errorf("%s: %v", f.Comment, err)
		}
	}
}
