package outbox_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"atcr.io/internal/outbox"
	"atcr.io/internal/sqldb"
)

// world is a database, a clock, and who gets the messages.
type world struct {
	db    *sqldb.DB
	ahead atomic.Int64

	mu    sync.Mutex
	got   []string
	fails map[string]error // by body
	seen  chan string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	db, err := sqldb.Open(t.Context(), filepath.Join(t.TempDir(), "db.sqlite3"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return &world{db: db, fails: map[string]error{}, seen: make(chan string, 10_000)}
}

func (w *world) now() time.Time { return time.Now().Add(time.Duration(w.ahead.Load())) }

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

func (w *world) open(t *testing.T) *outbox.Outbox {
	t.Helper()
	o, err := outbox.Open(t.Context(), outbox.Config{
		DB: w.db, Deliver: w.deliver, Logger: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry(), Now: w.now, Prefix: "test",
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
	timeout := time.After(20 * time.Second)
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
	w := newWorld(t)
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
}

// Would catch a message whose sender died between the two and that never goes.
func TestHeldBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
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
}

// Would catch a sender who fills the disk.
func TestFull(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	o := w.open(t)
	defer o.Close()
	for i := range 1000 {
		add(t, o, "alice", "hold", fmt.Sprint(i))
	}
	if _, err := o.Add(t.Context(), outbox.Message{Sender: "alice", To: "other", Body: []byte("x")}); !errors.Is(err, outbox.ErrFull) {
		t.Errorf("%v", err)
	}
	add(t, o, "bob", "hold", strings.Repeat("x", 100))
}
