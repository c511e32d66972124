package ingest_test

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"
	"github.com/coder/websocket"
	"github.com/prometheus/client_golang/prometheus"

	"atcr.io/api/atcr"
	"atcr.io/internal/devnet"
	"atcr.io/internal/httpx"
	"atcr.io/internal/identity"
	"atcr.io/internal/index"
	"atcr.io/internal/ingest"
	"atcr.io/internal/oci"
	"atcr.io/internal/sqldb"
)

// sink is the index as a Sink, and wakes who waits for something.
type sink struct {
	*index.Index
	db *sqldb.DB
}

func repo(r index.Repo) ingest.Repo {
	return ingest.Repo{DID: r.DID, PDS: r.PDS, Rev: r.Rev, Data: r.Data, Source: r.Source, Active: r.Status == index.StatusActive, Complete: r.Complete, Attempts: r.Attempts, Doubts: r.Doubts}
}

func changes(in []ingest.Change) (out []index.Change) {
	for _, c := range in {
		out = append(out, index.Change(c))
	}
	return out
}

func (s *sink) Repo(ctx context.Context, did syntax.DID) (ingest.Repo, bool, error) {
	r, found, err := s.Index.Repo(ctx, did)
	return repo(r), found, err
}

func (s *sink) CID(ctx context.Context, did syntax.DID, collection, rkey string) (string, error) {
	return s.RecordCID(ctx, did, collection, rkey)
}

func (s *sink) Due(ctx context.Context, limit int) (out []ingest.Repo, err error) {
	due, err := s.Index.Due(ctx, limit)
	for _, r := range due {
		out = append(out, repo(r))
	}
	return out, err
}

func (s *sink) Write(ctx context.Context, commits []ingest.Commit, source string, cursor int64) error {
	var out []index.Commit
	for _, c := range commits {
		out = append(out, index.Commit{
			DID: c.DID, Rev: c.Rev, InOrder: c.InOrder, Since: c.Since, PrevData: c.PrevData, Data: c.Data, Source: c.Source, Changes: changes(c.Changes),
		})
	}
	return s.Index.Write(ctx, out, index.Cursor{Source: source, Value: cursor})
}

func (s *sink) Replace(ctx context.Context, c ingest.Commit, doubts int64) error {
	return s.Index.Replace(ctx, c.DID, c.Rev, c.Data, doubts, changes(c.Changes))
}

func (s *sink) Mark(ctx context.Context, did syntax.DID, m ingest.Mark) error {
	switch {
	case m.Doubt:
		return s.Doubt(ctx, did, false)
	case m.Left:
		return s.Leave(ctx, did)
	case m.Confirmed != "":
		return s.Confirm(ctx, did, m.Confirmed, m.Doubts)
	case m.Status != "":
		return s.SetStatus(ctx, did, m.Status)
	}
	return s.Postpone(ctx, did, m.RetryAt)
}

// world is a local network, and an index that an Ingester fills.
type world struct {
	*devnet.Network
	t          *testing.T
	sink       *sink
	metrics    *prometheus.Registry
	alice, bob devnet.Account
	directory  *identity.Resolver
}

func newWorld(t *testing.T) *world {
	t.Helper()
	n, err := devnet.Start(t.Context(), devnet.Config{Accounts: []string{"alice.test", "bob.test"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	w := &world{Network: n, t: t, alice: n.Accounts[0], bob: n.Accounts[1]}
	w.directory = identity.New(identity.Config{PLCURL: n.PLCURL, HandleResolverURL: n.PDSURL, AllowPrivate: true})
	w.sink = w.newSink()
	return w
}

func (w *world) newSink() *sink {
	w.t.Helper()
	db, err := sqldb.Open(w.t.Context(), filepath.Join(w.t.TempDir(), "db.sqlite3"))
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = db.Close() })
	x, err := index.Open(w.t.Context(), index.Config{DB: db})
	if err != nil {
		w.t.Fatal(err)
	}
	return &sink{x, db}
}

// newIngester makes one; what it counts is asked for with metric.
func (w *world) newIngester(change func(*ingest.Config)) *ingest.Ingester {
	w.t.Helper()
	w.metrics = prometheus.NewRegistry()
	client := httpx.NewClient(httpx.ClientConfig{AllowPrivate: true, Timeout: 20 * time.Second})
	c := ingest.Config{
		Collections: index.Collections(), Directory: w.directory, Upstream: client, Trusted: client, Sink: w.sink, Metrics: w.metrics, Logger: slog.New(slog.DiscardHandler),
	}
	change(&c)
	i, err := ingest.New(c)
	if err != nil {
		w.t.Fatal(err)
	}
	return i
}

// run runs an Ingester until the function that it returns is called, or the test ends.
func (w *world) run(change func(*ingest.Config)) (i *ingest.Ingester, stop func()) {
	w.t.Helper()
	i = w.newIngester(change)
	ctx, cancel := context.WithCancel(w.t.Context())
	var running sync.WaitGroup
	running.Go(func() { i.Run(ctx) })
	stop = func() { cancel(); running.Wait() }
	w.t.Cleanup(stop)
	return i, stop
}

// metric is the sum of a counter whose labels have value among them; "" for all.
func (w *world) metric(name, value string) (sum float64) {
	w.t.Helper()
	families, err := w.metrics.Gather()
	if err != nil {
		w.t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == "atcr_appview_ingest_"+name && (value == "" || len(m.GetLabel()) > 0 && m.GetLabel()[0].GetValue() == value) {
				sum += m.GetCounter().GetValue()
			}
		}
	}
	return sum
}

