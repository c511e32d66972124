package pds

import (
	"bytes"
	"errors"
	"maps"
	"slices"
	"testing"

	"github.com/bluesky-social/indigo/atproto/atcrypto"
	"github.com/bluesky-social/indigo/atproto/repo"
	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/internal/pds/tree"
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
