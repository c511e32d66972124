package pds_test

import (
	"context"
	"database/sql"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/internal/pds"
	"atcr.io/internal/sqldb"
)

func exec(t testing.TB, db *sqldb.DB, query string) {
	t.Helper()
	err := db.Write(t.Context(), func(tx *sql.Tx) error {
		_, err := tx.ExecContext(t.Context(), query)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// Would catch a commit of which a part outlives its failure, in the database, in memory or on the firehose,
// and a repo that does not go on after it.
func TestFailingTransaction(t *testing.T) {
	t.Parallel()
	for name, trigger := range map[string]string{
		"first record":  `BEFORE INSERT ON record WHEN NEW.rkey = 'c'`,
		"last record":   `AFTER INSERT ON record WHEN NEW.rkey = 'e'`,
		"update":        `BEFORE UPDATE ON record`,
		"delete":        `AFTER DELETE ON record`,
		"head":          `AFTER UPDATE ON repo`,
		"event":         `AFTER INSERT ON event`,
		"before events": `BEFORE INSERT ON event`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			if _, err := w.repo.Apply(t.Context(), []pds.Write{put("a", 1), put("b", 1)}, nil); err != nil {
				t.Fatal(err)
			}
			model := map[string]int{"a": 1, "b": 1}
			before, err := w.repo.Head(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			hooked := 0
			w.repo.OnCommit(func([]pds.Op) { hooked++ })
			batch := []pds.Write{
				put("c", 1), put("d", 1), put("e", 1), put("a", 2), {Action: pds.Delete, Collection: collection, Rkey: "b"},
			}
			exec(t, w.db, `CREATE TRIGGER boom `+trigger+` BEGIN SELECT RAISE(ABORT, 'boom'); END`)
			for range 2 {
				if _, err := w.repo.Apply(t.Context(), batch, nil); err == nil {
					t.Fatal("the fault did not fire")
				}
			}
			if head, err := w.repo.Head(t.Context()); err != nil || head.CID != before.CID || hooked != 0 {
				t.Errorf("head %s, was %s, %d hooks: %v", head.CID, before.CID, hooked, err)
			}
			w.check(t, model)
			exec(t, w.db, `DROP TRIGGER boom`)
			if _, err := w.repo.Apply(t.Context(), batch, &before.CID); err != nil {
				t.Fatalf("it does not go on: %v", err)
			}
			model = map[string]int{"a": 2, "c": 1, "d": 1, "e": 1}
			w.check(t, model)
			w.reopen(t)
			w.check(t, model)
			if hooked != 1 {
				t.Errorf("%d hooks", hooked)
			}
		})
	}
}

// Would catch a write that is told as done after the database is gone.
func TestDatabaseGone(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	if _, err := w.repo.Apply(t.Context(), []pds.Write{put("a", 1)}, nil); err != nil {
		t.Fatal(err)
	}
	if err := w.db.Close(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := w.repo.Apply(t.Context(), []pds.Write{put("a", 2)}, nil); err == nil {
			t.Error("written without a database")
		}
	}
	w.host.Close()
	w.open(t)
	w.check(t, map[string]int{"a": 1})
}

// Would catch a caller that gave up and takes others' writes with it, or has hers made half.
func TestGivenUp(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	var wg sync.WaitGroup
	model := map[string]int{}
	for i := range 30 {
		ctx := t.Context()
		if i%3 == 0 {
			ctx = gone
		} else {
			model[fmt.Sprintf("g%d", i)] = i
		}
		wg.Go(func() {
			if _, err := w.repo.Apply(ctx, []pds.Write{put(fmt.Sprintf("g%d", i), i)}, nil); (err != nil) != (i%3 == 0) {
				t.Errorf("%d: %v", i, err)
			}
		})
	}
	wg.Wait()
	w.check(t, model)
}

// Would catch a rev, seq or key that falls or repeats when the clock stands still or goes back, over a
// restart too.
func TestClock(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	now := time.Now()
	w := newWorldWith(t, pds.Config{Now: func() time.Time { mu.Lock(); defer mu.Unlock(); return now }})
	keys := map[syntax.RecordKey]bool{}
	rev, model := "", map[string]int{}
	for i, step := range []time.Duration{0, 0, time.Hour, -48 * time.Hour, 0, 0, time.Second, -time.Microsecond, 0} {
		mu.Lock()
		now = now.Add(step)
		mu.Unlock()
		if i == 5 {
			w.reopen(t)
		}
		auto := pds.Write{Action: pds.Create, Collection: collection, Value: value(i)}
		result, err := w.repo.Apply(t.Context(), []pds.Write{auto, auto}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if result.Rev <= rev {
			t.Errorf("step %d: rev %s after %s", i, result.Rev, rev)
		}
		rev = result.Rev
		for _, written := range result.Writes {
			if keys[written.URI.RecordKey()] {
				t.Errorf("step %d: key %s again", i, written.URI.RecordKey())
			}
			keys[written.URI.RecordKey()] = true
			model[written.URI.RecordKey().String()] = i
		}
	}
	w.check(t, model) // seq, rev and since rise
}

// Would catch a blob that is deleted while a record names it, or kept for ever when none does.
func TestBlobLifetime(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	now := time.Now()
	w := newWorldWith(t, pds.Config{Now: func() time.Time { mu.Lock(); defer mu.Unlock(); return now }})
	ctx := t.Context()
	store := func(text string) pds.Blob {
		t.Helper()
		b, err := w.repo.PutBlob(ctx, "text/plain", []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	naming := func(b pds.Blob) pds.Write {
		return pds.Write{Action: pds.Put, Collection: collection, Rkey: "a", Value: fmt.Appendf(nil,
			`{"b":{"$type":"blob","ref":{"$link":%q},"mimeType":"text/plain","size":%d}}`, b.CID, len(b.Data))}
	}
	named, loose := store("named"), store("loose")
	if _, err := w.repo.Apply(ctx, []pds.Write{naming(named)}, nil); err != nil {
		t.Fatal(err)
	}
	later := func() {
		mu.Lock()
		now = now.Add(25 * time.Hour)
		mu.Unlock()
		store(now.String()) // what sweeps
	}
	later()
	if _, err := w.repo.GetBlob(ctx, named.CID); err != nil {
		t.Errorf("named: %v", err)
	}
	if _, err := w.repo.GetBlob(ctx, loose.CID); err == nil {
		t.Error("a blob that no record names is kept")
	}
	other := store("other")
	if _, err := w.repo.Apply(ctx, []pds.Write{naming(other)}, nil); err != nil { // the record names another now
		t.Fatal(err)
	}
	later()
	if _, err := w.repo.GetBlob(ctx, named.CID); err == nil {
		t.Error("a blob that no record names any more is kept")
	}
	if b, err := w.repo.GetBlob(ctx, other.CID); err != nil || string(b.Data) != "other" {
		t.Errorf("other: %s %v", b.Data, err)
	}
	if _, err := w.repo.Apply(ctx, []pds.Write{{Action: pds.Delete, Collection: collection, Rkey: "a"}}, nil); err != nil {
		t.Fatal(err)
	}
	later()
	if _, err := w.repo.GetBlob(ctx, other.CID); err == nil {
		t.Error("a blob of a deleted record is kept")
	}
}
