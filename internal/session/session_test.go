package session

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/internal/devnet"
	"atcr.io/internal/httpx"
	"atcr.io/internal/sqldb"
	"atcr.io/internal/xrpc"
	"atcr.io/test/databases"
)

func TestMain(m *testing.M) { databases.Main(m) }

// world is a PDS with alice, and a store of sessions, on one clock.
type world struct {
	*devnet.Network
	store *Store
	kind  databases.Database
	db    *sqldb.DB

	clock atomic.Int64 // seconds on top of the real time
}

func (w *world) now() time.Time { return time.Now().Add(time.Duration(w.clock.Load()) * time.Second) }

func (w *world) pass(d time.Duration) { w.clock.Add(int64(d / time.Second)) }

func (w *world) alice() Account { return Account{DID: syntax.DID(w.Accounts[0].DID), PDS: w.PDSURL} }

func newWorld(t *testing.T, d databases.Database, change func(*Config)) *world {
	t.Helper()
	w := &world{kind: d}
	n, err := devnet.Start(t.Context(), devnet.Config{Accounts: []string{"alice.test"}, Now: w.now})
	if err != nil {
		t.Fatal(err)
	}
	w.Network = n
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	w.open(t, change)
	return w
}

func (w *world) open(t *testing.T, change func(*Config)) {
	t.Helper()
	w.db = w.kind.Open(t)
	c := Config{
		Secret: bytes.Repeat([]byte{1}, 32), Now: w.now,
		Client: httpx.NewClient(httpx.ClientConfig{AllowPrivate: true, Timeout: time.Minute}),
	}
	if change != nil {
		change(&c)
	}
	var err error
	if w.store, err = Open(t.Context(), w.db, c); err != nil {
		t.Fatal(err)
	}
}

