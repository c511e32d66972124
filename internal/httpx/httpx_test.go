package httpx_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"atcr.io/internal/httpx"
)

func translate(w http.ResponseWriter, err error) (int, string) {
	status := http.StatusInternalServerError
	if errors.Is(err, errTeapot) {
		status = http.StatusTeapot
	}
	w.WriteHeader(status)
	_, _ = io.WriteString(w, "translated")
	return status, "CODE"
}

var errTeapot = errors.New("teapot")

// Would catch an error that is answered twice, a panic that takes the process, and a request not counted.
func TestAdapter(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	registry := prometheus.NewRegistry()
	a := httpx.NewAdapter(slog.New(slog.NewTextHandler(&log, nil)), registry, "test")
	for route, test := range map[string]struct {
		handler httpx.Handler
		status  int
		body    string
	}{
		"ok":    {func(w http.ResponseWriter, _ *http.Request) error { _, err := io.WriteString(w, "fine"); return err }, 200, "fine"},
		"empty": {func(http.ResponseWriter, *http.Request) error { return nil }, 200, ""},
		"error": {func(_ http.ResponseWriter, r *http.Request) error {
			httpx.EventFrom(r.Context()).DID = "did:plc:seen"
			return fmt.Errorf("wrapped: %w", errTeapot)
		}, 418, "translated"},
		"panic": {func(http.ResponseWriter, *http.Request) error { panic("boom") }, 500, "translated"},
		"read from": {func(w http.ResponseWriter, _ *http.Request) error {
			_, err := io.Copy(w, strings.NewReader("copied"))
			return err
		}, 200, "copied"},
	} {
		w := httptest.NewRecorder()
		a.Wrap(route, translate, test.handler).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
		if w.Code != test.status || w.Body.String() != test.body {
			t.Errorf("%s: %d %q", route, w.Code, w.Body)
		}
	}
	if n := testutil.CollectAndCount(registry, "test_http_requests_total"); n != 5 {
		t.Errorf("%d rows of requests", n)
	}
	for _, want := range []string{"did=did:plc:seen", "code=CODE", "boom", "httpx_test.go"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log lacks %q:\n%s", want, &log)
		}
	}
}

// Would catch an answer that fails in the middle, or after its header, and that its client takes for whole; one that is
// then neither logged nor counted; and a connection that is its handler's own and is answered all the same.
func TestCutAnswers(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		method, want string // "": cut off
		handler      httpx.Handler
	}{
		"chunks": {http.MethodGet, "", func(w http.ResponseWriter, _ *http.Request) error {
			_, err := io.WriteString(w, "some")
			return errors.Join(err, http.NewResponseController(w).Flush(), errTeapot)
		}},
		"buffered": {http.MethodGet, "", func(w http.ResponseWriter, _ *http.Request) error {
			_, err := io.WriteString(w, "<html>")
			return errors.Join(err, errTeapot)
		}},
		"copied": {http.MethodGet, "", func(w http.ResponseWriter, _ *http.Request) error {
			_, err := io.Copy(w, io.MultiReader(strings.NewReader("some"), iotest.ErrReader(errTeapot)))
			return err
		}},
		"status alone": {http.MethodPost, "", func(w http.ResponseWriter, _ *http.Request) error { w.WriteHeader(202); return errTeapot }},
		"head":         {http.MethodHead, "", func(w http.ResponseWriter, _ *http.Request) error { w.WriteHeader(200); return errTeapot }},
		"panic": {http.MethodGet, "", func(w http.ResponseWriter, _ *http.Request) error {
			_, _ = io.WriteString(w, "some")
			panic(errTeapot)
		}},
		"abort":            {http.MethodGet, "", func(http.ResponseWriter, *http.Request) error { panic(http.ErrAbortHandler) }},
		"before":           {http.MethodGet, "418 translated", func(http.ResponseWriter, *http.Request) error { return errTeapot }},
		"head, before":     {http.MethodHead, "418 ", func(http.ResponseWriter, *http.Request) error { return errTeapot }},
		"head with a body": {http.MethodHead, "200 ", func(w http.ResponseWriter, _ *http.Request) error { _, err := io.WriteString(w, "fine"); return err }},
		"early, then fails": {http.MethodGet, "418 translated", func(w http.ResponseWriter, _ *http.Request) error {
			w.WriteHeader(http.StatusEarlyHints)
			return errTeapot
		}},
		"hijacked": {http.MethodGet, "200 own", func(w http.ResponseWriter, _ *http.Request) error {
			conn, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				return err
			}
			_, err = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nown")
			return errors.Join(err, conn.Close(), errTeapot)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var log, serverLog bytes.Buffer
			registry := prometheus.NewRegistry()
			wrapped := httpx.NewAdapter(slog.New(slog.NewTextHandler(&log, nil)), registry, "test").Wrap("r", translate, test.handler)
			ended := make(chan bool)
			s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				defer close(ended)
				wrapped.ServeHTTP(w, r)
			}))
			s.Config.ErrorLog = slog.NewLogLogger(slog.NewTextHandler(&serverLog, nil), slog.LevelError)
			s.Start()
			req, err := http.NewRequestWithContext(t.Context(), test.method, s.URL, nil)
			if err != nil {
				t.Fatal(err)
			}
			got := ""
			res, err := s.Client().Do(req)
			if err == nil {
				var body []byte
				if body, err = io.ReadAll(res.Body); err == nil {
					got = fmt.Sprintf("%d %s", res.StatusCode, body)
				}
				_ = res.Body.Close()
			}
			<-ended
			s.Close()
			if got != test.want {
				t.Errorf("%q, %v", got, err)
			}
			if n := testutil.CollectAndCount(registry, "test_http_requests_total"); n != 1 {
				t.Errorf("%d rows of requests", n)
			}
			if cut := strings.Contains(log.String(), "level=ERROR") && strings.Contains(log.String(), "cut=true"); cut != (test.want == "") {
				t.Errorf("the log: %s", &log)
			}
			if serverLog.Len() > 0 {
				t.Errorf("the server's log: %s", &serverLog)
			}
		})
	}
}

