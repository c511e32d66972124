package httpx_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"atcr.io/internal/httpx"
)

// answers is a handler of what registries answer, and of what goes wrong in them.
func answers(w http.ResponseWriter, r *http.Request) {
	kind, argument, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v2/"), "/")
	n, _ := strconv.Atoi(argument) // 0 where it is none
	n = max(0, min(n, 1<<20))
	if r.Method == http.MethodHead {
		w.Header().Set("X-Head", "no body follows")
	}
	if r.URL.Query().Has("watched") {
		_ = r.Context().Done()
	}
	switch kind {
	case "redirect":
		w.Header().Set("Location", "https://elsewhere.test/")
		w.Header().Set("Content-Length", "0")
		w.WriteHeader(http.StatusTemporaryRedirect)
	case "sized":
		w.Header().Set("Content-Length", strconv.Itoa(n))
		w.Header().Set("Content-Type", "application/octet-stream")
		for left := n; left > 0; left -= min(left, 1000) {
			_, _ = w.Write(bytes.Repeat([]byte("x"), min(left, 1000)))
		}
	case "unsized":
		for left := n; left > 0; left -= min(left, 1000) {
			_, _ = io.WriteString(w, strings.Repeat("y", min(left, 1000)))
		}
	case "one":
		_, _ = w.Write(bytes.Repeat([]byte("<html>"), n))
	case "status":
		if n >= 100 && n < 200 {
			n += 100 // informational answers are none
		}
		w.WriteHeader(n)
		w.WriteHeader(http.StatusTeapot)
		_, err := io.WriteString(w, "a body")
		if n == http.StatusNoContent && !errors.Is(err, http.ErrBodyNotAllowed) {
			panic(err)
		}
	case "short":
		w.Header().Set("Content-Length", "100000")
		_, _ = w.Write(make([]byte, n))
	case "long":
		w.Header().Set("Content-Length", "10")
		_, _ = io.WriteString(w, "0123456789")
		if _, err := io.WriteString(w, "x"); !errors.Is(err, http.ErrContentLength) {
			panic(err)
		}
	case "header":
		for name, values := range r.URL.Query() {
			_, err := strconv.ParseInt(values[0], 10, 64)
			framed := strings.HasPrefix(name, "Trailer") || name == "Transfer-Encoding" || name == "Content-Length" && err != nil
			if !framed { // in another way, and as well
				w.Header()[name] = values
			}
		}
		_, _ = w.Write(make([]byte, n))
	case "close":
		w.Header().Set("Connection", "close")
	case "panic":
		if n > 0 {
			_, _ = w.Write(make([]byte, n))
		}
		panic("boom")
	case "abort":
		_, _ = w.Write(make([]byte, n))
		panic(http.ErrAbortHandler)
	default:
		body, _ := io.ReadAll(r.Body)
		_, deadline := r.Context().Deadline()
		server, _ := r.Context().Value(http.ServerContextKey).(*http.Server)
		w.Header()["X-Two"] = []string{"a", "b\r\nX-Smuggled: c"}
		_ = json.NewEncoder(w).Encode(map[string]any{
			"method": r.Method, "uri": r.RequestURI, "path": r.URL.Path, "query": r.URL.RawQuery, "proto": r.Proto, "host": r.Host, "header": r.Header,
			"length": r.ContentLength, "transfer": r.TransferEncoding, "close": r.Close, "body": string(body), "deadline": deadline, "server": server != nil,
			"form": r.Form != nil, "remote": strings.HasPrefix(r.RemoteAddr, "127.0.0.1:"),
		})
		for _, values := range r.Header { // as a handler may, and nobody else sees
			values[0] = "changed"
		}
		r.Header.Set("Added", "x")
		r.Host, r.RemoteAddr, r.URL.Path = "changed.test", "changed", "changed"
	}
}

// serveAnswers is the address of a server of answers. quick tells how it answers below /v2/ and /auth/token.
func serveAnswers(tb testing.TB, quick bool, handler http.Handler) string {
	tb.Helper()
	var below []string
	if quick {
		below = []string{"/v2/", "/auth/token"}
	}
	address, stop, done := startServing(tb, handler, below, 10*time.Second)
	tb.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			tb.Error(err)
		}
	})
	return address
}