func (w *world) login(t *testing.T) Session {
	t.Helper()
	s, err := w.store.Login(t.Context(), w.alice(), w.Accounts[0].AppPassword, "192.0.2.1")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// count counts the calls of a method.
func (w *world) count(nsid string) *devnet.Injected {
	return w.PDS.Inject(devnet.Method(nsid), func(rw http.ResponseWriter, r *http.Request, next http.Handler) { next.ServeHTTP(rw, r) })
}

// who asks the PDS whose session it is.
func (w *world) who(t *testing.T, s Session) (string, error) {
	t.Helper()
	var out struct{ DID string }
	err := w.store.Call(t.Context(), s.ID, Call{NSID: "com.atproto.server.getSession"}, &out)
	return out.DID, err
}

// Would catch a createSession a login, of which a PDS allows 30 in 5 minutes; and a session that does not
// outlive the process.
func TestLoginOnce(t *testing.T) {
	t.Parallel()
	databases.Each(t, testLoginOnce)
}

func testLoginOnce(t *testing.T, d databases.Database) {
	w := newWorld(t, d, nil)
	created := w.count("com.atproto.server.createSession")
	var wg sync.WaitGroup
	ids := make([]string, 30) // more than wrong passwords are allowed
	for i := range ids {
		wg.Go(func() {
			s, err := w.store.Login(t.Context(), w.alice(), w.Accounts[0].AppPassword, "192.0.2.1")
			if err != nil {
				t.Error(err)
			}
			ids[i] = s.ID
		})
	}
	wg.Wait()
	for _, id := range ids {
		if id != ids[0] || id == "" {
			t.Fatalf("sessions %q", ids)
		}
	}
	w.open(t, nil) // as after a restart
	s := w.login(t)
	if s.ID != ids[0] || s.New || created.Fired() != 1 {
		t.Errorf("%+v after %d createSession", s, created.Fired())
	}
	if did, err := w.who(t, s); err != nil || did != w.Accounts[0].DID {
		t.Errorf("%q, %v", did, err)
	}
}

// atRest is what is kept, as it is kept.
func (w *world) atRest(t *testing.T) (kept [][]byte) {
	t.Helper()
	if w.kind.Dir == "" {
		var text, hash, tokens []byte
		if err := w.db.Reader().QueryRowContext(t.Context(), `SELECT id || did || pds, password_hash, tokens FROM session`).Scan(&text, &hash, &tokens); err != nil {
			t.Fatal(err)
		}
		return [][]byte{text, hash, tokens}
	}
	for _, name := range []string{"db.sqlite3", "db.sqlite3-wal"} {
		raw, err := os.ReadFile(filepath.Join(w.kind.Dir, name))
		if err != nil {
			t.Fatal(err)
		}
		kept = append(kept, raw)
	}
	return kept
}

// Would catch a password or a token that can be read from the database.
func TestNothingReadableAtRest(t *testing.T) {
	t.Parallel()
	databases.Each(t, testNothingReadableAtRest)
}

func testNothingReadableAtRest(t *testing.T, d databases.Database) {
	w := newWorld(t, d, nil)
	s := w.login(t)
	kept, err := w.store.load(t.Context(), s.ID)
	if err != nil {
		t.Fatal(err)
	}
	for _, raw := range w.atRest(t) {
		for what, secret := range map[string]string{"the password": w.Accounts[0].AppPassword, "the access token": kept.access, "the refresh token": kept.refresh} {
			if bytes.Contains(raw, []byte(secret)) {
				t.Errorf("%s is in the database", what)
			}
		}
	}
	// Another secret opens nothing, and is no crash.
	w.open(t, func(c *Config) { c.Secret = bytes.Repeat([]byte{2}, 32) })
	if _, err := w.who(t, s); !errors.Is(err, ErrGone) {
		t.Errorf("with another secret: %v", err)
	}
	if again := w.login(t); !again.New {
		t.Errorf("with another secret: %+v", again)
	}
}

// Would catch a sealed session that is good in another row.
func TestSealedTokensAreBound(t *testing.T) {
	t.Parallel()
	v, err := newVault(bytes.Repeat([]byte{1}, 32))
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := v.seal("one", "did:plc:a", sealedTokens{Access: "access", Refresh: "refresh"})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := v.open("one", "did:plc:a", sealed); err != nil || got.Access != "access" || got.Refresh != "refresh" {
		t.Errorf("%+v, %v", got, err)
	}
	for _, other := range [][2]string{{"two", "did:plc:a"}, {"one", "did:plc:b"}} {
		if _, err := v.open(other[0], syntax.DID(other[1]), sealed); err == nil {
			t.Errorf("opened as %v", other)
		}
	}
	if bytes.Equal(v.passwordHash("did:plc:a", "x"), v.passwordHash("did:plc:b", "x")) {
		t.Error("one password has the same hash for two people")
	}
}

// Would catch main passwords that are kept, and the session that they opened left open.
func TestMainPassword(t *testing.T) {
	t.Parallel()
	databases.Each(t, testMainPassword)
}

func testMainPassword(t *testing.T, d databases.Database) {
	w := newWorld(t, d, nil)
	deleted := w.count("com.atproto.server.deleteSession")
	if _, err := w.store.Login(t.Context(), w.alice(), w.Accounts[0].Password, "192.0.2.1"); !errors.Is(err, ErrMainPassword) {
		t.Errorf("%v", err)
	}
	if deleted.Fired() != 1 {
		t.Errorf("%d deleteSession", deleted.Fired())
	}
	w.open(t, func(c *Config) { c.AllowMainPassword = true })
	if _, err := w.store.Login(t.Context(), w.alice(), w.Accounts[0].Password, "192.0.2.1"); err != nil {
		t.Errorf("allowed: %v", err)
	}
	w.open(t, nil) // and no longer: the session that it opened is no way around
	for range 2 {
		if _, err := w.store.Login(t.Context(), w.alice(), w.Accounts[0].Password, "192.0.2.1"); !errors.Is(err, ErrMainPassword) {
			t.Errorf("allowed once: %v", err)
		}
	}
	if deleted.Fired() != 3 {
		t.Errorf("%d deleteSession", deleted.Fired())
	}
}

// Would catch guesses that reach the PDS without end and lock its person out, and a limit that keeps those
// out who have a session.
func TestWrongPasswords(t *testing.T) {
	t.Parallel()
	databases.Each(t, testWrongPasswords)
}

func testWrongPasswords(t *testing.T, d databases.Database) {
	w := newWorld(t, d, nil)
	good := w.login(t)
	created := w.count("com.atproto.server.createSession")
	for range perPair {
		if _, err := w.store.Login(t.Context(), w.alice(), "wrong-wrong", "192.0.2.9"); !errors.Is(err, ErrWrongPassword) {
			t.Fatalf("%v", err)
		}
	}
	_, err := w.store.Login(t.Context(), w.alice(), "wrong-wrong", "192.0.2.9")
	limit, ok := errors.AsType[*LimitError](err)
	if !ok || limit.RetryAfter <= 0 || limit.RetryAfter > limitWindow || created.Fired() != perPair {
		t.Errorf("%v after %d attempts", err, created.Fired())
	}
	if s, err := w.store.Login(t.Context(), w.alice(), w.Accounts[0].AppPassword, "192.0.2.9"); err != nil || s.ID != good.ID {
		t.Errorf("the right password: %+v, %v", s, err)
	}
	w.pass(limitWindow)
	if _, err := w.store.Login(t.Context(), w.alice(), "wrong-wrong", "192.0.2.9"); !errors.Is(err, ErrWrongPassword) {
		t.Errorf("after the window: %v", err)
	}
	for _, password := range []string{"", strings.Repeat("x", maxPasswordBytes+1)} {
		if _, err := w.store.Login(t.Context(), w.alice(), password, "192.0.2.1"); !errors.Is(err, ErrWrongPassword) {
			t.Errorf("%d bytes: %v", len(password), err)
		}
	}
}

// Would catch limits by account or address alone, and right passwords that are counted.
func TestLimits(t *testing.T) {
	t.Parallel()
	databases.Each(t, testLimits)
}

func testLimits(t *testing.T, d databases.Database) {
	both := []*limits{{db: d.Open(t), now: time.Now}, {db: d.Open(t), now: time.Now}} // two processes
	if err := both[0].db.Migrate(t.Context(), "login_attempt", limitMigrations); err != nil {
		t.Fatal(err)
	}
	l, turn := both[0], 0
	try := func(did, address string) error {
		turn++
		_, err := both[turn%2].begin(t.Context(), syntax.DID(did), address)
		return err
	}
	for i := range perAccount {
		if err := try("did:plc:a", "192.0.2."+string(rune('0'+i))); err != nil {
			t.Fatal(i, err)
		}
	}
	if try("did:plc:a", "198.51.100.1") == nil {
		t.Error("one account from many addresses is not limited")
	}
	for i := range perAddress {
		if err := try("did:plc:b"+string(rune('0'+i)), "203.0.113.1"); err != nil {
			t.Fatal(i, err)
		}
	}
	if try("did:plc:c", "203.0.113.1") == nil {
		t.Error("one address with many accounts is not limited")
	}
	for range 3 * perAddress {
		giveBack, err := l.begin(t.Context(), "did:plc:d", "203.0.113.2")
		if err != nil {
			t.Fatal(err)
		}
		giveBack()
	}
}

// Would catch a PDS's trouble taken for a wrong password or counted as one, unbounded answers and waits,
// and redirects that take the password elsewhere.
func TestTroubledPDS(t *testing.T) {
	t.Parallel()
	databases.Each(t, testTroubledPDS)
}

func testTroubledPDS(t *testing.T, d databases.Database) {
	const create = "com.atproto.server.createSession"
	for _, tt := range []struct {
		what  string
		fault devnet.Fault
		check func(*xrpc.UpstreamError) bool
		is    error
	}{
		{"down", devnet.Down(), func(e *xrpc.UpstreamError) bool { return e.Status == 0 && !e.Timeout }, nil},
		{"slow", devnet.Slow(time.Minute), func(e *xrpc.UpstreamError) bool { return e.Timeout }, nil},
		{"garbage", devnet.Garbage(), func(e *xrpc.UpstreamError) bool { return e.Invalid }, nil},
		{"endless", devnet.Endless(0), func(e *xrpc.UpstreamError) bool { return e.Invalid }, nil},
		{"redirect", devnet.Redirect("http://localhost:1/"), func(e *xrpc.UpstreamError) bool { return e.Invalid }, nil},
		{"failing", devnet.Refuse(500, "InternalServerError", "oh"), func(e *xrpc.UpstreamError) bool { return e.Status == 500 }, nil},
		{"limiting", limited, func(e *xrpc.UpstreamError) bool {
			return e.Status == 429 && e.RetryAfter > time.Minute && e.RetryAfter <= 90*time.Second
		}, nil},
		{"another's session", answer(map[string]string{"did": "did:plc:other", "accessJwt": "a.b.c", "refreshJwt": "a.b.c"}), func(e *xrpc.UpstreamError) bool { return e.Invalid }, nil},
		{"no tokens", answer(map[string]string{}), func(e *xrpc.UpstreamError) bool { return e.Invalid }, nil},
		{"code needed", devnet.Refuse(401, "AuthFactorTokenRequired", "A sign in code has been sent"), nil, ErrCodeNeeded},
		{"taken down", devnet.Refuse(401, "AccountTakedown", "no"), nil, ErrRefused},
		{"unknown", devnet.Refuse(401, "AuthenticationRequired", "Invalid identifier or password"), nil, ErrWrongPassword},
	} {
		t.Run(tt.what, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, d, nil)
			fault := w.PDS.Inject(devnet.Method(create), tt.fault)
			if tt.what == "slow" {
				w.store.config.Client.Timeout = time.Second
			}
			for range 2 * perPair { // more than wrong passwords are allowed
				_, err := w.store.Login(t.Context(), w.alice(), w.Accounts[0].AppPassword, "192.0.2.1")
				e, ok := errors.AsType[*xrpc.UpstreamError](err)
				if tt.is != nil && !errors.Is(err, tt.is) || tt.is == nil && (!ok || !tt.check(e)) {
					t.Fatalf("%v", err)
				}
				if tt.is != nil || tt.what == "slow" {
					break
				}
			}
			if fault.Fired() == 0 {
				t.Error("the fault was not met")
			}
			fault.Remove()
			w.store.config.Client.Timeout = time.Minute
			w.login(t)
		})
	}
}

