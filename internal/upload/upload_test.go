package upload

import (
	"bytes"
	"context"
	"crypto/sha512"
	"database/sql"
	"encoding/hex"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/internal/blobstore"
	"atcr.io/internal/oci"
	"atcr.io/internal/sqldb"
)

const (
	alice = syntax.DID("did:plc:alice")
	bob   = syntax.DID("did:plc:bob")
)

// clock is a clock that stands until it is moved.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func (c *clock) now() time.Time { c.mu.Lock(); defer c.mu.Unlock(); return c.t }

func (c *clock) move(d time.Duration) { c.mu.Lock(); c.t = c.t.Add(d); c.mu.Unlock() }

// rig is an Uploads with all that is around it; reopen is a crash and a restart.
type rig struct {
	*Uploads
	t     testing.TB
	store blobstore.Store
	sql   *sqldb.DB
	db    *faultyDB
	clock *clock
	cfg   Config
}

func newRig(t testing.TB, store blobstore.Store, change func(*Config)) *rig {
	t.Helper()
	return newRigOn(t, newDB(t), store, change)
}

func newDB(t testing.TB) *sqldb.DB {
	t.Helper()
	db, err := sqldb.Open(t.Context(), filepath.Join(t.TempDir(), "db.sqlite3"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	if err := db.Migrate(t.Context(), "upload", migrations); err != nil {
		t.Fatal(err)
	}
	return db
}

func newRigOn(t testing.TB, db *sqldb.DB, store blobstore.Store, change func(*Config)) *rig {
	t.Helper()
	r := &rig{t: t, store: store, sql: db, db: &faultyDB{DB: db}, clock: &clock{t: time.UnixMilli(1_800_000_000_000)}}
	r.cfg = Config{
		Store: store, Logger: slog.New(slog.DiscardHandler), Now: r.clock.now, SpoolDir: t.TempDir(), SweepEvery: time.Hour,
		joinPause: time.Millisecond,
	}
	if change != nil {
		change(&r.cfg)
	}
	r.open()
	t.Cleanup(func() { _ = r.Close(context.Background()) })
	return r
}

func (r *rig) open() {
	r.t.Helper()
	u, err := open(r.t.Context(), r.cfg, r.db)
	if err != nil {
		r.t.Fatal(err)
	}
	r.Uploads = u
}

// reopen takes what a killed process would leave: nothing of memory is written down first.
func (r *rig) reopen() {
	r.t.Helper()
	if err := r.Close(context.Background()); err != nil {
		r.t.Fatal(err)
	}
	r.open()
}

// faultyDB fails before or after a write transaction when fault says so.
type faultyDB struct {
	*sqldb.DB
	fault hook
}

func (d *faultyDB) around(name string, fn func() error) error {
	if err := d.fault.step("before " + name); err != nil {
		return err
	}
	if err := fn(); err != nil {
		return err
	}
	return d.fault.step("after " + name)
}

func (d *faultyDB) Write(ctx context.Context, fn func(*sql.Tx) error) error {
	return d.around("db write", func() error { return d.DB.Write(ctx, fn) })
}

func (d *faultyDB) WriteRelaxed(ctx context.Context, fn func(*sql.Tx) error) error {
	return d.around("db relaxed", func() error { return d.DB.WriteRelaxed(ctx, fn) })
}

func noise(size int, seed uint64) []byte {
	data := make([]byte, size)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	_, _ = r.Read(data)
	return data
}

func sha512Of(data []byte) oci.Digest {
	sum := sha512.Sum512(data)
	return oci.Digest("sha512:" + hex.EncodeToString(sum[:]))
}

func (r *rig) begin(owner syntax.DID) Session {
	r.t.Helper()
	s, err := r.Begin(r.t.Context(), owner, BeginOptions{})
	if err != nil {
		r.t.Fatal(err)
	}
	return s
}

// content reads the blob d as viewer sees it and checks it against its digest.
func (r *rig) content(d oci.Digest, viewer syntax.DID) []byte {
	r.t.Helper()
	blob, err := r.Stat(r.t.Context(), d, viewer)
	if err != nil {
		r.t.Fatalf("stat %s: %v", d, err)
	}
	object, err := r.Open(r.t.Context(), blob)
	if err != nil {
		r.t.Fatalf("open %s: %v", d, err)
	}
	defer func() { _ = object.Close() }()
	data, err := io.ReadAll(object)
	if err != nil {
		r.t.Fatal(err)
	}
	if !d.Matches(data) || int64(len(data)) != blob.Size {
		r.t.Fatalf("%s has other bytes", d)
	}
	return data
}

func (r *rig) absent(d oci.Digest) {
	r.t.Helper()
	for _, viewer := range []syntax.DID{"", alice, bob} {
		if _, err := r.Stat(r.t.Context(), d, viewer); !errors.Is(err, ErrNoBlob) {
			r.t.Errorf("%s is there for %q: %v", d, viewer, err)
		}
	}
}

// walk checks what must hold whatever happened: no row without its object and no verified digest whose
// bytes are others; and, once every session is old and swept, nothing in the storage that no row names.
func (r *rig) walk() {
	r.t.Helper()
	rows, err := r.sql.Reader().Query(`SELECT digest, verified, key, size FROM blob`)
	if err != nil {
		r.t.Fatal(err)
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var digest, key string
		var verified bool
		var size int64
		if err := rows.Scan(&digest, &verified, &key, &size); err != nil {
			r.t.Fatal(err)
		}
		object, err := r.store.Open(r.t.Context(), key)
		if err != nil {
			var still int // the loop in the background deletes the row, and then the object, of what was joined in vain
			if e := r.sql.Reader().QueryRow(`SELECT count(*) FROM blob WHERE digest = ? AND key = ?`, digest, key).Scan(&still); e != nil {
				r.t.Fatal(e)
			}
			if still > 0 {
				r.t.Fatalf("a row without its object: %s at %s: %v", digest, key, err)
			}
			continue
		}
		data, err := io.ReadAll(object)
		if err != nil {
			r.t.Fatal(err)
		}
		_ = object.Close()
		if verified && (!oci.Digest(digest).Matches(data) || int64(len(data)) != size) {
			r.t.Fatalf("%s is readable and was not hashed", digest)
		}
	}
	if err := rows.Err(); err != nil {
		r.t.Fatal(err)
	}
}

// Would catch bytes lost, doubled or hashed out of step between the ways in which a stream can come.
func TestStream(t *testing.T) {
	t.Parallel()
	for _, size := range []int{0, 1, intakeChunk - 1, intakeChunk, intakeChunk + 1, 3*intakeChunk + 7, 1 << 20} {
		data := noise(size, 1)
		d := oci.FromBytes(data)
		for name, run := range map[string]func(r *rig, secret string) (Blob, error){
			"one PUT": func(r *rig, secret string) (Blob, error) {
				return r.Finish(t.Context(), secret, d, nil, iotest.HalfReader(bytes.NewReader(data)))
			},
			"one PATCH": func(r *rig, secret string) (Blob, error) {
				if n, err := r.Append(t.Context(), secret, nil, bytes.NewReader(data)); err != nil || n != int64(size) {
					t.Fatalf("%d, %v", n, err)
				}
				return r.Finish(t.Context(), secret, d, nil, nil)
			},
			"chunks and a restart": func(r *rig, secret string) (Blob, error) {
				for i := 0; i < size; i += 100_000 {
					at := int64(i)
					end := min(i+100_000, size)
					if n, err := r.Append(t.Context(), secret, &at, bytes.NewReader(data[i:end])); err != nil || n != int64(end) {
						t.Fatalf("%d, %v", n, err)
					}
					r.reopen()
				}
				return r.Finish(t.Context(), secret, d, nil, nil)
			},
			"the last chunk with the PUT": func(r *rig, secret string) (Blob, error) {
				half := int64(size / 2)
				if _, err := r.Append(t.Context(), secret, nil, bytes.NewReader(data[:half])); err != nil {
					t.Fatal(err)
				}
				return r.Finish(t.Context(), secret, d, &half, bytes.NewReader(data[half:]))
			},
		} {
			for _, keep := range []bool{false, true} {
				m := newMemory()
				m.keepKeys = keep
				r := newRig(t, m, nil)
				s := r.begin(alice)
				r.checkpoint, r.checkpointPause = 150_000, 0
				blob, err := run(r, s.Secret)
				if err != nil || blob.Digest != d || blob.Size != int64(size) || !blob.Verified || blob.Owner != alice {
					t.Fatalf("%s of %d: %+v, %v", name, size, blob, err)
				}
				r.content(d, "")
				again, err := r.Finish(t.Context(), s.Secret, d, nil, bytes.NewReader(data))
				if err != nil || again.Digest != d {
					t.Errorf("%s: a repeated PUT: %v", name, err)
				}
				r.reopen()
				r.content(d, bob)
				r.walk()
			}
		}
	}
}

// Would catch a wrong digest that becomes readable, under its own name or another, and bytes left behind.
func TestMismatch(t *testing.T) {
	t.Parallel()
	m := newMemory()
	r := newRig(t, m, nil)
	data, wrong := noise(200_000, 1), oci.FromBytes(noise(10, 2))
	for name, body := range map[string][2][]byte{"put": {nil, data}, "patch": {data, nil}} {
		s := r.begin(alice)
		if body[0] != nil {
			if _, err := r.Append(t.Context(), s.Secret, nil, bytes.NewReader(body[0])); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := r.Finish(t.Context(), s.Secret, wrong, nil, bytes.NewReader(body[1])); !errors.Is(err, ErrDigestMismatch) {
			t.Fatalf("%s: %v", name, err)
		}
		if _, err := r.Status(t.Context(), s.Secret); !errors.Is(err, ErrUnknown) {
			t.Errorf("%s: the upload is still there: %v", name, err)
		}
	}
	r.absent(wrong)
	r.absent(oci.FromBytes(data))
	if len(m.objects)+len(m.staged) != 0 {
		t.Errorf("left in the storage: %d objects, %d staged", len(m.objects), len(m.staged))
	}
}

// Would catch an object that is made of a stream under a key that belongs to another digest: a PUT that
// broke off named one digest, the next one another.
func TestDigestChangesItsMind(t *testing.T) {
	t.Parallel()
	m := newMemory()
	m.keepKeys = true
	r := newRig(t, m, nil)
	data := noise(100_000, 1)
	other := oci.FromBytes([]byte("other"))
	s := r.begin(alice)
	broken := io.MultiReader(bytes.NewReader(data[:50_000]), iotest.ErrReader(io.ErrUnexpectedEOF))
	if _, err := r.Finish(t.Context(), s.Secret, other, nil, broken); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Fatal(err)
	}
	if _, err := r.Finish(t.Context(), s.Secret, oci.FromBytes(data), nil, bytes.NewReader(data[50_000:])); !errors.Is(err, ErrDigestMismatch) {
		t.Fatal(err)
	}
	if len(m.objects) != 0 {
		t.Errorf("objects: %v", m.objects)
	}
}

// Would catch chunks stored out of order, and an offset that the client cannot learn.
func TestOrder(t *testing.T) {
	t.Parallel()
	r := newRig(t, newMemory(), nil)
	s := r.begin(alice)
	if _, err := r.Append(t.Context(), s.Secret, nil, bytes.NewReader(noise(1000, 1))); err != nil {
		t.Fatal(err)
	}
	for _, start := range []int64{0, 999, 1001, -1} {
		_, err := r.Append(t.Context(), s.Secret, &start, bytes.NewReader([]byte("x")))
		wrong, ok := errors.AsType[*RangeError](err)
		if !ok || wrong.Offset != 1000 || !errors.Is(err, ErrRange) {
			t.Errorf("start %d: %v", start, err)
		}
		if _, err := r.Finish(t.Context(), s.Secret, oci.FromBytes(nil), &start, nil); !errors.Is(err, ErrRange) {
			t.Errorf("finish at %d: %v", start, err)
		}
	}
	if n, err := r.Status(t.Context(), s.Secret); n != 1000 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
}

// Would catch bytes that are lost, or counted and not stored, when a body breaks off, now or after a restart.
func TestBrokenBody(t *testing.T) {
	t.Parallel()
	data := noise(300_000, 1)
	d := oci.FromBytes(data)
	for _, reopen := range []bool{false, true} {
		for _, put := range []bool{false, true} {
			r := newRig(t, newMemory(), nil)
			s := r.begin(alice)
			broken := io.MultiReader(bytes.NewReader(data[:123_456]), iotest.ErrReader(io.ErrUnexpectedEOF))
			var err error
			if put {
				_, err = r.Finish(t.Context(), s.Secret, d, nil, broken)
			} else {
				_, err = r.Append(t.Context(), s.Secret, nil, broken)
			}
			if !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Fatal(err)
			}
			if reopen {
				r.reopen()
			}
			n, err := r.Status(t.Context(), s.Secret)
			if err != nil || n != 123_456 {
				t.Fatalf("%d, %v", n, err)
			}
			if _, err := r.Finish(t.Context(), s.Secret, d, &n, bytes.NewReader(data[n:])); err != nil {
				t.Fatal(err)
			}
			r.content(d, "")
		}
	}
}

// Would catch sha512 refused where it can be had, or believed without being computed.
func TestAlgorithms(t *testing.T) {
	t.Parallel()
	data := noise(100_000, 1)
	d := sha512Of(data)
	for _, keep := range []bool{false, true} {
		m := newMemory()
		m.keepKeys = keep
		r := newRig(t, m, nil)

		s := r.begin(alice) // announced by the PUT that brings everything
		if _, err := r.Finish(t.Context(), s.Secret, d, nil, bytes.NewReader(data)); err != nil {
			t.Fatal(err)
		}
		r.content(d, "")

		r = newRig(t, m, nil)
		s, err := r.Begin(t.Context(), alice, BeginOptions{Algorithm: oci.SHA512}) // announced at POST
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.Append(t.Context(), s.Secret, nil, bytes.NewReader(data)); err != nil {
			t.Fatal(err)
		}
		r.reopen()
		if _, err := r.Finish(t.Context(), s.Secret, d, nil, nil); err != nil {
			t.Fatal(err)
		}
		r.content(d, "")

		m = newMemory()
		m.keepKeys = keep
		r = newRig(t, m, nil)
		for _, want := range []struct {
			digest oci.Digest
			err    error
		}{{sha512Of([]byte("else")), ErrDigestMismatch}, {d, nil}} { // never announced
			s = r.begin(alice)
			if _, err := r.Append(t.Context(), s.Secret, nil, bytes.NewReader(data)); err != nil {
				t.Fatal(err)
			}
			if _, err := r.Finish(t.Context(), s.Secret, want.digest, nil, nil); !errors.Is(err, want.err) {
				t.Fatalf("%v, want %v", err, want.err)
			}
		}
		r.content(d, "")
		r.absent(sha512Of([]byte("else")))
		r.walk()
	}
}

// looking calls each before it gives the next bytes, of which there are 100 a time.
type looking struct {
	times int
	each  func(given int)
}

func (l *looking) Read(p []byte) (int, error) {
	if l.each(l.times * 100); l.times == 10 {
		return 0, io.EOF
	}
	l.times++
	return copy(p, make([]byte, 100)), nil
}

// Would catch a long stream of which nothing would outlive a crash, and a fast one that stops for it at every turn.
func TestCheckpoints(t *testing.T) {
	t.Parallel()
	r := newRig(t, newMemory(), nil)
	r.checkpoint = 200
	s := r.begin(alice)
	kept := func() (n int64) {
		if err := r.sql.Reader().QueryRow(`SELECT coalesce(max(byte_offset), -1) FROM upload`).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	var after [11]int64
	if _, err := r.Append(t.Context(), s.Secret, nil, &looking{each: func(given int) {
		if after[given/100] = kept(); given == 500 {
			r.clock.move(checkpointPause)
		}
	}}); err != nil {
		t.Fatal(err)
	}
	if after[1] != after[5] || after[5] > 0 || after[7] != 600 || after[10] != 600 || kept() != 1000 {
		t.Errorf("after each 100 bytes %v were kept, in the end %d", after, kept())
	}
}
