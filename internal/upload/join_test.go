package upload

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"testing"
	"time"

	"atcr.io/api/atcr"
	"atcr.io/internal/blobstore"
	"atcr.io/internal/oci"
)

// slowJoins is a storage that joins parts when it is told to.
func slowJoins(m *memory) (join func()) {
	m.seals, m.keepKeys = true, true
	gate := make(chan struct{})
	m.fault.set(func(step string) error {
		if step == "before commit" {
			<-gate
		}
		return nil
	})
	return func() { close(gate) }
}

// looked is what a Stat in the background comes to.
type looked struct {
	blob Blob
	err  error
}

func (r *rig) look(ctx context.Context, d oci.Digest) <-chan looked {
	out := make(chan looked, 1)
	go func() {
		blob, err := r.Stat(ctx, d, "")
		out <- looked{blob, err}
	}()
	return out
}

// Would catch an answer that waits for the storage to join the parts, a reader who is told of a blob before there is an
// object or that there is none, and an upload that can be changed or ended after it was acknowledged.
func TestJoin(t *testing.T) {
	t.Parallel()
	m := newMemory()
	join := slowJoins(m)
	r := newRig(t, m, nil)
	data := noise(100_000, 1)
	d := oci.FromBytes(data)
	s := r.begin(alice)
	if _, err := r.Append(t.Context(), s.Secret, nil, bytes.NewReader(data)); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second is a client's that did not hear the answer
		blob, err := r.Finish(t.Context(), s.Secret, d, nil, nil)
		if err != nil || !blob.Joining() || blob.Size != int64(len(data)) || blob.Owner != alice {
			t.Fatalf("%+v, %v", blob, err)
		}
	}
	if _, err := r.Finish(t.Context(), s.Secret, oci.FromBytes(nil), nil, nil); !errors.Is(err, ErrUnknown) {
		t.Errorf("finished as something else: %v", err)
	}
	reader := r.look(t.Context(), d)
	if _, err := r.Append(t.Context(), s.Secret, nil, bytes.NewReader(data)); !errors.Is(err, ErrUnknown) {
		t.Errorf("Append: %v", err)
	}
	if _, err := r.Status(t.Context(), s.Secret); !errors.Is(err, ErrUnknown) {
		t.Errorf("Status: %v", err)
	}
	if err := r.Abort(t.Context(), s.Secret); !errors.Is(err, ErrUnknown) {
		t.Errorf("Abort: %v", err)
	}
	if err := r.Cancel(t.Context(), alice, s.ID); !errors.Is(err, ErrUnknown) {
		t.Errorf("Cancel: %v", err)
	}
	r.clock.move(2 * OpenFor)
	if err := r.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if r.joins.count() != 1 {
		t.Errorf("%v are being joined", r.joins.count())
	}
	select {
	case got := <-reader:
		t.Fatalf("told of it before there is an object: %+v", got)
	case <-time.After(20 * time.Millisecond):
	}
	join()
	if got := <-reader; got.err != nil || got.blob.Key == "" || got.blob.Joining() {
		t.Fatalf("%+v", got)
	}
	if !bytes.Equal(r.content(d, bob), data) {
		t.Error("other bytes")
	}
	if blob, err := r.Finish(t.Context(), s.Secret, d, nil, nil); err != nil || blob.Joining() {
		t.Errorf("finished again: %+v, %v", blob, err)
	}
	r.clock.move(2 * RememberFor)
	if err := r.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.walk()
	r.nothingLeft("joined")
}

// Would catch a blob that was acknowledged and is lost because the hold stopped, or the storage failed, before its parts
// were joined.
func TestJoinAfterRestart(t *testing.T) {
	t.Parallel()
	m := newMemory()
	m.seals, m.keepKeys = true, true
	m.fault.set(func(step string) error {
		if step == "before commit" {
			return errFault
		}
		return nil
	})
	r := newRig(t, m, nil)
	data := noise(100_000, 1)
	d := oci.FromBytes(data)
	s := r.begin(alice)
	if _, err := r.Finish(t.Context(), s.Secret, d, nil, bytes.NewReader(data)); err != nil {
		t.Fatal(err)
	}
	reader := r.look(t.Context(), d)
	if err := r.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := <-reader; !errors.Is(got.err, ErrClosed) {
		t.Errorf("while the hold stops: %+v", got)
	}
	r.clock.move(2 * OpenFor)
	r.reopen()
	if err := r.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	m.fault.clear()
	if !bytes.Equal(r.content(d, bob), data) {
		t.Error("other bytes")
	}
}

