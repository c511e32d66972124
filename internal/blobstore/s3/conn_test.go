package s3

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"testing"
	"time"
)

// Would catch bytes lost, doubled or sent beyond a request's end by the short way from a buffer to the connection.
func TestWholeConn(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	arrived := make(chan []byte)
	go func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			all, _ := io.ReadAll(c)
			arrived <- all
		}
	}()
	data := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	onlyReader := struct{ io.Reader }{bytes.NewReader(data)}
	for name, c := range map[string]struct {
		from io.Reader
		n    int
		err  error
	}{
		"a buffer":               {io.LimitReader(bytes.NewReader(data), int64(len(data))), len(data), nil},
		"longer than it may be":  {io.LimitReader(bytes.NewReader(data), 10), 0, io.ErrShortWrite},
		"shorter than announced": {io.LimitReader(bytes.NewReader(data), int64(len(data))+1), len(data), nil},
		"a stream":               {io.LimitReader(onlyReader, int64(len(data))), len(data), nil},
		"without a limit":        {bytes.NewReader(data), len(data), nil},
	} {
		conn, err := dialWhole((&net.Dialer{}).DialContext)(context.Background(), "tcp", listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		n, err := conn.(io.ReaderFrom).ReadFrom(c.from) //nolint:forcetypeassert // what net/http looks for
		if n != int64(c.n) || !errors.Is(err, c.err) {
			t.Errorf("%s: %d, %v", name, n, err)
		}
		if err := conn.Close(); err != nil {
			t.Fatal(err)
		}
		if got := <-arrived; !bytes.Equal(got, data[:c.n]) {
			t.Errorf("%s: %d bytes arrived", name, len(got))
		}
	}
}

// Would catch a buffer that is filled again while a connection still reads from it.
func TestBodyEnds(t *testing.T) {
	t.Parallel()
	b := newBody([]byte("data"))
	reader, writer := io.Pipe()
	sent := make(chan error)
	go func() {
		_, err := b.WriteTo(writer)
		sent <- err
	}()
	got := make([]byte, 2)
	if _, err := io.ReadFull(reader, got); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		b.end()
		close(ended)
	}()
	select {
	case <-ended:
		t.Error("ended while it is read")
	case <-time.After(20 * time.Millisecond):
	}
	if err := reader.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-sent; !errors.Is(err, io.ErrClosedPipe) {
		t.Error(err)
	}
	<-ended
	if n, err := b.Read(got); n != 0 || !errors.Is(err, errOver) {
		t.Errorf("%d, %v", n, err)
	}
	if n, err := b.WriteTo(io.Discard); n != 0 || !errors.Is(err, errOver) {
		t.Errorf("%d, %v", n, err)
	}
}

// Would catch bytes sent before they are there, and a retry beside which the attempt before goes on.
func TestBodyFills(t *testing.T) {
	t.Parallel()
	b := newBody([]byte("0123456789"))
	b.filled = 0
	b.fill(4)
	first, writer := io.Pipe()
	sent := make(chan error)
	go func() {
		_, err := b.WriteTo(writer)
		sent <- err
	}()
	got := make([]byte, 4)
	if _, err := io.ReadFull(first, got); err != nil || string(got) != "0123" {
		t.Fatalf("%q, %v", got, err)
	}
	b.fill(7)
	if _, err := io.ReadFull(first, got[:2]); err != nil || string(got[:2]) != "45" { // and has 6 in hand
		t.Fatalf("%q, %v", got[:2], err)
	}
	if n, err := b.Seek(0, io.SeekStart); n != 0 || err != nil {
		t.Fatal(n, err)
	}
	again := make(chan string)
	go func() {
		all, err := io.ReadAll(struct{ io.Reader }{b})
		again <- fmt.Sprint(string(all), err)
	}()
	b.fill(10)
	if s := <-again; s != "0123456789<nil>" {
		t.Error(s)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-sent; !errors.Is(err, io.ErrClosedPipe) {
		t.Error(err)
	}
	if n, err := b.Seek(0, io.SeekCurrent); n != 10 || err != nil {
		t.Errorf("at %d after the first attempt, %v", n, err)
	}
	if _, err := b.Seek(1, io.SeekEnd); !errors.Is(err, errSeek) {
		t.Error(err)
	}
	waits := newBody(make([]byte, 1))
	waits.filled = 0
	go func() {
		_, err := waits.WriteTo(io.Discard)
		sent <- err
	}()
	waits.end()
	if err := <-sent; !errors.Is(err, errOver) {
		t.Error(err)
	}
}
