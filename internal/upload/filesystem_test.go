package upload

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"atcr.io/internal/blobstore"
	"atcr.io/internal/blobstore/filesystem"
	"atcr.io/internal/oci"
)

func newFolder(t *testing.T) (blobstore.Store, string) {
	t.Helper()
	root := t.TempDir()
	store := filesystem.New(root)
	if err := store.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
	return store, root
}

// files are the regular files below root.
func files(t *testing.T, root string) (names []string) {
	t.Helper()
	if err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			names = append(names, strings.TrimPrefix(path, root+"/"))
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return names
}

// Would catch what the test store forgives and real files do not: each way to bring a blob, with a restart in
// the middle, leaves exactly the blob's file.
func TestFilesystem(t *testing.T) {
	t.Parallel()
	for _, size := range []int{0, 1, 3_000_000} {
		data := noise(size, uint64(size))
		d := oci.FromBytes(data)
		for name, run := range map[string]func(r *rig, s Session) (Blob, error){
			"put": func(r *rig, s Session) (Blob, error) {
				return r.Finish(t.Context(), s.Secret, d, nil, bytes.NewReader(data))
			},
			"broken put, rest after a restart": func(r *rig, s Session) (Blob, error) {
				half := size / 2
				_, err := r.Finish(t.Context(), s.Secret, d, nil, io.MultiReader(bytes.NewReader(data[:half]), iotest.ErrReader(io.ErrUnexpectedEOF)))
				if !errors.Is(err, io.ErrUnexpectedEOF) {
					t.Fatal(err)
				}
				r.reopen()
				at, err := r.Status(t.Context(), s.Secret)
				if err != nil || at != int64(half) {
					t.Fatalf("%d, %v", at, err)
				}
				return r.Finish(t.Context(), s.Secret, d, &at, bytes.NewReader(data[half:]))
			},
			"patch": func(r *rig, s Session) (Blob, error) {
				if _, err := r.Append(t.Context(), s.Secret, nil, bytes.NewReader(data)); err != nil {
					t.Fatal(err)
				}
				r.reopen()
				return r.Finish(t.Context(), s.Secret, d, nil, nil)
			},
			"parts": func(r *rig, s Session) (Blob, error) {
				var parts []blobstore.Part
				for i, chunk := range split(data, 1_000_000) {
					broken := io.MultiReader(bytes.NewReader(chunk[:len(chunk)/2]), iotest.ErrReader(io.ErrUnexpectedEOF))
					if _, err := r.PutPart(t.Context(), alice, s.ID, i+1, broken); !errors.Is(err, io.ErrUnexpectedEOF) {
						t.Fatal(err)
					}
					parts = append(parts, r.put(s, i+1, chunk))
					r.reopen()
				}
				return r.Complete(t.Context(), alice, s.ID, d, parts)
			},
		} {
			store, root := newFolder(t)
			r := newRig(t, store, nil)
			if blob, err := run(r, r.begin(alice)); err != nil || blob.Key != blobstore.BlobKey(d) {
				t.Fatalf("%s of %d: %+v, %v", name, size, blob, err)
			}
			r.content(d, "")
			spare := r.begin(bob)
			if _, err := r.Finish(t.Context(), spare.Secret, d, nil, bytes.NewReader(data)); err != nil {
				t.Fatal(err)
			}
			if got := files(t, root); len(got) != 1 || got[0] != blobstore.BlobKey(d) {
				t.Errorf("%s of %d: files %v", name, size, got)
			}
			if _, err := r.Append(t.Context(), r.begin(alice).Secret, nil, bytes.NewReader(data)); err != nil {
				t.Fatal(err)
			}
			r.clock.move(OpenFor)
			if err := r.Sweep(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got := files(t, root); len(got) != 1 {
				t.Errorf("%s of %d: files after a day %v", name, size, got)
			}
			r.walk()
		}
	}
}

// Would catch a presented sha512 that cannot be had on a folder, and its file left in the staging area.
func TestFilesystemReadBack(t *testing.T) {
	t.Parallel()
	store, root := newFolder(t)
	r := newRig(t, store, nil)
	data := noise(300_000, 1)
	for _, d := range []oci.Digest{sha512Of([]byte("else")), sha512Of(data)} {
		s := r.begin(alice)
		if _, err := r.Append(t.Context(), s.Secret, nil, bytes.NewReader(data)); err != nil {
			t.Fatal(err)
		}
		_, err := r.Finish(t.Context(), s.Secret, d, nil, nil)
		if d.Matches(data) && err != nil || !d.Matches(data) && (!errors.Is(err, ErrDigestMismatch) || len(files(t, root)) != 0) {
			t.Errorf("%v, files %v", err, files(t, root))
		}
	}
	r.content(sha512Of(data), "")
	if got := files(t, root); len(got) != 2 { // the bytes, and the pointer to them
		t.Errorf("files %v", got)
	}
}

// Would catch a crash between the file's rename and its row that makes the upload fail for ever.
func TestFilesystemCrashAfterRename(t *testing.T) {
	t.Parallel()
	for _, size := range []int{0, 100_000} {
		store, root := newFolder(t)
		r := newRig(t, store, nil)
		data := noise(size, 1)
		d := oci.FromBytes(data)
		s := r.begin(alice)
		if _, err := r.Append(t.Context(), s.Secret, nil, bytes.NewReader(data)); err != nil {
			t.Fatal(err)
		}
		r.db.fault.set(func(step string) error {
			if step == "before db write" {
				return errFault
			}
			return nil
		})
		if _, err := r.Finish(t.Context(), s.Secret, d, nil, nil); !errors.Is(err, errFault) {
			t.Fatal(err)
		}
		r.absent(d)
		r.db.fault.clear()
		r.reopen()
		if _, err := r.Finish(t.Context(), s.Secret, d, nil, nil); err != nil && (size > 0 || !errors.Is(err, ErrUnknown)) {
			t.Errorf("%d bytes: %v", size, err)
		}
		again := r.begin(alice)
		if _, err := r.Finish(t.Context(), again.Secret, d, nil, bytes.NewReader(data)); err != nil {
			t.Error(err)
		}
		r.content(d, "")
		if got := files(t, root); len(got) != 1 {
			t.Errorf("files %v", got)
		}
	}
}

// Would catch staged bytes that vanish (a cleaned disk) and an upload that then fails for ever.
func TestFilesystemStagedFileGone(t *testing.T) {
	t.Parallel()
	store, root := newFolder(t)
	r := newRig(t, store, nil)
	s := r.begin(alice)
	if _, err := r.Append(t.Context(), s.Secret, nil, strings.NewReader("first")); err != nil {
		t.Fatal(err)
	}
	for _, name := range files(t, root) {
		if err := os.Remove(filepath.Join(root, name)); err != nil {
			t.Fatal(err)
		}
	}
	r.reopen()
	if _, err := r.Append(t.Context(), s.Secret, nil, strings.NewReader("second")); !errors.Is(err, ErrUnknown) {
		t.Errorf("append: %v", err)
	}
	if _, err := r.Status(t.Context(), s.Secret); !errors.Is(err, ErrUnknown) {
		t.Errorf("status: %v", err)
	}
}

// fullDisk is a folder on a disk that is full after some bytes.
type fullDisk struct {
	blobstore.Store
	left int64
}

type fullWriter struct {
	blobstore.Writer
	disk *fullDisk
}

func (d *fullDisk) Create(ctx context.Context, key string) (blobstore.Writer, error) {
	w, err := d.Store.Create(ctx, key)
	return &fullWriter{w, d}, err
}

func (d *fullDisk) Resume(ctx context.Context, state []byte) (blobstore.Writer, error) {
	w, err := d.Store.Resume(ctx, state)
	if err != nil {
		return nil, err
	}
	return &fullWriter{w, d}, nil
}

func (w *fullWriter) ReadFrom(r io.Reader) (int64, error) {
	n, err := w.Writer.ReadFrom(io.LimitReader(r, w.disk.left))
	w.disk.left -= n
	if err == nil && w.disk.left == 0 {
		err = fmt.Errorf("write: %w", blobstore.ErrNoSpace)
	}
	return n, err
}

// Would catch a full disk that reaches the client as anything but 507, or that spoils the upload.
func TestFilesystemFull(t *testing.T) {
	t.Parallel()
	store, _ := newFolder(t)
	disk := &fullDisk{Store: store, left: 150_000}
	r := newRig(t, disk, nil)
	data := noise(200_000, 1)
	d := oci.FromBytes(data)
	s := r.begin(alice)
	if _, err := r.Append(t.Context(), s.Secret, nil, bytes.NewReader(data[:100_000])); err != nil {
		t.Fatal(err)
	}
	at := URL(r.serve(), s.Secret)
	r.exchange(at, exchange{method: http.MethodPatch, body: string(data[100_000:]), status: 507, code: "UNAVAILABLE"})
	r.exchange(at, exchange{method: http.MethodGet, status: 204, want: map[string]string{"Range": "0-99999"}})
	disk.left = 1 << 30
	r.exchange(at, exchange{
		method: http.MethodPut, query: "?digest=" + d.String(), header: map[string]string{"Content-Range": "100000-199999"},
		body: string(data[100_000:]), status: 201,
	})
	r.content(d, "")
}
