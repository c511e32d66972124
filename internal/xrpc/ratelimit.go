package xrpc

import (
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
)

// limitedKeys is how many callers a limit remembers. Whoever is pushed out by others begins anew.
const limitedKeys = 20_000

// RateLimit counts what callers do in windows of time, each caller's for itself. Safe for concurrent use.
type RateLimit struct {
	limit  int
	window time.Duration
	now    func() time.Time

	mu     sync.Mutex
	counts *lru.Cache[string, spent]
}

type spent struct {
	since time.Time
	n     int
}

// NewRateLimit allows limit points a caller and window; 0 allows any number. now nil means time.Now.
func NewRateLimit(limit int, window time.Duration, now func() time.Time) *RateLimit {
	if now == nil {
		now = time.Now
	}
	counts, err := lru.New[string, spent](limitedKeys)
	if err != nil {
		panic("xrpc: " + err.Error()) // the size is a constant
	}
	return &RateLimit{limit: limit, window: window, now: now, counts: counts}
}

// Take spends points of key, and writes to header how it stands. What is larger than a whole window's points
// is taken by a window that is untouched.
//
// Errors: *Error 429 RateLimitExceeded; then nothing was spent.
func (l *RateLimit) Take(header http.Header, key string, points int) error {
	if l.limit <= 0 {
		return nil
	}
	l.mu.Lock()
	now := l.now()
	s, ok := l.counts.Get(key)
	if passed := now.Sub(s.since); !ok || passed >= l.window || passed < 0 {
		s = spent{since: now}
	}
	allowed := s.n == 0 || s.n+points <= l.limit
	if allowed {
		s.n += points
		l.counts.Add(key, s)
	}
	l.mu.Unlock()
	reset := s.since.Add(l.window)
	header.Set("RateLimit-Limit", strconv.Itoa(l.limit))
	header.Set("RateLimit-Remaining", strconv.Itoa(max(0, l.limit-s.n)))
	header.Set("RateLimit-Reset", strconv.FormatInt(reset.Unix(), 10))
	header.Set("RateLimit-Policy", fmt.Sprintf("%d;w=%d", l.limit, int(l.window/time.Second)))
	if allowed {
		return nil
	}
	return &Error{
		Status: http.StatusTooManyRequests, Name: "RateLimitExceeded", RetryAfter: max(reset.Sub(now), time.Second),
		Message: fmt.Sprintf("more than %d in %s: try again at %s", l.limit, l.window, reset.UTC().Format(time.RFC3339)),
	}
}