// startServing is a server that answers quickly below some paths, until stop; requests in flight then have grace.
func startServing(tb testing.TB, handler http.Handler, below []string, grace time.Duration) (address string, stop context.CancelFunc, done <-chan error) {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	logger := slog.New(slog.DiscardHandler)
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ended <- httpx.Serve(ctx, logger, grace, httpx.Endpoint{Server: httpx.NewServer(handler, logger), Listener: l, QuickBelow: below})
	}()
	return l.Addr().String(), stop, ended
}

// plainGET is a request that a quick server answers quickly once there were two before it.
func plainGET(path string) string {
	return "GET " + path + " HTTP/1.1\r\nHost: a.test\r\nUser-Agent: t\r\nAccept: */*\r\nAuthorization: Bearer x\r\n\r\n"
}

// warm is what has a connection answered quickly.
var warm = strings.Repeat(plainGET("/v2/redirect")+"|", 3)

// talk sends pieces, each by itself once what came before it was answered or is known to be no whole request, and
// returns all that comes back.
func talk(tb testing.TB, address string, pieces []string) []byte {
	tb.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		tb.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	var all bytes.Buffer
	buf := make([]byte, 64<<10)
	for i, p := range pieces {
		if _, err := io.WriteString(conn, p); err != nil {
			break // the server has ended it
		}
		if i == len(pieces)-1 {
			_ = conn.(*net.TCPConn).CloseWrite() // the server may have ended it
		}
		for first := true; ; first = false {
			wait := 3 * time.Millisecond
			if i == len(pieces)-1 {
				wait = 30 * time.Second
			} else if first && strings.HasSuffix(p, "\r\n\r\n") {
				wait = 100 * time.Millisecond
			}
			_ = conn.SetReadDeadline(time.Now().Add(wait))
			n, err := conn.Read(buf)
			all.Write(buf[:n])
			if err != nil || n > 0 && n < len(buf) && i < len(pieces)-1 && bytes.HasSuffix(buf[:n], []byte("\r\n\r\n")) {
				break
			}
		}
	}
	return all.Bytes()
}

// sameAnswers compares what two servers answer, and returns it. A server that ends a connection of which it has not read
// everything may lose what it answered before, so that only what differs each time counts.
func sameAnswers(t *testing.T, plain, quick string, pieces []string) (want []string) {
	t.Helper()
	var got []string
	for range 5 {
		want, got = readAnswers(talk(t, plain, pieces)), readAnswers(talk(t, quick, pieces))
		if slices.Equal(want, got) {
			return want
		}
	}
	t.Errorf("net/http:\n%s\nquick:\n%s", strings.Join(want, "\n"), strings.Join(got, "\n"))
	return want
}

// readAnswers takes answers apart, and says how they end.
func readAnswers(raw []byte) []string {
	var out []string
	for r := bufio.NewReaderSize(bytes.NewReader(raw), len(raw)+16); ; {
		if _, err := r.Peek(1); err != nil {
			return out
		}
		rest, _ := r.Peek(r.Buffered())
		request := &http.Request{Method: http.MethodGet}
		if head, _, _ := bytes.Cut(rest, []byte("\r\n\r\n")); bytes.Contains(head, []byte("\r\nX-Head:")) {
			request.Method = http.MethodHead
		}
		res, err := http.ReadResponse(r, request)
		if err != nil {
			return append(out, "no answer")
		}
		body, err := io.ReadAll(res.Body)
		dated := res.Header.Get("Date") != "" || res.StatusCode == http.StatusBadRequest // net/http dates none that it could not read
		res.Header.Del("Date")
		var header []string
		for _, k := range slices.Sorted(maps.Keys(res.Header)) {
			header = append(header, fmt.Sprintf("%s: %q", k, res.Header[k]))
		}
		text := fmt.Sprintf("%s %s %q %d %v %d:%.2000s", res.Proto, res.Status, header, res.ContentLength, res.TransferEncoding, len(body), body)
		if !dated {
			text += " undated"
		}
		if res.Close {
			text += " the last"
		}
		if err != nil {
			text += " broken off"
		}
		out = append(out, text)
	}
}

