package pds_test

import (
	"database/sql/driver"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
	"modernc.org/sqlite"

	"atcr.io/internal/pds"
)

// steps counts the statements of a transaction in which a trigger asks, and fails, or takes the files as a power
// cut would leave them, at the n-th.
type steps struct {
	mu       sync.Mutex
	at, seen int
	fired    string
	act      func() error // at the step; its error ends the transaction
}

func (s *steps) step(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.at == 0 {
		return nil
	}
	if s.seen++; s.seen != s.at {
		return nil
	}
	s.fired = name
	return s.act()
}

// arm has the n-th step from now do act.
func (s *steps) arm(n int, act func() error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.at, s.seen, s.fired, s.act = n, 0, "", act
}

var (
	errInjected = errors.New("injected")
	stepping    sync.Map // by the name that a database's triggers give
	registerSQL = sync.OnceValue(func() error {
		return sqlite.RegisterScalarFunction("pds_test_step", 2, func(_ *sqlite.FunctionContext, args []driver.Value) (driver.Value, error) {
			id, _ := args[0].(string)
			name, _ := args[1].(string)
			if s, ok := stepping.Load(id); ok {
				return int64(0), s.(*steps).step(name)
			}
			return int64(0), nil
		})
	})
)

// steppedTables are those that a commit writes, and what is written beside commits.
var steppedTables = map[string][]string{
	"record": {"INSERT", "UPDATE", "DELETE"}, "repo": {"UPDATE"}, "event": {"INSERT", "DELETE"}, "atblob_ref": {"INSERT", "DELETE"}, "atblob": {"INSERT", "DELETE"},
}

// besideCommits are the steps of those that no commit has.
var besideCommits = []string{"BEFORE DELETE event", "AFTER DELETE event", "BEFORE INSERT atblob", "AFTER INSERT atblob", "BEFORE DELETE atblob", "AFTER DELETE atblob"}

// newStepped is a world whose tables ask at every row that is written.
func newStepped(t *testing.T) (*simulation, *steps) {
	t.Helper()
	if err := registerSQL(); err != nil {
		t.Fatal(err)
	}
	s, at := newSimulation(t, 11), &steps{}
	stepping.Store(t.Name(), at)
	t.Cleanup(func() { stepping.Delete(t.Name()) })
	s.w.reopen(t) // connections that know the function
	for table, kinds := range steppedTables {
		for _, kind := range kinds {
			for _, when := range []string{"BEFORE", "AFTER"} {
				name := when + " " + kind + " " + table
				exec(t, s.w.db, fmt.Sprintf(`CREATE TRIGGER "%s" %s %s ON %s BEGIN SELECT pds_test_step('%s', '%s'); END`, name, when, kind, table, t.Name(), name))
			}
		}
	}
	return s, at
}

// crashed opens a copy of the database's files, of the log only the first keep bytes (-1: all).
func (s *simulation) crashed(t *testing.T, keep int64) *world {
	t.Helper()
	w := &world{path: filepath.Join(t.TempDir(), "db.sqlite3"), key: s.w.key, config: s.w.config}
	if err := snapshot(s.w.path, w.path, keep); err != nil {
		t.Fatal(err)
	}
	w.open(t)
	return w
}

