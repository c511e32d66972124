package pds

import (
	"context"
	"io"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/bluesky-social/indigo/atproto/atcrypto"

	"atcr.io/internal/sqldb"
)

// opener is a database, and what opens a host on it, with one repo, in place of the host before.
func opener(t *testing.T, c Config) (*sqldb.DB, func() (*Host, *Repo)) {
	t.Helper()
	key, err := atcrypto.GeneratePrivateKeyK256()
	if err != nil {
		t.Fatal(err)
	}
	if c.DB, err = sqldb.Open(t.Context(), filepath.Join(t.TempDir(), "db.sqlite3")); err != nil {
		t.Fatal(err)
	}
	var h *Host
	closeHost := func() {
		if h != nil {
			h.Close()
		}
	}
	t.Cleanup(func() { closeHost(); _ = c.DB.Close() })
	return c.DB, func() (*Host, *Repo) {
		t.Helper()
		closeHost()
		if h, err = Open(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		r, err := h.AddRepo(t.Context(), "did:web:hold.example", key, "")
		if err != nil {
			t.Fatal(err)
		}
		return h, r
	}
}

// Would catch a window that opens too early, never, or does not close again.
func TestWindow(t *testing.T) {
	t.Parallel()
	s := &spending{budget: Budget{Hour: 100, Day: 1000}}
	now := time.Unix(1_800_000_000, 0)
	s.newest = now.Unix() / 60
	for i, step := range []struct {
		events int
		after  time.Duration
		want   time.Duration
	}{
		{0, 0, 0}, {50, 0, 0}, {25, time.Minute, maxGathering / 2}, {25, time.Minute, maxGathering}, {500, time.Minute, maxGathering},
		{0, 58 * time.Minute, maxGathering}, {0, 2 * time.Minute, maxGathering / 5}, // the hour is over, of the day 600 are used
		{0, 25 * time.Hour, 0}, {60, 0, maxGathering / 5}, {0, 100 * 24 * time.Hour, 0},
	} {
		now = now.Add(step.after)
		s.add(step.events, now)
		if got := s.window(now); (got - step.want).Abs() > time.Millisecond {
			t.Errorf("step %d: %s, want %s", i, got, step.want)
		}
	}
	s.add(10, now.Add(-time.Hour)) // a clock that jumps back
	if s.window(now.Add(-time.Hour)) != 0 {
		t.Error("a clock that jumps back opens the window")
	}
	free := &spending{}
	free.add(1_000_000, now)
	if free.window(now) != 0 {
		t.Error("a host without a budget waits")
	}
}

// Would catch a busy host whose commits a relay stops reading: over its budget, callers share them; and a
// restart that forgets what was spent.
func TestBudget(t *testing.T) {
	t.Parallel()
	db, open := opener(t, Config{Budget: Budget{Hour: 4}})
	h, _ := open() // three events: identity, account, sync
	if w := h.spending.window(time.Now()); w == 0 || w == maxGathering {
		t.Errorf("three of four: %s", w)
	}
	h, r := open()
	if w := h.spending.window(time.Now()); w == 0 {
		t.Errorf("after a restart: %s", w)
	}
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			if _, err := r.Apply(t.Context(), []Write{{Action: Create, Collection: "com.example.thing", Value: []byte(`{"n":` + string(rune('0'+i%10)) + `}`)}}, nil); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	var commits int
	if err := db.Reader().QueryRow(`SELECT count(*) FROM event`).Scan(&commits); err != nil || commits > 3+3 {
		t.Errorf("%d events for 20 callers, %v", commits-3, err)
	}
	// Who gathers keeps nobody from reading the tree.
	ctx, cancel := context.WithCancel(t.Context())
	gathers := make(chan error, 1)
	go func() {
		_, err := r.Apply(ctx, []Write{{Action: Create, Collection: "com.example.thing", Value: []byte(`{}`)}}, nil)
		gathers <- err
	}()
	for len(r.turn) == 0 {
		runtime.Gosched()
	}
	if err := r.Proof(t.Context(), io.Discard, "com.example.thing", "none"); err != nil {
		t.Error(err)
	}
	select {
	case err := <-gathers:
		t.Errorf("a proof waited for a gathering: %v", err)
	default:
	}
	cancel()
	if err := <-gathers; err == nil {
		t.Error("a caller who gave up meanwhile was committed")
	}
	if _, err := r.Apply(ctx, []Write{{Action: Create, Collection: "com.example.thing", Value: []byte(`{}`)}}, nil); err == nil {
		t.Error("a caller who had given up was committed")
	}
}

// Would catch a gathering that goes on after its caller has given up.
func TestGather(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := &Host{now: time.Now, spending: spending{budget: Budget{Hour: 1}}}
		h.spending.newest = time.Now().Unix() / 60
		h.spending.add(1, time.Now())
		r := &Repo{host: h}
		start := time.Now()
		r.gather(t.Context())
		if d := time.Since(start); d != maxGathering {
			t.Errorf("waited %s", d)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start = time.Now()
		r.gather(ctx)
		if d := time.Since(start); d != time.Second {
			t.Errorf("waited %s", d)
		}
	})
}

// Would catch a large repo whose tree has the garbage collector work without end, because nobody made room for it.
func TestReserve(t *testing.T) {
	t.Parallel()
	var told []int64
	h := &Host{config: Config{Reserve: func(bytes int64) { told = append(told, bytes) }}}
	for range 3 * reserveEvery {
		h.grow(1)
	}
	h.grow(-3 * reserveEvery) // the tree is loaded again
	for range 3 * reserveEvery {
		h.grow(1)
	}
	if len(told) != 3 || told[2] < 3*reserveEvery*recordBytes {
		t.Errorf("%v", told)
	}
}