// limited is for 90 s from when it is met.
func limited(w http.ResponseWriter, r *http.Request, next http.Handler) {
	devnet.Limited(time.Now().Add(90*time.Second))(w, r, next)
}

func answer(v any) devnet.Fault {
	return func(w http.ResponseWriter, _ *http.Request, _ http.Handler) { xrpc.WriteJSON(w, http.StatusOK, v) }
}

// Would catch a refresh token used twice, new tokens that are lost with the process, and a caller who gives
// up and takes them along.
func TestRefresh(t *testing.T) {
	t.Parallel()
	databases.Each(t, testRefresh)
}

func testRefresh(t *testing.T, d databases.Database) {
	w := newWorld(t, d, nil)
	s := w.login(t)
	refreshed := w.count("com.atproto.server.refreshSession")
	w.pass(3 * time.Hour) // the access token has ended
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	_ = w.store.Call(gone, s.ID, Call{NSID: "com.atproto.server.getSession"}, nil)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if _, err := w.who(t, s); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if refreshed.Fired() != 1 {
		t.Errorf("%d refreshes", refreshed.Fired())
	}
	w.open(t, nil)
	if _, err := w.who(t, s); err != nil {
		t.Errorf("after a restart: %v", err)
	}
	if refreshed.Fired() != 1 {
		t.Errorf("%d refreshes after a restart", refreshed.Fired())
	}
}

