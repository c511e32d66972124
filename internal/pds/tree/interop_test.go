package tree_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/ipfs/go-cid"

	"atcr.io/internal/pds/tree"
	"atcr.io/test/vectors"
)

// Would catch a tree of another shape than everybody else's, after adds and deletes that split and join its
// levels, and a commit that leaves out blocks which a reader needs to check it.
func TestCommitProofs(t *testing.T) {
	t.Parallel()
	var fixtures []struct {
		Comment, LeafValue                string
		Keys, Adds, Dels, BlocksInProof   []string
		RootBeforeCommit, RootAfterCommit string
	}
	if err := json.Unmarshal(vectors.Read(t, "atproto/repo/testdata/commit-proof-fixtures.json"), &fixtures); err != nil || len(fixtures) == 0 {
		t.Fatal(len(fixtures), err)
	}
	for _, f := range fixtures {
		leaf, err := cid.Decode(f.LeafValue)
		if err != nil {
			t.Fatal(err)
		}
		tr := tree.New()
		set := func(keys []string, c cid.Cid) {
			t.Helper()
			for _, k := range keys {
				if err := tr.Set(k, c); err != nil {
					t.Fatalf("%s: %s: %v", f.Comment, k, err)
				}
			}
		}
		set(f.Keys, leaf)
		before, _, err := tr.Diff(t.Context())
		if err != nil || before.String() != f.RootBeforeCommit {
			t.Errorf("%s: before: %s, want %s: %v", f.Comment, before, f.RootBeforeCommit, err)
			continue
		}
		set(f.Adds, leaf)
		set(f.Dels, cid.Undef)
		proofs := map[string]bool{}
		after, blocks, err := tr.Diff(t.Context())
		if err != nil || after.String() != f.RootAfterCommit {
			t.Errorf("%s: after: %s, want %s: %v", f.Comment, after, f.RootAfterCommit, err)
			continue
		}
		for _, b := range blocks {
			proofs[b.CID.String()] = true
		}
		for _, path := range slices.Concat(f.Adds, f.Dels) {
			proof, err := tr.Proof(path)
			if err != nil {
				t.Fatal(err)
			}
			for _, b := range proof {
				proofs[b.CID.String()] = true
			}
		}
		for _, want := range f.BlocksInProof {
			if !proofs[want] {
				t.Errorf("%s: the proof lacks %s", f.Comment, want)
			}
		}
	}
}

// Would catch a tree whose shape depends on the order in which its keys came or went.
func TestExampleKeys(t *testing.T) {
	t.Parallel()
	var keys []string
	lines := bufio.NewScanner(bytes.NewReader(vectors.Read(t, "atproto/repo/mst/testdata/example_keys.txt")))
	for lines.Scan() {
		if k := strings.TrimSpace(lines.Text()); k != "" {
			keys = append(keys, k)
		}
	}
	leaf, err := cid.Decode("bafyreie5cvv4h45feadgeuwhbcutmh6t2ceseocckahdoe6uat64zmz454")
	if err != nil || len(keys) < 100 {
		t.Fatal(len(keys), err)
	}
	build := func(keys []string) *tree.Tree {
		t.Helper()
		tr := tree.New()
		for _, k := range keys {
			if err := tr.Set(k, leaf); err != nil {
				t.Fatal(err)
			}
		}
		return tr
	}
	root := func(tr *tree.Tree) string {
		t.Helper()
		c, err := tr.Root()
		if err != nil {
			t.Fatal(err)
		}
		return c.String()
	}
	reversed := slices.Clone(keys)
	slices.Reverse(reversed)
	if a, b := root(build(keys)), root(build(reversed)); a != b {
		t.Errorf("%s and %s", a, b)
	}
	half, tr := root(build(keys[:len(keys)/2])), build(keys)
	for _, k := range keys[len(keys)/2:] {
		if err := tr.Set(k, cid.Undef); err != nil {
			t.Fatal(err)
		}
	}
	if got := root(tr); got != half {
		t.Errorf("after deletes %s, built anew %s", got, half)
	}
}
