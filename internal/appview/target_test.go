package appview

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"atcr.io/internal/oci"
	"atcr.io/internal/xrpc"
	"atcr.io/test/databases"
)

// TestMain gives the tests names of their own: app.test and all below it are this machine, and nothing else is known.
func TestMain(m *testing.M) {
	stop, err := serveNames()
	if err != nil {
		panic(err)
	}
	code := databases.Run(m)
	stop()
	os.Exit(code)
}

func serveNames() (stop func(), err error) {
	var lc net.ListenConfig
	server, err := lc.ListenPacket(context.Background(), "udp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	go func() {
		question := make([]byte, 1500)
		for {
			n, from, err := server.ReadFrom(question)
			if err != nil {
				return
			}
			if n > 16 {
				_, _ = server.WriteTo(answerName(question[:n]), from) // who asked asks again
			}
		}
	}()
	net.DefaultResolver = &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "udp", server.LocalAddr().String())
	}}
	return func() { _ = server.Close() }, nil
}

// answerName is a DNS message: 127.0.0.1 for names below app.test, no such name for others.
//
// Source: RFC 1035, section 4.1.
func answerName(question []byte) []byte {
	var labels []string
	at := 12
	for at < len(question) && question[at] != 0 {
		n := int(question[at])
		if at+1+n > len(question) {
			return nil
		}
		labels = append(labels, strings.ToLower(string(question[at+1:at+1+n])))
		at += 1 + n
	}
	end := min(at+5, len(question))
	out := append([]byte{question[0], question[1], 0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0}, question[12:end]...)
	known := len(labels) >= 2 && labels[len(labels)-1] == "test" && labels[len(labels)-2] == "app"
	switch isA := end == at+5 && question[at+2] == 1; {
	case known && isA:
		out[7] = 1
		out = append(out, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 127, 0, 0, 1)
	case !known:
		out[3] |= 3
	}
	return out
}

// onNames is a network whose AppView is app.test, and whose hold is below it.
func onNames(t *testing.T) *network {
	t.Helper()
	n := newNetwork(t)
	port := n.base[strings.LastIndexByte(n.base, ':'):]
	n.base = "http://app.test" + port
	n.config.BaseURL, n.config.ServiceName = n.base, "app.test"+port
	holdPort := n.public.url[strings.LastIndexByte(n.public.url, ':'):]
	n.public.url, n.public.did = "http://hold.app.test"+holdPort, "did:web:hold.app.test%3A"+holdPort[1:]
	n.public.config.PublicURL = n.public.url
	n.public.config.DatabaseDir, n.public.config.StorageRootDir = t.TempDir(), t.TempDir()
	n.public.config.KeyPath, n.public.config.TestMode = "", true
	if err := n.public.config.Validate(); err != nil {
		t.Fatal(err)
	}
	n.public.restart(t, nil)
	n.config.DefaultHoldDID = n.public.did
	n.restart()
	return n
}

// Would catch a token of the registry that a client's library takes along to a hold below the registry's host name.
func TestNamesBelowOurOwn(t *testing.T) {
	t.Parallel()
	n := onNames(t)
	var tokens atomic.Int64
	n.public.misbehave(func(_ http.ResponseWriter, r *http.Request, _ http.Handler) bool {
		if token := xrpc.BearerToken(r); token != "" && !isServiceToken(t, token) {
			tokens.Add(1)
		}
		return false
	})
	alice := n.as(n.alice, "alice.test/app")
	image := newImage("one")
	for _, blob := range [][]byte{image.config, image.layer} {
		alice.clientUpload("alice.test/app", blob) // containerd's, which would go to the hold
	}
	alice.must(201, alice.put("alice.test/app", "1.0", image.manifest))
	d := oci.FromBytes(image.layer).String()
	for _, want := range []string{"", "bytes=2-5"} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, n.base+"/v2/alice.test/app/blobs/"+d, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", alice.authorization)
		if want != "" {
			req.Header.Set("Range", want)
		}
		res, err := http.DefaultClient.Do(req) // follows redirects, and takes its token where it thinks fit
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(res.Body)
		if err := errors.Join(err, res.Body.Close()); err != nil {
			t.Fatal(err)
		}
		expect, status := string(image.layer), 200
		if want != "" {
			expect, status = expect[2:6], 206
		}
		if res.StatusCode != status || string(body) != expect || res.Request.URL.Host != n.base[len("http://"):] || res.Header.Get("Docker-Content-Digest") != d {
			t.Errorf("%q: %s %q from %s %v", want, res.Status, body, res.Request.URL.Host, res.Header)
		}
	}
	if got := alice.do(http.MethodGet, "/v2/alice.test/app/blobs/"+d, nil, "Range", "bytes=900-"); got.status != 416 {
		t.Errorf("a range behind the end: %d", got.status)
	}
	if tokens.Load() != 0 {
		t.Errorf("the hold got %d tokens that are not for it", tokens.Load())
	}
}

