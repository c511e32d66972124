package filesystem

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"

	"atcr.io/internal/blobstore"
)

const (
	bufferBytes = 1 << 20
	// flushBytes is how far the disk is left behind: what Commit's sync may still have to write.
	flushBytes = 8 << 20
)

var buffers = sync.Pool{New: func() any { b := make([]byte, bufferBytes); return &b }}

// writer appends to a staged file. The disk is told to write while bytes still arrive, so that Commit has
// little to wait for.
type writer struct {
	store *Store
	name  string
	file  *os.File // nil: the file is gone, renamed perhaps
	size  int64

	flushed  int64      // up to here the kernel was told to write
	flushing chan error // gets the end of the flush under way
	lost     error      // the system could not write bytes that it had taken
}

func (w *writer) staged() string {
	return filepath.Join(w.store.root, filepath.FromSlash(blobstore.StagingPrefix+w.name))
}

// ReadFrom reads into one buffer while another is written.
func (w *writer) ReadFrom(r io.Reader) (int64, error) {
	if w.file == nil {
		return 0, fmt.Errorf("%w: the staged file is gone", blobstore.ErrNotFound)
	}
	type block struct {
		buffer *[]byte
		n      int
	}
	full := make(chan block)
	written := make(chan error, 1)
	go func() {
		var err error
		for b := range full {
			if err == nil {
				_, err = w.file.WriteAt((*b.buffer)[:b.n], w.size)
			}
			if err == nil {
				w.size += int64(b.n)
				err = w.flush()
			}
			buffers.Put(b.buffer)
		}
		written <- err
	}()
	var taken int64
	var readErr error
	for readErr == nil {
		b := block{buffer: buffers.Get().(*[]byte)}
		b.n, readErr = fill(r, *b.buffer)
		taken += int64(b.n)
		full <- b
	}
	close(full)
	if err := <-written; err != nil {
		return taken, translate(err)
	}
	if errors.Is(readErr, io.EOF) {
		return taken, nil
	}
	return taken, readErr
}

// fill is io.ReadFull whose error is the reader's own.
func fill(r io.Reader, p []byte) (n int, err error) {
	for n < len(p) && err == nil {
		var m int
		m, err = r.Read(p[n:])
		n += m
	}
	return n, err
}

// flush has the kernel write what came since the last flush, at most one at a time; a disk that is slower
// than the sender slows it.
func (w *writer) flush() error {
	if w.size-w.flushed < flushBytes {
		return nil
	}
	if err := w.awaitFlush(); err != nil {
		return err
	}
	from, to, done := w.flushed, w.size, make(chan error, 1)
	w.flushed, w.flushing = to, done
	go func() { done <- writeOut(w.file, from, to-from) }()
	return nil
}

// awaitFlush waits for the flush under way. The system tells of bytes that it could not write once only, so
// what it told is kept: a sync afterwards would say that all is well.
func (w *writer) awaitFlush() error {
	if w.flushing != nil {
		if err := <-w.flushing; err != nil {
			w.lost = err
		}
		w.flushing = nil
	}
	return w.lost
}

func (w *writer) Size() int64 { return w.size }

// State needs no waiting: what was written outlives the process.
func (w *writer) State(context.Context) ([]byte, error) {
	return json.Marshal(state{Name: w.name, Size: w.size, Boot: blobstore.BootID()})
}

// Commit syncs and renames. Where an earlier Commit got that far, the final file is there already.
func (w *writer) Commit(_ context.Context, final string) (string, error) {
	path, err := w.store.path(final)
	if err != nil {
		return "", err
	}
	if w.file == nil {
		info, err := os.Stat(path)
		if err != nil || info.Size() != w.size {
			return "", fmt.Errorf("%w: the staged file is gone", blobstore.ErrNotFound)
		}
		return final, syncFolder(filepath.Dir(path))
	}
	if err := w.awaitFlush(); err != nil {
		return "", translate(err)
	}
	if err := w.file.Sync(); err != nil {
		w.lost = err
		return "", translate(err)
	}
	if err := w.store.rename(w.staged(), path); err != nil {
		return "", err
	}
	err = w.file.Close()
	w.file = nil
	return final, err
}

func (w *writer) Close() error {
	_ = w.awaitFlush() // told by ReadFrom or Commit
	if w.file == nil {
		return nil
	}
	err := w.file.Close()
	w.file = nil
	return err
}
