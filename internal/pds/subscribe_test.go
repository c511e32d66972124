package pds_test

import (
	"bytes"
	"context"
	"database/sql"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	comatproto "github.com/bluesky-social/indigo/api/atproto"
	"github.com/bluesky-social/indigo/atproto/repo"
	"github.com/bluesky-social/indigo/atproto/syntax"
	"github.com/coder/websocket"

	"atcr.io/internal/pds"
)

// message is a frame, decoded by indigo's types.
type message struct {
	seq     int64
	kind    string // "#commit", "error", …
	did     string
	name    string // of an error or info
	commit  *comatproto.SyncSubscribeRepos_Commit
	handle  string
	version string // rev
}

// subscription is a subscriber as a relay is one.
type subscription struct {
	conn *websocket.Conn
}

func (s *site) subscribe(t testing.TB, query string) *subscription {
	t.Helper()
	conn, _, err := websocket.Dial(t.Context(), s.server.URL+"/xrpc/com.atproto.sync.subscribeRepos"+query, nil)
	if err != nil {
		t.Fatal(err)
	}
	conn.SetReadLimit(4 << 20)
	t.Cleanup(func() { _ = conn.CloseNow() })
	return &subscription{conn}
}

// readMap reads a CBOR map of short texts and small numbers, whose keys must be in DRISL's order.
func readMap(t testing.TB, r *bytes.Reader) map[string]string {
	t.Helper()
	one := func() byte {
		b, err := r.ReadByte()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	item := func() string {
		kind := one()
		n := int(kind & 0x1f)
		if n == 24 {
			n = int(one())
		}
		switch kind >> 5 {
		case 0:
			return strconv.Itoa(n)
		case 1:
			return strconv.Itoa(-1 - n)
		case 3:
			text := make([]byte, n)
			for i := range text {
				text[i] = one()
			}
			return string(text)
		}
		t.Fatalf("%x is neither text nor number", kind)
		return ""
	}
	size := one()
	if size>>5 != 5 {
		t.Fatalf("%x is no map", size)
	}
	out, last := map[string]string{}, ""
	for range size & 0x1f {
		key := item()
		if len(key) < len(last) || len(key) == len(last) && key <= last {
			t.Errorf("%q behind %q", key, last)
		}
		out[key], last = item(), key
	}
	return out
}

// next is the next frame.
func (s *subscription) next(t testing.TB) message {
	t.Helper()
	m, err := s.read(t)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func (s *subscription) read(t testing.TB) (message, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	kind, frame, err := s.conn.Read(ctx)
	if err != nil {
		return message{}, err
	}
	if kind != websocket.MessageBinary {
		t.Errorf("a frame of kind %s", kind)
	}
	r := bytes.NewReader(frame)
	header := readMap(t, r)
	m := message{kind: header["t"]}
	if header["op"] == "-1" {
		m.kind, m.name = "error", readMap(t, r)["error"]
	} else if header["op"] != "1" {
		t.Errorf("header %v", header)
	}
	switch m.kind {
	case "#commit":
		var v comatproto.SyncSubscribeRepos_Commit
		err = v.UnmarshalCBOR(r)
		m.seq, m.did, m.commit, m.version = v.Seq, v.Repo, &v, v.Rev
	case "#identity":
		var v comatproto.SyncSubscribeRepos_Identity
		err = v.UnmarshalCBOR(r)
		if m.seq, m.did = v.Seq, v.Did; v.Handle != nil {
			m.handle = *v.Handle
		}
	case "#account":
		var v comatproto.SyncSubscribeRepos_Account
		err = v.UnmarshalCBOR(r)
		if m.seq, m.did = v.Seq, v.Did; !v.Active {
			t.Error("the account is not active")
		}
	case "#sync":
		var v comatproto.SyncSubscribeRepos_Sync
		err = v.UnmarshalCBOR(r)
		m.seq, m.did, m.version = v.Seq, v.Did, v.Rev
		if _, _, err := repo.LoadCommitFromCAR(t.Context(), bytes.NewReader(v.Blocks)); err != nil {
			t.Errorf("the commit of #sync: %v", err)
		}
	case "#info":
		var v comatproto.SyncSubscribeRepos_Info
		err = v.UnmarshalCBOR(r)
		m.name = v.Name
	}
	if err != nil {
		t.Fatal(err)
	}
	if r.Len() != 0 {
		t.Errorf("%d bytes behind %s", r.Len(), m.kind)
	}
	return m, nil
}

// Would catch a first subscriber that is not told of the accounts, and one that must wait for the next start
// to hear of a commit.
func TestSubscribe(t *testing.T) {
	t.Parallel()
	s := newSite(t, pds.Config{})
	s.fill(t, 3)
	all := s.subscribe(t, "?cursor=0")
	var last int64
	for i, kind := range []string{"#identity", "#account", "#sync", "#commit"} {
		m := all.next(t)
		if m.kind != kind || m.did != did.String() || m.seq <= last || kind == "#identity" && m.handle != "hold.example" {
			t.Errorf("%d: %+v", i, m)
		}
		last = m.seq
	}
	live := s.subscribe(t, "")
	// Nothing is sent to say that it has begun, so another commit is made until one is seen.
	var wg sync.WaitGroup
	stop := make(chan struct{})
	wg.Go(func() {
		for n := 10; ; n++ {
			select {
			case <-stop:
				return
			default:
			}
			if _, err := s.repo.Apply(t.Context(), []pds.Write{put("live", n)}, nil); err != nil {
				t.Error(err)
				return
			}
		}
	})
	got := live.next(t)
	close(stop)
	wg.Wait()
	if got.kind != "#commit" || got.seq <= last || len(got.commit.Ops) != 1 || got.commit.Ops[0].Path != collection.String()+"/live" {
		t.Errorf("%+v", got)
	}
	from := s.subscribe(t, fmt.Sprintf("?cursor=%d", last))
	if m := from.next(t); m.kind != "#commit" || m.seq <= last || m.seq > got.seq {
		t.Errorf("from %d: %+v", last, m)
	}
}

// Would catch a relay that waits for ever for events that a restored host will never send.
func TestFutureCursor(t *testing.T) {
	t.Parallel()
	s := newSite(t, pds.Config{})
	sub := s.subscribe(t, "?cursor=9007199254740991")
	if m := sub.next(t); m.kind != "error" || m.name != "FutureCursor" {
		t.Errorf("%+v", m)
	}
	if _, err := sub.read(t); websocket.CloseStatus(err) != websocket.StatusPolicyViolation {
		t.Errorf("then: %v", err)
	}
}

// Would catch a gap that is not told, and a quiet host that calls its relay's cursor one of the future.
func TestOutdatedCursor(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	now := time.Now()
	s := newSite(t, pds.Config{Now: func() time.Time { mu.Lock(); defer mu.Unlock(); return now }})
	s.fill(t, 1)
	var first, newest message
	sub := s.subscribe(t, "?cursor=0")
	for range 4 {
		if newest = sub.next(t); first.seq == 0 {
			first = newest
		}
	}
	mu.Lock()
	now = now.Add(pds.KeepEvents + time.Hour)
	mu.Unlock()
	for range 2 {
		if err := s.host.Prune(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	s.reopen(t) // what memory still has must not be needed
	s.server.Config.Handler = pds.Serve(adapter(), s.host.Routes())
	quiet := s.subscribe(t, fmt.Sprintf("?cursor=%d", newest.seq))
	if _, err := s.repo.Apply(t.Context(), []pds.Write{put("later", 1)}, nil); err != nil {
		t.Fatal(err)
	}
	if m := quiet.next(t); m.kind != "#commit" || m.seq <= newest.seq {
		t.Errorf("a relay that missed nothing: %+v", m)
	}
	late := s.subscribe(t, fmt.Sprintf("?cursor=%d", first.seq))
	if m := late.next(t); m.kind != "#info" || m.name != "OutdatedCursor" {
		t.Errorf("a relay that missed some: %+v", m)
	}
	if m := late.next(t); m.seq != newest.seq {
		t.Errorf("then the oldest that is kept: %+v", m)
	}
}

// Would catch a browser or a script that waits for an answer that never comes.
func TestPlainGet(t *testing.T) {
	t.Parallel()
	s := newSite(t, pds.Config{})
	a := s.do(t, http.MethodGet, "com.atproto.sync.subscribeRepos", nil)
	if a.status != http.StatusUpgradeRequired || a.header.Get("Upgrade") != "websocket" {
		t.Errorf("%d %v", a.status, a.header)
	}
	a = s.do(t, http.MethodGet, "com.atproto.sync.subscribeRepos", nil, "Connection", "Upgrade", "Upgrade", "h2c")
	if a.status < 400 {
		t.Errorf("another protocol: %d", a.status)
	}
}

// Would catch subscribers without number, and a place that is not given back.
func TestSubscriberCap(t *testing.T) {
	t.Parallel()
	s := newSite(t, pds.Config{MaxSubscribers: 2})
	one, two := s.subscribe(t, "?cursor=0"), s.subscribe(t, "?cursor=0")
	one.next(t)
	two.next(t)
	dial := func() (int, error) {
		conn, res, err := websocket.Dial(t.Context(), s.server.URL+"/xrpc/com.atproto.sync.subscribeRepos?cursor=0", nil)
		if err == nil {
			_ = conn.CloseNow()
		}
		return res.StatusCode, err
	}
	if status, err := dial(); err == nil || status != http.StatusTooManyRequests {
		t.Errorf("a third: %d %v", status, err)
	}
	if err := one.conn.Close(websocket.StatusNormalClosure, ""); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for status, err := dial(); err != nil; status, err = dial() { // its place is free a moment later
		if ctx.Err() != nil {
			t.Fatalf("its place stays taken: %d %v", status, err)
		}
	}
}

// Would catch a stop that waits for subscribers.
func TestSubscribeClose(t *testing.T) {
	t.Parallel()
	s := newSite(t, pds.Config{})
	sub := s.subscribe(t, "?cursor=0")
	for range 3 {
		sub.next(t)
	}
	s.host.Close()
	if _, err := sub.read(t); websocket.CloseStatus(err) != websocket.StatusGoingAway {
		t.Errorf("%v", err)
	}
}

// Would catch an event that is missing or comes twice where memory ends and the table begins, for one that
// reads slowly while several repos write; and a chain of commits that is broken for a relay.
func TestSubscribeBoundary(t *testing.T) {
	t.Parallel()
	s := newSite(t, pds.Config{})
	repos := []*pds.Repo{s.repo}
	for _, name := range []syntax.DID{"did:web:b.example", "did:web:c.example"} {
		r, err := s.host.AddRepo(t.Context(), name, s.key, "")
		if err != nil {
			t.Fatal(err)
		}
		repos = append(repos, r)
	}
	const each = 200 // so that there are more events than memory holds
	half := make(chan struct{})
	var wg sync.WaitGroup
	for _, r := range repos {
		wg.Go(func() {
			for n := range each {
				if r == s.repo && n == each/2 {
					close(half)
				}
				if _, err := r.Apply(context.Background(), []pds.Write{put(fmt.Sprintf("k%d", n), n)}, nil); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	follow := func(sub *subscription, verify bool) {
		revs, seen, last := map[string]string{}, 0, int64(0)
		for seen < 3*each {
			m, err := sub.read(t)
			if err != nil {
				t.Error(err)
				return
			}
			if m.seq <= last {
				t.Errorf("seq %d after %d", m.seq, last)
			}
			if last = m.seq; m.kind != "#commit" {
				if m.kind == "#sync" {
					revs[m.did] = m.version
				}
				continue
			}
			if since := m.commit.Since; since == nil || revs[m.did] != "" && *since != revs[m.did] {
				t.Errorf("%s: rev %s is since %v, not %s", m.did, m.version, since, revs[m.did])
			}
			if verify {
				if _, err := repo.VerifyCommitMessage(t.Context(), m.commit); err != nil {
					t.Error(err)
				}
			}
			revs[m.did] = m.version
			seen++
		}
	}
	<-half
	early := s.subscribe(t, "?cursor=0") // begins in the table, ends live
	follow(early, true)
	wg.Wait()
	follow(s.subscribe(t, "?cursor=0"), false) // all from the table, then memory
	var n int
	if err := s.db.Reader().QueryRowContext(t.Context(), `SELECT count(*) FROM event`).Scan(&n); err != nil || n != 3*each+9 {
		t.Errorf("%d events: %v", n, err)
	}
	if _, err := s.host.AddRepo(t.Context(), "did:web:b.example", s.key, ""); err == nil {
		t.Errorf("the same repo twice: %v", err)
	}
}

// Would catch a subscriber that is left with a gap and not told: one that reads so slowly that what it has yet to be
// sent is pruned.
func TestConsumerTooSlow(t *testing.T) {
	t.Parallel()
	var ahead atomic.Int64
	w := newWorldWith(t, pds.Config{Now: func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }})
	// More than what sockets and the newest events in memory hold together; written as rows, since each would be a
	// commit of a megabyte.
	const frames = 60
	err := w.db.Write(t.Context(), func(tx *sql.Tx) error {
		for range frames {
			_, err := tx.ExecContext(t.Context(), `INSERT INTO event (seq, time, frame) SELECT max(seq) + 1, ?, zeroblob(900000) FROM event`, time.Now().UnixMilli())
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	w.reopen(t)
	s := &site{world: w, server: httptest.NewServer(pds.Serve(adapter(), w.host.Routes()))}
	t.Cleanup(s.server.Close)
	t.Cleanup(w.host.Close)
	slow := s.subscribe(t, "?cursor=0").conn
	read := func() ([]byte, error) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		_, frame, err := slow.Read(ctx)
		return frame, err
	}
	if _, err := read(); err != nil {
		t.Fatal(err)
	}
	ahead.Store(int64(pds.KeepEvents + time.Hour))
	if _, err := s.repo.Apply(t.Context(), []pds.Write{put("last", 1)}, nil); err != nil {
		t.Fatal(err)
	}
	if err := s.host.Prune(t.Context()); err != nil {
		t.Fatal(err)
	}
	for got := 1; ; got++ {
		frame, err := read()
		if err != nil || got > frames {
			t.Fatalf("it was not told behind %d frames: %v", got, err)
		}
		if bytes.Contains(frame, []byte("ConsumerTooSlow")) {
			if r := bytes.NewReader(frame); readMap(t, r)["op"] != "-1" || readMap(t, r)["error"] != "ConsumerTooSlow" {
				t.Errorf("%q", frame)
			}
			break
		}
		if bytes.Contains(frame, []byte("#commit")) && got > frames/2 {
			t.Fatal("it was sent what is behind the gap")
		}
	}
	if _, err := read(); websocket.CloseStatus(err) != websocket.StatusPolicyViolation {
		t.Errorf("the end: %v", err)
	}
}
