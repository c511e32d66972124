package pds_test

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"

	"atcr.io/internal/pds"
)

// rawSubscriber follows the firehose without a library: its own cost must not pass for the host's.
type rawSubscriber struct {
	conn net.Conn
	r    *bufio.Reader
}

func dialRaw(address string) (*rawSubscriber, error) {
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return nil, err
	}
	s := &rawSubscriber{conn, bufio.NewReaderSize(conn, 16<<10)}
	_, err = fmt.Fprintf(conn, "GET /xrpc/com.atproto.sync.subscribeRepos HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
	if err != nil {
		return nil, err
	}
	res, err := http.ReadResponse(s.r, nil)
	if err == nil && res.StatusCode != http.StatusSwitchingProtocols {
		err = fmt.Errorf("%s", res.Status)
	}
	if err == nil {
		err = res.Body.Close()
	}
	return s, err
}

// next reads a frame's length, and passes over it.
func (s *rawSubscriber) next() (int, error) {
	var head [10]byte
	if _, err := io.ReadFull(s.r, head[:2]); err != nil {
		return 0, err
	}
	n := int(head[1])
	switch n {
	case 126:
		if _, err := io.ReadFull(s.r, head[:2]); err != nil {
			return 0, err
		}
		n = int(binary.BigEndian.Uint16(head[:2]))
	case 127:
		if _, err := io.ReadFull(s.r, head[:8]); err != nil {
			return 0, err
		}
		n = int(binary.BigEndian.Uint64(head[:8])) //nolint:gosec // a frame has at most a few megabytes
	}
	return s.r.Discard(n)
}

// BenchmarkFanOut is what one event costs with a thousand subscribers, theirs included.
func BenchmarkFanOut(b *testing.B) {
	const followers = 1000
	s := newSite(b, pds.Config{MaxSubscribers: followers})
	subscribers := make([]*rawSubscriber, followers)
	for i := range subscribers {
		var err error
		if subscribers[i], err = dialRaw(strings.TrimPrefix(s.server.URL, "http://")); err != nil {
			b.Fatal(err)
		}
		defer func() { _ = subscribers[i].conn.Close() }()
	}
	i := 0
	for b.Loop() {
		var wg sync.WaitGroup
		for _, sub := range subscribers {
			wg.Go(func() {
				if _, err := sub.next(); err != nil {
					b.Error(err)
				}
			})
		}
		if _, err := s.repo.Apply(b.Context(), []pds.Write{put(fmt.Sprintf("r%d", i), i)}, nil); err != nil {
			b.Fatal(err)
		}
		wg.Wait()
		i++
	}
	b.ReportMetric(float64(followers*b.N)/b.Elapsed().Seconds(), "deliveries/s")
}
