package upload

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"atcr.io/internal/blobstore"
	"atcr.io/internal/oci"
	"atcr.io/internal/sqldb"
)

var errFault = errors.New("injected")

// faults fails the n-th step of an operation, and every one after it when the process is to be dead.
type faults struct {
	mu       sync.Mutex
	at, seen int
	crash    bool
	fired    string
}

func (f *faults) step(name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.seen++
	if f.seen == f.at {
		f.fired = name
	}
	if f.seen == f.at || f.crash && f.seen > f.at && f.fired != "" {
		return errFault
	}
	return nil
}

func (f *faults) dead() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.crash && f.fired != ""
}

type scenario func(ctx context.Context, r *rig, m presigning, s Session, data []byte, d oci.Digest) error

// scenarios are ways to bring data; each is run once for every step that can fail in it.
var scenarios = map[string]scenario{
	"put": func(ctx context.Context, r *rig, _ presigning, s Session, data []byte, d oci.Digest) error {
		_, err := r.Finish(ctx, s.Secret, d, nil, bytes.NewReader(data))
		return err
	},
	"patch, put": func(ctx context.Context, r *rig, _ presigning, s Session, data []byte, d oci.Digest) error {
		half := len(data) / 2
		for _, chunk := range [][]byte{data[:half], data[half:]} {
			if _, err := r.Append(ctx, s.Secret, nil, bytes.NewReader(chunk)); err != nil {
				return err
			}
		}
		_, err := r.Finish(ctx, s.Secret, d, nil, nil)
		return err
	},
	"sha512 at the end": func(ctx context.Context, r *rig, _ presigning, s Session, data []byte, _ oci.Digest) error {
		if _, err := r.Append(ctx, s.Secret, nil, bytes.NewReader(data)); err != nil {
			return err
		}
		_, err := r.Finish(ctx, s.Secret, sha512Of(data), nil, nil)
		return err
	},
	"mismatch": func(ctx context.Context, r *rig, _ presigning, s Session, data []byte, _ oci.Digest) error {
		if _, err := r.Finish(ctx, s.Secret, oci.FromBytes([]byte("other")), nil, bytes.NewReader(data)); !errors.Is(err, ErrDigestMismatch) {
			return fmt.Errorf("no mismatch: %w", err)
		}
		return nil
	},
	"parts": func(ctx context.Context, r *rig, _ presigning, s Session, data []byte, d oci.Digest) error {
		chunks := split(data, 20_000)
		parts := make([]blobstore.Part, len(chunks))
		for _, i := range []int{0, 2, 1} {
			etag, err := r.PutPart(ctx, alice, s.ID, i+1, bytes.NewReader(chunks[i]))
			if err != nil {
				return err
			}
			parts[i] = blobstore.Part{Number: i + 1, ETag: etag}
		}
		_, err := r.Complete(ctx, alice, s.ID, d, parts)
		return err
	},
	"presigned": func(ctx context.Context, r *rig, m presigning, s Session, data []byte, d oci.Digest) error {
		var parts []blobstore.Part
		for i, chunk := range split(data, 20_000) {
			url, _, err := r.PartURL(ctx, alice, s.ID, i+1)
			if err != nil {
				return err
			}
			parts = append(parts, blobstore.Part{Number: i + 1, ETag: m.send(url, chunk)})
		}
		_, err := r.Complete(ctx, alice, s.ID, d, parts)
		return err
	},
}

// Would catch any order of steps in which a failure or a crash leaves a digest readable that was not
// hashed, a row without its object, an upload that can be neither resumed nor begun again, a blob that was
// acknowledged and is lost, or bytes that nobody ever frees.
func TestFaults(t *testing.T) {
	t.Parallel()
	data := noise(50_000, 1)
	d := oci.FromBytes(data)
	for name, run := range scenarios {
		for _, crash := range []bool{false, true} {
			for _, c := range []struct{ known, keep, seals bool }{{false, false, false}, {false, true, false}, {true, true, false}, {false, true, true}, {true, true, true}} {
				t.Run(fmt.Sprintf("%s/crash=%v/known=%v/keep=%v/seals=%v", name, crash, c.known, c.keep, c.seals), func(t *testing.T) {
					t.Parallel()
					db := newDB(t)
					for at := 1; ; at++ {
						clean(t, db)
						m := presigning{newMemory()}
						m.keepKeys, m.seals = c.keep, c.seals
						r := newRigOn(t, db, m, nil)
						f := &faults{at: at, crash: crash}
						if fired := faultAt(r, m, name, run, data, d, f, c.known); !fired {
							return
						}
						if err := r.Close(t.Context()); err != nil {
							t.Fatal(err)
						}
					}
				})
			}
		}
	}
}

