package upload

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"atcr.io/internal/blobstore"
	"atcr.io/internal/oci"
	"atcr.io/internal/sqldb"
)

// blindDB is a database that also fails to read.
type blindDB struct {
	*faultyDB
	blind  atomic.Bool
	closed *sql.DB
}

func (b *blindDB) Reader() *sql.DB {
	if b.blind.Load() {
		return b.closed
	}
	return b.faultyDB.Reader()
}

// sealing is a rig whose uploads are all joined after they were acknowledged.
func sealing(t *testing.T, change func(*Config)) (*rig, *memory) {
	t.Helper()
	m := newMemory()
	m.seals, m.keepKeys = true, true
	return newRig(t, m, change), m
}

func blindRig(t *testing.T) (*rig, *blindDB, *memory) {
	t.Helper()
	r, m := sealing(t, nil)
	if err := r.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	other, err := sqldb.Open(t.Context(), filepath.Join(t.TempDir(), "closed.sqlite3"))
	if err != nil {
		t.Fatal(err)
	}
	b := &blindDB{faultyDB: r.db, closed: other.Reader()}
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	u, err := open(t.Context(), r.cfg, b)
	if err != nil {
		t.Fatal(err)
	}
	r.Uploads = u
	return r, b, m
}

// whole sends data in one request and returns its digest.
func (r *rig) whole(s Session, data []byte) (oci.Digest, error) {
	d := oci.FromBytes(data)
	_, err := r.Finish(r.t.Context(), s.Secret, d, nil, bytes.NewReader(data))
	return d, err
}

// stream sends data in two requests, so that the object gets a key of its own.
func (r *rig) stream(data []byte) oci.Digest {
	r.t.Helper()
	s := r.begin(alice)
	if _, err := r.Append(r.t.Context(), s.Secret, nil, bytes.NewReader(data)); err != nil {
		r.t.Fatal(err)
	}
	d := oci.FromBytes(data)
	if _, err := r.Finish(r.t.Context(), s.Secret, d, nil, nil); err != nil {
		r.t.Fatal(err)
	}
	return d
}

// onceMade calls fn at the first step of the database after the storage has made an object.
func onceMade(m *memory, step string, fn func() error) func(string) error {
	var made, done atomic.Bool
	m.fault.set(func(step string) error {
		if step == "after commit" {
			made.Store(true)
		}
		return nil
	})
	return func(at string) error {
		if made.Load() && at == step && done.CompareAndSwap(false, true) {
			return fn()
		}
		return nil
	}
}

// Would catch a join that takes the object it has made before for another upload's, and deletes it.
func TestJoinFindsItsOwnObject(t *testing.T) {
	t.Parallel()
	t.Run("the database is silent on whether the row was written", func(t *testing.T) {
		t.Parallel()
		r, b, m := blindRig(t)
		var open atomic.Int64
		b.fault.set(onceMade(m, "after db write", func() error {
			b.blind.Store(true)
			m.fault.set(func(step string) error {
				if step == "before resume" { // once more
					open.Store(int64(r.countOpen()))
					b.blind.Store(false)
				}
				return nil
			})
			return errFault
		}))
		d := r.stream(noise(100_000, 1))
		r.joined()
		r.content(d, bob)
		if n := open.Load(); n != 1 {
			t.Errorf("%d uploads were open meanwhile", n)
		}
	})
	t.Run("the index was rebuilt before the row was written", func(t *testing.T) {
		t.Parallel()
		failed := make(chan struct{})
		r, m := sealing(t, func(c *Config) { c.joinPause = 300 * time.Millisecond })
		r.db.fault.set(onceMade(m, "before db write", func() error { close(failed); return errFault }))
		d := r.stream(noise(100_000, 1))
		<-failed
		if _, err := r.Rebuild(t.Context()); err != nil {
			t.Fatal(err)
		}
		r.joined()
		r.content(d, bob)
	})
}

// Would catch a Sweep that deletes an object that was just made, and has no row yet, because an older one at its key was to
// be deleted.
func TestJoinBesideSweep(t *testing.T) {
	t.Parallel()
	failed := make(chan struct{})
	r, m := sealing(t, func(c *Config) { c.joinPause = 300 * time.Millisecond })
	data := noise(100_000, 1)
	key := blobstore.BlobKey(oci.FromBytes(data))
	if err := r.sql.Write(t.Context(), func(tx *sql.Tx) error { return r.addGarbage(t.Context(), tx, key) }); err != nil {
		t.Fatal(err)
	}
	r.db.fault.set(onceMade(m, "before db write", func() error { close(failed); return errFault }))
	d, err := r.whole(r.begin(alice), data)
	if err != nil {
		t.Fatal(err)
	}
	<-failed
	if err := r.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := r.store.Stat(t.Context(), key); err != nil {
		t.Errorf("the object is gone: %v", err)
	}
	r.joined()
	r.content(d, bob)
}

