package devnet

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bluesky-social/indigo/atproto/atclient"
	"github.com/bluesky-social/indigo/atproto/auth"
	"github.com/bluesky-social/indigo/atproto/identity"
	"github.com/bluesky-social/indigo/atproto/syntax"
)

// clock can be moved by a test.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// startNetwork starts alice and bob.
func startNetwork(t *testing.T, change func(*Config)) *Network {
	t.Helper()
	c := Config{Dir: t.TempDir(), Accounts: []string{"alice.test", "bob.test"}}
	if change != nil {
		change(&c)
	}
	n, err := Start(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return n
}

// resolver is indigo's, with handles looked up on the network where it would ask the handle's own host.
func resolver(n *Network) *identity.BaseDirectory {
	pds, err := url.Parse(n.PDSURL)
	if err != nil {
		panic(err)
	}
	return &identity.BaseDirectory{
		PLCURL: n.PLCURL,
		HTTPClient: http.Client{Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
			if strings.HasSuffix(r.URL.Hostname(), ".test") {
				r = r.Clone(r.Context())
				r.Host, r.URL.Scheme, r.URL.Host = r.URL.Host, "http", pds.Host
			}
			return http.DefaultTransport.RoundTrip(r)
		})},
		SkipDNSDomainSuffixes: []string{".test"},
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func login(t *testing.T, n *Network, identifier, password string) *atclient.APIClient {
	t.Helper()
	c, err := atclient.LoginWithPasswordHost(t.Context(), n.PDSURL, identifier, password, "", nil)
	if err != nil {
		t.Fatalf("login as %s: %v", identifier, err)
	}
	return c
}

// apiError fails the test unless err is the XRPC error wanted.
func apiError(t *testing.T, err error, status int, name string) {
	t.Helper()
	e, ok := err.(*atclient.APIError) //nolint:errorlint // atclient returns it bare
	if !ok || e.StatusCode != status || e.Name != name {
		t.Errorf("got %v, want %d %s", err, status, name)
	}
}

// Catches documents that atproto software cannot read: handle, key or PDS missing or in the wrong form.
func TestIdentityResolves(t *testing.T) {
	t.Parallel()
	n := startNetwork(t, nil)
	directory := resolver(n)
	for _, a := range n.Accounts {
		id, err := directory.LookupHandle(t.Context(), syntax.Handle(a.Handle))
		if err != nil {
			t.Fatalf("%s: %v", a.Handle, err)
		}
		if id.DID.String() != a.DID || id.Handle.String() != a.Handle || id.PDSEndpoint() != n.PDSURL {
			t.Errorf("%s resolves to %s, %s, %s", a.Handle, id.DID, id.Handle, id.PDSEndpoint())
		}
		if _, err := id.PublicKey(); err != nil {
			t.Errorf("%s: %v", a.Handle, err)
		}
	}
	api := atclient.NewAPIClient(n.PDSURL)
	var out struct{ DID string }
	if err := api.Get(t.Context(), "com.atproto.identity.resolveHandle", map[string]any{"handle": "Alice.Test"}, &out); err != nil || out.DID != n.Accounts[0].DID {
		t.Errorf("resolveHandle: %s %v", out.DID, err)
	}
	err := api.Get(t.Context(), "com.atproto.identity.resolveHandle", map[string]any{"handle": "carol.test"}, &out)
	apiError(t, err, http.StatusBadRequest, "HandleNotFound")
	err = api.Get(t.Context(), "com.atproto.identity.resolveHandle", map[string]any{"handle": "no handle"}, &out)
	apiError(t, err, http.StatusBadRequest, "InvalidRequest")
	if status, _ := get(t, n.PDSURL+"/.well-known/atproto-did"); status != http.StatusNotFound {
		t.Errorf("atproto-did for a host that is no handle: %d", status)
	}
}

// Catches sessions that open without the right password, or with more power than it gives.
func TestSessions(t *testing.T) {
	t.Parallel()
	now := &clock{now: time.Now()}
	n := startNetwork(t, func(c *Config) { c.Now = now.Now })
	alice := n.Accounts[0]

	for _, wrong := range [][2]string{{alice.Handle, n.Accounts[1].AppPassword}, {alice.DID, ""}, {"carol.test", alice.Password}} {
		_, err := atclient.LoginWithPasswordHost(t.Context(), n.PDSURL, wrong[0], wrong[1], "", nil)
		apiError(t, err, http.StatusUnauthorized, "AuthenticationRequired")
	}
	for password, scope := range map[string]string{alice.Password: scopeAccess, alice.AppPassword: scopeAppPass} {
		for _, identifier := range []string{alice.Handle, alice.DID, "ALICE.test"} {
			c := login(t, n, identifier, password)
			access, _ := c.Auth.(*atclient.PasswordAuth).GetTokens()
			if claims := claimsOf(t, access); claims["scope"] != scope || claims["sub"] != alice.DID {
				t.Errorf("login with %s: claims %v", identifier, claims)
			}
			var session struct {
				DID, Handle string
				DIDDoc      map[string]any `json:"didDoc"`
			}
			if err := c.Get(t.Context(), "com.atproto.server.getSession", nil, &session); err != nil {
				t.Fatal(err)
			}
			if session.DID != alice.DID || session.Handle != alice.Handle || session.DIDDoc["id"] != alice.DID {
				t.Errorf("session %+v", session)
			}
		}
	}

	app := login(t, n, alice.Handle, alice.AppPassword)
	access, refresh := app.Auth.(*atclient.PasswordAuth).GetTokens()
	var out map[string]any
	apiError(t, app.Post(t.Context(), "com.atproto.server.createAppPassword", map[string]any{"name": "more"}, &out), http.StatusBadRequest, "InvalidToken")
	apiError(t, bearer(n, refresh).Get(t.Context(), "com.atproto.server.getSession", nil, &out), http.StatusBadRequest, "InvalidToken")
	apiError(t, bearer(n, access).Post(t.Context(), "com.atproto.server.refreshSession", nil, &out), http.StatusBadRequest, "InvalidToken")
	apiError(t, bearer(n, access+"x").Get(t.Context(), "com.atproto.server.getSession", nil, &out), http.StatusBadRequest, "InvalidToken")
	apiError(t, atclient.NewAPIClient(n.PDSURL).Get(t.Context(), "com.atproto.server.getSession", nil, &out), http.StatusUnauthorized, "AuthMissing")

	now.advance(accessLifetime + time.Second)
	apiError(t, bearer(n, access).Get(t.Context(), "com.atproto.server.getSession", nil, &out), http.StatusBadRequest, "ExpiredToken")
	if err := app.Get(t.Context(), "com.atproto.server.getSession", nil, &out); err != nil { // refreshes by itself
		t.Errorf("after a refresh: %v", err)
	}
	again, _ := app.Auth.(*atclient.PasswordAuth).GetTokens()
	if claimsOf(t, again)["scope"] != scopeAppPass {
		t.Error("a refreshed session of an app password has another scope")
	}
	// A refresh token works once.
	apiError(t, bearer(n, refresh).Post(t.Context(), "com.atproto.server.refreshSession", nil, &out), http.StatusBadRequest, "ExpiredToken")

	_, last := app.Auth.(*atclient.PasswordAuth).GetTokens()
	if err := app.Auth.(*atclient.PasswordAuth).Logout(t.Context(), app.Client); err != nil {
		t.Fatal(err)
	}
	apiError(t, bearer(n, last).Post(t.Context(), "com.atproto.server.refreshSession", nil, &out), http.StatusBadRequest, "ExpiredToken")
	now.advance(refreshLifetime)
	apiError(t, bearer(n, last).Post(t.Context(), "com.atproto.server.refreshSession", nil, &out), http.StatusBadRequest, "ExpiredToken")
}

func bearer(n *Network, token string) *atclient.APIClient {
	c := atclient.NewAPIClient(n.PDSURL)
	c.Headers = http.Header{"Authorization": {"Bearer " + token}}
	return c
}

func claimsOf(t *testing.T, token string) map[string]any {
	t.Helper()
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		t.Fatalf("%q is no JWT", token)
	}
	raw, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		t.Fatal(err)
	}
	var claims map[string]any
	if err := json.Unmarshal(raw, &claims); err != nil {
		t.Fatal(err)
	}
	return claims
}

