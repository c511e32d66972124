package pds_test

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"testing"

	"github.com/bluesky-social/indigo/atproto/syntax"
	"github.com/ipfs/go-cid"

	"atcr.io/internal/pds"
)

// full is the whole repo as a CAR, and its blocks.
func (s *site) full(t testing.TB) (blocks map[cid.Cid][]byte, rev string) {
	t.Helper()
	var car bytes.Buffer
	if err := s.repo.Export(t.Context(), &car); err != nil {
		t.Fatal(err)
	}
	_, blocks = blocksOf(t, car.Bytes())
	head, err := s.repo.Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return blocks, head.Rev
}

// Would catch a difference from which nobody gets to the head, one that leaks what was deleted, and one that is
// the whole repo in disguise.
func TestGetRepoSince(t *testing.T) {
	t.Parallel()
	s := newSite(t, pds.Config{})
	s.fill(t, 150)
	random := rand.New(rand.NewPCG(3, 4))
	type state struct {
		blocks map[cid.Cid][]byte
		rev    string
	}
	var states []state
	keep := func() {
		blocks, rev := s.full(t)
		states = append(states, state{blocks, rev})
	}
	keep()
	live := map[string]bool{}
	for i := range 150 {
		live[fmt.Sprintf("k%03d", i)] = true
	}
	for range 12 {
		batch := map[string]pds.Write{}
		for range 1 + random.IntN(5) {
			rkey := fmt.Sprintf("k%03d", random.IntN(160))
			if live[rkey] && random.IntN(2) == 0 {
				batch[rkey] = pds.Write{Action: pds.Delete, Collection: collection, Rkey: syntax.RecordKey(rkey)}
				delete(live, rkey)
			} else {
				batch[rkey] = put(rkey, random.IntN(200)) // some equal to others: they share a block
				live[rkey] = true
			}
		}
		var writes []pds.Write
		for _, w := range batch {
			writes = append(writes, w)
		}
		if _, err := s.repo.Apply(t.Context(), writes, nil); err != nil {
			t.Fatal(err)
		}
		keep()
	}
	now := states[len(states)-1]
	for i, old := range states {
		a := s.do(t, http.MethodGet, "com.atproto.sync.getRepo?did="+did.String()+"&since="+old.rev, nil)
		if a.status != 200 {
			t.Fatalf("%d %s", a.status, a.body)
		}
		_, diff := blocksOf(t, a.body)
		got := maps.Clone(old.blocks)
		maps.Copy(got, diff)
		for c := range now.blocks {
			if got[c] == nil {
				t.Errorf("since %d: %s is missing", i, c)
			}
		}
		for c := range diff {
			if now.blocks[c] == nil {
				t.Errorf("since %d: %s is not of the head", i, c)
			}
		}
		if len(diff) >= len(now.blocks)/2 {
			t.Errorf("since %d: %d blocks of %d", i, len(diff), len(now.blocks))
		}
		if i == len(states)-1 && len(diff) != 1 {
			t.Errorf("since the head: %d blocks", len(diff))
		}
	}
	if a := s.do(t, http.MethodGet, "com.atproto.sync.getRepo?did="+did.String()+"&since=yesterday", nil); a.errorName() != "InvalidRequest" {
		t.Errorf("%d %s", a.status, a.body)
	}
}