// clean empties every table: a new database for each fault would take minutes.
func clean(t testing.TB, db *sqldb.DB) {
	t.Helper()
	if err := db.WriteRelaxed(t.Context(), func(tx *sql.Tx) error {
		_, err := tx.Exec(`DELETE FROM upload_part; DELETE FROM upload; DELETE FROM blob; DELETE FROM blob_uploader; DELETE FROM blob_garbage`)
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

// faultAt runs a scenario with one fault; false: there were fewer steps than that.
func faultAt(r *rig, m presigning, name string, run scenario, data []byte, d oci.Digest, f *faults, known bool) bool {
	t := r.t
	t.Helper()
	if known { // somebody else has the blob already
		s := r.begin(bob)
		if _, err := r.Finish(t.Context(), s.Secret, d, nil, bytes.NewReader(data)); err != nil {
			t.Fatal(err)
		}
		r.joined()
	}
	s := r.begin(alice)
	m.fault.set(f.step)
	r.db.fault.set(f.step)
	err := run(t.Context(), r, m, s, data, d)
	for r.joins.count() > 0 && !f.dead() {
		time.Sleep(100 * time.Microsecond)
	}
	if f.crash { // what goes on in the background dies too
		if err := r.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	m.fault.clear()
	r.db.fault.clear()
	f.mu.Lock() // a step of a loop may still be in it
	defer f.mu.Unlock()
	if f.fired == "" {
		if err != nil {
			t.Fatalf("without a fault: %v", err)
		}
		return false
	}
	label := fmt.Sprintf("step %d, %s", f.at, f.fired)
	r.walk()
	if f.crash {
		r.reopen()
		r.walk()
	}
	if err == nil { // what was acknowledged is there for whoever sent it
		switch name {
		case "mismatch":
		case "sha512 at the end":
			r.content(sha512Of(data), alice)
		default:
			r.content(d, alice)
		}
	}
	// The client goes on, or begins again, and gets through.
	if n, err := r.Status(t.Context(), s.Secret); err == nil && n <= int64(len(data)) {
		if _, err := r.Append(t.Context(), s.Secret, &n, bytes.NewReader(data[n:])); err == nil {
			_, err := r.Finish(t.Context(), s.Secret, d, nil, nil)
			if err != nil && (name != "mismatch" || !errors.Is(err, ErrDigestMismatch)) {
				t.Errorf("%s: resumed, and then: %v", label, err)
			}
		} else if !errors.Is(err, ErrUnknown) && !errors.Is(err, ErrMixed) {
			t.Errorf("%s: cannot be resumed: %v", label, err)
		}
	}
	again := r.begin(alice)
	if err := run(t.Context(), r, m, again, data, d); err != nil {
		t.Errorf("%s: begun again: %v", label, err)
	}
	r.joined()
	r.walk()
	// A day later nothing is left but blobs.
	r.clock.move(OpenFor + RememberFor)
	for range 2 {
		if err := r.verifyAll(t.Context()); err != nil {
			t.Errorf("%s: verify: %v", label, err)
		}
		r.settled()
		if err := r.Sweep(t.Context()); err != nil {
			t.Errorf("%s: sweep: %v", label, err)
		}
	}
	r.walk()
	r.nothingLeft(label)
	return true
}

// joined waits for what is being joined.
func (r *rig) joined() {
	for r.joins.count() > 0 {
		time.Sleep(100 * time.Microsecond)
	}
}

// nothingLeft looks for objects that no row names and rows of uploads that are over.
func (r *rig) nothingLeft(label string) {
	r.t.Helper()
	rows, err := r.sql.Reader().Query(`SELECT digest, key FROM blob`)
	if err != nil {
		r.t.Fatal(err)
	}
	defer func() { _ = rows.Close() }()
	named := map[string]bool{}
	for rows.Next() {
		var digest, key string
		if err := rows.Scan(&digest, &key); err != nil {
			r.t.Fatal(err)
		}
		named[key], named[blobstore.PointerKey(oci.Digest(digest))], named[blobstore.BlobKey(oci.Digest(digest))] = true, true, true
	}
	var m *memory
	switch s := r.store.(type) {
	case presigning:
		m = s.memory
	case *memory:
		m = s
	}
	for key := range m.objects {
		if !named[key] {
			r.t.Errorf("%s: %s is left", label, key)
		}
	}
	var left int
	if err := r.sql.Reader().QueryRow(`SELECT (SELECT count(*) FROM upload) + (SELECT count(*) FROM blob_garbage)
		+ (SELECT count(*) FROM upload_part)`).Scan(&left); err != nil || left != 0 {
		r.t.Errorf("%s: %d rows are left, %v", label, left, err)
	}
	if r.countOpen() != 0 || r.spooled != 0 {
		r.t.Errorf("%s: %v open, %d bytes spooled", label, r.countOpen(), r.spooled)
	}
}
