package session

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/internal/devnet"
	"atcr.io/internal/session/oauth"
	"atcr.io/internal/xrpc"
	"atcr.io/test/databases"
)

func onSQLite(t *testing.T) databases.Database {
	return databases.Database{Kind: "SQLite", Dir: t.TempDir()}
}

// altered answers as the server does, with changes to its JSON; nil takes a field away.
func altered(changes map[string]any) devnet.Fault {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		recorder := httptest.NewRecorder()
		next.ServeHTTP(recorder, r)
		fields := map[string]any{}
		if err := json.Unmarshal(recorder.Body.Bytes(), &fields); err != nil {
			panic(err) // a test's own server
		}
		for name, value := range changes {
			fields[name] = value
			if value == nil {
				delete(fields, name)
			}
		}
		xrpc.WriteJSON(w, recorder.Code, fields)
	}
}

// Would catch a server that is believed although its metadata lie, or that takes people and their codes to
// another; and one that keeps a page waiting.
func TestTroubledServers(t *testing.T) {
	t.Parallel()
	const resource, server, par = "/.well-known/oauth-protected-resource", "/.well-known/oauth-authorization-server", "/oauth/par"
	evil := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("the request was taken to another server") }))
	t.Cleanup(evil.Close)
	type m = map[string]any
	for name, tt := range map[string]struct {
		path       string
		fault      devnet.Fault
		unsuitable bool
	}{
		"no OAuth":                  {resource, devnet.Refuse(404, "NotFound", "no"), true},
		"resource of another":       {resource, altered(m{"resource": "https://other.test"}), true},
		"no server":                 {resource, altered(m{"authorization_servers": []string{}}), true},
		"two servers":               {resource, altered(m{"authorization_servers": []string{"http://a.test", "http://b.test"}}), true},
		"a server with a path":      {resource, altered(m{"authorization_servers": []string{evil.URL + "/x"}}), true},
		"a server with credentials": {resource, altered(m{"authorization_servers": []string{"http://a:b@127.0.0.1/"}}), true},
		"a server that is a file":   {resource, altered(m{"authorization_servers": []string{"file:///etc/passwd"}}), true},
		"resource garbage":          {resource, devnet.Garbage(), true},
		"resource endless":          {resource, devnet.Endless(0), false},
		"resource redirects":        {resource, devnet.Redirect(evil.URL), false},
		"resource slow":             {resource, devnet.Slow(time.Minute), false},
		"no metadata":               {server, devnet.Refuse(404, "NotFound", "no"), true},
		"metadata redirect":         {server, devnet.Redirect(evil.URL), false},
		"another issuer":            {server, altered(m{"issuer": "https://bsky.social"}), true},
		"no PAR":                    {server, altered(m{"pushed_authorization_request_endpoint": nil}), true},
		"token endpoint a script":   {server, altered(m{"token_endpoint": "javascript:alert(1)"}), true},
		"page a script":             {server, altered(m{"authorization_endpoint": "javascript:alert(1)"}), true},
		"page with credentials":     {server, altered(m{"authorization_endpoint": "http://a:b@127.0.0.1/"}), true},
		"no PKCE":                   {server, altered(m{"code_challenge_methods_supported": []string{"plain"}}), true},
		"no DPoP":                   {server, altered(m{"dpop_signing_alg_values_supported": nil}), true},
		"no iss":                    {server, altered(m{"authorization_response_iss_parameter_supported": false}), true},
		"no public clients":         {server, altered(m{"token_endpoint_auth_methods_supported": []string{"client_secret_basic"}}), true},
		"metadata of another type":  {server, altered(m{"scopes_supported": "atproto"}), true},
		"PAR redirects":             {par, devnet.Redirect(evil.URL), false},
		"PAR down":                  {par, devnet.Down(), false},
		"PAR limited":               {par, devnet.Limited(time.Now().Add(time.Hour)), false},
		"PAR garbage":               {par, devnet.Garbage(), false},
		"PAR without an answer":     {par, altered(m{"request_uri": nil}), false},
		"PAR refused":               {par, devnet.Refuse(400, "invalid_request", "<script>\nno"), false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPeople(t, onSQLite(t), 0, false)
			fault := p.PDS.Inject(devnet.Path(tt.path), tt.fault)
			if name == "resource slow" {
				p.http.Timeout = time.Second
			}
			_, err := p.BeginSignIn(t.Context(), BeginSignIn{Account: p.account(0), Caller: "192.0.2.1"})
			e, upstream := errors.AsType[*xrpc.UpstreamError](err)
			if errors.Is(err, ErrNoOAuth) != tt.unsuitable || upstream == tt.unsuitable || fault.Fired() == 0 {
				t.Errorf("%v", err)
			}
			if name == "PAR limited" && (e.Status != http.StatusTooManyRequests || e.RetryAfter < 50*time.Minute) {
				t.Errorf("%+v", e)
			}
			if strings.ContainsAny(err.Error(), "\r\n") {
				t.Errorf("a server's lines are in %q", err)
			}
			fault.Remove()
			p.http.Timeout = time.Minute
			p.signIn(t)
		})
	}
}

