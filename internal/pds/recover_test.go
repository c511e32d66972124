package pds_test

import (
	"bytes"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/bluesky-social/indigo/atproto/atcrypto"
	"github.com/bluesky-social/indigo/atproto/repo"

	"atcr.io/internal/pds"
)

// export is the repo as a CAR.
func (w *world) export(t testing.TB) []byte {
	t.Helper()
	var car bytes.Buffer
	if err := w.repo.Export(t.Context(), &car); err != nil {
		t.Fatal(err)
	}
	return car.Bytes()
}

// fill writes n records.
func (w *world) fill(t testing.TB, n int) {
	t.Helper()
	for from := 0; from < n; from += pds.MaxCommitOps {
		var writes []pds.Write
		for i := from; i < min(n, from+pds.MaxCommitOps); i++ {
			writes = append(writes, put(fmt.Sprintf("r%05d", i), i))
		}
		if _, err := w.repo.Apply(t.Context(), writes, nil); err != nil {
			t.Fatal(err)
		}
	}
}

// newest is the head's commit as others read it, checked against key.
func (w *world) newest(t *testing.T, key *atcrypto.PrivateKeyK256) *repo.Commit {
	t.Helper()
	commit, _, err := repo.LoadRepoFromCAR(t.Context(), bytes.NewReader(w.export(t)))
	if err != nil {
		t.Fatal(err)
	}
	public, err := key.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	if err := commit.VerifySignature(public); err != nil {
		t.Fatal(err)
	}
	return commit
}

// tail is the kinds of the newest n events.
func (w *world) tail(t *testing.T, n int) []string {
	t.Helper()
	rows, err := w.db.Reader().QueryContext(t.Context(), `SELECT frame FROM event ORDER BY seq DESC LIMIT ?`, n)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = rows.Close() }()
	var out []string
	for rows.Next() {
		var frame []byte
		if err := rows.Scan(&frame); err != nil {
			t.Fatal(err)
		}
		kind, _, _ := strings.Cut(string(frame[4:]), "bop")
		out = append([]string{kind}, out...)
	}
	return out
}

var announcement = []string{"#identity", "#account", "#sync"}

