package e2e

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"atcr.io/internal/appview"
	"atcr.io/internal/credential"
	"atcr.io/internal/envconf"
	"atcr.io/internal/httpx"
	"atcr.io/internal/session"
	"atcr.io/internal/session/oauth"
	"atcr.io/internal/sqldb"
	"atcr.io/internal/xrpc"
	"atcr.io/test/components"
)

// appviewName is a name that the reference PDS takes for a confidential client's.
const appviewName = "appview.home.arpa"

// signIns is an AppView behind TLS, the reference PDS that trusts it, and what further processes of the AppView
// need.
type signIns struct {
	*network
	pds     *components.PDS
	config  appview.Config
	base    string
	dir     string // of the AppView's database
	secret  []byte
	wire    *wiretap
	log     lockedBuffer
	front   *httptest.Server
	handler http.Handler // the AppView's
}

// wiretap passes requests on, and keeps the secrets that servers answer with.
type wiretap struct {
	next    http.RoundTripper
	spoil   atomic.Bool // the nonce of the next answer is made useless, as when it has just been replaced
	spoiled atomic.Int64

	mu      sync.Mutex
	secrets []string
}

func (w *wiretap) RoundTrip(r *http.Request) (*http.Response, error) {
	res, err := w.next.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	if res.Header.Get("DPoP-Nonce") != "" && res.StatusCode < 400 && w.spoil.CompareAndSwap(true, false) {
		res.Header.Set("DPoP-Nonce", "useless")
		w.spoiled.Add(1)
	}
	if r.URL.Path != "/oauth/token" {
		return res, nil
	}
	body, err := io.ReadAll(res.Body)
	if err := errors.Join(err, res.Body.Close()); err != nil {
		return nil, err
	}
	res.Body = io.NopCloser(bytes.NewReader(body))
	var tokens struct {
		Access  string `json:"access_token"`
		Refresh string `json:"refresh_token"`
	}
	if json.Unmarshal(body, &tokens) == nil && tokens.Access != "" {
		w.keep(tokens.Access, tokens.Refresh)
	}
	return res, nil
}

func (w *wiretap) keep(secrets ...string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.secrets = append(w.secrets, secrets...)
}

// startSignIns starts them at a PDS that start starts.
func startSignIns(t *testing.T, start func(components.TB, components.Neighbours, ...string) *components.PDS) *signIns {
	t.Helper()
	n := &signIns{network: &network{}, dir: t.TempDir(), wire: &wiretap{}}
	n.front = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { n.handler.ServeHTTP(w, r) }))
	n.front.TLS = certificateFor(t, appviewName)
	n.registry = fmt.Sprintf("%s:%d", appviewName, n.front.Listener.Addr().(*net.TCPAddr).Port)
	n.base = "https://" + n.registry
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: n.front.TLS.Certificates[0].Certificate[0]})
	n.pds = start(t, components.Neighbours{Names: []string{appviewName}, CA: ca}, "alice.test", "bob.test")
	n.network.pds = n.pds
	n.alice, n.bob = n.pds.Accounts[0], n.pds.Accounts[1]
	n.public, n.publicDID = n.startHold(t, "STORAGE_DRIVER=filesystem", "STORAGE_ROOT_DIR="+t.TempDir(), "HOLD_OWNER="+n.bob.DID, "HOLD_PUBLIC=true", "HOLD_ALLOW_ALL_CREW=true")
	n.openAppView(t)
	n.front.StartTLS()
	t.Cleanup(n.front.Close)
	raw, err := os.ReadFile(filepath.Join(n.dir, "secret.key"))
	if err != nil {
		t.Fatal(err)
	}
	if n.secret, err = hex.DecodeString(strings.TrimSpace(string(raw))); err != nil {
		t.Fatal(err)
	}
	guarded := httpx.NewClient(httpx.ClientConfig{AllowPrivate: true, Timeout: 20 * time.Second})
	n.wire.next = guarded.Transport
	return n
}

