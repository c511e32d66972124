package xrpc

import (
	"fmt"
	"net/http"
	"strconv"
	"time"

	"atcr.io/internal/httpx"
)

// RateLimit is an httpx.Limiter that tells callers how they stand, as PDSes do. Safe for concurrent use.
type RateLimit struct {
	limit  int
	window time.Duration
	now    func() time.Time
	spent  *httpx.Limiter
}

// NewRateLimit allows limit points a caller and window; 0 allows any number. now nil means time.Now.
func NewRateLimit(limit int, window time.Duration, now func() time.Time) *RateLimit {
	if now == nil {
		now = time.Now
	}
	return &RateLimit{limit: limit, window: window, now: now, spent: httpx.NewLimiter(limit, window, now)}
}

// Take spends points of key, and writes to header how it stands. What is larger than a whole window's points
// is taken by a window that is untouched.
//
// Errors: *Error 429 RateLimitExceeded; then nothing was spent.
func (l *RateLimit) Take(header http.Header, key string, points int) error {
	if l.limit <= 0 {
		return nil
	}
	left, reset, allowed := l.spent.Spend(key, points)
	header.Set("RateLimit-Limit", strconv.Itoa(l.limit))
	header.Set("RateLimit-Remaining", strconv.Itoa(left))
	header.Set("RateLimit-Reset", strconv.FormatInt(reset.Unix(), 10))
	header.Set("RateLimit-Policy", fmt.Sprintf("%d;w=%d", l.limit, int(l.window/time.Second)))
	if allowed {
		return nil
	}
	return &Error{
		Status: http.StatusTooManyRequests, Name: "RateLimitExceeded", RetryAfter: max(reset.Sub(l.now()), time.Second),
		Message: fmt.Sprintf("more than %d in %s: try again at %s", l.limit, l.window, reset.UTC().Format(time.RFC3339)),
	}
}
