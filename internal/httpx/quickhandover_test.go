package httpx

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// Would catch bytes that a connection that goes there and back loses, or gives in another order: net/http need not have
// taken all that it was given.
func TestQuickGivesBackWhatWasRead(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(client, "ef"); err != nil {
		t.Fatal(err)
	}
	if err := client.Close(); err != nil {
		t.Fatal(err)
	}
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if err := conn.SetDeadline(time.Unix(1, 0)); err != nil { // as a client who has not taken an answer in time
		t.Fatal(err)
	}
	q := newQuick(&http.Server{}, []string{"/v2/"}, nil) //nolint:gosec // it does not listen
	c := &quickConn{quick: q, conn: &resumedConn{TCPConn: conn.(*net.TCPConn), read: []byte("cd")}}
	go c.giveBack([]byte("ab"))
	resumed, err := q.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resumed.Close() }()
	if got, err := io.ReadAll(resumed); string(got) != "abcdef" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := io.WriteString(resumed, "an answer"); err != nil {
		t.Error(err)
	}
}

// Would catch a connection that is taken when all are thought to be gone.
func TestQuickTakesNoneWhenItStops(t *testing.T) {
	t.Parallel()
	q := newQuick(&http.Server{}, []string{"/v2/"}, nil) //nolint:gosec // it does not listen
	if err := q.Close(); err != nil {
		t.Fatal(err)
	}
	if q.enter(&quickConn{quick: q}) {
		t.Error("it was taken")
	}
}

// Would catch a request that is taken although net/http, or a proxy before it, may find other ones in the same bytes.
func TestReadsPlain(t *testing.T) {
	t.Parallel()
	const plain = "GET /v2/a?b=c HTTP/1.1\r\nHost: a.test:5000\r\naccept: */*\r\nConnection: keep-alive\r\n\r\n"
	if !readsPlain([]byte(plain), "/v2/") {
		t.Fatal("a plain request is not taken")
	}
	if !readsPlain([]byte("HEAD"+strings.TrimPrefix(plain, "GET")), "/v2/") {
		t.Fatal("a plain HEAD is not taken")
	}
	for end := range plain {
		if readsPlain([]byte(plain[:end]), "/v2/") {
			t.Errorf("taken: %q", plain[:end])
		}
	}
	for _, change := range [][2]string{
		{"GET", "POST"}, {"GET", "HEADGET"}, {"GET", "head"}, {"GET", "get"}, {"GET ", "HEAD  "}, {"GET ", "GET\t"}, {"GET ", "GET  "}, {" HTTP/1.1", " HTTP/1.0"}, {" HTTP/1.1", "  HTTP/1.1"}, {" HTTP/1.1", "\tHTTP/1.1"},
		{" HTTP/1.1", " HTTP/1.1 HTTP/1.1"}, {" HTTP/1.1", ""}, {"/v2/", "/v1/"}, {"/v2/", "//v2/"}, {"b=c", "b\x00"}, {"b=c", "b\n"}, {"b=c", "\xc3\xbc"}, {"b=c", "\x7f"},
		{"Host: a.test:5000\r\n", ""}, {"accept", "host"}, {"accept", "Host"}, {"a.test:5000", ""}, {"a.test", "a/b"}, {"a.test", "a b"}, {"a.test", "a,b"}, {"a.test", "a@b"},
		{"accept:", "Content-Length:"}, {"accept: */*", "content-length: 0"}, {"accept: */*", "Transfer-Encoding: chunked"}, {"accept:", "Expect:"}, {"accept:", "Upgrade:"},
		{"accept:", "accept :"}, {"accept:", " accept:"}, {"accept:", "aCCept:"}, {"accept:", ":"}, {"accept:", "accept"}, {"*/*", "a\r\n b"}, {"*/*", "a\r\n\tb"}, {"*/*", "a\nb: c"},
		{"*/*", "a\rb"}, {"*/*", "\x00"}, {"*/*", "\xc3\xbc"}, {"*/*", "a\tb"}, {"keep-alive", "close"}, {"keep-alive", "keep-alive, close"}, {"keep-alive", "Upgrade"},
		{"keep-alive", ""}, {"\r\n", "\n"}, {"\r\n\r\n", "\r\n\n"}, {"\r\n\r\n", "\r\n\r\n\r\n"}, {"\r\n\r\n", "\r\n\r\nG"}, {"\r\n\r\n", "\r\n\r\n" + plain},
	} {
		if changed := strings.Replace(plain, change[0], change[1], 1); readsPlain([]byte(changed), "/v2/") {
			t.Errorf("taken: %q", changed)
		}
	}
}

func readsPlain(raw []byte, below ...string) bool {
	line, headers, _ := bytes.Cut(raw, crlf)
	_, _, ok := plainTarget(line, below)
	return ok && arePlain(headers)
}
