package pds_test

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	comatproto "github.com/bluesky-social/indigo/api/atproto"
	"github.com/bluesky-social/indigo/atproto/atcrypto"
	"github.com/bluesky-social/indigo/atproto/repo"
	"github.com/bluesky-social/indigo/atproto/syntax"
	"github.com/ipfs/go-cid"

	"atcr.io/internal/pds"
	"atcr.io/internal/sqldb"
)

const (
	did        = syntax.DID("did:web:hold.example")
	collection = syntax.NSID("com.example.thing")
)

// world is a host with one repo, and what it takes to open it again.
type world struct {
	path   string
	key    *atcrypto.PrivateKeyK256
	config pds.Config
	db     *sqldb.DB
	host   *pds.Host
	repo   *pds.Repo
}

func newWorld(t testing.TB) *world {
	t.Helper()
	return newWorldWith(t, pds.Config{})
}

func newWorldWith(t testing.TB, config pds.Config) *world {
	t.Helper()
	key, err := atcrypto.GeneratePrivateKeyK256()
	if err != nil {
		t.Fatal(err)
	}
	w := &world{path: filepath.Join(t.TempDir(), "db.sqlite3"), key: key, config: config}
	w.open(t)
	t.Cleanup(func() { _ = w.db.Close() })
	return w
}

func (w *world) open(t testing.TB) {
	t.Helper()
	var err error
	if w.db, err = sqldb.Open(context.Background(), w.path); err != nil {
		t.Fatal(err)
	}
	w.config.DB = w.db
	if w.host, err = pds.Open(t.Context(), w.config); err != nil {
		t.Fatal(err)
	}
	if w.repo, err = w.host.AddRepo(t.Context(), did, w.key, "hold.example"); err != nil {
		t.Fatal(err)
	}
}

func (w *world) reopen(t testing.TB) {
	t.Helper()
	w.host.Close()
	if err := w.db.Close(); err != nil {
		t.Fatal(err)
	}
	w.open(t)
}

func value(n int) json.RawMessage {
	return json.RawMessage(fmt.Sprintf(`{"$type":"com.example.thing","n":%d}`, n))
}

func put(rkey string, n int) pds.Write {
	return pds.Write{Action: pds.Put, Collection: collection, Rkey: syntax.RecordKey(rkey), Value: value(n)}
}

// frames are all events of a kind, decoded by indigo's types, not ours.
func (w *world) commits(t testing.TB) []*comatproto.SyncSubscribeRepos_Commit {
	t.Helper()
	rows, err := w.db.Reader().QueryContext(t.Context(), `SELECT seq, frame FROM event ORDER BY seq`)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = rows.Close() }()
	var out []*comatproto.SyncSubscribeRepos_Commit
	header := []byte("\xa2atg#commitbop\x01")
	for rows.Next() {
		var seq int64
		var frame []byte
		if err := rows.Scan(&seq, &frame); err != nil {
			t.Fatal(err)
		}
		if body, ok := bytes.CutPrefix(frame, header); ok {
			var m comatproto.SyncSubscribeRepos_Commit
			if err := m.UnmarshalCBOR(bytes.NewReader(body)); err != nil {
				t.Fatal(err)
			}
			if m.Seq != seq {
				t.Errorf("seq %d in the frame of %d", m.Seq, seq)
			}
			out = append(out, &m)
		}
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return out
}

// check holds the repo against the model: records, export, signature, and the chain of frames.
func (w *world) check(t testing.TB, model map[string]int) {
	t.Helper()
	var car bytes.Buffer
	if err := w.repo.Export(t.Context(), &car); err != nil {
		t.Fatal(err)
	}
	commit, exported, err := repo.LoadRepoFromCAR(t.Context(), &car)
	if err != nil {
		t.Fatal(err)
	}
	public, err := w.key.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	if err := commit.VerifySignature(public); err != nil {
		t.Fatal(err)
	}
	paths := map[string]cid.Cid{}
	if err := exported.MST.WriteToMap(paths); err != nil {
		t.Fatal(err)
	}
	if len(paths) != len(model) {
		t.Fatalf("%d records exported, want %d", len(paths), len(model))
	}
	for rkey, n := range model {
		record, err := w.repo.GetRecord(t.Context(), collection, syntax.RecordKey(rkey))
		if err != nil || paths[collection.String()+"/"+rkey] != record.CID || !strings.Contains(string(record.Value), fmt.Sprintf(`"n":%d`, n)) {
			t.Fatalf("%s: %s %v", rkey, record.Value, err)
		}
	}
	var last *comatproto.SyncSubscribeRepos_Commit
	for _, m := range w.commits(t) {
		if _, err := repo.VerifyCommitMessage(t.Context(), m); err != nil {
			t.Fatal(err)
		}
		if m.PrevData == nil || m.Since == nil {
			t.Fatal("a commit without prevData or since")
		}
		if last != nil && (m.Rev <= last.Rev || m.Seq <= last.Seq || *m.Since != last.Rev) {
			t.Fatalf("rev %s since %s seq %d after rev %s seq %d", m.Rev, *m.Since, m.Seq, last.Rev, last.Seq)
		}
		last = m
	}
	if last != nil && last.Rev != commit.Rev {
		t.Fatalf("the last frame is of %s, the head is %s", last.Rev, commit.Rev)
	}
}

