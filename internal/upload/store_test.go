package upload

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"atcr.io/internal/blobstore"
)

// memory is a store in memory, with all the optional powers, that keeps to blobstore's contract in its
// sharpest form: a Writer is dead after an error, a State is only good up to what it describes, and
// random keys are given wherever a driver may. fault is asked before and after every call.
type memory struct {
	mu      sync.Mutex
	objects map[string][]byte
	staged  map[string]*staged
	serial  int
	fault   hook
	// keepKeys commits at a key of its own unless Create was told the final one, as S3 does for large objects.
	keepKeys bool
	// seals has Writers be sealed before they are committed, as those of S3 are where the object is large.
	seals bool
}

type staged struct {
	key   string // final key, where Create was told it
	bytes []byte
	parts map[int][]byte
	multi bool
}

type memoryState struct {
	Name string
	Size int64
}

func newMemory() *memory {
	return &memory{objects: map[string][]byte{}, staged: map[string]*staged{}}
}

// hook is asked at each step; the loops of an Uploads may be at one while a test changes it.
type hook struct {
	fn atomic.Pointer[func(step string) error]
}

func (h *hook) set(fn func(step string) error) { h.fn.Store(&fn) }

func (h *hook) clear() { h.fn.Store(nil) }

func (h *hook) step(name string) error {
	if fn := h.fn.Load(); fn != nil {
		return (*fn)(name)
	}
	return nil
}

// around runs fn with a fault before or after it.
func (m *memory) around(name string, fn func() error) error {
	if err := m.fault.step("before " + name); err != nil {
		return err
	}
	m.mu.Lock()
	err := fn()
	m.mu.Unlock()
	if err != nil {
		return err
	}
	return m.fault.step("after " + name)
}

func (m *memory) Check(context.Context) error { return nil }

func (m *memory) Create(_ context.Context, key string) (w blobstore.Writer, err error) {
	err = m.around("create", func() error {
		m.serial++
		name := fmt.Sprintf("s%d", m.serial)
		m.staged[name] = &staged{key: key}
		w = &memoryWriter{m: m, name: name}
		return nil
	})
	return w, err
}

func (m *memory) Resume(_ context.Context, state []byte) (w blobstore.Writer, err error) {
	err = m.around("resume", func() error {
		var s memoryState
		if err := json.Unmarshal(state, &s); err != nil {
			return err
		}
		st := m.staged[s.Name]
		if st == nil || int64(len(st.bytes)) < s.Size {
			return blobstore.ErrNotFound
		}
		st.bytes = st.bytes[:s.Size:s.Size]
		w = &memoryWriter{m: m, name: s.Name, size: s.Size}
		return nil
	})
	return w, err
}

func (m *memory) Discard(_ context.Context, state []byte) error {
	return m.around("discard", func() error {
		var s memoryState
		if err := json.Unmarshal(state, &s); err != nil {
			return err
		}
		delete(m.staged, s.Name)
		delete(m.objects, blobstore.StagingPrefix+s.Name) // committed, and never told
		return nil
	})
}

func (m *memory) Put(_ context.Context, key string, data []byte) error {
	return m.around("put", func() error {
		m.objects[key] = bytes.Clone(data)
		return nil
	})
}

type memoryObject struct{ *bytes.Reader }

func (memoryObject) Close() error { return nil }

func (m *memory) Open(_ context.Context, key string) (o blobstore.Object, err error) {
	err = m.around("open", func() error {
		data, ok := m.objects[key]
		if !ok {
			return blobstore.ErrNotFound
		}
		o = memoryObject{bytes.NewReader(data)}
		return nil
	})
	return o, err
}

func (m *memory) Stat(_ context.Context, key string) (size int64, err error) {
	err = m.around("stat", func() error {
		data, ok := m.objects[key]
		if !ok {
			return blobstore.ErrNotFound
		}
		size = int64(len(data))
		return nil
	})
	return size, err
}

func (m *memory) Delete(_ context.Context, key string) error {
	return m.around("delete", func() error { delete(m.objects, key); return nil })
}

func (m *memory) List(_ context.Context, prefix string, fn func(string, int64) error) error {
	m.mu.Lock()
	sizes := map[string]int64{}
	for key, data := range m.objects {
		if strings.HasPrefix(key, prefix) {
			sizes[key] = int64(len(data))
		}
	}
	m.mu.Unlock()
	for key, size := range sizes {
		if err := fn(key, size); err != nil {
			return err
		}
	}
	return nil
}

