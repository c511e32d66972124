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
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// followers are subscriptions to a firehose, and when each event came. They read without a library, so that
// their own cost does not pass for the server's.
type followers struct {
	want  atomic.Int64             // how many events each must have; 0 while that is not known
	came  [subscribers][]time.Time // of each event
	going sync.WaitGroup
}

// follow opens the subscriptions, and reads until each has what it must, was cut off, or ctx ends.
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
				for want := int64(0); want == 0 || int64(len(f.came[i])) < want; want = f.want.Load() {
					if err := nextEvent(conn, r); err != nil {
						return // it is seen in what it got
					}
					f.came[i] = append(f.came[i], time.Now())
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

// lagging is later than any event of a server that keeps pace is.
const lagging = time.Second

// judge compares what came with when each event was asked for: how late all deliveries were, in order; how many have every
// event, and how many lagged: were cut off, or had an event later than lagging.
func (f *followers) judge(sent []time.Time) (late []time.Duration, whole, lagged int) {
	f.going.Wait()
	for _, came := range f.came {
		behind := len(came) < len(sent)
		if !behind {
			whole++
		}
		for n, at := range came[:min(len(came), len(sent))] {
			late = append(late, at.Sub(sent[n]))
			behind = behind || at.Sub(sent[n]) > lagging
		}
		if behind {
			lagged++
		}
	}
	slices.Sort(late)
	return late, whole, lagged
}
