package session

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/internal/xrpc"
)

const (
	// serviceLifetime is what is asked for; a PDS gives at most an hour.
	serviceLifetime = 30 * time.Minute
	// onceLifetime is for tokens that are good for one call: holds take no older ones.
	onceLifetime = 4 * time.Minute
	// serviceOld is the age from which a token that is refused may have been good once.
	serviceOld = 10 * time.Second
	// serviceReserve is how long before its end a token is used no more.
	serviceReserve = time.Minute
	// holdFragment names the hold's service in its DID document.
	holdFragment = "#atcr_hold"
)

type serviceKey struct {
	session  string
	audience string
	lxm      string
}

type serviceToken struct {
	token   string
	asked   time.Time
	expires time.Time
}

// ServiceToken is a token by which the session's person calls lxm at hold, good for at least a minute. One
// is kept for each (session, hold, method).
//
// Its audience is the hold's service; or the bare DID, where the PDS signs no other or RefuseFragment told
// that the hold takes no other.
//
// Errors: ErrGone, *xrpc.UpstreamError.
func (s *Store) ServiceToken(ctx context.Context, id string, hold syntax.DID, lxm string) (string, error) {
	return s.addressed(ctx, id, hold, func(audience string) (string, error) { return s.serviceToken(ctx, id, audience, lxm) })
}

// OnceToken is ServiceToken for a call whose tokens are good for once: it is short-lived, and never kept.
func (s *Store) OnceToken(ctx context.Context, id string, hold syntax.DID, lxm string) (string, error) {
	return s.addressed(ctx, id, hold, func(audience string) (string, error) {
		got, err := s.askServiceToken(ctx, id, audience, lxm, onceLifetime)
		return got.token, err
	})
}

// addressed asks for a token with the audience that the PDS signs and the hold takes.
func (s *Store) addressed(ctx context.Context, id string, hold syntax.DID, ask func(audience string) (string, error)) (string, error) {
	t, err := s.current(ctx, id)
	if err != nil {
		return "", err
	}
	bare := s.bareHosts.Contains(t.pds) || s.bareHolds.Contains(hold)
	if bare {
		return ask(hold.String())
	}
	token, err := ask(hold.String() + holdFragment)
	e, ok := errors.AsType[*xrpc.UpstreamError](err)
	if !ok || e.Status != http.StatusBadRequest && e.Status != http.StatusInternalServerError {
		return token, err
	}
	if token, bareErr := ask(hold.String()); bareErr == nil {
		s.bareHosts.Add(t.pds, struct{}{})
		return token, nil
	}
	return "", err
}

// Forget says that hold refused a token of ServiceToken. It tells whether another one may help: the person's PDS may have
// signed that one with a key that is theirs no longer. A new one tells nothing of the kind.
func (s *Store) Forget(id string, hold syntax.DID, lxm, token string) bool {
	for _, audience := range []string{hold.String() + holdFragment, hold.String()} {
		key := serviceKey{id, audience, lxm}
		if kept, ok := s.serviceTokens.Peek(key); ok && kept.token == token && s.now().Sub(kept.asked) >= serviceOld {
			s.serviceTokens.Remove(key)
			return true
		}
	}
	return false
}

// RefuseFragment says that hold refused a token. It tells whether the next one will be another: with the
// bare DID as its audience. Confirm with undo where that one is refused as well.
func (s *Store) RefuseFragment(hold syntax.DID) (changed bool, undo func()) {
	if s.bareHolds.Contains(hold) {
		return false, func() {}
	}
	s.bareHolds.Add(hold, struct{}{})
	return true, func() { s.bareHolds.Remove(hold) }
}

// serviceToken asks for a token, once for all who want the same one.
func (s *Store) serviceToken(ctx context.Context, id, audience, lxm string) (string, error) {
	key := serviceKey{id, audience, lxm}
	if kept, ok := s.serviceTokens.Get(key); ok {
		if s.now().Add(serviceReserve).Before(kept.expires) {
			return kept.token, nil
		}
	}
	result := s.flight.DoChan(strings.Join([]string{"service", id, audience, lxm}, " "), func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
		defer cancel()
		got, err := s.askServiceToken(ctx, id, audience, lxm, serviceLifetime)
		if err == nil {
			s.serviceTokens.Add(key, got)
		}
		return got, err
	})
	select {
	case <-ctx.Done():
		return "", ctx.Err()
	case r := <-result:
		if r.Err != nil {
			return "", r.Err
		}
		return r.Val.(serviceToken).token, nil
	}
}

func (s *Store) askServiceToken(ctx context.Context, id, audience, lxm string, lifetime time.Duration) (serviceToken, error) {
	now := s.now()
	expires := now.Add(lifetime)
	query := url.Values{"aud": {audience}, "lxm": {lxm}, "exp": {strconv.FormatInt(expires.Unix(), 10)}}
	var out struct{ Token string }
	const nsid = "com.atproto.server.getServiceAuth"
	err := s.Call(ctx, id, Call{NSID: nsid, Query: query}, &out)
	if xrpc.IsUpstream(err, "BadExpiration") { // a PDS with other limits, or another clock
		query.Del("exp")
		expires = now.Add(time.Minute)
		err = s.Call(ctx, id, Call{NSID: nsid, Query: query}, &out)
	}
	if err != nil {
		return serviceToken{}, err
	}
	if said := readToken(out.Token).expires; !said.IsZero() && said.Before(expires) {
		expires = said
	}
	if out.Token == "" || len(out.Token) > 8<<10 {
		return serviceToken{}, &xrpc.UpstreamError{Host: "the PDS", NSID: nsid, Status: http.StatusOK, Invalid: true, Err: errors.New("the answer has no token")}
	}
	return serviceToken{token: out.Token, asked: now, expires: expires}, nil
}