// Would catch an upload that is acknowledged, or was perhaps, and that nobody joins.
func TestJoinThatTheDatabaseDoubts(t *testing.T) {
	t.Parallel()
	r, b, _ := blindRig(t)
	var once atomic.Bool
	b.fault.set(func(step string) error {
		if step == "after db write" && once.CompareAndSwap(false, true) {
			b.blind.Store(true)
			return errFault
		}
		return nil
	})
	s, data := r.begin(alice), noise(100_000, 1)
	if _, err := r.whole(s, data); err == nil {
		t.Fatal("acknowledged")
	}
	b.blind.Store(false)
	d, err := r.whole(s, data)
	if err != nil {
		t.Errorf("again: %v", err)
	}
	r.content(d, bob)
}

// Would catch a blob that is lost, and is acknowledged to whoever sends its last request again, since the database failed when
// that was found.
func TestJoinLost(t *testing.T) {
	t.Parallel()
	r, m := sealing(t, nil)
	tried := make(chan struct{}, 1000)
	var down atomic.Bool
	down.Store(true)
	m.fault.set(func(step string) error {
		if step == "before commit" {
			r.clock.move(joinLostAfter)
			return blobstore.ErrNotFound
		}
		return nil
	})
	r.db.fault.set(func(step string) error {
		if strings.HasPrefix(step, "before db relaxed") && r.joins.count() > 0 && down.Load() {
			select {
			case tried <- struct{}{}:
			default:
			}
			return errFault
		}
		return nil
	})
	s, data := r.begin(alice), noise(100_000, 1)
	d, err := r.whole(s, data)
	if err != nil {
		t.Fatal(err)
	}
	<-tried
	down.Store(false)
	r.joined()
	r.absent(d)
	if _, err := r.whole(s, data); !errors.Is(err, ErrUnknown) {
		t.Errorf("the last request again: %v", err)
	}
	if err := r.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.nothingLeft("lost")
}

