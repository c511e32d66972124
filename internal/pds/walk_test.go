package pds_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/bits"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/bluesky-social/indigo/atproto/atdata"
	"github.com/bluesky-social/indigo/atproto/repo"
	"github.com/bluesky-social/indigo/atproto/syntax"
	"github.com/ipfs/go-cid"

	"atcr.io/internal/pds"
)

// entry is what a record of the model says: a number, and a blob that it names or none.
type entry struct {
	n    int
	blob cid.Cid
}

// model is what the records should be, by path.
type model map[string]entry

// walker holds a repo against a model, from the outside: what it exports, proves, lists and has sent.
type walker struct {
	w     *world
	first pds.Head // before any write
	// What the frames made of the repo, up to the last one that was seen.
	paths map[string]cid.Cid
	rev   string
	data  cid.Cid
	seq   int64
	// A few heads that were walked, with their blocks: who has those asks for the rest.
	kept []keptBlocks
	// By rev, for reopening: a crash may lose nothing that was acknowledged, and nothing in between.
	history map[string]model
}

func newWalker(t testing.TB, w *world) *walker {
	t.Helper()
	head, err := w.repo.Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return &walker{w: w, first: head, paths: map[string]cid.Cid{}, rev: head.Rev, data: head.Data, history: map[string]model{head.Rev: {}}}
}

// on is a walker of a copy of what k walked, which knows as much.
func (k *walker) on(w *world) *walker {
	return &walker{w: w, first: k.first, paths: maps.Clone(k.paths), rev: k.rev, data: k.data, seq: k.seq, history: map[string]model{}}
}

// keptBlocks are all blocks of a repo at a rev.
type keptBlocks struct {
	rev    string
	blocks map[cid.Cid]bool
}

// keptHeads is of how many heads the walker asks for differences.
const keptHeads = 6

// node is a decoded tree node.
type node struct {
	left    cid.Cid
	entries []nodeEntry
}

type nodeEntry struct {
	key         string
	value, tree cid.Cid
}

func link(v any) cid.Cid {
	l, ok := v.(atdata.CIDLink)
	if !ok {
		return cid.Undef
	}
	return l.CID()
}

// decodeNode reads a node without the help of what made it.
func decodeNode(raw []byte) (n node, err error) {
	data, err := atdata.UnmarshalCBOR(raw)
	if err != nil {
		return n, err
	}
	n.left = link(data["l"])
	entries, ok := data["e"].([]any)
	if !ok {
		return n, errors.New("a node without entries")
	}
	last := ""
	for _, e := range entries {
		fields, _ := e.(map[string]any)
		shared, _ := fields["p"].(int64)
		rest, _ := fields["k"].(atdata.Bytes)
		if int(shared) > len(last) {
			return n, fmt.Errorf("%d bytes shared with %q", shared, last)
		}
		last = last[:shared] + string(rest)
		n.entries = append(n.entries, nodeEntry{last, link(fields["v"]), link(fields["t"])})
	}
	return n, nil
}

// height of a key: pairs of leading zero bits of its sha256.
func height(key string) int {
	sum := sha256.Sum256([]byte(key))
	n := 0
	for _, b := range sum {
		n += bits.LeadingZeros8(b)
		if b != 0 {
			break
		}
	}
	return n / 2
}

// readTree collects paths and nodes below root; every block must be there, every key where it belongs.
func readTree(blocks map[cid.Cid][]byte, root cid.Cid, above int, paths map[string]cid.Cid, seen map[cid.Cid]bool) error {
	raw, ok := blocks[root]
	if !ok {
		return fmt.Errorf("node %s is missing", root)
	}
	seen[root] = true
	n, err := decodeNode(raw)
	if err != nil {
		return err
	}
	level := above - 1
	if len(n.entries) > 0 {
		level = height(n.entries[0].key)
	}
	if above >= 0 && level != above-1 {
		return fmt.Errorf("node %s of height %d below one of %d", root, level, above)
	}
	if n.left.Defined() {
		if err := readTree(blocks, n.left, level, paths, seen); err != nil {
			return err
		}
	}
	for _, e := range n.entries {
		if height(e.key) != level {
			return fmt.Errorf("key %s of height %d in a node of %d", e.key, height(e.key), level)
		}
		if _, twice := paths[e.key]; twice {
			return fmt.Errorf("key %s comes twice", e.key)
		}
		paths[e.key] = e.value
		if e.tree.Defined() {
			if err := readTree(blocks, e.tree, level, paths, seen); err != nil {
				return err
			}
		}
	}
	return nil
}

// lookUp goes from the root to where path is or would be.
func lookUp(blocks map[cid.Cid][]byte, root cid.Cid, path string) (cid.Cid, error) {
	for at := root; at.Defined(); {
		raw, ok := blocks[at]
		if !ok {
			return cid.Undef, fmt.Errorf("the proof of %s lacks %s", path, at)
		}
		n, err := decodeNode(raw)
		if err != nil {
			return cid.Undef, err
		}
		at = n.left
		for _, e := range n.entries {
			if e.key == path {
				return e.value, nil
			}
			if e.key > path {
				break
			}
			at = e.tree
		}
	}
	return cid.Undef, nil
}

