package filesystem

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"atcr.io/internal/blobstore"
)

const (
	// bufferBytes is also what the kernel is given at a time. Linux keeps free memory up to this size at hand for each
	// processor (order 3); for larger writes it takes larger pieces out of memory that lay cold, which took 1.6 times as
	// long for 1 GiB with 64 KiB and with 256 KiB, and up to 2.5 times the processor's time.
	bufferBytes = 32 << 10
	// flushBytes is how far the disk is left behind: what Commit's sync may still have to write.
	flushBytes = 8 << 20
)

var buffers = sync.Pool{New: func() any { return new([bufferBytes]byte) }}

// writer appends to a staged file. It is synced while bytes still arrive, so that Commit has little to wait for: to have
// the kernel write alone would leave a disk's own cache for the end, which took 1.2 s for 1 GiB.
type writer struct {
	store *Store
	name  string
	file  *os.File // nil: the file is gone, renamed perhaps
	size  int64

	flushed  int64      // up to here the file was synced, or is being
	flushing chan error // gets the end of the flush under way
	lost     error      // the system could not write bytes that it had taken
}

func (w *writer) staged() string {
	return filepath.Join(w.store.root, filepath.FromSlash(blobstore.StagingPrefix+w.name))
}

// ReadFrom reads and writes in turn, a buffer that stays in one processor's cache: to hand the bytes to a goroutine
// that writes costs more than it saves where the two run on processors that share none. When writing fails, no more
// is read.
func (w *writer) ReadFrom(r io.Reader) (int64, error) {
	if w.file == nil {
		return 0, fmt.Errorf("%w: the staged file is gone", blobstore.ErrNotFound)
	}
	if w.lost != nil {
		return 0, w.lost
	}
	buffer := buffers.Get().(*[bufferBytes]byte) //nolint:errcheck,forcetypeassert // nothing else is put in
	defer buffers.Put(buffer)
	for begin := w.size; ; {
		n, readErr := fill(r, buffer[:])
		if err := w.write(buffer[:n]); err != nil {
			return w.size - begin, translate(err)
		}
		if errors.Is(readErr, io.EOF) {
			return w.size - begin, nil
		}
		if readErr != nil {
			return w.size - begin, readErr
		}
	}
}

func (w *writer) write(p []byte) error {
	if len(p) == 0 {
		return nil
	}
	if _, err := w.file.WriteAt(p, w.size); err != nil {
		return err
	}
	w.size += int64(len(p))
	return w.flush()
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

// flush syncs what came since the last flush, at most one at a time; a disk that is slower than the sender slows it.
func (w *writer) flush() error {
	if w.size-w.flushed < flushBytes {
		return nil
	}
	if err := w.awaitFlush(); err != nil {
		return err
	}
	done := make(chan error, 1)
	w.flushed, w.flushing = w.size, done
	go func() { done <- w.store.flush(w.file) }()
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
	if w.lost != nil {
		return nil, translate(w.lost)
	}
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
		return final, w.store.syncFolder(filepath.Dir(path))
	}
	if err := w.awaitFlush(); err != nil {
		return "", translate(err)
	}
	if err := w.store.sync(w.file); err != nil {
		w.lost = err
		return "", translate(err)
	}
	if err := w.store.rename(w.staged(), path); err != nil {
		if _, gone := os.Lstat(w.staged()); errors.Is(gone, fs.ErrNotExist) {
			// The file has its name, but not durably: the next Commit goes on from there.
			err = errors.Join(err, w.file.Close())
			w.file = nil
		}
		return "", err
	}
	err = w.file.Close()
	w.file = nil
	return final, err
}

// Close also removes the staged file where bytes of it may be lost: no Resume could tell which.
func (w *writer) Close() error {
	lost := w.awaitFlush()
	if w.file == nil {
		return nil
	}
	err := w.file.Close()
	w.file = nil
	if lost != nil {
		err = errors.Join(err, os.Remove(w.staged()))
	}
	return err
}