// Would catch tokens that are kept although they are not bound, are of another, or are none.
func TestTroubledTokens(t *testing.T) {
	t.Parallel()
	for name, changes := range map[string]map[string]any{
		"not bound": {"token_type": "Bearer"}, "no sub": {"sub": nil}, "sub no DID": {"sub": "alice.test"},
		"no token": {"access_token": ""}, "endless token": {"access_token": strings.Repeat("x", 20_000)}, "no atproto": {"scope": "transition:generic"},
		"another's": {"sub": "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPeople(t, onSQLite(t), 0, false)
			started := p.begin(t)
			query := p.decide(t, started, nil)
			p.PDS.Inject(func(r *http.Request) bool { return r.URL.Path == "/oauth/token" }, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				recorder := httptest.NewRecorder()
				next.ServeHTTP(recorder, r)
				if recorder.Code != http.StatusOK { // it asks for a nonce
					for k, v := range recorder.Header() {
						w.Header()[k] = v
					}
					w.WriteHeader(recorder.Code)
					_, _ = w.Write(recorder.Body.Bytes()) // the client reads it
					return
				}
				altered(changes)(w, r, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(recorder.Body.Bytes()) }))
			})
			_, err := p.FinishSignIn(t.Context(), query, started.Browser)
			if err == nil || errors.Is(err, ErrSignInUnknown) {
				t.Errorf("%v", err)
			}
			if all, err := p.Sessions(t.Context(), p.account(0).DID); err != nil || len(all) != 0 {
				t.Errorf("%+v, %v", all, err)
			}
		})
	}
}

// Would catch a secret or a key that was lost and takes more with it than sessions.
func TestSecretOrKeyLost(t *testing.T) {
	t.Parallel()
	p := newPeople(t, onSQLite(t), 0, true)
	did := p.account(0).DID
	first := p.signIn(t)
	secret, err := p.OpenBrowser(t.Context(), first.Session.ID, "Browser/1.0", "192.0.2.1")
	if err != nil {
		t.Fatal(err)
	}
	begun := p.begin(t)
	query := p.decide(t, begun, nil)
	p.open(t, 2) // another secret
	if _, err := p.Browser(t.Context(), secret); !errors.Is(err, ErrGone) {
		t.Errorf("a browser: %v", err)
	}
	if _, err := p.DID(t.Context(), first.Session.ID); !errors.Is(err, ErrGone) {
		t.Errorf("a session: %v", err)
	}
	if _, err := p.SessionFor(t.Context(), p.account(0)); !errors.Is(err, ErrGone) {
		t.Errorf("for a device: %v", err)
	}
	if _, err := p.FinishSignIn(t.Context(), query, begun.Browser); !errors.Is(err, ErrSignInUnknown) {
		t.Errorf("a sign-in that was begun: %v", err)
	}
	if second := p.signIn(t); second.Session.ID != first.Session.ID {
		t.Errorf("%+v after %+v", second, first)
	}
	p.works(t, p.Store, first.Session.ID)

	if err := os.Remove(p.keys); err != nil {
		t.Fatal(err)
	}
	p.open(t, 2) // another key
	p.works(t, p.Store, first.Session.ID)
	p.pass(2 * time.Hour)
	if err := p.Call(t.Context(), first.Session.ID, Call{NSID: "com.atproto.server.getSession"}, nil); !errors.Is(err, ErrGone) {
		t.Errorf("with another key: %v", err)
	}
	p.works(t, p.Store, p.signIn(t).Session.ID)

	// What cannot be read can be ended.
	p.open(t, 3)
	if err := p.EndAll(t.Context(), did); err != nil {
		t.Error(err)
	}
	if all, err := p.Sessions(t.Context(), did); err != nil || len(all) != 0 {
		t.Errorf("%+v, %v", all, err)
	}
}

