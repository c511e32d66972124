package pds_test

import (
	"crypto/sha256"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"
	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"

	"atcr.io/internal/pds"
)

var collections = []syntax.NSID{collection, "com.example.other", "app.example.feed.post"}

func cidOf(data []byte) cid.Cid {
	sum := sha256.Sum256(data)
	hash, err := multihash.Encode(sum[:], multihash.SHA2_256)
	if err != nil {
		panic(err)
	}
	return cid.NewCidV1(cid.Raw, hash)
}

// simulation is a repo under random writes, on a clock of its own.
type simulation struct {
	t      *testing.T
	w      *world
	walker *walker
	random *rand.Rand
	model  model
	blobs  []cid.Cid

	mu  sync.Mutex
	now time.Time
}

func newSimulation(t *testing.T, seed uint64) *simulation {
	t.Helper()
	s := &simulation{t: t, random: rand.New(rand.NewPCG(seed, 1)), model: model{}, now: time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)}
	s.w = newWorldWith(t, pds.Config{Now: s.clock})
	s.walker = newWalker(t, s.w)
	return s
}

func (s *simulation) clock() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.now
}

func (s *simulation) pass(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now = s.now.Add(d)
}

// batch is a few writes of other paths than those in taken, and what they make of the model.
func (s *simulation) batch(taken map[string]bool, next model) []pds.Write {
	var writes []pds.Write
	for range 1 + s.random.IntN(8) {
		nsid := collections[s.random.IntN(len(collections))]
		rkey := syntax.RecordKey(fmt.Sprintf("k%d", s.random.IntN(25)))
		path := nsid.String() + "/" + rkey.String()
		if taken[path] {
			continue
		}
		taken[path] = true
		write := pds.Write{Action: pds.Put, Collection: nsid, Rkey: rkey}
		if _, there := next[path]; there && s.random.IntN(3) == 0 {
			write.Action = pds.Delete
			delete(next, path)
		} else {
			e := entry{n: s.random.IntN(4)}
			write.Value = fmt.Appendf(nil, `{"n":%d}`, e.n)
			if len(s.blobs) > 0 && s.random.IntN(4) == 0 {
				e.blob = s.blobs[s.random.IntN(len(s.blobs))]
				write.Value = fmt.Appendf(nil, `{"n":%d,"b":{"$type":"blob","ref":{"$link":%q},"mimeType":"text/plain","size":%d}}`, e.n, e.blob, blobBytes)
			}
			next[path] = e
		}
		writes = append(writes, write)
	}
	return writes
}

// write applies one batch, or several at once, which may share a commit.
func (s *simulation) write() {
	next, taken := maps.Clone(s.model), map[string]bool{}
	var wg sync.WaitGroup
	for range 1 + s.random.IntN(3)/2*3 {
		writes := s.batch(taken, next)
		wg.Go(func() {
			if _, err := s.w.repo.Apply(s.t.Context(), writes, nil); err != nil {
				s.t.Error(err)
			}
		})
	}
	wg.Wait()
	s.model = next
}

// clear deletes everything, in batches: a tree that was tall becomes the empty one.
func (s *simulation) clear() {
	var writes []pds.Write
	for path := range s.model {
		nsid, rkey, err := syntax.ParseRepoPath(path)
		if err != nil {
			s.t.Fatal(err)
		}
		writes = append(writes, pds.Write{Action: pds.Delete, Collection: nsid, Rkey: rkey})
	}
	if _, err := s.w.repo.Apply(s.t.Context(), writes, nil); err != nil {
		s.t.Fatal(err)
	}
	clear(s.model)
}

// refused is a batch of which the last write cannot be made: none of it may.
func (s *simulation) refused() {
	writes := s.batch(map[string]bool{}, maps.Clone(s.model))
	other := cidOf([]byte("another"))
	for _, bad := range []pds.Write{
		{Action: pds.Delete, Collection: "com.example.none", Rkey: "none"},
		{Action: pds.Put, Collection: "com.example.none", Rkey: "x", Value: []byte(`{}`), SwapRecord: &other},
		{Action: pds.Put, Collection: "com.example.none", Rkey: "x", Value: fmt.Appendf(nil, `{"b":{"$type":"blob","ref":{"$link":%q},"mimeType":"text/plain","size":1}}`, other)},
	} {
		if _, err := s.w.repo.Apply(s.t.Context(), append(slices.Clone(writes), bad), nil); err == nil {
			s.t.Fatalf("%+v was made", bad)
		}
	}
}

// blobBytes is what each blob has.
const blobBytes = 30

