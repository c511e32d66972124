package s3

import (
	"context"
	"io"
	"net"
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