// eventually waits until ok says so.
func (w *world) eventually(what string, ok func() bool) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), 2*time.Minute)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-ctx.Done():
			w.t.Fatalf("it does not come to this: %s", what)
		case <-tick.C:
		}
	}
}

func (w *world) post(nsid, token string, in, out any) {
	w.t.Helper()
	raw, err := json.Marshal(in)
	if err != nil {
		w.t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(w.t.Context(), http.MethodPost, w.PDSURL+"/xrpc/"+nsid, bytes.NewReader(raw))
	if err != nil {
		w.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	if res.StatusCode != 200 {
		w.t.Fatalf("%s: %s", nsid, res.Status)
	}
	if out != nil {
		if err := json.NewDecoder(res.Body).Decode(out); err != nil {
			w.t.Fatal(err)
		}
	}
}

func (w *world) write(a devnet.Account, nsid string, in map[string]any) {
	w.t.Helper()
	var session struct{ AccessJwt string }
	w.post("com.atproto.server.createSession", "", map[string]string{"identifier": a.DID, "password": a.Password}, &session)
	in["repo"] = a.DID
	w.post("com.atproto.repo."+nsid, session.AccessJwt, in, nil)
}

func (w *world) put(a devnet.Account, collection, rkey string, record any) {
	w.t.Helper()
	w.write(a, "putRecord", map[string]any{"collection": collection, "rkey": rkey, "record": record})
}

func (w *world) delete(a devnet.Account, collection, rkey string) {
	w.t.Helper()
	w.write(a, "deleteRecord", map[string]any{"collection": collection, "rkey": rkey})
}

func digest(text string) string { return oci.FromBytes([]byte(text)).String() }

// tag points a tag of the repository app at a manifest, by its digest alone.
func (w *world) tag(a devnet.Account, name, text string) {
	w.t.Helper()
	w.put(a, atcr.TagNSID, atcr.TagRkey("app", name), atcr.Tag{Repository: "app", Tag: name, ManifestDigest: digest(text), CreatedAt: "2026-01-01T00:00:00Z"})
}

// tagged is the digest that a tag names in the index, "" for none.
func (w *world) tagged(a devnet.Account, name string) string {
	w.t.Helper()
	t, err := w.sink.TagOf(w.t.Context(), syntax.DID(a.DID), "app", name)
	if err != nil {
		w.t.Fatal(err)
	}
	if t == nil {
		return ""
	}
	return t.Digest
}

func (w *world) isTagged(a devnet.Account, name, text string) func() bool {
	return func() bool {
		want := ""
		if text != "" {
			want = digest(text)
		}
		return w.tagged(a, name) == want
	}
}

func (w *world) complete(a devnet.Account) func() bool {
	return func() bool {
		r, _, err := w.sink.Repo(w.t.Context(), syntax.DID(a.DID))
		return err == nil && r.Complete
	}
}

// frames reads n frames of the PDS's firehose from its beginning.
func (w *world) frames(n int) (out [][]byte) {
	w.t.Helper()
	conn, res, err := websocket.Dial(w.t.Context(), w.PDSURL+"/xrpc/com.atproto.sync.subscribeRepos?cursor=0", nil)
	if err != nil {
		w.t.Fatal(err)
	}
	if res.Body != nil {
		_ = res.Body.Close()
	}
	defer func() { _ = conn.CloseNow() }()
	conn.SetReadLimit(5 << 20)
	for range n {
		_, frame, err := conn.Read(w.t.Context())
		if err != nil {
			w.t.Fatal(err)
		}
		out = append(out, frame)
	}
	return out
}

// firehose is a server of a stream that sends what a test tells it to.
type firehose struct {
	*httptest.Server
	mu      sync.Mutex
	sent    [][]byte
	more    chan struct{}
	queries []url.Values
	// other answers what is no stream.
	other http.Handler
}

func newFirehose(t *testing.T, kind websocket.MessageType, frames ...[]byte) *firehose {
	t.Helper()
	f := &firehose{sent: frames, more: make(chan struct{}), other: http.NotFoundHandler()}
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f.Server = &httptest.Server{Listener: l, Config: &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") == "" {
			f.other.ServeHTTP(w, r)
			return
		}
		f.serve(w, r, kind)
	})}} //nolint:gosec // a test server
	f.Start()
	t.Cleanup(f.CloseClientConnections)
	t.Cleanup(f.Close)
	return f
}

func (f *firehose) serve(w http.ResponseWriter, r *http.Request, kind websocket.MessageType) {
	conn, err := websocket.Accept(w, r, nil)
	if err != nil {
		return
	}
	defer func() { _ = conn.CloseNow() }()
	ctx := conn.CloseRead(r.Context())
	f.mu.Lock()
	f.queries = append(f.queries, r.URL.Query())
	f.mu.Unlock()
	for next := 0; ; {
		f.mu.Lock()
		frames, more := f.sent[next:], f.more
		next = len(f.sent)
		f.mu.Unlock()
		for _, frame := range frames {
			if conn.Write(ctx, kind, frame) != nil {
				return
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-more:
		}
	}
}

func (f *firehose) send(frames ...[]byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.sent = append(f.sent, frames...)
	close(f.more)
	f.more = make(chan struct{})
}

func (f *firehose) connections() []url.Values {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]url.Values(nil), f.queries...)
}

// swap replaces the one place where old stands in frame.
func swap(t *testing.T, frame []byte, old, replacement string) []byte {
	t.Helper()
	if len(old) != len(replacement) || bytes.Count(frame, []byte(old)) == 0 {
		t.Fatalf("%q cannot be replaced", old)
	}
	return []byte(strings.Replace(string(frame), old, replacement, 1))
}
