package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// followers are subscriptions to a firehose, and how late each event came. They read without a library, so that
// their own cost does not pass for the server's.
type followers struct {
	sent  []atomic.Int64 // when each event was asked for
	got   [subscribers]atomic.Int64
	late  [20_000]atomic.Int64 // deliveries by their milliseconds
	going sync.WaitGroup
}

// follow opens the subscriptions, and reads until each has all events, was cut off, or ctx ends.
func (f *followers) follow(ctx context.Context, address string) error {
	var opened atomic.Int64
	return each(callers, func() error {
		for i := opened.Add(1) - 1; i < subscribers; i = opened.Add(1) - 1 {
			conn, r, err := dialFirehose(ctx, address)
			if err != nil {
				return err
			}
			f.going.Go(func() {
				defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
				defer func() { _ = conn.Close() }()
				for n := range f.sent {
					if err := nextEvent(conn, r); err != nil {
						return // it is seen in what it got
					}
					f.got[i].Add(1)
					late := (time.Now().UnixNano() - f.sent[n].Load()) / int64(time.Millisecond)
					f.late[min(max(late, 0), int64(len(f.late)-1))].Add(1)
				}
			})
		}
		return nil
	})
}

func dialFirehose(ctx context.Context, address string) (net.Conn, *bufio.Reader, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, nil, err
	}
	r := bufio.NewReaderSize(conn, 8<<10)
	_, err = fmt.Fprintf(conn, "GET /xrpc/com.atproto.sync.subscribeRepos HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n", address)
	if err == nil {
		var res *http.Response
		if res, err = http.ReadResponse(r, nil); err == nil {
			if err = res.Body.Close(); res.StatusCode != http.StatusSwitchingProtocols {
				err = fmt.Errorf("subscribe: %s", res.Status)
			}
		}
	}
	if err != nil {
		return nil, nil, errors.Join(err, conn.Close())
	}
	return conn, r, nil
}

// nextEvent reads up to the end of the next binary frame, and answers pings before it.
//
// Source: RFC 6455, section 5.2.
func nextEvent(conn io.Writer, r *bufio.Reader) error {
	for {
		var head [8]byte
		if _, err := io.ReadFull(r, head[:2]); err != nil {
			return err
		}
		kind, n := head[0]&0x0f, int(head[1]&0x7f)
		switch n {
		case 126:
			if _, err := io.ReadFull(r, head[:2]); err != nil {
				return err
			}
			n = int(binary.BigEndian.Uint16(head[:2]))
		case 127:
			if _, err := io.ReadFull(r, head[:]); err != nil {
				return err
			}
			n = int(binary.BigEndian.Uint64(head[:])) //nolint:gosec // a frame has at most a few megabytes
		}
		switch kind {
		case 0x2:
			_, err := r.Discard(n)
			return err
		case 0x9: // a ping: the same comes back, masked with zeros, which change nothing
			payload := make([]byte, n)
			if _, err := io.ReadFull(r, payload); err != nil {
				return err
			}
			if _, err := conn.Write(append([]byte{0x8a, 0x80 | byte(n), 0, 0, 0, 0}, payload...)); err != nil {
				return err
			}
		default:
			return fmt.Errorf("a frame of kind %d", kind)
		}
	}
}

func (f *followers) wait() { f.going.Wait() }

// quantile is how many milliseconds late that share of the deliveries was, at most.
func (f *followers) quantile(q float64) int {
	total := int64(0)
	for i := range f.late {
		total += f.late[i].Load()
	}
	sum := int64(0)
	for i := range f.late {
		if sum += f.late[i].Load(); float64(sum) >= q*float64(total) {
			return i
		}
	}
	return len(f.late)
}
