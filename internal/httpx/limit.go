package httpx

import (
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
)

// limitKeys bounds what a Limiter remembers. Who is forgotten begins anew.
const limitKeys = 20_000

// Limiter counts what each key (an address, an account) did in a window of time. It is kept in memory, by
// each process for itself. Safe for concurrent use.
type Limiter struct {
	limit  int
	window time.Duration
	now    func() time.Time
	mu     sync.Mutex
	counts *lru.Cache[string, limitCount]
}

type limitCount struct {
	since time.Time
	n     int
}

// NewLimiter allows limit times in a window that begins with the first. now may be nil.
func NewLimiter(limit int, window time.Duration, now func() time.Time) *Limiter {
	if now == nil {
		now = time.Now
	}
	counts, err := lru.New[string, limitCount](limitKeys)
	if err != nil {
		panic("httpx: " + err.Error()) // the size is a constant
	}
	return &Limiter{limit: limit, window: window, now: now, counts: counts}
}

// Take counts one, or says how long to wait where there were too many.
func (l *Limiter) Take(key string) (wait time.Duration, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	c, known := l.counts.Get(key)
	if !known || now.Sub(c.since) >= l.window {
		c = limitCount{since: now}
	}
	if c.n >= l.limit {
		return c.since.Add(l.window).Sub(now), false
	}
	c.n++
	l.counts.Add(key, c)
	return 0, true
}

// Give uncounts one: what was counted when it began turned out to be allowed without limit.
func (l *Limiter) Give(key string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if c, ok := l.counts.Get(key); ok && c.n > 0 {
		c.n--
		l.counts.Add(key, c)
	}
}
