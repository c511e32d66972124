package devnet

import (
	"net/http"
	"sync"
	"time"
)

// limit is so many requests in a window, which begins with a key's first request.
type limit struct {
	points int
	window time.Duration
}

// sessionLimits are createSession's in the reference PDS, for an identifier and address.
var sessionLimits = []limit{{30, 5 * time.Minute}, {300, 24 * time.Hour}}

type spent struct {
	points int
	reset  time.Time
}

// limiter counts requests by key. It forgets nothing: a network of tests does not live long enough.
type limiter struct {
	mu     sync.Mutex
	limits []limit
	spent  map[string][]spent
	now    func() time.Time
}

func newLimiter(now func() time.Time, limits []limit) *limiter {
	return &limiter{limits: limits, spent: map[string][]spent{}, now: now}
}

// take counts one request of key. Where a limit is used up it answers 429 and returns false.
func (l *limiter) take(w http.ResponseWriter, key string) bool {
	exceeded, reset := l.count(key)
	if exceeded == nil {
		return true
	}
	writeLimited(w, exceeded.points, exceeded.window, reset)
	return false
}

func (l *limiter) count(key string) (*limit, time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now, all := l.now(), l.spent[key]
	if all == nil {
		all = make([]spent, len(l.limits))
		l.spent[key] = all
	}
	for i := range l.limits {
		if !now.Before(all[i].reset) {
			all[i] = spent{reset: now.Add(l.limits[i].window)}
		}
		if all[i].points++; all[i].points > l.limits[i].points {
			return &l.limits[i], all[i].reset
		}
	}
	return nil, time.Time{}
}