type memoryWriter struct {
	m    *memory
	name string
	size int64
	dead error
}

func (w *memoryWriter) ReadFrom(r io.Reader) (int64, error) {
	if w.dead != nil {
		return 0, w.dead
	}
	var total int64
	buffer := make([]byte, 32<<10)
	for {
		n, err := r.Read(buffer)
		if werr := w.m.around("write", func() error {
			st := w.m.staged[w.name]
			if st == nil {
				return errors.New("the bytes are gone")
			}
			st.bytes = append(st.bytes, buffer[:n]...)
			return nil
		}); werr != nil {
			w.dead = werr
			return total, werr
		}
		total += int64(n)
		w.size += int64(n)
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}

func (w *memoryWriter) Size() int64 { return w.size }

func (w *memoryWriter) State(context.Context) (state []byte, err error) {
	if w.dead != nil {
		return nil, w.dead
	}
	err = w.m.around("state", func() error {
		state, err = json.Marshal(memoryState{w.name, w.size})
		return err
	})
	if err != nil {
		w.dead, state = err, nil
	}
	return state, err
}

func (w *memoryWriter) Commit(_ context.Context, final string) (key string, err error) {
	if w.dead != nil {
		return "", w.dead
	}
	err = w.m.around("commit", func() error {
		st := w.m.staged[w.name]
		if st == nil {
			return blobstore.ErrNotFound
		}
		if key = final; w.m.keepKeys && st.key != final {
			key = blobstore.StagingPrefix + w.name
		}
		w.m.objects[key] = bytes.Clone(st.bytes)
		return nil
	})
	if err != nil {
		w.dead = err
	}
	return key, err
}

func (w *memoryWriter) Close() error { return nil }

func (w *memoryWriter) Key() string {
	w.m.mu.Lock()
	defer w.m.mu.Unlock()
	if st := w.m.staged[w.name]; st == nil || !w.m.keepKeys || st.key != "" {
		return ""
	}
	return blobstore.StagingPrefix + w.name
}

func (w *memoryWriter) Seal(context.Context) (ok bool, err error) {
	if w.dead != nil || !w.m.seals {
		return false, w.dead
	}
	if err := w.m.around("seal", func() error { return nil }); err != nil {
		w.dead = err
		return false, err
	}
	return true, nil
}

// presigning adds the optional powers to memory.
type presigning struct{ *memory }

func (m presigning) PresignGet(_ context.Context, method, key string, _ time.Duration) (string, error) {
	return "https://storage.test/" + key + "?method=" + method, nil
}

func (m presigning) NewMultipart(context.Context) (state []byte, err error) {
	err = m.around("multipart", func() error {
		m.serial++
		name := fmt.Sprintf("s%d", m.serial)
		m.staged[name] = &staged{multi: true, parts: map[int][]byte{}}
		state, err = json.Marshal(memoryState{Name: name})
		return err
	})
	return state, err
}

func (m presigning) PresignPart(_ context.Context, state []byte, number int, _ time.Duration) (string, map[string]string, error) {
	var s memoryState
	if err := json.Unmarshal(state, &s); err != nil {
		return "", nil, err
	}
	return s.Name + "/" + strconv.Itoa(number), map[string]string{"X-Test": "1"}, nil
}

// send is what a client does with a URL of PresignPart.
func (m presigning) send(url string, data []byte) (etag string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	name, number, _ := strings.Cut(url, "/")
	n, _ := strconv.Atoi(number)
	m.staged[name].parts[n] = bytes.Clone(data)
	return `"` + number + `"`
}

func (m presigning) CompleteMultipart(_ context.Context, state []byte, parts []blobstore.Part) (key string, size int64, err error) {
	err = m.around("join", func() error {
		var s memoryState
		if err := json.Unmarshal(state, &s); err != nil {
			return err
		}
		st := m.staged[s.Name]
		if st == nil {
			return blobstore.ErrNotFound
		}
		var all []byte
		for _, p := range parts {
			data, ok := st.parts[p.Number]
			if !ok || p.ETag != `"`+strconv.Itoa(p.Number)+`"` {
				return blobstore.ErrNotFound
			}
			all = append(all, data...)
		}
		key, size = blobstore.StagingPrefix+s.Name, int64(len(all))
		m.objects[key] = all
		return nil
	})
	return key, size, err
}

var (
	_ blobstore.Store     = (*memory)(nil)
	_ blobstore.Multipart = presigning{}
	_ blobstore.Presigner = presigning{}
)