// Would catch what is answered in another way because it was answered quickly, and a request that ends for a quick server
// where it does not for net/http: one client's could be taken for another's.
func TestQuickIsNetHTTP(t *testing.T) {
	t.Parallel()
	plain, quick := serveAnswers(t, false, http.HandlerFunc(answers)), serveAnswers(t, true, http.HandlerFunc(answers))
	for name, sent := range quickCases() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			want := sameAnswers(t, plain, quick, strings.Split(sent, "|"))
			if len(want) < 3 {
				t.Errorf("only %d answers: %q", len(want), want)
			}
		})
	}
}

// quickCases are what is sent, in pieces between bars.
func quickCases() map[string]string {
	get := plainGET
	head := func(path string) string { return "HEAD" + strings.TrimPrefix(get(path), "GET") }
	with := func(header string) string {
		return "GET /v2/echo HTTP/1.1\r\nHost: a.test\r\n" + header + "\r\n\r\n"
	}
	out := map[string]string{}
	for _, path := range []string{
		"/v2/redirect", "/v2/echo", "/v2/echo?ns=a&b=%20", "/v2/echo/%2f/../x//y", "/v2/echo/%zz", "/v2/echo#x", "/v2/ünicode", "/v2/a b", "/other", "/v2", "//v2/",
		"/v2/sized/0", "/v2/sized/100", "/v2/sized/2048", "/v2/sized/2049", "/v2/sized/4096", "/v2/sized/4097", "/v2/sized/100000", "/v2/unsized/0", "/v2/unsized/100", "/v2/unsized/2048", "/v2/unsized/2049", "/v2/unsized/3000", "/v2/unsized/300000",
		"/v2/one/3", "/v2/one/500", "/v2/one/10000", "/v2/one/200000", "/v2/status/204", "/v2/status/304", "/v2/status/200", "/v2/status/299", "/v2/status/404", "/v2/status/0", "/v2/status/99", "/v2/status/999", "/v2/status/1000", "/v2/short/0", "/v2/short/10", "/v2/short/50000",
		"/v2/long/0", "/v2/close/0", "/v2/panic/0", "/v2/panic/10000", "/v2/abort/10", "/v2/abort/2048", "/v2/abort/2049", "/v2/abort/10000",
		"/v2/echo?watched", "/v2/unsized/10000?watched", "/v2/panic/0?watched",
		"/v2/header/10?Content-Length=10", "/v2/header/10?Content-Length=%2b10", "/v2/header/5000?Content-Length=10", "/v2/header/10?Content-Length=10&Content-Length=11",
		"/v2/header/10?Content-Type=", "/v2/header/10?Content-Encoding=gzip", "/v2/header/10?Content-Encoding=", "/v2/header/10?Date=now", "/v2/header/10?Connection=close", "/v2/header/10?Connection=Close",
		"/v2/header/10?Connection=keep-alive", "/v2/header/10?a%20b=c&c=d%0d%0ae", "/v2/header/5000?content-length=10",
	} {
		out["path "+path] = get(path) + "|" + get("/v2/echo") + "|" + get("/v2/redirect")
		out["HEAD "+path] = head(path) + "|" + get("/v2/echo") + "|" + head(path) + "|" + get("/v2/redirect")
	}
	for _, header := range []string{
		"Content-Length: 0", "Content-Length: 5", "Content-Length: 5\r\nContent-Length: 6", "content-length: 3", "Transfer-Encoding: chunked", "Transfer-Encoding: identity",
		"Transfer-Encoding : chunked", "Transfer-Encoding:\tchunked", "Connection: close", "Connection: keep-alive", "Connection: Keep-Alive", "connection: close", "Connection: keep-alive, close",
		"Connection: upgrade\r\nUpgrade: h2c", "Expect: 100-continue", "Expect: nonsense", "Host: b.test", "host: b.test", "X-Other: 1", "Accept: a\r\n b", "Accept: a\r\n\tb", "Accept: a\nAccept: b",
		"Accept: a\rAccept: b", "Accept: a\x00b", "Accept: \x7f", "Accept: ü", "Accept:", "Accept: a\r\nAccept: b", "accept: a\r\nAccept: b", "Accept : a", " Accept: a", "Accept", ":a", "Pragma: no-cache",
		"Cache-Control: no-cache", "Cookie: a=b\r\nCookie: c=d", "X-Forwarded-For: 192.0.2.1\r\nX-Real-IP: 192.0.2.1", "Accept:   spaces   ", "Accept: \ta", "Trailer: X", "TE: trailers",
		"Authorization: " + strings.Repeat("x", 5000), "Authorization: " + strings.Repeat("x", 100_000), "Range: bytes=5-0", "Accept: a\r\n\r\n\r\n",
	} {
		out["header "+header[:min(len(header), 60)]] = with(header) + "|" + get("/v2/echo") + "|" + get("/v2/redirect")
	}
	for i, line := range []string{
		"POST /v2/echo HTTP/1.1", "HEAD /v2/echo HTTP/1.1", "HEAD  /v2/echo HTTP/1.1", "head /v2/echo HTTP/1.1", "HEADGET /v2/echo HTTP/1.1", "get /v2/echo HTTP/1.1", "GET  /v2/echo HTTP/1.1", "GET /v2/echo  HTTP/1.1", "GET /v2/echo HTTP/1.0", "GET /v2/echo HTTP/1.2",
		"GET /v2/echo HTTP/2.0", "GET /v2/echo", "GET /v2/echo http/1.1", "GET http://a.test/v2/echo HTTP/1.1", "GET\t/v2/echo\tHTTP/1.1", "OPTIONS * HTTP/1.1", "PRI * HTTP/2.0", "",
		" GET /v2/echo HTTP/1.1", "\r\nGET /v2/echo HTTP/1.1", "GET /v2/echo HTTP/1.1 ", "GET /v2/echo\x0b HTTP/1.1",
	} {
		out[fmt.Sprintf("line %d %q", i, line)] = line + "\r\nHost: a.test\r\n\r\n|" + get("/v2/echo")
	}
	maps.Copy(out, map[string]string{
		"no host": "GET /v2/echo HTTP/1.1\r\nAccept: a\r\n\r\n|" + get("/v2/echo"), "empty host": "GET /v2/echo HTTP/1.1\r\nHost:\r\n\r\n|" + get("/v2/echo"),
		"bad host": "GET /v2/echo HTTP/1.1\r\nHost: a b\r\n\r\n|" + get("/v2/echo"), "bare LF": "GET /v2/echo HTTP/1.1\nHost: a.test\n\n|" + get("/v2/echo"),
		"LF at the end":     "GET /v2/echo HTTP/1.1\r\nHost: a.test\r\n\n|" + get("/v2/echo"),
		"POST":              "POST /v2/echo HTTP/1.1\r\nHost: a.test\r\nContent-Length: 4\r\n\r\nbody|" + get("/v2/echo") + "|" + warm + get("/v2/echo"),
		"POST in pieces":    "POST /v2/echo HTTP/1.1\r\n|Host: a.test\r\nContent-Length: 4\r\n\r\n|bo|dy|" + get("/v2/echo"),
		"a GET as a body":   fmt.Sprintf("POST /v2/echo HTTP/1.1\r\nHost: a.test\r\nContent-Length: %d\r\n\r\n|%s|%s", len(get("/v2/echo")), get("/v2/echo"), get("/v2/redirect")),
		"a GET as a header": "POST /v2/echo HTTP/1.1\r\n|" + get("/v2/redirect") + "|" + get("/v2/echo"),
		"a GET as a chunk": fmt.Sprintf("POST /v2/echo HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n|%s|\r\n0\r\n\r\n|%s",
			len(get("/v2/echo")), get("/v2/echo"), get("/v2/redirect")),
		"pipelined": get("/v2/echo") + get("/v2/redirect") + get("/v2/sized/5000"), "pipelined behind warm": get("/v2/echo") + "|" + get("/v2/echo") + get("/v2/redirect") + "|" + get("/v2/echo"),
		"pieces": "GET /v2/ec|ho HTTP/1.1\r\nHost: a.test\r|\n\r|\n|" + get("/v2/echo"), "a whole and a part": get("/v2/echo") + "GET /v2/redirect HTT|P/1.1\r\nHost: a.test\r\n\r\n|" + get("/v2/echo"),
		"a part and the end": "GET /v2/echo HTTP/1.1\r\nHost", "nothing more": "", "all plain": strings.Repeat(get("/v2/echo")+"|", 5) + get("/v2/sized/10000"),
		"there and back": get("/v2/echo") + "|" + get("/other") + "|" + warm + get("/v2/echo") + "|" + get("/other") + "|" + warm + get("/v2/echo"),
	})
	for i := range get("/v2/echo") {
		out[fmt.Sprint("split at ", i)] = get("/v2/echo?watched")[:i] + "|" + get("/v2/echo?watched")[i:] + "|" + get("/v2/echo")
	}
	for name, sent := range out {
		out[name] = warm + sent
	}
	out["pipelined at once"] = strings.ReplaceAll(warm, "|", "") + get("/v2/echo")
	return out
}