// Would catch a hold that sends clients into the networks that they are in.
func TestTargets(t *testing.T) {
	t.Parallel()
	addresses := map[string][]netip.Addr{
		"public.example": {netip.MustParseAddr("8.8.8.8")}, "private.example": {netip.MustParseAddr("10.0.0.1")},
		"both.example": {netip.MustParseAddr("8.8.8.8"), netip.MustParseAddr("127.0.0.1")}, "six.example": {netip.MustParseAddr("fd00::1")},
	}
	asked := 0
	targets, err := newTargets("https://atcr.example", false, func(_ context.Context, _, name string) ([]netip.Addr, error) {
		asked++
		if found, ok := addresses[name]; ok {
			return found, nil
		}
		return nil, errors.New("no such host")
	}, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	at := &hold{URL: "https://hold.example"}
	for target, want := range map[string]bool{
		"https://public.example/x?sig=1": true, "https://PUBLIC.example/x": true, "https://public.example./x": true, "https://8.8.8.8/x": true, "https://hold.example/d/x": true,
		"https://private.example/x": false, "https://both.example/x": false, "https://six.example/": false, "https://unknown.example/": false,
		"https://10.0.0.1/x": false, "https://127.0.0.1/": false, "https://[::1]/": false, "https://[::ffff:10.0.0.1]/": false, "https://169.254.169.254/latest": false,
		"https://localhost/x": false, "https://a.localhost/x": false, "http://public.example/x": false, "https://user@public.example/x": false,
		"https:///x": false, "//public.example/x": false, "javascript:alert(1)": false, "": false, "https://public.example:port/": false, "\x7f": false,
	} {
		if err := targets.check(t.Context(), at, target); (err == nil) != want {
			t.Errorf("%q: %v", target, err)
		}
	}
	before := asked
	for range 10 {
		_ = targets.check(t.Context(), at, "https://public.example/x")
		_ = targets.check(t.Context(), at, "https://private.example/x")
	}
	if asked != before {
		t.Errorf("names are looked up for each request: %d times", asked-before)
	}
}

// Would catch a hold that never answers, or with what is no answer, and has people wait for ever, follow it inside, or
// show it their passwords.
func TestHostileHold(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	n.useHold(n.bob, n.private.did)
	bob := n.as(n.bob, "bob.test/app")
	image := newImage("one")
	bob.push("bob.test/app", image, "1.0")
	n.config.patience = 3 * time.Second
	n.restart()
	layer := "/v2/bob.test/app/blobs/" + oci.FromBytes(image.layer).String()
	begin := func() string {
		return bob.must(202, bob.do(http.MethodPost, "/v2/bob.test/app/blobs/uploads/", nil)).header.Get("Location")
	}
	location := begin()
	var inside atomic.Int64
	secret := newLocalServer(t, func(w http.ResponseWriter, _ *http.Request) {
		inside.Add(1)
		w.Header().Set("Content-Length", "1")
		_, _ = w.Write([]byte("x"))
	})
	challenge := func(w http.ResponseWriter, _ *http.Request, _ http.Handler) bool {
		w.Header().Set("WWW-Authenticate", `Basic realm="give me your password"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	}
	redirect := func(w http.ResponseWriter, _ *http.Request, _ http.Handler) bool {
		w.Header().Set("Location", secret)
		w.WriteHeader(http.StatusTemporaryRedirect)
		return true
	}
	silent := func(_ http.ResponseWriter, r *http.Request, _ http.Handler) bool {
		_, _ = io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
		return true
	}
	endless := func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
		line := strings.Repeat("x", 32<<10)
		for r.Context().Err() == nil {
			if _, err := io.WriteString(w, line); err != nil {
				break
			}
		}
		return true
	}
	for what, f := range map[string]fault{"challenges": challenge, "redirects": redirect, "is silent": silent, "never ends": endless} {
		n.private.misbehave(f)
		for call, ask := range map[string]func() answer{
			"POST": func() answer { return bob.do(http.MethodPost, "/v2/bob.test/app/blobs/uploads/", nil) },
			"HEAD": func() answer { return bob.do(http.MethodHead, layer, nil) },
			"GET":  func() answer { return bob.do(http.MethodGet, layer, nil) },
		} {
			got := ask()
			if got.status < 403 || got.status == 500 || got.status == 404 && call != "HEAD" || got.header.Get("WWW-Authenticate") != "" || strings.Contains(got.body, "xxx") {
				t.Errorf("a hold that %s: %s: %d %v %.200s", what, call, got.status, got.header, got.body)
			}
		}
		if what == "challenges" || what == "redirects" {
			got := bob.do(http.MethodPatch, location, []byte("bytes"))
			if got.status < 403 || got.status == 500 || got.header.Get("WWW-Authenticate") != "" {
				t.Errorf("a hold that %s: PATCH: %d %v %s", what, got.status, got.header, got.body)
			}
		}
	}
	if inside.Load() != 0 {
		t.Errorf("%d requests went where the hold wanted them", inside.Load())
	}
	n.private.behave()
	n.forget() // that it failed
	lies := map[string]func(h http.Header){
		"more than was sent": func(h http.Header) { h.Set("Range", "0-99999") }, "no number": func(h http.Header) { h.Set("Range", "bytes 0-x") },
		"a negative one": func(h http.Header) { h.Set("Range", "-5--1") }, "another host": func(h http.Header) { h.Set("Location", secret+"/u/x") },
	}
	for what, lie := range lies {
		location := begin()
		n.private.misbehave(func(w http.ResponseWriter, r *http.Request, next http.Handler) bool {
			if r.Method != http.MethodPatch {
				return false
			}
			rec := &recorder{header: http.Header{}}
			next.ServeHTTP(rec, r)
			for k, v := range rec.header {
				w.Header()[k] = v
			}
			lie(w.Header())
			w.WriteHeader(rec.status)
			return true
		})
		got := bob.do(http.MethodPatch, location, []byte("bytes"))
		if got.status == 202 { // then the digest tells
			got = bob.do(http.MethodPut, got.header.Get("Location")+"?digest="+oci.FromBytes([]byte("other")).String(), nil)
		}
		if got.status < 400 || got.status == 500 {
			t.Errorf("%s: %d %s", what, got.status, got.body)
		}
		n.private.behave()
	}
	for what, length := range map[string]string{"a size that is none": "-1", "none": "", "too large a one": "99999999999999999999"} {
		n.private.misbehave(func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
			if !strings.HasSuffix(r.URL.Path, "getBlob") {
				return false
			}
			conn, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return true
			}
			text := "HTTP/1.1 200 OK\r\nConnection: close\r\n"
			if length != "" {
				text += "Content-Length: " + length + "\r\n"
			}
			_, _ = conn.Write([]byte(text + "\r\n"))
			_ = conn.Close()
			return true
		})
		n.restart()
		if got := bob.do(http.MethodHead, layer, nil); got.status < 500 || got.header.Get("Content-Length") == length && length != "" {
			t.Errorf("%s: %d %v", what, got.status, got.header)
		}
	}
}

// newLocalServer returns its URL.
func newLocalServer(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	l, port := listenLocal(t)
	s := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = s.Serve(l) }() // ends with Close
	t.Cleanup(func() { _ = s.Close() })
	return "http://127.0.0.1:" + strconv.Itoa(port)
}
