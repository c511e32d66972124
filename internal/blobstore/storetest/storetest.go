// Package storetest is the suite that every blobstore.Store must pass. It owns what the contract means, and
// refuses to own how a store is started: each driver's test gives one.
package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/iotest"

	"atcr.io/internal/blobstore"
)

// Run runs the suite. open gives a store over the same storage each time, as after a restart of the process.
func Run(t *testing.T, open func(t *testing.T) blobstore.Store) {
	for name, test := range map[string]func(*testing.T, func(*testing.T) blobstore.Store){
		"Objects": testObjects, "Sizes": testSizes, "Resume": testResume, "Commit": testCommit, "Seal": testSeal, "Discard": testDiscard,
		"ReaderErrors": testReaderErrors, "Concurrent": testConcurrent, "Keys": testKeys,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, open)
		})
	}
}

// random is n bytes that differ from those of another seed.
func random(n int, seed uint64) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(n), byte(n >> 8), byte(n >> 16)})
	_, _ = r.Read(b) // never fails
	return b
}

func must[T any](v T, err error) func(t *testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func read(t *testing.T, s blobstore.Store, key string) []byte {
	t.Helper()
	o := must(s.Open(t.Context(), key))(t)
	defer func() { _ = o.Close() }()
	return must(io.ReadAll(o))(t)
}

func absent(t *testing.T, s blobstore.Store, key string) {
	t.Helper()
	if _, err := s.Stat(t.Context(), key); !errors.Is(err, blobstore.ErrNotFound) {
		t.Errorf("%s: Stat gives %v", key, err)
	}
	if _, err := s.Open(t.Context(), key); !errors.Is(err, blobstore.ErrNotFound) {
		t.Errorf("%s: Open gives %v", key, err)
	}
}

// Would catch a store that loses, keeps or mixes up small objects.
func testObjects(t *testing.T, open func(*testing.T) blobstore.Store) {
	s, ctx := open(t), t.Context()
	if err := s.Check(ctx); err != nil {
		t.Fatal(err)
	}
	absent(t, s, "objects/none")
	for i, data := range [][]byte{{}, []byte("one"), random(blobstore.MaxPutBytes, 1), []byte("replaced")} {
		if err := s.Put(ctx, "objects/a/x", data); err != nil {
			t.Fatal(i, err)
		}
		if got := read(t, s, "objects/a/x"); !bytes.Equal(got, data) {
			t.Errorf("%d: %d bytes, want %d", i, len(got), len(data))
		}
	}
	if err := s.Put(ctx, "objects/b/y", []byte("other")); err != nil {
		t.Fatal(err)
	}
	found := map[string]int64{}
	err := open(t).List(ctx, "objects/", func(key string, size int64) error { found[key] = size; return nil })
	if err != nil || len(found) != 2 || found["objects/a/x"] != 8 || found["objects/b/y"] != 5 {
		t.Errorf("listed %v, %v", found, err)
	}
	stop := errors.New("stop")
	if err := s.List(ctx, "objects/", func(string, int64) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("List gives %v", err)
	}
	if err := s.List(ctx, "nothing/here/", func(string, int64) error { return stop }); err != nil {
		t.Errorf("List of nothing gives %v", err)
	}
	for range 2 {
		if err := s.Delete(ctx, "objects/a/x"); err != nil {
			t.Error(err)
		}
	}
	absent(t, s, "objects/a/x")
	o := must(s.Open(ctx, "objects/b/y"))(t)
	defer func() { _ = o.Close() }()
	if end, err := o.Seek(0, io.SeekEnd); err != nil || end != 5 {
		t.Errorf("the end is at %d, %v", end, err)
	}
	if _, err := o.Seek(2, io.SeekStart); err != nil {
		t.Error(err)
	}
	if rest := must(io.ReadAll(o))(t); string(rest) != "her" {
		t.Errorf("read %q after a seek", rest)
	}
}

// sizes are those around the drivers' buffers and parts.
var sizes = []int{0, 1, 1 << 10, 1<<20 - 1, 1 << 20, 8<<20 - 1, 8 << 20, 8<<20 + 1, 16 << 20, 19<<20 + 7}

// Would catch bytes lost or repeated where one buffer or part ends.
func testSizes(t *testing.T, open func(*testing.T) blobstore.Store) {
	s, ctx := open(t), t.Context()
	for _, known := range []bool{true, false} {
		for i, n := range sizes {
			data, final := random(n, uint64(i)), fmt.Sprintf("sizes/%v/%d/data", known, n)
			key := ""
			if known {
				key = final
			}
			w := must(s.Create(ctx, key))(t)
			if taken, err := w.ReadFrom(iotest.HalfReader(bytes.NewReader(data))); err != nil || taken != int64(n) || w.Size() != int64(n) {
				t.Fatalf("%d: took %d, size %d: %v", n, taken, w.Size(), err)
			}
			absent(t, s, final)
			got := must(w.Commit(ctx, final))(t)
			if known && got != final || n <= 8<<20 && got != final {
				t.Errorf("%d bytes, final key known %v: committed to %s", n, known, got)
			}
			if err := w.Close(); err != nil {
				t.Error(err)
			}
			if size := must(s.Stat(ctx, got))(t); size != int64(n) || !bytes.Equal(read(t, s, got), data) {
				t.Errorf("%d: the object has %d bytes, or others", n, size)
			}
		}
	}
}

// Would catch a restart after which bytes are missing, doubled, or of another order.
func testResume(t *testing.T, open func(*testing.T) blobstore.Store) {
	ctx := t.Context()
	for i, n := range []int{5, 3 << 20, 8 << 20, 11<<20 + 3, 16 << 20} {
		data, final := random(n, 40+uint64(i)), fmt.Sprintf("resume/%d/data", n)
		s := open(t)
		w := must(s.Create(ctx, ""))(t)
		must(w.ReadFrom(bytes.NewReader(data[:n/3])))(t)
		state := must(w.State(ctx))(t)
		must(w.ReadFrom(bytes.NewReader([]byte("these come after the state, and are lost"))))(t)
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		s = open(t)
		w = must(s.Resume(ctx, state))(t)
		if w.Size() != int64(n/3) {
			t.Fatalf("%d: resumed at %d, want %d", n, w.Size(), n/3)
		}
		must(w.ReadFrom(bytes.NewReader(data[n/3 : n/2])))(t)
		must(w.State(ctx))(t) // goes on in the same process
		must(w.ReadFrom(bytes.NewReader(data[n/2:])))(t)
		if len(must(w.State(ctx))(t)) > 1<<20 {
			t.Error("a state of over 1 MiB")
		}
		key := must(w.Commit(ctx, final))(t)
		if err := w.Close(); err != nil {
			t.Error(err)
		}
		if !bytes.Equal(read(t, s, key), data) {
			t.Errorf("%d: other bytes", n)
		}
	}
	if _, err := open(t).Resume(ctx, []byte("no state")); !errors.Is(err, blobstore.ErrNotFound) {
		t.Errorf("Resume of nothing gives %v", err)
	}
}

// Would catch a Commit that cannot be repeated after a crash in the middle of it.
func testCommit(t *testing.T, open func(*testing.T) blobstore.Store) {
	ctx := t.Context()
	for _, n := range []int{9, 9 << 20} {
		data, final := random(n, 60), fmt.Sprintf("commit/%d/data", n)
		s := open(t)
		w := must(s.Create(ctx, ""))(t)
		must(w.ReadFrom(bytes.NewReader(data)))(t)
		state := must(w.State(ctx))(t)
		key := must(w.Commit(ctx, final))(t)
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if n > 8<<20 || key == final {
			again, err := s.Resume(ctx, state)
			if err == nil {
				var same string
				if same, err = again.Commit(ctx, final); err == nil && same != key {
					t.Errorf("%d: committed to %s, then to %s", n, key, same)
				}
				_ = again.Close()
			}
			if err != nil && !errors.Is(err, blobstore.ErrNotFound) {
				t.Errorf("%d: a second commit gives %v", n, err)
			}
		}
		if !bytes.Equal(read(t, s, key), data) {
			t.Errorf("%d: other bytes", n)
		}
	}
}

// Would catch a sealed object that another process cannot make, or makes of other bytes, and one that is to be seen before.
func testSeal(t *testing.T, open func(*testing.T) blobstore.Store) {
	ctx := t.Context()
	for _, n := range []int{0, 9, 8 << 20, 9 << 20, 16 << 20, 20<<20 + 1} {
		for _, kept := range []bool{false, true} { // whether there was a State before
			data, final := random(n, 65), fmt.Sprintf("seal/%d/%v/data", n, kept)
			s := open(t)
			w := must(s.Create(ctx, ""))(t)
			must(w.ReadFrom(bytes.NewReader(data)))(t)
			if kept {
				must(w.State(ctx))(t)
			}
			sealer, ok := w.(blobstore.Sealer)
			if ok {
				ok = must(sealer.Seal(ctx))(t)
			}
			state := must(w.State(ctx))(t)
			if ok {
				if err := w.Close(); err != nil {
					t.Fatal(err)
				}
				s = open(t)
				absent(t, s, final)
				w = must(s.Resume(ctx, state))(t)
			}
			if w.Size() != int64(n) {
				t.Errorf("%d: stands at %d", n, w.Size())
			}
			key := must(w.Commit(ctx, final))(t)
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(read(t, s, key), data) {
				t.Errorf("%d: other bytes", n)
			}
		}
	}
}

// Would catch what an abandoned upload leaves behind.
func testDiscard(t *testing.T, open func(*testing.T) blobstore.Store) {
	s, ctx := open(t), t.Context()
	for _, n := range []int{0, 100, 9 << 20} {
		w := must(s.Create(ctx, ""))(t)
		must(w.ReadFrom(bytes.NewReader(random(n, 70))))(t)
		state := must(w.State(ctx))(t)
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := s.Discard(ctx, state); err != nil {
				t.Errorf("%d: %v", n, err)
			}
		}
	}
}

