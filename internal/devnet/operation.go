package devnet

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

const (
	typeOperation = "plc_operation"
	typeTombstone = "plc_tombstone"

	// maxOperationBytes and maxEntries are plc.directory's own limits.
	maxOperationBytes = 4000
	maxEntries        = 10
)

// plcService is a service entry of an operation.
type plcService struct {
	Type     string `json:"type"`
	Endpoint string `json:"endpoint"`
}

// operation is a signed change of a did:plc identity. Of a tombstone only Type, Prev and Sig are set.
//
// Source: https://web.plc.directory/spec/v0.1/did-plc
type operation struct {
	Type                string                `json:"type"`
	RotationKeys        []string              `json:"rotationKeys"`
	VerificationMethods map[string]string     `json:"verificationMethods"`
	AlsoKnownAs         []string              `json:"alsoKnownAs"`
	Services            map[string]plcService `json:"services"`
	Prev                *string               `json:"prev"`
	Sig                 string                `json:"sig"`
}

// parseOperation decodes raw and checks its form, not its signature. A field that it does not know is
// refused: it would be missing from the bytes that were signed.
func parseOperation(raw []byte) (*operation, error) {
	if len(raw) > maxOperationBytes {
		return nil, fmt.Errorf("the operation is larger than %d bytes", maxOperationBytes)
	}
	var op operation
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

func (op *operation) check() error {
	if op.Type == typeTombstone {
		if op.Prev == nil || op.RotationKeys != nil || op.VerificationMethods != nil || op.AlsoKnownAs != nil || op.Services != nil {
			return errors.New("a tombstone has prev and sig alone")
		}
		return nil
	}
	if op.Type != typeOperation {
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
func (op *operation) data(signed bool) map[string]any {
	m := map[string]any{"type": op.Type, "prev": nil}
	if op.Prev != nil {
		m["prev"] = *op.Prev
	}
	if signed {
		m["sig"] = op.Sig
	}
	if op.Type == typeTombstone {
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
func (op *operation) MarshalJSON() ([]byte, error) { return json.Marshal(op.data(true)) }

// encode is the DAG-CBOR of the operation, without or with its signature.
func (op *operation) encode(signed bool) ([]byte, error) { return atdata.MarshalCBOR(op.data(signed)) }

// sign sets Sig.
func (op *operation) sign(key atcrypto.PrivateKey) error {
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

// verify is nil where one of the rotation keys signed the operation.
func (op *operation) verify(rotationKeys []string) error {
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

// cid is the name by which the next operation's prev points at this one.
func (op *operation) cid() (string, error) {
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

// did is the identity that a genesis operation makes.
func (op *operation) did() (syntax.DID, error) {
	content, err := op.encode(true)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(content)
	name := strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(sum[:]))
	return syntax.DID("did:plc:" + name[:24]), nil
}
