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
	_, reset, ok := l.Spend(key, 1)
	if ok {
		return 0, true
	}
	return reset.Sub(l.now()), false
}

// Spend counts n at once, and tells what is left of the window and when that ends. More than a whole window allows
// is taken by one that is untouched. Where it is not ok nothing was counted.
func (l *Limiter) Spend(key string, n int) (left int, reset time.Time, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	c, known := l.counts.Get(key)
	if passed := now.Sub(c.since); !known || passed >= l.window || passed < 0 {
		c = limitCount{since: now}
	}
	if ok = c.n == 0 || c.n+n <= l.limit; ok {
		c.n += n
		l.counts.Add(key, c)
	}
	return max(0, l.limit-c.n), c.since.Add(l.window), ok
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
