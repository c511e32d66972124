package s3

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"sync"
)

type dialer = func(ctx context.Context, network, address string) (net.Conn, error)

// dialWhole gives connections that hand a part to the system as it lies in its buffer. Without it net/http copies every
// 32 KiB of a part before they go, where the connection is not encrypted.
func dialWhole(dial dialer) dialer {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := dial(ctx, network, address)
		if tcp, ok := c.(*net.TCPConn); ok && err == nil {
			return wholeConn{tcp}, nil
		}
		return c, err
	}
}

type wholeConn struct{ *net.TCPConn }

// ReadFrom is called with the rest of a request's body, of which net/http says how much it may be.
func (c wholeConn) ReadFrom(r io.Reader) (int64, error) {
	l, ok := r.(*io.LimitedReader)
	if !ok {
		return c.TCPConn.ReadFrom(r)
	}
	whole, ok := l.R.(io.WriterTo)
	if !ok {
		return c.TCPConn.ReadFrom(r)
	}
	n, err := whole.WriteTo(&limitedWriter{c.TCPConn, l.N})
	l.N -= n
	return n, err
}

// limitedWriter refuses what is more than left.
type limitedWriter struct {
	w    io.Writer
	left int64
}

func (l *limitedWriter) Write(p []byte) (int, error) {
	if int64(len(p)) > l.left {
		return 0, io.ErrShortWrite
	}
	n, err := l.w.Write(p)
	l.left -= int64(n)
	return n, err
}

// body is bytes that are sent. A connection may read of a request's body after the request is over, and the bytes' buffer
// must not be used again before that has ended.
type body struct {
	mu    sync.Mutex
	bytes *bytes.Reader
	over  bool
}

var errOver = errors.New("the request is over")

func newBody(data []byte) *body { return &body{bytes: bytes.NewReader(data)} }

// end waits for whoever reads: the connection of a request that is over has all bytes, or is closed.
func (b *body) end() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.over = true
}

func (b *body) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.over {
		return 0, errOver
	}
	return b.bytes.Read(p)
}

func (b *body) Seek(offset int64, whence int) (int64, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.bytes.Seek(offset, whence)
}

func (b *body) WriteTo(w io.Writer) (int64, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.over {
		return 0, errOver
	}
	return b.bytes.WriteTo(w)
}
