package devnet

import (
	"bytes"
	"math"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"atcr.io/internal/xrpc"
)

// Fault answers a request in the server's place, or does something and passes it on to next.
type Fault func(w http.ResponseWriter, r *http.Request, next http.Handler)

// Faults stand before a server and misbehave where a test told them to. The zero value passes everything.
type Faults struct {
	mu       sync.RWMutex
	injected []*Injected
}

// Injected is a fault in place.
type Injected struct {
	faults *Faults
	match  func(*http.Request) bool
	fault  Fault
	fired  atomic.Int64
}

// Inject puts a fault before every request that match takes (nil: all). Of several that take a request the
// newest answers.
func (f *Faults) Inject(match func(*http.Request) bool, fault Fault) *Injected {
	f.mu.Lock()
	defer f.mu.Unlock()
	i := &Injected{faults: f, match: match, fault: fault}
	f.injected = append(f.injected, i)
	return i
}

// Fired tells how many requests met the fault: a test that saw none has tested nothing.
func (i *Injected) Fired() int { return int(i.fired.Load()) }

// Remove takes the fault away again. Requests that met it go on with it.
func (i *Injected) Remove() {
	i.faults.mu.Lock()
	defer i.faults.mu.Unlock()
	i.faults.injected = slices.DeleteFunc(i.faults.injected, func(o *Injected) bool { return o == i })
}

func (f *Faults) wrap(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if i := f.find(r); i != nil {
			i.fired.Add(1)
			i.fault(w, r, next)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func (f *Faults) find(r *http.Request) *Injected {
	f.mu.RLock()
	defer f.mu.RUnlock()
	for _, i := range slices.Backward(f.injected) {
		if i.match == nil || i.match(r) {
			return i
		}
	}
	return nil
}

// Path matches requests for one path, such as an XRPC method's.
func Path(path string) func(*http.Request) bool {
	return func(r *http.Request) bool { return r.URL.Path == path }
}

// Method matches requests for one XRPC method.
func Method(nsid string) func(*http.Request) bool { return Path("/xrpc/" + nsid) }

// Down cuts the connection without an answer.
func Down() Fault {
	return func(http.ResponseWriter, *http.Request, http.Handler) { panic(http.ErrAbortHandler) }
}

// Slow waits for d, or until the client has gone, and then answers as ever.
func Slow(d time.Duration) Fault {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		timer := time.NewTimer(d)
		defer timer.Stop()
		select {
		case <-timer.C:
			next.ServeHTTP(w, r)
		case <-r.Context().Done():
		}
	}
}

// Refuse answers with an XRPC error.
func Refuse(status int, name, message string) Fault {
	return func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		xrpc.WriteError(w, xrpc.Errorf(status, name, "%s", message))
	}
}

// Limited answers 429 as the reference PDS does: it says when in RateLimit-Reset, and has no Retry-After.
func Limited(reset time.Time) Fault {
	return func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		writeLimited(w, 30, 5*time.Minute, reset)
	}
}

// writeLimited is the answer of xrpc-server's rate limiter.
func writeLimited(w http.ResponseWriter, limit int, window time.Duration, reset time.Time) {
	h := w.Header()
	h.Set("RateLimit-Limit", strconv.Itoa(limit))
	h.Set("RateLimit-Remaining", "0")
	h.Set("RateLimit-Reset", strconv.FormatInt(reset.Unix(), 10))
	h.Set("RateLimit-Policy", strconv.Itoa(limit)+";w="+strconv.Itoa(int(window.Seconds())))
	xrpc.WriteError(w, xrpc.Errorf(http.StatusTooManyRequests, "RateLimitExceeded", "Rate Limit Exceeded"))
}

// Redirect sends the client elsewhere, with its method and body.
func Redirect(url string) Fault {
	return func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
		http.Redirect(w, r, url, http.StatusTemporaryRedirect)
	}
}

// Garbage answers 200 with what is no JSON, though it says that it is.
func Garbage() Fault {
	return func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write([]byte("{\"accessJwt\": <html>\x00\xff")) // the client is gone: nobody to tell
	}
}

// Endless answers 200 with JSON that never ends, or ends after limit bytes where limit is positive.
func Endless(limit int64) Fault {
	if limit <= 0 {
		limit = math.MaxInt64
	}
	return func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		w.Header().Set("Content-Type", "application/json")
		chunk := bytes.Repeat([]byte{'x'}, 64<<10)
		if _, err := w.Write([]byte(`{"did":"`)); err != nil {
			return
		}
		for sent := int64(0); sent < limit; sent += int64(len(chunk)) {
			if _, err := w.Write(chunk); err != nil {
				return
			}
		}
	}
}
