package filesystem_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"atcr.io/internal/blobstore"
	"atcr.io/internal/blobstore/filesystem"
)

// Would catch a listing that ends early, and says nothing, because an object was deleted meanwhile: a
// rebuilt index would lack every blob that came after it.
func TestListWhileDeleting(t *testing.T) {
	t.Parallel()
	s, want := filesystem.New(t.TempDir()), 8
	for i := range want {
		if err := s.Put(t.Context(), fmt.Sprintf("list/%d/data", i), []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	seen := map[string]bool{}
	err := s.List(t.Context(), "list/", func(key string, _ int64) error {
		seen[key] = true
		if key != "list/0/data" {
			return nil
		}
		return s.Delete(t.Context(), "list/3/data")
	})
	if err != nil || len(seen) != want-1 {
		t.Errorf("seen %d of %d, %v", len(seen), want-1, err)
	}
	root := t.TempDir()
	s = filesystem.New(root)
	for i := range want {
		if err := s.Put(t.Context(), fmt.Sprintf("list/%d/data", i), []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	seen = map[string]bool{}
	err = s.List(t.Context(), "list/", func(key string, _ int64) error {
		seen[key] = true
		return os.RemoveAll(filepath.Join(root, "list", "3"))
	})
	if err != nil || len(seen) != want-1 {
		t.Errorf("a folder removed: seen %d of %d, %v", len(seen), want-1, err)
	}
	missing := fmt.Errorf("row: %w", os.ErrNotExist)
	if err := s.List(t.Context(), "list/", func(string, int64) error { return missing }); !errors.Is(err, missing) {
		t.Errorf("fn's own error is swallowed: %v", err)
	}
}

// Would catch every upload refused until a restart because somebody tidied the staging folder away.
func TestStagingFolderRemoved(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	s := filesystem.New(root)
	if err := s.Put(t.Context(), "a/b", nil); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(root, "atcr")); err != nil {
		t.Fatal(err)
	}
	if err := s.Put(t.Context(), "a/c", nil); err != nil {
		t.Errorf("Put: %v", err)
	}
	if err := os.RemoveAll(filepath.Join(root, "atcr")); err != nil {
		t.Fatal(err)
	}
	w, err := s.Create(t.Context(), "")
	if err != nil {
		t.Fatalf("Create: %v", err)
	}
	if err := w.Close(); err != nil {
		t.Error(err)
	}
}

// Would catch a folder, or what is below a file, taken for an object.
func TestNoObject(t *testing.T) {
	t.Parallel()
	s := filesystem.New(t.TempDir())
	if err := s.Put(t.Context(), "a/b", nil); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"a", "a/b/c"} {
		if _, err := s.Open(t.Context(), key); !errors.Is(err, blobstore.ErrNotFound) {
			t.Errorf("Open %s gives %v", key, err)
		}
		if _, err := s.Stat(t.Context(), key); !errors.Is(err, blobstore.ErrNotFound) {
			t.Errorf("Stat %s gives %v", key, err)
		}
	}
	if err := s.Delete(t.Context(), "a/b/c"); err != nil {
		t.Errorf("Delete gives %v", err)
	}
}

// Would catch a Put that fails and leaves its bytes behind for good.
func TestPutLeavesNothing(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	s := filesystem.New(root)
	if err := os.MkdirAll(filepath.Join(root, "taken", "x"), 0o750); err != nil {
		t.Fatal(err)
	}
	if err := s.Put(t.Context(), "taken", []byte("x")); err == nil {
		t.Fatal("a folder was replaced")
	}
	left, err := filepath.Glob(filepath.Join(root, "atcr", "uploads", "*"))
	if err != nil || len(left) != 0 {
		t.Errorf("left: %v %v", left, err)
	}
}