// Would catch a wrapper that hides ReadFrom or the deadlines, and so sendfile and ProgressBody.
func TestWriterKeepsPowers(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "blob")
	if err := os.WriteFile(path, bytes.Repeat([]byte("x"), 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	a := &httpx.Adapter{}
	s := httptest.NewServer(a.Wrap("r", translate, func(w http.ResponseWriter, r *http.Request) error {
		if err := http.NewResponseController(w).SetReadDeadline(time.Now().Add(time.Hour)); err != nil {
			return err
		}
		if _, ok := w.(io.ReaderFrom); !ok {
			return errors.New("no ReadFrom")
		}
		http.ServeFile(w, r, path)
		return nil
	}))
	defer s.Close()
	res, err := http.Get(s.URL) //nolint:noctx // loopback
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(res.Body)
	if err := errors.Join(err, res.Body.Close()); err != nil || len(body) != 1<<20 || res.StatusCode != 200 {
		t.Fatal(res.Status, len(body), err)
	}
}

// Would catch a request that reaches an internal address by its number, its name, or a redirect.
func TestGuardedClient(t *testing.T) {
	t.Parallel()
	internal := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("the internal server was reached") }))
	defer internal.Close()
	port := internal.Listener.Addr().(*net.TCPAddr).Port
	c := httpx.NewClient(httpx.ClientConfig{Timeout: 5 * time.Second, FollowRedirects: true})
	for _, target := range []string{
		internal.URL, fmt.Sprintf("https://127.0.0.1:%d", port), fmt.Sprintf("https://localhost:%d", port), fmt.Sprintf("https://[::1]:%d", port),
		"https://10.0.0.1", "https://169.254.169.254/latest/meta-data", "https://[::ffff:127.0.0.1]", "https://0.0.0.0", "https://user:pass@example.com",
		"http://example.com", "ftp://example.com", "https://a.localhost",
	} {
		res, err := c.Get(target) //nolint:noctx // refused before it is sent
		if err == nil {
			_ = res.Body.Close()
		}
		if !errors.Is(err, httpx.ErrForbiddenAddress) && !errors.Is(err, httpx.ErrInsecureURL) {
			t.Errorf("%s: %v", target, err)
		}
		if err != nil && strings.Contains(err.Error(), ":pass@") {
			t.Errorf("a password in %v", err)
		}
	}
	for _, secret := range []string{"http://bucket.example.com/key?X-Amz-Signature=5ebe2294", "https://u:5ebe2294@example.com/", "http://hold.example.com/u/5ebe2294"} {
		u, err := url.Parse(secret)
		if err != nil {
			t.Fatal(err)
		}
		if err := httpx.CheckURL(u, false); !errors.Is(err, httpx.ErrInsecureURL) || strings.Contains(err.Error(), "5ebe2294") {
			t.Errorf("refused with its secret: %v", err)
		}
	}
	front := httptest.NewServer(http.RedirectHandler("ftp://example.com/x", http.StatusFound))
	defer front.Close()
	open := httpx.NewClient(httpx.ClientConfig{AllowPrivate: true, FollowRedirects: true, UserAgent: "test"})
	if _, err := open.Get(front.URL); !errors.Is(err, httpx.ErrInsecureURL) { //nolint:noctx,bodyclose // refused
		t.Errorf("a redirect to ftp: %v", err)
	}
	still := httpx.NewClient(httpx.ClientConfig{AllowPrivate: true})
	res, err := still.Get(front.URL) //nolint:noctx // loopback
	if err != nil {
		t.Fatal(err)
	}
	if err := res.Body.Close(); err != nil || res.StatusCode != http.StatusFound {
		t.Errorf("a redirect was followed: %s", res.Status)
	}
}

