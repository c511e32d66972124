package filesystem_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"atcr.io/internal/blobstore"
	"atcr.io/internal/blobstore/filesystem"
	"atcr.io/internal/blobstore/storetest"
)

func TestStore(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	roots := map[string]string{}
	storetest.Run(t, func(t *testing.T) blobstore.Store {
		t.Helper()
		mu.Lock()
		defer mu.Unlock()
		if roots[t.Name()] == "" {
			roots[t.Name()] = filepath.Join(t.TempDir(), "new", "root")
		}
		return filesystem.New(roots[t.Name()])
	})
}

// Would catch a start with a folder that cannot be written, found at the first push.
func TestCheck(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := filesystem.New(filepath.Join(file, "root")).Check(t.Context()); !errors.Is(err, blobstore.ErrNoBucket) {
		t.Errorf("got %v", err)
	}
}

// Would catch a push that gives the kernel no file to send, and folders removed behind the store's back.
func TestOpenIsAFile(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	s := filesystem.New(root)
	for range 2 {
		w, err := s.Create(t.Context(), "")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.ReadFrom(bytes.NewReader([]byte("abc"))); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Commit(t.Context(), "a/b/data"); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		o, err := s.Open(t.Context(), "a/b/data")
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := o.(*os.File); !ok {
			t.Errorf("a %T", o)
		}
		if err := errors.Join(o.Close(), os.RemoveAll(filepath.Join(root, "a"))); err != nil {
			t.Fatal(err)
		}
	}
}

// Would catch a resumed upload that vouches for bytes which a power cut took.
func TestResumeAfterPowerCut(t *testing.T) {
	t.Parallel()
	s := filesystem.New(t.TempDir())
	w, err := s.Create(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.ReadFrom(bytes.NewReader([]byte("abc"))); err != nil {
		t.Fatal(err)
	}
	state, err := w.State(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	other := bytes.Replace(state, []byte(blobstore.BootID()), []byte("another-boot"), 1)
	if _, err := s.Resume(t.Context(), other); !errors.Is(err, blobstore.ErrNotFound) {
		t.Errorf("got %v", err)
	}
	longer := bytes.Replace(state, []byte(`"size":3`), []byte(`"size":4`), 1)
	if _, err := s.Resume(t.Context(), longer); !errors.Is(err, blobstore.ErrNotFound) {
		t.Errorf("got %v", err)
	}
}

// BenchmarkWrite is a layer of 256 MiB, from memory to a durable file.
func BenchmarkWrite(b *testing.B) {
	s := filesystem.New(b.TempDir())
	data := make([]byte, 256<<20)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		w, err := s.Create(b.Context(), "")
		if err != nil {
			b.Fatal(err)
		}
		if _, err := w.ReadFrom(struct{ *bytes.Reader }{bytes.NewReader(data)}); err != nil {
			b.Fatal(err)
		}
		if _, err := w.Commit(b.Context(), "bench/data"); err != nil {
			b.Fatal(err)
		}
		if err := w.Close(); err != nil {
			b.Fatal(err)
		}
	}
}
