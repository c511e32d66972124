package hold

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"time"
)

// What a backup has in it.
const (
	backupDatabase = "db.sqlite3"
	backupKey      = "signing.key"
)

// adminBackup writes database and signing key into one file, while the hold goes on. The blobs are the
// storage's to back up.
func adminBackup(ctx context.Context, h *Hold, r *http.Request, tell say) error {
	path, err := required(r, "file")
	if err != nil {
		return err
	}
	copied := filepath.Join(h.config.DatabaseDir, ".backup.sqlite3")
	if err := os.Remove(copied); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	defer func() { _ = os.Remove(copied) }()
	if err := h.db.CopyTo(ctx, copied); err != nil {
		return err
	}
	err = create(path, func(f *os.File) error {
		w := tar.NewWriter(f)
		return errors.Join(addFile(w, backupDatabase, copied, h.now()), addFile(w, backupKey, h.config.KeyPath, h.now()), w.Close())
	})
	if err != nil {
		return err
	}
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	tell(Line{
		Text: fmt.Sprintf("the hold's database and signing key are in %s (%s): keep it secret, who has it is this hold", path, Bytes(info.Size())),
		Data: map[string]any{"file": path, "size": info.Size()},
	})
	return nil
}

func addFile(w *tar.Writer, name, path string, at time.Time) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o600, Size: info.Size(), ModTime: at, Format: tar.FormatPAX}); err != nil {
		return err
	}
	_, err = io.Copy(w, f)
	return err
}

// Restore unpacks a backup into the folders of config, which must not have a hold yet. The hold is to be
// announced anew afterwards: see Reannounce.
func Restore(config Config, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	places := map[string]string{backupDatabase: filepath.Join(config.DatabaseDir, "db.sqlite3"), backupKey: config.KeyPath}
	for _, place := range places {
		if _, err := os.Lstat(place); !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("%s is there already: restore into empty folders", place)
		}
	}
	if err := os.MkdirAll(config.DatabaseDir, 0o700); err != nil {
		return err
	}
	var made []string
	for r := tar.NewReader(f); len(places) > 0; {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			err = errors.New("it is no backup of a hold, or cut off")
		}
		place, known := "", false
		if err == nil {
			place, known = places[header.Name]
		}
		if known {
			made = append(made, place)
			err = create(place, func(f *os.File) error { _, err := io.Copy(f, r); return err }) //nolint:gosec // the operator's own file
			delete(places, header.Name)
		}
		if err != nil {
			for _, m := range made {
				_ = os.Remove(m)
			}
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	return nil
}

// adminReannounce is for after a restore: the index is made to agree with the storage, and everybody who
// follows is told where the repo stands.
func adminReannounce(ctx context.Context, h *Hold, r *http.Request, tell say) error {
	if err := adminFsck(ctx, h, r, tell); err != nil {
		return err
	}
	if err := h.repo.Announce(ctx); err != nil {
		return err
	}
	tell(Line{Text: "the hold is restored: start it"})
	return nil
}