// Would catch a block of private addresses that passes for public.
func TestPublicAddress(t *testing.T) {
	t.Parallel()
	for address, public := range map[string]bool{
		"1.1.1.1": true, "8.8.8.8": true, "2606:4700::1111": true, "127.0.0.1": false, "10.1.2.3": false, "172.16.0.1": false, "192.168.1.1": false,
		"169.254.169.254": false, "100.64.0.1": false, "0.0.0.0": false, "224.0.0.1": false, "255.255.255.255": false, "240.0.0.1": false, "198.18.0.1": false,
		"::1": false, "::": false, "fe80::1": false, "fc00::1": false, "fd12::1": false, "::ffff:10.0.0.1": false, "64:ff9b::a00:1": false, "2002:a00:1::": false,
		"ff02::1": false, "2001:db8::1": false, "::7f00:1": false, "::10.0.0.1": false, "::ffff:0:10.0.0.1": false, "64:ff9b::7f00:1": false, "64:ff9b:1::1": false,
		"fec0::1": false, "100::1": false, "5f00::1": false, "3fff::1": false, "2001:0:a00:1::": false, "2001:20::1": false, "fe80::1%eth0": false, "192.88.99.1": false,
		"::ffff:8.8.8.8": true, "2a00:1450:4001:813::200e": true, "172.15.0.1": true, "172.32.0.1": true, "100.128.0.1": true, "192.0.1.1": true,
	} {
		if got := httpx.PublicAddress(netip.MustParseAddr(address)); got != public {
			t.Errorf("%s: %v", address, got)
		}
	}
	for host, loopback := range map[string]bool{"localhost": true, "a.localhost": true, "127.8.8.8": true, "::1": true, "localhost.example.com": false, "10.0.0.1": false, "notlocalhost": false} {
		if got := httpx.IsLoopbackHost(host); got != loopback {
			t.Errorf("%s: %v", host, got)
		}
	}
	if err := httpx.CheckURL(&url.URL{Scheme: "https", Host: "example.com"}, false); err != nil {
		t.Error(err)
	}
}

// Would catch a name of others that leads to this machine: the URL is in order, the address is not. The
// machine's own name is one, and has an address that only the resolver knows.
func TestGuardAfterResolving(t *testing.T) {
	t.Parallel()
	name, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	c := httpx.NewClient(httpx.ClientConfig{Timeout: 5 * time.Second})
	reached := false
	for _, host := range []string{name, "LOCALHOST", "localhost.", "ip6-localhost", "LocalHost"} {
		addresses, err := net.DefaultResolver.LookupNetIP(t.Context(), "ip", host)
		if err != nil || len(addresses) == 0 || httpx.PublicAddress(addresses[0]) {
			continue // no name of this machine here
		}
		reached = true
		if err := httpx.CheckURL(&url.URL{Scheme: "https", Host: host}, false); err != nil {
			t.Errorf("%s is refused by its form: it tests nothing: %v", host, err)
		}
		res, err := c.Get("https://" + host + "/") //nolint:noctx // refused before it is sent
		if err == nil {
			_ = res.Body.Close()
		}
		if !errors.Is(err, httpx.ErrForbiddenAddress) {
			t.Errorf("%s: %v", host, err)
		}
	}
	if !reached {
		t.Error("no name leads to a private address here: nothing was tested")
	}
}