// Would catch a join that never ends, since its upload was ended for lost, the database did not say so, and the storage has the
// parts again.
func TestJoinLostInDoubt(t *testing.T) {
	t.Parallel()
	r, m := sealing(t, nil)
	var back atomic.Bool
	m.fault.set(func(step string) error {
		if step == "before commit" && !back.Load() {
			r.clock.move(joinLostAfter)
			return blobstore.ErrNotFound
		}
		return nil
	})
	r.db.fault.set(func(step string) error {
		if step == "after db relaxed" && r.joins.count() > 0 && back.CompareAndSwap(false, true) {
			return errFault
		}
		return nil
	})
	d := r.stream(noise(100_000, 1))
	r.joined()
	r.absent(d)
	for range 2 {
		r.clock.move(2 * RememberFor)
		if err := r.Sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	var left int
	if err := r.sql.Reader().QueryRow(`SELECT count(*) FROM upload`).Scan(&left); err != nil || left != 0 || r.countOpen() != 0 {
		t.Errorf("%d rows, %v open, %v", left, r.countOpen(), err)
	}
}

// Would catch a last request that comes again while the first is at its end, and is told that there is no such upload; and one
// that is given up in that moment, and is acknowledged all the same.
func TestJoinRaces(t *testing.T) {
	t.Parallel()
	t.Run("again", func(t *testing.T) {
		t.Parallel()
		r, _ := sealing(t, nil)
		s, data := r.begin(alice), noise(100_000, 1)
		var once atomic.Bool
		var again error
		r.db.fault.set(func(step string) error {
			if step == "before db write" && once.CompareAndSwap(false, true) {
				_, again = r.whole(s, data)
			}
			return nil
		})
		if _, err := r.whole(s, data); err != nil || !errors.Is(again, ErrBusy) {
			t.Errorf("%v, and again: %v", err, again)
		}
	})
	t.Run("given up", func(t *testing.T) {
		t.Parallel()
		r, m := sealing(t, nil)
		s := r.begin(alice)
		m.fault.set(func(step string) error {
			if step == "after seal" {
				return r.Abort(t.Context(), s.Secret)
			}
			return nil
		})
		d, err := r.whole(s, noise(100_000, 1))
		if !errors.Is(err, ErrUnknown) {
			t.Errorf("%v", err)
		}
		r.absent(d)
		r.nothingLeft("given up")
	})
	t.Run("given up too late", func(t *testing.T) {
		t.Parallel()
		r, m := sealing(t, nil)
		join := slowJoins(m)
		s := r.begin(alice)
		d, err := r.whole(s, noise(100_000, 1))
		if err != nil {
			t.Fatal(err)
		}
		for _, late := range r.sessionsLocked() { // as by a call that found it before
			r.giveUp(t.Context(), late, "aborted")
		}
		join()
		r.content(d, bob)
	})
}

// Would catch a person who had their data deleted and is named again, by what they had sent just before.
func TestJoinOfTheDisowned(t *testing.T) {
	t.Parallel()
	for _, restart := range []bool{false, true} {
		r, m := sealing(t, nil)
		join := slowJoins(m)
		d := r.stream(noise(100_000, 1))
		if err := r.Disown(t.Context(), alice); err != nil {
			t.Fatal(err)
		}
		if restart {
			m.fault.set(func(step string) error {
				if step == "before commit" {
					return errFault
				}
				return nil
			})
		}
		join()
		if restart {
			r.reopen()
			m.fault.clear()
		}
		r.nobodys(d)
	}
	for _, at := range []string{"after commit", "after put", "before db write"} { // late
		r, m := sealing(t, nil)
		disown := onceMade(m, at, func() error { return r.Disown(t.Context(), alice) })
		made := *m.fault.fn.Load()
		m.fault.set(func(step string) error { return errors.Join(made(step), disown(step)) })
		r.db.fault.set(disown)
		r.nobodys(r.stream(noise(100_000, 1)))
	}
}

// nobodys is for the blob d once it is joined: neither the index nor the storage says whose it was.
func (r *rig) nobodys(d oci.Digest) {
	r.t.Helper()
	r.joined()
	blob, err := r.Stat(r.t.Context(), d, "")
	if err != nil {
		r.t.Fatal(err)
	}
	concerned, err := r.concerned(r.t.Context(), d)
	if err != nil || len(concerned) != 1 || concerned[0] != "" || blob.Owner != "" {
		r.t.Errorf("of %q, concerned %q, %v", blob.Owner, concerned, err)
	}
	if p, err := r.readPointer(r.t.Context(), blobstore.PointerKey(d), maxPointer); err != nil || p.Uploader != "" {
		r.t.Errorf("the pointer names %q, %v", p.Uploader, err)
	}
}

// Would catch somebody who cannot read their own blob, which is not verified yet, while another's upload of it is joined.
func TestJoinBesideOwn(t *testing.T) {
	t.Parallel()
	r, m := sealing(t, func(c *Config) { c.JoinWait = 20 * time.Millisecond })
	m.fault.set(func(step string) error {
		if step == "before commit" || step == "before open" { // nor is the other verified meanwhile
			return errFault
		}
		return nil
	})
	data := noise(100_000, 1)
	if err := r.sql.Write(t.Context(), func(tx *sql.Tx) error {
		_, err := tx.Exec(`INSERT INTO blob (digest, verified, uploader, size, key, created_at, touched_at) VALUES (?,0,?,1,'atcr/uploads/x',0,0)`,
			oci.FromBytes(data).String(), bob.String())
		return err
	}); err != nil {
		t.Fatal(err)
	}
	d, err := r.whole(r.begin(alice), data)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Stat(t.Context(), d, bob); err != nil {
		t.Errorf("bob's own: %v", err)
	}
	if _, err := r.Stat(t.Context(), d, alice); !errors.Is(err, ErrJoining) {
		t.Errorf("for alice: %v", err)
	}
}

// Would catch joins that a start begins while it still looks for more of them, and a stop that breaks off what is all but done.
func TestManyJoinsAtStartAndStop(t *testing.T) {
	t.Parallel()
	r, m := sealing(t, func(c *Config) { c.MaxOpenPerOwner, c.joinPause = 1000, time.Hour })
	m.fault.set(func(step string) error {
		if step == "before commit" {
			return errFault
		}
		return nil
	})
	var all []oci.Digest
	for i := range 200 {
		d, err := r.whole(r.begin(alice), noise(100, uint64(i)))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, d)
	}
	if err := r.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	var made atomic.Int64
	m.fault.set(func(step string) error {
		if step == "before commit" {
			time.Sleep(50 * time.Millisecond) // the stop comes meanwhile
			made.Add(1)
		}
		return nil
	})
	r.open()
	for made.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	r.reopen()
	for _, d := range all {
		r.content(d, bob)
	}
	if n := made.Load(); n != int64(len(all)) {
		t.Errorf("%d objects were made of %d uploads: the stop broke some off", n, len(all))
	}
}

// Would catch a storage that hangs, and keeps the hold from stopping.
func TestStopDuringAHangingJoin(t *testing.T) {
	t.Parallel()
	m := newMemory()
	m.seals = true
	r := newRig(t, hanging{m}, nil)
	if _, err := r.whole(r.begin(alice), noise(100, 1)); err != nil {
		t.Fatal(err)
	}
	if err := r.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// hanging is a storage that does not answer when it is to make an object.
type hanging struct{ *memory }

func (h hanging) Create(ctx context.Context, key string) (blobstore.Writer, error) {
	w, err := h.memory.Create(ctx, key)
	if err != nil {
		return nil, err
	}
	return hangingWriter{w.(*memoryWriter)}, nil //nolint:forcetypeassert // nothing else is made
}

type hangingWriter struct{ *memoryWriter }

func (hangingWriter) Commit(ctx context.Context, _ string) (string, error) {
	<-ctx.Done()
	return "", ctx.Err()
}
