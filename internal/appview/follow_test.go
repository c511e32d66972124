package appview

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"
	"github.com/coder/websocket"

	"atcr.io/internal/devnet"
	"atcr.io/internal/index"
	"atcr.io/internal/oci"
)

// another is a second AppView by another operator: a database and a default hold of its own, on the same network.
func (n *network) another(hold *testHold, settings ...string) *network {
	n.t.Helper()
	second := &network{Network: n.Network, t: n.t, public: hold, private: n.private, alice: n.alice, bob: n.bob}
	second.startAppView(settings...)
	return second
}

// eventually waits until ok says so.
func (n *network) eventually(what string, ok func() bool) {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(n.t.Context(), 2*time.Minute)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-ctx.Done():
			n.t.Fatalf("it does not come to this: %s", what)
		case <-tick.C:
		}
	}
}

// covered waits until a firehose answers for somebody's repo.
func (n *network) covered(a devnet.Account) {
	n.t.Helper()
	n.eventually("the firehose covers "+a.Handle, func() bool {
		return n.app.Load().view.covered(n.t.Context(), syntax.DID(a.DID))
	})
}

func (n *network) readsFail() *devnet.Injected {
	return n.PDS.Inject(func(r *http.Request) bool {
		return r.Method == http.MethodGet && r.URL.Path != "/xrpc/com.atproto.sync.subscribeRepos"
	}, devnet.Down())
}

// Would catch an AppView that shows only what was pushed through it, or that loses sight of what happens elsewhere.
func TestTwoAppViews(t *testing.T) {
	t.Parallel()
	one := newNetwork(t)
	two := one.another(one.startHold(one.bob.DID, "HOLD_PUBLIC=true", "HOLD_ALLOW_ALL_CREW=true"), "ATCR_RELAY_URLS="+one.PDSURL)
	alice, bob := one.as(one.alice, "alice.test/app"), two.as(two.bob, "bob.test/tool")
	first, second := newImage("first"), newImage("second")
	alice.push("alice.test/app", first, "1.0")
	bob.push("bob.test/tool", second, "1.0")
	two.nobody().pull("alice.test/app", "1.0", first)
	one.nobody().pull("bob.test/tool", "1.0", second)

	two.covered(two.alice)
	down := one.readsFail() // from here on the second one answers from its index
	two.nobody().manifest("alice.test/app", "1.0")
	down.Remove()
	alice.push("alice.test/app", second, "1.0", "2.0")
	two.eventually("a moved tag", func() bool {
		return two.nobody().manifest("alice.test/app", "1.0").header.Get("Docker-Content-Digest") == second.digest.String()
	})
	two.nobody().pull("alice.test/app", "2.0", second)
	tags := two.nobody().must(200, two.nobody().do(http.MethodGet, "/v2/alice.test/app/tags/list", nil))
	if !strings.Contains(tags.body, `["1.0","2.0"]`) {
		t.Errorf("%s", tags.body)
	}
	alice.must(202, alice.do(http.MethodDelete, "/v2/alice.test/app/manifests/2.0", nil))
	two.eventually("a deleted tag", func() bool { return two.nobody().manifest("alice.test/app", "2.0").status == 404 })
	found, err := two.app.Load().view.index.Search(t.Context(), "app", 10)
	if err != nil || len(found) != 1 || found[0].DID != syntax.DID(one.alice.DID) || found[0].Handle != "alice.test" {
		t.Errorf("the second one's search: %+v, %v", found, err)
	}
}

// page404 is what a proxy says whose PDS is not there.
func page404(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
	http.Error(w, "<html>404 page not found</html>", http.StatusNotFound)
}

