package hold

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// Would catch a restored hold that starts without telling anybody, where the restore ended before it did; and one
// that tells it again at each start.
func TestRestoreCutShort(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, "backup.tar")
	var config Config
	t.Run("running", func(t *testing.T) {
		s := startHold(t, newPeople(t), func(c *Config) {
			open(c)
			c.DatabaseDir, c.StorageRootDir, c.KeyPath = filepath.Join(dir, "db"), filepath.Join(dir, "blobs"), ""
		})
		if err := adminBackup(t.Context(), s.Hold, parameters("file", file), func(Line) {}); err != nil {
			t.Fatal(err)
		}
		config = settled(t, s)
	})
	config.DatabaseDir, config.KeyPath = filepath.Join(dir, "new"), ""
	if err := config.Validate(); err != nil {
		t.Fatal(err)
	}
	if err := Restore(config, file); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(config.restoring()); err != nil {
		t.Fatal(err)
	}
	start := func() (seq int64, last []string) {
		t.Helper()
		h, err := Open(t.Context(), config, slog.New(slog.DiscardHandler), nil)
		if err != nil {
			t.Fatal(err)
		}
		seq, last = lastSeq(t, h), kinds(t, h, 0)
		if err := h.Close(); err != nil {
			t.Fatal(err)
		}
		return seq, last
	}
	first, told := start()
	if len(told) < 3 || !slices.Equal(told[len(told)-3:], announcement) {
		t.Errorf("a restored hold announces %v", told)
	}
	if _, err := os.Stat(config.restoring()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the mark stays: %v", err)
	}
	if second, _ := start(); second != first {
		t.Errorf("it is announced again: %d after %d", second, first)
	}
}
