// Package filesystem keeps blobs in a folder of this machine.
//
// It owns files, their names and when they are durable. Unfinished objects are in a staging folder of the
// same volume, so that Commit is a rename. It refuses to own digests.
package filesystem

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"atcr.io/internal/blobstore"
)

// Store is a blobstore.Store over a folder. Safe for concurrent use.
type Store struct {
	root  string
	sync  func(*os.File) error // tests break it
	flush func(*os.File) error // sync, while bytes arrive

	mu      sync.Mutex
	folders map[string]bool // known to be there, and durable
}

var _ blobstore.Store = (*Store)(nil)

// New makes a Store over root, an absolute path. Check makes the folder.
func New(root string) *Store {
	return &Store{root: root, folders: map[string]bool{}, sync: (*os.File).Sync, flush: (*os.File).Sync}
}

// path is where a key's file is. Errors: keys that are empty, absolute, or have empty or dot parts.
func (s *Store) path(key string) (string, error) {
	for part := range strings.SplitSeq(key, "/") {
		if part == "" || part == "." || part == ".." || strings.ContainsAny(part, "\\\x00") {
			return "", fmt.Errorf("filesystem: key %q is not valid", key)
		}
	}
	return filepath.Join(s.root, filepath.FromSlash(key)), nil
}

// Check makes the folder and writes and removes a file in it.
func (s *Store) Check(context.Context) error {
	if err := s.folder(filepath.Join(s.root, filepath.FromSlash(blobstore.StagingPrefix))); err != nil {
		return fmt.Errorf("%w: STORAGE_ROOT_DIR %s: %w", blobstore.ErrNoBucket, s.root, err)
	}
	f, err := os.CreateTemp(s.root, ".check-*")
	if err != nil {
		return fmt.Errorf("%w: STORAGE_ROOT_DIR %s: %w", blobstore.ErrNoBucket, s.root, err)
	}
	return errors.Join(f.Close(), os.Remove(f.Name()))
}

// folder makes a folder and its parents, durably.
func (s *Store) folder(dir string) error {
	s.mu.Lock()
	known := s.folders[dir]
	s.mu.Unlock()
	if known {
		return nil
	}
	if dir != s.root && len(dir) > len(s.root) {
		if err := s.folder(filepath.Dir(dir)); err != nil {
			return err
		}
	}
	switch err := os.Mkdir(dir, 0o750); {
	case errors.Is(err, fs.ErrNotExist): // above the root
		if err := os.MkdirAll(dir, 0o750); err != nil {
			return err
		}
	case err != nil && !errors.Is(err, fs.ErrExist):
		return translate(err)
	}
	if err := s.syncFolder(filepath.Dir(dir)); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.folders) > 100_000 {
		clear(s.folders)
	}
	s.folders[dir] = true
	return nil
}

func (s *Store) syncFolder(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(s.sync(d), d.Close())
}

// translate names what the contract names.
func translate(err error) error {
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return fmt.Errorf("%w: %w", blobstore.ErrNoSpace, err)
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w: %w", blobstore.ErrNotFound, err)
	}
	return err
}

// missing is translate for a key that is read: below a file there is nothing.
func missing(err error) error {
	if errors.Is(err, syscall.ENOTDIR) {
		return fmt.Errorf("%w: %w", blobstore.ErrNotFound, err)
	}
	return translate(err)
}

// Put writes beside and renames.
func (s *Store) Put(_ context.Context, key string, data []byte) error {
	final, err := s.path(key)
	if err != nil {
		return err
	}
	f, err := s.stage(rand.Text())
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, s.sync(f), f.Close()); err == nil {
		err = s.rename(f.Name(), final)
	}
	if err != nil {
		_ = os.Remove(f.Name()) // gone where it was renamed
	}
	return translate(err)
}

// stage makes a file of the staging folder.
func (s *Store) stage(name string) (*os.File, error) {
	path := filepath.Join(s.root, filepath.FromSlash(blobstore.StagingPrefix+name))
	for first := true; ; first = false {
		if err := s.folder(filepath.Dir(path)); err != nil {
			return nil, err
		}
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o640)
		if first && errors.Is(err, fs.ErrNotExist) { // the folder was removed behind our back
			s.forgetFolders()
			continue
		}
		return f, translate(err)
	}
}

func (s *Store) forgetFolders() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.folders)
}

