package upload

import (
	"bytes"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/internal/blobstore"
	"atcr.io/internal/oci"
)

// Would catch a lost database that takes the images with it, or one that is rebuilt from lies.
func TestRebuild(t *testing.T) {
	t.Parallel()
	m := newMemory()
	r := newRig(t, m, nil)
	final, pointed, gone := noise(1000, 1), noise(2000, 2), noise(3000, 3)
	for _, data := range [][]byte{final, pointed, gone} {
		m.keepKeys = len(data) == 2000
		s := r.begin(alice)
		if _, err := r.Append(t.Context(), s.Secret, nil, bytes.NewReader(data)); err != nil {
			t.Fatal(err)
		}
		if _, err := r.Finish(t.Context(), s.Secret, oci.FromBytes(data), nil, nil); err != nil {
			t.Fatal(err)
		}
	}
	r.clock.move(time.Second)
	if got, err := r.Rebuild(t.Context()); err != nil || got != (Rebuilt{}) {
		t.Fatalf("nothing to do: %+v, %v", got, err)
	}
	delete(m.objects, blobstore.BlobKey(oci.FromBytes(gone)))
	if got, err := r.Rebuild(t.Context()); err != nil || got != (Rebuilt{Removed: 1}) {
		t.Fatalf("an object gone: %+v, %v", got, err)
	}
	r.absent(oci.FromBytes(gone))

	lie, dangling := oci.FromBytes([]byte("lie")), oci.FromBytes([]byte("dangling"))
	m.objects[blobstore.PointerKey(lie)] = []byte(`{"digest":"` + lie.String() + `","key":"` + blobstore.BlobKey(oci.FromBytes(final)) + `","size":1000}`)
	m.objects[blobstore.PointerKey(dangling)] = []byte(`{"digest":"` + dangling.String() + `","key":"atcr/uploads/none","size":1}`)
	m.objects["atcr/pointers/sha256/nonsense"] = []byte(`{`)
	m.objects["docker/registry/v2/blobs/sha256/zz/nonsense/data"] = []byte("x")
	m.objects["docker/registry/v2/blobs/sha256/00/"+oci.FromBytes(final).Hex()+"/data"] = []byte("x")
	m.objects["atcr/uploads/unfinished"] = []byte("x")
	if err := r.sql.Write(t.Context(), func(tx *sql.Tx) error {
		_, err := tx.Exec(`DELETE FROM blob; DELETE FROM blob_uploader`)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	r.reopen()
	for range 2 {
		got, err := r.Rebuild(t.Context())
		if err != nil || got.Removed != 0 {
			t.Fatalf("%+v, %v", got, err)
		}
	}
	r.content(oci.FromBytes(final), "")
	r.content(oci.FromBytes(pointed), "")
	r.absent(lie)
	r.absent(dangling)
	if n, size, err := r.Usage(t.Context(), alice); n != 1 || size != 2000 || err != nil {
		t.Errorf("the pointer names its uploader: %d, %d, %v", n, size, err)
	}
	var rows int
	if err := r.sql.Reader().QueryRow(`SELECT count(*) FROM blob`).Scan(&rows); err != nil || rows != 2 {
		t.Errorf("%d rows, %v", rows, err)
	}
}

// Would catch a pointer that names an object outside the staging area: it could give any object any digest.
func FuzzParsePointer(f *testing.F) {
	d := oci.FromBytes(nil)
	f.Add(`{"digest":"` + d.String() + `","key":"atcr/uploads/x","size":1,"uploader":"did:plc:alice"}`)
	f.Add(`{"digest":"sha256:00","key":"../x"}`)
	f.Add(`{`)
	f.Fuzz(func(t *testing.T, raw string) {
		p, err := parsePointer(blobstore.PointerKey(d), []byte(raw))
		if err != nil {
			if !errors.Is(err, errBadPointer) {
				t.Fatal(err)
			}
			return
		}
		if p.Digest != d || !strings.HasPrefix(p.Key, blobstore.StagingPrefix) || p.Size < 0 {
			t.Fatalf("%+v", p)
		}
	})
}

// Would catch a PUT that, sent again in full after an error, is appended to itself.
func TestPutAgain(t *testing.T) {
	t.Parallel()
	m := newMemory()
	r := newRig(t, m, nil)
	data := noise(100_000, 1)
	s := r.begin(alice)
	if _, err := r.Append(t.Context(), s.Secret, nil, bytes.NewReader(data)); err != nil {
		t.Fatal(err)
	}
	m.fault.set(func(step string) error {
		if step == "before commit" {
			return errFault
		}
		return nil
	})
	if _, err := r.Finish(t.Context(), s.Secret, oci.FromBytes(data), nil, nil); !errors.Is(err, errFault) {
		t.Fatal(err)
	}
	m.fault.clear()
	if _, err := r.Finish(t.Context(), s.Secret, oci.FromBytes(data), nil, bytes.NewReader(data)); err != nil {
		t.Fatal(err)
	}
	r.content(oci.FromBytes(data), "")
}

// Would catch bytes added to what the storage may already have made an object of.
func TestNothingIsAddedToAPlacedBlob(t *testing.T) {
	t.Parallel()
	m := newMemory()
	r := newRig(t, m, nil)
	data := noise(1000, 1)
	for _, d := range []oci.Digest{oci.FromBytes(data), sha512Of(data)} {
		s := r.begin(alice)
		if _, err := r.Append(t.Context(), s.Secret, nil, bytes.NewReader(data)); err != nil {
			t.Fatal(err)
		}
		m.fault.set(func(step string) error {
			if step == "after commit" {
				return errFault
			}
			return nil
		})
		if _, err := r.Finish(t.Context(), s.Secret, d, nil, nil); !errors.Is(err, errFault) {
			t.Fatal(err)
		}
		m.fault.clear()
		if _, err := r.Append(t.Context(), s.Secret, nil, strings.NewReader("more")); !errors.Is(err, ErrUnknown) {
			t.Errorf("more: %v", err)
		}
	}
}

// Would catch an answer that writes to the database every time, one that is not kept, and a yes for what was
// deleted since it was read.
func TestPromise(t *testing.T) {
	t.Parallel()
	r := newRig(t, newMemory(), nil)
	s := r.begin(alice)
	d := oci.FromBytes([]byte("x"))
	if _, err := r.Finish(t.Context(), s.Secret, d, nil, strings.NewReader("x")); err != nil {
		t.Fatal(err)
	}
	writes := 0
	r.db.fault.set(func(string) error { writes++; return nil })
	promise := func() {
		t.Helper()
		if _, err := r.Promise(t.Context(), d, "", ""); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		promise()
	}
	r.clock.move(2 * touchEvery)
	for range 3 {
		promise()
	}
	if writes != 2 { // before and after one
		t.Errorf("%d writes", writes)
	}
	r.db.fault.clear()
	r.reopen()
	if blob, err := r.Stat(t.Context(), d, ""); err != nil || !blob.TouchedAt.Equal(r.clock.now()) {
		t.Errorf("%+v, %v", blob, err)
	}
	// The row goes behind the back of the cache, as a collection does between a look and the renewal.
	r.clock.move(2 * touchEvery)
	if err := r.sql.Write(t.Context(), func(tx *sql.Tx) error { _, err := tx.Exec(`DELETE FROM blob`); return err }); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Promise(t.Context(), d, "", ""); !errors.Is(err, ErrNoBlob) {
		t.Errorf("a blob that is gone is promised: %v", err)
	}
}

// Would catch an index that is made to agree with the storage, and names again who had their data deleted.
func TestRebuildAfterDisown(t *testing.T) {
	t.Parallel()
	m := newMemory()
	m.keepKeys = true
	r := newRig(t, m, nil)
	d := oci.FromBytes([]byte("x"))
	s := r.begin(alice)
	if _, err := r.Append(t.Context(), s.Secret, nil, strings.NewReader("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Finish(t.Context(), s.Secret, d, nil, nil); err != nil {
		t.Fatal(err)
	}
	if m.objects[blobstore.PointerKey(d)] == nil {
		t.Fatal("no pointer")
	}
	if err := r.Disown(t.Context(), alice); err != nil {
		t.Fatal(err)
	}
	r.clock.move(time.Hour)
	if rebuilt, err := r.Rebuild(t.Context()); err != nil || rebuilt != (Rebuilt{}) {
		t.Fatalf("%+v, %v", rebuilt, err)
	}
	if hers, err := r.UploadedBy(t.Context(), d, alice); err != nil || hers {
		t.Errorf("it is hers again: %v", err)
	}
	r.content(d, "")
}

// Would catch somebody who was told of a blob twice within an hour, and is not asked before it is collected because
// the note of the first time went in between.
func TestToldAgainWithoutANote(t *testing.T) {
	t.Parallel()
	for name, goes := range map[string]func(r *rig, d oci.Digest){
		"many others were told": func(r *rig, d oci.Digest) {
			for i := range maxPromisesEach {
				r.clock.move(time.Second)
				r.told(d, syntax.DID(fmt.Sprintf("did:plc:%d", i)))
			}
		},
		"they had their data deleted while they were told": nil,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, newMemory(), nil)
			d := oci.FromBytes([]byte("x"))
			if _, err := r.Finish(t.Context(), r.begin(alice).Secret, d, nil, strings.NewReader("x")); err != nil {
				t.Fatal(err)
			}
			if goes == nil {
				var begun atomic.Bool
				r.db.fault.set(func(step string) error {
					if strings.HasPrefix(step, "after") && begun.CompareAndSwap(false, true) {
						return r.Disown(t.Context(), bob)
					}
					return nil
				})
			}
			r.told(d, bob)
			if goes != nil {
				goes(r, d)
			}
			asked := func() bool {
				all, err := r.concerned(t.Context(), d)
				if err != nil {
					t.Fatal(err)
				}
				return slices.Contains(all, bob)
			}
			if asked() {
				t.Fatal("the note of the first time is there")
			}
			r.told(d, bob)
			if !asked() {
				t.Error("bob was told, and will not be asked")
			}
		})
	}
}

// told is a promise to did.
func (r *rig) told(d oci.Digest, did syntax.DID) {
	r.t.Helper()
	if _, err := r.Promise(r.t.Context(), d, "", did); err != nil {
		r.t.Fatal(err)
	}
}