// walk checks everything.
func (k *walker) walk(t testing.TB, m model) {
	t.Helper()
	head, err := k.w.repo.Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	k.history[head.Rev] = maps.Clone(m)
	paths, blocks := k.export(t, head, m)
	k.since(t, head, blocks)
	if len(paths) != len(m) {
		t.Fatalf("%d records are exported, there should be %d", len(paths), len(m))
	}
	k.records(t, m, paths)
	k.proofs(t, head, paths)
	k.frames(t)
	if k.rev != head.Rev || k.data != head.Data || !maps.Equal(k.paths, paths) {
		t.Fatalf("who followed the frames is at %s with %d records, the head is %s with %d", k.rev, len(k.paths), head.Rev, len(paths))
	}
	k.blobs(t, m)
}

// export reads the whole repo as anybody gets it.
func (k *walker) export(t testing.TB, head pds.Head, m model) (map[string]cid.Cid, map[cid.Cid]bool) {
	t.Helper()
	var car bytes.Buffer
	if err := k.w.repo.Export(t.Context(), &car); err != nil {
		t.Fatal(err)
	}
	header, blocks := blocksOf(t, car.Bytes())
	if !bytes.Contains(header, head.CID.Bytes()) {
		t.Fatalf("the root is not the head: %x", header)
	}
	commit := k.signed(t, blocks[head.CID])
	if commit.Rev != head.Rev || commit.Data != head.Data {
		t.Fatalf("head %+v, commit %+v", head, commit)
	}
	paths, seen := map[string]cid.Cid{}, map[cid.Cid]bool{head.CID: true}
	if err := readTree(blocks, head.Data, -1, paths, seen); err != nil {
		t.Fatal(err)
	}
	for path, c := range paths {
		if seen[c] = true; blocks[c] == nil {
			t.Fatalf("record %s is not in the export", c)
		}
		data, err := atdata.UnmarshalCBOR(blocks[c])
		if err != nil {
			t.Fatal(err)
		}
		text, err := json.Marshal(data)
		if err != nil {
			t.Fatal(err)
		}
		if collection, _, _ := strings.Cut(path, "/"); entryOf(t, text) != m[path] || data["$type"] != collection {
			t.Fatalf("%s is exported as %s, should be %+v", path, text, m[path])
		}
	}
	if len(seen) != len(blocks) {
		t.Fatalf("%d blocks are exported, %d can be reached", len(blocks), len(seen))
	}
	return paths, seen
}

// signed reads a commit of this repo's, which its key must have signed.
func (k *walker) signed(t testing.TB, raw []byte) (commit repo.Commit) {
	t.Helper()
	if err := commit.UnmarshalCBOR(bytes.NewReader(raw)); err != nil {
		t.Fatal(err)
	}
	public, err := k.w.key.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	if err := commit.VerifySignature(public); err != nil || commit.DID != did.String() {
		t.Fatalf("commit %+v: %v", commit, err)
	}
	return commit
}

// since asks for what came after earlier heads: with what was there then, it must make the whole of now, and have
// nothing that is not of it.
func (k *walker) since(t testing.TB, head pds.Head, now map[cid.Cid]bool) {
	t.Helper()
	handler := pds.Serve(adapter(), k.w.host.Routes())
	for _, old := range k.kept {
		w := httptest.NewRecorder()
		req := httptest.NewRequest(http.MethodGet, "/xrpc/com.atproto.sync.getRepo?did="+did.String()+"&since="+old.rev, nil)
		handler.ServeHTTP(w, req)
		if w.Code != http.StatusOK {
			t.Fatalf("since %s: %d %s", old.rev, w.Code, w.Body)
		}
		header, diff := blocksOf(t, w.Body.Bytes())
		if !bytes.Contains(header, head.CID.Bytes()) {
			t.Fatalf("since %s: the root is not the head: %x", old.rev, header)
		}
		for c := range now {
			if _, ok := diff[c]; !ok && !old.blocks[c] {
				t.Fatalf("since %s: %s is in neither", old.rev, c)
			}
		}
		for c := range diff {
			if !now[c] {
				t.Fatalf("since %s: %s is not of the head", old.rev, c)
			}
		}
	}
	if len(k.kept) == 0 || k.kept[len(k.kept)-1].rev != head.Rev {
		k.kept = append(k.kept, keptBlocks{head.Rev, now})
	}
	if len(k.kept) > keptHeads { // any one goes, so that some are old
		at := len(k.history) % keptHeads
		k.kept = slices.Delete(k.kept, at, at+1)
	}
}