// Would catch a redirect into the network behind the guard, and one without end.
func TestRedirects(t *testing.T) {
	t.Parallel()
	var hops atomic.Int64
	loop := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		hops.Add(1)
		http.Redirect(w, r, "/again", http.StatusFound)
	}))
	defer loop.Close()
	open := httpx.NewClient(httpx.ClientConfig{AllowPrivate: true, FollowRedirects: true})
	res, err := open.Get(loop.URL) //nolint:noctx // loopback
	if err != nil {
		t.Fatal(err)
	}
	if err := res.Body.Close(); err != nil || res.StatusCode != http.StatusFound || hops.Load() != 4 {
		t.Errorf("%s after %d requests", res.Status, hops.Load())
	}
	// The guard of a client is asked for each hop: here the first address is allowed, the second is not.
	inside := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("the internal server was reached") }))
	defer inside.Close()
	guarded := httpx.NewClient(httpx.ClientConfig{FollowRedirects: true})
	next := guarded.Transport
	guarded.Transport = roundTrip(func(r *http.Request) (*http.Response, error) {
		if r.URL.Host != "public.example" {
			return next.RoundTrip(r)
		}
		return &http.Response{StatusCode: http.StatusFound, Header: http.Header{"Location": {r.URL.Query().Get("to")}}, Body: http.NoBody, Request: r}, nil
	})
	for _, to := range []string{inside.URL, "https://127.0.0.1/", "https://[::1]/", "https://169.254.169.254/latest", "file:///etc/passwd"} {
		res, err := guarded.Get("https://public.example/?to=" + url.QueryEscape(to)) //nolint:noctx // never leaves this process
		if err == nil {
			_ = res.Body.Close()
		}
		if !errors.Is(err, httpx.ErrForbiddenAddress) && !errors.Is(err, httpx.ErrInsecureURL) {
			t.Errorf("%s: %v", to, err)
		}
	}
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// Would catch an answer of 10 GB that fills the memory.
func TestReadLimited(t *testing.T) {
	t.Parallel()
	if b, err := httpx.ReadLimited(strings.NewReader("12345"), 5); err != nil || string(b) != "12345" {
		t.Errorf("%q %v", b, err)
	}
	if _, err := httpx.ReadLimited(endless{}, 1<<20); !errors.Is(err, httpx.ErrTooLarge) {
		t.Errorf("%v", err)
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

// Would catch a stop that cuts a transfer, and one that waits for ever.
func TestServe(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		grace  time.Duration
		served bool
	}{"in time": {time.Minute, true}, "too long": {time.Millisecond, false}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			entered, release := make(chan struct{}), make(chan struct{})
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			logger := slog.New(slog.DiscardHandler)
			server := httpx.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				close(entered)
				<-release
				_, _ = io.WriteString(w, "done")
			}), logger)
			ctx, stop := context.WithCancel(t.Context())
			ended := make(chan error, 1)
			go func() { ended <- httpx.Serve(ctx, logger, test.grace, httpx.Endpoint{Server: server, Listener: l}) }()
			answered := make(chan error, 1)
			go func() {
				res, err := http.Get("http://" + l.Addr().String()) //nolint:noctx // loopback
				if err == nil {
					err = res.Body.Close()
				}
				answered <- err
			}()
			<-entered
			stop()
			if test.served {
				close(release)
			} else {
				defer close(release)
			}
			if err := <-ended; err != nil {
				t.Error(err)
			}
			if err := <-answered; (err == nil) != test.served {
				t.Errorf("the request in flight: %v", err)
			}
		})
	}
}

// Would catch a second server that takes requests while the first ends, or loses its own grace to it; and
// the failure of a listener that nobody hears of.
func TestServeTwo(t *testing.T) {
	t.Parallel()
	logger := slog.New(slog.DiscardHandler)
	entered, release := make(chan struct{}, 2), make(chan struct{})
	var endpoints []httpx.Endpoint
	for range 2 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		endpoints = append(endpoints, httpx.Endpoint{Listener: l, Server: httpx.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
			entered <- struct{}{}
			<-release
		}), logger)})
	}
	ctx, stop := context.WithCancel(t.Context())
	ended, answered := make(chan error, 1), make(chan error, 2)
	go func() { ended <- httpx.Serve(ctx, logger, time.Minute, endpoints...) }()
	stopped := make(chan struct{}, 2)
	for _, e := range endpoints {
		e.Server.RegisterOnShutdown(func() { stopped <- struct{}{} })
		go func() {
			res, err := http.Get("http://" + e.Listener.Addr().String()) //nolint:noctx // loopback
			if err == nil {
				err = res.Body.Close()
			}
			answered <- err
		}()
		<-entered
	}
	stop()
	for range 2 { // both stop before the first request is answered
		select {
		case <-stopped:
		case <-time.After(time.Minute):
			t.Fatal("one server waits for the other")
		}
	}
	close(release)
	for range 2 {
		if err := <-answered; err != nil {
			t.Error(err)
		}
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}

	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err := errors.Join(err, l.Close()); err != nil {
		t.Fatal(err)
	}
	failing := httpx.Endpoint{Listener: l, Server: httpx.NewServer(http.NotFoundHandler(), logger)}
	if err := httpx.Serve(t.Context(), logger, time.Second, failing); err == nil {
		t.Error("a listener that failed is an orderly end")
	}
}

