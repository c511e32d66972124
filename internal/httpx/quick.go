package httpx

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// quickAfter is how many requests in a row must have been plain before a connection is taken out of the server. There and
	// back costs what some ten quick answers save: a connection that is given back before it had quickWorth of them is taken
	// again after four times as many, and at last after quickAtLast.
	quickAfter, quickWorth, quickAtLast = 2, 16, 128
	// quickBytes bounds a request that is answered here, in bytes.
	quickBytes = 4 << 10
	// quickPatience is how long a client may take for the next bytes of an answer.
	quickPatience = 2 * time.Minute
)

// quick answers plain GETs and HEADs that come one after the other on one connection, with the server's own handler and half of
// what net/http spends on each. It takes the connection out of the server, and gives it back, with what was read, at the
// first request that is not whole, alone and plain: net/http reads whatever could be read in two ways.
//
// It is the listener by which connections come back: server.Serve(quick) must run beside server.Serve(listener).
type quick struct {
	server  *http.Server
	handler http.Handler
	below   []string // what the paths of requests begin with
	address net.Addr

	back     chan net.Conn
	stopping chan struct{}
	mu       sync.Mutex
	conns    map[*quickConn]struct{}
	empty    chan struct{} // closed when stopping, and the last of conns is gone
}

// newQuick puts itself before the handler of server, for paths that begin with below.
func newQuick(server *http.Server, below []string, address net.Addr) *quick {
	q := &quick{
		server: server, handler: server.Handler, below: below, address: address,
		back: make(chan net.Conn), stopping: make(chan struct{}), conns: map[*quickConn]struct{}{}, empty: make(chan struct{}),
	}
	server.Handler = q
	server.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		switch c := c.(type) {
		case *net.TCPConn:
			return context.WithValue(ctx, plainKey{}, &plainRow{after: quickAfter})
		case *resumedConn:
			return context.WithValue(ctx, plainKey{}, &plainRow{after: c.after})
		}
		return ctx
	}
	return q
}

// plainKey is of the plainRow of a connection.
type plainKey struct{}

// plainRow is how many plain requests a connection had in a row, and after how many it is taken.
type plainRow struct{ had, after int }

// resumedConn is a connection of which bytes were read already.
type resumedConn struct {
	*net.TCPConn
	read  []byte
	after int // plainRow's
}

func (c *resumedConn) Read(p []byte) (int, error) {
	if len(c.read) == 0 {
		return c.TCPConn.Read(p)
	}
	n := copy(p, c.read)
	c.read = c.read[n:]
	return n, nil
}

// Accept, Close and Addr are net.Listener's.
func (q *quick) Accept() (net.Conn, error) {
	select {
	case c := <-q.back:
		return c, nil
	case <-q.stopping:
		return nil, net.ErrClosed
	}
}

// Close breaks connections that wait for a request; those that answer one do so first.
func (q *quick) Close() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.stops() {
		return nil
	}
	close(q.stopping)
	for c := range q.conns {
		if c.waiting.CompareAndSwap(true, false) {
			_ = c.conn.Close()
		}
	}
	if len(q.conns) == 0 {
		close(q.empty)
	}
	return nil
}

func (q *quick) Addr() net.Addr { return q.address }

func (q *quick) stops() bool {
	select {
	case <-q.stopping:
		return true
	default:
		return false
	}
}

// wait waits for the answers that are under way when Close was called, or breaks them off at the end of ctx.
func (q *quick) wait(ctx context.Context) error {
	select {
	case <-q.empty:
		return nil
	case <-ctx.Done():
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	for c := range q.conns {
		if c.conn != nil {
			_ = c.conn.Close()
		}
	}
	return ctx.Err()
}

// enter is false when stopping.
func (q *quick) enter(c *quickConn) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.stops() {
		return false
	}
	q.conns[c] = struct{}{}
	return true
}

func (q *quick) leave(c *quickConn) {
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.conns, c)
	if q.stops() && len(q.conns) == 0 {
		close(q.empty)
	}
}

// ServeHTTP serves one request, or also those that follow it on its connection.
func (q *quick) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	row, ok := r.Context().Value(plainKey{}).(*plainRow)
	if !ok || !q.isPlain(r) {
		if ok {
			row.had = 0
		}
		q.handler.ServeHTTP(w, r)
		return
	}
	if row.had++; row.had <= row.after {
		q.handler.ServeHTTP(w, r)
		return
	}
	c := &quickConn{quick: q, after: row.after, remote: r.RemoteAddr, values: context.WithoutCancel(r.Context())}
	if !q.enter(c) {
		q.handler.ServeHTTP(w, r)
		return
	}
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		q.leave(c)
		q.handler.ServeHTTP(w, r)
		return
	}
	q.mu.Lock()
	c.conn = conn // which wait may close
	q.mu.Unlock()
	early := buffered.Reader.Buffered()
	c.buf = make([]byte, max(quickBytes, early))
	c.early, _ = buffered.Read(c.buf[:early]) // it is there
	// In a goroutine, for what net/http keeps for a connection is of no more use, and as large as all that is kept here.
	go c.serve(r)
}

