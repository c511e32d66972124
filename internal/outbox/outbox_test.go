package outbox_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"atcr.io/internal/outbox"
	"atcr.io/internal/sqldb"
	"atcr.io/test/databases"
)

func TestMain(m *testing.M) { databases.Main(m) }

// world is a database, a clock that a test alone moves, and who gets the messages.
type world struct {
	kind  databases.Database
	db    *sqldb.DB
	start time.Time
	ahead atomic.Int64

	mu    sync.Mutex
	got   []string
	fails map[string]error // by body
	seen  chan string
}

func newWorld(t *testing.T, d databases.Database) *world {
	t.Helper()
	return &world{kind: d, db: d.Open(t), start: time.Now(), fails: map[string]error{}, seen: make(chan string, 10_000)}
}

func (w *world) now() time.Time { return w.start.Add(time.Duration(w.ahead.Load())) }

func (w *world) deliver(_ context.Context, m outbox.Message) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	body := string(m.Body)
	err := w.fails[body]
	if err == nil {
		w.got = append(w.got, body)
	}
	w.seen <- body
	return err
}

func (w *world) fail(body string, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fails[body] = err
}

func (w *world) open(t *testing.T) *outbox.Outbox { return w.openOn(t, w.db) }

func (w *world) openOn(t *testing.T, db *sqldb.DB) *outbox.Outbox {
	t.Helper()
	o, err := outbox.Open(t.Context(), outbox.Config{
		DB: db, Deliver: w.deliver, Logger: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry(), Now: w.now, LookEvery: 200 * time.Millisecond, Prefix: "test",
	})
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func add(t *testing.T, o *outbox.Outbox, sender, to, body string) int64 {
	t.Helper()
	id, err := o.Add(t.Context(), outbox.Message{Sender: sender, To: to, Kind: "k", Body: []byte(body)})
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func (w *world) await(t *testing.T, body string) {
	t.Helper()
	timeout := time.After(2 * time.Minute)
	for {
		select {
		case got := <-w.seen:
			if got == body {
				return
			}
		case <-timeout:
			t.Fatalf("%s never came", body)
		}
	}
}

// Would catch a delete that overtakes its push, a lane that holds up another, a message that goes before its
// deed, one that is lost with the process, and one that is sent for ever.
func TestDelivery(t *testing.T) {
	t.Parallel()
	databases.Each(t, func(t *testing.T, d databases.Database) {
		w := newWorld(t, d)
		o := w.open(t)
		w.fail("push", errors.New("down"))
		w.fail("refused", fmt.Errorf("%w: no", outbox.ErrRefused))
		ids := []int64{add(t, o, "alice", "hold", "push"), add(t, o, "alice", "hold", "delete"), add(t, o, "bob", "hold", "refused"), add(t, o, "bob", "hold", "after")}
		never := add(t, o, "carol", "hold", "never done")
		for _, id := range ids {
			if err := o.Release(t.Context(), id); err != nil {
				t.Fatal(err)
			}
		}
		w.await(t, "after")
		if err := o.Drop(t.Context(), never); err != nil {
			t.Fatal(err)
		}
		o.Close()
		w.fail("push", nil)
		o = w.open(t) // the process was started anew
		defer o.Close()
		w.ahead.Store(int64(10 * time.Minute)) // the pause after a failure is over
		if err := o.Release(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
		w.await(t, "delete")
		w.mu.Lock()
		defer w.mu.Unlock()
		if i := slices.Index(w.got, "push"); i < 0 || i > slices.Index(w.got, "delete") || slices.Contains(w.got, "never done") || slices.Contains(w.got, "refused") {
			t.Errorf("%v", w.got)
		}
	})
}

// Would catch a message that comes too early and holds up its lane, or that never goes when its time has come.
func TestTooEarly(t *testing.T) {
	t.Parallel()
	databases.Each(t, func(t *testing.T, d databases.Database) {
		w := newWorld(t, d)
		o := w.open(t)
		defer func() { o.Close() }()
		early, later := add(t, o, "alice", "hold", "early"), add(t, o, "alice", "hold", "later")
		w.fail("early", fmt.Errorf("%w: it is there", outbox.ErrTooEarly))
		if err := o.Release(t.Context(), later); err != nil {
			t.Fatal(err)
		}
		w.ahead.Store(int64(2 * time.Minute)) // its sender said nothing
		if err := o.Release(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
		w.await(t, "later")
		w.fail("early", nil)
		if err := o.Release(t.Context(), early); err != nil {
			t.Fatal(err)
		}
		w.await(t, "early")
		o.Close()
		add(t, o, "alice", "hold", "again")
		w.fail("again", outbox.ErrTooEarly)
		w.ahead.Add(int64(2 * time.Minute))
		o = w.open(t)
		w.await(t, "again")
		o.Close()
		w.fail("again", nil)
		w.ahead.Add(int64(2 * time.Minute))
		o = w.open(t) // a process that knows only what is kept
		w.await(t, "again")
		o.Close()
		w.mu.Lock()
		defer w.mu.Unlock()
		if !slices.Equal(w.got, []string{"later", "early", "again"}) {
			t.Errorf("%v", w.got)
		}
	})
}

// Would catch a message whose sender died between the two and that never goes.
func TestHeldBack(t *testing.T) {
	t.Parallel()
	databases.Each(t, func(t *testing.T, d databases.Database) {
		w := newWorld(t, d)
		o := w.open(t)
		add(t, o, "alice", "hold", "held")
		o.Close()
		if len(w.got) != 0 {
			t.Fatal("it went before its deed")
		}
		w.ahead.Store(int64(2 * time.Minute))
		o = w.open(t)
		defer o.Close()
		w.await(t, "held")
	})
}

// Would catch a sender who fills the disk.
func TestFull(t *testing.T) {
	t.Parallel()
	databases.Each(t, func(t *testing.T, d databases.Database) {
		w := newWorld(t, d)
		o := w.open(t)
		defer o.Close()
		for i := range 1000 {
			add(t, o, "alice", "hold", fmt.Sprint(i))
		}
		if _, err := o.Add(t.Context(), outbox.Message{Sender: "alice", To: "other", Body: []byte("x")}); !errors.Is(err, outbox.ErrFull) {
			t.Errorf("%v", err)
		}
		add(t, o, "bob", "hold", strings.Repeat("x", 100))
	})
}

// Would catch a message that two processes deliver, one that overtakes another of its lane there, and one
// that is lost with the process that had it.
func TestTwoProcesses(t *testing.T) {
	t.Parallel()
	databases.Each(t, func(t *testing.T, d databases.Database) {
		w := newWorld(t, d)
		boxes := []*outbox.Outbox{w.open(t), w.openOn(t, d.Open(t))}
		const lanes, each = 8, 6
		for i := range lanes * each {
			id := add(t, boxes[i%2], fmt.Sprint("sender ", i%lanes), "hold", fmt.Sprint(i))
			if err := boxes[i%2].Release(t.Context(), id); err != nil {
				t.Fatal(err)
			}
		}
		for range lanes * each {
			select {
			case <-w.seen:
			case <-time.After(2 * time.Minute):
				t.Fatal("not all came")
			}
		}
		for _, o := range boxes {
			o.Close()
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		last := map[int]int{}
		for _, body := range w.got {
			var i int
			if _, err := fmt.Sscan(body, &i); err != nil {
				t.Fatal(err)
			}
			if before, ok := last[i%lanes]; ok && before >= i {
				t.Errorf("%d came after %d", i, before)
			}
			last[i%lanes] = i
		}
		if len(w.got) != lanes*each {
			t.Errorf("%d deliveries of %d messages", len(w.got), lanes*each)
		}
	})
}

// Would catch a process that keeps its messages from the others for ever, by ending without a word.
func TestLostProcess(t *testing.T) {
	t.Parallel()
	databases.Each(t, func(t *testing.T, d databases.Database) {
		w := newWorld(t, d)
		o := w.open(t)
		if err := o.Release(t.Context(), add(t, o, "alice", "hold", "first")); err != nil {
			t.Fatal(err)
		}
		w.await(t, "first")
		o.Close()
		lost := add(t, o, "alice", "hold", "lost")
		err := w.db.Write(t.Context(), func(tx *sql.Tx) error { // as the other process had left it
			_, err := tx.ExecContext(t.Context(), `UPDATE outbox SET due_at = 0, claimed_until = ? WHERE id = ?`, w.now().Add(time.Minute).UnixMilli(), lost)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		w.ahead.Store(int64(2 * time.Minute))
		defer w.open(t).Close()
		w.await(t, "lost")
	})
}
