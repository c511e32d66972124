package upload

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"
	"github.com/prometheus/client_golang/prometheus"

	"atcr.io/internal/blobstore"
	"atcr.io/internal/oci"
)

// gate is a body that waits in its first Read until it is opened.
type gate struct {
	reached, open chan struct{}
	once          sync.Once
	rest          io.Reader
}

func newGate(rest io.Reader) *gate {
	return &gate{reached: make(chan struct{}), open: make(chan struct{}), rest: rest}
}

func (g *gate) Read(p []byte) (int, error) {
	g.once.Do(func() { close(g.reached); <-g.open })
	return g.rest.Read(p)
}

// Would catch two requests that write into one upload at once, and a second that waits for ever.
func TestTwoAppenders(t *testing.T) {
	t.Parallel()
	r := newRig(t, newMemory(), nil)
	s := r.begin(alice)
	data := noise(100_000, 1)
	g := newGate(bytes.NewReader(data))
	done := make(chan error, 1)
	go func() {
		_, err := r.Append(context.WithoutCancel(t.Context()), s.Secret, nil, g)
		done <- err
	}()
	<-g.reached
	if _, err := r.Append(t.Context(), s.Secret, nil, bytes.NewReader(data)); !errors.Is(err, ErrBusy) {
		t.Errorf("append: %v", err)
	}
	if _, err := r.Finish(t.Context(), s.Secret, oci.FromBytes(data), nil, nil); !errors.Is(err, ErrBusy) {
		t.Errorf("finish: %v", err)
	}
	close(g.open)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if _, err := r.Finish(t.Context(), s.Secret, oci.FromBytes(data), nil, nil); err != nil {
		t.Fatal(err)
	}
	r.content(oci.FromBytes(data), "")
}

// Would catch an abort that leaves bytes behind, or one that a running request survives.
func TestAbort(t *testing.T) {
	t.Parallel()
	m := newMemory()
	r := newRig(t, m, nil)
	s := r.begin(alice)
	g := newGate(bytes.NewReader(noise(100_000, 1)))
	done := make(chan error, 1)
	go func() {
		_, err := r.Append(context.WithoutCancel(t.Context()), s.Secret, nil, io.MultiReader(bytes.NewReader([]byte("x")), g))
		done <- err
	}()
	<-g.reached
	if err := r.Abort(t.Context(), s.Secret); err != nil {
		t.Fatal(err)
	}
	close(g.open)
	if err := <-done; !errors.Is(err, ErrUnknown) {
		t.Errorf("the running append: %v", err)
	}
	if err := r.Abort(t.Context(), s.Secret); !errors.Is(err, ErrUnknown) {
		t.Errorf("again: %v", err)
	}
	s = r.begin(alice)
	if err := r.Cancel(t.Context(), bob, s.ID); !errors.Is(err, ErrUnknown) {
		t.Errorf("somebody else's: %v", err)
	}
	if err := r.Cancel(t.Context(), alice, s.ID); err != nil {
		t.Errorf("cancel: %v", err)
	}
	if len(m.staged)+len(m.objects) != 0 || r.countOpen() != 0 {
		t.Errorf("left: %d staged, %d objects, %v open", len(m.staged), len(m.objects), r.countOpen())
	}
}

