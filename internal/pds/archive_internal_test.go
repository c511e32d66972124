package pds

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/bluesky-social/indigo/atproto/atcrypto"
	"github.com/bluesky-social/indigo/atproto/repo"
	"github.com/bluesky-social/indigo/atproto/syntax"
	"github.com/ipfs/go-cid"

	"atcr.io/internal/pds/tree"
	"atcr.io/test/archive"
)

// archiveOf is the CAR of a repo that has the records as they stand there, whatever this host would take.
func archiveOf(t testing.TB, records map[string]string) []byte {
	t.Helper()
	key, err := atcrypto.ParsePrivateBytesK256(bytes.Repeat([]byte{7}, 32))
	if err != nil {
		t.Fatal(err)
	}
	paths := tree.New()
	var blocks []tree.Block
	for _, path := range slices.Sorted(maps.Keys(records)) {
		value := []byte(records[path])
		blocks = append(blocks, tree.Block{CID: cborCID(value), Data: value})
		if err := paths.Set(path, cborCID(value)); err != nil {
			t.Fatal(err)
		}
	}
	root, nodes, err := paths.Diff(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	commit := repo.Commit{DID: "did:web:hold.example", Version: repo.ATPROTO_REPO_VERSION, Data: root, Rev: syntax.NewTID(1, 1).String()}
	if err := commit.Sign(key); err != nil {
		t.Fatal(err)
	}
	var raw, car bytes.Buffer
	if err := commit.MarshalCBOR(&raw); err != nil {
		t.Fatal(err)
	}
	head := tree.Block{CID: cborCID(raw.Bytes()), Data: raw.Bytes()}
	if err := writeCARHeader(&car, head.CID); err != nil {
		t.Fatal(err)
	}
	for _, b := range slices.Concat([]tree.Block{head}, nodes, blocks) {
		if _, err := writeCARBlock(&car, b); err != nil {
			t.Fatal(err)
		}
	}
	return car.Bytes()
}

// Would catch an archive with a record that cannot be read as JSON without becoming another one.
func TestArchiveOfBadRecords(t *testing.T) {
	t.Parallel()
	for value, good := range map[string]bool{
		"\xa1\x61a\x63\xef\xbf\xbd":                     true, // U+FFFD, in the open
		"\xa1\x61a\x61\xff":                             false,
		"\xa1\x61\xff\x61a":                             false, // a key
		"\xa1\x61a\x82\x01\xa1\x61b\x62\xc3\x28":        false, // within
		"\xa1\x61a\x41\xff":                             true,  // bytes, not text
		"\xa1\x61a\xfb\x3f\xe0\x00\x00\x00\x00\x00\x00": false, // 0.5
	} {
		a, err := ReadArchive(t.Context(), bytes.NewReader(archiveOf(t, map[string]string{"com.example.thing/a": value})), t.TempDir())
		if err == nil {
			_ = a.Close()
		}
		if good && err != nil || !good && !errors.Is(err, ErrInvalidArchive) {
			t.Errorf("%x: %v", value, err)
		}
		if _, err := recordJSON([]byte(value)); good != (err == nil) {
			t.Errorf("%x as JSON: %v", value, err)
		}
	}
}

// smallArchive is a tree of three levels.
func smallArchive(t testing.TB) []byte {
	t.Helper()
	return archiveOf(t, map[string]string{
		"com.example.thing/a": "\xa1\x61a\x01", "com.example.thing/b": "\xa1\x61a\x61x", "com.example.thing/k": "\xa1\x61b\x82\x01\xf6", "com.example.thing/o": "\xa1\x61b\x41\xff",
		"com.example.thing/r": "\xa1\x61l\xd8\x2a\x58\x25\x00" + cborCID(nil).KeyString(),
	})
}

// FuzzReadArchive would catch bytes that end the process, or a repo that is believed and cannot be imported.
func FuzzReadArchive(f *testing.F) {
	good := smallArchive(f)
	for _, mending := range []bool{false, true} {
		f.Add(good, mending)
		f.Add(archiveOf(f, nil), mending)
		f.Add(archiveOf(f, map[string]string{"com.example.thing/a": "\xa1\x61a\x61\xff"}), mending)
		f.Add(good[:len(good)/2], mending)
		f.Add([]byte{}, mending)
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, raw []byte, mending bool) {
		if mending {
			raw = archive.Mend(raw)
		}
		a, err := ReadArchive(context.Background(), bytes.NewReader(raw), dir)
		if err != nil {
			if !errors.Is(err, ErrInvalidArchive) {
				t.Fatal(err)
			}
			return
		}
		defer func() { _ = a.Close() }()
		again := tree.New()
		err = a.Each(context.Background(), func(path string, c cid.Cid, value []byte) error {
			_, _, err := syntax.ParseRepoPath(path)
			_, unreadable := recordJSON(value)
			return errors.Join(err, unreadable, again.Set(path, c))
		})
		if err != nil {
			t.Fatal(err)
		}
		if root, err := again.Root(); err != nil || root != a.commit.Data {
			t.Fatalf("its records make the tree %s, it has %s: %v", root, a.commit.Data, err)
		}
	})
}

// Would catch seeds of which the fuzzing never comes further than their hashes, or does not see all levels of a tree.
func TestMend(t *testing.T) {
	t.Parallel()
	good := smallArchive(t)
	read := func(raw []byte) error {
		a, err := ReadArchive(t.Context(), bytes.NewReader(raw), t.TempDir())
		if err == nil {
			err = a.Close()
		}
		return err
	}
	changed := bytes.Replace(good, []byte("\xa1\x61a\x01"), []byte("\xa1\x61a\x02"), 1)
	if err := read(changed); !errors.Is(err, ErrInvalidArchive) {
		t.Errorf("another record under the name of one: %v", err)
	}
	if err := read(archive.Mend(changed)); err != nil || !bytes.Equal(archive.Mend(good), good) || read(good) != nil {
		t.Errorf("mended: %v, %v", err, read(good))
	}
	if n := bytes.Count(good, []byte("\xa2\x61e")); n < 3 {
		t.Errorf("%d nodes", n)
	}
}

// Would catch a check of a whole repo that does not name a record whose text is none.
func TestVerifyText(t *testing.T) {
	t.Parallel()
	_, open := opener(t, Config{})
	h, r := open()
	write := Write{Action: Put, Collection: "com.example.thing", Rkey: "a", Value: []byte(`{"n":1}`)}
	if _, err := r.Apply(t.Context(), []Write{write}, nil); err != nil {
		t.Fatal(err)
	}
	if n, err := r.Verify(t.Context()); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	bad := []byte("\xa1\x61a\x61\xff")
	err := h.publish(t.Context(), func(tx *sql.Tx, add func(eventBody) error) error {
		if _, err := tx.ExecContext(t.Context(), `UPDATE record SET value = ?, cid = ?`, bad, cborCID(bad).Bytes()); err != nil {
			return err
		}
		own, err := loadTree(t.Context(), tx, r.did, func() {})
		if err != nil {
			return err
		}
		return r.refound(t.Context(), tx, own, r.head.Rev, add)
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Verify(t.Context()); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "com.example.thing/a: its text is not valid UTF-8") {
		t.Errorf("%v", err)
	}
}
