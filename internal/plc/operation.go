// Package plc speaks of did:plc identities: their operations, and the directory that keeps them.
//
// It owns the form, the signature and the name of an operation, and refuses to own whose identity it is, where
// keys are kept, and when something changes.
//
// Source: https://web.plc.directory/spec/v0.1/did-plc
package plc

import (
	"bytes"
	"crypto/sha256"
	"encoding/base32"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/bluesky-social/indigo/atproto/atcrypto"
	"github.com/bluesky-social/indigo/atproto/atdata"
	"github.com/bluesky-social/indigo/atproto/syntax"
	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"
)

// The kinds of operation. A tombstone ends an identity.
const (
	TypeOperation = "plc_operation"
	TypeTombstone = "plc_tombstone"
)

// MaxOperationBytes and maxEntries are plc.directory's own limits.
const (
	MaxOperationBytes = 4000
	maxEntries        = 10
)

// Service is a service entry of an operation.
type Service struct {
	Type     string `json:"type"`
	Endpoint string `json:"endpoint"`
}

// Operation is a signed change of a did:plc identity. Of a tombstone only Type, Prev and Sig are set.
type Operation struct {
	Type                string             `json:"type"`
	RotationKeys        []string           `json:"rotationKeys"`
	VerificationMethods map[string]string  `json:"verificationMethods"`
	AlsoKnownAs         []string           `json:"alsoKnownAs"`
	Services            map[string]Service `json:"services"`
	Prev                *string            `json:"prev"`
	Sig                 string             `json:"sig"`
}

// Parse decodes raw and checks its form, not its signature. A field that it does not know is
// refused: it would be missing from the bytes that were signed.
func Parse(raw []byte) (*Operation, error) {
	if len(raw) > MaxOperationBytes {
		return nil, fmt.Errorf("the operation is larger than %d bytes", MaxOperationBytes)
	}
	var op Operation
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	if err := d.Decode(&op); err != nil {
		return nil, fmt.Errorf("not an operation: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("not an operation: more than one JSON value")
	}
	return &op, op.check()
}

func (op *Operation) check() error {
	if op.Type == TypeTombstone {
		if op.Prev == nil || op.RotationKeys != nil || op.VerificationMethods != nil || op.AlsoKnownAs != nil || op.Services != nil {
			return errors.New("a tombstone has prev and sig alone")
		}
		return nil
	}
	if op.Type != TypeOperation {
		return fmt.Errorf("operation type %q is not known", op.Type)
	}
	if n := len(op.RotationKeys); n == 0 || n > maxEntries {
		return fmt.Errorf("rotationKeys has %d entries, not 1 to %d", n, maxEntries)
	}
	if len(op.VerificationMethods) > maxEntries || len(op.AlsoKnownAs) > maxEntries || len(op.Services) > maxEntries {
		return fmt.Errorf("more than %d verificationMethods, alsoKnownAs or services", maxEntries)
	}
	if op.VerificationMethods == nil || op.AlsoKnownAs == nil || op.Services == nil {
		return errors.New("verificationMethods, alsoKnownAs and services are required")
	}
	for _, k := range op.RotationKeys {
		if _, err := atcrypto.ParsePublicDIDKey(k); err != nil {
			return fmt.Errorf("rotation key %q: %w", k, err)
		}
	}
	for id, k := range op.VerificationMethods {
		if !strings.HasPrefix(k, "did:key:") {
			return fmt.Errorf("verification method %q is no did:key", id)
		}
	}
	return nil
}

// data is the operation as the map that is encoded; sig only where signed.
func (op *Operation) data(signed bool) map[string]any {
	m := map[string]any{"type": op.Type, "prev": nil}
	if op.Prev != nil {
		m["prev"] = *op.Prev
	}
	if signed {
		m["sig"] = op.Sig
	}
	if op.Type == TypeTombstone {
		return m
	}
	services, methods := map[string]any{}, map[string]any{}
	for id, s := range op.Services {
		services[id] = map[string]any{"type": s.Type, "endpoint": s.Endpoint}
	}
	for id, k := range op.VerificationMethods {
		methods[id] = k
	}
	m["services"], m["verificationMethods"] = services, methods
	m["rotationKeys"], m["alsoKnownAs"] = anySlice(op.RotationKeys), anySlice(op.AlsoKnownAs)
	return m
}

func anySlice(s []string) []any {
	out := make([]any, len(s))
	for i := range s {
		out[i] = s[i]
	}
	return out
}

// MarshalJSON is the form in which plc.directory shows an operation: no absent fields of a tombstone.
func (op *Operation) MarshalJSON() ([]byte, error) { return json.Marshal(op.data(true)) }

// encode is the DAG-CBOR of the operation, without or with its signature.
func (op *Operation) encode(signed bool) ([]byte, error) { return atdata.MarshalCBOR(op.data(signed)) }

// Sign sets Sig.
func (op *Operation) Sign(key atcrypto.PrivateKey) error {
	content, err := op.encode(false)
	if err != nil {
		return err
	}
	sig, err := key.HashAndSign(content)
	if err != nil {
		return err
	}
	op.Sig = base64.RawURLEncoding.EncodeToString(sig)
	return nil
}

// Verify is nil where one of the rotation keys signed the operation.
func (op *Operation) Verify(rotationKeys []string) error {
	sig, err := base64.RawURLEncoding.Strict().DecodeString(op.Sig)
	if err != nil {
		return errors.New("sig is not unpadded base64url")
	}
	content, err := op.encode(false)
	if err != nil {
		return err
	}
	for _, k := range rotationKeys {
		key, err := atcrypto.ParsePublicDIDKey(k)
		if err == nil && key.HashAndVerify(content, sig) == nil {
			return nil
		}
	}
	return errors.New("no rotation key signed the operation")
}

// CID is the name by which the next operation's prev points at this one.
func (op *Operation) CID() (string, error) {
	content, err := op.encode(true)
	if err != nil {
		return "", err
	}
	sum, err := multihash.Sum(content, multihash.SHA2_256, -1)
	if err != nil {
		return "", err
	}
	return cid.NewCidV1(cid.DagCBOR, sum).String(), nil
}

// DID is the identity that a genesis operation makes.
func (op *Operation) DID() (syntax.DID, error) {
	content, err := op.encode(true)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(content)
	name := strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(sum[:]))
	return syntax.DID("did:plc:" + name[:24]), nil
}
