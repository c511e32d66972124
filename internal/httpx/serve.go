package httpx

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// NewServer has no total read or write timeout, because blobs stream; bodies are watched by ProgressBody.
func NewServer(h http.Handler, logger *slog.Logger) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(logger.Handler(), slog.LevelDebug),
	}
}

// Endpoint is a server with the listener it serves.
type Endpoint struct {
	Server   *http.Server
	Listener net.Listener
	// QuickBelow are paths: plain GETs of what they begin, one after the other on a connection, are answered with half of
	// the work, by the same handler, which then can neither flush an answer nor take the connection.
	QuickBelow []string
}

// Serve serves until ctx ends, then lets requests in flight go on for at most grace. It returns nil after
// an orderly end, whether or not all of them made it: what was cut is logged.
func Serve(ctx context.Context, logger *slog.Logger, grace time.Duration, endpoints ...Endpoint) error {
	failed := make(chan error, len(endpoints))
	quicks := make([]*quick, len(endpoints))
	for i, e := range endpoints {
		if len(e.QuickBelow) > 0 {
			quicks[i] = newQuick(e.Server, e.QuickBelow, e.Listener.Addr())
			go func() { _ = e.Server.Serve(quicks[i]) }() // until the end, as what it is beside
		}
		go func() {
			if err := e.Server.Serve(e.Listener); !errors.Is(err, http.ErrServerClosed) {
				failed <- fmt.Errorf("serve %s: %w", e.Listener.Addr(), err)
			}
		}()
	}
	var serveErr error
	select {
	case <-ctx.Done():
		logger.Info("stopping: requests in flight may finish", "grace", grace)
	case serveErr = <-failed:
	}
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
	defer cancel()
	var all sync.WaitGroup // at once: the second must neither take requests meanwhile, nor have what grace the first left
	for i, e := range endpoints {
		all.Go(func() {
			err := e.Server.Shutdown(end)
			if quicks[i] != nil {
				_ = quicks[i].Close() // it is, but where serving had not begun
				err = errors.Join(err, quicks[i].wait(end))
			}
			if err != nil {
				logger.Warn("requests were cut", "address", e.Listener.Addr().String(), "error", err)
				_ = e.Server.Close()
			}
		})
	}
	all.Wait()
	return serveErr
}

// DebugHandler serves /metrics and /debug/pprof/: for a private listener only.
func DebugHandler(gatherer prometheus.Gatherer) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(gatherer, promhttp.HandlerOpts{}))
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	return mux
}

const (
	progressWindow = time.Minute
	progressBytes  = 1 << 10 * 60 // 1 KiB/s over the window
)

// ErrTooSlow says that a sender fell under 1 KiB/s for a minute.
var ErrTooSlow = errors.New("the sender is too slow")

// ProgressBody is r's body with deadlines on progress instead of a total one: a sender that stays under
// 1 KiB/s for a minute is cut with ErrTooSlow.
func ProgressBody(w http.ResponseWriter, r *http.Request) io.ReadCloser {
	return &progressBody{ReadCloser: r.Body, rc: http.NewResponseController(w)}
}

// PacedWriter is w whose client has patience for each Write, instead of a deadline for the whole answer: one that reads
// nothing for so long is cut off.
func PacedWriter(w http.ResponseWriter, patience time.Duration) io.Writer {
	return &pacedWriter{w: w, rc: http.NewResponseController(w), patience: patience}
}

type pacedWriter struct {
	w        io.Writer
	rc       *http.ResponseController
	patience time.Duration
}

func (p *pacedWriter) Write(b []byte) (int, error) {
	if err := p.rc.SetWriteDeadline(time.Now().Add(p.patience)); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return 0, err
	}
	return p.w.Write(b)
}

type progressBody struct {
	io.ReadCloser
	rc      *http.ResponseController
	renewed time.Time     // when the deadline was set: setting it costs more than a small read
	waited  time.Duration // in Read, in the running window: time that the sender took, not we
	arrived int64         // bytes in it
}

func (b *progressBody) Read(p []byte) (int, error) {
	start := time.Now()
	if start.Sub(b.renewed) > time.Second {
		_ = b.rc.SetReadDeadline(start.Add(progressWindow)) // recorders in tests have no deadlines
		b.renewed = start
	}
	n, err := b.ReadCloser.Read(p)
	b.waited += time.Since(start)
	b.arrived += int64(n)
	if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
		return n, ErrTooSlow
	}
	if b.waited >= progressWindow {
		if b.arrived < progressBytes {
			return n, ErrTooSlow
		}
		b.waited, b.arrived = 0, 0
	}
	if err != nil {
		_ = b.rc.SetReadDeadline(time.Time{})
	}
	return n, err
}