// isPlain tells whether a request that net/http read is such as parse takes.
func (q *quick) isPlain(r *http.Request) bool {
	if r.Method != http.MethodGet && r.Method != http.MethodHead || r.Proto != "HTTP/1.1" || r.Close || r.Body != http.NoBody || !beginsWithAny(r.RequestURI, q.below) {
		return false
	}
	for name := range r.Header {
		if !plainHeaders[name] {
			return false
		}
	}
	return true
}

// quickConn is a connection out of the server.
type quickConn struct {
	quick  *quick
	conn   net.Conn
	remote string          // the client's address
	values context.Context // of all requests' contexts
	after  int             // plainRow's
	had    int             // requests
	// waiting is set while no request is under way. Who takes it back decides what becomes of the connection.
	waiting atomic.Bool
	// When the deadlines were set: that costs as much as a small read.
	readFrom, writeFrom time.Time
	buf                 []byte       // what was read
	early               int          // how much of buf was while a request was answered
	out                 bytes.Buffer // an answer's head, and its body where that is small
	// headers are the bytes of the last request's; what net/http read of them is in like. Clients repeat themselves.
	headers []byte
	like    http.Request
}

// serve answers r and what comes after it.
func (c *quickConn) serve(r *http.Request) {
	defer c.quick.leave(c)
	for r = r.WithContext(c.context()); c.answer(r); {
		c.had++
		n := c.early
		if c.early = 0; n == 0 {
			n = c.next()
		}
		if n == 0 {
			break
		}
		if r = c.parse(c.buf[:n]); r == nil {
			c.giveBack(c.buf[:n])
			return
		}
	}
	_ = c.conn.Close()
}

// context is of one request.
func (c *quickConn) context() *quickContext { return &quickContext{Context: c.values, conn: c} }

// next waits for a request; 0 for none.
func (c *quickConn) next() int {
	if now := time.Now(); now.Sub(c.readFrom) > time.Second {
		c.readFrom = now
		_ = c.conn.SetReadDeadline(now.Add(quickPatience)) // a broken connection says so when it is used
	}
	c.waiting.Store(true)
	if c.quick.stops() {
		return 0
	}
	n, err := io.ReadAtLeast(c.conn, c.buf, 4) // as net/http, for whom less is a connection that nobody used
	if !c.waiting.CompareAndSwap(true, false) || err != nil {
		return 0
	}
	return n
}

// renewWrite gives the client its time to take the next of an answer.
func (c *quickConn) renewWrite() {
	if now := time.Now(); now.Sub(c.writeFrom) > time.Second {
		c.writeFrom = now
		_ = c.conn.SetWriteDeadline(now.Add(quickPatience))
	}
}

// quickReaders are bufio.Readers: http.ReadRequest wants one.
var quickReaders = sync.Pool{New: func() any { return bufio.NewReader(nil) }}

// parse reads a request as net/http does; nil for one that is net/http's to read.
func (c *quickConn) parse(raw []byte) *http.Request {
	line, headers, _ := bytes.Cut(raw, crlf)
	method, target, ok := plainTarget(line, c.quick.below)
	if !ok {
		return nil
	}
	if len(c.headers) == 0 || !bytes.Equal(headers, c.headers) {
		if !arePlain(headers) {
			return nil
		}
		return c.read(raw, headers)
	}
	u, err := url.ParseRequestURI(target)
	if err != nil {
		return nil
	}
	r := c.like.WithContext(c.context())
	r.Method, r.RequestURI, r.URL, r.Header = method, target, u, c.like.Header.Clone()
	return r
}

// read has net/http read a request, and remembers what it made of its headers.
func (c *quickConn) read(raw, headers []byte) *http.Request {
	text := quickReaders.Get().(*bufio.Reader) //nolint:errcheck,forcetypeassert // nothing else is put in
	defer quickReaders.Put(text)
	text.Reset(bytes.NewReader(raw))
	r, err := http.ReadRequest(text)
	if err != nil || text.Buffered() > 0 {
		return nil
	}
	r.RemoteAddr = c.remote
	c.headers, c.like = append(c.headers[:0], headers...), *r
	c.like.Header = r.Header.Clone()
	return r.WithContext(c.context())
}