// openAppView opens the AppView in this process: it is a confidential client, as people run it, and reaches
// servers on loopback, which the program's own settings refuse to have both.
func (n *signIns) openAppView(t *testing.T) {
	t.Helper()
	err := envconf.Load([]string{
		"ATCR_DEBUG_ADDR=", "ATCR_BASE_URL=" + n.base, "ATCR_DEFAULT_HOLD_DID=" + n.publicDID, "ATCR_DATABASE_DIR=" + n.dir,
		"ATCR_PLC_URL=" + n.pds.PLCURL, "ATCR_HANDLE_RESOLVER_URL=" + n.pds.URL, "ATCR_DIRECT_UPLOADS=never",
	}, appview.Prefix, &n.config)
	if err != nil {
		t.Fatal(err)
	}
	n.config.TestMode = true
	logger := slog.New(slog.NewTextHandler(&n.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	opened, err := appview.Open(t.Context(), n.config, logger, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		n.front.CloseClientConnections()
		if err := opened.Close(); err != nil {
			t.Error(err)
		}
	})
	n.handler = opened.Handler()
}

// process is one more process of the AppView, whose clock is off by that much.
type process struct {
	*session.Store
	client *oauth.Client
	db     *sqldb.DB
	off    atomic.Int64
}

func (n *signIns) process(t *testing.T, off time.Duration) *process {
	t.Helper()
	p := &process{}
	p.off.Store(int64(off))
	now := func() time.Time { return time.Now().Add(time.Duration(p.off.Load())) }
	keys, err := oauth.OpenKeys(filepath.Join(n.dir, "oauth.pem"), nil)
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: n.wire, Timeout: 20 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	if p.client, err = oauth.New(oauth.Config{BaseURL: n.base, Keys: keys, HTTP: client, AllowHTTP: true, Now: now}); err != nil {
		t.Fatal(err)
	}
	if p.db, err = sqldb.Open(t.Context(), filepath.Join(n.dir, "db.sqlite3")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.db.Close(); err != nil {
			t.Error(err)
		}
	})
	p.Store, err = session.Open(t.Context(), p.db, session.Config{
		Secret: n.secret, Client: client, OAuth: p.client, Now: now,
		Logger: slog.New(slog.NewTextHandler(&n.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func accountOf(n *signIns, a components.Account) session.Account {
	return session.Account{DID: syntax.DID(a.DID), PDS: n.pds.URL, Handle: syntax.Handle(a.Handle)}
}

// begin sends alice to her PDS; decide lets her, or another, decide there, and returns the callback's query.
func (n *signIns) begin(t *testing.T, p *process, prompt string) session.SignInStarted {
	t.Helper()
	started, err := p.BeginSignIn(t.Context(), session.BeginSignIn{Account: accountOf(n, n.alice), ReturnTo: "/settings", Prompt: prompt, Caller: "192.0.2.1"})
	if err != nil {
		t.Fatal(err)
	}
	n.wire.keep(started.Browser)
	return started
}

func (n *signIns) decide(t *testing.T, started session.SignInStarted, d components.Decision) url.Values {
	t.Helper()
	callback, err := n.pds.Authorize(t.Context(), started.URL, d)
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(callback)
	if err != nil || u.Scheme+"://"+u.Host+u.Path != n.base+oauth.CallbackPath {
		t.Fatalf("%s, %v", callback, err)
	}
	if code := u.Query().Get("code"); code != "" {
		n.wire.keep(code)
	}
	n.wire.keep(u.Query().Get("state"))
	return u.Query()
}

func (n *signIns) signIn(t *testing.T, p *process) session.SignInDone {
	t.Helper()
	started := n.begin(t, p, "")
	done, err := p.FinishSignIn(t.Context(), n.decide(t, started, components.Decision{Account: n.alice}), started.Browser)
	if err != nil {
		t.Fatal(err)
	}
	return done
}

func (n *signIns) works(t *testing.T, p *process, id string) {
	t.Helper()
	var out struct{ DID string }
	if err := p.Call(t.Context(), id, session.Call{NSID: "com.atproto.server.getSession"}, &out); err != nil || out.DID != n.alice.DID {
		t.Errorf("%q, %v", out.DID, err)
	}
}

// Would catch what only the reference PDS sees of a confidential client: its metadata, keys, assertions, scopes
// and clock; and a push that needs more than was approved.
func TestOAuth(t *testing.T) {
	t.Parallel()
	n := startSignIns(t, components.StartReferencePDSWith)
	p := n.process(t, 0)

	n.refused(t, p)
	id := n.signIn(t, p).Session.ID
	infos, err := p.Sessions(t.Context(), syntax.DID(n.alice.DID))
	if err != nil || len(infos) != 1 || infos[0].Missing != nil || slices.Contains(infos[0].Scopes, "transition:generic") || !slices.Contains(infos[0].Scopes, "repo:io.atcr.manifest") {
		t.Fatalf("%+v, %v", infos, err)
	}
	n.pushes(t, p)
	n.bounded(t, p, id)
	n.nonces(t, p, id)
	n.clocks(t, id)
	n.refreshes(t, id)
	n.ends(t, p, id)
	n.noSecretInLogs(t)
}

// refused are sign-ins that come to nothing.
func (n *signIns) refused(t *testing.T, p *process) {
	started := n.begin(t, p, "")
	if _, err := p.FinishSignIn(t.Context(), n.decide(t, started, components.Decision{Deny: true}), started.Browser); !errors.Is(err, session.ErrDenied) {
		t.Errorf("denied: %v", err)
	}
	started = n.begin(t, p, "")
	if _, err := p.FinishSignIn(t.Context(), n.decide(t, started, components.Decision{Account: n.bob}), started.Browser); !errors.Is(err, session.ErrOtherAccount) {
		t.Errorf("as bob: %v", err)
	}
	started = n.begin(t, p, "consent")
	var left []string
	for _, scope := range strings.Fields(p.client.Metadata("").Scope) {
		if scope != "repo:io.atcr.tag" {
			left = append(left, scope)
		}
	}
	_, err := p.FinishSignIn(t.Context(), n.decide(t, started, components.Decision{Account: n.alice, Scope: strings.Join(left, " ")}), started.Browser)
	if e, ok := errors.AsType[*session.ScopeError](err); !ok || !slices.Equal(e.Missing, []string{"repo:io.atcr.tag"}) {
		t.Errorf("with less than is needed: %v", err)
	}
	started = n.begin(t, p, "")
	query := n.decide(t, started, components.Decision{Account: n.alice})
	query.Set("code", "cod-"+strings.Repeat("0", 64))
	if _, err := p.FinishSignIn(t.Context(), query, started.Browser); !errors.Is(err, session.ErrSignInUnknown) {
		t.Errorf("a made-up code: %v", err)
	}
	started = n.begin(t, p, "")
	query = n.decide(t, started, components.Decision{Account: n.alice})
	n.expireCodes(t)
	if _, err := p.FinishSignIn(t.Context(), query, started.Browser); !errors.Is(err, session.ErrSignInUnknown) {
		t.Errorf("a code that has expired: %v", err)
	}
	started = n.begin(t, p, "")
	query = n.decide(t, started, components.Decision{Account: n.alice})
	done, err := p.FinishSignIn(t.Context(), query, started.Browser)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.FinishSignIn(t.Context(), query, started.Browser); !errors.Is(err, session.ErrSignInUnknown) {
		t.Errorf("a callback used twice: %v", err)
	}
	if err := p.End(t.Context(), syntax.DID(n.alice.DID), done.Session.ID); err != nil {
		t.Error(err)
	}
}

// expireCodes makes the PDS believe that it gave its codes long ago.
func (n *signIns) expireCodes(t *testing.T) {
	t.Helper()
	db, err := sqldb.Open(t.Context(), filepath.Join(n.pds.Data, "account.sqlite"))
	if err != nil {
		t.Fatal(err)
	}
	err = db.Write(t.Context(), func(tx *sql.Tx) error {
		result, err := tx.ExecContext(t.Context(), `UPDATE authorization_request SET expiresAt = '2026-01-01T00:00:00.000Z' WHERE code IS NOT NULL`)
		if err != nil {
			return err
		}
		if rows, err := result.RowsAffected(); err != nil || rows == 0 {
			return fmt.Errorf("%d codes were there: %w", rows, err)
		}
		return nil
	})
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
}

// pushes pushes and pulls an image with an access token: it acts with the session that OAuth opened.
func (n *signIns) pushes(t *testing.T, p *process) {
	credentials, err := credential.Open(t.Context(), p.db, credential.Config{Secret: n.secret})
	if err != nil {
		t.Fatal(err)
	}
	secret, _, err := credentials.NewToken(t.Context(), syntax.DID(n.alice.DID), "e2e", credential.Scope{Actions: []string{"pull", "push", "delete"}}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	n.wire.keep(secret)
	transport := n.front.Client().Transport.(*http.Transport).Clone()
	transport.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		if address == n.registry {
			address = n.front.Listener.Addr().String()
		}
		var d net.Dialer
		return d.DialContext(ctx, network, address)
	}
	image, err := random.Image(1<<20, 3)
	if err != nil {
		t.Fatal(err)
	}
	tag, err := name.NewTag(n.registry + "/alice.test/oauth:1.0")
	if err != nil {
		t.Fatal(err)
	}
	as := remote.WithAuth(&authn.Basic{Username: "alice.test", Password: secret})
	if err := remote.Write(tag, image, as, remote.WithTransport(transport)); err != nil {
		t.Fatalf("push: %v\n%s", err, tail(n.log.String()))
	}
	got, err := remote.Image(tag, remote.WithTransport(transport))
	if err != nil {
		t.Fatalf("pull: %v", err)
	}
	want, err := image.Digest()
	if err != nil {
		t.Fatal(err)
	}
	if digest, err := got.Digest(); err != nil || digest != want {
		t.Errorf("pulled %s, %v; pushed %s", digest, err, want)
	}
	if err := remote.Delete(tag, as, remote.WithTransport(transport)); err != nil {
		t.Errorf("delete: %v", err)
	}
}

// bounded tries what nobody approved of.
func (n *signIns) bounded(t *testing.T, p *process, id string) {
	post := session.Call{NSID: "com.atproto.repo.createRecord", ContentType: "application/json", Body: []byte(
		`{"repo":"` + n.alice.DID + `","collection":"app.bsky.feed.post","record":{"$type":"app.bsky.feed.post","text":"x","createdAt":"2026-01-01T00:00:00Z"}}`)}
	if err := p.Call(t.Context(), id, post, nil); !errors.Is(err, session.ErrScope) {
		t.Errorf("a post: %v", err)
	}
	if _, err := p.OnceToken(t.Context(), id, syntax.DID(n.publicDID), "com.atproto.repo.createRecord"); !errors.Is(err, session.ErrScope) {
		t.Errorf("a token for another method: %v", err)
	}
	if _, err := p.OnceToken(t.Context(), id, syntax.DID(n.publicDID), "io.atcr.hold.requestCrew"); err != nil {
		t.Error(err)
	}
}

// nonces are replaced in the midst of everything.
func (n *signIns) nonces(t *testing.T, p *process, id string) {
	for range 3 {
		n.wire.spoil.Store(true)
		n.works(t, p, id)
	}
	n.wire.spoil.Store(true)
	started := n.begin(t, p, "")
	query := n.decide(t, started, components.Decision{Account: n.alice})
	n.wire.spoil.Store(true)
	done, err := p.FinishSignIn(t.Context(), query, started.Browser)
	if err != nil || done.Session.ID != id || done.Session.New {
		t.Errorf("%+v, %v", done, err)
	}
	n.wire.spoil.Store(false)
	n.works(t, p, id)
	if n.wire.spoiled.Load() < 4 {
		t.Errorf("%d nonces were spoiled", n.wire.spoiled.Load())
	}
}

// clocks are off by a minute, either way.
func (n *signIns) clocks(t *testing.T, id string) {
	for _, off := range []time.Duration{time.Minute, -time.Minute} {
		p := n.process(t, off)
		if done := n.signIn(t, p); done.Session.ID != id {
			t.Errorf("%+v", done)
		}
		n.works(t, p, id)
	}
}

// refreshes: 20 requests over a session that has expired, in two processes, again and again; and with another
// key of ours in between.
func (n *signIns) refreshes(t *testing.T, id string) {
	both := []*process{n.process(t, 0), n.process(t, 0)}
	for round := range 3 {
		for _, p := range both {
			p.off.Store(int64(time.Duration(round+1) * 2 * time.Hour))
		}
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Go(func() { n.works(t, both[i%2], id) })
		}
		wg.Wait()
		if round == 0 {
			if err := appview.RotateOAuthKey(t.Context(), n.config, slog.Default(), nil, io.Discard); err != nil {
				t.Error(err)
			}
		}
	}
	status, body := n.get(t, oauth.JWKSPath)
	var keys oauth.JWKS
	if err := json.Unmarshal([]byte(body), &keys); err != nil || status != http.StatusOK || len(keys.Keys) != 2 || strings.Contains(body, `"d"`) {
		t.Errorf("%d %s", status, body)
	}
}

// get asks the AppView.
func (n *signIns) get(t *testing.T, path string) (int, string) {
	t.Helper()
	w := httptest.NewRecorder()
	n.handler.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil))
	return w.Code, w.Body.String()
}

// ends ends the session here, which ends it at the PDS too, and for the AppView.
func (n *signIns) ends(t *testing.T, p *process, id string) {
	secret, err := p.OpenBrowser(t.Context(), id, "Browser/1.0", "192.0.2.1")
	if err != nil {
		t.Fatal(err)
	}
	n.wire.keep(secret)
	n.wire.mu.Lock()
	refresh := n.wire.secrets[slices.IndexFunc(n.wire.secrets, func(s string) bool { return strings.HasPrefix(s, "ref-") }):]
	n.wire.mu.Unlock()
	if len(refresh) == 0 {
		t.Fatal("no refresh token was seen")
	}
	if err := p.End(t.Context(), syntax.DID(n.alice.DID), id); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Browser(t.Context(), secret); !errors.Is(err, session.ErrGone) {
		t.Errorf("the browser: %v", err)
	}
	if err := p.Call(t.Context(), id, session.Call{NSID: "com.atproto.server.getSession"}, nil); !errors.Is(err, session.ErrGone) {
		t.Errorf("%v", err)
	}
	if strings.Contains(n.log.String(), "could not be ended at its server") {
		t.Errorf("the PDS did not take it: %s", n.log.String())
	}
}

// noSecretInLogs searches what the processes said for all that was secret.
func (n *signIns) noSecretInLogs(t *testing.T) {
	n.wire.mu.Lock()
	defer n.wire.mu.Unlock()
	if len(n.wire.secrets) < 20 {
		t.Errorf("only %d secrets are known", len(n.wire.secrets))
	}
	logs := map[string]string{"AppView": n.log.String(), "hold": n.public.output.String()}
	for who, text := range logs {
		for _, secret := range append(n.wire.secrets, n.alice.Password, n.bob.Password, hex.EncodeToString(n.secret)) {
			if secret != "" && strings.Contains(text, secret) {
				t.Errorf("the log of the %s has the secret %.8s…", who, secret)
			}
		}
	}
	if !strings.Contains(logs["AppView"], "/auth/token") {
		t.Error("the AppView's log has no requests")
	}
}

// loopback is a session store of an AppView on loopback: a public client.
func loopback(t *testing.T, set string) *session.Store {
	t.Helper()
	guarded := httpx.NewClient(httpx.ClientConfig{AllowPrivate: true, Timeout: 20 * time.Second})
	client, err := oauth.New(oauth.Config{BaseURL: "http://localhost:5000", HTTP: guarded, AllowHTTP: true, PermissionSet: set})
	if err != nil {
		t.Fatal(err)
	}
	db, err := sqldb.Open(t.Context(), filepath.Join(t.TempDir(), "db.sqlite3"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() }) // it is gone with the test
	store, err := session.Open(t.Context(), db, session.Config{Secret: bytes.Repeat([]byte{1}, 32), Client: guarded, OAuth: client})
	if err != nil {
		t.Fatal(err)
	}
	return store
}

// signInAt signs an account in.
func signInAt(t *testing.T, store *session.Store, pds *components.PDS, who components.Account) session.SignInDone {
	t.Helper()
	started, err := store.BeginSignIn(t.Context(), session.BeginSignIn{Account: session.Account{DID: syntax.DID(who.DID), PDS: pds.URL}})
	if err != nil {
		t.Fatal(err)
	}
	callback, err := pds.Authorize(t.Context(), started.URL, components.Decision{Account: who})
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(callback)
	if err != nil || u.Host != "127.0.0.1:5000" {
		t.Fatalf("%s, %v", callback, err)
	}
	done, err := store.FinishSignIn(t.Context(), u.Query(), started.Browser)
	if err != nil {
		t.Fatal(err)
	}
	return done
}

// Would catch a PDS at which the AppView of one's own machine can sign nobody in: it has no metadata that a
// server could fetch; and a published permission set that no server makes sense of, or that lacks something.
func TestOAuthOnLoopback(t *testing.T) {
	t.Parallel()
	first := components.StartReferencePDS(t, "alice.test")
	alice := first.Accounts[0]
	canWrite(t, loopback(t, "io.atcr.authFull"), first, alice, "repo:io.atcr.manifest") // nobody publishes it: single permissions

	raw, err := os.ReadFile("../../lexicons/io/atcr/authFull.json")
	if err != nil {
		t.Fatal(err)
	}
	publishLexicon(t, first, alice, raw)
	second := components.StartReferencePDSWith(t, components.Neighbours{PLCURL: first.PLCURL, Lexicons: alice.DID}, "bob.test")
	canWrite(t, loopback(t, "io.atcr.authFull"), second, second.Accounts[0], "repo?collection=io.atcr.manifest&") // as a server unfolds a set
}

// canWrite signs somebody in, does what the registry does and nothing else, and signs them out. A scope that
// begins with granted must have been granted.
func canWrite(t *testing.T, store *session.Store, pds *components.PDS, who components.Account, granted string) {
	t.Helper()
	done := signInAt(t, store, pds, who)
	record := func(collection string) session.Call {
		return session.Call{NSID: "com.atproto.repo.createRecord", ContentType: "application/json", Body: []byte(
			`{"repo":"` + who.DID + `","collection":"` + collection + `","record":{"$type":"` + collection + `","repository":"a","tag":"b","createdAt":"2026-01-01T00:00:00Z"}}`)}
	}
	id := done.Session.ID
	if err := store.Call(t.Context(), id, record("io.atcr.tag"), nil); err != nil {
		t.Error(err)
	}
	if err := store.Call(t.Context(), id, record("com.example.other"), nil); !errors.Is(err, session.ErrScope) {
		t.Errorf("another collection: %v", err)
	}
	blob := session.Call{NSID: "com.atproto.repo.uploadBlob", ContentType: "application/vnd.oci.image.manifest.v1+json", Body: []byte("{}")}
	if err := store.Call(t.Context(), id, blob, nil); err != nil {
		t.Error(err)
	}
	for _, method := range []string{"io.atcr.hold.initiateUpload", "io.atcr.hold.notifyManifest", "com.atproto.sync.getBlob"} {
		if _, err := store.ServiceToken(t.Context(), id, "did:web:localhost%3A1", method); err != nil {
			t.Errorf("%s: %v", method, err)
		}
	}
	infos, err := store.Sessions(t.Context(), syntax.DID(who.DID))
	if err != nil || len(infos) != 1 || infos[0].Missing != nil || slices.Contains(infos[0].Scopes, "transition:generic") {
		t.Errorf("%+v, %v", infos, err)
	}
	if !slices.ContainsFunc(infos[0].Scopes, func(s string) bool { return strings.HasPrefix(s, granted) }) {
		t.Errorf("granted %q, not %s", infos[0].Scopes, granted)
	}
	if err := store.EndAll(t.Context(), syntax.DID(who.DID)); err != nil {
		t.Error(err)
	}
	if _, err := store.DID(t.Context(), id); !errors.Is(err, session.ErrGone) {
		t.Errorf("%v", err)
	}
}

// publishLexicon writes a Lexicon into somebody's repo, where servers look for it.
func publishLexicon(t *testing.T, pds *components.PDS, who components.Account, raw []byte) {
	t.Helper()
	var schema map[string]any
	if err := json.Unmarshal(raw, &schema); err != nil {
		t.Fatal(err)
	}
	schema["$type"] = "com.atproto.lexicon.schema"
	body, err := json.Marshal(map[string]any{"repo": who.DID, "collection": "com.atproto.lexicon.schema", "rkey": schema["id"], "record": schema})
	if err != nil {
		t.Fatal(err)
	}
	upstream := xrpc.Upstream{Client: http.DefaultClient}
	login, err := xrpc.JSONCall(pds.URL, "com.atproto.server.createSession", "", map[string]string{"identifier": who.Handle, "password": who.AppPassword})
	if err != nil {
		t.Fatal(err)
	}
	var opened struct{ AccessJwt string }
	if err := upstream.JSON(t.Context(), login, &opened); err != nil {
		t.Fatal(err)
	}
	put, err := xrpc.JSONCall(pds.URL, "com.atproto.repo.putRecord", opened.AccessJwt, json.RawMessage(body))
	if err != nil {
		t.Fatal(err)
	}
	if err := upstream.JSON(t.Context(), put, nil); err != nil {
		t.Fatal(err)
	}
}

// certificateFor is a server's certificate for one name, signed by itself.
func certificateFor(t *testing.T, name string) *tls.Config {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
}
