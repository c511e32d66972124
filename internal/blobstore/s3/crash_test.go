package s3_test

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"atcr.io/internal/blobstore"
	"atcr.io/internal/blobstore/s3"
)

// Would catch an upload lost to a crash in a later PATCH, though its State was kept.
func TestStateOutlivesWhatComesAfter(t *testing.T) {
	t.Parallel()
	c := bucket(t)
	s := open(t, c)
	data := bytes.Repeat([]byte("0123456789abcdef"), (2*s3.PartBytes)/16)
	w, err := s.Create(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.ReadFrom(bytes.NewReader(data[:1<<20])); err != nil {
		t.Fatal(err)
	}
	state, err := w.State(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.ReadFrom(bytes.NewReader(data[1<<20:])); err != nil { // over the end of the part
		t.Fatal(err)
	}
	if err := w.Close(); err != nil { // the process ends before the next State
		t.Fatal(err)
	}
	again, err := open(t, c).Resume(t.Context(), state)
	if err != nil {
		t.Fatalf("Resume: %v", err)
	}
	defer func() { _ = again.Close() }()
	if _, err := again.ReadFrom(bytes.NewReader(data[1<<20:])); err != nil {
		t.Fatal(err)
	}
	key, err := again.Commit(t.Context(), "outlives/data")
	if err != nil {
		t.Fatal(err)
	}
	o, err := s.Open(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = o.Close() }()
	if got, err := io.ReadAll(o); err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

// Would catch parts that stay in the bucket for good, since no state names their upload.
func TestDiscardOfAnEarlyState(t *testing.T) {
	t.Parallel()
	c := bucket(t)
	aborted := atomic.Int64{}
	begun := atomic.Int64{}
	c.Wrap = &transport{fault: func(r *http.Request, _ int64) (*http.Response, error) {
		if r.Method == http.MethodPost && r.URL.Query().Has("uploads") {
			begun.Add(1)
		}
		if r.Method == http.MethodDelete && r.URL.Query().Has("uploadId") {
			aborted.Add(1)
		}
		return nil, nil
	}}
	s := open(t, c)
	w, err := s.Create(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	state, err := w.State(t.Context()) // what a caller keeps when the upload begins
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.ReadFrom(bytes.NewReader(make([]byte, 2*s3.PartBytes+1))); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil { // the process ends before the next State
		t.Fatal(err)
	}
	if err := open(t, c).Discard(t.Context(), state); err != nil {
		t.Fatal(err)
	}
	if begun.Load() != aborted.Load() {
		t.Errorf("%d uploads begun, %d aborted", begun.Load(), aborted.Load())
	}
}

// Would catch the tail of a slow sender that stays in the spool folder for good.
func TestDiscardOfASlowSendersTail(t *testing.T) {
	t.Parallel()
	c := bucket(t)
	c.Slow = time.Millisecond
	s := open(t, c)
	w, err := s.Create(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	state, err := w.State(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	hold, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		_, err := w.ReadFrom(&slowReader{bytes.NewReader([]byte("little")), hold})
		ended <- err
	}()
	for { // until the tail is spooled
		found, err := filepath.Glob(filepath.Join(c.SpoolDir, "*"))
		if err != nil {
			t.Fatal(err)
		}
		if len(found) > 0 || t.Context().Err() != nil {
			break
		}
	}
	close(hold)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Discard(t.Context(), state); err != nil {
		t.Fatal(err)
	}
	if left, err := filepath.Glob(filepath.Join(c.SpoolDir, "*")); err != nil || len(left) != 0 {
		t.Errorf("left: %v %v", left, err)
	}
}

// Would catch a PUT that is answered 404 though the blob is there: the hold ended between the storage's
// answer and its own.
func TestCommitAfterACrash(t *testing.T) {
	t.Parallel()
	c := bucket(t)
	for name, n := range map[string]int{"one part": 100, "several": s3.PartBytes + 100} {
		s := open(t, c)
		w, err := s.Create(t.Context(), "")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.ReadFrom(bytes.NewReader(make([]byte, n))); err != nil {
			t.Fatal(err)
		}
		state, err := w.State(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		key, err := w.Commit(t.Context(), "crash/"+name)
		if err != nil {
			t.Fatal(err)
		}
		again, err := s.Resume(t.Context(), state)
		if err != nil {
			t.Errorf("%s: Resume: %v", name, err)
			continue
		}
		if same, err := again.Commit(t.Context(), "crash/"+name); err != nil || same != key {
			t.Errorf("%s: %s, want %s: %v", name, same, key, err)
		}
		_ = again.Close()
	}
}

// Would catch a client of small PATCHes that has the hold send each part to the storage many times.
func TestSmallChunksAreNotSentAgain(t *testing.T) {
	t.Parallel()
	c := bucket(t)
	sent := atomic.Int64{}
	c.Wrap = &transport{fault: func(r *http.Request, _ int64) (*http.Response, error) {
		if r.Method == http.MethodPut {
			sent.Add(r.ContentLength)
		}
		return nil, nil
	}}
	s := open(t, c)
	w, err := s.Create(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = w.Close() }()
	const size, step = 2 * s3.PartBytes, 256 << 10
	for range size / step {
		if _, err := w.ReadFrom(bytes.NewReader(make([]byte, step))); err != nil {
			t.Fatal(err)
		}
		if _, err := w.State(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if sent.Load() > 3*size {
		t.Errorf("%d MiB sent for %d MiB", sent.Load()>>20, size>>20)
	}
}

// Would catch a sealed object that is lost with the machine, since something of it is not in the bucket; what stays in the
// spool folder when it is made; and one that is taken for lost because the storage failed when it was looked for.
func TestSealed(t *testing.T) {
	t.Parallel()
	c := bucket(t)
	data := bytes.Repeat([]byte("0123456789abcdef"), (2*s3.PartBytes+64)/16)
	w, err := open(t, c).Create(t.Context(), "sealed/data")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.ReadFrom(bytes.NewReader(data)); err != nil {
		t.Fatal(err)
	}
	if _, err := w.State(t.Context()); err != nil { // has the tail in a file
		t.Fatal(err)
	}
	sealer, ok := w.(blobstore.Sealer)
	if !ok {
		t.Fatal("no Sealer")
	}
	if ok, err := sealer.Seal(t.Context()); err != nil || !ok {
		t.Fatalf("%v, %v", ok, err)
	}
	state, err := w.State(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	c.SpoolDir = t.TempDir() // the machine is another
	down := atomic.Bool{}
	c.Wrap = &transport{fault: func(r *http.Request, _ int64) (*http.Response, error) {
		switch {
		case !down.Load():
		case r.Method == http.MethodPost: // some servers answer a second completion as the first
			return answer(http.StatusNotFound, "NoSuchUpload"), nil
		case r.Method == http.MethodHead:
			return nil, errors.New("injected")
		}
		return nil, nil
	}}
	commit := func() (string, error) {
		again, err := open(t, c).Resume(t.Context(), state)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = again.Close() }()
		return again.Commit(t.Context(), "sealed/data")
	}
	if key, err := commit(); err != nil || key != "sealed/data" {
		t.Fatalf("%s, %v", key, err)
	}
	down.Store(true)
	if _, err := commit(); err == nil || errors.Is(err, blobstore.ErrNotFound) {
		t.Errorf("the storage fails: %v", err)
	}
	down.Store(false)
	if _, err := commit(); err != nil {
		t.Errorf("made before: %v", err)
	}
	if left, err := filepath.Glob(filepath.Join(c.SpoolDir, "*")); err != nil || len(left) != 0 {
		t.Errorf("left: %v %v", left, err)
	}
	s := open(t, c)
	if err := s.Delete(t.Context(), "sealed/data"); err != nil {
		t.Fatal(err)
	}
	if _, err := commit(); !errors.Is(err, blobstore.ErrNotFound) {
		t.Errorf("lost: %v", err)
	}
}
