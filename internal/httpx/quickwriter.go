package httpx

import (
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"strconv"
	"time"
)

// quickHeld is how much of a body is kept until its length is known or the head goes out with it, in bytes.
const quickHeld = 4 << 10

// quickWriter is the http.ResponseWriter of a quickConn. It does what net/http's does for answers to GET, but that no
// handler can flush or take the connection.
type quickWriter struct {
	conn    *quickConn
	header  http.Header
	status  int   // 0 until WriteHeader
	length  int64 // of the body, as the handler said; -1 where it did not
	written int64
	typed   bool // nothing is to be found out about the body's type
	bare    bool // no body may follow
	last    bool // the connection ends with this answer
	body    []byte
	begun   bool // the head was sent
	chunks  io.WriteCloser
}

func (w *quickWriter) Header() http.Header { return w.header }

var (
	withoutBody   = map[string]bool{"Content-Length": true, "Transfer-Encoding": true}
	notModified   = map[string]bool{"Content-Length": true, "Transfer-Encoding": true, "Content-Type": true}
	withoutLength = map[string]bool{"Content-Length": true}
)

// WriteHeader fixes the head. It goes out with the body, or the first of it.
func (w *quickWriter) WriteHeader(status int) {
	if w.status != 0 || status < 200 {
		return
	}
	w.status = status
	var without map[string]bool
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
		w.bare, without = true, withoutBody
	case http.StatusNotModified:
		w.bare, without = true, notModified
	}
	w.last = w.header.Get("Connection") == "close"
	w.typed = len(w.header["Content-Type"]) > 0 || len(w.header["Content-Encoding"]) > 0 || w.bare
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
	_ = w.header.WriteSubset(out, without) // memory takes everything
	if len(w.header["Date"]) == 0 {
		w.add("Date", time.Now().UTC().Format(http.TimeFormat))
	}
	if !w.last && w.conn.quick.stops() {
		w.last = true
		w.add("Connection", "close")
	}
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
	w.conn.renew()
	if !w.begun {
		if err := w.begin(p); err != nil {
			return 0, err
		}
		if w.chunks == nil {
			return len(p), nil
		}
	}
	if w.chunks != nil {
		if len(p) == 0 {
			return 0, nil // it would be the end
		}
		return w.chunks.Write(p)
	}
	return w.conn.conn.Write(p)
}

// begin sends the head of an answer that is not small, with the body up to and including p; where its length is not
// known, p is still to be sent.
func (w *quickWriter) begin(p []byte) error {
	w.begun = true
	w.detectType(p)
	if w.length >= 0 {
		return w.send(w.body, p)
	}
	w.add("Transfer-Encoding", "chunked")
	if err := w.send(); err != nil {
		return err
	}
	w.chunks = httputil.NewChunkedWriter(w.conn.conn)
	if len(w.body) == 0 {
		return nil
	}
	_, err := w.chunks.Write(w.body)
	return err
}

// detectType names the type of a body of which more is on its way, where the handler did not.
func (w *quickWriter) detectType(more []byte) {
	if !w.typed && len(w.body)+len(more) > 0 {
		w.add("Content-Type", http.DetectContentType(append(w.body[:len(w.body):len(w.body)], more[:min(len(more), 512)]...)))
	}
}

// send ends the head, and sends it with parts of the body.
func (w *quickWriter) send(parts ...[]byte) error {
	out := &w.conn.out
	out.Write(crlf)
	w.conn.renew()
	total := 0
	for _, p := range parts {
		total += len(p)
	}
	if total <= quickHeld {
		for _, p := range parts {
			out.Write(p)
		}
		_, err := w.conn.conn.Write(out.Bytes())
		return err
	}
	all := append(net.Buffers{out.Bytes()}, parts...)
	if tcp, ok := w.conn.conn.(*resumedConn); ok {
		_, err := all.WriteTo(tcp.TCPConn)
		return err
	}
	_, err := all.WriteTo(w.conn.conn)
	return err
}

// finish sends what is left. Errors: http.ErrContentLength where the handler wrote more or less than it said; the connection's.
func (w *quickWriter) finish() error {
	w.WriteHeader(http.StatusOK)
	var err error
	switch {
	case !w.begun:
		w.detectType(nil)
		if w.length < 0 && !w.bare {
			w.add("Content-Length", strconv.Itoa(len(w.body)))
		}
		err = w.send(w.body)
	case w.chunks != nil:
		if err = w.chunks.Close(); err == nil {
			_, err = w.conn.conn.Write(crlf) // no trailers
		}
	}
	if err == nil && w.length >= 0 && w.written != w.length && !w.bare {
		err = http.ErrContentLength
	}
	return err
}
