package ledger_test

import (
	"database/sql"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/api/atcr"
	"atcr.io/internal/ledger"
	"atcr.io/internal/oci"
	"atcr.io/internal/sqldb"
)

const alice, bob = syntax.DID("did:plc:alice"), syntax.DID("did:plc:bob")

func open(t *testing.T) (*sqldb.DB, *ledger.Ledger) {
	t.Helper()
	db, err := sqldb.Open(t.Context(), filepath.Join(t.TempDir(), "db.sqlite3"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	l, err := ledger.Open(t.Context(), db, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	return db, l
}

func layer(did syntax.DID, name string, size int64, manifest string) *atcr.HoldLayer {
	return &atcr.HoldLayer{UserDid: did.String(), Digest: oci.FromBytes([]byte(name)).String(), Size: size, Manifest: manifest}
}

func usage(t *testing.T, l *ledger.Ledger, did syntax.DID) [2]int64 {
	t.Helper()
	blobs, bytes, err := l.Usage(t.Context(), did)
	if err != nil {
		t.Fatal(err)
	}
	return [2]int64{blobs, bytes}
}

// Would catch a blob that counts twice because two manifests name it, one that still counts when the last of
// them is gone, and counts of a commit that was undone.
func TestUsage(t *testing.T) {
	t.Parallel()
	db, l := open(t)
	undone := errors.New("undone")
	for i, step := range []struct {
		changes []ledger.Change
		err     error
		alice   [2]int64
		bob     [2]int64
	}{
		{[]ledger.Change{{Rkey: "1", Layer: layer(alice, "a", 10, "m1")}, {Rkey: "2", Layer: layer(alice, "b", 5, "m1")}}, nil, [2]int64{2, 15}, [2]int64{}},
		{[]ledger.Change{{Rkey: "3", Layer: layer(alice, "a", 10, "m2")}, {Rkey: "4", Layer: layer(bob, "a", 10, "m3")}}, nil, [2]int64{2, 15}, [2]int64{1, 10}},
		{[]ledger.Change{{Rkey: "1"}, {Rkey: "9"}}, undone, [2]int64{2, 15}, [2]int64{1, 10}},
		{[]ledger.Change{{Rkey: "1"}, {Rkey: "unknown"}}, nil, [2]int64{2, 15}, [2]int64{1, 10}},
		{[]ledger.Change{{Rkey: "3"}}, nil, [2]int64{1, 5}, [2]int64{1, 10}},
		{[]ledger.Change{{Rkey: "2", Layer: layer(alice, "c", 7, "m1")}}, nil, [2]int64{1, 7}, [2]int64{1, 10}}, // written anew
		{[]ledger.Change{{Rkey: "2"}, {Rkey: "4"}}, nil, [2]int64{}, [2]int64{}},
	} {
		err := db.Write(t.Context(), func(tx *sql.Tx) error {
			if _, err := l.Follow(t.Context(), tx, step.changes); err != nil {
				return err
			}
			return step.err
		})
		if !errors.Is(err, step.err) {
			t.Fatal(i, err)
		}
		if a, b := usage(t, l, alice), usage(t, l, bob); a != step.alice || b != step.bob {
			t.Errorf("step %d: %v %v, want %v %v", i, a, b, step.alice, step.bob)
		}
	}
}

// Would catch tables of an older hold that stay empty, or are filled twice.
func TestBuild(t *testing.T) {
	t.Parallel()
	_, l := open(t)
	for range 2 {
		err := l.Build(t.Context(), func(fn func(ledger.Change) error) error {
			return errors.Join(fn(ledger.Change{Rkey: "1", Layer: layer(alice, "a", 10, "m1")}), fn(ledger.Change{Rkey: "2", Layer: layer(alice, "b", 1, "m1")}))
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	keys, err := l.Layers(t.Context(), "m1")
	if got := usage(t, l, alice); got != [2]int64{2, 11} || len(keys) != 2 || err != nil {
		t.Errorf("%v %v %v", got, keys, err)
	}
	if told, err := l.Told(t.Context()); !told || err != nil {
		t.Error(told, err)
	}
}

// Would catch two repositories with one image that share a record's address, and one that changes its address.
func TestManifestURI(t *testing.T) {
	t.Parallel()
	_, l := open(t)
	d := oci.FromBytes([]byte("m"))
	for _, step := range []struct{ repository, want string }{
		{"app", d.Hex()}, {"team/other", d.Hex() + ":team~other"}, {"app", d.Hex()}, {"team/other", d.Hex() + ":team~other"},
	} {
		m := ledger.Manifest{Owner: alice, Repository: step.repository, Digest: d}
		uri, err := l.ManifestURI(t.Context(), m)
		if want := "at://did:plc:alice/io.atcr.manifest/" + step.want; err != nil || uri.String() != want {
			t.Fatalf("%s: %s, want %s: %v", step.repository, uri, want, err)
		}
		if err := l.Push(t.Context(), m, uri, true, nil); err != nil {
			t.Fatal(err)
		}
	}
	pending, err := l.Pending(t.Context(), 10)
	if err != nil || len(pending) != 2 || pending[0].Pushes != 2 || pending[0].Pushed.IsZero() || !pending[0].Pulled.IsZero() {
		t.Errorf("%+v %v", pending, err)
	}
}

// Would catch counts that are lost or doubled because more came while a commit published them.
func TestPublished(t *testing.T) {
	t.Parallel()
	db, l := open(t)
	m := ledger.Manifest{Owner: alice, Repository: "app", Digest: oci.FromBytes(nil)}
	push := func() {
		t.Helper()
		if err := l.Push(t.Context(), m, "at://x", true, nil); err != nil {
			t.Fatal(err)
		}
	}
	push()
	pending, err := l.Pending(t.Context(), 10)
	if err != nil {
		t.Fatal(err)
	}
	push()
	for _, want := range []int64{1, 0} {
		if err := db.Write(t.Context(), func(tx *sql.Tx) error { return l.Published(t.Context(), tx, pending) }); err != nil {
			t.Fatal(err)
		}
		if pending, err = l.Pending(t.Context(), 10); err != nil || int64(len(pending)) != want || want == 1 && pending[0].Pushes != 1 {
			t.Fatalf("%+v %v", pending, err)
		}
	}
	if known, err := l.Pull(t.Context(), bob, "app", 1); known || err != nil {
		t.Error("a pull of what is not here counts", err)
	}
}