// Would catch readers who keep a hold from stopping, since they wait for a join that only its end breaks off.
func TestJoinWhileTheHoldStops(t *testing.T) {
	t.Parallel()
	r, m := sealing(t, func(c *Config) { c.JoinWait = time.Hour })
	join := slowJoins(m)
	d, err := r.whole(r.begin(alice), noise(100_000, 1))
	if err != nil {
		t.Fatal(err)
	}
	early := r.look(t.Context(), d)
	r.StopWaiting()
	for _, reader := range []<-chan looked{early, r.look(t.Context(), d)} {
		if got := <-reader; !errors.Is(got.err, ErrClosed) {
			t.Errorf("%+v", got)
		}
	}
	join()
	r.joined()
	r.content(d, bob)
}

// Would catch readers who wait for ever, and a blob that is said to be there although the storage lost its parts.
func TestJoinFails(t *testing.T) {
	t.Parallel()
	m := newMemory()
	m.seals, m.keepKeys = true, true
	r := newRig(t, m, func(c *Config) { c.JoinWait = 10 * time.Millisecond })
	fail := func(err error) {
		m.fault.set(func(step string) error {
			if step == "before commit" {
				r.clock.move(joinLostAfter)
				return err
			}
			return nil
		})
	}
	fail(errFault)
	data := noise(100_000, 1)
	d := oci.FromBytes(data)
	s := r.begin(alice)
	if _, err := r.Finish(t.Context(), s.Secret, d, nil, bytes.NewReader(data)); err != nil {
		t.Fatal(err)
	}
	if got := <-r.look(t.Context(), d); !errors.Is(got.err, ErrJoining) {
		t.Errorf("the storage fails: %+v", got)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if got := <-r.look(gone, d); !errors.Is(got.err, context.Canceled) {
		t.Errorf("the reader is gone: %+v", got)
	}
	fail(blobstore.ErrNotFound)
	for {
		got := <-r.look(t.Context(), d)
		if errors.Is(got.err, ErrNoBlob) {
			break
		}
		if !errors.Is(got.err, ErrJoining) {
			t.Fatalf("the parts are lost: %+v", got)
		}
	}
	if r.joins.count() != 0 || r.countOpen() != 0 {
		t.Errorf("%v being joined, %v open", r.joins.count(), r.countOpen())
	}
	m.fault.clear()
	r.Uploads.cfg.JoinWait = time.Minute // nobody waits for one now
	s = r.begin(alice)
	if _, err := r.Finish(t.Context(), s.Secret, d, nil, bytes.NewReader(data)); err != nil {
		t.Fatal(err)
	}
	r.content(d, bob)
}

// Would catch a blob that is taken for lost because the storage said so twice, long after each other, and could not be asked in
// between.
func TestJoinFailsNowAndThen(t *testing.T) {
	t.Parallel()
	r, m := sealing(t, nil)
	faults := []error{blobstore.ErrNotFound, errFault, blobstore.ErrNotFound, errFault, blobstore.ErrNotFound}
	m.fault.set(func(step string) error {
		if step != "before commit" || len(faults) == 0 {
			return nil
		}
		err := faults[0]
		faults = faults[1:]
		r.clock.move(joinLostAfter)
		return err
	})
	r.content(r.stream(noise(100_000, 1)), bob)
}

// Would catch two uploads of one blob at once of which the one that fails hides the other, or whose second object stays.
func TestJoinTwice(t *testing.T) {
	t.Parallel()
	m := newMemory()
	m.seals, m.keepKeys = true, true
	gates := make(chan error, 3)
	m.fault.set(func(step string) error {
		if step == "before commit" {
			return <-gates
		}
		return nil
	})
	r := newRig(t, m, nil)
	data := noise(100_000, 1)
	d := oci.FromBytes(data)
	for range 2 {
		s := r.begin(alice)
		if blob, err := r.Finish(t.Context(), s.Secret, d, nil, bytes.NewReader(data)); err != nil || !blob.Joining() {
			t.Fatalf("%+v, %v", blob, err)
		}
	}
	reader := r.look(t.Context(), d)
	for _, err := range []error{blobstore.ErrNotFound, nil, nil} {
		gates <- err
	}
	if got := <-reader; got.err != nil || got.blob.Key == "" {
		t.Fatalf("%+v", got)
	}
	r.joined()
	r.clock.move(2 * RememberFor)
	if err := r.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.walk()
	r.nothingLeft("twice")
}

// Would catch an AppView that is not told to ask once more, and a wait for what needs none.
func TestJoiningHeader(t *testing.T) {
	t.Parallel()
	m := newMemory()
	join := slowJoins(m)
	defer join()
	r := newRig(t, m, nil)
	base := r.serve()
	put := func(data, want string) {
		t.Helper()
		r.exchange(URL(base, r.begin(alice).Secret), exchange{
			method: http.MethodPut, query: "?digest=" + oci.FromBytes([]byte(data)).String(), body: data,
			status: http.StatusCreated, want: map[string]string{atcr.JoiningHeader: want},
		})
	}
	put("large", "true")
	m.seals = false
	m.fault.clear()
	put("small", "")
}