// Would catch a request that a quick server takes for whole, or for two, where net/http does not.
func FuzzQuick(f *testing.F) {
	for _, sent := range quickCases() {
		f.Add(strings.TrimPrefix(sent, warm))
	}
	plain, quick := serveAnswers(f, false, http.HandlerFunc(answers)), serveAnswers(f, true, http.HandlerFunc(answers))
	f.Fuzz(func(t *testing.T, sent string) {
		pieces := strings.Split(warm+sent, "|")
		if len(pieces) > 20 || len(sent) > 10_000 {
			return
		}
		sameAnswers(t, plain, quick, pieces)
	})
}

// Would catch a stop that breaks off an answer, waits for connections that ask for nothing, or leaves one open.
func TestQuickStops(t *testing.T) {
	t.Parallel()
	entered, leave := make(chan struct{}), make(chan struct{})
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v2/begun" {
			w.WriteHeader(http.StatusAccepted)
		}
		if r.URL.Path != "/v2/redirect" {
			entered <- struct{}{}
			<-leave
		}
		answers(w, r)
	})
	address, stop, done := startServing(t, handler, []string{"/v2/"}, time.Hour)
	idle, busy, begun := warmed(t, address), warmed(t, address), warmed(t, address)
	for path, conn := range map[string]net.Conn{"/v2/slow": busy, "/v2/begun": begun} {
		if _, err := io.WriteString(conn, plainGET(path)); err != nil {
			t.Fatal(err)
		}
		<-entered
	}
	stop()
	if rest, err := io.ReadAll(idle); len(rest) != 0 || err != nil {
		t.Errorf("the idle connection got %q, %v", rest, err)
	}
	select {
	case err := <-done:
		t.Errorf("stopped before the answers: %v", err)
	default:
	}
	close(leave)
	raw, err := io.ReadAll(busy)
	if got := readAnswers(raw); err != nil || len(got) != 1 || !strings.Contains(got[0], "200 OK") || !strings.HasSuffix(got[0], " the last") {
		t.Errorf("the busy connection got %q, %v", got, err)
	}
	raw, err = io.ReadAll(begun)
	if got := readAnswers(raw); err != nil || len(got) != 1 || !strings.Contains(got[0], "202 Accepted") {
		t.Errorf("the connection whose answer had begun got %q, %v", got, err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// Would catch an answer that nobody takes and that keeps a server from its end.
func TestQuickStopsInTime(t *testing.T) {
	t.Parallel()
	stuck := make(chan struct{})
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/v2/endless" {
			answers(w, r)
			return
		}
		for i := 0; ; i++ {
			if _, err := w.Write(make([]byte, 1<<20)); err != nil {
				close(stuck)
				return
			}
		}
	})
	address, stop, done := startServing(t, handler, []string{"/v2/"}, 100*time.Millisecond)
	conn := warmed(t, address)
	if _, err := io.WriteString(conn, plainGET("/v2/endless")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(conn, make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
	<-stuck
}

// warmed is a connection whose next plain GET is answered quickly.
func warmed(t *testing.T, address string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	r := bufio.NewReader(conn)
	for range 3 {
		if _, err := io.WriteString(conn, plainGET("/v2/redirect")); err != nil {
			t.Fatal(err)
		}
		res, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
	}
	return conn
}

// Would catch quick answers that are none, connections that are taken before they had plain requests in a row, and ones
// that go there and back with every other request, which costs more than it saves.
func TestQuickIsTaken(t *testing.T) {
	t.Parallel()
	plain := func(n int) string { return strings.Repeat("p", n) }
	for _, tt := range []struct {
		name        string
		quick       bool
		sent, taken string // of requests; answered by net/http or quickly
	}{
		{"not quick", false, "ppppp", "nnnnn"},
		{"plain", true, "ppppp", "nnqqq"},
		{"HEAD", true, "phphh", "nnqqq"},
		{"of both paths", true, "ptptp", "nnqqq"},
		{"with a body", true, "ppb", "nnn"},
		{"elsewhere", true, "ppe", "nnn"},
		{"the last", true, "ppc", "nnn"},
		{"HTTP/1.0", true, "pp0", "nnn"},
		{"not in a row", true, "ppopopppp", "nnnnnnnqq"},
		{"back early", true, "pppo" + plain(9) + "o" + plain(33), "nnqn" + strings.Repeat("n", 8) + "qn" + strings.Repeat("n", 32) + "q"},
		{"back late", true, plain(30) + "oppp", "nn" + strings.Repeat("q", 28) + "nnnq"},
		{"there and back", true, strings.Repeat("pppo", 100), ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var taken []byte
			address := serveAnswers(t, tt.quick, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				taken = append(taken, map[string]byte{"*http.response": 'n', "*httpx.quickWriter": 'q'}[fmt.Sprintf("%T", w)])
				w.Header().Set("Content-Length", "0")
			}))
			conn, err := net.Dial("tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = conn.Close() }()
			for _, kind := range tt.sent {
				request := strings.NewReplacer(map[rune][]string{
					'o': {"Accept:", "X-Other:"}, 'h': {"GET", "HEAD"}, 't': {"/v2/", "/auth/token?scope=x"}, 'b': {"\r\n\r\n", "\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n.\r\n0\r\n\r\n"}, 'e': {"/v2/", "/elsewhere"},
					'c': {"Accept: */*", "Connection: close"}, '0': {"HTTP/1.1", "HTTP/1.0", "Accept: */*", "Connection: keep-alive"},
				}[kind]...).Replace(plainGET("/v2/"))
				if _, err := io.WriteString(conn, request); err != nil {
					t.Fatal(err)
				}
				res, err := http.ReadResponse(bufio.NewReader(conn), nil)
				if err != nil {
					t.Fatal(err)
				}
				_ = res.Body.Close()
			}
			if tt.taken == "" && bytes.Count(taken, []byte("q")) > 3 || tt.taken != "" && string(taken) != tt.taken {
				t.Errorf("%s: %s, want %s", tt.sent, taken, tt.taken)
			}
		})
	}
}

