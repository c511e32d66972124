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
	backupRotation = "rotation.key" // only where it was asked for
)

// adminBackup writes database and signing key into one file, while the hold goes on, and the rotation key
// where it is asked for. The blobs are the storage's to back up.
func adminBackup(ctx context.Context, h *Hold, r *http.Request, tell say) error {
	path, err := required(r, "file")
	if err != nil {
		return err
	}
	rotation := ""
	if r.URL.Query().Get("with-rotation-key") != "" {
		if h.did.Method() != methodPLC {
			return fmt.Errorf("%s has no rotation key", h.did)
		}
		if _, rotation, err = h.rotationKey(); err != nil {
			return err
		}
	}
	copied := filepath.Join(h.config.DatabaseDir, ".backup.sqlite3")
	if err := os.Remove(copied); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	defer func() { _ = os.Remove(copied) }()
	end := tell.working(progressEvery, "copying the database", sizeOf(copied))
	err = h.db.CopyTo(ctx, copied)
	end()
	if err != nil {
		return err
	}
	err = create(path, func(f *os.File) error {
		w := tar.NewWriter(f)
		err := errors.Join(addFile(w, backupDatabase, copied, h.now()), addFile(w, backupKey, h.config.KeyPath, h.now()))
		if rotation != "" {
			err = errors.Join(err, addFile(w, backupRotation, h.config.RotationKeyPath, h.now()))
		}
		return errors.Join(err, w.Close())
	})
	if err != nil {
		return err
	}
	what := "database and signing key are"
	if rotation != "" {
		what = "database, signing key and rotation key are"
		if err := h.state.set(ctx, stateExported, rotation); err != nil {
			return err
		}
	}
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	tell(Line{
		Text: fmt.Sprintf("the hold's %s in %s (%s): keep it secret, who has it is this hold", what, path, Bytes(info.Size())),
		Data: map[string]any{"file": path, "size": info.Size(), "rotationKey": rotation},
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
// announced anew afterwards: see adminReannounce.
func Restore(config Config, path string) (err error) {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	places := map[string]string{
		backupDatabase: filepath.Join(config.DatabaseDir, "db.sqlite3"), backupKey: config.KeyPath, backupRotation: config.RotationKeyPath,
	}
	for _, name := range []string{backupDatabase, backupKey} {
		if _, err := os.Lstat(places[name]); !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("%s is there already: restore into empty folders", places[name])
		}
	}
	mark := config.restoring()
	if err := os.MkdirAll(config.DatabaseDir, 0o700); err != nil {
		return err
	}
	made := []string{mark}
	defer func() {
		if err != nil {
			for _, m := range made {
				_ = os.Remove(m)
			}
			err = fmt.Errorf("%s: %w", path, err)
		}
	}()
	if err := errors.Join(os.WriteFile(mark, nil, 0o600), syncDir(config.DatabaseDir)); err != nil {
		return err
	}
	found := map[string]bool{}
	for r := tar.NewReader(f); ; {
		header, err := r.Next()
		if errors.Is(err, io.EOF) && found[backupDatabase] && found[backupKey] {
			return nil
		}
		if errors.Is(err, io.EOF) {
			return errors.New("it is no backup of a hold, or cut off")
		}
		if err != nil {
			return err
		}
		place, known := places[header.Name]
		if !known || found[header.Name] {
			continue
		}
		if err := os.MkdirAll(filepath.Dir(place), 0o700); err != nil {
			return err
		}
		found[header.Name], made = true, append(made, place)
		if err := create(place, func(f *os.File) error { _, err := io.Copy(f, r); return err }); err != nil { //nolint:gosec // the operator's own file
			if errors.Is(err, os.ErrExist) {
				made = made[:len(made)-1] // another's
			}
			return err
		}
	}
}

// restoring is a file that is there from a restore on until everybody was told of what it made of the repo.
func (c Config) restoring() string { return filepath.Join(c.DatabaseDir, "restoring") }

// finishRestore does what a restore that was cut short did not: nobody may see the hold with a rev that is behind
// what they saw of it.
func (h *Hold) finishRestore(ctx context.Context) error {
	if _, err := os.Lstat(h.config.restoring()); h.repair.announces || errors.Is(err, os.ErrNotExist) {
		return nil
	}
	h.log.Warn("a restore was cut short; it goes on")
	if _, err := h.uploads.Rebuild(ctx); err != nil {
		return fmt.Errorf("compare the index with the storage, after a restore: %w", err)
	}
	return h.resignRestored(ctx)
}

func (h *Hold) resignRestored(ctx context.Context) error {
	if err := h.repo.Resign(ctx, nil); err != nil {
		return err
	}
	if err := os.Remove(h.config.restoring()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return syncDir(h.config.DatabaseDir)
}

// adminReannounce is for after a restore: the index is made to agree with the storage, and the repo is signed
// anew, with a rev behind all that were seen of it, so that everybody who follows takes it as it stands now.
func adminReannounce(ctx context.Context, h *Hold, r *http.Request, tell say) error {
	if err := adminFsck(ctx, h, r, tell); err != nil {
		return err
	}
	if err := h.resignRestored(ctx); err != nil {
		return err
	}
	tell(Line{Text: "the hold is restored: start it"})
	return nil
}
