// Package session keeps people's sessions with their PDS: opened by OAuth or by an app password, refreshed,
// and used for calls and service tokens in their name; and the sessions of their browsers here.
//
// It owns the tokens of those sessions and how they are kept, and refuses to own what is called with them, and
// pages. Passwords are never stored: a keyed hash of (DID, password) finds the session that a password opened.
// One OAuth session a person and AppView: who signs in again renews it, and keeps its ID.
//
// Source: com.atproto.server.{createSession, refreshSession, deleteSession, getServiceAuth};
// https://atproto.com/specs/oauth
package session

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"
	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/sync/singleflight"

	"atcr.io/internal/session/oauth"
	"atcr.io/internal/sqldb"
	"atcr.io/internal/xrpc"
)

var (
	// ErrWrongPassword says: the PDS does not know the account with that password.
	ErrWrongPassword = errors.New("wrong handle or app password")
	// ErrMainPassword says: the password is the account's main one, which opens more than a registry needs.
	ErrMainPassword = errors.New("that is the account's main password; make an app password and use that")
	// ErrCodeNeeded says: the PDS wants a code from an e-mail, which it does for main passwords alone.
	ErrCodeNeeded = errors.New("that password needs a sign-in code; make an app password and use that")
	// ErrRefused says: the PDS knows the password and refuses the account all the same.
	ErrRefused = errors.New("the PDS refuses this account")
	// ErrGone says: the session was ended or revoked; its person signs in again.
	ErrGone = errors.New("the session has ended")
	// ErrScope says: the person approved of less than this call needs; they sign in again and approve.
	ErrScope = errors.New("the approval does not cover this")
	// ErrNoOAuth says: the account's server offers no OAuth that can be used.
	ErrNoOAuth = oauth.ErrUnsuitable
	// ErrSignInUnknown says: no such sign-in was begun in this browser, or it is over: it begins anew.
	ErrSignInUnknown = errors.New("that sign-in was not begun in this browser, or is over")
	// ErrDenied says: the person did not approve.
	ErrDenied = errors.New("the sign-in was refused by its person")
	// ErrOtherAccount says: the person signed in with another account than the one that they named.
	ErrOtherAccount = errors.New("that was another account than the one asked for")
)

// LimitError says that there were too many wrong passwords, or sign-ins begun.
type LimitError struct{ RetryAfter time.Duration }

func (e *LimitError) Error() string { return "too many attempts" }

// ScopeError says that the person approved of too little: nothing was kept, and they may be asked again.
type ScopeError struct {
	Missing []string // permissions in the network's words: "repo:io.atcr.tag"
}

func (e *ScopeError) Error() string {
	return fmt.Sprintf("the approval lacks %d permissions, %s first", len(e.Missing), e.Missing[0])
}

// Account is who signs in, and where.
type Account struct {
	DID    syntax.DID
	PDS    string        // base URL
	Handle syntax.Handle // "" for none; OAuth alone
}

// Session is a person's session.
type Session struct {
	ID  string
	DID syntax.DID
	New bool // opened just now
}

// Config is what Open needs.
type Config struct {
	// Secret encrypts tokens and keys the hash of passwords, at least 32 bytes. Another one ends all sessions,
	// where it is not among Accepted of the next: what was encrypted with those is read too.
	Secret   []byte
	Accepted [][]byte
	// Client calls PDSes: guarded, with a timeout, following no redirects.
	Client *http.Client
	// AllowMainPassword accepts main passwords.
	AllowMainPassword bool
	// OAuth is who this AppView is at other servers; nil: there is no sign-in by OAuth.
	OAuth  *oauth.Client
	Logger *slog.Logger
	Now    func() time.Time // nil: time.Now
}

const (
	cachedSessions = 4096
	cachedTokens   = 8192
	callTimeout    = 30 * time.Second
	// keepTimeout is for what a PDS has answered: it is kept although the caller's time is over.
	keepTimeout = 10 * time.Second
	// leaseTime is how long one process has a session's refresh, or a login, for itself: longer than those take.
	leaseTime = callTimeout + keepTimeout + 5*time.Second
)

// Store is all sessions of the processes that share a database. Safe for concurrent use.
type Store struct {
	config   Config
	db       *sqldb.DB
	vault    *vault
	upstream xrpc.Upstream
	limits   *limits
	now      func() time.Time
	flight   singleflight.Group // refreshes and logins: each once at a time in this process
	leases   *sqldb.Leases      // and in all
	live     *lru.Cache[string, *tokens]

	serviceTokens *lru.Cache[serviceKey, serviceToken]
	bareHosts     *lru.Cache[string, struct{}]     // PDSes that sign no audience with a fragment
	bareHolds     *lru.Cache[syntax.DID, struct{}] // holds that take none
}

// Open brings db's tables to their newest form.
func Open(ctx context.Context, db *sqldb.DB, c Config) (*Store, error) {
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	v, err := newVault(c.Secret, c.Accepted...)
	if err != nil {
		return nil, err
	}
	s := &Store{
		config: c, db: db, vault: v, upstream: xrpc.Upstream{Client: c.Client}, limits: &limits{db: db, now: c.Now}, now: c.Now,
		live: newLRU[string, *tokens](cachedSessions), serviceTokens: newLRU[serviceKey, serviceToken](cachedTokens),
		bareHosts: newLRU[string, struct{}](1024), bareHolds: newLRU[syntax.DID, struct{}](1024),
	}
	if err := db.Migrate(ctx, "session", migrations); err != nil {
		return nil, err
	}
	if err := db.Migrate(ctx, "login_attempt", limitMigrations); err != nil {
		return nil, err
	}
	if s.leases, err = db.OpenLeases(ctx); err != nil {
		return nil, err
	}
	if err := s.forgetOld(ctx); err != nil {
		return nil, fmt.Errorf("remove old sessions: %w", err)
	}
	return s, nil
}

func newLRU[K comparable, V any](size int) *lru.Cache[K, V] {
	c, err := lru.New[K, V](size)
	if err != nil {
		panic("session: " + err.Error()) // sizes are constants
	}
	return c
}
