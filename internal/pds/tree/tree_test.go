package tree_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/ipfs/go-cid"

	"atcr.io/internal/pds/tree"
)

var (
	some  = cid.MustParse("bafyreie5cvv4h45feadgeuwhbcutmh6t2ceseocckahdoe6uat64zmz454")
	other = cid.MustParse("bafyreie5737gdxlw5i64vzichcalba3z2v5n6icifvx5xytvske7mr3hpm")
)

func set(t testing.TB, tr *tree.Tree, path string, c cid.Cid) {
	t.Helper()
	if err := tr.Set(path, c); err != nil {
		t.Fatal(err)
	}
}

func root(t testing.TB, tr *tree.Tree) string {
	t.Helper()
	c, err := tr.Root()
	if err != nil {
		t.Fatal(err)
	}
	return c.String()
}

// Would catch a tree that is another than all other implementations make of the same records. The values
// are those of the atproto interop tests.
func TestKnownRoots(t *testing.T) {
	t.Parallel()
	const l1, l2 = "bafyreiettyludka6fpgp33stwxfuwhkzlur6chs4d2v4nkmq2j3ogpdjem", "bafyreid2x5eqs4w4qxvc5jiwda4cien3gw2q6cshofxwnvv7iucrmfohpm"
	for _, test := range []struct {
		add, remove []string // the last parts of the keys
		want        string
	}{
		{nil, nil, "bafyreie5737gdxlw5i64vzichcalba3z2v5n6icifvx5xytvske7mr3hpm"},
		{[]string{"3fo"}, []string{"3fo"}, "bafyreie5737gdxlw5i64vzichcalba3z2v5n6icifvx5xytvske7mr3hpm"},
		{[]string{"3fx"}, []string{"3fx"}, "bafyreie5737gdxlw5i64vzichcalba3z2v5n6icifvx5xytvske7mr3hpm"}, // of a higher layer
		{[]string{"3fo"}, nil, "bafyreibj4lsc3aqnrvphp5xmrnfoorvru4wynt6lwidqbm2623a6tatzdu"},
		{[]string{"3fx"}, nil, "bafyreih7wfei65pxzhauoibu3ls7jgmkju4bspy4t2ha2qdjnzqvoy33ai"},
		{[]string{"3fp", "3fr", "3fs", "3ft", "4fc"}, nil, "bafyreicmahysq4n6wfuxo522m6dpiy7z7qzym3dzs756t5n7nfdgccwq7m"},
		{[]string{"3fn", "3fo", "3fp", "3fs", "3ft", "3fu"}, nil, "bafyreifnqrwbk6ffmyaz5qtujqrzf5qmxf7cbxvgzktl4e3gabuxbtatv4"},
		{[]string{"3fn", "3fo", "3fp", "3fs", "3ft", "3fu"}, []string{"3fs"}, "bafyreie4kjuxbwkhzg2i5dljaswcroeih4dgiqq6pazcmunwt2byd725vi"},
		{[]string{"3fo", "3fp", "3fr", "3fs", "3ft", "3fz", "4fc", "4fd", "4ff", "4fg", "4fh"}, nil, l1},
		{[]string{"3fo", "3fp", "3fr", "3fs", "3ft", "3fz", "4fc", "4fd", "4ff", "4fg", "4fh", "3fx"}, nil, l2},
		{[]string{"3fo", "3fp", "3fr", "3fs", "3ft", "3fz", "4fc", "4fd", "4ff", "4fg", "4fh", "3fx"}, []string{"3fx"}, l1},
	} {
		tr := tree.New()
		for _, k := range test.add {
			set(t, tr, "com.example.record/3jqfcqzm"+k+"2j", some)
		}
		for _, k := range test.remove {
			set(t, tr, "com.example.record/3jqfcqzm"+k+"2j", cid.Undef)
		}
		if got := root(t, tr); got != test.want {
			t.Errorf("%v less %v: %s, want %s", test.add, test.remove, got, test.want)
		}
	}
}

// Would catch a tree that depends on how it came to be, a diff that lacks a node which a reader of the last
// commits does not have, and a walk or a proof with other nodes than those.
func TestRandom(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(3, 4))
	tr, model := tree.New(), map[string]cid.Cid{}
	known := map[cid.Cid]bool{} // what somebody has who read every diff
	for step := range 200 {
		for range 1 + random.IntN(20) {
			path, c := fmt.Sprintf("com.example.thing/%d", random.IntN(300)), []cid.Cid{some, other, cid.Undef}[random.IntN(3)]
			if step%50 == 49 { // down to nothing
				for path := range model {
					set(t, tr, path, cid.Undef)
				}
				clear(model)
				break
			}
			if set(t, tr, path, c); c.Defined() {
				model[path] = c
			} else {
				delete(model, path)
			}
		}
		head, nodes, err := tr.Diff(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		inDiff := false
		for _, b := range nodes {
			known[b.CID] = true
			inDiff = inDiff || b.CID == head
		}
		if !inDiff {
			t.Fatal("the root is not in its diff")
		}
		fresh := tree.New()
		for path, c := range model {
			set(t, fresh, path, c)
		}
		if want := root(t, fresh); head.String() != want {
			t.Fatalf("step %d: root %s, of the same records %s", step, head, want)
		}
		var paths []string
		all := map[cid.Cid]bool{}
		err = tr.Walk(
			func(b tree.Block) error {
				if all[b.CID] = true; !known[b.CID] {
					t.Errorf("step %d: node %s was in no diff", step, b.CID)
				}
				return nil
			},
			func(path string, c cid.Cid) error {
				if paths = append(paths, path); model[path] != c {
					t.Errorf("%s is %s", path, c)
				}
				return nil
			})
		if err != nil || len(paths) != len(model) || !slices.IsSorted(paths) {
			t.Fatalf("step %d: %d of %d records: %v", step, len(paths), len(model), err)
		}
		path := fmt.Sprintf("com.example.thing/%d", random.IntN(300))
		if c, err := tr.Get(path); err != nil || c != model[path] {
			t.Errorf("%s: %s %v", path, c, err)
		}
		proof, err := tr.Proof(path)
		if err != nil || len(proof) == 0 || proof[0].CID != head {
			t.Fatalf("proof of %s: %d nodes: %v", path, len(proof), err)
		}
		for _, b := range proof {
			if !all[b.CID] {
				t.Errorf("a node of the proof is not in the tree")
			}
		}
	}
}