// Would catch a rotation that ends sessions, or that puts a key to use that servers have not seen.
func TestKeyRotated(t *testing.T) {
	t.Parallel()
	p := newPeople(t, onSQLite(t), 0, true)
	id := p.signIn(t).Session.ID
	keys, err := oauth.OpenKeys(p.keys, p.shift.now)
	if err != nil {
		t.Fatal(err)
	}
	old := keys.Signing()
	inUse := func(id string) (bool, error) {
		bound, err := p.BoundKeys(t.Context())
		return bound[id] > 0, err
	}
	if _, err := keys.Rotate(inUse); err != nil {
		t.Fatal(err)
	}
	p.pass(2 * time.Hour)
	p.works(t, p.Store, id) // refreshed with the old key
	if used, err := inUse(old.ID); err != nil || !used {
		t.Errorf("%v, %v", used, err)
	}
	if keys.Signing().ID == old.ID {
		t.Error("the old key signs on")
	}
	p.signIn(t)
	if used, err := inUse(old.ID); err != nil || used {
		t.Errorf("after a new sign-in: %v, %v", used, err)
	}
	p.pass(2 * time.Hour)
	p.works(t, p.Store, id)
	for range 2 { // now nobody needs the old one
		if _, err := keys.Rotate(inUse); err != nil {
			t.Fatal(err)
		}
	}
	if _, found := keys.ByID(old.ID); found {
		t.Error("a key that no session needs is kept")
	}
	p.pass(2 * time.Hour)
	p.works(t, p.Store, id)
}

// Would catch a cookie that is good although nobody was given it, or no longer; and one person's that ends
// another's.
func TestBrowsers(t *testing.T) {
	t.Parallel()
	databases.Each(t, func(t *testing.T, d databases.Database) {
		p := newPeople(t, d, 0, false)
		ctx, did := t.Context(), p.account(0).DID
		id := p.signIn(t).Session.ID
		one, err := p.OpenBrowser(ctx, id, "Browser/1.0 \x00\xff"+strings.Repeat("x", 1000), "192.0.2.1")
		if err != nil {
			t.Fatal(err)
		}
		two, err := p.OpenBrowser(ctx, id, "Other/1.0", "192.0.2.2")
		if err != nil {
			t.Fatal(err)
		}
		b, err := p.Browser(ctx, one)
		if err != nil || b.Session.ID != id || b.Session.DID != did || b.Address != "192.0.2.1" || len(b.Agent) != maxAgent || b.Missing != nil {
			t.Errorf("%+v, %v", b, err)
		}
		for _, forged := range []string{"", one + "A", one[1:], strings.ToLower(one), b.ID, id, did.String(), strings.Repeat("A", 1<<20), "' OR 1=1 --"} {
			if _, err := p.Browser(ctx, forged); !errors.Is(err, ErrGone) {
				t.Errorf("%.60q: %v", forged, err)
			}
		}
		if err := p.EndBrowser(ctx, p.account(1).DID, b.ID); !errors.Is(err, ErrGone) {
			t.Errorf("by another: %v", err)
		}
		if all, err := p.Browsers(ctx, did); err != nil || len(all) != 2 {
			t.Errorf("%+v, %v", all, err)
		}
		if err := p.EndBrowser(ctx, did, b.ID); err != nil {
			t.Error(err)
		}
		if _, err := p.Browser(ctx, one); !errors.Is(err, ErrGone) {
			t.Errorf("signed out: %v", err)
		}
		p.works(t, p.Store, id)
		p.pass(20 * 24 * time.Hour)
		for _, noted := range []bool{true, false} { // a use is noted, and need not be again at once
			if b, err := p.Browser(ctx, two); err != nil || b.Noted != noted {
				t.Errorf("%+v, %v", b, err)
			}
		}
		p.pass(20 * 24 * time.Hour) // it was used in between
		if _, err := p.Browser(ctx, two); err != nil {
			t.Error(err)
		}
		p.pass(31 * 24 * time.Hour)
		if _, err := p.Browser(ctx, two); !errors.Is(err, ErrGone) {
			t.Errorf("a month later: %v", err)
		}
		for range maxBrowsers + 3 {
			if _, err := p.OpenBrowser(ctx, id, "x", "y"); err != nil {
				t.Fatal(err)
			}
		}
		if all, err := p.Browsers(ctx, did); err != nil || len(all) != maxBrowsers {
			t.Errorf("%d, %v", len(all), err)
		}
		if err := p.End(ctx, p.account(1).DID, id); !errors.Is(err, ErrGone) {
			t.Errorf("ended by another: %v", err)
		}
		other := p.Store
		p.open(t, 1)
		p.works(t, p.Store, id)
		if err := other.EndAll(ctx, did); err != nil {
			t.Error(err)
		}
		if all, err := p.Browsers(ctx, did); err != nil || len(all) != 0 {
			t.Errorf("%d, %v", len(all), err)
		}
		p.pass(rereadAfter + time.Second)
		if _, err := p.DID(ctx, id); !errors.Is(err, ErrGone) {
			t.Errorf("at another process: %v", err)
		}
		if _, err := p.ServiceToken(ctx, id, "did:web:hold.test", "com.atproto.sync.getBlob"); !errors.Is(err, ErrGone) {
			t.Errorf("a token: %v", err)
		}
	})
}