// snapshot copies a database and its log as they are on the disk.
func snapshot(from, to string, keep int64) error {
	for _, suffix := range []string{"", "-wal"} {
		raw, err := os.ReadFile(from + suffix)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if suffix != "" && keep >= 0 {
			raw = raw[:min(keep, int64(len(raw)))]
		}
		if err := os.WriteFile(to+suffix, raw, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// anew is a walker of w that knows nothing but how the repo began.
func (s *simulation) anew(w *world) *walker {
	return &walker{w: w, paths: map[string]cid.Cid{}, rev: s.walker.first.Rev, data: s.walker.first.Data, history: map[string]model{}}
}

// inspect has fresh walk a world that was opened after a crash: it must be what the history has at its rev, whole, and
// go on.
func (s *simulation) inspect(t *testing.T, fresh *walker) (rev string) {
	t.Helper()
	w := fresh.w
	defer func() {
		w.host.Close()
		if err := w.db.Close(); err != nil {
			t.Error(err)
		}
	}()
	head, err := w.repo.Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	m, known := s.walker.history[head.Rev]
	if !known {
		t.Fatalf("after a crash the repo is at %s, which never was", head.Rev)
	}
	fresh.walk(t, m)
	if records, err := w.repo.Verify(t.Context()); err != nil || records != len(m) {
		t.Fatalf("%d records, should be %d: %v", records, len(m), err)
	}
	next := maps.Clone(m)
	next[collections[0].String()+"/after"] = entry{n: 1}
	if _, err := w.repo.Apply(t.Context(), []pds.Write{put("after", 1)}, nil); err != nil {
		t.Fatalf("it does not go on: %v", err)
	}
	fresh.walk(t, next)
	return head.Rev
}

// Would catch an order of statements in which a failure or a power cut leaves half a commit, loses one that was
// acknowledged, or a repo that does not open, or does not go on.
func TestCrashAtEachStep(t *testing.T) {
	t.Parallel()
	s, at := newStepped(t)
	s.storeBlob()
	for range 6 {
		s.write()
		s.walker.walk(t, s.model)
	}
	names := map[string]bool{}
	for round := range 2 {
		s.storeBlob()
		writes := s.full()
		before := s.walker.rev
		for n := 1; ; n++ {
			copied := filepath.Join(t.TempDir(), "db.sqlite3")
			at.arm(n, func() error { return errors.Join(errInjected, snapshot(s.w.path, copied, -1)) })
			_, err := s.w.repo.Apply(t.Context(), writes, nil)
			fired := at.fired
			at.arm(0, nil)
			if fired == "" {
				if err != nil {
					t.Fatal(err)
				}
				break
			}
			names[fired] = true
			if err == nil {
				t.Fatalf("%s failed, and the commit was acknowledged", fired)
			}
			s.walker.walk(t, s.model)
			w := &world{path: copied, key: s.w.key, config: s.w.config}
			if w.open(t); s.inspect(t, s.anew(w)) != before {
				t.Fatalf("%s: a commit outlived a power cut in its middle", fired)
			}
		}
		s.made(writes)
		s.walker.walk(t, s.model)
		if got := s.inspect(t, s.anew(s.crashed(t, -1))); got != s.walker.rev {
			t.Fatalf("round %d: a power cut after COMMIT leaves %s, acknowledged was %s", round, got, s.walker.rev)
		}
	}
	for table, kinds := range steppedTables {
		for _, kind := range kinds {
			if table != "atblob_ref" && !slices.Contains(besideCommits, "AFTER "+kind+" "+table) && (!names["BEFORE "+kind+" "+table] || !names["AFTER "+kind+" "+table]) {
				t.Errorf("no fault fired at %s %s: %v", kind, table, names)
			}
		}
	}
}

// Would catch a blob that is kept half, or one that a record names and goes with those that none does; and events of
// which some go and others, which are older, stay.
func TestCrashBesideCommits(t *testing.T) {
	t.Parallel()
	s, at := newStepped(t)
	for range 8 {
		s.pass(time.Minute)
		s.storeBlob() // another one
		s.write()
		s.walker.walk(t, s.model)
	}
	s.pass(4 * 24 * time.Hour) // what is there may go, but for the newest event and blobs with names
	names := map[string]bool{}
	for what, do := range map[string]func() error{
		"a blob": func() error {
			_, err := s.w.repo.PutBlob(t.Context(), "text/plain", []byte("another"))
			return err
		},
		"pruning": func() error { return s.w.host.Prune(t.Context()) },
	} {
		before := s.events()
		for n := 1; ; n++ {
			copied := filepath.Join(t.TempDir(), "db.sqlite3")
			at.arm(n, func() error { return errors.Join(errInjected, snapshot(s.w.path, copied, -1)) })
			err := do()
			fired := at.fired
			at.arm(0, nil)
			if fired == "" {
				if err != nil {
					t.Fatal(err)
				}
				break
			}
			names[fired] = true
			if err == nil {
				t.Fatalf("%s: %s failed, and it was acknowledged", what, fired)
			}
			if !slices.Equal(s.events(), before) {
				t.Fatalf("%s: %s failed, and events went", what, fired)
			}
			s.walker.walk(t, s.model)
			w := &world{path: copied, key: s.w.key, config: s.w.config}
			if w.open(t); s.inspect(t, s.walker.on(w)) != s.walker.rev {
				t.Fatalf("%s: %s: a power cut leaves another commit", what, fired)
			}
		}
		s.walker.walk(t, s.model)
		s.inspect(t, s.walker.on(s.crashed(t, -1)))
	}
	if len(s.events()) != 1 {
		t.Errorf("%d events are left", len(s.events()))
	}
	for _, name := range besideCommits {
		if !names[name] {
			t.Errorf("no fault fired at %s: %v", name, names)
		}
	}
}

// Would catch a log that is cut short by a disk that promised more than it kept, and makes a repo that does not
// open, or is in a state that never was.
func TestTornLog(t *testing.T) {
	t.Parallel()
	s := newSimulation(t, 5)
	for range 4 {
		s.write()
		s.walker.walk(t, s.model)
	}
	s.w.reopen(t) // the log begins anew
	revs := map[string]bool{}
	for range 4 { // one commit each, so that every state is known
		writes := s.full()
		if _, err := s.w.repo.Apply(t.Context(), writes, nil); err != nil {
			t.Fatal(err)
		}
		s.made(writes)
		s.walker.walk(t, s.model)
	}
	info, err := os.Stat(s.w.path + "-wal")
	if err != nil || info.Size() < 4096 {
		t.Fatalf("there is no log to cut: %v", err)
	}
	const cuts = 24
	for i := range int64(cuts + 1) {
		revs[s.inspect(t, s.anew(s.crashed(t, info.Size()*i/cuts)))] = true
	}
	if len(revs) < 3 {
		t.Errorf("the cuts led to %d states", len(revs))
	}
}

// full is a batch that creates, updates and deletes.
func (s *simulation) full() []pds.Write {
	for {
		writes := s.batch(map[string]bool{}, maps.Clone(s.model))
		var creates, updates, deletes int
		for _, w := range writes {
			before, there := s.model[w.Collection.String()+"/"+w.Rkey.String()]
			switch {
			case w.Action == pds.Delete:
				deletes++
			case !there:
				creates++
			case before != entryOf(s.t, w.Value):
				updates++
			}
		}
		if creates > 0 && updates > 0 && deletes > 0 {
			return writes
		}
	}
}

// entryOf is what the model says of a record.
func entryOf(t testing.TB, value []byte) entry {
	t.Helper()
	var v struct {
		N int
		B *struct {
			Ref struct {
				Link string `json:"$link"`
			}
		}
	}
	if err := json.Unmarshal(value, &v); err != nil {
		t.Fatal(err)
	}
	e := entry{n: v.N}
	if v.B != nil {
		e.blob = cid.MustParse(v.B.Ref.Link)
	}
	return e
}

// made enters the batch into the model.
func (s *simulation) made(writes []pds.Write) {
	for _, w := range writes {
		path := w.Collection.String() + "/" + w.Rkey.String()
		if w.Action == pds.Delete {
			delete(s.model, path)
			continue
		}
		s.model[path] = entryOf(s.t, w.Value)
	}
}
