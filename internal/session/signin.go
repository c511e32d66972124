package session

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/subtle"
	"database/sql"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/internal/session/oauth"
	"atcr.io/internal/xrpc"
)

const (
	// signInTime is how long a sign-in may take, from the first page to the callback.
	signInTime = 15 * time.Minute
	// maxSignIns bounds the sign-ins that are begun and not ended, of all people.
	maxSignIns = 20_000
	maxReturn  = 1024
	maxCode    = 4096
	// forState and forSignIn mark hashes of what servers and browsers bring back.
	forState  = "state"
	forSignIn = "sign-in"
)

// BeginSignIn says who wants to sign in.
type BeginSignIn struct {
	Account  Account
	ReturnTo string // a path of this AppView; anything else counts as "/"
	Prompt   string // "", "login", "consent" or "select_account"
	Browser  string // the cookie of an earlier sign-in, if the browser shows one
	Caller   string // for limits: the client's address, or the network that one client has
}

// SignInStarted is where the browser goes.
type SignInStarted struct {
	URL     string // at the account's server
	Browser string // for a cookie that lives 15 minutes: the sign-in ends in this browser alone
}

// SignInDone is a sign-in that has ended well.
type SignInDone struct {
	Session  Session
	Account  Account
	ReturnTo string // a path of this AppView
}

// signInRequest is what is kept of a sign-in that was begun, encrypted.
type signInRequest struct {
	DID      syntax.DID
	Handle   string // "" for none, which a syntax.Handle cannot be read as
	PDS      string
	Issuer   string
	Verifier string
	Key      []byte
	KeyID    string
	Generic  bool
	Scope    string
	ReturnTo string
}

// SignInOrigin is where sign-in has to begin: on loopback an address, not a name. "" without OAuth.
func (s *Store) SignInOrigin() string {
	if s.config.OAuth == nil {
		return ""
	}
	return s.config.OAuth.Origin()
}

// BeginSignIn asks the account's server for a sign-in.
//
// Errors: ErrNoOAuth, *LimitError, *xrpc.UpstreamError.
func (s *Store) BeginSignIn(ctx context.Context, b BeginSignIn) (SignInStarted, error) {
	if s.config.OAuth == nil {
		return SignInStarted{}, fmt.Errorf("%w: OAuth is off", ErrNoOAuth)
	}
	if !slices.Contains([]string{"", "login", "consent", "select_account"}, b.Prompt) {
		b.Prompt = ""
	}
	if err := s.limits.beginSignIn(ctx, b.Caller); err != nil {
		return SignInStarted{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	server, err := s.config.OAuth.ServerOf(ctx, b.Account.PDS)
	if err != nil {
		return SignInStarted{}, err
	}
	hint := b.Account.DID.String()
	if b.Account.Handle != "" && b.Account.Handle != syntax.HandleInvalid {
		hint = b.Account.Handle.String()
	}
	r, target, err := s.config.OAuth.Start(ctx, server, hint, b.Prompt)
	if err != nil {
		return SignInStarted{}, err
	}
	if b.Browser == "" || len(b.Browser) > maxSecret {
		b.Browser = rand.Text() + rand.Text()
	}
	if err := s.keepSignIn(ctx, b, server, r); err != nil {
		return SignInStarted{}, err
	}
	return SignInStarted{URL: target, Browser: b.Browser}, nil
}

func (s *Store) keepSignIn(ctx context.Context, b BeginSignIn, server oauth.Server, r *oauth.Request) error {
	key, err := r.Key.Bytes()
	if err != nil {
		return fmt.Errorf("encrypt sign-in: %w", err)
	}
	hash := s.vault.browserHash(forState, r.State)
	sealed, err := s.vault.sealJSON("sign-in "+string(hash), signInRequest{
		DID: b.Account.DID, Handle: b.Account.Handle.String(), PDS: b.Account.PDS, Issuer: server.Issuer,
		Verifier: r.Verifier, Key: key, KeyID: r.KeyID, Generic: r.Generic, Scope: r.Scope, ReturnTo: SafePath(b.ReturnTo),
	})
	if err != nil {
		return fmt.Errorf("encrypt sign-in: %w", err)
	}
	now := s.now()
	err = s.db.Write(ctx, func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, `DELETE FROM sign_in WHERE created_at < ?`, now.Add(-signInTime).Unix()); err != nil {
			return err
		}
		var n int
		if err := tx.QueryRowContext(ctx, `SELECT count(*) FROM sign_in`).Scan(&n); err != nil {
			return err
		}
		if n >= maxSignIns {
			return &LimitError{RetryAfter: time.Minute}
		}
		_, err := tx.ExecContext(ctx, `INSERT INTO sign_in (state_hash, browser_hash, request, created_at, did) VALUES (?, ?, ?, ?, ?)`,
			hash, s.vault.browserHash(forSignIn, b.Browser), sealed, now.Unix(), b.Account.DID.String())
		return err
	})
	if _, ok := errors.AsType[*LimitError](err); ok {
		return err
	}
	if err != nil {
		return fmt.Errorf("write sign-in: %w", err)
	}
	return nil
}

