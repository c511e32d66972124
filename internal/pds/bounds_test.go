package pds_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/internal/pds"
)

// big is a record of a little more than n bytes; equal ones would share a block.
func big(rkey string, n int) pds.Write {
	return pds.Write{Action: pds.Put, Collection: collection, Rkey: syntax.RecordKey(rkey), Value: json.RawMessage(fmt.Sprintf(`{"n":1,"k":%q,"s":"%0*d"}`, rkey, n, 1))}
}

// together has fns wait in one queue, so that one commit would take them: the first is held until all wait.
func together(t *testing.T, w *world, fns ...func()) {
	t.Helper()
	started, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	w.repo.OnCommit(func([]pds.Op) { once.Do(func() { close(started); <-release }) })
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := w.repo.Apply(t.Context(), []pds.Write{put("first", 1)}, nil); err != nil {
			t.Error(err)
		}
	})
	<-started
	for _, fn := range fns {
		wg.Go(fn)
	}
	w.repo.AwaitWaiting(len(fns))
	close(release)
	soon(t, wg.Wait)
}

// Would catch a frame that a relay refuses for its size, and callers who share the blame for it.
func TestCommitSize(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	if _, err := w.repo.Apply(t.Context(), []pds.Write{big("x", 999_900), big("y", 999_900)}, nil); !errors.Is(err, pds.ErrInvalidRecord) {
		t.Errorf("a batch whose frame is too large: %v", err)
	}
	w.check(t, map[string]int{})
	each := func(rkey string) func() {
		return func() {
			if _, err := w.repo.Apply(t.Context(), []pds.Write{big(rkey, 999_900)}, nil); err != nil {
				t.Errorf("%s: %v", rkey, err)
			}
		}
	}
	together(t, w, each("a"), each("b"), each("c"), func() { // refused for itself, divided or not
		_, err := w.repo.Apply(t.Context(), []pds.Write{{Action: pds.Delete, Collection: collection, Rkey: "none"}}, nil)
		if !errors.Is(err, pds.ErrRecordNotFound) {
			t.Errorf("none: %v", err)
		}
	})
	w.check(t, map[string]int{"first": 1, "a": 1, "b": 1, "c": 1})
	for _, m := range w.commits(t) {
		if len(m.Blocks) > pds.MaxCommitBytes {
			t.Errorf("a frame with %d bytes of blocks", len(m.Blocks))
		}
	}
}

// Would catch numbers and texts that are stored as others than they were sent.
func TestRecordsAreKeptOrRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for raw, ok := range map[string]bool{
		`{"i":9007199254740991}`:             true,
		`{"i":-9007199254740991}`:            true,
		`{"i":9007199254740992}`:             false, // 2^53: 2^53+1 would be read as it
		`{"i":9007199254740993}`:             false,
		`{"i":[{"j":-9223372036854775808}]}`: false,
		`{"i":1e300}`:                        false,
		`{"i":1e999}`:                        false,
		`{"i":9007199254740991.4}`:           false, // rounds to an integer
		`{"i":1.00000000000000000001}`:       false,
		"{\"s\":\"\xff\"}":                   false,
		`{"s":"grün 9007199254740993"}`:      true,
	} {
		_, err := w.repo.Apply(t.Context(), []pds.Write{{Action: pds.Put, Collection: collection, Rkey: "x", Value: json.RawMessage(raw)}}, nil)
		if ok && err != nil || !ok && !errors.Is(err, pds.ErrInvalidRecord) {
			t.Errorf("%q: %v", raw, err)
		}
	}
}