func TestAccountsAndAppPasswords(t *testing.T) {
	t.Parallel()
	n := startNetwork(t, nil)
	api := atclient.NewAPIClient(n.PDSURL)
	create := func(handle, password string) (did string, err error) {
		var out struct{ DID string }
		err = api.Post(t.Context(), "com.atproto.server.createAccount", map[string]any{"handle": handle, "password": password}, &out)
		return out.DID, err
	}
	did, err := create("Carol.test", "pw")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ handle, password, name string }{
		{"carol.test", "x", "HandleNotAvailable"}, {"dave.example.com", "x", "InvalidHandle"}, {"dave.test", "", "InvalidPassword"},
		{"no handle", "x", "InvalidHandle"}, {"dave.test", strings.Repeat("x", maxPasswordBytes+1), "InvalidPassword"},
	} {
		_, err := create(c.handle, c.password)
		apiError(t, err, http.StatusBadRequest, c.name)
	}
	carol := login(t, n, "carol.test", "pw")
	var made struct{ Name, Password string }
	if err := carol.Post(t.Context(), "com.atproto.server.createAppPassword", map[string]any{"name": "docker"}, &made); err != nil {
		t.Fatal(err)
	}
	if c := login(t, n, did, made.Password); c.AccountDID.String() != did {
		t.Errorf("the app password opened %s", c.AccountDID)
	}
	apiError(t, carol.Post(t.Context(), "com.atproto.server.createAppPassword", map[string]any{"name": "docker"}, &made), http.StatusBadRequest, "InvalidRequest")
	apiError(t, carol.Post(t.Context(), "com.atproto.server.createAppPassword", map[string]any{"name": ""}, &made), http.StatusBadRequest, "InvalidRequest")
	var server struct{ DID string }
	if err := api.Get(t.Context(), "com.atproto.server.describeServer", nil, &server); err != nil || server.DID != n.PDSDID {
		t.Errorf("describeServer: %s %v", server.DID, err)
	}
}

