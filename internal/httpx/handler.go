// Package httpx adapts handlers that return errors, counts and logs requests, serves with a graceful end,
// and guards what goes out to addresses that others chose.
//
// It owns the transport's habits, and refuses to own any protocol's words: how an error looks on the wire
// is the caller's translator.
package httpx

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"runtime/debug"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Handler serves a request or returns an error. One that is returned after the answer began cuts it off.
type Handler func(w http.ResponseWriter, r *http.Request) error

// Translator writes err in one protocol's form and tells the status and the protocol's code, for the log.
type Translator func(w http.ResponseWriter, err error) (status int, code string)

// Event is what the log says of one request, filled in as it is learnt. One request, one goroutine.
type Event struct {
	ID         string // of the request, where the answer shows one
	DID        string
	Repository string
	Reference  string
	Hold       string
	// Caller is who asks, where what there is in all is shared out: a person's DID, or an address's network. "" is this
	// program itself. It is set before anything is looked up, and is not in the log.
	Caller string
	// Data is the caller's of WithEvent, for its handlers.
	Data any
}

type eventKey struct{}

// EventFrom is the request's event; outside a request one that nobody reads.
func EventFrom(ctx context.Context) *Event {
	if e, ok := ctx.Value(eventKey{}).(*Event); ok {
		return e
	}
	return &Event{}
}

// WithEvent gives a request an event before its handler from Wrap is known, which then adds none of its own.
func WithEvent(r *http.Request, e *Event) *http.Request {
	return r.WithContext(context.WithValue(r.Context(), eventKey{}, e))
}

// Adapter turns Handlers into http.Handlers. The zero value works and logs to slog's default.
type Adapter struct {
	Logger   *slog.Logger
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
}

// NewAdapter registers the request metrics as <prefix>_http_requests_total and
// <prefix>_http_request_seconds. reg may be nil.
func NewAdapter(logger *slog.Logger, reg prometheus.Registerer, prefix string) *Adapter {
	a := &Adapter{
		Logger: logger,
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: prefix + "_http_requests_total", Help: "Requests answered, by route and status.",
		}, []string{"route", "status"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: prefix + "_http_request_seconds", Help: "Time to answer a request, in seconds.",
			Buckets: []float64{.001, .005, .02, .1, .5, 2, 10, 60},
		}, []string{"route"}),
	}
	if reg != nil {
		reg.MustRegister(a.requests, a.seconds)
	}
	return a
}

// Wrap makes an http.Handler of h. route is the pattern under which it is logged and counted, so it must
// be one of a bounded set. A panic is logged with its stack and answered as an unknown error. Where the answer had begun,
// also that to a HEAD, the connection is broken (of HTTP/2 the stream), so that no client takes it for whole.
func (a *Adapter) Wrap(route string, translate Translator, h Handler) http.Handler {
	count := a.counter(route)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		event, ok := r.Context().Value(eventKey{}).(*Event)
		if !ok {
			event = &Event{}
			r = WithEvent(r, event)
		}
		rw := &responseWriter{ResponseWriter: w}
		err := a.call(h, rw, r)
		status, code := rw.status, ""
		cut := err != nil && !rw.hijacked && (rw.started() || errors.Is(err, http.ErrAbortHandler))
		if err != nil && !cut && !rw.hijacked {
			status, code = translate(rw, err)
		}
		if status == 0 {
			status = http.StatusOK
		}
		elapsed := time.Since(start)
		count(status, elapsed)
		a.record(r, route, status, code, cut, err, event, rw.bytes, elapsed)
		if cut {
			panic(http.ErrAbortHandler)
		}
	})
}

// counter counts the requests of one route; what it counts into is looked up once a status.
func (a *Adapter) counter(route string) func(status int, d time.Duration) {
	if a.requests == nil {
		return func(int, time.Duration) {}
	}
	seconds := a.seconds.WithLabelValues(route)
	var statuses sync.Map // int → prometheus.Counter
	return func(status int, d time.Duration) {
		seconds.Observe(d.Seconds())
		c, ok := statuses.Load(status)
		if !ok {
			c, _ = statuses.LoadOrStore(status, a.requests.WithLabelValues(route, strconv.Itoa(status)))
		}
		c.(prometheus.Counter).Inc()
	}
}

func (a *Adapter) call(h Handler, w http.ResponseWriter, r *http.Request) (err error) {
	defer func() {
		if p := recover(); p != nil {
			if p == http.ErrAbortHandler { //nolint:errorlint // net/http compares it so
				err = http.ErrAbortHandler
				return
			}
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	return h(w, r)
}

func (a *Adapter) record(r *http.Request, route string, status int, code string, cut bool, err error, e *Event, n int64, d time.Duration) {
	logger, level := a.Logger, slog.LevelInfo
	if logger == nil {
		logger = slog.Default()
	}
	switch left := errors.Is(r.Context().Err(), context.Canceled); { // who asked is gone: nobody's failure
	case err == nil || left && (cut || errors.Is(err, context.Canceled)):
		level = slog.LevelDebug
	case cut && !notTaken(err):
		level = slog.LevelError
	case status >= 500 && status != http.StatusNotImplemented:
		level = slog.LevelError
	}
	if !logger.Enabled(r.Context(), level) {
		return
	}
	attrs := []slog.Attr{
		slog.String("route", route), slog.String("method", r.Method), slog.Int("status", status),
		slog.Duration("duration", d), slog.Int64("bytes", n),
	}
	for _, kv := range [][2]string{{"id", e.ID}, {"did", e.DID}, {"repository", e.Repository}, {"reference", e.Reference}, {"hold", e.Hold}, {"code", code}} {
		if kv[1] != "" {
			attrs = append(attrs, slog.String(kv[0], kv[1]))
		}
	}
	if cut {
		attrs = append(attrs, slog.Bool("cut", true))
	}
	if err != nil {
		attrs = append(attrs, slog.Any("error", err))
	}
	logger.LogAttrs(r.Context(), level, "request", attrs...)
}

// notTaken tells whether an answer failed because its client took no more of it.
func notTaken(err error) bool {
	op, ok := errors.AsType[*net.OpError](err)
	return ok && op.Op != "read" && (errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, os.ErrDeadlineExceeded))
}

// responseWriter remembers status and bytes. Unwrap and ReadFrom keep deadlines and sendfile working.
type responseWriter struct {
	http.ResponseWriter
	status   int
	bytes    int64
	hijacked bool // the connection is the handler's, and no answer is due
}

func (w *responseWriter) started() bool { return w.status >= 200 }

func (w *responseWriter) WriteHeader(status int) {
	if !w.started() {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *responseWriter) Write(p []byte) (int, error) {
	if !w.started() {
		w.status = http.StatusOK
	}
	n, err := w.ResponseWriter.Write(p)
	w.bytes += int64(n)
	return n, err
}

func (w *responseWriter) ReadFrom(r io.Reader) (int64, error) {
	if !w.started() {
		w.status = http.StatusOK
	}
	n, err := io.Copy(w.ResponseWriter, r)
	w.bytes += n
	return n, err
}

func (w *responseWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(w.ResponseWriter).Hijack()
	w.hijacked = err == nil
	return conn, rw, err
}

func (w *responseWriter) Flush() { _ = http.NewResponseController(w.ResponseWriter).Flush() }

func (w *responseWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