// Would catch a blob that the second of two uploads of it overwrites or loses, and bytes left of the spare one.
func TestSameDigestTogether(t *testing.T) {
	t.Parallel()
	for _, keep := range []bool{false, true} {
		m := newMemory()
		m.keepKeys = keep
		r := newRig(t, m, nil)
		data := noise(300_000, 1)
		d := oci.FromBytes(data)
		var wg sync.WaitGroup
		for i := range 8 {
			owner := []syntax.DID{alice, bob}[i%2]
			s := r.begin(owner)
			wg.Go(func() {
				if i%4 < 2 {
					if _, err := r.Append(t.Context(), s.Secret, nil, bytes.NewReader(data)); err != nil {
						t.Error(err)
					}
					if _, err := r.Finish(t.Context(), s.Secret, d, nil, nil); err != nil {
						t.Error(err)
					}
					return
				}
				if _, err := r.Finish(t.Context(), s.Secret, d, nil, bytes.NewReader(data)); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		r.content(d, "")
		blobs := 0
		for key := range m.objects {
			if key != blobstore.PointerKey(d) {
				blobs++
			}
		}
		if blobs != 1 {
			t.Errorf("%d objects of one blob", blobs)
		}
		for _, did := range []syntax.DID{alice, bob} {
			if ok, err := r.UploadedBy(t.Context(), d, did); err != nil || !ok {
				t.Errorf("%s uploaded it too: %v", did, err)
			}
			if n, size, err := r.Usage(t.Context(), did); n != 1 || size != int64(len(data)) || err != nil {
				t.Errorf("usage of %s: %d, %d, %v", did, n, size, err)
			}
		}
		r.walk()
	}
}

// Would catch a blob that stays broken for ever because its row says that it is there.
func TestMissingObjectIsReplaced(t *testing.T) {
	t.Parallel()
	m := newMemory()
	r := newRig(t, m, nil)
	data := noise(1000, 1)
	d := oci.FromBytes(data)
	for range 2 {
		s := r.begin(alice)
		if _, err := r.Finish(t.Context(), s.Secret, d, nil, bytes.NewReader(data)); err != nil {
			t.Fatal(err)
		}
		r.content(d, "")
		delete(m.objects, blobstore.BlobKey(d))
	}
}

// Would catch a quota asked only at the end, or not for small blobs, and bytes kept after a refusal.
func TestQuota(t *testing.T) {
	t.Parallel()
	for name, send := range map[string]func(r *rig, s Session, body io.Reader) error{
		"stream": func(r *rig, s Session, body io.Reader) error {
			_, err := r.Append(t.Context(), s.Secret, nil, body)
			return err
		},
		"part": func(r *rig, s Session, body io.Reader) error {
			_, err := r.PutPart(t.Context(), alice, s.ID, 1, body)
			return err
		},
		"part ahead": func(r *rig, s Session, body io.Reader) error {
			_, err := r.PutPart(t.Context(), alice, s.ID, 2, body)
			return err
		},
	} {
		m := newMemory()
		var asked atomic.Int64
		r := newRig(t, m, func(c *Config) {
			c.Allow = func(_ context.Context, owner syntax.DID, n int64) error {
				if asked.Add(1); owner == alice && n > 3<<20 {
					return &Refused{"three MiB"}
				}
				return nil
			}
		})
		small := r.begin(alice)
		if _, err := r.Append(t.Context(), small.Secret, nil, bytes.NewReader([]byte("small"))); err != nil || asked.Load() != 1 {
			t.Errorf("%s: a small one: asked %d times, %v", name, asked.Load(), err)
		}
		s := r.begin(alice)
		body := bytes.NewReader(make([]byte, 64<<20))
		if err := send(r, s, body); !errors.Is(err, ErrQuota) {
			t.Fatalf("%s: %v", name, err)
		}
		if taken := body.Size() - int64(body.Len()); taken > 5<<20 {
			t.Errorf("%s: %d bytes were taken", name, taken)
		}
		if err := send(r, s, body); !errors.Is(err, ErrUnknown) {
			t.Errorf("%s: the upload goes on: %v", name, err)
		}
		if len(m.staged) != 1 || r.spooled != 0 {
			t.Errorf("%s: left %d staged, %d spooled", name, len(m.staged), r.spooled)
		}
	}
}

// Would catch a blob over the limit that is taken, and a limit that eats a blob of exactly its size.
func TestMaxBlobBytes(t *testing.T) {
	t.Parallel()
	r := newRig(t, newMemory(), func(c *Config) { c.MaxBlobBytes = 1000 })
	for size, want := range map[int]error{1000: nil, 1001: ErrTooLarge} {
		data := noise(size, 1)
		s := r.begin(alice)
		if _, err := r.Finish(t.Context(), s.Secret, oci.FromBytes(data), nil, bytes.NewReader(data)); !errors.Is(err, want) {
			t.Errorf("%d: %v", size, err)
		}
	}
}

// Would catch one person who fills the hold with uploads, and one who locks themselves out with empty ones.
func TestTooManyOpen(t *testing.T) {
	t.Parallel()
	r := newRig(t, newMemory(), func(c *Config) { c.MaxOpenPerOwner, c.MaxOpen = 3, 4 })
	var first Session
	for i := range 3 {
		if s := r.begin(alice); i == 0 {
			first = s
			r.clock.move(time.Second)
		}
	}
	if _, err := r.Begin(t.Context(), alice, BeginOptions{}); !errors.Is(err, ErrTooManyOpen) {
		t.Errorf("own: %v", err)
	}
	r.begin(bob)
	if _, err := r.Begin(t.Context(), bob, BeginOptions{}); !errors.Is(err, ErrTooManyOpen) {
		t.Errorf("all: %v", err)
	}
	r.clock.move(emptySessionGrace + time.Second)
	r.begin(alice)
	if _, err := r.Status(t.Context(), first.Secret); !errors.Is(err, ErrUnknown) {
		t.Errorf("the oldest empty one: %v", err)
	}
}

// Would catch what must never be a Location header or a hash.
func TestBeginOptions(t *testing.T) {
	t.Parallel()
	r := newRig(t, newMemory(), nil)
	for _, o := range []BeginOptions{
		{Location: "ftp://a.test/x"}, {Location: "/v2/x"}, {Location: "https://a.test/\r\nX: 1"}, {Location: "https://u:p@a.test/"},
		{Location: "https://a.test/" + string(bytes.Repeat([]byte("a"), 3000))}, {Algorithm: "md5"}, {Location: "javascript:alert(1)"},
	} {
		if _, err := r.Begin(t.Context(), alice, o); !errors.Is(err, ErrInvalid) {
			t.Errorf("%.40v: %v", o, err)
		}
	}
	s, err := r.Begin(t.Context(), alice, BeginOptions{Location: "https://a.test/v2/x/blobs/", Algorithm: oci.SHA512})
	if err != nil || len(s.ID) > 256 || len(s.Secret) != secretLength || s.ID == s.Secret {
		t.Errorf("%+v, %v", s, err)
	}
}

// Would catch uploads that are never freed, freed too early, or whose finished ones are forgotten at once.
func TestExpiry(t *testing.T) {
	t.Parallel()
	m := presigning{newMemory()}
	r := newRig(t, m, nil)
	data := noise(1000, 1)
	stream, parts, direct, empty, finished := r.begin(alice), r.begin(alice), r.begin(alice), r.begin(alice), r.begin(alice)
	if _, err := r.Append(t.Context(), stream.Secret, nil, bytes.NewReader(data)); err != nil {
		t.Fatal(err)
	}
	if _, err := r.PutPart(t.Context(), alice, parts.ID, 1, bytes.NewReader(data)); err != nil {
		t.Fatal(err)
	}
	if _, err := r.PutPart(t.Context(), alice, parts.ID, 3, bytes.NewReader(data)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := r.PartURL(t.Context(), alice, direct.ID, 1); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Finish(t.Context(), finished.Secret, oci.FromBytes(data), nil, bytes.NewReader(data)); err != nil {
		t.Fatal(err)
	}
	sweep := func() {
		t.Helper()
		if err := r.Sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	r.clock.move(59 * time.Minute)
	sweep()
	if n, err := r.Status(t.Context(), stream.Secret); err != nil || n != 1000 {
		t.Errorf("after 59 minutes: %d, %v", n, err)
	}
	if _, err := r.Append(t.Context(), stream.Secret, nil, bytes.NewReader(data)); err != nil {
		t.Errorf("a rested upload goes on: %v", err)
	}
	r.clock.move(59 * time.Minute)
	if _, err := r.Status(t.Context(), stream.Secret); err != nil {
		t.Errorf("bytes give another hour: %v", err)
	}
	if _, err := r.Status(t.Context(), empty.Secret); !errors.Is(err, ErrUnknown) {
		t.Errorf("without bytes for two hours: %v", err)
	}
	r.clock.move(time.Hour)
	if _, err := r.Status(t.Context(), stream.Secret); !errors.Is(err, ErrUnknown) {
		t.Errorf("without bytes for an hour, before any sweep: %v", err)
	}
	sweep()
	if _, _, err := r.PartURL(t.Context(), alice, direct.ID, 2); err != nil {
		t.Errorf("presigned parts have a day: %v", err)
	}
	if _, err := r.PutPart(t.Context(), alice, parts.ID, 2, bytes.NewReader(data)); err != nil {
		t.Errorf("parts have a day: %v", err)
	}
	r.clock.move(20 * time.Hour)
	if _, err := r.Finish(t.Context(), finished.Secret, oci.FromBytes(data), nil, nil); err != nil {
		t.Errorf("finished, within a day: %v", err)
	}
	r.reopen()
	r.clock.move(2 * time.Hour)
	sweep()
	for _, s := range []Session{stream, parts, direct, empty} {
		if _, err := r.PutPart(t.Context(), alice, s.ID, 1, bytes.NewReader(data)); !errors.Is(err, ErrUnknown) {
			t.Errorf("after a day: %v", err)
		}
	}
	r.clock.move(time.Hour)
	sweep()
	if _, err := r.Finish(t.Context(), finished.Secret, oci.FromBytes(data), nil, nil); !errors.Is(err, ErrUnknown) {
		t.Errorf("finished, after a day: %v", err)
	}
	r.content(oci.FromBytes(data), "")
	var rows int
	if err := r.sql.Reader().QueryRow(`SELECT count(*) FROM upload`).Scan(&rows); err != nil || rows != 0 {
		t.Errorf("%d rows left, %v", rows, err)
	}
	// The finished one's staging is the test store's own.
	if left := len(m.staged); left != 1 || len(m.objects) != 1 || r.spooled != 0 {
		t.Errorf("left: %d staged, %d objects, %d spooled", left, len(m.objects), r.spooled)
	}
}

// Would catch a stop that loses what arrived, waits for a slow sender, or leaves files open.
func TestCloseKeepsWhatArrived(t *testing.T) {
	t.Parallel()
	r := newRig(t, newMemory(), nil)
	s := r.begin(alice)
	g := newGate(bytes.NewReader([]byte("more")))
	done := make(chan error, 1)
	go func() {
		_, err := r.Append(context.WithoutCancel(t.Context()), s.Secret, nil, io.MultiReader(bytes.NewReader([]byte("first ")), g))
		done <- err
	}()
	<-g.reached
	short, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if err := r.Close(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("close while a sender is stuck: %v", err)
	}
	close(g.open)
	if err := <-done; !errors.Is(err, ErrClosed) {
		t.Errorf("the running append: %v", err)
	}
	if _, err := r.Begin(t.Context(), alice, BeginOptions{}); !errors.Is(err, ErrClosed) {
		t.Errorf("begin: %v", err)
	}
	if _, err := r.Append(t.Context(), s.Secret, nil, nil); !errors.Is(err, ErrClosed) {
		t.Errorf("append: %v", err)
	}
	r.reopen()
	n, err := r.Status(t.Context(), s.Secret)
	if err != nil || n < 6 {
		t.Fatalf("%d, %v", n, err)
	}
	if _, err := r.Finish(t.Context(), s.Secret, oci.FromBytes([]byte("first more")), nil, bytes.NewReader([]byte("first more")[n:])); err != nil {
		t.Error(err)
	}
}

// Would catch metrics that are registered twice or under names that say nothing.
func TestMetrics(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewPedanticRegistry()
	r := newRig(t, newMemory(), func(c *Config) { c.Metrics = reg })
	r.begin(alice)
	s := r.begin(alice)
	if _, err := r.Finish(t.Context(), s.Secret, oci.FromBytes([]byte("x")), nil, bytes.NewReader([]byte("x"))); err != nil {
		t.Fatal(err)
	}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			got[f.GetName()] += m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	for name, want := range map[string]float64{
		"atcr_hold_upload_bytes_total": 1, "atcr_hold_uploads_open": 1, "atcr_hold_uploads_finished_total": 1,
	} {
		if got[name] != want {
			t.Errorf("%s is %v, want %v", name, got[name], want)
		}
	}
}

// Would catch spool files that have a name, and so outlive a crash.
func TestSpoolLeavesNoFiles(t *testing.T) {
	t.Parallel()
	r := newRig(t, newMemory(), nil)
	s := r.begin(alice)
	if _, err := r.PutPart(t.Context(), alice, s.ID, 2, bytes.NewReader([]byte("second"))); err != nil {
		t.Fatal(err)
	}
	files, err := os.ReadDir(r.cfg.SpoolDir)
	if err != nil || len(files) != 0 {
		t.Errorf("%v, %v", files, err)
	}
}