// Would catch an image that depends on the PDS being up though it was pulled a moment ago, also after a restart;
// and a deleted one that comes back because of it.
func TestSeenBefore(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	alice := n.as(n.alice, "alice.test/app")
	image, deleted := newImage("kept"), newImage("deleted")
	alice.push("alice.test/app", image, "1.0")
	alice.push("alice.test/app", deleted, "2.0")
	elsewhere := n.another(n.public)
	nobody := elsewhere.nobody()
	nobody.pull("alice.test/app", "1.0", image)
	nobody.pull("alice.test/app", "2.0", deleted)
	n.deleteRecord(n.alice, "io.atcr.tag", "app:2.0") // behind everybody's back
	elsewhere.forget()
	nobody.must(404, nobody.manifest("alice.test/app", "2.0"))
	for range 2 {
		elsewhere.restart()
		down := n.readsFail()
		nobody.pull("alice.test/app", "1.0", image)
		nobody.pull("alice.test/app", image.digest.String(), image)
		if got := nobody.must(200, nobody.do(http.MethodGet, "/v2/alice.test/app/tags/list", nil)); !strings.Contains(got.body, `"1.0"`) {
			t.Errorf("%s", got.body)
		}
		if got := nobody.manifest("alice.test/app", "2.0"); got.status < 500 {
			t.Errorf("a deleted tag while the PDS is down: %d", got.status)
		}
		if got := nobody.manifest("alice.test/app", "3.0"); got.status < 500 {
			t.Errorf("a tag that was never seen: %d", got.status)
		}
		down.Remove()
		elsewhere.forget()
	}
	// A proxy's page, and an error about the whole repo, do not say that a record is gone.
	for what, fault := range map[string]devnet.Fault{"page": page404, "deactivated": devnet.Refuse(400, "RepoDeactivated", "no"), "no repo": devnet.Refuse(400, "RepoNotFound", "no")} {
		lost := n.PDS.Inject(devnet.Method("com.atproto.repo.getRecord"), fault)
		got := nobody.manifest("alice.test/app", "1.0")
		if fine := got.status == 200; fine != (what == "page") || !fine && got.status != 502 || lost.Fired() == 0 {
			t.Errorf("%s: %d %s (met %d times)", what, got.status, got.body, lost.Fired())
		}
		if got := nobody.manifest("alice.test/app", "3.0"); got.status != 502 {
			t.Errorf("%s, a tag that was never seen: %d %s", what, got.status, got.body)
		}
		lost.Remove()
		elsewhere.forget()
	}
	down := n.readsFail()
	nobody.pull("alice.test/app", "1.0", image)
	down.Remove()
	elsewhere.forget()
	// An account that is gone is not shown because its PDS says nothing any more.
	if err := elsewhere.app.Load().view.index.SetStatus(t.Context(), syntax.DID(n.alice.DID), index.StatusTakendown); err != nil {
		t.Fatal(err)
	}
	defer n.readsFail().Remove()
	if got := nobody.manifest("alice.test/app", "1.0"); got.status < 500 {
		t.Errorf("an account that is not active: %d", got.status)
	}
}

// Would catch an AppView that asks the PDS all the same, one that misses what it is told, and one that believes a
// firehose that has broken off.
func TestCovered(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	alice := n.as(n.alice, "alice.test/app")
	one, two := newImage("one"), newImage("two")
	alice.push("alice.test/app", one, "1.0", "tags")
	alice.push("alice.test/app", two, "2.0")
	wire := newWire(t, n.PDSURL)
	m := n.another(n.public, "ATCR_RELAY_URLS="+wire.url)
	m.covered(m.alice)
	nobody := m.nobody()
	nobody.pull("alice.test/app", "1.0", one)
	asked := n.PDS.Inject(devnet.Method("com.atproto.repo.getRecord"), func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		next.ServeHTTP(w, r)
	})
	point := func(at testImage) {
		n.putRecord(n.alice, "io.atcr.tag", "app:1.0", map[string]any{
			"$type": "io.atcr.tag", "repository": "app", "tag": "1.0", "createdAt": "2026-01-01T00:00:00Z",
			"manifest": "at://" + n.alice.DID + "/io.atcr.manifest/" + at.digest.Hex(), "manifestDigest": at.digest.String(),
		})
	}
	for i, want := range []testImage{two, one, two} { // moved elsewhere: no clock is turned
		point(want)
		m.eventually("moved tag "+strconv.Itoa(i), func() bool {
			return nobody.manifest("alice.test/app", "1.0").header.Get("Docker-Content-Digest") == want.digest.String()
		})
	}
	nobody.pull("alice.test/app", "tags", one)
	if asked.Fired() != 0 {
		t.Errorf("the PDS was asked %d times", asked.Fired())
	}
	// The firehose breaks off: what it would have told is asked for.
	wire.cut()
	m.eventually("it is noticed", func() bool { return !m.app.Load().view.covered(t.Context(), syntax.DID(n.alice.DID)) })
	point(one)
	m.forget()
	nobody.pull("alice.test/app", "1.0", one)
	if asked.Fired() == 0 {
		t.Error("nobody asked the PDS")
	}
}