// Would catch a way out of this AppView by its own address.
func TestSafePath(t *testing.T) {
	t.Parallel()
	for path, want := range map[string]string{
		"/": "/", "/settings": "/settings", "/device?user_code=AB-CD#x": "/device?user_code=AB-CD#x", "/a/../b": "/a/../b",
		"": "/", "settings": "/", "//evil.example.com": "/", "///evil.example.com": "/", "/\\evil.example.com": "/", "\\\\evil.example.com": "/",
		"https://evil.example.com": "/", "https:evil.example.com": "/", "javascript:alert(1)": "/", "/\t/evil.example.com": "/", "/a\r\nSet-Cookie: x=y": "/",
		" /a": "/", "/a b": "/", "/%zz": "/", "/" + strings.Repeat("a", 2000): "/", "?a": "/", "#a": "/",
	} {
		if got := SafePath(path); got != want {
			t.Errorf("%.40q: %q, want %q", path, got, want)
		}
	}
}

// Would catch sign-ins that can be begun without end; and some that ask for a prompt that is none.
func TestSignInsAreLimited(t *testing.T) {
	t.Parallel()
	p := newPeople(t, onSQLite(t), 0, false)
	asked := p.PDS.Inject(devnet.Path("/oauth/par"), func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if err := r.ParseForm(); err != nil || r.PostForm.Has("prompt") {
			t.Errorf("%v, %q", err, r.PostForm)
		}
		next.ServeHTTP(w, r)
	})
	begin := func(i int, address string) error {
		_, err := p.BeginSignIn(t.Context(), BeginSignIn{Account: p.account(i), Prompt: "none&x=y", Caller: address})
		return err
	}
	for i := range perAddress {
		if err := begin(i%2, "192.0.2.1"); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 2 {
		before := asked.Fired()
		if e, ok := errors.AsType[*LimitError](begin(i, "192.0.2.1")); !ok || e.RetryAfter <= 0 || asked.Fired() != before {
			t.Errorf("%+v", e)
		}
	}
	if err := begin(0, "192.0.2.2"); err != nil {
		t.Errorf("from elsewhere: %v", err)
	}
	// Attempts to sign in by a password have counts of their own.
	if _, err := p.Login(t.Context(), p.account(0), p.Network.Accounts[0].AppPassword, "192.0.2.1"); err != nil {
		t.Error(err)
	}
}

// Would catch a stranger who begins sign-ins for somebody, and so keeps them out.
func TestNobodyIsLockedOut(t *testing.T) {
	t.Parallel()
	p := newPeople(t, onSQLite(t), 0, false)
	begin := func(address string) error {
		_, err := p.BeginSignIn(t.Context(), BeginSignIn{Account: p.account(0), Caller: address})
		return err
	}
	for i := range 30 {
		if err := begin("192.0.2." + strconv.Itoa(1+i%3)); err != nil {
			t.Fatal(err)
		}
	}
	if err := begin("198.51.100.1"); err != nil {
		t.Errorf("the person themselves: %v", err)
	}
	if _, err := p.Login(t.Context(), p.account(0), p.Network.Accounts[0].AppPassword, "192.0.2.1"); err != nil {
		t.Errorf("by a password: %v", err)
	}
}

