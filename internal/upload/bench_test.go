package upload

import (
	"context"
	"io"
	"testing"

	"atcr.io/internal/blobstore"
)

// sink is a store that drops what is streamed to it.
type sink struct{ *memory }

type sinkWriter struct {
	blobstore.Writer
	buffer []byte
}

func (s sink) Create(ctx context.Context, key string) (blobstore.Writer, error) {
	w, err := s.memory.Create(ctx, key)
	return &sinkWriter{Writer: w, buffer: make([]byte, 1<<20)}, err
}

func (w *sinkWriter) ReadFrom(r io.Reader) (n int64, err error) {
	for {
		m, err := r.Read(w.buffer)
		n += int64(m)
		if err == io.EOF {
			return n, nil
		}
		if err != nil {
			return n, err
		}
	}
}

// BenchmarkAppend is what hashing, counting and copying aside cost a stream, without network and disk.
func BenchmarkAppend(b *testing.B) {
	const size = 64 << 20
	r := newRig(b, sink{newMemory()}, nil)
	b.SetBytes(size)
	b.ReportAllocs()
	for b.Loop() {
		s := r.begin(alice)
		if _, err := r.Append(b.Context(), s.Secret, nil, io.LimitReader(zeros{}, size)); err != nil {
			b.Fatal(err)
		}
		if err := r.Abort(b.Context(), s.Secret); err != nil {
			b.Fatal(err)
		}
	}
}