// storeBlob keeps a blob that records may name, for as long as it surely stays without.
func (s *simulation) storeBlob() {
	data := fmt.Appendf(nil, "%0*d", blobBytes, s.clock().UnixNano())
	b, err := s.w.repo.PutBlob(s.t.Context(), "text/plain", data)
	if err != nil {
		s.t.Fatal(err)
	}
	s.blobs = []cid.Cid{b.CID}
	for _, e := range s.model { // those that are named stay
		if e.blob.Defined() && !slices.Contains(s.blobs, e.blob) && len(s.blobs) < 4 {
			s.blobs = append(s.blobs, e.blob)
		}
	}
}

// event is a row of the sequence.
type event struct{ seq, at int64 }

func (s *simulation) events() (out []event) {
	s.t.Helper()
	rows, err := s.w.db.Reader().QueryContext(s.t.Context(), `SELECT seq, time FROM event ORDER BY seq`)
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var e event
		if err := rows.Scan(&e.seq, &e.at); err != nil {
			s.t.Fatal(err)
		}
		out = append(out, e)
	}
	if err := rows.Err(); err != nil {
		s.t.Fatal(err)
	}
	return out
}

// prune deletes events of more than 72 hours, and no other; the newest stays. It returns how many went.
func (s *simulation) prune() int {
	s.t.Helper()
	before := s.events()
	if err := s.w.host.Prune(s.t.Context()); err != nil {
		s.t.Fatal(err)
	}
	after := s.events()
	cutoff := s.clock().Add(-pds.KeepEvents).UnixMilli()
	old := 0 // the last one that is too old, and all before it
	for i, e := range before[:len(before)-1] {
		if e.at < cutoff {
			old = i + 1
		}
	}
	if !slices.Equal(after, before[old:]) {
		s.t.Fatalf("%d events are left of %d, should be %d", len(after), len(before), len(before)-old)
	}
	return old
}

// Would catch anything that head, tree, records, proofs, frames and blob references do not agree on after any
// sequence of writes, refusals, restarts, power cuts and leaps of the clock; events that go too early or never; and a seq or
// rev that falls.
func TestSimulatedHours(t *testing.T) {
	t.Parallel()
	for seed := range uint64(2) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			s := newSimulation(t, seed)
			pruned, back, cut := 0, 0, 0
			for step := range 80 {
				switch s.random.IntN(12) {
				case 0:
					s.refused()
				case 1:
					s.storeBlob()
				case 2:
					s.w.reopen(t)
				case 3:
					s.pass(-time.Duration(s.random.IntN(5*60)) * time.Minute)
					back++
				case 4:
					if rev := s.inspect(t, s.walker.on(s.crashed(t, -1))); rev != s.walker.rev {
						t.Fatalf("a power cut leaves %s, acknowledged was %s", rev, s.walker.rev)
					}
					cut++
				}
				if step%40 == 39 && len(s.model) > 0 {
					s.clear()
				} else {
					s.write()
				}
				s.walker.walk(t, s.model)
				pruned += s.prune()
				if s.pass(time.Duration(s.random.IntN(180)) * time.Minute); len(s.blobs) > 0 && step%4 == 0 {
					s.storeBlob() // a blob that no record names is kept for a day
				}
			}
			if pruned == 0 || back == 0 || cut == 0 {
				t.Errorf("%d events were pruned, the clock went back %d times, the power was cut %d times", pruned, back, cut)
			}
			rising(t, s)
		})
	}
}

// rising looks that seqs rise whatever the clock did, over the whole table.
func rising(t *testing.T, s *simulation) {
	t.Helper()
	last := event{}
	for _, e := range s.events() {
		if e.seq <= last.seq {
			t.Fatalf("seq %d after %d", e.seq, last.seq)
		}
		last = e
	}
	// A clock that stands in the past for long: what comes still goes behind all that was.
	s.pass(-30 * 24 * time.Hour)
	head, err := s.w.repo.Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		s.w.reopen(t)
		s.write()
		s.walker.walk(t, s.model)
	}
	after, err := s.w.repo.Head(t.Context())
	if newest := s.events(); err != nil || after.Rev < head.Rev || newest[len(newest)-1].seq <= last.seq && after.Rev != head.Rev {
		t.Errorf("rev %s after %s, seq %d after %d: %v", after.Rev, head.Rev, newest[len(newest)-1].seq, last.seq, err)
	}
	var n int
	if err := s.w.db.Reader().QueryRowContext(t.Context(), `SELECT count(*) FROM event`).Scan(&n); err != nil || n == 0 {
		t.Errorf("%d events: %v", n, err)
	}
}
