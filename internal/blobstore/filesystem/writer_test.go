package filesystem

import (
	"errors"
	"io"
	"os"
	"syscall"
	"testing"

	"atcr.io/internal/blobstore"
)

// zeros never ends, and counts.
type zeros struct{ n int64 }

func (z *zeros) Read(p []byte) (int, error) {
	clear(p)
	z.n += int64(len(p))
	return len(p), nil
}

// Would catch a full disk after which the whole body is still read, and counted as taken.
func TestStopsReadingWhenWritingFails(t *testing.T) {
	t.Parallel()
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	w := &writer{store: New(t.TempDir()), name: "full", file: full}
	defer func() { _ = w.Close() }()
	body := &zeros{}
	taken, err := w.ReadFrom(io.LimitReader(body, 256<<20))
	if !errors.Is(err, blobstore.ErrNoSpace) || taken != 0 || body.n > 8<<20 {
		t.Errorf("taken %d, read %d MiB after the disk was full: %v", taken, body.n>>20, err)
	}
}

// Would catch a blob called durable although the system had said that it could not write its bytes: it says
// so once, to whoever asks first, and the sync at the end is not the first.
func TestLostBytesAreNotForgotten(t *testing.T) {
	t.Parallel()
	for name, breaks := range map[string]func(*Store){
		"as they arrive": func(s *Store) {
			s.flush = func(*os.File) error { return syscall.EIO }
		},
		"at the end": func(s *Store) {
			first := true
			s.sync = func(f *os.File) error {
				if info, err := f.Stat(); err == nil && !info.IsDir() && first {
					first = false
					return syscall.EIO
				}
				return f.Sync()
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := New(t.TempDir())
			breaks(s)
			w, err := s.Create(t.Context(), "")
			if err != nil {
				t.Fatal(err)
			}
			state, err := w.State(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			_, err = w.ReadFrom(io.LimitReader(&zeros{}, flushBytes+1))
			for range 2 {
				if _, commitErr := w.Commit(t.Context(), "lost/data"); err == nil && commitErr == nil {
					t.Error("committed")
				}
			}
			if err := w.Close(); err != nil {
				t.Error(err)
			}
			again, err := s.Resume(t.Context(), state)
			if err == nil {
				_, err = again.ReadFrom(&zeros{})
			}
			if !errors.Is(err, blobstore.ErrNotFound) {
				t.Errorf("resumed: %v", err)
			}
		})
	}
}

// Would catch a Commit that cannot be repeated when the folder could not be synced after the rename.
func TestCommitAfterFolderSyncFailed(t *testing.T) {
	t.Parallel()
	s := New(t.TempDir())
	w, err := s.Create(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.ReadFrom(io.LimitReader(&zeros{}, 3)); err != nil {
		t.Fatal(err)
	}
	if err := s.Put(t.Context(), "folder/other", nil); err != nil { // the folder is there
		t.Fatal(err)
	}
	s.sync = func(f *os.File) error {
		if info, err := f.Stat(); err == nil && info.IsDir() {
			return syscall.EIO
		}
		return f.Sync()
	}
	if _, err := w.Commit(t.Context(), "folder/data"); err == nil {
		t.Fatal("committed")
	}
	s.sync = (*os.File).Sync
	if key, err := w.Commit(t.Context(), "folder/data"); err != nil || key != "folder/data" {
		t.Errorf("again: %s %v", key, err)
	}
	if err := w.Close(); err != nil {
		t.Error(err)
	}
}
