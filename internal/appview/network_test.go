package appview

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"atcr.io/internal/devnet"
	"atcr.io/internal/envconf"
	holdserver "atcr.io/internal/hold"
	"atcr.io/internal/oci"
)

// network is a whole system in one process: PLC directory, PDS with alice and bob, a hold that is open to
// all, one that is bob's alone, and an AppView.
type network struct {
	*devnet.Network
	t               testing.TB
	public, private *testHold
	base            string
	app             atomic.Pointer[AppView]
	config          Config
	alice, bob      devnet.Account
	ahead           atomic.Int64 // of the AppView's clock
}

// forget makes the AppView's caches old.
func (n *network) forget() { n.ahead.Add(int64(2 * time.Minute)) }

func (n *network) now() time.Time { return time.Now().Add(time.Duration(n.ahead.Load())) }

// testHold is a hold that can be made to misbehave.
type testHold struct {
	url, did string
	config   holdserver.Config
	open     *holdserver.Hold
	handler  atomic.Pointer[http.Handler]
	fault    atomic.Pointer[fault]
	asked    atomic.Int64 // requests
}

func (h *testHold) start(t testing.TB) {
	t.Helper()
	opened, err := holdserver.Open(context.Background(), h.config, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	h.open = opened
	handler := opened.Handler()
	h.handler.Store(&handler)
}

// restart is the hold after it was stopped: what it had in memory is gone. change may change its settings.
func (h *testHold) restart(t testing.TB, change func(*holdserver.Config)) {
	t.Helper()
	if err := h.open.Close(); err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(&h.config)
	}
	h.start(t)
}

// fault answers in the hold's place; it returns false to let the hold answer.
type fault func(w http.ResponseWriter, r *http.Request, next http.Handler) bool

func (h *testHold) misbehave(f fault) { h.fault.Store(&f) }

func (h *testHold) behave() { h.fault.Store(nil) }

func newNetwork(t testing.TB, settings ...string) *network {
	t.Helper()
	n := &network{t: t}
	var err error
	if n.Network, err = devnet.Start(t.Context(), devnet.Config{Accounts: []string{"alice.test", "bob.test"}}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Network.Close(); err != nil {
			t.Error(err)
		}
	})
	n.alice, n.bob = n.Accounts[0], n.Accounts[1]
	n.public = n.startHold(n.alice.DID, "HOLD_PUBLIC=true", "HOLD_ALLOW_ALL_CREW=true")
	n.private = n.startHold(n.bob.DID)
	n.startAppView(settings...)
	return n
}

func listenLocal(t testing.TB) (net.Listener, int) {
	t.Helper()
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l, l.Addr().(*net.TCPAddr).Port
}

func (n *network) startHold(owner string, settings ...string) *testHold {
	n.t.Helper()
	l, port := listenLocal(n.t)
	h := &testHold{url: "http://localhost:" + strconv.Itoa(port), did: "did:web:localhost%3A" + strconv.Itoa(port)}
	err := envconf.Load(append(settings,
		"HOLD_PUBLIC_URL="+h.url, "HOLD_OWNER="+owner, "HOLD_PLC_URL="+n.PLCURL, "STORAGE_DRIVER=filesystem",
		"STORAGE_ROOT_DIR="+n.t.TempDir(), "HOLD_DATABASE_DIR="+n.t.TempDir(), "HOLD_DEBUG_ADDR=",
	), holdserver.Prefix, &h.config)
	if err != nil {
		n.t.Fatal(err)
	}
	h.start(n.t)
	s := &httptest.Server{Listener: l, Config: &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.asked.Add(1)
		handler := *h.handler.Load()
		if f := h.fault.Load(); f == nil || !(*f)(w, r, handler) {
			handler.ServeHTTP(w, r)
		}
	})}} //nolint:gosec // a test server
	s.Start()
	n.t.Cleanup(func() {
		s.Close()
		if err := h.open.Close(); err != nil {
			n.t.Error(err)
		}
	})
	return h
}

func (n *network) startAppView(settings ...string) {
	n.t.Helper()
	l, port := listenLocal(n.t)
	n.base = "http://127.0.0.1:" + strconv.Itoa(port)
	var config Config
	err := envconf.Load(append([]string{
		"ATCR_BASE_URL=" + n.base, "ATCR_DEFAULT_HOLD_DID=" + n.public.did, "ATCR_DATABASE_DIR=" + n.t.TempDir(),
		"ATCR_PLC_URL=" + n.PLCURL, "ATCR_HANDLE_RESOLVER_URL=" + n.PDSURL, "ATCR_DEBUG_ADDR=", "TEST_MODE=true",
	}, settings...), Prefix, &config)
	if err != nil {
		n.t.Fatal(err)
	}
	config.outboxLooks = 200 * time.Millisecond
	n.config = config
	n.serveAppView(l)
}