// Would catch a tree, a frame or a row that goes its own way after any sequence of writes, emptied repos
// and restarts included.
func TestRandomWrites(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	random := rand.New(rand.NewPCG(1, 2))
	model := map[string]int{}
	for step := range 150 {
		batch := map[string]pds.Write{}
		for range 1 + random.IntN(8) {
			rkey := fmt.Sprintf("k%d", random.IntN(40))
			if _, ok := model[rkey]; ok && random.IntN(2) == 0 {
				batch[rkey] = pds.Write{Action: pds.Delete, Collection: collection, Rkey: syntax.RecordKey(rkey)}
			} else {
				batch[rkey] = put(rkey, random.IntN(3))
			}
		}
		if step%50 == 49 { // empty it, down to the last key
			clear(batch)
			for rkey := range model {
				batch[rkey] = pds.Write{Action: pds.Delete, Collection: collection, Rkey: syntax.RecordKey(rkey)}
			}
		}
		writes := make([]pds.Write, 0, len(batch))
		for rkey, write := range batch {
			writes = append(writes, write)
			if write.Action == pds.Delete {
				delete(model, rkey)
			} else {
				var v struct{ N int }
				if err := json.Unmarshal(write.Value, &v); err != nil {
					t.Fatal(err)
				}
				model[rkey] = v.N
			}
		}
		if _, err := w.repo.Apply(t.Context(), writes, nil); err != nil {
			t.Fatal(err)
		}
		if step%30 == 0 {
			w.reopen(t)
		}
		if step%10 == 9 {
			w.check(t, model)
		}
	}
}

