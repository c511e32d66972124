package appview

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"
	lru "github.com/hashicorp/golang-lru/v2"

	"atcr.io/internal/identity"
	"atcr.io/internal/index"
	"atcr.io/internal/oci"
	"atcr.io/internal/registry"
)

// lookupTimeout bounds one look-up at another server.
const lookupTimeout = 15 * time.Second

// directory finds identities: identity.Resolver.
type directory interface {
	LookupDID(ctx context.Context, did syntax.DID) (*identity.Identity, error)
	Lookup(ctx context.Context, name syntax.AtIdentifier) (*identity.Identity, error)
}

// owner is whose names these are.
type owner struct {
	DID    syntax.DID
	PDS    string        // base URL
	Handle syntax.Handle // by which it was found, "" where that was not by one
}

// parseIdentity reads the first part of a name, or a user name: a handle, a DID, or a DID in the only
// spelling that clients take in a path: did_plc_<id>, did_web_<host>.
func parseIdentity(text string) (syntax.AtIdentifier, error) {
	text = strings.TrimPrefix(strings.TrimSpace(text), "@")
	for _, method := range []string{"plc", "web"} {
		if id, ok := strings.CutPrefix(text, "did_"+method+"_"); ok {
			text = "did:" + method + ":" + id
		}
	}
	if !strings.HasPrefix(text, "did:") {
		text = strings.ToLower(text)
	}
	return syntax.ParseAtIdentifier(text)
}

// people are those who were seen before: index.Index.
type people interface {
	Person(ctx context.Context, handle syntax.Handle) (index.Repo, bool, error)
	Repo(ctx context.Context, did syntax.DID) (index.Repo, bool, error)
}

type owners struct {
	directory directory
	seen      people                                  // may be nil
	names     *lru.Cache[string, syntax.AtIdentifier] // read before: reading one costs more than finding it
}

func newOwners(d directory, seen people) owners {
	return owners{d, seen, newLRU[string, syntax.AtIdentifier](ownersRead)}
}

const ownersRead = 10_000

// read is parseIdentity, remembered.
func (o owners) read(text string) (syntax.AtIdentifier, error) {
	if name, ok := o.names.Get(text); ok {
		return name, nil
	}
	name, err := parseIdentity(text)
	if err == nil {
		o.names.Add(text, name)
	}
	return name, err
}

// find resolves a handle or DID. Errors: *oci.Error.
func (o owners) find(ctx context.Context, text string) (owner, error) {
	name, err := o.read(text)
	if err != nil {
		return owner{}, oci.Errorf(oci.CodeNameInvalid, "%.100q is neither a handle nor a DID", text)
	}
	found, err := o.directory.Lookup(ctx, name)
	if errors.Is(err, identity.ErrUnavailable) && o.seen != nil {
		if of, ok := o.before(ctx, name); ok {
			return of, nil
		}
	}
	if err != nil {
		return owner{}, identityError(text, err)
	}
	if found.PDS() == "" {
		return owner{}, oci.Errorf(oci.CodeNameUnknown, "the account %.100s has no PDS", text)
	}
	handle, _ := name.AsHandle() // "" for a DID
	return owner{DID: found.DID, PDS: found.PDS(), Handle: handle}, nil
}

// before is who a name was when its images were seen last, for when nobody can say who it is now.
func (o owners) before(ctx context.Context, name syntax.AtIdentifier) (owner, bool) {
	var r index.Repo
	var found bool
	var err error
	if handle, isHandle := name.AsHandle(); isHandle == nil {
		r, found, err = o.seen.Person(context.WithoutCancel(ctx), handle)
	} else {
		r, found, err = o.seen.Repo(context.WithoutCancel(ctx), syntax.DID(name.String()))
	}
	if err != nil || !found || r.PDS == "" || r.Status != index.StatusActive {
		return owner{}, false
	}
	return owner{DID: r.DID, PDS: r.PDS}, true
}

// own is find for names that c may change: only the DID that a name resolves to may.
func (o owners) own(ctx context.Context, c registry.Caller, name oci.Name) (owner, error) {
	found, err := o.find(ctx, name.Owner)
	if err != nil {
		return owner{}, err
	}
	if c.Subject == "" || c.Subject != found.DID.String() {
		return owner{}, notYours(c.Subject, name)
	}
	return found, nil
}

func notYours(subject string, name oci.Name) error {
	return oci.Errorf(oci.CodeDenied, "only %s itself pushes to %s, and you are signed in as %s: push to <your handle>/%s instead",
		name.Owner, name, subject, name.Repository)
}

func identityError(text string, err error) error {
	var e *oci.Error
	switch {
	case errors.Is(err, identity.ErrHandleMismatch):
		e = oci.Errorf(oci.CodeNameUnknown, "the handle %.100s leads to an account that does not claim it", text)
	case errors.Is(err, identity.ErrTooMany):
		e = oci.Errorf(oci.CodeTooManyRequests, "too many names are being looked up for you, so that %.100s has to wait: try again in a moment", text)
		e.RetryAfter = 5 * time.Second
		err = errors.Join(registry.ErrUnresolved, err)
	case errors.Is(err, identity.ErrUnavailable):
		e = oci.Unavailable(http.StatusServiceUnavailable, nil, "the account %.100s cannot be looked up right now: try again in a moment", text)
		e.RetryAfter = 5 * time.Second
		err = errors.Join(registry.ErrUnresolved, err)
	case errors.Is(err, identity.ErrNotFound), errors.Is(err, identity.ErrInvalid):
		e = oci.Errorf(oci.CodeNameUnknown, "there is no account %.100s", text)
	default:
		return err
	}
	e.Err = err
	return e
}