// Would catch a secret that can be read from the database, or from a log.
func TestNoSecretKept(t *testing.T) {
	t.Parallel()
	d := onSQLite(t)
	p := newPeople(t, d, 0, true)
	started := p.begin(t)
	query := p.decide(t, started, nil)
	done, err := p.FinishSignIn(t.Context(), query, started.Browser)
	if err != nil {
		t.Fatal(err)
	}
	id := done.Session.ID
	browser, err := p.OpenBrowser(t.Context(), id, "Browser/1.0", "192.0.2.1")
	if err != nil {
		t.Fatal(err)
	}
	kept, err := p.load(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	key, err := kept.bound.Key.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	begun := p.begin(t) // one that is not ended
	unfinished := p.decide(t, begun, nil)
	secrets := map[string]string{
		"access token": kept.access, "refresh token": kept.refresh, "session key": string(key), "code": query.Get("code"), "state": query.Get("state"),
		"sign-in cookie": started.Browser, "browser cookie": browser, "open state": unfinished.Get("state"), "open cookie": begun.Browser,
	}
	for _, name := range []string{"db.sqlite3", "db.sqlite3-wal"} {
		raw, err := os.ReadFile(filepath.Join(d.Dir, name))
		if err != nil {
			t.Fatal(err)
		}
		for what, secret := range secrets {
			if strings.Contains(string(raw), secret) {
				t.Errorf("the %s is in %s", what, name)
			}
		}
	}
	// Now whatever is said when things fail.
	p.PDS.Inject(devnet.Path("/oauth/revoke"), devnet.Down())
	p.PDS.Inject(devnet.Path("/oauth/token"), devnet.Refuse(400, "invalid_grant", "the token is over"))
	p.pass(2 * time.Hour)
	said := []error{}
	said = append(said, p.Call(t.Context(), id, Call{NSID: "com.atproto.server.getSession"}, nil), p.End(t.Context(), p.account(0).DID, id))
	_, err = p.FinishSignIn(t.Context(), query, started.Browser)
	said = append(said, err)
	text := p.log.String() + errors.Join(said...).Error()
	for what, secret := range secrets {
		if strings.Contains(text, secret) {
			t.Errorf("the %s is in what was said: %s", what, text)
		}
	}
}

// Would catch an account that has no handle, or one that is not valid, and cannot sign in.
func TestSignInWithoutHandle(t *testing.T) {
	t.Parallel()
	p := newPeople(t, onSQLite(t), 0, false)
	for _, handle := range []syntax.Handle{"", syntax.HandleInvalid} {
		a := p.account(0)
		a.Handle = handle
		started, err := p.BeginSignIn(t.Context(), BeginSignIn{Account: a, ReturnTo: "https://evil.example.com", Caller: "192.0.2.1"})
		if err != nil {
			t.Fatal(err)
		}
		done, err := p.FinishSignIn(t.Context(), p.decide(t, started, nil), started.Browser)
		if err != nil || done.Account != a || done.ReturnTo != "/" {
			t.Errorf("%+v, %v", done, err)
		}
	}
}

// Would catch a session of an account that has moved, and that is used at the PDS that it left.
func TestSessionOfMovedAccount(t *testing.T) {
	t.Parallel()
	p := newPeople(t, onSQLite(t), 0, false)
	p.signIn(t)
	moved := p.account(0)
	moved.PDS = "https://other.test"
	if _, err := p.SessionFor(t.Context(), moved); !errors.Is(err, ErrGone) {
		t.Errorf("%v", err)
	}
	if _, err := p.SessionFor(t.Context(), p.account(1)); !errors.Is(err, ErrGone) {
		t.Errorf("of another: %v", err)
	}
}

// Would catch an approval that covers less than a newer version of the AppView needs, and of which nobody is
// told.
func TestApprovalOutgrown(t *testing.T) {
	t.Parallel()
	p := newPeople(t, onSQLite(t), 0, false)
	id := p.signIn(t).Session.ID
	secret, err := p.OpenBrowser(t.Context(), id, "x", "y")
	if err != nil {
		t.Fatal(err)
	}
	kept, err := p.load(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	older := *kept
	older.scope = strings.ReplaceAll(kept.scope, "repo:io.atcr.repo.page", "") // as an older version asked
	if _, err := p.update(t.Context(), &older); err != nil {
		t.Fatal(err)
	}
	want := []string{"repo:io.atcr.repo.page"}
	if b, err := p.Browser(t.Context(), secret); err != nil || !slices.Equal(b.Missing, want) {
		t.Errorf("%+v, %v", b, err)
	}
	if all, err := p.Sessions(t.Context(), p.account(0).DID); err != nil || !slices.Equal(all[0].Missing, want) {
		t.Errorf("%+v, %v", all, err)
	}
}