// SafePath is where a browser may be sent within this AppView: path, if it is a path, else "/".
func SafePath(path string) string {
	u, err := url.Parse(path)
	// Browsers take a backslash for a slash, and skip control characters: "/\evil", "/\t/evil".
	if err != nil || u.IsAbs() || u.Host != "" || u.User != nil || len(path) > maxReturn || !strings.HasPrefix(path, "/") || strings.HasPrefix(path, "//") ||
		strings.ContainsFunc(path, func(r rune) bool { return r <= ' ' || r == '\\' || r == 0x7f }) {
		return "/"
	}
	return path
}

// FinishSignIn ends a sign-in with the query of the callback and the cookie of BeginSignIn. Each can be ended
// once. Whatever it is that fails, nothing is left of it, here or at the server.
//
// Errors: ErrSignInUnknown, ErrDenied, ErrOtherAccount, ErrNoOAuth, *ScopeError, *xrpc.UpstreamError.
func (s *Store) FinishSignIn(ctx context.Context, query url.Values, browser string) (SignInDone, error) {
	if s.config.OAuth == nil {
		return SignInDone{}, fmt.Errorf("%w: OAuth is off", ErrNoOAuth)
	}
	r, err := s.takeSignIn(ctx, query.Get("state"), browser)
	if err != nil {
		return SignInDone{}, err
	}
	if err := checkAnswer(r, query); err != nil {
		return SignInDone{}, err
	}
	// A code is good for once: what it gives is kept although the browser has gone.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
	defer cancel()
	t, err := s.exchange(ctx, r, query.Get("code"))
	if err != nil {
		return SignInDone{}, err
	}
	if err := s.judge(r, t); err != nil {
		s.revoke(ctx, t)
		return SignInDone{}, err
	}
	isNew, err := s.install(ctx, t)
	if err != nil {
		s.revoke(ctx, t)
		return SignInDone{}, err
	}
	return SignInDone{
		Session: Session{ID: t.id, DID: t.did, New: isNew}, ReturnTo: r.ReturnTo,
		Account: Account{DID: r.DID, PDS: r.PDS, Handle: syntax.Handle(r.Handle)},
	}, nil
}

// takeSignIn finds a sign-in that was begun in this browser, and takes it out. Errors: ErrSignInUnknown.
func (s *Store) takeSignIn(ctx context.Context, state, browser string) (*signInRequest, error) {
	if state == "" || len(state) > maxSecret || browser == "" || len(browser) > maxSecret {
		return nil, ErrSignInUnknown
	}
	hash := s.vault.browserHash(forState, state)
	var bound, sealed []byte
	var created int64
	err := s.db.Write(ctx, func(tx *sql.Tx) error {
		err := tx.QueryRowContext(ctx, `SELECT browser_hash, request, created_at FROM sign_in WHERE state_hash = ?`, hash).Scan(&bound, &sealed, &created)
		if errors.Is(err, sql.ErrNoRows) {
			return ErrSignInUnknown
		}
		if err != nil {
			return err
		}
		if subtle.ConstantTimeCompare(bound, s.vault.browserHash(forSignIn, browser)) != 1 {
			return ErrSignInUnknown // and it stays, for the browser whose it is
		}
		result, err := tx.ExecContext(ctx, `DELETE FROM sign_in WHERE state_hash = ?`, hash)
		if err != nil {
			return err
		}
		if n, err := result.RowsAffected(); err != nil || n != 1 { // another process was faster
			return errors.Join(ErrSignInUnknown, err)
		}
		return nil
	})
	if errors.Is(err, ErrSignInUnknown) {
		return nil, ErrSignInUnknown
	}
	if err != nil {
		return nil, fmt.Errorf("read sign-in: %w", err)
	}
	if s.now().Sub(time.Unix(created, 0)) > signInTime {
		return nil, ErrSignInUnknown
	}
	r := &signInRequest{}
	if err := s.vault.openJSON("sign-in "+string(hash), sealed, r); err != nil { // written with another secret
		return nil, fmt.Errorf("%w: decrypt: %w", ErrSignInUnknown, err)
	}
	return r, nil
}

