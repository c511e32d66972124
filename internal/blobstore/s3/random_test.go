package s3_test

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/url"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"atcr.io/internal/blobstore/s3"
)

// cutter is a way to the storage on which connections break off at any byte.
func cutter(t *testing.T, to string, seed uint64) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		random := rand.New(rand.NewPCG(seed, 0))
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			sent := int64(1) << 60
			if random.IntN(3) == 0 {
				sent = random.Int64N(5 * s3.PartBytes)
			}
			go forward(client, to, sent)
		}
	}()
	return "http://" + listener.Addr().String()
}

// forward ends when most bytes were sent.
func forward(client net.Conn, to string, most int64) {
	server, err := net.Dial("tcp", to)
	if err != nil {
		_ = client.Close()
		return
	}
	var both sync.WaitGroup
	both.Go(func() {
		_, _ = io.CopyN(server, client, most)
		_ = server.Close()
		_ = client.Close()
	})
	both.Go(func() {
		_, _ = io.Copy(client, server)
		_ = client.Close()
	})
	both.Wait()
}

// Would catch bytes of one upload in another's object, or in another place, whatever senders, connections and restarts do
// while parts are sent as they are filled.
func TestRandomUploads(t *testing.T) {
	t.Parallel()
	rounds := 1
	if n, err := strconv.Atoi(os.Getenv("RANDOM_UPLOADS")); err == nil {
		rounds = n
	}
	base := bucket(t)
	address, err := url.Parse(base.Endpoint)
	if err != nil {
		t.Fatal(err)
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	c := base
	c.Near, c.Slow = time.Hour, 30*time.Millisecond
	c.Endpoint = cutter(t, address.Host, seed)
	s, direct := open(t, c), open(t, base)
	var senders sync.WaitGroup
	for i := range 4 {
		senders.Go(func() {
			random := rand.New(rand.NewPCG(seed, uint64(i)+1))
			for range rounds {
				randomUpload(t, s, direct, random)
			}
		})
	}
	senders.Wait()
}

func randomUpload(t *testing.T, s, direct *s3.Store, random *rand.Rand) {
	t.Helper()
	data := make([]byte, random.IntN(14*s3.PartBytes))
	_, _ = rand.NewChaCha8([32]byte{byte(random.Uint32()), byte(random.Uint32()), 1}).Read(data)
	w, err := s.Create(t.Context(), "")
	if err != nil {
		t.Error(err)
		return
	}
	defer func() { _ = w.Close() }()
	var state []byte
	again := func() bool { // a later process, from the last state
		if err := w.Close(); err != nil {
			t.Error(err)
			return false
		}
		if state == nil {
			w, err = s.Create(t.Context(), "")
		} else {
			w, err = s.Resume(t.Context(), state)
		}
		if err != nil {
			t.Error(err)
		}
		return err == nil
	}
	for failures := 0; ; {
		rest := data[w.Size():]
		n := random.IntN(len(rest) + 1)
		if random.IntN(3) == 0 {
			n = len(rest)
		}
		_, err := w.ReadFrom(&stalling{bytes.NewReader(rest[:n]), random})
		if err == nil && random.IntN(2) == 0 {
			var next []byte
			if next, err = w.State(t.Context()); err == nil {
				state = next
			}
		}
		if err == nil && int(w.Size()) == len(data) {
			var key string
			if key, err = w.Commit(t.Context(), "random/"+strconv.FormatUint(random.Uint64(), 36)); err == nil {
				same(t, direct, key, data)
				return
			}
		}
		if err != nil {
			if failures++; failures > 50 {
				t.Error(err)
				return
			}
		}
		if (err != nil || random.IntN(8) == 0) && !again() {
			return
		}
	}
}

func same(t *testing.T, s *s3.Store, key string, data []byte) {
	t.Helper()
	o, err := s.Open(t.Context(), key)
	if err != nil {
		t.Error(err)
		return
	}
	got, err := io.ReadAll(o)
	if err = errors.Join(err, o.Close()); err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d bytes of %d, %v", len(got), len(data), err)
	}
}

// stalling gives pieces, and pauses at times for longer than a sender may keep a buffer.
type stalling struct {
	r      io.Reader
	random *rand.Rand
}

func (s *stalling) Read(p []byte) (int, error) {
	switch s.random.IntN(400) {
	case 0:
		time.Sleep(50 * time.Millisecond)
	case 1:
		p = p[:1+s.random.IntN(len(p))]
	}
	return s.r.Read(p)
}
