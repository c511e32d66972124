package session

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/internal/devnet"
	"atcr.io/internal/httpx"
	"atcr.io/internal/session/oauth"
	"atcr.io/internal/sqldb"
	"atcr.io/internal/xrpc"
	"atcr.io/test/databases"
)

// people is a PDS with alice and bob, and AppViews (processes) that share a database.
type people struct {
	*devnet.Network
	*shift
	kind databases.Database
	db   *sqldb.DB
	log  lockedBuffer
	keys string // file
	base string // of the AppView; "" for the public client of loopback
	http *http.Client

	*Store // the newest process
	client *oauth.Client
}

// shift is the test's clock: the real one and what has passed; and the network's, that is ahead of it.
type shift struct {
	mu            sync.Mutex
	passed, ahead time.Duration
}

func (s *shift) now() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return time.Now().Add(s.passed)
}

func (s *shift) theirs() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return time.Now().Add(s.passed + s.ahead)
}

func (s *shift) pass(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.passed += d
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// newPeople starts all that with one process. ahead is how far the PDS's clock is ahead of ours.
func newPeople(t *testing.T, d databases.Database, ahead time.Duration, confidential bool) *people {
	t.Helper()
	p := &people{kind: d, shift: &shift{ahead: ahead}, keys: filepath.Join(t.TempDir(), "oauth.pem")}
	p.http = httpx.NewClient(httpx.ClientConfig{AllowPrivate: true, Timeout: time.Minute})
	c := devnet.Config{Accounts: []string{"alice.test", "bob.test"}, Now: p.theirs}
	if confidential {
		p.base = "http://appview.test"
		c.OAuthClients = p.serveMetadata(t)
	}
	n, err := devnet.Start(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	p.Network = n
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	p.open(t, 1)
	return p
}

// serveMetadata serves what a confidential client says of itself, under a name that leads nowhere.
func (p *people) serveMetadata(t *testing.T) *http.Client {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case oauth.MetadataPath:
			xrpc.WriteJSON(w, http.StatusOK, p.client.Metadata("ATCR"))
		case oauth.GenericMetadataPath:
			xrpc.WriteJSON(w, http.StatusOK, p.client.GenericMetadata("ATCR"))
		case oauth.JWKSPath:
			keys, err := p.client.JWKS()
			if err != nil {
				t.Error(err)
			}
			xrpc.WriteJSON(w, http.StatusOK, keys)
		default:
			http.NotFound(w, r)
		}
	}))
	t.Cleanup(s.Close)
	return &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, network, s.Listener.Addr().String())
	}}}
}