// Catches tokens that other implementations refuse, and those that no PDS would sign.
func TestServiceAuth(t *testing.T) {
	t.Parallel()
	n := startNetwork(t, nil)
	alice, lxm := n.Accounts[0], "io.atcr.hold.initiateUpload"
	c := login(t, n, alice.Handle, alice.AppPassword)
	in := func(d time.Duration) string { return strconv.FormatInt(time.Now().Add(d).Unix(), 10) }
	ask := func(params map[string]any) (string, error) {
		var out struct{ Token string }
		err := c.Get(t.Context(), "com.atproto.server.getServiceAuth", params, &out)
		return out.Token, err
	}
	for _, audience := range []string{"did:web:localhost%3A8080", "did:web:hold.test#atcr_hold"} {
		token, err := ask(map[string]any{"aud": audience, "lxm": lxm, "exp": in(55 * time.Minute)})
		if err != nil {
			t.Fatal(err)
		}
		nsid := syntax.NSID(lxm)
		v := auth.ServiceAuthValidator{Audience: audience, Dir: resolver(n)}
		if did, err := v.Validate(t.Context(), token, &nsid); err != nil || did.String() != alice.DID {
			t.Errorf("indigo's validator says %s, %v", did, err)
		}
		claims := claimsOf(t, token)
		if _, ok := claims["aud"].(string); !ok || claims["jti"] == "" {
			t.Errorf("claims %v", claims)
		}
	}
	token, err := ask(map[string]any{"aud": "did:web:hold.test"})
	if err != nil {
		t.Fatal(err)
	}
	if claims := claimsOf(t, token); claims["exp"].(float64)-claims["iat"].(float64) != 60 || claims["lxm"] != nil {
		t.Errorf("claims without lxm %v", claims)
	}
	for name, refusal := range map[string]struct {
		params map[string]any
		error  string
	}{
		"no aud":            {map[string]any{"lxm": lxm}, "InvalidRequest"},
		"bad aud":           {map[string]any{"aud": "https://hold.test", "lxm": lxm}, "InvalidRequest"},
		"bad lxm":           {map[string]any{"aud": "did:web:hold.test", "lxm": "upload"}, "InvalidRequest"},
		"past":              {map[string]any{"aud": "did:web:hold.test", "lxm": lxm, "exp": in(-time.Minute)}, "BadExpiration"},
		"over an hour":      {map[string]any{"aud": "did:web:hold.test", "lxm": lxm, "exp": in(2 * time.Hour)}, "BadExpiration"},
		"long, methodless":  {map[string]any{"aud": "did:web:hold.test", "exp": in(5 * time.Minute)}, "BadExpiration"},
		"exp is no number":  {map[string]any{"aud": "did:web:hold.test", "exp": "soon"}, "InvalidRequest"},
		"protected method":  {map[string]any{"aud": "did:web:hold.test", "lxm": "com.atproto.server.createAppPassword"}, "InvalidRequest"},
		"privileged method": {map[string]any{"aud": "did:web:hold.test", "lxm": "chat.bsky.convo.sendMessage"}, "InvalidRequest"},
	} {
		_, err := ask(refusal.params)
		t.Log(name)
		apiError(t, err, http.StatusBadRequest, refusal.error)
	}
	var out map[string]any
	err = atclient.NewAPIClient(n.PDSURL).Get(t.Context(), "com.atproto.server.getServiceAuth", map[string]any{"aud": "did:web:hold.test"}, &out)
	apiError(t, err, http.StatusUnauthorized, "AuthMissing")
}