// Would catch callers that get each other's results, and a commit for each of many that came together.
func TestConcurrent(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	model := map[string]int{}
	var wg sync.WaitGroup
	var mu sync.Mutex
	for i := range 64 {
		wg.Go(func() {
			rkey := fmt.Sprintf("c%d", i)
			result, err := w.repo.Apply(t.Context(), []pds.Write{{Action: pds.Create, Collection: collection, Rkey: syntax.RecordKey(rkey), Value: value(i)}}, nil)
			if err != nil || len(result.Writes) != 1 || result.Writes[0].URI.RecordKey().String() != rkey {
				t.Errorf("%+v %v", result, err)
			}
			mu.Lock()
			defer mu.Unlock()
			model[rkey] = i
		})
	}
	// Two of the same record: one of them wins, the other is told.
	failures := 0
	for range 2 {
		wg.Go(func() {
			_, err := w.repo.Apply(t.Context(), []pds.Write{{Action: pds.Create, Collection: collection, Rkey: "same", Value: value(1)}}, nil)
			mu.Lock()
			defer mu.Unlock()
			if errors.Is(err, pds.ErrRecordExists) {
				failures++
			} else if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	model["same"] = 1
	if failures != 1 {
		t.Errorf("%d of two creates failed", failures)
	}
	w.check(t, model)
	if n := len(w.commits(t)); n > 60 {
		t.Errorf("%d commits for 66 callers", n)
	}
}

// Would catch a batch of which a part is made, and a wrong word for why not.
func TestRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	if _, err := w.repo.Apply(t.Context(), []pds.Write{put("a", 1)}, nil); err != nil {
		t.Fatal(err)
	}
	undef, other := cid.Undef, cid.MustParse("bafkreibme22gw2h7y2h7tg2fhqotaqjucnbc24deqo72b6mkl2egezxhvy")
	swapped := put("a", 2)
	swapped.SwapRecord = &undef
	stale := put("a", 2)
	stale.SwapRecord = &other
	record := func(raw string) pds.Write {
		return pds.Write{Action: pds.Put, Collection: collection, Rkey: "x", Value: json.RawMessage(raw)}
	}
	for name, test := range map[string]struct {
		write pds.Write
		want  error
	}{
		"create again":   {pds.Write{Action: pds.Create, Collection: collection, Rkey: "a", Value: value(1)}, pds.ErrRecordExists},
		"update nothing": {pds.Write{Action: pds.Update, Collection: collection, Rkey: "none", Value: value(1)}, pds.ErrRecordNotFound},
		"delete nothing": {pds.Write{Action: pds.Delete, Collection: collection, Rkey: "none"}, pds.ErrRecordNotFound},
		"swap nothing":   {swapped, pds.ErrInvalidSwap},
		"swap another":   {stale, pds.ErrInvalidSwap},
		"collection":     {pds.Write{Action: pds.Put, Collection: "nope", Rkey: "a", Value: value(1)}, pds.ErrInvalidRecord},
		"rkey":           {put("a/b", 1), pds.ErrInvalidRecord},
		"rkey dots":      {put("..", 1), pds.ErrInvalidRecord},
		"not JSON":       {record(`hello`), pds.ErrInvalidRecord},
		"array":          {record(`[]`), pds.ErrInvalidRecord},
		"float":          {record(`{"n":1.5}`), pds.ErrInvalidRecord},
		"type":           {record(`{"$type":"com.example.other"}`), pds.ErrInvalidRecord},
		"deep":           {record(strings.Repeat(`{"a":`, 5000) + "1" + strings.Repeat("}", 5000)), pds.ErrInvalidRecord},
		"large":          {record(`{"s":"` + strings.Repeat("x", pds.MaxRecordBytes) + `"}`), pds.ErrInvalidRecord},
		"no blob":        {record(`{"b":{"$type":"blob","ref":{"$link":"` + other.String() + `"},"mimeType":"text/plain","size":1}}`), pds.ErrBlobNotFound},
	} {
		if _, err := w.repo.Apply(t.Context(), []pds.Write{put("b", 1), test.write}, nil); !errors.Is(err, test.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := w.repo.Apply(t.Context(), []pds.Write{put("b", 1)}, &other); !errors.Is(err, pds.ErrInvalidSwap) {
		t.Errorf("swapCommit: %v", err)
	}
	if _, err := w.repo.Apply(t.Context(), []pds.Write{put("b", 1), put("b", 2)}, nil); !errors.Is(err, pds.ErrInvalidRecord) {
		t.Errorf("one path twice: %v", err)
	}
	before := len(w.commits(t))
	if _, err := w.repo.Apply(t.Context(), []pds.Write{put("a", 1)}, nil); err != nil || len(w.commits(t)) != before {
		t.Errorf("an equal record made a commit: %v", err)
	}
	w.check(t, map[string]int{"a": 1})
}

// Would catch a start on records that the head was not signed over, and on another's key.
func TestDamaged(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	if _, err := w.repo.Apply(t.Context(), []pds.Write{put("a", 1), put("b", 2)}, nil); err != nil {
		t.Fatal(err)
	}
	other, err := atcrypto.GeneratePrivateKeyK256()
	if err != nil {
		t.Fatal(err)
	}
	again := func(key atcrypto.PrivateKey) error {
		h, err := pds.Open(t.Context(), pds.Config{DB: w.db})
		if err != nil {
			t.Fatal(err)
		}
		_, err = h.AddRepo(t.Context(), did, key, "")
		return err
	}
	if err := again(other); !errors.Is(err, pds.ErrOtherKey) {
		t.Errorf("another key: %v", err)
	}
	if err := again(w.key); err != nil {
		t.Errorf("the same key: %v", err)
	}
	err = w.db.Write(t.Context(), func(tx *sql.Tx) error {
		_, err := tx.Exec(`DELETE FROM record WHERE rkey = 'a'`)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := again(w.key); !errors.Is(err, pds.ErrCorrupt) {
		t.Errorf("a row is gone: %v", err)
	}
}

// BenchmarkCommit compares commits with the plainest thing the same database does: one insert a commit.
func BenchmarkCommit(b *testing.B) {
	b.Run("plain", func(b *testing.B) {
		w := newWorld(b)
		if err := w.db.Migrate(b.Context(), "plain", []string{`CREATE TABLE plain (n INTEGER PRIMARY KEY, v BLOB NOT NULL) STRICT`}); err != nil {
			b.Fatal(err)
		}
		b.ResetTimer()
		for i := range b.N {
			err := w.db.Write(b.Context(), func(tx *sql.Tx) error {
				_, err := tx.Exec(`INSERT INTO plain VALUES (?, ?)`, i, []byte(value(i)))
				return err
			})
			if err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "records/s")
	})
	for _, size := range []int{1, 200} {
		b.Run(fmt.Sprintf("batch of %d", size), func(b *testing.B) {
			w := newWorld(b)
			b.ResetTimer()
			for i := range b.N {
				writes := make([]pds.Write, size)
				for j := range writes {
					writes[j] = put(fmt.Sprintf("r%d-%d", i, j), j)
				}
				if _, err := w.repo.Apply(b.Context(), writes, nil); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.N*size)/b.Elapsed().Seconds(), "records/s")
		})
	}
	b.Run("8 callers", func(b *testing.B) {
		w := newWorld(b)
		b.ResetTimer()
		var wg sync.WaitGroup
		for c := range 8 {
			wg.Go(func() {
				for i := c; i < b.N; i += 8 {
					if _, err := w.repo.Apply(b.Context(), []pds.Write{put(fmt.Sprintf("r%d", i), i)}, nil); err != nil {
						b.Error(err)
					}
				}
			})
		}
		wg.Wait()
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "records/s")
	})
}