// open starts another process of the AppView. secret is what its key is made of.
func (p *people) open(t *testing.T, secret byte) {
	t.Helper()
	p.db = p.kind.Open(t)
	c := oauth.Config{BaseURL: p.base, HTTP: p.http, AllowHTTP: true, Now: p.shift.now}
	if p.base == "" {
		c.BaseURL = "http://127.0.0.1:5000"
	} else {
		keys, err := oauth.OpenKeys(p.keys, p.shift.now)
		if err != nil {
			t.Fatal(err)
		}
		c.Keys = keys
	}
	client, err := oauth.New(c)
	if err != nil {
		t.Fatal(err)
	}
	p.client = client
	p.Store, err = Open(t.Context(), p.db, Config{
		Secret: bytes.Repeat([]byte{secret}, 32), Now: p.shift.now, Client: p.http, OAuth: client,
		Logger: slog.New(slog.NewTextHandler(&p.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	if err != nil {
		t.Fatal(err)
	}
}

func (p *people) account(i int) Account {
	a := p.Accounts[i]
	return Account{DID: syntax.DID(a.DID), PDS: p.PDSURL, Handle: syntax.Handle(a.Handle)}
}

func (p *people) begin(t *testing.T) SignInStarted {
	t.Helper()
	started, err := p.BeginSignIn(t.Context(), BeginSignIn{Account: p.account(0), ReturnTo: "/settings?tab=1", Caller: "192.0.2.1"})
	if err != nil {
		t.Fatal(err)
	}
	return started
}

// decide plays alice at her server, and returns the callback's query.
func (p *people) decide(t *testing.T, started SignInStarted, change func(*devnet.Decision)) url.Values {
	t.Helper()
	d := devnet.Decision{Handle: "alice.test", Password: p.Network.Accounts[0].Password}
	if change != nil {
		change(&d)
	}
	callback, err := p.Authorize(t.Context(), started.URL, d)
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(callback)
	if err != nil {
		t.Fatal(err)
	}
	return u.Query()
}

func (p *people) signIn(t *testing.T) SignInDone {
	t.Helper()
	started := p.begin(t)
	done, err := p.FinishSignIn(t.Context(), p.decide(t, started, nil), started.Browser)
	if err != nil {
		t.Fatal(err)
	}
	return done
}

// works makes a call in a session's name.
func (p *people) works(t *testing.T, s *Store, id string) {
	t.Helper()
	var out struct{ DID string }
	if err := s.Call(t.Context(), id, Call{NSID: "com.atproto.server.getSession"}, &out); err != nil || out.DID != p.Accounts[0].DID {
		t.Errorf("%q, %v", out.DID, err)
	}
}

func createRecord(did, collection string) Call {
	return Call{NSID: "com.atproto.repo.createRecord", ContentType: "application/json", Body: []byte(
		`{"repo":"` + did + `","collection":"` + collection + `","record":{"$type":"` + collection + `","createdAt":"2026-01-01T00:00:00Z"}}`)}
}

// Would catch a session that cannot do what the registry needs, or that can do more; and one that does not
// outlive the process.
func TestSignIn(t *testing.T) {
	t.Parallel()
	databases.Each(t, func(t *testing.T, d databases.Database) {
		for name, confidential := range map[string]bool{"public": false, "confidential": true} {
			t.Run(name, func(t *testing.T) {
				if d.URL != "" && confidential {
					return // of its database nothing is new
				}
				testSignIn(t, d, confidential)
			})
		}
	})
}

func testSignIn(t *testing.T, d databases.Database, confidential bool) {
	if d.Dir != "" {
		d.Dir = t.TempDir()
	}
	p := newPeople(t, d, 0, confidential)
	done := p.signIn(t)
	did := p.account(0).DID
	if done.Session.DID != did || !done.Session.New || done.ReturnTo != "/settings?tab=1" || done.Account != p.account(0) {
		t.Errorf("%+v", done)
	}
	id := done.Session.ID
	for range 2 {
		p.works(t, p.Store, id)
		if err := p.Call(t.Context(), id, createRecord(did.String(), "io.atcr.tag"), nil); err != nil {
			t.Error(err)
		}
		if err := p.Call(t.Context(), id, createRecord(did.String(), "app.bsky.feed.post"), nil); !errors.Is(err, ErrScope) {
			t.Errorf("a post: %v", err)
		}
		blob := Call{NSID: "com.atproto.repo.uploadBlob", Body: []byte("{}"), ContentType: "application/vnd.oci.image.manifest.v1+json"}
		if err := p.Call(t.Context(), id, blob, nil); err != nil {
			t.Error(err)
		}
		token, err := p.ServiceToken(t.Context(), id, "did:web:hold.test", "io.atcr.hold.initiateUpload")
		if c := claimsOf(t, token); err != nil || c.Iss != did.String() || c.Aud != "did:web:hold.test#atcr_hold" {
			t.Errorf("%+v, %v", c, err)
		}
		if _, err := p.OnceToken(t.Context(), id, "did:web:hold.test", "io.atcr.hold.requestCrew"); err != nil {
			t.Error(err)
		}
		if _, err := p.OnceToken(t.Context(), id, "did:web:hold.test", "com.atproto.repo.createRecord"); !errors.Is(err, ErrScope) {
			t.Errorf("a token for another method: %v", err)
		}
		if s, err := p.SessionFor(t.Context(), p.account(0)); err != nil || s.ID != id {
			t.Errorf("%+v, %v", s, err)
		}
		p.open(t, 1) // as after a restart
	}
	infos, err := p.Sessions(t.Context(), did)
	if err != nil || len(infos) != 1 || infos[0].Kind != OAuth || infos[0].Missing != nil || !slices.Contains(infos[0].Scopes, "repo:io.atcr.tag") || slices.Contains(infos[0].Scopes, "transition:generic") {
		t.Errorf("%+v, %v", infos, err)
	}
	p.pass(3 * time.Hour)
	p.works(t, p.Store, id)
	if err := p.End(t.Context(), did, id); err != nil || p.Network.OAuth.Grants() != 0 {
		t.Errorf("%v, %d grants", err, p.Network.OAuth.Grants())
	}
	if _, err := p.DID(t.Context(), id); !errors.Is(err, ErrGone) {
		t.Errorf("after its end: %v", err)
	}
}

// Would catch answers that end a sign-in which they should not: of another server, another browser, another
// sign-in, another account, or none at all; and a session that is left behind by a sign-in that failed.
func TestSignInAnswers(t *testing.T) {
	t.Parallel()
	set := func(key, value string) func(*people, url.Values, *string) {
		return func(_ *people, q url.Values, _ *string) { q.Set(key, value) }
	}
	for name, tt := range map[string]struct {
		decision func(*devnet.Decision)
		change   func(p *people, q url.Values, browser *string)
		want     error // nil: an UpstreamError that is Invalid
		again    bool  // the right answer still works afterwards
	}{
		"denied":        {decision: func(d *devnet.Decision) { d.Deny = true }, want: ErrDenied},
		"another state": {change: set("state", "ABCDEFGHIJKLMNOPQRSTUVWXYZ"), want: ErrSignInUnknown, again: true},
		"endless state": {change: set("state", strings.Repeat("A", 10_000)), want: ErrSignInUnknown, again: true},
		"no state":      {change: func(_ *people, q url.Values, _ *string) { q.Del("state") }, want: ErrSignInUnknown, again: true},
		"no browser":    {change: func(_ *people, _ url.Values, b *string) { *b = "" }, want: ErrSignInUnknown, again: true},
		"other browser": {change: func(_ *people, _ url.Values, b *string) { *b = strings.Repeat("A", 52) }, want: ErrSignInUnknown, again: true},
		"too late":      {change: func(p *people, _ url.Values, _ *string) { p.pass(16 * time.Minute) }, want: ErrSignInUnknown},
		"expired code":  {change: func(p *people, _ url.Values, _ *string) { p.pass(2 * time.Minute) }, want: ErrSignInUnknown},
		"another code":  {change: set("code", "made up"), want: ErrSignInUnknown},
		"no code":       {change: func(_ *people, q url.Values, _ *string) { q.Del("code") }},
		"another iss":   {change: set("iss", "https://evil.example.com")},
		"no iss":        {change: func(_ *people, q url.Values, _ *string) { q.Del("iss") }},
		"error of other": {change: func(_ *people, q url.Values, _ *string) {
			q.Set("error", "access_denied")
			q.Set("iss", "https://evil.example.com")
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPeople(t, databases.Database{Kind: "SQLite", Dir: t.TempDir()}, 0, false)
			started := p.begin(t)
			right := p.decide(t, started, tt.decision)
			query, browser := url.Values{}, started.Browser
			for k, v := range right {
				query[k] = slices.Clone(v)
			}
			if tt.change != nil {
				tt.change(p, query, &browser)
			}
			_, err := p.FinishSignIn(t.Context(), query, browser)
			e, upstream := errors.AsType[*xrpc.UpstreamError](err)
			if tt.want != nil && !errors.Is(err, tt.want) || tt.want == nil && (!upstream || !e.Invalid) {
				t.Errorf("%v", err)
			}
			_, err = p.FinishSignIn(t.Context(), right, started.Browser)
			if tt.again != (err == nil) {
				t.Errorf("the right answer afterwards: %v", err)
			}
			if all, err := p.Sessions(t.Context(), p.account(0).DID); err != nil || (len(all) > 0) != tt.again || (p.Network.OAuth.Grants() > 0) != tt.again {
				t.Errorf("%+v, %v, %d grants", all, err, p.Network.OAuth.Grants())
			}
		})
	}
}

// Would catch a callback that is good twice.
func TestSignInReplayed(t *testing.T) {
	t.Parallel()
	p := newPeople(t, databases.Database{Kind: "SQLite", Dir: t.TempDir()}, 0, false)
	started := p.begin(t)
	query := p.decide(t, started, nil)
	results := make([]error, 8)
	var wg sync.WaitGroup
	for i := range results {
		wg.Go(func() { _, results[i] = p.FinishSignIn(t.Context(), query, started.Browser) })
	}
	wg.Wait()
	good := 0
	for _, err := range results {
		if err == nil {
			good++
		} else if !errors.Is(err, ErrSignInUnknown) {
			t.Error(err)
		}
	}
	if good != 1 {
		t.Errorf("%d of one callback were good", good)
	}
	all, err := p.Sessions(t.Context(), p.account(0).DID)
	if err != nil || len(all) != 1 {
		t.Fatalf("%+v, %v", all, err)
	}
	p.works(t, p.Store, all[0].ID)
}

// Would catch somebody who is signed in as the person whom they named, and is another.
func TestSignInAsAnother(t *testing.T) {
	t.Parallel()
	p := newPeople(t, databases.Database{Kind: "SQLite", Dir: t.TempDir()}, 0, false)
	started := p.begin(t)
	query := p.decide(t, started, func(d *devnet.Decision) { d.Handle, d.Password = "bob.test", p.Accounts[1].Password })
	if _, err := p.FinishSignIn(t.Context(), query, started.Browser); !errors.Is(err, ErrOtherAccount) || p.Network.OAuth.Grants() != 0 {
		t.Errorf("%v, %d grants", err, p.Network.OAuth.Grants())
	}
	for i := range 2 {
		if all, err := p.Sessions(t.Context(), p.account(i).DID); err != nil || len(all) != 0 {
			t.Errorf("%+v, %v", all, err)
		}
	}
}

// Would catch an approval of too little that is taken for enough, or that ends a session which had more.
func TestScopesReduced(t *testing.T) {
	t.Parallel()
	p := newPeople(t, databases.Database{Kind: "SQLite", Dir: t.TempDir()}, 0, false)
	first := p.signIn(t)
	started := p.begin(t)
	query := p.decide(t, started, func(d *devnet.Decision) { d.Without = []string{"repo:io.atcr.tag", "blob:application/*"} })
	_, err := p.FinishSignIn(t.Context(), query, started.Browser)
	e, ok := errors.AsType[*ScopeError](err)
	if !ok || !slices.Equal(e.Missing, []string{"repo:io.atcr.tag", "blob:application/*"}) {
		t.Errorf("%v", err)
	}
	if p.Network.OAuth.Grants() != 1 {
		t.Errorf("%d grants", p.Network.OAuth.Grants())
	}
	p.works(t, p.Store, first.Session.ID)
}

// Would catch a second sign-in that ends what uses the first: queued messages, devices, other browsers; and a
// first that stays open at the server.
func TestSignInAgain(t *testing.T) {
	t.Parallel()
	p := newPeople(t, databases.Database{Kind: "SQLite", Dir: t.TempDir()}, 0, false)
	first := p.signIn(t)
	other := p.Store
	p.works(t, other, first.Session.ID)
	secret, err := p.OpenBrowser(t.Context(), first.Session.ID, "Browser/1.0", "192.0.2.1")
	if err != nil {
		t.Fatal(err)
	}
	p.open(t, 1) // a second process
	second := p.signIn(t)
	if second.Session.ID != first.Session.ID || second.Session.New || p.Network.OAuth.Grants() != 1 {
		t.Errorf("%+v after %+v, %d grants", second, first, p.Network.OAuth.Grants())
	}
	p.works(t, other, first.Session.ID)
	if b, err := other.Browser(t.Context(), secret); err != nil || b.Session.ID != first.Session.ID {
		t.Errorf("%+v, %v", b, err)
	}
}

// Would catch a nonce that is kept when the server has another: at the token, in the midst of calls, at a
// refresh.
func TestNonceRotates(t *testing.T) {
	t.Parallel()
	p := newPeople(t, databases.Database{Kind: "SQLite", Dir: t.TempDir()}, 0, true)
	started := p.begin(t)
	query := p.decide(t, started, nil)
	p.Network.OAuth.RotateNonce()
	done, err := p.FinishSignIn(t.Context(), query, started.Browser)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		p.Network.OAuth.RotateNonce()
		p.works(t, p.Store, done.Session.ID)
		p.Network.OAuth.RotateNonce()
		if err := p.Call(t.Context(), done.Session.ID, createRecord(p.Accounts[0].DID, "io.atcr.tag"), nil); err != nil { // its body goes twice
			t.Error(err)
		}
		p.pass(2 * time.Hour)
		p.Network.OAuth.RotateNonce()
		p.works(t, p.Store, done.Session.ID)
	}
}

// Would catch proofs and assertions that are stamped with our own clock. The server takes nothing from its
// future, and nothing older than a minute.
func TestClocksApart(t *testing.T) {
	t.Parallel()
	for _, ahead := range []time.Duration{-time.Minute, time.Minute, -30 * time.Minute, time.Hour} {
		t.Run(ahead.String(), func(t *testing.T) {
			t.Parallel()
			p := newPeople(t, databases.Database{Kind: "SQLite", Dir: t.TempDir()}, ahead, true)
			done := p.signIn(t)
			p.works(t, p.Store, done.Session.ID)
			p.open(t, 1) // a process that has not heard of the server
			p.works(t, p.Store, done.Session.ID)
			p.open(t, 1)
			p.pass(3 * time.Hour)
			p.works(t, p.Store, done.Session.ID) // refreshed first of all
		})
	}
}

// Would catch a refresh token that is used twice, which ends the session: by requests at the same time, in
// one process and in several.
func TestRefreshOnceForAll(t *testing.T) {
	t.Parallel()
	databases.Each(t, func(t *testing.T, d databases.Database) {
		p := newPeople(t, d, 0, false)
		id := p.signIn(t).Session.ID
		stores := []*Store{p.Store, nil}
		p.open(t, 1)
		stores[1] = p.Store
		tokens := p.PDS.Inject(devnet.Path("/oauth/token"), func(w http.ResponseWriter, r *http.Request, next http.Handler) { next.ServeHTTP(w, r) })
		// The first time the answer waits for a nonce that each process has to learn.
		for round := range 4 {
			before := tokens.Fired()
			p.pass(2 * time.Hour)
			var wg sync.WaitGroup
			for i := range 20 {
				wg.Go(func() { p.works(t, stores[i%2], id) })
			}
			wg.Wait()
			if n := tokens.Fired() - before; n < 1 || n > 2 { // one, or one with an old nonce before it
				t.Errorf("round %d: %d refreshes", round, n)
			}
		}
		if p.Network.OAuth.Grants() != 1 {
			t.Errorf("%d grants", p.Network.OAuth.Grants())
		}
	})
}

// Would catch an access token that the server ended early and that is used on; and a session that is given up
// because its server, or our own metadata, could not be reached.
func TestRefreshTrouble(t *testing.T) {
	t.Parallel()
	p := newPeople(t, databases.Database{Kind: "SQLite", Dir: t.TempDir()}, 0, true)
	id := p.signIn(t).Session.ID
	token := devnet.Path("/oauth/token")
	for name, fault := range map[string]devnet.Fault{
		"down": devnet.Down(), "failing": devnet.Refuse(500, "server_error", "x"), "limited": devnet.Refuse(429, "rate_limited", "x"),
		"cannot read our metadata": devnet.Refuse(400, "invalid_client_metadata", "x"), "does not know us": devnet.Refuse(401, "invalid_client", "x"),
		"garbage": devnet.Garbage(), "redirect": devnet.Redirect("https://evil.example.com/"), "endless": devnet.Endless(0),
		"another's": answer(map[string]any{"access_token": "a", "refresh_token": "r", "token_type": "DPoP", "sub": p.Accounts[1].DID, "scope": "atproto"}),
		"not bound": answer(map[string]any{"access_token": "a", "refresh_token": "r", "token_type": "Bearer", "sub": p.Accounts[0].DID, "scope": "atproto"}),
	} {
		p.pass(2 * time.Hour)
		i := p.PDS.Inject(token, fault)
		err := p.Call(t.Context(), id, Call{NSID: "com.atproto.server.getSession"}, nil)
		if _, ok := errors.AsType[*xrpc.UpstreamError](err); !ok || errors.Is(err, ErrGone) || i.Fired() == 0 {
			t.Errorf("%s: %v", name, err)
		}
		i.Remove()
		p.works(t, p.Store, id)
	}
	p.pass(2 * time.Hour)
	p.PDS.Inject(token, devnet.Refuse(400, "invalid_grant", "ended by its person"))
	if err := p.Call(t.Context(), id, Call{NSID: "com.atproto.server.getSession"}, nil); !errors.Is(err, ErrGone) {
		t.Errorf("%v", err)
	}
	if all, err := p.Sessions(t.Context(), p.account(0).DID); err != nil || len(all) != 0 {
		t.Errorf("%+v, %v", all, err)
	}
}

// Would catch a PDS that knows no fine permissions, and on which nobody could sign in.
func TestServerWithoutPermissions(t *testing.T) {
	t.Parallel()
	for name, confidential := range map[string]bool{"public": false, "confidential": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPeople(t, databases.Database{Kind: "SQLite", Dir: t.TempDir()}, 0, confidential)
			p.Network.OAuth.KnowNoPermissions()
			id := p.signIn(t).Session.ID
			did := p.account(0).DID
			infos, err := p.Sessions(t.Context(), did)
			if err != nil || len(infos) != 1 || !slices.Equal(infos[0].Scopes, []string{"atproto", "transition:generic"}) || infos[0].Missing != nil {
				t.Errorf("%+v, %v", infos, err)
			}
			for range 2 {
				if err := p.Call(t.Context(), id, createRecord(did.String(), "io.atcr.tag"), nil); err != nil {
					t.Error(err)
				}
				p.pass(2 * time.Hour) // and refreshed, by the same client
				p.open(t, 1)
			}
			if err := p.End(t.Context(), did, id); err != nil || p.Network.OAuth.Grants() != 0 {
				t.Errorf("%v, %d grants", err, p.Network.OAuth.Grants())
			}
		})
	}
}