// Would catch two processes that use one refresh token, which ends the session; and two that open a session
// each with one password, of which one is gone at once.
func TestTwoProcesses(t *testing.T) {
	t.Parallel()
	databases.Each(t, testTwoProcesses)
}

func testTwoProcesses(t *testing.T, d databases.Database) {
	w := newWorld(t, d, nil)
	first := w.store
	w.open(t, nil) // another process; the first goes on
	stores := []*Store{first, w.store}
	created, refreshed := w.count("com.atproto.server.createSession"), w.count("com.atproto.server.refreshSession")
	sessions := make([]Session, 8)
	var wg sync.WaitGroup
	for i := range sessions {
		wg.Go(func() {
			var err error
			if sessions[i], err = stores[i%2].Login(t.Context(), w.alice(), w.Accounts[0].AppPassword, "192.0.2.1"); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if created.Fired() != 1 {
		t.Errorf("%d sessions were opened", created.Fired())
	}
	for round := range 3 {
		w.pass(3 * time.Hour) // the access token has ended
		for i := range 20 {
			wg.Go(func() {
				var out struct{ DID string }
				if err := stores[i%2].Call(t.Context(), sessions[i%8].ID, Call{NSID: "com.atproto.server.getSession"}, &out); err != nil || out.DID != w.Accounts[0].DID {
					t.Errorf("%q, %v", out.DID, err)
				}
			})
		}
		wg.Wait()
		if refreshed.Fired() != round+1 {
			t.Errorf("%d refreshes in %d rounds", refreshed.Fired(), round+1)
		}
	}
	if err := stores[0].remove(t.Context(), sessions[0].ID); err != nil { // signed out there
		t.Fatal(err)
	}
	w.pass(rereadAfter + time.Second)
	if _, err := stores[1].DID(t.Context(), sessions[0].ID); !errors.Is(err, ErrGone) {
		t.Errorf("signed out at the other process: %v", err)
	}
}

// Would catch a token that the PDS calls expired although its own time says otherwise.
func TestRefreshOnRefusal(t *testing.T) {
	t.Parallel()
	databases.Each(t, testRefreshOnRefusal)
}

func testRefreshOnRefusal(t *testing.T, d databases.Database) {
	w := newWorld(t, d, nil)
	s := w.login(t)
	refreshed := w.count("com.atproto.server.refreshSession")
	var once atomic.Bool
	w.PDS.Inject(devnet.Method("com.atproto.server.getSession"), func(rw http.ResponseWriter, r *http.Request, next http.Handler) {
		if once.CompareAndSwap(false, true) {
			xrpc.WriteError(rw, xrpc.Errorf(400, "ExpiredToken", "Token has expired"))
			return
		}
		next.ServeHTTP(rw, r)
	})
	if _, err := w.who(t, s); err != nil || refreshed.Fired() != 1 {
		t.Errorf("%v after %d refreshes", err, refreshed.Fired())
	}
}

// Would catch a revoked app password that goes on signing in, and a PDS that is down taken for a refusal.
func TestRevoked(t *testing.T) {
	t.Parallel()
	databases.Each(t, testRevoked)
}

func testRevoked(t *testing.T, d databases.Database) {
	w := newWorld(t, d, nil)
	s := w.login(t)
	w.pass(3 * time.Hour)
	down := w.PDS.Inject(devnet.Method("com.atproto.server.refreshSession"), devnet.Down())
	if _, err := w.who(t, s); err == nil || errors.Is(err, ErrGone) {
		t.Errorf("down: %v", err)
	}
	down.Remove()
	w.PDS.Inject(devnet.Method("com.atproto.server.refreshSession"), devnet.Refuse(400, "ExpiredToken", "Token has been revoked"))
	w.PDS.Inject(devnet.Method("com.atproto.server.createSession"), devnet.Refuse(401, "AuthenticationRequired", "Invalid identifier or password"))
	if _, err := w.who(t, s); !errors.Is(err, ErrGone) {
		t.Errorf("revoked: %v", err)
	}
	if _, err := w.store.Login(t.Context(), w.alice(), w.Accounts[0].AppPassword, "192.0.2.1"); !errors.Is(err, ErrWrongPassword) {
		t.Errorf("login with a revoked password: %v", err)
	}
	if _, err := w.who(t, s); !errors.Is(err, ErrGone) {
		t.Errorf("later: %v", err)
	}
}

// Would catch a session that is used at the PDS that its person has left.
func TestMovedAccount(t *testing.T) {
	t.Parallel()
	databases.Each(t, testMovedAccount)
}

func testMovedAccount(t *testing.T, d databases.Database) {
	w, other := newWorld(t, d, nil), newWorld(t, d, nil)
	w.login(t)
	moved := w.alice()
	moved.PDS = other.PDSURL
	if _, err := w.store.Login(t.Context(), moved, w.Accounts[0].AppPassword, "192.0.2.1"); !errors.Is(err, ErrWrongPassword) {
		t.Errorf("%v", err)
	}
}

func claimsOf(t *testing.T, token string) (c struct {
	Iss, Aud, Lxm string
	Exp           int64
},
) {
	t.Helper()
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		t.Fatalf("no token: %q", token)
	}
	body, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(body, &c); err != nil {
		t.Fatal(err)
	}
	return c
}

// Would catch a refresh that is cut off because the wait for its turn took long: its answer, and with it the session, is lost.
func TestRefreshHasItsOwnTime(t *testing.T) {
	t.Parallel()
	w := newWorld(t, databases.Database{Kind: "SQLite", Dir: t.TempDir()}, nil)
	s := w.login(t)
	old, err := w.store.load(t.Context(), s.ID)
	if err != nil {
		t.Fatal(err)
	}
	ctx, over := context.WithCancel(t.Context())
	met := w.PDS.Inject(devnet.Method("com.atproto.server.refreshSession"), func(rw http.ResponseWriter, r *http.Request, next http.Handler) {
		over()
		next.ServeHTTP(rw, r)
	})
	if n, err := w.store.refresh(ctx, old); err != nil || n.refresh == old.refresh || met.Fired() != 1 {
		t.Fatal(err)
	}
	if did, err := w.who(t, s); did != w.Accounts[0].DID {
		t.Error(err)
	}
}

// Would catch a token that a hold refuses because of its age, and that is used for the rest of half an hour.
func TestForgetServiceToken(t *testing.T) {
	t.Parallel()
	w := newWorld(t, databases.Database{Kind: "SQLite", Dir: t.TempDir()}, nil)
	s := w.login(t)
	const hold, lxm = syntax.DID("did:web:hold.test"), "io.atcr.hold.initiateUpload"
	get := func() string {
		t.Helper()
		token, err := w.store.ServiceToken(t.Context(), s.ID, hold, lxm)
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	for _, bare := range []bool{false, true} {
		if bare {
			w.store.RefuseFragment(hold)
		}
		token := get()
		if w.store.Forget(s.ID, hold, lxm, token) {
			t.Error("another token is asked for although this one is new")
		}
		w.pass(serviceOld)
		if w.store.Forget(s.ID, hold, lxm, "another") || w.store.Forget(s.ID, hold, "io.atcr.other", token) || get() != token {
			t.Error("a token that nobody refused is forgotten")
		}
		if !w.store.Forget(s.ID, hold, lxm, token) || get() == token {
			t.Error("what was refused is used again")
		}
	}
}

// Would catch a service token a request, one that lives too long, and one that is used past its end.
func TestServiceToken(t *testing.T) {
	t.Parallel()
	databases.Each(t, testServiceToken)
}

func testServiceToken(t *testing.T, d databases.Database) {
	w := newWorld(t, d, nil)
	s := w.login(t)
	asked := w.count("com.atproto.server.getServiceAuth")
	const hold = syntax.DID("did:web:hold.test")
	get := func(lxm string) string {
		t.Helper()
		token, err := w.store.ServiceToken(t.Context(), s.ID, hold, lxm)
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	first := get("io.atcr.hold.initiateUpload")
	c := claimsOf(t, first)
	if c.Iss != w.Accounts[0].DID || c.Aud != hold.String()+"#atcr_hold" || c.Lxm != "io.atcr.hold.initiateUpload" ||
		c.Exp > w.now().Add(serviceLifetime).Unix() || c.Exp < w.now().Add(serviceLifetime-time.Minute).Unix() {
		t.Errorf("%+v", c)
	}
	if get("io.atcr.hold.initiateUpload") != first || asked.Fired() != 1 {
		t.Errorf("asked %d times", asked.Fired())
	}
	if get("com.atproto.sync.getBlob") == first {
		t.Error("one token for two methods")
	}
	w.pass(serviceLifetime - serviceReserve + time.Second)
	if get("io.atcr.hold.initiateUpload") == first {
		t.Error("a token in its last minute is used")
	}
	changed, undo := w.store.RefuseFragment(hold)
	if c := claimsOf(t, get("io.atcr.hold.initiateUpload")); !changed || c.Aud != hold.String() {
		t.Errorf("%v, %+v", changed, c)
	}
	if again, _ := w.store.RefuseFragment(hold); again {
		t.Error("changed again")
	}
	undo()
	if c := claimsOf(t, get("io.atcr.hold.initiateUpload")); c.Aud != hold.String()+"#atcr_hold" {
		t.Errorf("undone: %+v", c)
	}
}

// Would catch a push that fails at a PDS that signs no audience with a fragment, and the question asked
// again for every token.
func TestPDSWithoutFragments(t *testing.T) {
	t.Parallel()
	databases.Each(t, testPDSWithoutFragments)
}

func testPDSWithoutFragments(t *testing.T, d databases.Database) {
	w := newWorld(t, d, nil)
	s := w.login(t)
	fragments := w.PDS.Inject(func(r *http.Request) bool { return strings.Contains(r.URL.Query().Get("aud"), "#") },
		devnet.Refuse(400, "InvalidRequest", "aud must be a did"))
	for _, lxm := range []string{"io.atcr.hold.initiateUpload", "com.atproto.sync.getBlob"} {
		token, err := w.store.ServiceToken(t.Context(), s.ID, "did:web:hold.test", lxm)
		if err != nil {
			t.Fatal(err)
		}
		if c := claimsOf(t, token); c.Aud != "did:web:hold.test" {
			t.Errorf("%+v", c)
		}
	}
	if fragments.Fired() != 1 {
		t.Errorf("asked with a fragment %d times", fragments.Fired())
	}
}

// Would catch a PDS that gives shorter tokens, whose time is then not known.
func TestPDSWithOtherLimits(t *testing.T) {
	t.Parallel()
	databases.Each(t, testPDSWithOtherLimits)
}

func testPDSWithOtherLimits(t *testing.T, d databases.Database) {
	w := newWorld(t, d, nil)
	s := w.login(t)
	w.PDS.Inject(func(r *http.Request) bool { return r.URL.Query().Get("exp") != "" }, devnet.Refuse(400, "BadExpiration", "too long"))
	if _, err := w.store.ServiceToken(t.Context(), s.ID, "did:web:hold.test", "com.atproto.sync.getBlob"); err != nil {
		t.Error(err)
	}
}

// Would catch rows without end from one account, and sessions kept past the life of their tokens.
func TestRowsAreBounded(t *testing.T) {
	t.Parallel()
	databases.Each(t, testRowsAreBounded)
}

func testRowsAreBounded(t *testing.T, d databases.Database) {
	w := newWorld(t, d, nil)
	ctx := t.Context()
	for i := range maxPerAccount + 5 {
		hash := []byte{byte(i)}
		if err := w.store.insert(ctx, &tokens{did: "did:plc:a", pds: "https://pds.test", access: "a", refresh: "r"}, hash); err != nil {
			t.Fatal(err)
		}
		if _, err := w.store.find(ctx, "did:plc:a", hash); err != nil {
			t.Fatalf("row %d is gone at once: %v", i, err)
		}
	}
	count := func() (n int) {
		if err := w.db.Reader().QueryRowContext(ctx, `SELECT count(*) FROM session`).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	if n := count(); n != maxPerAccount {
		t.Errorf("%d rows", n)
	}
	w.pass(maxAge + time.Hour)
	if err := w.store.forgetOld(ctx); err != nil || count() != 0 {
		t.Errorf("%d old rows, %v", count(), err)
	}
}