// serveAppView serves an AppView with n.config.
func (n *network) serveAppView(l net.Listener) {
	n.t.Helper()
	n.app.Store(n.openAppView())
	s := &httptest.Server{Listener: l, Config: &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n.app.Load().Handler().ServeHTTP(w, r)
	})}} //nolint:gosec // a test server
	s.Start()
	n.t.Cleanup(func() {
		s.Close()
		if err := n.app.Load().Close(); err != nil {
			n.t.Error(err)
		}
	})
}

func (n *network) openAppView() *AppView {
	n.t.Helper()
	a, err := open(n.t.Context(), n.config, slog.New(slog.DiscardHandler), prometheus.NewRegistry(), n.now)
	if err != nil {
		n.t.Fatal(err)
	}
	return a
}

// restart is the AppView after a crash: all that it had in memory is gone.
func (n *network) restart() {
	n.t.Helper()
	old := n.app.Swap(n.openAppView())
	if err := old.Close(); err != nil {
		n.t.Error(err)
	}
}

// anew is an AppView that has lost its database.
func (n *network) anew() {
	n.t.Helper()
	n.config.DatabaseDir = n.t.TempDir()
	n.restart()
}

// answer is a response whose body was read.
type answer struct {
	status int
	header http.Header
	body   string
}

// code is the error code in the body, "" for none.
func (a answer) code() string {
	var e struct{ Errors []struct{ Code string } }
	if json.Unmarshal([]byte(a.body), &e) != nil || len(e.Errors) != 1 {
		return ""
	}
	return e.Errors[0].Code
}

// request sends one request and follows no redirect. header is pairs.
func request(t testing.TB, method, target string, body []byte, header ...string) answer {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, target, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		if header[i+1] != "" {
			req.Header.Set(header[i], header[i+1])
		}
	}
	client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	res, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := io.ReadAll(res.Body)
	if err := errors.Join(err, res.Body.Close()); err != nil {
		t.Fatal(err)
	}
	return answer{res.StatusCode, res.Header, string(raw)}
}

// user talks to the AppView as somebody.
type user struct {
	*network
	authorization string
}

// as has a token for everything in the repositories, for one of the accounts.
func (n *network) as(a devnet.Account, repositories ...string) user {
	n.t.Helper()
	return n.scoped(a, "pull,push,delete", repositories...)
}

// scoped has a token for some actions; an account without a handle is nobody, who gets tokens too.
func (n *network) scoped(a devnet.Account, actions string, repositories ...string) user {
	n.t.Helper()
	query := url.Values{}
	for _, r := range repositories {
		query.Add("scope", "repository:"+r+":"+actions)
	}
	req, err := http.NewRequestWithContext(n.t.Context(), http.MethodGet, n.base+"/auth/token?"+query.Encode(), nil)
	if err != nil {
		n.t.Fatal(err)
	}
	if a.Handle != "" {
		req.SetBasicAuth(a.Handle, a.AppPassword)
	}
	return user{n, "Bearer " + n.tokenOf(req)}
}

func (n *network) tokenOf(req *http.Request) string {
	n.t.Helper()
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		n.t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	var out struct{ Token string }
	if err := json.NewDecoder(res.Body).Decode(&out); err != nil || out.Token == "" {
		n.t.Fatalf("no token: %s, %v", res.Status, err)
	}
	return out.Token
}

// nobody has no token.
func (n *network) nobody() user { return user{network: n} }

func (u user) do(method, path string, body []byte, header ...string) answer {
	u.t.Helper()
	if strings.HasPrefix(path, "/") {
		path = u.base + path
	}
	return request(u.t, method, path, body, append(header, "Authorization", u.authorization)...)
}

func (u user) must(want int, a answer) answer {
	u.t.Helper()
	if a.status != want {
		u.t.Fatalf("status %d, want %d: %s", a.status, want, a.body)
	}
	return a
}

// upload pushes a blob by POST and PUT.
func (u user) upload(name string, blob []byte) oci.Digest {
	u.t.Helper()
	d := oci.FromBytes(blob)
	location := u.must(202, u.do(http.MethodPost, "/v2/"+name+"/blobs/uploads/", nil)).header.Get("Location")
	u.must(201, u.do(http.MethodPut, location+"?digest="+d.String(), blob))
	return d
}

// testImage is an image of one layer.
type testImage struct {
	config, layer []byte
	manifest      []byte
	digest        oci.Digest
}

func newImage(text string) testImage {
	i := testImage{config: []byte(`{"text":"` + text + `"}`), layer: []byte("layer " + text)}
	raw, err := json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": oci.MediaTypeImageManifest,
		"config": descriptor("application/vnd.oci.image.config.v1+json", i.config),
		"layers": []any{descriptor("application/vnd.oci.image.layer.v1.tar", i.layer)},
	})
	if err != nil {
		panic(err)
	}
	i.manifest, i.digest = raw, oci.FromBytes(raw)
	return i
}

func descriptor(mediaType string, raw []byte) oci.Descriptor {
	return oci.Descriptor{MediaType: mediaType, Digest: oci.FromBytes(raw), Size: int64(len(raw))}
}

