package tree_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/ipfs/go-cid"

	"atcr.io/internal/pds/tree"
)

// Would catch a tree that is another when it is built in one pass, that cannot be changed afterwards, or whose nodes
// are not placed where a reader in pre-order needs them.
func TestBuilder(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(1, 9))
	for _, size := range []int{0, 1, 2, 3, 10, 100, 2000} {
		for range 8 {
			slow, paths := tree.New(), map[string]cid.Cid{}
			for len(paths) < size {
				path := fmt.Sprintf("com.example.c%d/%x", random.IntN(3), random.Uint64())
				paths[path] = []cid.Cid{some, other}[random.IntN(2)]
				set(t, slow, path, paths[path])
			}
			var placed [][3]int
			b := tree.NewBuilder(true, func(b tree.Block, first, height int) error {
				placed = append(placed, [3]int{first, -height, len(b.Data)})
				return nil
			})
			keys := slices.Sorted(maps.Keys(paths))
			for _, path := range keys {
				if err := b.Add(path, paths[path]); err != nil {
					t.Fatal(err)
				}
			}
			got, fast, err := b.Finish()
			if err != nil || got.String() != root(t, slow) || root(t, fast) != root(t, slow) {
				t.Fatalf("%d records: %s, want %s: %v", size, got, root(t, slow), err)
			}
			// In pre-order a node comes before its leftmost record, and higher ones first.
			slices.SortFunc(placed, func(a, b [3]int) int { return slices.Compare(a[:2], b[:2]) })
			var want [][3]int
			at := 0
			err = slow.Walk(func(b tree.Block) error { want = append(want, [3]int{at, 0, len(b.Data)}); return nil },
				func(string, cid.Cid) error { at++; return nil })
			if err != nil || len(want) != len(placed) {
				t.Fatalf("%d nodes, want %d: %v", len(placed), len(want), err)
			}
			for i := range want {
				if want[i][0] != placed[i][0] || want[i][2] != placed[i][2] {
					t.Fatalf("node %d is %v, want %v", i, placed[i], want[i])
				}
			}
			for range min(size, 20) { // what was built goes on as the other does
				path := keys[random.IntN(len(keys))]
				c := []cid.Cid{cid.Undef, some, other}[random.IntN(3)]
				set(t, slow, path, c)
				set(t, fast, path, c)
				set(t, slow, path+"x", some)
				set(t, fast, path+"x", some)
				if root(t, slow) != root(t, fast) {
					t.Fatalf("%d records: another tree after a change of %s", size, path)
				}
			}
		}
	}
	b := tree.NewBuilder(false, nil)
	for i, path := range []string{"b/b", "b/a"} {
		if err := b.Add(path, some); (err != nil) != (i == 1) {
			t.Errorf("%s: %v", path, err)
		}
	}
}