// Would catch profiles or metrics that are not there when they are needed.
func TestDebugHandler(t *testing.T) {
	t.Parallel()
	h := httpx.DebugHandler(prometheus.NewRegistry())
	for _, path := range []string{"/metrics", "/debug/pprof/", "/debug/pprof/cmdline"} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		if w.Code != http.StatusOK {
			t.Errorf("%s: %d", path, w.Code)
		}
	}
}

// Would catch a body that is changed on its way, or a deadline left on the connection.
func TestProgressBody(t *testing.T) {
	t.Parallel()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, httpx.ProgressBody(w, r))
		_, _ = fmt.Fprint(w, n, err)
	}))
	defer s.Close()
	for range 3 {
		res, err := http.Post(s.URL, "application/octet-stream", bytes.NewReader(make([]byte, 3<<20))) //nolint:noctx // loopback
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(res.Body)
		if err := errors.Join(err, res.Body.Close()); err != nil || string(body) != "3145728 <nil>" {
			t.Fatalf("%q %v", body, err)
		}
	}
}

// slowSender sends so many bytes each time, after a wait.
type slowSender struct {
	bytes int
	wait  time.Duration
	left  int // times
	err   error
}

func (s *slowSender) Read(p []byte) (int, error) {
	if s.left--; s.left < 0 {
		return 0, s.err
	}
	time.Sleep(s.wait) // in a synctest bubble: no real time passes
	return min(s.bytes, len(p)), nil
}

func (*slowSender) Close() error { return nil }

// Would catch a sender of a byte now and then that keeps an upload open for ever, and an honest slow one, or
// one whom we keep waiting, that is cut.
func TestProgressBodyPace(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		sender slowSender
		busy   time.Duration // of ours between reads
		want   error
	}{
		"a byte a second":       {slowSender{1, time.Second, 1000, io.EOF}, 0, httpx.ErrTooSlow},
		"a byte in 50 s":        {slowSender{1, 50 * time.Second, 1000, io.EOF}, 0, httpx.ErrTooSlow},
		"just too slow":         {slowSender{1023, time.Second, 1000, io.EOF}, 0, httpx.ErrTooSlow},
		"1 KiB/s":               {slowSender{1024, time.Second, 1000, io.EOF}, 0, nil},
		"bursts":                {slowSender{64 << 10, 50 * time.Second, 100, io.EOF}, 0, nil},
		"quick, and we slow":    {slowSender{1, time.Millisecond, 1000, io.EOF}, time.Minute, nil},
		"fast":                  {slowSender{32 << 10, 0, 1000, io.EOF}, 0, nil},
		"slow after a good run": {slowSender{1 << 10, 3 * time.Second, 1000, io.EOF}, 0, httpx.ErrTooSlow},
		"silent":                {slowSender{0, 0, 0, os.ErrDeadlineExceeded}, 0, httpx.ErrTooSlow},
		"cut off":               {slowSender{1, 0, 5, io.ErrUnexpectedEOF}, 0, io.ErrUnexpectedEOF},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := httptest.NewRequest(http.MethodPut, "/", nil)
				r.Body = &test.sender
				body, buffer := httpx.ProgressBody(httptest.NewRecorder(), r), make([]byte, 32<<10)
				var err error
				for err == nil {
					_, err = body.Read(buffer)
					time.Sleep(test.busy)
				}
				if errors.Is(err, io.EOF) {
					err = nil
				}
				if !errors.Is(err, test.want) {
					t.Errorf("%v, want %v", err, test.want)
				}
			})
		})
	}
}

// Would catch an alarm for each client that hangs up, and silence where the server gave up by itself.
func TestWhoLeftIsNoAlarm(t *testing.T) {
	t.Parallel()
	for name, left := range map[string]bool{"the client left": true, "the server gave up": false} {
		var log bytes.Buffer
		a := httpx.NewAdapter(slog.New(slog.NewTextHandler(&log, nil)), nil, "test")
		ctx, leave := context.WithCancel(t.Context())
		handler := a.Wrap("r", func(w http.ResponseWriter, _ error) (int, string) {
			w.WriteHeader(http.StatusServiceUnavailable)
			return http.StatusServiceUnavailable, "Timeout"
		}, func(http.ResponseWriter, *http.Request) error {
			if left {
				leave()
			}
			return fmt.Errorf("query: %w", context.Canceled)
		})
		handler.ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(ctx, http.MethodGet, "/", nil))
		leave()
		if alarmed := strings.Contains(log.String(), "level=ERROR"); alarmed == left {
			t.Errorf("%s: %s", name, &log)
		}
	}
}
