// Package identity resolves handles and DIDs, cached, bounded and guarded: what a stranger's request can
// cause here is one look-up at a time for a name, to public addresses alone; and what a caller can, a part of all
// look-ups that go on at once.
//
// It owns where a DID document comes from and how long it is believed, and refuses to own what somebody may
// do.
//
// Source: https://atproto.com/specs/did, https://atproto.com/specs/handle
package identity

import (
	"errors"
	"fmt"
	"strings"

	"github.com/bluesky-social/indigo/atproto/atcrypto"
	indigo "github.com/bluesky-social/indigo/atproto/identity"
	"github.com/bluesky-social/indigo/atproto/syntax"
)

var (
	// ErrNotFound says: there is no such handle or DID.
	ErrNotFound = errors.New("there is no such identity")
	// ErrUnavailable says: it could not be found out now. Such an error also says Temporary() true.
	ErrUnavailable = errors.New("the identity cannot be resolved right now")
	// ErrTooMany says: who asks has as many look-ups under way as one may have. It is ErrUnavailable too.
	ErrTooMany = errors.New("too many names are being looked up for the same caller")
	// ErrInvalid says: the answer is not well formed, or of another.
	ErrInvalid = errors.New("the identity is not valid")
	// ErrHandleMismatch says: the handle leads to a DID whose document does not claim it.
	ErrHandleMismatch = errors.New("the handle is not claimed by the DID that it leads to")
)

// unavailable is ErrUnavailable with its cause.
type unavailable struct{ cause error }

func (e *unavailable) Error() string        { return ErrUnavailable.Error() + ": " + e.cause.Error() }
func (e *unavailable) Unwrap() error        { return e.cause }
func (e *unavailable) Is(target error) bool { return target == ErrUnavailable }
func (e *unavailable) Temporary() bool      { return true }

// Identity is what a DID document says.
type Identity struct {
	DID      syntax.DID
	Handle   syntax.Handle // as the document claims it; "" for none. Lookup checks it both ways
	document indigo.Identity
	raw      *indigo.DIDDocument
	large    bool // too large to remember
}

func newIdentity(document *indigo.DIDDocument) *Identity {
	i := &Identity{DID: document.DID, document: indigo.ParseIdentity(document), raw: document}
	if handle, err := i.document.DeclaredHandle(); err == nil {
		i.Handle = handle.Normalize()
	}
	return i
}

// maxKeyText bounds a key's text. Decoding it takes time that grows with the square of its length: 256 KiB
// of it would hold a processor for ten seconds, at each token.
const maxKeyText = 256

// SigningKey is the key #atproto. Errors: ErrInvalid.
func (i *Identity) SigningKey() (atcrypto.PublicKey, error) {
	if len(i.document.Keys["atproto"].PublicKeyMultibase) > maxKeyText {
		return nil, fmt.Errorf("%w: %s: #atproto has more than %d bytes", ErrInvalid, i.DID, maxKeyText)
	}
	key, err := i.document.PublicKey()
	if err != nil {
		return nil, fmt.Errorf("%w: %s: #atproto: %w", ErrInvalid, i.DID, err)
	}
	return key, nil
}

// PDS is the base URL of the account's PDS, "" for none.
func (i *Identity) PDS() string { return i.Service("atproto_pds") }

// Hold is the base URL of the hold: #atcr_hold, else #atproto_pds; "" for none.
func (i *Identity) Hold() string {
	if url := i.Service("atcr_hold"); url != "" {
		return url
	}
	return i.PDS()
}

// IsHold tells whether the document names a hold.
func (i *Identity) IsHold() bool { return i.Service("atcr_hold") != "" }

// Service is the address of a service by its id without "#", without a slash at the end; "" for none.
func (i *Identity) Service(id string) string {
	return strings.TrimSuffix(i.document.GetServiceEndpoint(id), "/")
}

// Document is the DID document.
func (i *Identity) Document() *indigo.DIDDocument { return i.raw }