// Would catch memory that grows with the size of the newest commits.
func TestNewestEventsAreBounded(t *testing.T) {
	t.Parallel()
	s := newSite(t, pds.Config{})
	const n = 22
	for i := range n {
		if _, err := s.repo.Apply(t.Context(), []pds.Write{big(fmt.Sprintf("r%d", i), 900_000)}, nil); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 { // the second time as read at a start
		if n := s.host.RingBytes(); n > 17<<20 {
			t.Errorf("%d bytes of events in memory", n)
		}
		if n, err := s.host.PageBytes(t.Context(), 0); err != nil || n > 1<<20 { // one event
			t.Errorf("a subscriber is given %d bytes at once: %v", n, err)
		}
		s.reopen(t)
	}
	s.server.Config.Handler = pds.Serve(adapter(), s.host.Routes())
	t.Cleanup(s.host.Close)
	sub := s.subscribe(t, "?cursor=0")
	for commits, last := 0, int64(0); commits < n; { // all of them, from table and memory
		m := sub.next(t)
		if m.seq <= last {
			t.Errorf("seq %d behind %d", m.seq, last)
		}
		if last = m.seq; m.commit != nil {
			commits++
		}
	}
}

// Would catch answers whose size a stranger chooses: a hundred records of a megabyte.
func TestListRecordsIsBounded(t *testing.T) {
	t.Parallel()
	s := newSite(t, pds.Config{})
	const n = 6
	for i := range n {
		if _, err := s.repo.Apply(t.Context(), []pds.Write{big(fmt.Sprintf("r%02d", i), 900_000)}, nil); err != nil {
			t.Fatal(err)
		}
	}
	seen, cursor := map[string]bool{}, ""
	for range 2 * n {
		a := s.do(t, http.MethodGet, "com.atproto.repo.listRecords?repo="+did.String()+"&collection="+collection.String()+"&limit=100&cursor="+cursor, nil)
		if a.status != http.StatusOK || len(a.body) > 3<<20 {
			t.Fatalf("%d, %d bytes", a.status, len(a.body))
		}
		var page struct {
			Cursor  string
			Records []struct{ URI string }
		}
		if err := json.Unmarshal(a.body, &page); err != nil {
			t.Fatal(err)
		}
		for _, r := range page.Records {
			if seen[r.URI] {
				t.Errorf("%s twice", r.URI)
			}
			seen[r.URI] = true
		}
		if cursor = page.Cursor; cursor == "" {
			break
		}
	}
	if len(seen) != n {
		t.Errorf("%d records of %d", len(seen), n)
	}
	if all, err := s.repo.ListRecords(t.Context(), collection, 100, "", false); err != nil || len(all) != n {
		t.Errorf("who asks for a limit in process got %d of %d: %v", len(all), n, err)
	}
}

// Would catch a subscriber that is sent what comes behind a gap, as if there were none.
func TestNoGapWherePruned(t *testing.T) {
	t.Parallel()
	var ahead atomic.Int64
	s := newSite(t, pds.Config{Now: func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }})
	for i := range 600 { // more than are in memory
		if _, err := s.repo.Apply(t.Context(), []pds.Write{put("r", i)}, nil); err != nil {
			t.Fatal(err)
		}
	}
	var first int64
	if err := s.db.Reader().QueryRowContext(t.Context(), `SELECT min(seq) FROM event`).Scan(&first); err != nil {
		t.Fatal(err)
	}
	if n, err := s.host.PageBytes(t.Context(), first); err != nil || n == 0 || n > 72<<10 {
		t.Fatalf("%d bytes, %v", n, err)
	}
	ahead.Store(int64(pds.KeepEvents + time.Hour))
	if err := s.host.Prune(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n, err := s.host.PageBytes(t.Context(), first); err == nil {
		t.Errorf("%d bytes of events that do not follow", n)
	}
	// Who comes now is told, and has all that is left.
	if m := s.subscribe(t, fmt.Sprintf("?cursor=%d", first)).next(t); m.name != "OutdatedCursor" {
		t.Errorf("%+v", m)
	}
}

// Would catch an export that is cut by an error and looks whole to the client.
func TestCutExportIsAnError(t *testing.T) {
	t.Parallel()
	s := newSite(t, pds.Config{})
	var writes []pds.Write
	for i := range 200 {
		writes = append(writes, big(fmt.Sprintf("r%03d", i), 5000))
	}
	if _, err := s.repo.Apply(t.Context(), writes, nil); err != nil {
		t.Fatal(err)
	}
	// Reading the last value fails, when most of the others were read.
	exec(t, s.db, `ALTER TABLE record RENAME TO stored; CREATE VIEW record AS SELECT did, collection, rkey, cid, rev,
		CASE rkey WHEN 'r199' THEN abs(-9223372036854775808) ELSE value END AS value FROM stored`)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.server.URL+"/xrpc/com.atproto.sync.getRepo?did="+did.String(), nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := s.server.Client().Do(req)
	if err != nil {
		return // an error to the client as well
	}
	defer func() { _ = res.Body.Close() }()
	if raw, err := io.ReadAll(res.Body); res.StatusCode == http.StatusOK && err == nil {
		t.Errorf("an export that failed was answered with %d and %d bytes", res.StatusCode, len(raw))
	}
}

// slowResponse is a client that asks, and does not read.
type slowResponse struct {
	header           http.Header
	reached, release chan struct{}
}

func (r *slowResponse) Header() http.Header { return r.header }
func (r *slowResponse) WriteHeader(int)     {}
func (r *slowResponse) Write(p []byte) (int, error) {
	select {
	case r.reached <- struct{}{}:
		<-r.release
	case <-r.release:
	}
	return len(p), nil
}

// Would catch a hold that answers nobody because some clients are slow to read its repo.
func TestSlowReadersHoldNothing(t *testing.T) {
	t.Parallel()
	s := newSite(t, pds.Config{})
	s.fill(t, 1)
	reached, release := make(chan struct{}), make(chan struct{})
	defer close(release)
	const n = 8
	for range n {
		go s.server.Config.Handler.ServeHTTP(&slowResponse{http.Header{}, reached, release},
			httptest.NewRequest(http.MethodGet, "/xrpc/com.atproto.sync.getRepo?did="+did.String(), nil))
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for range n {
		select {
		case <-reached:
		case <-ctx.Done():
			t.Fatal("slow clients keep others from being answered")
		}
	}
	if record, err := s.repo.GetRecord(ctx, collection, "k000"); err != nil || !strings.Contains(string(record.Value), `"n":0`) {
		t.Errorf("a read while others are slow: %s %v", record.Value, err)
	}
}
