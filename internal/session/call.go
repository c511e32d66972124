package session

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/internal/xrpc"
)

const (
	// renewBefore is how long before its end an access token is renewed.
	renewBefore = 30 * time.Second
	// rereadAfter is how long tokens are used that another process may have ended or changed.
	rereadAfter = 10 * time.Second
)

// Call is a method of the PDS, called in a person's name. Body is kept whole, since a call may be sent again
// with a renewed token.
type Call struct {
	NSID        string
	Query       url.Values
	Body        []byte // nil: a query
	ContentType string
}

// Call calls the person's own PDS and decodes the answer into out (nil: not looked at).
//
// Errors: ErrGone, *xrpc.UpstreamError.
func (s *Store) Call(ctx context.Context, id string, c Call, out any) error {
	t, err := s.current(ctx, id)
	if err != nil {
		return err
	}
	err = s.upstream.JSON(ctx, c.with(t), out)
	if !expired(err) {
		return err
	}
	if t, err = s.refreshed(ctx, t); err != nil {
		return err
	}
	err = s.upstream.JSON(ctx, c.with(t), out)
	if expired(err) {
		return fmt.Errorf("%w: %w", ErrGone, err)
	}
	return err
}

// DID is whose session it is. Errors: ErrGone.
func (s *Store) DID(ctx context.Context, id string) (syntax.DID, error) {
	t, err := s.current(ctx, id)
	if err != nil {
		return "", err
	}
	return t.did, nil
}

func (c Call) with(t *tokens) xrpc.UpstreamCall {
	call := xrpc.UpstreamCall{Base: t.pds, NSID: c.NSID, Query: c.Query, Token: t.access, ContentType: c.ContentType}
	if c.Body != nil {
		call.Method, call.Body, call.Size = http.MethodPost, bytes.NewReader(c.Body), int64(len(c.Body))
	}
	return call
}

// expired tells whether another access token could help. The reference PDS says 400 for bad tokens.
func expired(err error) bool {
	e, ok := errors.AsType[*xrpc.UpstreamError](err)
	return ok && (e.Status == http.StatusUnauthorized || e.Name == "ExpiredToken" || e.Name == "InvalidToken")
}

func (s *Store) stale(t *tokens) bool {
	return !t.expires.IsZero() && s.now().Add(renewBefore).After(t.expires)
}

// current is the session with an access token that should be good. Errors: ErrGone.
func (s *Store) current(ctx context.Context, id string) (*tokens, error) {
	t, ok := s.live.Get(id)
	if !ok || s.now().Sub(t.read) > rereadAfter {
		var err error
		if t, err = s.load(ctx, id); err != nil {
			return nil, err
		}
		s.live.Add(id, t)
	}
	if s.stale(t) {
		return s.refreshed(ctx, t)
	}
	return t, nil
}

// refreshed is the session with other tokens than old has: those that somebody else got meanwhile, or new
// ones. A refresh token used twice can end the session, so it is used once at a time among all processes, and
// the answer is kept even where the caller has gone. Errors: ErrGone, *xrpc.UpstreamError.
func (s *Store) refreshed(ctx context.Context, old *tokens) (*tokens, error) {
	result := s.flight.DoChan("refresh "+old.id, func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
		defer cancel()
		release, err := s.leases.Take(ctx, "session "+old.id, leaseTime)
		if err != nil {
			return nil, err
		}
		defer release()
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

func (s *Store) refresh(ctx context.Context, old *tokens) (*tokens, error) {
	kept, err := s.load(ctx, old.id)
	if err != nil {
		s.live.Remove(old.id)
		return nil, err
	}
	// Another process was faster. Two access tokens of one second may be equal; refresh tokens never are.
	if (kept.refresh != old.refresh || kept.access != old.access) && !s.stale(kept) {
		return kept, nil
	}
	var out sessionAnswer
	call := xrpc.UpstreamCall{Base: kept.pds, NSID: "com.atproto.server.refreshSession", Method: http.MethodPost, Token: kept.refresh}
	if err := s.upstream.JSON(ctx, call, &out); err != nil {
		return s.refreshRefused(ctx, kept, err)
	}
	if syntax.DID(out.DID) != kept.did || out.AccessJwt == "" || out.RefreshJwt == "" {
		return nil, &xrpc.UpstreamError{
			Host: xrpc.HostOf(kept.pds), NSID: call.NSID, Status: http.StatusOK, Invalid: true, Err: errors.New("the answer is for another account, or has no tokens"),
		}
	}
	t := *kept
	t.access, t.refresh, t.read = out.AccessJwt, out.RefreshJwt, s.now()
	t.expires = readToken(t.access).expires
	keep, cancel := context.WithTimeout(context.WithoutCancel(ctx), keepTimeout)
	defer cancel()
	if err := s.update(keep, &t); err != nil {
		return nil, err
	}
	return &t, nil
}

// refreshRefused ends the session where the PDS does, unless another process has refreshed it meanwhile.
func (s *Store) refreshRefused(ctx context.Context, used *tokens, err error) (*tokens, error) {
	e, ok := errors.AsType[*xrpc.UpstreamError](err)
	refused := ok && (e.Status == http.StatusUnauthorized || e.Status == http.StatusForbidden || e.Name == "ExpiredToken" ||
		e.Name == "InvalidToken" || e.Name == "AccountTakedown" || e.Name == "AccountDeactivated")
	if !refused {
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
	return nil, fmt.Errorf("%w: %w", ErrGone, hide(e))
}