// Catches a limiter that answers without saying until when, counts all accounts as one, or never forgives.
func TestRateLimit(t *testing.T) {
	t.Parallel()
	now := &clock{now: time.Now()}
	n := startNetwork(t, func(c *Config) { c.RateLimits, c.Now = true, now.Now })
	attempt := func(identifier string) (status int, reset string) {
		t.Helper()
		res, err := http.Post(n.PDSURL+"/xrpc/com.atproto.server.createSession", "application/json",
			strings.NewReader(fmt.Sprintf(`{"identifier":%q,"password":"wrong"}`, identifier)))
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
		return res.StatusCode, res.Header.Get("RateLimit-Reset")
	}
	wrongPassword := func(identifier string) {
		t.Helper()
		if status, _ := attempt(identifier); status != http.StatusUnauthorized {
			t.Fatalf("%s: status %d", identifier, status)
		}
	}
	for range sessionLimits[0].points {
		wrongPassword("alice.test")
	}
	status, reset := attempt("alice.test")
	until, err := strconv.ParseInt(reset, 10, 64)
	if status != http.StatusTooManyRequests || err != nil || time.Unix(until, 0).Before(now.Now()) {
		t.Errorf("%d, reset %s", status, reset)
	}
	wrongPassword("bob.test") // is not limited with alice
	now.advance(sessionLimits[0].window)
	wrongPassword("alice.test")
}

