package httpx

import (
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"
)

const (
	// quickHeld is how much of a body is kept until its length is known or the head goes out with it, in bytes: net/http's.
	quickHeld = 2 << 10
	// quickPiece is the most that a client has quickPatience for, in bytes.
	quickPiece = 64 << 10
)

// quickWriter is the http.ResponseWriter of a quickConn. It does what net/http's does for answers to GET and HEAD, but that no
// handler can flush or take the connection, and that there are no informational answers and no trailers.
type quickWriter struct {
	conn    *quickConn
	header  http.Header
	status  int   // 0 until WriteHeader
	length  int64 // of the body, as the handler said; -1 where it did not
	written int64
	typed   bool // nothing is to be found out about the body's type
	bare    bool // no body may be
	head    bool // no body follows, whatever the handler writes
	last    bool // the connection ends with this answer
	body    []byte
	begun   bool  // the head was sent
	err     error // the connection's: what was sent before is not whole, and nothing may follow
}

func (w *quickWriter) Header() http.Header { return w.header }

// What is between the lines of a head is said here only, where bodies are framed.
var (
	unframed      = map[string]bool{"Transfer-Encoding": true}
	withoutLength = map[string]bool{"Transfer-Encoding": true, "Content-Length": true}
	notModified   = map[string]bool{"Transfer-Encoding": true, "Content-Length": true, "Content-Type": true}
)

// WriteHeader fixes the head. It goes out with the body, or the first of it.
func (w *quickWriter) WriteHeader(status int) {
	if w.status != 0 {
		return
	}
	if status < 100 || status > 999 {
		panic(fmt.Sprintf("invalid WriteHeader code %d", status))
	}
	if status < 200 {
		return
	}
	w.status = status
	without := unframed
	w.length = -1
	if text := w.header["Content-Length"]; len(text) > 0 {
		if n, err := strconv.ParseInt(text[0], 10, 64); err == nil && n >= 0 {
			w.length = n
		} else {
			without = withoutLength
		}
	}
	switch status {
	case http.StatusNoContent:
		w.bare, without = true, withoutLength
	case http.StatusNotModified:
		w.bare, without = true, notModified
	}
	w.last = w.header.Get("Connection") == "close"
	w.typed = len(w.header["Content-Type"]) > 0 || w.header.Get("Content-Encoding") != "" || w.bare
	out := &w.conn.out
	out.Reset()
	out.WriteString("HTTP/1.1 ")
	out.WriteString(strconv.Itoa(status))
	out.WriteByte(' ')
	if text := http.StatusText(status); text != "" {
		out.WriteString(text)
	} else {
		out.WriteString("status code ")
		out.WriteString(strconv.Itoa(status))
	}
	out.Write(crlf)
	w.addHeader(without)
	if len(w.header["Date"]) == 0 {
		w.add("Date", time.Now().UTC().Format(http.TimeFormat))
	}
	if !w.last && w.conn.quick.stops() {
		w.last = true
		w.add("Connection", "close")
	}
}

// addHeader writes what the handler set. net/http writes what needs a second look, in a value that came from elsewhere.
func (w *quickWriter) addHeader(without map[string]bool) {
	out := &w.conn.out
	start := out.Len()
	for name, values := range w.header {
		if without[name] {
			continue
		}
		for _, v := range values {
			if !isToken(name) || strings.TrimSpace(v) != v || strings.ContainsAny(v, "\r\n") {
				out.Truncate(start)
				_ = w.header.WriteSubset(out, without) // memory takes everything
				return
			}
			w.add(name, v)
		}
	}
}

// isToken tells whether name is such as headers have.
func isToken(name string) bool {
	for i := range len(name) {
		if c := name[i]; c != '-' && (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') {
			return false
		}
	}
	return name != ""
}

func (w *quickWriter) add(name, value string) {
	out := &w.conn.out
	out.WriteString(name)
	out.WriteString(": ")
	out.WriteString(value)
	out.Write(crlf)
}

// Write keeps what is small and sends the rest.
func (w *quickWriter) Write(p []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	if len(p) == 0 {
		return 0, nil
	}
	if w.bare {
		return 0, http.ErrBodyNotAllowed
	}
	if w.written += int64(len(p)); w.length >= 0 && w.written > w.length {
		return 0, http.ErrContentLength
	}
	if !w.begun && w.written <= quickHeld {
		w.body = append(w.body, p...)
		return len(p), nil
	}
	if !w.begun {
		w.begin(p)
	}
	if w.head {
		return len(p), nil
	}
	n := 0
	for ; n < len(p) && w.err == nil; n += quickPiece {
		w.sendPiece(p[n:min(len(p), n+quickPiece)])
	}
	return min(n, len(p)), w.err
}

// begin ends the head of an answer that is not small, of whose body more is on its way.
func (w *quickWriter) begin(more []byte) {
	w.begun = true
	w.detectType(more)
	if w.length < 0 && !w.head {
		w.add("Transfer-Encoding", "chunked")
	}
	w.conn.out.Write(crlf)
	if w.head {
		w.body = nil
		w.send()
	}
}

// detectType names the type of a body of which more is on its way, where the handler did not.
func (w *quickWriter) detectType(more []byte) {
	if !w.typed && len(w.body)+len(more) > 0 {
		w.add("Content-Type", http.DetectContentType(append(w.body[:len(w.body):len(w.body)], more[:min(len(more), 512)]...)))
	}
}

// sendPiece sends p, behind what was held.
func (w *quickWriter) sendPiece(p []byte) {
	out := &w.conn.out
	held := w.body
	w.body = nil
	if w.length >= 0 {
		out.Write(held)
		w.send(p)
		return
	}
	out.WriteString(strconv.FormatInt(int64(len(held)+len(p)), 16))
	out.Write(crlf)
	out.Write(held)
	w.send(p, crlf)
}

// send sends what is written to the connection's out, and then parts.
func (w *quickWriter) send(parts ...[]byte) {
	out := &w.conn.out
	w.conn.renewWrite()
	total := 0
	for _, p := range parts {
		total += len(p)
	}
	if total <= quickHeld {
		for _, p := range parts {
			out.Write(p)
		}
		_, w.err = w.conn.conn.Write(out.Bytes())
	} else {
		all := append(net.Buffers{out.Bytes()}, parts...)
		_, w.err = all.WriteTo(w.conn.conn)
	}
	out.Reset()
}

// finish sends what is left. Errors: http.ErrContentLength where the handler wrote more or less than it said; the
// connection's, also where the handler did not heed it.
func (w *quickWriter) finish() error {
	w.WriteHeader(http.StatusOK)
	switch {
	case w.err != nil:
	case !w.begun:
		w.detectType(nil)
		if w.length < 0 && !w.bare && (!w.head || len(w.body) > 0) {
			w.add("Content-Length", strconv.Itoa(len(w.body)))
		}
		w.conn.out.Write(crlf)
		if w.head {
			w.body = nil
		}
		w.send(w.body)
	case w.length < 0 && !w.head:
		w.conn.out.WriteString("0\r\n\r\n") // no trailers
		w.send()
	}
	if w.err == nil && w.length >= 0 && w.written != w.length && !w.bare && !w.head {
		return http.ErrContentLength
	}
	return w.err
}
