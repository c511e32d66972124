package oci

import (
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"fmt"
	"hash"
	"strings"
)

// The digest algorithms that are served.
const (
	SHA256 = "sha256"
	SHA512 = "sha512"
)

// Digest is `sha256:` and 64, or `sha512:` and 128 lowercase hexadecimal digits. A value of this type was
// checked by ParseDigest or made by this package; the zero value means "none".
type Digest string

// ParseDigest checks s. Errors: an *Error with CodeDigestInvalid.
func ParseDigest(s string) (Digest, error) {
	algorithm, encoded, ok := strings.Cut(s, ":")
	if !ok {
		return "", Errorf(CodeDigestInvalid, "digest %q has no algorithm: write sha256:<64 hex digits>", clip(s))
	}
	size := 0
	switch algorithm {
	case SHA256:
		size = sha256.Size
	case SHA512:
		size = sha512.Size
	default:
		return "", Errorf(CodeDigestInvalid, "digest algorithm %q is not supported: use sha256 or sha512", clip(algorithm))
	}
	if len(encoded) != hex.EncodedLen(size) {
		return "", Errorf(CodeDigestInvalid, "a %s digest has %d hex digits, this one %d", algorithm, hex.EncodedLen(size), len(encoded))
	}
	for i := range len(encoded) {
		if c := encoded[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return "", Errorf(CodeDigestInvalid, "a digest has lowercase hex digits alone")
		}
	}
	return Digest(s), nil
}

// Algorithm is sha256 or sha512.
func (d Digest) Algorithm() string { a, _, _ := strings.Cut(string(d), ":"); return a }

// Hex is the part behind the colon.
func (d Digest) Hex() string { _, h, _ := strings.Cut(string(d), ":"); return h }

// Bytes is the raw hash, 32 or 64 bytes.
func (d Digest) Bytes() []byte {
	raw, err := hex.DecodeString(d.Hex())
	if err != nil {
		panic("oci: a Digest that was never parsed: " + string(d))
	}
	return raw
}

func (d Digest) String() string { return string(d) }

// NewHash is the hash of an algorithm. Its state can be marshalled (encoding.BinaryMarshaler).
// Errors: an *Error with CodeDigestInvalid for an algorithm that is not served.
func NewHash(algorithm string) (hash.Hash, error) {
	switch algorithm {
	case SHA256:
		return sha256.New(), nil
	case SHA512:
		return sha512.New(), nil
	}
	return nil, Errorf(CodeDigestInvalid, "digest algorithm %q is not supported: use sha256 or sha512", clip(algorithm))
}

// DigestOf is the digest that a finished hash stands for.
func DigestOf(algorithm string, h hash.Hash) Digest {
	return Digest(algorithm + ":" + hex.EncodeToString(h.Sum(nil)))
}

// FromBytes is the sha256 digest of b.
func FromBytes(b []byte) Digest {
	sum := sha256.Sum256(b)
	return Digest(SHA256 + ":" + hex.EncodeToString(sum[:]))
}

// Matches tells whether b has the digest d.
func (d Digest) Matches(b []byte) bool {
	h, err := NewHash(d.Algorithm())
	if err != nil {
		return false
	}
	h.Write(b)
	return DigestOf(d.Algorithm(), h) == d
}

// clip keeps other people's text in messages short.
func clip(s string) string {
	if len(s) > 64 {
		return fmt.Sprintf("%s…", strings.ToValidUTF8(s[:64], "?"))
	}
	return s
}