// giveBack has the server go on with the connection.
func (c *quickConn) giveBack(read []byte) {
	resumed := &resumedConn{read: read, after: quickAfter}
	if c.had < quickWorth {
		resumed.after = min(4*c.after, quickAtLast)
	}
	switch conn := c.conn.(type) {
	case *net.TCPConn:
		resumed.TCPConn = conn
	case *resumedConn:
		resumed.TCPConn, resumed.read = conn.TCPConn, append(resumed.read, conn.read...)
	}
	if err := resumed.SetDeadline(time.Time{}); err != nil {
		_ = resumed.Close()
		return
	}
	select {
	case c.quick.back <- resumed:
	case <-c.quick.stopping:
		_ = resumed.Close()
	}
}

// answer tells whether the connection may have another request. r's context is of this connection.
func (c *quickConn) answer(r *http.Request) (again bool) {
	defer func() {
		r.Context().(*quickContext).end()
		p := recover()
		if p == nil {
			return
		}
		again = false
		if err, ok := p.(error); (!ok || !errors.Is(err, http.ErrAbortHandler)) && c.quick.server.ErrorLog != nil {
			c.quick.server.ErrorLog.Printf("panic serving %s: %v\n%s", r.RemoteAddr, p, debug.Stack())
		}
	}()
	w := &quickWriter{conn: c, header: http.Header{}, head: r.Method == http.MethodHead}
	c.quick.handler.ServeHTTP(w, r)
	return w.finish() == nil && !w.last
}

// plainHeaders say nothing of where a request ends or of what becomes of its connection, but Connection and Host, which
// arePlain looks at.
var plainHeaders = map[string]bool{}

func init() {
	for _, name := range []string{
		"Accept", "Accept-Encoding", "Accept-Language", "Authorization", "Cache-Control", "Connection", "Cookie", "Dnt",
		"Docker-Distribution-Api-Version", "Forwarded", "Host", "If-None-Match", "If-Range", "Range", "Traceparent", "Tracestate", "User-Agent", "Via",
		"X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Port", "X-Forwarded-Proto", "X-Forwarded-Server", "X-Meta-Source-Client", "X-Real-Ip",
		"X-Request-Id",
	} {
		plainHeaders[name], plainHeaders[strings.ToLower(name)] = true, true
	}
	plainHeaders["X-Real-IP"], plainHeaders["X-Request-ID"] = true, true // as proxies write them
}

// plainTarget is what a request line asks for; not ok where it is none of a GET or HEAD of a path that begins as below says,
// or has a form that not every reader of HTTP/1.1 reads alike.
//
// Source: RFC 9112, sections 2.2 and 3.
func plainTarget(line []byte, below []string) (method, target string, ok bool) {
	method = http.MethodGet
	rest, isGet := bytes.CutPrefix(line, []byte("GET "))
	if !isGet {
		method = http.MethodHead
		rest, ok = bytes.CutPrefix(line, []byte("HEAD "))
	}
	rest, isHTTP11 := bytes.CutSuffix(rest, []byte(" HTTP/1.1"))
	target = string(rest)
	if !isGet && !ok || !isHTTP11 || !beginsWithAny(target, below) || !printable(rest, '!') {
		return "", "", false
	}
	return method, target, true
}

func beginsWithAny(s string, prefixes []string) bool {
	return slices.ContainsFunc(prefixes, func(prefix string) bool { return strings.HasPrefix(s, prefix) })
}

// arePlain tells whether rest is the headers of one request, all of them and nothing more, in a form that every reader
// reads alike: lines end in CR LF, nothing is folded, none speaks of a body.
//
// Source: RFC 9112, sections 2.2, 5 and 11.2.
func arePlain(rest []byte) bool {
	for hosts := 0; ; {
		var line []byte
		var ended bool
		if line, rest, ended = bytes.Cut(rest, crlf); !ended {
			return false
		}
		if len(line) == 0 {
			return len(rest) == 0 && hosts == 1
		}
		name, value, ok := bytes.Cut(line, []byte(":"))
		if !ok || !plainHeaders[string(name)] || !printable(value, ' ') {
			return false
		}
		switch value = bytes.TrimSpace(value); {
		case string(name) == "Host" || string(name) == "host":
			if hosts++; !isHost(value) {
				return false
			}
		case string(name) == "Connection" || string(name) == "connection":
			if !bytes.EqualFold(value, []byte("keep-alive")) {
				return false
			}
		}
	}
}

var crlf = []byte("\r\n")

// printable tells whether all of b is ASCII from lowest up.
func printable(b []byte, lowest byte) bool {
	for _, c := range b {
		if c < lowest || c > '~' {
			return false
		}
	}
	return true
}

func isHost(b []byte) bool {
	for _, c := range b {
		if (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && !strings.ContainsRune(".-_:[]", rune(c)) {
			return false
		}
	}
	return len(b) > 0
}
