package s3_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"atcr.io/internal/blobstore"
	"atcr.io/internal/blobstore/s3"
	"atcr.io/internal/blobstore/storetest"
	"atcr.io/test/components"
)

// bucket is a real S3 server, which checks signatures, with one bucket.
func bucket(t *testing.T) s3.Config {
	t.Helper()
	server := components.StartS3(t)
	server.CreateBucket(t, "blobs")
	return s3.Config{
		Endpoint: server.Endpoint, Region: "us-east-1", Bucket: "blobs", AccessKeyID: server.AccessKey, SecretAccessKey: server.SecretKey,
		SpoolDir: t.TempDir(),
	}
}

func open(t *testing.T, c s3.Config) *s3.Store {
	t.Helper()
	s, err := s3.New(c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestStore(t *testing.T) {
	t.Parallel()
	c := bucket(t)
	storetest.Run(t, func(t *testing.T) blobstore.Store { return open(t, c) })
}

// answer is an error as a server words it.
func answer(status int, code string) *http.Response {
	body := "<Error><Code>" + code + "</Code><Message>injected</Message></Error>"
	return &http.Response{StatusCode: status, Header: http.Header{"Content-Type": {"application/xml"}}, Body: io.NopCloser(strings.NewReader(body)), ContentLength: int64(len(body))}
}

// transport counts requests and breaks some.
type transport struct {
	requests atomic.Int64
	broken   atomic.Int64
	fault    func(r *http.Request, n int64) (*http.Response, error) // nil, nil: pass on
}

func (c *transport) RoundTrip(r *http.Request) (*http.Response, error) {
	n := c.requests.Add(1)
	if c.fault != nil {
		if res, err := c.fault(r, n); res != nil || err != nil {
			c.broken.Add(1)
			if r.Body != nil {
				_, _ = io.Copy(io.Discard, r.Body)
				_ = r.Body.Close()
			}
			return res, err
		}
	}
	return http.DefaultTransport.RoundTrip(r)
}

func write(t *testing.T, s *s3.Store, key string, data []byte) string {
	t.Helper()
	w, err := s.Create(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = w.Close() }()
	if _, err := w.ReadFrom(bytes.NewReader(data)); err != nil {
		t.Fatal(err)
	}
	if _, err := w.State(t.Context()); err != nil {
		t.Fatal(err)
	}
	got, err := w.Commit(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// Would catch a small blob that costs more than its one PUT, and reads that cost more than one GET.
func TestRequests(t *testing.T) {
	t.Parallel()
	c, count := bucket(t), &transport{}
	c.Wrap = count
	s := open(t, c)
	write(t, s, "small/data", make([]byte, 1024))
	if n := count.requests.Load(); n != 1 {
		t.Errorf("a blob of 1 KiB took %d requests", n)
	}
	count.requests.Store(0)
	if _, err := s.PresignGet(t.Context(), http.MethodGet, "small/data", time.Minute); err != nil || count.requests.Load() != 0 {
		t.Errorf("presigning took %d requests, %v", count.requests.Load(), err)
	}
	write(t, s, "large/data", make([]byte, 3*s3.PartBytes))
	if n := count.requests.Load(); n != 5 {
		t.Errorf("a blob of three parts took %d requests, want 5", n)
	}
}

// Would catch an upload that a busy or resetting server ends, and one that is believed though it failed.
func TestFaults(t *testing.T) {
	t.Parallel()
	base := bucket(t)
	base.Near = time.Hour // so that parts are sent while they are filled
	data := bytes.Repeat([]byte("0123456789abcdef"), (7*s3.PartBytes+100)/16)
	for name, fault := range map[string]func(*http.Request, int64) (*http.Response, error){
		"503 on every other": func(_ *http.Request, n int64) (*http.Response, error) {
			if n%2 == 1 {
				return answer(http.StatusServiceUnavailable, "SlowDown"), nil
			}
			return nil, nil
		},
		"reset on parts": func(r *http.Request, n int64) (*http.Response, error) {
			if r.Method == http.MethodPut && n%2 == 0 {
				return nil, io.ErrUnexpectedEOF
			}
			return nil, nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, breaker := base, &transport{fault: fault}
			c.Wrap, c.SpoolDir = breaker, t.TempDir()
			key := write(t, open(t, c), "faults/"+strings.ReplaceAll(name, " ", "-"), data)
			if breaker.broken.Load() == 0 {
				t.Fatal("no fault fired")
			}
			o, err := open(t, base).Open(t.Context(), key)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = o.Close() }()
			if got, err := io.ReadAll(o); err != nil || !bytes.Equal(got, data) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
		})
	}
	t.Run("completion fails inside a 200", func(t *testing.T) {
		t.Parallel()
		c := base
		breaker := &transport{fault: func(r *http.Request, _ int64) (*http.Response, error) {
			if r.Method == http.MethodPost && r.URL.Query().Has("uploadId") {
				res := answer(http.StatusServiceUnavailable, "SlowDown")
				res.StatusCode = 200
				return res, nil
			}
			return nil, nil
		}}
		c.Wrap, c.SpoolDir = breaker, t.TempDir()
		s := open(t, c)
		w, err := s.Create(t.Context(), "")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = w.Close() }()
		if _, err := w.ReadFrom(bytes.NewReader(data)); err != nil {
			t.Fatal(err)
		}
		if key, err := w.Commit(t.Context(), "faults/inside"); err == nil || breaker.broken.Load() == 0 {
			t.Errorf("committed to %s", key)
		}
	})
}

// Would catch presigned URLs that another method, another key or nobody can use.
func TestPresign(t *testing.T) {
	t.Parallel()
	c := bucket(t)
	s := open(t, c)
	write(t, s, "presign/data", []byte("hello"))
	do := func(method, url string, body io.Reader, header ...string) (int, string, http.Header) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, url, body)
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i < len(header); i += 2 {
			req.Header.Set(header[i], header[i+1])
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(res.Body)
		if err := errors.Join(err, res.Body.Close()); err != nil {
			t.Fatal(err)
		}
		return res.StatusCode, string(text), res.Header
	}
	get, err := s.PresignGet(t.Context(), http.MethodGet, "presign/data", time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	head, err := s.PresignGet(t.Context(), http.MethodHead, "presign/data", time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if status, body, header := do(http.MethodGet, get, nil); status != 200 || body != "hello" || header.Get("Content-Type") != "application/octet-stream" {
		t.Errorf("GET: %d %q %s", status, body, header.Get("Content-Type"))
	}
	if status, body, _ := do(http.MethodGet, get, nil, "Range", "bytes=1-2"); status != 206 || body != "el" {
		t.Errorf("Range: %d %q", status, body)
	}
	if status, _, _ := do(http.MethodHead, head, nil); status != 200 {
		t.Errorf("HEAD: %d", status)
	}
	for what, url := range map[string]string{"GET by HEAD's": head, "another key": strings.Replace(get, "presign/data", "presign/dat2", 1), "unsigned": strings.Split(get, "?")[0]} {
		if status, _, _ := do(http.MethodGet, url, nil); status != 403 {
			t.Errorf("%s: %d", what, status)
		}
	}
	state, err := s.NewMultipart(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var parts []blobstore.Part
	for n, data := range [][]byte{make([]byte, 5<<20), []byte("tail")} {
		url, _, err := s.PresignPart(t.Context(), state, n+1, time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		status, body, header := do(http.MethodPut, url, bytes.NewReader(data))
		if status != 200 {
			t.Fatalf("part: %d %s", status, body)
		}
		parts = append(parts, blobstore.Part{Number: n + 1, ETag: header.Get("ETag")})
	}
	for range 2 { // repeatable
		key, size, err := s.CompleteMultipart(t.Context(), state, parts)
		if err != nil || size != 5<<20+4 || !strings.HasPrefix(key, blobstore.StagingPrefix) {
			t.Fatalf("%s %d %v", key, size, err)
		}
	}
	missing, err := s.NewMultipart(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.CompleteMultipart(t.Context(), missing, parts); !errors.Is(err, blobstore.ErrNotFound) {
		t.Errorf("parts that were never sent: %v", err)
	}
}

// Would catch settings that are wrong and say nothing of what to do.
func TestCheck(t *testing.T) {
	t.Parallel()
	good := bucket(t)
	for name, test := range map[string]struct {
		change func(*s3.Config)
		want   string
	}{
		"good":      {func(*s3.Config) {}, ""},
		"no bucket": {func(c *s3.Config) { c.Bucket = "absent-bucket" }, "no bucket absent-bucket"},
		"secret":    {func(c *s3.Config) { c.SecretAccessKey = "wrong" }, "credentials"},
		"key":       {func(c *s3.Config) { c.AccessKeyID = "nobody" }, "credentials"},
		"address":   {func(c *s3.Config) { c.Endpoint = "http://127.0.0.1:1" }, "cannot be reached"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := good
			test.change(&c)
			err := open(t, c).Check(t.Context())
			if (err == nil) != (test.want == "") || err != nil && (!errors.Is(err, blobstore.ErrNoBucket) || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("got %v", err)
			}
			if err != nil && strings.Contains(err.Error(), good.SecretAccessKey) {
				t.Error("a secret is shown")
			}
		})
	}
}

// slowReader gives a little, and then nothing until it is let go.
type slowReader struct {
	first io.Reader
	hold  chan struct{}
}

func (s *slowReader) Read(p []byte) (int, error) {
	if n, err := s.first.Read(p); n > 0 {
		return n, err
	}
	<-s.hold
	return 0, io.EOF
}

// Would catch slow senders that keep every buffer, so that nobody else can push.
func TestSlowSenders(t *testing.T) {
	t.Parallel()
	c := bucket(t)
	c.Buffers, c.Slow = 2, 50*time.Millisecond
	s := open(t, c)
	hold := make(chan struct{})
	type slow struct {
		w    blobstore.Writer
		done chan error
	}
	var senders []slow
	for range 5 {
		w, err := s.Create(t.Context(), "")
		if err != nil {
			t.Fatal(err)
		}
		sender := slow{w, make(chan error, 1)}
		senders = append(senders, sender)
		go func() {
			_, err := w.ReadFrom(&slowReader{bytes.NewReader([]byte("little")), hold})
			sender.done <- err
		}()
	}
	write(t, s, "slow/other", make([]byte, 2*s3.PartBytes+1))
	close(hold)
	for i, sender := range senders {
		if err := <-sender.done; err != nil {
			t.Error(err)
		}
		key, err := sender.w.Commit(t.Context(), "slow/"+string(rune('a'+i)))
		if err != nil {
			t.Fatal(err)
		}
		if size, err := s.Stat(t.Context(), key); err != nil || size != 6 {
			t.Errorf("%d bytes, %v", size, err)
		}
		if err := sender.w.Close(); err != nil {
			t.Error(err)
		}
	}
	left, err := filepath.Glob(filepath.Join(c.SpoolDir, "*"))
	if err != nil || len(left) != 0 {
		t.Errorf("left in the spool folder: %v %v", left, err)
	}
	if _, err := os.Stat(c.SpoolDir); err != nil {
		t.Error(err)
	}
}

// Would catch a sender who waits while the storage begins the upload, and a last part that waits for those before it:
// with a storage far away each is a round trip of nothing.
func TestAtOnce(t *testing.T) {
	t.Parallel()
	patience, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	await := func(what string, c <-chan struct{}) error {
		select {
		case <-c:
			return nil
		case <-patience.Done():
			return errors.New("nobody came to " + what)
		}
	}
	taken, last := make(chan struct{}), make(chan struct{})
	c := bucket(t)
	c.Wrap = &transport{fault: func(r *http.Request, _ int64) (*http.Response, error) {
		switch q := r.URL.Query(); {
		case q.Has("uploads"):
			return nil, await("send on while the upload begins", taken)
		case q.Get("partNumber") == "3":
			close(last)
		case q.Has("partNumber"):
			return nil, await("the last part", last)
		}
		return nil, nil
	}}
	data := make([]byte, 2*s3.PartBytes+s3.PartBytes/2)
	s := open(t, c)
	w, err := s.Create(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = w.Close() }()
	if _, err := w.ReadFrom(bytes.NewReader(data)); err != nil {
		t.Fatal(err)
	}
	close(taken)
	if _, err := w.State(t.Context()); err != nil {
		t.Fatal(err)
	}
	key, err := w.Commit(t.Context(), "large/data")
	if err != nil {
		t.Fatal(err)
	}
	if size, err := s.Stat(t.Context(), key); err != nil || size != int64(len(data)) {
		t.Errorf("the object has %d bytes, %v", size, err)
	}
}

// awaited is a reader that waits until it may give more.
type awaited struct {
	io.Reader
	more <-chan struct{}
}

func (a awaited) Read(p []byte) (int, error) {
	<-a.more
	return a.Reader.Read(p)
}

// Would catch a part that waits until it is full, bytes of one that never is, and a retry that sends them beside each other.
func TestSentWhileFilled(t *testing.T) {
	t.Parallel()
	data := make([]byte, 7*s3.PartBytes+s3.PartBytes/2)
	for i := range data {
		data[i] = byte(i >> 8)
	}
	begun := 6*s3.PartBytes + s3.PartBytes/4 // of part 7
	for name, test := range map[string]struct {
		bytes int
		fault func(n int64) (*http.Response, error) // of part 7
	}{
		"full":        {len(data), nil},
		"never full":  {6*s3.PartBytes + s3.PartBytes/2, nil},
		"asked again": {len(data), func(n int64) (*http.Response, error) { return nil, map[bool]error{true: io.ErrUnexpectedEOF}[n == 1] }},
		"refused early": {len(data), func(n int64) (*http.Response, error) {
			return map[bool]*http.Response{true: answer(http.StatusServiceUnavailable, "SlowDown")}[n == 1], nil
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, began := bucket(t), make(chan struct{})
			var seventh atomic.Int64
			early := &transport{fault: func(r *http.Request, _ int64) (*http.Response, error) {
				if r.URL.Query().Get("partNumber") != "7" {
					return nil, nil
				}
				n := seventh.Add(1)
				if n == 1 {
					close(began)
				}
				if test.fault == nil {
					return nil, nil
				}
				return test.fault(n)
			}}
			c.Near, c.Wrap = time.Hour, early
			s := open(t, c)
			w, err := s.Create(t.Context(), "")
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = w.Close() }()
			r := io.MultiReader(bytes.NewReader(data[:begun]), awaited{bytes.NewReader(data[begun:test.bytes]), began})
			if _, err := w.ReadFrom(r); err != nil {
				t.Fatal(err)
			}
			if _, err := w.State(t.Context()); err != nil {
				t.Fatal(err)
			}
			key, err := w.Commit(t.Context(), "filled/data")
			if err != nil {
				t.Fatal(err)
			}
			o, err := s.Open(t.Context(), key)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = o.Close() }()
			if got, err := io.ReadAll(o); err != nil || !bytes.Equal(got, data[:test.bytes]) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
		})
	}
}

// Would catch a far storage that is idle most of the time, since it gets too few parts at once, a near one that has much left
// when the bytes end, and more than there is memory for.
func TestPartsInFlight(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		near, patience time.Duration
		want           int64 // of a near one: a full part and the one that is filled
	}{"far": {time.Nanosecond, time.Minute, s3.PartsInFlight}, "near": {time.Hour, 100 * time.Millisecond, 2}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := bucket(t)
			c.Near = test.near
			var now, most atomic.Int64
			all := make(chan struct{})
			enough := sync.OnceFunc(func() { close(all) })
			c.Wrap = &transport{fault: func(r *http.Request, _ int64) (*http.Response, error) {
				q := r.URL.Query()
				if !q.Has("partNumber") {
					return nil, nil
				}
				n := now.Add(1)
				defer now.Add(-1)
				for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
				}
				if _, err := io.Copy(io.Discard, r.Body); err != nil {
					return nil, err
				}
				if number := q.Get("partNumber"); len(number) > 1 || number > "4" { // four tell how far it is
					if n == test.want {
						enough()
					}
					select {
					case <-all:
						time.Sleep(50 * time.Millisecond) // for one that is too many
					case <-time.After(test.patience):
					}
				}
				return &http.Response{StatusCode: http.StatusOK, Header: http.Header{"Etag": {`"part"`}}, Body: http.NoBody}, nil
			}}
			w, err := open(t, c).Create(t.Context(), "")
			if err != nil {
				t.Fatal(err)
			}
			if _, err := w.ReadFrom(bytes.NewReader(make([]byte, 12*s3.PartBytes))); err != nil {
				t.Fatal(err)
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			if most.Load() != test.want {
				t.Errorf("%d parts at once", most.Load())
			}
		})
	}
}