// Would catch a client that is not http.Transport's kind; it asks for many things at once, in any order.
func TestQuickClients(t *testing.T) {
	t.Parallel()
	address := serveAnswers(t, true, http.HandlerFunc(answers))
	client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	t.Cleanup(client.CloseIdleConnections)
	failed := make(chan error, 8)
	for i := range cap(failed) {
		go func() {
			failed <- func() error {
				for j := range 200 {
					n := (i*7919 + j*104729) % 20_000
					method, path := http.MethodGet, fmt.Sprintf("/v2/sized/%d", n)
					if j%17 == 0 {
						method, path = http.MethodPost, "/v2/echo"
					}
					req := httptest.NewRequest(method, "http://"+address+path, strings.NewReader(strings.Repeat("b", (j%2)*n)))
					req.RequestURI = ""
					if method == http.MethodGet {
						req.Body, req.ContentLength = nil, 0
					}
					res, err := client.Do(req.WithContext(t.Context()))
					if err != nil {
						return err
					}
					body, err := io.ReadAll(res.Body)
					_ = res.Body.Close()
					if err != nil || res.StatusCode != http.StatusOK || method == http.MethodGet && len(body) != n {
						return fmt.Errorf("%s %s: %s, %d bytes, %w", method, path, res.Status, len(body), err)
					}
				}
				return nil
			}()
		}()
	}
	for range cap(failed) {
		if err := <-failed; err != nil {
			t.Error(err)
		}
	}
}