// push uploads an image's blobs and puts its manifest under references.
func (u user) push(name string, i testImage, references ...string) {
	u.t.Helper()
	u.upload(name, i.config)
	u.upload(name, i.layer)
	for _, reference := range references {
		u.must(201, u.put(name, reference, i.manifest))
	}
}

func (u user) put(name, reference string, manifest []byte) answer {
	u.t.Helper()
	return u.do(http.MethodPut, "/v2/"+name+"/manifests/"+reference, manifest, "Content-Type", oci.MediaTypeImageManifest)
}

func (u user) manifest(name, reference string) answer {
	u.t.Helper()
	return u.do(http.MethodGet, "/v2/"+name+"/manifests/"+reference, nil)
}

// pull gets an image by reference, each blob by its redirect, and compares.
func (u user) pull(name, reference string, want testImage) {
	u.t.Helper()
	got := u.must(200, u.manifest(name, reference))
	if got.body != string(want.manifest) || got.header.Get("Docker-Content-Digest") != want.digest.String() {
		u.t.Fatalf("%s %s is %s", name, reference, got.body)
	}
	for _, blob := range [][]byte{want.config, want.layer} {
		d := oci.FromBytes(blob).String()
		redirect := u.must(307, u.do(http.MethodGet, "/v2/"+name+"/blobs/"+d, nil))
		if b := request(u.t, http.MethodGet, redirect.header.Get("Location"), nil); b.body != string(blob) {
			u.t.Fatalf("%s %s is %d %q", name, d, b.status, b.body)
		}
		head := u.must(200, u.do(http.MethodHead, "/v2/"+name+"/blobs/"+d, nil))
		if head.header.Get("Content-Length") != strconv.Itoa(len(blob)) || head.header.Get("Docker-Content-Digest") != d {
			u.t.Fatalf("HEAD %s: %v", d, head.header)
		}
	}
}

// pds calls an account's PDS with its main password.
func (n *network) pds(a devnet.Account, nsid string, in any) {
	n.t.Helper()
	var session struct{ AccessJwt string }
	n.post("com.atproto.server.createSession", "", map[string]string{"identifier": a.DID, "password": a.Password}, &session)
	n.post(nsid, session.AccessJwt, in, nil)
}

func (n *network) post(nsid, token string, in, out any) {
	n.t.Helper()
	raw, err := json.Marshal(in)
	if err != nil {
		n.t.Fatal(err)
	}
	a := request(n.t, http.MethodPost, n.PDSURL+"/xrpc/"+nsid, raw, "Content-Type", "application/json", "Authorization", "Bearer "+token)
	if a.status != 200 {
		n.t.Fatalf("%s: %d %s", nsid, a.status, a.body)
	}
	if out != nil {
		if err := json.Unmarshal([]byte(a.body), out); err != nil {
			n.t.Fatal(err)
		}
	}
}

// putRecord writes a record as its owner's own client would.
func (n *network) putRecord(a devnet.Account, collection, rkey string, record any) {
	n.t.Helper()
	n.pds(a, "com.atproto.repo.putRecord", map[string]any{"repo": a.DID, "collection": collection, "rkey": rkey, "record": record})
}

func (n *network) deleteRecord(a devnet.Account, collection, rkey string) {
	n.t.Helper()
	n.pds(a, "com.atproto.repo.deleteRecord", map[string]any{"repo": a.DID, "collection": collection, "rkey": rkey})
}

// useHold names a hold in an account's profile, and waits for no cache.
func (n *network) useHold(a devnet.Account, did string) {
	n.t.Helper()
	n.putRecord(a, "io.atcr.sailor.profile", "self", map[string]any{
		"$type": "io.atcr.sailor.profile", "defaultHold": did, "createdAt": "2026-01-01T00:00:00Z", "updatedAt": "2026-01-01T00:00:00Z",
	})
	n.forget()
}

// records are the values of an account's collection by key.
func (n *network) records(a devnet.Account, collection string) map[string]map[string]any {
	n.t.Helper()
	got := request(n.t, http.MethodGet, n.PDSURL+"/xrpc/com.atproto.repo.listRecords?limit=100&repo="+a.DID+"&collection="+collection, nil)
	var out struct {
		Records []struct {
			URI   string
			Value map[string]any
		}
	}
	if err := json.Unmarshal([]byte(got.body), &out); err != nil {
		n.t.Fatal(err)
	}
	all := map[string]map[string]any{}
	for _, r := range out.Records {
		all[r.URI[strings.LastIndexByte(r.URI, '/')+1:]] = r.Value
	}
	return all
}

// rev is the revision of an account's repo.
func (n *network) rev(a devnet.Account) string {
	n.t.Helper()
	var out struct{ Rev string }
	got := request(n.t, http.MethodGet, n.PDSURL+"/xrpc/com.atproto.sync.getLatestCommit?did="+a.DID, nil)
	if err := json.Unmarshal([]byte(got.body), &out); err != nil || out.Rev == "" {
		n.t.Fatalf("%s, %v", got.body, err)
	}
	return out.Rev
}
