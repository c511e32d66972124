package session

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/internal/session/oauth"
	"atcr.io/internal/xrpc"
)

// refreshed is the session with other tokens than old has: those that somebody else got meanwhile, or new
// ones. The answer is kept even where the caller has gone. Errors: ErrGone, *xrpc.UpstreamError.
func (s *Store) refreshed(ctx context.Context, old *tokens) (*tokens, error) {
	result := s.flight.DoChan("refresh "+old.id, func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
		defer cancel()
		t, err := s.refresh(ctx, old)
		if err == nil {
			s.live.Add(t.id, t)
		}
		return t, err
	})
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case r := <-result:
		if r.Err != nil {
			return nil, r.Err
		}
		return r.Val.(*tokens), nil
	}
}

// alone makes this the only one, of all processes, that changes a session until release. A refresh token that
// is used twice ends the session at its server.
//
// id may be a DID: then it is the person's OAuth session that is begun or ended.
func (s *Store) alone(ctx context.Context, id string) (release func(), err error) {
	release, err = s.leases.Take(ctx, "session "+id, leaseTime)
	if err != nil {
		return nil, fmt.Errorf("refresh session: %w", err)
	}
	return release, nil
}

// refresh renews a session: alone, with tokens read once more, and kept before they are used.
func (s *Store) refresh(ctx context.Context, old *tokens) (*tokens, error) {
	release, err := s.alone(ctx, old.id)
	if err != nil {
		return nil, err
	}
	defer release()
	kept, err := s.load(ctx, old.id)
	if err != nil {
		s.live.Remove(old.id)
		return nil, err
	}
	// Another process was faster. Two access tokens of one second may be equal; refresh tokens never are.
	if (kept.refresh != old.refresh || kept.access != old.access) && !s.stale(kept) {
		return kept, nil
	}
	// It has its own time, whatever the wait for the lease took: cut off, it may have used up the refresh token.
	renewing, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
	defer cancel()
	renewed, err := s.renew(renewing, kept)
	if err != nil {
		return s.refreshRefused(ctx, kept, err)
	}
	keep, done := context.WithTimeout(context.WithoutCancel(ctx), keepTimeout)
	defer done()
	found, err := s.update(keep, renewed)
	if err != nil {
		return nil, err
	}
	if !found { // ended meanwhile
		s.revoke(keep, renewed)
		return nil, ErrGone
	}
	return renewed, nil
}

// renew gets new tokens for those of t, by the way in which they were got.
func (s *Store) renew(ctx context.Context, t *tokens) (*tokens, error) {
	if t.byOAuth() {
		return s.renewOAuth(ctx, t)
	}
	var out sessionAnswer
	call := xrpc.UpstreamCall{Base: t.pds, NSID: "com.atproto.server.refreshSession", Method: http.MethodPost, Token: t.refresh}
	if err := s.upstream.JSON(ctx, call, &out); err != nil {
		return nil, err
	}
	if syntax.DID(out.DID) != t.did || out.AccessJwt == "" || out.RefreshJwt == "" {
		return nil, &xrpc.UpstreamError{
			Host: xrpc.HostOf(t.pds), NSID: call.NSID, Status: http.StatusOK, Invalid: true, Err: errors.New("the answer is for another account, or has no tokens"),
		}
	}
	n := *t
	n.access, n.refresh = out.AccessJwt, out.RefreshJwt
	n.expires = readToken(n.access).expires
	return &n, nil
}

func (s *Store) renewOAuth(ctx context.Context, t *tokens) (*tokens, error) {
	if s.config.OAuth == nil {
		return nil, fmt.Errorf("%w: OAuth is off", ErrGone)
	}
	server, err := s.config.OAuth.ServerAt(ctx, t.issuer)
	if err != nil {
		return nil, err
	}
	got, err := s.config.OAuth.Refresh(ctx, server, t.bound, t.refresh)
	if err != nil {
		return nil, err
	}
	if got.DID != t.did {
		return nil, &xrpc.UpstreamError{
			Host: xrpc.HostOf(t.issuer), NSID: "refresh", Status: http.StatusOK, Invalid: true, Err: errors.New("the answer is for another account"),
		}
	}
	n := *t
	n.access, n.refresh, n.expires = got.Access, got.Refresh, got.Expires
	if got.Scope != "" {
		n.scope = got.Scope
	}
	return &n, nil
}

// refusals are how servers say that a session is over.
var refusals = map[string]bool{
	"ExpiredToken": true, "InvalidToken": true, "AccountTakedown": true, "AccountDeactivated": true, "invalid_grant": true,
}

// refreshRefused ends the session where its server does, unless another process has refreshed it meanwhile:
// one whose lease ran out. That our own metadata could not be read by the server ends nothing.
func (s *Store) refreshRefused(ctx context.Context, used *tokens, err error) (*tokens, error) {
	e, ok := errors.AsType[*xrpc.UpstreamError](err)
	refused := ok && (refusals[e.Name] || !used.byOAuth() && (e.Status == http.StatusUnauthorized || e.Status == http.StatusForbidden))
	if !refused && !errors.Is(err, oauth.ErrKeyGone) {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), keepTimeout)
	defer cancel()
	if now, loadErr := s.load(ctx, used.id); loadErr == nil && now.refresh != used.refresh {
		return now, nil
	}
	if err := s.remove(ctx, used.id); err != nil {
		return nil, err
	}
	if ok {
		err = hide(e)
	}
	return nil, fmt.Errorf("%w: %w", ErrGone, err)
}