// checkAnswer judges what a server sent the browser back with.
//
// Source: RFC 6749 section 4.1.2.1, RFC 9207
func checkAnswer(r *signInRequest, query url.Values) error {
	iss := query.Get("iss")
	name := query.Get("error")
	wrong := func(why string) error {
		return &xrpc.UpstreamError{Host: xrpc.HostOf(r.Issuer), NSID: oauth.CallbackPath, Status: http.StatusOK, Invalid: true, Err: errors.New(why)}
	}
	switch {
	case iss != r.Issuer && (name == "" || iss != ""):
		return wrong("the answer is not from the server that was asked")
	case name == "access_denied":
		return ErrDenied
	case name != "":
		return &xrpc.UpstreamError{
			Host: xrpc.HostOf(r.Issuer), NSID: oauth.CallbackPath, Status: http.StatusBadRequest, Name: cut(name, 64), Message: cut(query.Get("error_description"), 300),
		}
	case query.Get("code") == "" || len(query.Get("code")) > maxCode:
		return wrong("the answer has no code")
	}
	return nil
}

func (s *Store) exchange(ctx context.Context, r *signInRequest, code string) (*tokens, error) {
	key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), r.Key)
	if err != nil {
		return nil, fmt.Errorf("%w: read its key: %w", ErrSignInUnknown, err)
	}
	server, err := s.config.OAuth.ServerAt(ctx, r.Issuer)
	if err != nil {
		return nil, err
	}
	bound := oauth.Bound{Key: key, KeyID: r.KeyID, Generic: r.Generic}
	got, err := s.config.OAuth.Exchange(ctx, server, &oauth.Request{Verifier: r.Verifier, Bound: bound}, code)
	switch {
	case errors.Is(err, oauth.ErrKeyGone), xrpc.IsUpstream(err, "invalid_grant"):
		return nil, fmt.Errorf("%w: %w", ErrSignInUnknown, err)
	case err != nil:
		return nil, err
	}
	scope := got.Scope
	if scope == "" { // RFC 6749 section 5.1: then it is what was asked for
		scope = r.Scope
	}
	return &tokens{
		did: got.DID, pds: r.PDS, access: got.Access, refresh: got.Refresh, expires: got.Expires,
		issuer: r.Issuer, scope: scope, bound: bound,
	}, nil
}

// judge compares what was given with what was asked for.
func (s *Store) judge(r *signInRequest, t *tokens) error {
	if t.did != r.DID {
		return ErrOtherAccount
	}
	if !slices.Contains(strings.Fields(t.scope), "atproto") {
		return &ScopeError{Missing: []string{"atproto"}}
	}
	if missing := s.missing(t.scope); len(missing) > 0 {
		return &ScopeError{Missing: missing}
	}
	return nil
}

// install keeps a new session, in place of the person's older one: that keeps its ID, so that all who use it
// go on, and is ended at its server.
func (s *Store) install(ctx context.Context, t *tokens) (isNew bool, err error) {
	release, err := s.alone(ctx, t.did.String())
	if err != nil {
		return false, err
	}
	defer release()
	id, found, err := s.oauthID(ctx, t.did)
	if err != nil {
		return false, err
	}
	if found {
		found, err = s.replace(ctx, t, id)
	}
	if err != nil || found {
		return false, err
	}
	if err := s.insert(ctx, t, byOAuth); err != nil {
		return false, err
	}
	s.live.Add(t.id, t)
	return true, nil
}

// oauthID is the row of a person's OAuth session, readable or not.
func (s *Store) oauthID(ctx context.Context, did syntax.DID) (id string, found bool, err error) {
	err = s.db.Reader().QueryRowContext(ctx, `SELECT id FROM session WHERE did = ? AND password_hash = ?`, did.String(), byOAuth).Scan(&id)
	if errors.Is(err, sql.ErrNoRows) {
		return "", false, nil
	}
	if err != nil {
		return "", false, fmt.Errorf("read session: %w", err)
	}
	return id, true, nil
}

// replace puts t into the row id, when nobody refreshes that. false: the row has gone.
func (s *Store) replace(ctx context.Context, t *tokens, id string) (bool, error) {
	release, err := s.alone(ctx, id)
	if err != nil {
		return false, err
	}
	defer release()
	old, err := s.load(ctx, id)
	if err != nil && !errors.Is(err, ErrGone) {
		return false, err
	}
	t.id = id
	found, err := s.update(ctx, t)
	if err != nil || !found {
		return false, err
	}
	s.live.Add(id, t)
	if old != nil {
		s.revoke(ctx, old)
	}
	return true, nil
}
