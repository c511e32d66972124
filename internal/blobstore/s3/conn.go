package s3

import (
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

// body is bytes that are sent, maybe while their buffer is still being filled. A connection may read of a request's body
// after the request is over, and the buffer must not be used again before that has ended.
type body struct {
	mu      sync.Mutex
	changed sync.Cond
	data    []byte // as long as was announced
	filled  int    // bytes of it that are there
	at      int
	attempt int // a retry begins anew, and ends the reading of the one before
	writing int // connections that have some of data in hand
	over    bool
}

var (
	errOver = errors.New("the request is over")
	errSeek = errors.New("no such place in the body")
)

// newBody is a body that is there as a whole.
func newBody(data []byte) *body {
	b := &body{data: data, filled: len(data)}
	b.changed.L = &b.mu
	return b
}

// fill says how much is there now.
func (b *body) fill(n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.filled = n
	b.changed.Broadcast()
}

// end waits for whoever has bytes in hand: the connection of a request that is over has all, or is closed.
func (b *body) end() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.over = true
	b.changed.Broadcast()
	for b.writing > 0 {
		b.changed.Wait()
	}
}

func (b *body) Seek(offset int64, whence int) (int64, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch whence {
	case io.SeekCurrent:
		offset += int64(b.at)
	case io.SeekEnd:
		offset += int64(len(b.data))
	}
	if offset < 0 || offset > int64(len(b.data)) {
		return 0, errSeek
	}
	b.at = int(offset)
	b.attempt++
	b.changed.Broadcast()
	return offset, nil
}

// next waits for bytes that were not sent yet. mu is held. Errors: io.EOF, errOver.
func (b *body) next(attempt int) ([]byte, error) {
	for {
		switch {
		case b.over || b.attempt != attempt:
			return nil, errOver
		case b.at < b.filled:
			return b.data[b.at:b.filled], nil
		case b.at == len(b.data):
			return nil, io.EOF
		}
		b.changed.Wait()
	}
}

func (b *body) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	data, err := b.next(b.attempt)
	n := copy(p, data)
	b.at += n
	return n, err
}

func (b *body) WriteTo(w io.Writer) (total int64, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	attempt := b.attempt
	for {
		data, err := b.next(attempt)
		if errors.Is(err, io.EOF) {
			return total, nil
		}
		if err != nil {
			return total, err
		}
		n, err := b.write(w, data)
		total += int64(n)
		if b.attempt == attempt {
			b.at += n
		}
		if err != nil {
			return total, err
		}
	}
}

// write gives mu away meanwhile.
func (b *body) write(w io.Writer, data []byte) (int, error) {
	b.writing++
	b.mu.Unlock()
	n, err := w.Write(data)
	b.mu.Lock()
	b.writing--
	b.changed.Broadcast()
	return n, err
}
