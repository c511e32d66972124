package session

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/internal/xrpc"
)

// maxPasswordBytes is above what any PDS takes.
const maxPasswordBytes = 512

// What the access token of a session says of the password that opened it, at the reference PDS and those
// that follow it.
const (
	scopeMain          = "com.atproto.access"
	scopeAppPassword   = "com.atproto.appPass"
	scopeAppPrivileged = "com.atproto.appPassPrivileged"
)

// Login opens a session with an app password, or finds the one that the same password opened before: a PDS
// allows few new ones. caller is the client's address, or the network that one client
// has, for limits.
//
// Errors: ErrWrongPassword, ErrMainPassword, ErrCodeNeeded, ErrRefused, *LimitError, *xrpc.UpstreamError.
func (s *Store) Login(ctx context.Context, a Account, password, caller string) (Session, error) {
	if password == "" || len(password) > maxPasswordBytes {
		return Session{}, ErrWrongPassword
	}
	hash := s.vault.passwordHash(a.DID, password)
	if t, err := s.known(ctx, a, hash); err == nil {
		return Session{ID: t.id, DID: t.did}, nil
	} else if !errors.Is(err, ErrGone) {
		return Session{}, err
	}
	// Those who show the same password at once make one attempt, and the limits are told of one, however many wait
	// for it or leave.
	result := s.flight.DoChan("login "+string(hash), func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
		defer cancel()
		release, err := s.leases.Take(ctx, "login "+hex.EncodeToString(hash), leaseTime)
		if err != nil {
			return nil, err
		}
		defer release()
		if t, err := s.known(ctx, a, hash); err == nil { // opened by another process, or the flight before this one
			return Session{ID: t.id, DID: t.did}, nil
		}
		giveBack, err := s.limits.begin(ctx, a.DID, caller)
		if err != nil {
			return Session{}, err
		}
		opened, err := s.create(ctx, a, password, hash)
		if _, troubled := errors.AsType[*xrpc.UpstreamError](err); err == nil || troubled {
			giveBack() // nobody said that the password was wrong
		}
		return opened, err
	})
	select {
	case <-ctx.Done():
		return Session{}, ctx.Err()
	case r := <-result:
		opened, _ := r.Val.(Session)
		return opened, r.Err
	}
}

// known is the live session of a password. One whose access has run out is refreshed, so that a revoked
// app password is good here no longer than at the PDS. Errors: ErrGone.
func (s *Store) known(ctx context.Context, a Account, hash []byte) (*tokens, error) {
	t, err := s.find(ctx, a.DID, hash)
	if err != nil {
		return nil, err
	}
	if t.pds != a.PDS { // the account has moved
		if err := s.remove(ctx, t.id); err != nil {
			return nil, err
		}
		return nil, ErrGone
	}
	if err := s.acceptable(readToken(t.access).scope); err != nil { // main passwords were allowed once
		s.revoke(ctx, t)
		return nil, errors.Join(err, s.remove(ctx, t.id))
	}
	if s.stale(t) {
		return s.refreshed(ctx, t)
	}
	s.live.Add(t.id, t)
	return t, nil
}

type sessionAnswer struct {
	AccessJwt  string `json:"accessJwt"`
	RefreshJwt string `json:"refreshJwt"`
	DID        string `json:"did"`
}

func (s *Store) create(ctx context.Context, a Account, password string, hash []byte) (Session, error) {
	call, err := xrpc.JSONCall(a.PDS, "com.atproto.server.createSession", "", map[string]string{
		"identifier": a.DID.String(), "password": password,
	})
	if err != nil {
		return Session{}, err
	}
	var out sessionAnswer
	if err := s.upstream.JSON(ctx, call, &out); err != nil {
		return Session{}, loginError(err)
	}
	if syntax.DID(out.DID) != a.DID || out.AccessJwt == "" || out.RefreshJwt == "" {
		return Session{}, &xrpc.UpstreamError{
			Host: xrpc.HostOf(a.PDS), NSID: call.NSID, Status: http.StatusOK, Invalid: true, Err: errors.New("the answer is for another account, or has no tokens"),
		}
	}
	t := &tokens{did: a.DID, pds: a.PDS, access: out.AccessJwt, refresh: out.RefreshJwt}
	token := readToken(t.access)
	t.expires = token.expires
	if err := s.acceptable(token.scope); err != nil {
		s.revoke(ctx, t)
		return Session{}, err
	}
	if err := s.insert(ctx, t, hash); err != nil {
		return Session{}, err
	}
	s.live.Add(t.id, t)
	return Session{ID: t.id, DID: t.did, New: true}, nil
}

// acceptable judges the password by the access that it opened. A PDS whose tokens do not say is believed.
func (s *Store) acceptable(scope string) error {
	switch scope {
	case scopeAppPassword, scopeAppPrivileged, "":
		return nil
	case scopeMain:
		if s.config.AllowMainPassword {
			return nil
		}
		return ErrMainPassword
	}
	return fmt.Errorf("%w: its session has the scope %q alone", ErrRefused, scope)
}

// loginError tells a wrong password from a PDS that is at fault.
func loginError(err error) error {
	e, ok := errors.AsType[*xrpc.UpstreamError](err)
	switch {
	case !ok:
		return err
	case e.Name == "AuthFactorTokenRequired":
		return fmt.Errorf("%w: %w", ErrCodeNeeded, hide(e))
	case e.Name == "AccountTakedown" || e.Name == "AccountDeactivated" || e.Name == "AccountSuspended":
		return fmt.Errorf("%w: %w", ErrRefused, hide(e))
	case e.Status == http.StatusUnauthorized || e.Status == http.StatusForbidden:
		return fmt.Errorf("%w: %w", ErrWrongPassword, hide(e))
	case e.Status == http.StatusBadRequest && (e.Name == "InvalidRequest" || e.Name == "AuthenticationRequired" || e.Name == "InvalidIdentifier"):
		return fmt.Errorf("%w: %w", ErrWrongPassword, hide(e))
	}
	return err
}

// hide keeps an upstream's words for the log, and from those who look for an UpstreamError.
func hide(e *xrpc.UpstreamError) error { return errors.New(e.Error()) }

// accessToken is what a session's token says of itself. Its signature is the PDS's own affair.
type accessToken struct {
	scope   string
	expires time.Time
}

func readToken(token string) accessToken {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return accessToken{}
	}
	raw, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(parts[1], "="))
	if err != nil {
		return accessToken{}
	}
	var claims struct {
		Scope string `json:"scope"`
		Exp   int64  `json:"exp"`
	}
	if json.Unmarshal(raw, &claims) != nil {
		return accessToken{}
	}
	out := accessToken{scope: claims.Scope}
	if claims.Exp > 0 {
		out.expires = time.Unix(claims.Exp, 0)
	}
	return out
}