// Each fault must do what its name says, to the requests that it was put before, until it is removed.
func TestFaults(t *testing.T) {
	t.Parallel()
	n := startNetwork(t, nil)
	const nsid = "com.atproto.server.describeServer"
	call := func(ctx context.Context) (int, string, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, n.PDSURL+"/xrpc/"+nsid, nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := http.DefaultTransport.RoundTrip(req) // follows no redirect
		if err != nil {
			return 0, "", err
		}
		defer func() { _ = res.Body.Close() }()
		body, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
		return res.StatusCode, string(body), err
	}
	for name, c := range map[string]struct {
		fault Fault
		want  func(status int, body string, err error) bool
	}{
		"down":     {Down(), func(_ int, _ string, err error) bool { return err != nil }},
		"slow":     {Slow(time.Hour), func(_ int, _ string, err error) bool { return err != nil }},
		"late":     {Slow(time.Millisecond), func(status int, _ string, _ error) bool { return status == http.StatusOK }},
		"refuse":   {Refuse(503, "NotNow", "later"), func(status int, body string, _ error) bool { return status == 503 && strings.Contains(body, "NotNow") }},
		"limited":  {Limited(time.Now()), func(status int, _ string, _ error) bool { return status == 429 }},
		"redirect": {Redirect("http://elsewhere.test"), func(status int, _ string, _ error) bool { return status == 307 }},
		"garbage":  {Garbage(), func(status int, body string, _ error) bool { return status == 200 && !json.Valid([]byte(body)) }},
		"endless":  {Endless(0), func(status int, body string, _ error) bool { return status == 200 && len(body) == 1<<20 }},
		"large": {Endless(100_000), func(status int, body string, err error) bool {
			return err == nil && len(body) > 100_000 && len(body) < 200_000
		}},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		if name == "slow" { // it is waited for until it is met
			slow := c.fault
			c.fault = func(w http.ResponseWriter, r *http.Request, next http.Handler) { cancel(); slow(w, r, next) }
		}
		i := n.PDS.Inject(Method(nsid), c.fault)
		if status, body, err := call(ctx); !c.want(status, body, err) {
			t.Errorf("%s: %d, %d bytes, %v", name, status, len(body), err)
		}
		cancel()
		if i.Fired() == 0 {
			t.Errorf("%s did not fire", name)
		}
		if status, _ := get(t, n.PDSURL+"/xrpc/_health"); status != http.StatusOK {
			t.Errorf("%s hit another method", name)
		}
		i.Remove()
	}
	if status, _, err := call(t.Context()); err != nil || status != http.StatusOK {
		t.Errorf("after all were removed: %d %v", status, err)
	}
	i := n.PLC.Inject(nil, Down())
	if _, err := resolver(n).LookupDID(t.Context(), syntax.DID(n.Accounts[0].DID)); err == nil || i.Fired() == 0 {
		t.Errorf("the directory is down, yet: %v", err)
	}
}

// A network that is started again must be the same one: DIDs, addresses, passwords, open sessions.
func TestRestart(t *testing.T) {
	t.Parallel()
	c := Config{Dir: t.TempDir(), Accounts: []string{"alice.test"}}
	first, err := Start(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	alice := first.Accounts[0]
	client := login(t, first, alice.Handle, alice.AppPassword)
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	c.Accounts = append(c.Accounts, "bob.test")
	second, err := Start(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = second.Close() }()
	if second.Accounts[0] != alice || second.PDSURL != first.PDSURL || second.PLCURL != first.PLCURL || len(second.Accounts) != 2 {
		t.Errorf("%+v at %s became %+v at %s", alice, first.PDSURL, second.Accounts, second.PDSURL)
	}
	var out map[string]any
	if err := client.Get(t.Context(), "com.atproto.server.getSession", nil, &out); err != nil {
		t.Errorf("the session is gone: %v", err)
	}
	if err := client.Auth.(*atclient.PasswordAuth).Refresh(t.Context(), client.Client, ""); err != nil {
		t.Errorf("the refresh token is gone: %v", err)
	}
	if _, err := resolver(second).LookupDID(t.Context(), syntax.DID(alice.DID)); err != nil {
		t.Errorf("the identity is gone: %v", err)
	}
	if _, err := Start(t.Context(), c); err == nil {
		t.Error("a second network started at the same addresses")
	}
}

func TestStartProblems(t *testing.T) {
	t.Parallel()
	taken := httptest.NewServer(nil)
	defer taken.Close()
	for name, c := range map[string]Config{
		"bad handle": {Accounts: []string{"alice.example.com"}},
		"taken port": {Addr: strings.TrimPrefix(taken.URL, "http://")},
		"no address": {Addr: "nowhere"},
		"no folder":  {Dir: "/dev/null/network"},
	} {
		if n, err := Start(t.Context(), c); err == nil {
			t.Errorf("%s: it started", name)
			_ = n.Close()
		}
	}
}