// wire is a way to a server that can be cut.
type wire struct {
	url string
	l   net.Listener
	mu  sync.Mutex
	all []net.Conn
}

func newWire(t *testing.T, to string) *wire {
	t.Helper()
	l, port := listenLocal(t)
	w := &wire{url: "http://127.0.0.1:" + strconv.Itoa(port), l: l}
	var running sync.WaitGroup
	running.Go(func() {
		for {
			from, err := l.Accept()
			if err != nil {
				return
			}
			var d net.Dialer
			on, err := d.DialContext(t.Context(), "tcp", strings.TrimPrefix(to, "http://"))
			if err != nil {
				_ = from.Close()
				continue
			}
			w.mu.Lock()
			w.all = append(w.all, from, on)
			w.mu.Unlock()
			for _, way := range [][2]net.Conn{{from, on}, {on, from}} {
				running.Go(func() {
					_, _ = io.Copy(way[0], way[1]) // until it is cut
					_, _ = way[0].Close(), way[1].Close()
				})
			}
		}
	})
	t.Cleanup(func() { w.cut(); running.Wait() })
	return w
}

// cut ends all connections, and takes no new ones.
func (w *wire) cut() {
	_ = w.l.Close()
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.all {
		_ = c.Close()
	}
}

// Would catch no-cache that is answered from a cache, and a flood of it that reaches a PDS.
func TestNoCache(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	alice := n.as(n.alice, "alice.test/app")
	one, two := newImage("one"), newImage("two")
	alice.push("alice.test/app", two, "2.0")
	alice.push("alice.test/app", one, "1.0")
	nobody := n.nobody()
	nobody.pull("alice.test/app", "1.0", one)
	n.putRecord(n.alice, "io.atcr.tag", "app:1.0", map[string]any{
		"$type": "io.atcr.tag", "repository": "app", "tag": "1.0", "createdAt": "2026-01-01T00:00:00Z",
		"manifest": "at://" + n.alice.DID + "/io.atcr.manifest/" + two.digest.Hex(), "manifestDigest": two.digest.String(),
	})
	asked := n.PDS.Inject(devnet.Method("com.atproto.repo.getRecord"), func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		next.ServeHTTP(w, r)
	})
	for i := range 50 {
		got := nobody.must(200, nobody.do(http.MethodGet, "/v2/alice.test/app/manifests/1.0", nil, "Cache-Control", "no-cache"))
		if got.header.Get("Docker-Content-Digest") != two.digest.String() {
			t.Fatalf("request %d is answered from a cache", i)
		}
	}
	if asked.Fired() > 40 {
		t.Errorf("the PDS was asked %d times", asked.Fired())
	}
}

// liar is a Jetstream that says what a test tells it to.
func liar(t *testing.T) (url string, say func(string)) {
	t.Helper()
	messages, mu := make(chan string, 100), sync.Mutex{}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, err := websocket.Accept(w, r, nil)
		if err != nil {
			return
		}
		defer func() { _ = conn.CloseNow() }()
		ctx := conn.CloseRead(r.Context())
		for {
			select {
			case <-ctx.Done():
				return
			case m := <-messages:
				mu.Lock()
				err := conn.Write(ctx, websocket.MessageText, []byte(m))
				mu.Unlock()
				if err != nil {
					return
				}
			}
		}
	}))
	t.Cleanup(s.Close)
	t.Cleanup(s.CloseClientConnections)
	return s.URL, func(m string) { messages <- m }
}