// Would catch an error of the sender that is swallowed, or that costs the bytes before it.
func testReaderErrors(t *testing.T, open func(*testing.T) blobstore.Store) {
	s, ctx := open(t), t.Context()
	broken := errors.New("broken")
	data := random(9<<20, 80)
	w := must(s.Create(ctx, ""))(t)
	n, err := w.ReadFrom(io.MultiReader(bytes.NewReader(data[:2<<20]), iotest.ErrReader(broken)))
	if !errors.Is(err, broken) || n != 2<<20 || w.Size() != n {
		t.Fatalf("took %d, size %d: %v", n, w.Size(), err)
	}
	must(w.ReadFrom(bytes.NewReader(data[2<<20:])))(t)
	key := must(w.Commit(ctx, "errors/data"))(t)
	if err := w.Close(); err != nil {
		t.Error(err)
	}
	if !bytes.Equal(read(t, s, key), data) {
		t.Error("other bytes")
	}
	canceled, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := s.Stat(canceled, "errors/data2"); err == nil {
		t.Error("an absent key was found")
	}
}

// Would catch writers that share what they must not.
func testConcurrent(t *testing.T, open func(*testing.T) blobstore.Store) {
	s, ctx := open(t), t.Context()
	var wg sync.WaitGroup
	for i := range 12 {
		wg.Go(func() {
			data, final := random(9<<20+i, uint64(90+i)), fmt.Sprintf("concurrent/%d/data", i%6)
			if i >= 6 { // two write the same bytes to the same key
				data = random(9<<20+i-6, uint64(90+i-6))
			}
			w, err := s.Create(ctx, final)
			if err != nil {
				t.Error(err)
				return
			}
			defer func() { _ = w.Close() }()
			if _, err := w.ReadFrom(bytes.NewReader(data)); err != nil {
				t.Error(err)
				return
			}
			key, err := w.Commit(ctx, final)
			if err != nil {
				t.Error(err)
				return
			}
			if !bytes.Equal(read(t, s, key), data) {
				t.Errorf("%d: other bytes", i)
			}
		})
	}
	wg.Wait()
}

// Would catch a key that walks out of the storage.
func testKeys(t *testing.T, open func(*testing.T) blobstore.Store) {
	s, ctx := open(t), t.Context()
	for _, key := range []string{"", "/a", "a/", "a//b", "../a", "a/../b", ".", "a/./b"} {
		if err := s.Put(ctx, key, []byte("x")); err == nil {
			t.Errorf("Put takes %q", key)
		}
		if _, err := s.Open(ctx, key); err == nil {
			t.Errorf("Open takes %q", key)
		}
		if _, err := s.Stat(ctx, key); err == nil {
			t.Errorf("Stat takes %q", key)
		}
		if err := s.Delete(ctx, key); err == nil {
			t.Errorf("Delete takes %q", key)
		}
	}
}
