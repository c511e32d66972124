package appview

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/api/atcr"
	"atcr.io/internal/httpx"
	"atcr.io/internal/identity"
	"atcr.io/internal/oci"
	"atcr.io/internal/xrpc"
)

const (
	holdFresh    = time.Minute // a hold that becomes private is treated so after this
	holdFailed   = 5 * time.Second
	profileFresh = 5 * time.Second
	// successorSteps bounds a chain of holds that replace each other.
	successorSteps = 5
)

// hold is where blobs are.
type hold struct {
	DID    syntax.DID
	URL    string // base URL
	Public bool   // anybody may read
	Own    bool   // on this registry's host name or below it: see targets.takesCredentials
	// AllowAllCrew: everybody may become a member.
	AllowAllCrew bool
	Successor    syntax.DID
}

// holds finds holds by their DID, and the one that a person pushes to.
type holds struct {
	directory directory
	upstream  xrpc.Upstream
	testMode  bool
	targets   *targets
	byDefault syntax.DID
	cached    *cache[syntax.DID, *hold]
	profiles  *cache[syntax.DID, *found[atcr.SailorProfile]]
}

func newHolds(d directory, u xrpc.Upstream, t *targets, c Config, now func() time.Time) *holds {
	h := &holds{directory: d, upstream: u, testMode: c.TestMode, targets: t, byDefault: syntax.DID(c.DefaultHoldDID)}
	h.cached = newCache(1000, holdFresh, holdFailed, now, h.load)
	h.profiles = newCache(10_000, profileFresh, holdFailed, now, h.loadProfile)
	return h
}

// find is the hold of a DID. Errors: *oci.Error, which names the hold.
func (h *holds) find(ctx context.Context, did syntax.DID) (*hold, error) {
	return h.cached.get(ctx, did)
}

// again is find for a hold that has just refused what its captain's record had promised: the record is read anew.
func (h *holds) again(ctx context.Context, did syntax.DID) (*hold, error) {
	h.cached.forget(did)
	return h.cached.get(ctx, did)
}

func (h *holds) load(ctx context.Context, did syntax.DID) (*hold, error) {
	found, err := h.directory.LookupDID(ctx, did)
	if err != nil {
		return nil, holdUnknown(did, err)
	}
	out := &hold{DID: did, URL: found.Hold()}
	u, err := url.Parse(out.URL)
	if err == nil {
		err = httpx.CheckURL(u, h.testMode)
	}
	if out.URL == "" || err != nil {
		return nil, holdUnusable(did, err)
	}
	out.Own = h.targets.takesCredentials(out.URL)
	captain, err := getRecord[atcr.HoldCaptain](ctx, h.upstream, out.URL, did, atcr.HoldCaptainNSID, atcr.SelfRkey)
	if err != nil {
		return nil, upstreamError("the hold "+did.String(), err)
	}
	if captain != nil && captain.Malformed {
		captain = nil
	}
	// Only a DID that is a hold is ever sent a service token.
	if captain == nil && !found.IsHold() {
		return nil, oci.Errorf(oci.CodeDenied, "%s is not a hold: choose another in your io.atcr.sailor.profile", did)
	}
	if captain != nil {
		out.Public, out.AllowAllCrew = captain.Value.Public, captain.Value.AllowAllCrew
		if next, err := syntax.ParseDID(captain.Value.Successor); err == nil && next != did {
			out.Successor = next
		}
	}
	return out, nil
}

func holdUnknown(did syntax.DID, err error) error {
	if errors.Is(err, identity.ErrTooMany) {
		return identityError(did.String(), err)
	}
	e := oci.Unavailable(http.StatusBadGateway, err, "the hold %s has no valid DID document: its owner must look after it, or choose another hold", did)
	if errors.Is(err, identity.ErrUnavailable) || errors.Is(err, context.DeadlineExceeded) {
		e = oci.Unavailable(http.StatusServiceUnavailable, err, "the hold %s cannot be reached: try again in a moment, or choose another hold", did)
		e.RetryAfter = retryHint
	}
	return e
}

func holdUnusable(did syntax.DID, err error) error {
	return oci.Unavailable(http.StatusBadGateway, err, "the hold %s names no address that can be used", did)
}

// forPush is the hold that a person's pushes go to: the one that their profile names, else this AppView's
// default. It is never silently another. Errors: *oci.Error.
func (h *holds) forPush(ctx context.Context, did syntax.DID) (*hold, error) {
	target := h.byDefault
	profile, err := h.profiles.get(ctx, did)
	if err != nil {
		return nil, upstreamError("your PDS", err)
	}
	if profile != nil && profile.Malformed {
		return nil, oci.Errorf(oci.CodeDenied, "your io.atcr.sailor.profile cannot be read, so that the hold that you chose is not known: write it again")
	}
	if profile != nil && profile.Value.DefaultHold != "" {
		if target, err = holdDID(profile.Value.DefaultHold); err != nil {
			return nil, oci.Errorf(oci.CodeDenied, "the defaultHold in your io.atcr.sailor.profile cannot be used: %w", err)
		}
	}
	return h.find(ctx, target)
}

func (h *holds) loadProfile(ctx context.Context, did syntax.DID) (*found[atcr.SailorProfile], error) {
	who, err := h.directory.LookupDID(ctx, did)
	if err != nil {
		return nil, identityError(did.String(), err)
	}
	return getRecord[atcr.SailorProfile](ctx, h.upstream, who.PDS(), did, atcr.SailorProfileNSID, atcr.SelfRkey)
}

// holdOf is the hold that a manifest record names, "" for none.
func holdOf(m *atcr.Manifest) syntax.DID {
	if m.HoldDid != "" {
		if did, err := syntax.ParseDID(m.HoldDid); err == nil {
			return did
		}
		return ""
	}
	if m.HoldEndpoint != "" {
		if did, err := holdDID(m.HoldEndpoint); err == nil {
			return did
		}
	}
	return ""
}