// Would catch a Jetstream that moves a tag.
func TestLyingJetstream(t *testing.T) {
	t.Parallel()
	url, say := liar(t)
	n := newNetwork(t)
	alice := n.as(n.alice, "alice.test/app")
	one, two := newImage("one"), newImage("two")
	alice.push("alice.test/app", one, "1.0")
	alice.push("alice.test/app", two, "2.0")
	m := n.another(n.public, "ATCR_JETSTREAM_URLS="+strings.Replace(url, "http", "ws", 1)+"/subscribe")
	event := func(operation, rkey string, record map[string]any) string {
		raw, err := json.Marshal(map[string]any{
			"did": n.alice.DID, "time_us": time.Now().UnixMicro(), "kind": "commit",
			"commit": map[string]any{"rev": "3zzzzzzzzzzzz", "operation": operation, "collection": "io.atcr.tag", "rkey": rkey, "cid": cidOf(oci.FromBytes([]byte(rkey + operation))), "record": record},
		})
		if err != nil {
			t.Fatal(err)
		}
		return string(raw)
	}
	say(event("create", "app:2.0", nil))
	m.covered(m.alice)
	lies := []string{
		event("update", "app:1.0", map[string]any{"$type": "io.atcr.tag", "repository": "app", "tag": "1.0", "manifestDigest": two.digest.String(), "manifest": "at://" + n.alice.DID + "/io.atcr.manifest/" + two.digest.Hex(), "createdAt": "2026-01-01T00:00:00Z", "updatedAt": "2027-01-01T00:00:00Z"}),
		event("delete", "app:1.0", nil),
		`{"did":"` + n.alice.DID + `","time_us":` + strconv.FormatInt(time.Now().UnixMicro(), 10) + `,"kind":"account","account":{"active":false,"status":"deleted"}}`,
	}
	for _, lie := range lies {
		say(lie)
		for range 20 {
			m.nobody().pull("alice.test/app", "1.0", one)
		}
	}
	// What is so is seen at once, though it is the same server that says it.
	n.putRecord(n.alice, "io.atcr.tag", "app:1.0", map[string]any{
		"$type": "io.atcr.tag", "repository": "app", "tag": "1.0", "createdAt": "2026-01-01T00:00:00Z",
		"manifest": "at://" + n.alice.DID + "/io.atcr.manifest/" + two.digest.Hex(), "manifestDigest": two.digest.String(),
	})
	say(event("update", "app:1.0", nil))
	m.eventually("a moved tag", func() bool {
		return m.nobody().manifest("alice.test/app", "1.0").header.Get("Docker-Content-Digest") == two.digest.String()
	})
}

// Would catch an index that cannot be made anew, or is another then.
func TestReindex(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	alice, bob := n.as(n.alice, "alice.test/app"), n.as(n.bob, "bob.test/tool")
	image := newImage("one")
	alice.push("alice.test/app", image, "1.0", "2.0")
	n.useHold(n.bob, n.public.did)
	bob.push("bob.test/tool", image, "1.0")
	m := n.another(n.public)
	m.config.RelayURLs = []string{n.PDSURL}
	var told strings.Builder
	for range 2 {
		told.Reset()
		if err := Reindex(t.Context(), m.config, slog.New(slog.DiscardHandler), &told); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(told.String(), "2 repositories, 2 manifests and 3 tags") || !strings.Contains(told.String(), "lists 2 repos") {
			t.Errorf("%s", told.String())
		}
	}
	down := n.readsFail()
	got := m.nobody().do(http.MethodGet, "/v2/alice.test/app/tags/list", nil)
	down.Remove()
	if got.status != 200 || !strings.Contains(got.body, `["1.0","2.0"]`) {
		t.Errorf("%d %s", got.status, got.body)
	}
	m.config.RelayURLs = []string{"http://localhost:1"}
	if err := Reindex(t.Context(), m.config, slog.New(slog.DiscardHandler), io.Discard); err == nil {
		t.Error("a relay that is not there lists repos")
	}
}