// rename makes staged, whose bytes are durable, the final file, durably.
func (s *Store) rename(staged, final string) error {
	dir := filepath.Dir(final)
	if err := s.folder(dir); err != nil {
		return err
	}
	err := os.Rename(staged, final)
	if errors.Is(err, fs.ErrNotExist) { // the folder was removed behind our back
		s.forgetFolders()
		if err = s.folder(dir); err == nil {
			err = os.Rename(staged, final)
		}
	}
	if err != nil {
		return translate(err)
	}
	return s.syncFolder(dir)
}

// Open opens the file itself, so that it can be sent by the kernel.
func (s *Store) Open(_ context.Context, key string) (blobstore.Object, error) {
	path, err := s.path(key)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, missing(err)
	}
	if info, err := f.Stat(); err != nil || info.IsDir() {
		return nil, errors.Join(blobstore.ErrNotFound, err, f.Close())
	}
	return f, nil
}

// Stat is the file's size.
func (s *Store) Stat(_ context.Context, key string) (int64, error) {
	path, err := s.path(key)
	if err != nil {
		return 0, err
	}
	info, err := os.Stat(path)
	if err != nil {
		return 0, missing(err)
	}
	if info.IsDir() {
		return 0, blobstore.ErrNotFound
	}
	return info.Size(), nil
}

// Delete removes the file; its folders stay.
func (s *Store) Delete(_ context.Context, key string) error {
	path, err := s.path(key)
	if err != nil {
		return err
	}
	if err := missing(os.Remove(path)); err != nil && !errors.Is(err, blobstore.ErrNotFound) {
		return err
	}
	return nil
}

// List walks the folder. What is removed meanwhile is left out, and ends nothing.
func (s *Store) List(ctx context.Context, prefix string, fn func(key string, size int64) error) error {
	start := filepath.Join(s.root, filepath.FromSlash(prefix[:strings.LastIndex(prefix, "/")+1]))
	return filepath.WalkDir(start, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err := errors.Join(err, ctx.Err()); err != nil {
			return err
		}
		rel, err := filepath.Rel(s.root, path)
		if err != nil || d.IsDir() {
			return err
		}
		key := filepath.ToSlash(rel)
		if !strings.HasPrefix(key, prefix) {
			return nil
		}
		info, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		return fn(key, info.Size())
	})
}

// state is what Resume needs.
type state struct {
	Name string `json:"name"`
	Size int64  `json:"size"`
	Boot string `json:"boot,omitempty"`
}

// Create begins a staged file. Where it goes is said by Commit alone, so key does not matter here.
func (s *Store) Create(context.Context, string) (blobstore.Writer, error) {
	name := rand.Text()
	f, err := s.stage(name)
	if err != nil {
		return nil, err
	}
	return &writer{store: s, name: name, file: f}, nil
}

// Resume opens the staged file and cuts what came after the state.
func (s *Store) Resume(_ context.Context, raw []byte) (blobstore.Writer, error) {
	st, path, err := s.parseState(raw)
	if err != nil {
		return nil, err
	}
	if st.Boot != blobstore.BootID() {
		return nil, fmt.Errorf("%w: the machine was restarted, and what was not synced may be lost", blobstore.ErrNotFound)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) { // Commit may have renamed it, and not have said so
		return &writer{store: s, name: st.Name, size: st.Size}, nil
	}
	if err != nil {
		return nil, translate(err)
	}
	info, err := f.Stat()
	if err == nil && info.Size() < st.Size {
		err = fmt.Errorf("%w: %s has %d bytes of %d: the machine went down", blobstore.ErrNotFound, path, info.Size(), st.Size)
	}
	if err == nil {
		err = f.Truncate(st.Size)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &writer{store: s, name: st.Name, file: f, size: st.Size, flushed: st.Size}, nil
}

// Discard removes the staged file.
func (s *Store) Discard(_ context.Context, raw []byte) error {
	_, path, err := s.parseState(raw)
	if err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func (s *Store) parseState(raw []byte) (state, string, error) {
	var st state
	if err := json.Unmarshal(raw, &st); err != nil || st.Size < 0 {
		return st, "", fmt.Errorf("%w: the state is not valid", blobstore.ErrNotFound)
	}
	path, err := s.path(blobstore.StagingPrefix + st.Name)
	return st, path, err
}