func newKey(t *testing.T) *atcrypto.PrivateKeyK256 {
	t.Helper()
	key, err := atcrypto.GeneratePrivateKeyK256()
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// Would catch a change of key after which the newest commit is still the old key's, or whose rev others have
// seen already; and commits after it that do not follow from it.
func TestResign(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.fill(t, 3)
	before := w.newest(t, w.key)
	key := newKey(t)
	if err := w.repo.Resign(t.Context(), key); err != nil {
		t.Fatal(err)
	}
	after := w.newest(t, key)
	if after.Rev <= before.Rev || after.Data != before.Data || !slices.Equal(w.tail(t, 3), announcement) {
		t.Errorf("%v after %v, events %v", after, before, w.tail(t, 3))
	}
	w.fill(t, 5)
	commits := w.commits(t)
	last := commits[len(commits)-1]
	if last.Since == nil || *last.Since != after.Rev || last.PrevData.String() != after.Data.String() {
		t.Errorf("the commit after it follows %v", last.Since)
	}
	w.newest(t, key)
	if _, err := w.repo.Verify(t.Context()); err != nil {
		t.Error(err)
	}
	w.key = key
	w.reopen(t)
	if err := w.repo.Resign(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if again := w.newest(t, key); again.Rev <= last.Rev {
		t.Errorf("rev %s after %s", again.Rev, last.Rev)
	}
}

// Would catch a change of key in the middle of writes that loses one, or signs one with the wrong key; and one
// that fails, after which nothing is as it was.
func TestResignWhileWriting(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	keys := []*atcrypto.PrivateKeyK256{newKey(t), newKey(t), newKey(t)}
	var wg sync.WaitGroup
	for c := range 4 {
		wg.Go(func() {
			for i := range 25 {
				if _, err := w.repo.Apply(t.Context(), []pds.Write{put(fmt.Sprintf("c%d-%d", c, i), i)}, nil); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for _, key := range keys {
		if err := w.repo.Resign(t.Context(), key); err != nil {
			t.Error(err)
		}
		if _, err := w.repo.Verify(t.Context()); err != nil {
			t.Error(err)
		}
	}
	wg.Wait()
	w.newest(t, keys[2])
	if n, err := w.repo.Verify(t.Context()); err != nil || n != 100 {
		t.Errorf("%d records: %v", n, err)
	}
	if err := w.db.Write(t.Context(), func(tx *sql.Tx) error {
		_, err := tx.ExecContext(t.Context(), `CREATE TRIGGER no_more BEFORE INSERT ON event BEGIN SELECT RAISE(ABORT, 'no more'); END`)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if err := w.repo.Resign(t.Context(), newKey(t)); err == nil || !strings.Contains(err.Error(), "no more") {
		t.Errorf("%v", err)
	}
	if err := w.db.Write(t.Context(), func(tx *sql.Tx) error { _, err := tx.ExecContext(t.Context(), `DROP TRIGGER no_more`); return err }); err != nil {
		t.Fatal(err)
	}
	w.fill(t, 1)
	w.newest(t, keys[2])
}

// Would catch a repair that keeps what is damaged, loses what is whole, or that followers do not learn of.
func TestRebuild(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.fill(t, 20)
	before := w.newest(t, w.key)
	for _, damage := range []string{
		`DELETE FROM record WHERE rkey = 'r00003'`,
		`UPDATE record SET value = x'a0' WHERE rkey = 'r00004'`,
		`UPDATE record SET cid = x'00' WHERE rkey = 'r00005'`,
		`UPDATE record SET rkey = 'not a key' WHERE rkey = 'r00006'`,
		`UPDATE repo SET head_block = x'00'`,
	} {
		if err := w.db.Write(t.Context(), func(tx *sql.Tx) error { _, err := tx.ExecContext(t.Context(), damage); return err }); err != nil {
			t.Fatal(err)
		}
	}
	open := func() *pds.Host {
		h, err := pds.Open(t.Context(), pds.Config{DB: w.db})
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	if _, err := open().AddRepo(t.Context(), did, w.key, ""); !errors.Is(err, pds.ErrCorrupt) {
		t.Fatalf("opened: %v", err)
	}
	var lost []string
	h := open()
	n, err := h.Rebuild(t.Context(), did, w.key, "hold.example", func(path string) { lost = append(lost, path) })
	slices.Sort(lost)
	if err != nil || n != 16 || len(lost) != 3 || !strings.HasSuffix(lost[1], "r00004") {
		t.Fatalf("%d records, lost %v: %v", n, lost, err)
	}
	if w.repo, err = h.AddRepo(t.Context(), did, w.key, "hold.example"); err != nil {
		t.Fatal(err)
	}
	if n, err := w.repo.Verify(t.Context()); err != nil || n != 16 {
		t.Errorf("%d %v", n, err)
	}
	if after := w.newest(t, w.key); after.Rev <= before.Rev || !slices.Equal(w.tail(t, 3), announcement) {
		t.Errorf("rev %s after %s, events %v", after.Rev, before.Rev, w.tail(t, 3))
	}
	if _, err := open().Rebuild(t.Context(), "did:web:other.example", w.key, "", func(string) {}); !errors.Is(err, pds.ErrRepoNotFound) {
		t.Errorf("%v", err)
	}
}

// Would catch an import that loses or adds a record, falls behind what was seen of either repo, or keeps
// followers in the dark.
func TestImport(t *testing.T) {
	t.Parallel()
	from := newWorld(t)
	from.fill(t, 450)
	car := from.export(t)
	w := newWorld(t)
	w.fill(t, 7)
	if _, err := w.repo.Apply(t.Context(), []pds.Write{put("own", 1)}, nil); err != nil {
		t.Fatal(err)
	}
	before := w.newest(t, w.key)
	a, err := pds.ReadArchive(t.Context(), bytes.NewReader(car), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = a.Close() }()
	public, err := from.key.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	mine, err := w.key.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	if a.DID != did || a.Records() != 450 || a.Verify(public) != nil || !errors.Is(a.Verify(mine), pds.ErrInvalidArchive) {
		t.Errorf("%s with %d records", a.DID, a.Records())
	}
	h, err := pds.Open(t.Context(), pds.Config{DB: w.db})
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Import(t.Context(), a, w.key, "", func(path, blob string) { t.Errorf("%s %s", path, blob) }); err != nil {
		t.Fatal(err)
	}
	if w.repo, err = h.AddRepo(t.Context(), did, w.key, ""); err != nil {
		t.Fatal(err)
	}
	if n, err := w.repo.Verify(t.Context()); err != nil || n != 450 {
		t.Errorf("%d records: %v", n, err)
	}
	after := w.newest(t, w.key)
	if after.Rev <= before.Rev || after.Rev <= a.Rev || after.Data != from.newest(t, from.key).Data || !slices.Equal(w.tail(t, 3), announcement) {
		t.Errorf("rev %s after %s and %s, events %v", after.Rev, before.Rev, a.Rev, w.tail(t, 3))
	}
	if _, err := w.repo.GetRecord(t.Context(), collection, "own"); !errors.Is(err, pds.ErrRecordNotFound) {
		t.Errorf("a record that the archive does not have: %v", err)
	}
}

// Would catch a damaged or forged CAR that is believed, and one that ends the process.
func TestBadArchives(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.fill(t, 60)
	good := w.export(t)
	read := func(raw []byte) error {
		a, err := pds.ReadArchive(t.Context(), bytes.NewReader(raw), t.TempDir())
		if err == nil {
			err = a.Close()
		}
		return err
	}
	if err := read(good); err != nil {
		t.Fatal(err)
	}
	blocks := sections(t, good)
	join := func(sections ...[]byte) []byte {
		var out []byte
		for _, s := range sections {
			out = append(binary.AppendUvarint(out, uint64(len(s))), s...)
		}
		return out
	}
	flipped := slices.Clone(blocks[5])
	flipped[len(flipped)-1] ^= 1
	for name, raw := range map[string][]byte{
		"empty":           {},
		"text":            []byte("this is no CAR at all"),
		"header alone":    join(blocks[0]),
		"commit alone":    join(blocks[:2]...),
		"one is missing":  join(slices.Concat(blocks[:9], blocks[10:])...),
		"cut":             good[:len(good)-3],
		"a flipped bit":   join(slices.Concat(blocks[:5], [][]byte{flipped}, blocks[6:])...),
		"an empty block":  append(slices.Clone(good), 0),
		"a huge block":    binary.AppendUvarint(slices.Clone(good), 1<<40),
		"a huge header":   binary.AppendUvarint(nil, 1<<62),
		"a long number":   bytes.Repeat([]byte{0xff}, 20),
		"no root":         join(append([][]byte{{0xa2, 0x65, 'r', 'o', 'o', 't', 's', 0x80, 0x67, 'v', 'e', 'r', 's', 'i', 'o', 'n', 1}}, blocks[1:]...)...),
		"a root of text":  join(append([][]byte{{0xa2, 0x65, 'r', 'o', 'o', 't', 's', 0x81, 0x61, 'x', 0x67, 'v', 'e', 'r', 's', 'i', 'o', 'n', 1}}, blocks[1:]...)...),
		"another version": join(append([][]byte{append(slices.Clone(blocks[0][:len(blocks[0])-1]), 2)}, blocks[1:]...)...),
	} {
		if err := read(raw); !errors.Is(err, pds.ErrInvalidArchive) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// sections are the header and the blocks of a CAR.
func sections(t testing.TB, car []byte) (out [][]byte) {
	t.Helper()
	for len(car) > 0 {
		size, n := binary.Uvarint(car)
		if n <= 0 || uint64(len(car)-n) < size {
			t.Fatal("not a CAR")
		}
		out, car = append(out, car[n:n+int(size)]), car[n+int(size):]
	}
	return out
}