func (k *walker) records(t testing.TB, m model, paths map[string]cid.Cid) {
	t.Helper()
	listed := map[string]cid.Cid{}
	for _, collection := range collections {
		page, err := k.w.repo.ListRecords(t.Context(), collection, 10_000, "", true)
		if err != nil {
			t.Fatal(err)
		}
		last := syntax.RecordKey("")
		for _, r := range page {
			if r.Rkey <= last {
				t.Fatalf("%s after %s", r.Rkey, last)
			}
			last = r.Rkey
			path := collection.String() + "/" + r.Rkey.String()
			listed[path] = r.CID
			if entryOf(t, r.Value) != m[path] {
				t.Fatalf("%s is %s, should be %+v", path, r.Value, m[path])
			}
		}
	}
	if !maps.Equal(listed, paths) {
		t.Fatal("the list and the tree are of other records")
	}
}

// proofs looks at a few records that are there, and at places where none is.
func (k *walker) proofs(t testing.TB, head pds.Head, paths map[string]cid.Cid) {
	t.Helper()
	some := []string{collections[0].String() + "/", collections[1].String() + "/zzz"}
	for path := range paths {
		if some = append(some, path, path+"0"); len(some) > 8 {
			break
		}
	}
	for _, path := range some {
		nsid, rkey, _ := strings.Cut(path, "/")
		var car bytes.Buffer
		if err := k.w.repo.Proof(t.Context(), &car, syntax.NSID(nsid), syntax.RecordKey(rkey)); err != nil {
			t.Fatal(err)
		}
		_, blocks := blocksOf(t, car.Bytes())
		if blocks[head.CID] == nil {
			t.Fatalf("the proof of %s has no commit", path)
		}
		got, err := lookUp(blocks, head.Data, path)
		if err != nil || got != paths[path] || got.Defined() && blocks[got] == nil {
			t.Fatalf("the proof of %s shows %s, it is %s: %v", path, got, paths[path], err)
		}
	}
}

// frames follows those that were not seen yet, as a relay does.
func (k *walker) frames(t testing.TB) {
	t.Helper()
	for _, m := range k.w.commits(t) {
		if m.Seq <= k.seq {
			continue
		}
		loaded, err := repo.VerifyCommitMessage(t.Context(), m)
		if err != nil {
			t.Fatal(err)
		}
		data, err := loaded.MST.RootCID()
		if err != nil {
			t.Fatal(err)
		}
		_, blocks := blocksOf(t, m.Blocks)
		if commit := k.signed(t, blocks[cid.Cid(m.Commit)]); commit.Rev != m.Rev || commit.Data != *data || m.Repo != commit.DID {
			t.Fatalf("frame %d is of rev %s, its commit of %s", m.Seq, m.Rev, commit.Rev)
		}
		if m.Since == nil || *m.Since != k.rev || m.Rev <= k.rev || m.PrevData == nil || cid.Cid(*m.PrevData) != k.data {
			t.Fatalf("frame %d, rev %s since %v, follows rev %s", m.Seq, m.Rev, m.Since, k.rev)
		}
		for _, op := range m.Ops {
			prev, there := k.paths[op.Path]
			if (op.Prev != nil) != there || there && cid.Cid(*op.Prev) != prev || (op.Action == "create") == there || (op.Action == "delete") != (op.Cid == nil) {
				t.Fatalf("frame %d: %s of %s, where %s was", m.Seq, op.Action, op.Path, prev)
			}
			if delete(k.paths, op.Path); op.Cid != nil {
				k.paths[op.Path] = cid.Cid(*op.Cid)
			}
		}
		k.seq, k.rev, k.data = m.Seq, m.Rev, *data
	}
}

// blobs compares what records name with what is noted and served.
func (k *walker) blobs(t testing.TB, m model) {
	t.Helper()
	want, named := map[string]bool{}, map[string]bool{}
	for path, e := range m {
		if e.blob.Defined() {
			want[e.blob.String()+" "+path], named[e.blob.String()] = true, true
			if b, err := k.w.repo.GetBlob(t.Context(), e.blob); err != nil || cidOf(b.Data) != e.blob {
				t.Fatalf("%s names %s: %d bytes, %v", path, e.blob, len(b.Data), err)
			}
		}
	}
	rows, err := k.w.db.Reader().QueryContext(t.Context(), `SELECT cid || ' ' || collection || '/' || rkey FROM atblob_ref`)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = rows.Close() }()
	got := map[string]bool{}
	for rows.Next() {
		var line string
		if err := rows.Scan(&line); err != nil {
			t.Fatal(err)
		}
		got[line] = true
	}
	listed, err := k.w.repo.ListBlobs(t.Context(), "", "", 10_000)
	if err != nil || rows.Err() != nil {
		t.Fatal(err, rows.Err())
	}
	if !maps.Equal(got, want) || !slices.Equal(listed, slices.Sorted(maps.Keys(named))) {
		t.Fatalf("blobs are named by %v, should be %v; listed are %v", got, want, listed)
	}
}
