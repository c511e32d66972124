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
// Errors: ErrGone, ErrScope, *xrpc.UpstreamError.
func (s *Store) Call(ctx context.Context, id string, c Call, out any) error {
	t, err := s.current(ctx, id)
	if err != nil {
		return err
	}
	err = s.call(ctx, t, c, out)
	if !expired(err) {
		return err
	}
	if t, err = s.refreshed(ctx, t); err != nil {
		return err
	}
	err = s.call(ctx, t, c, out)
	if expired(err) {
		return fmt.Errorf("%w: %w", ErrGone, err)
	}
	return err
}

func (s *Store) call(ctx context.Context, t *tokens, c Call, out any) error {
	if !t.byOAuth() {
		return s.upstream.JSON(ctx, c.with(t), out)
	}
	if s.config.OAuth == nil {
		return fmt.Errorf("%w: OAuth is off", ErrGone)
	}
	call := c.with(t)
	call.Token = "" // goes with its proof
	err := xrpc.Upstream{Client: s.config.OAuth.ClientFor(t.bound.Key, t.access)}.JSON(ctx, call, out)
	if e, ok := errors.AsType[*xrpc.UpstreamError](err); ok && e.Status == http.StatusForbidden && scopeNames[e.Name] {
		return fmt.Errorf("%w: %w", ErrScope, hide(e))
	}
	return err
}

// scopeNames are how PDSes say that a session's approval does not cover a call.
var scopeNames = map[string]bool{"ScopeMissingError": true, "insufficient_scope": true, "InsufficientScope": true}

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
	return ok && (e.Status == http.StatusUnauthorized || e.Name == "ExpiredToken" || e.Name == "InvalidToken" || e.Name == "invalid_token")
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
			s.live.Remove(id)
			return nil, err
		}
		s.live.Add(id, t)
	}
	if s.stale(t) {
		return s.refreshed(ctx, t)
	}
	return t, nil
}
