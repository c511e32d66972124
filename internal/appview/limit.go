package appview

import (
	"net/http"
	"net/netip"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"

	"atcr.io/internal/httpx"
	"atcr.io/internal/registry"
)

// limitedCallers bounds the callers that are remembered.
const limitedCallers = 50_000

// limiter is registry.Limiter: a bucket for each person, and for each address of nobody's. Addresses that are not
// public are a proxy that the settings do not name, or the operator's own network: they are not limited, since
// behind them may be everybody.
type limiter struct {
	perMinute int
	address   func(*http.Request) netip.Addr
	clock     clock

	mu      sync.Mutex
	buckets *lru.Cache[string, *bucket]
}

type bucket struct {
	left float64
	at   time.Time
}

// newLimiter is nil for no limit.
func newLimiter(perMinute int, address func(*http.Request) netip.Addr, now clock) registry.Limiter {
	if perMinute == 0 {
		return nil
	}
	return &limiter{perMinute: perMinute, address: address, clock: now, buckets: newLRU[string, *bucket](limitedCallers)}
}

// Take lets a caller go on who has anything left; what a request cost more than that is owed.
func (l *limiter) Take(r *http.Request, c registry.Caller, cost int) (registry.Allowance, bool) {
	address := l.address(r)
	if !httpx.PublicAddress(address) {
		return registry.Allowance{}, false
	}
	key := c.Subject
	if key == "" {
		key = httpx.ClientNetwork(address)
	}
	return l.take(key, cost), true
}

func (l *limiter) take(key string, cost int) registry.Allowance {
	l.mu.Lock()
	defer l.mu.Unlock()
	now, most := l.clock(), float64(l.perMinute)
	b, ok := l.buckets.Get(key)
	if !ok {
		b = &bucket{left: most, at: now}
		l.buckets.Add(key, b)
	}
	b.left = min(most, b.left+most*max(now.Sub(b.at), 0).Minutes())
	b.at = now
	out := registry.Allowance{Limit: l.perMinute, Window: time.Minute}
	if b.left < 1 {
		out.Wait = time.Duration((1 - b.left) / most * float64(time.Minute))
		out.Wait = max(out.Wait, time.Second)
		return out
	}
	b.left = max(b.left-float64(cost), -most)
	out.Remaining = int(max(b.left, 0))
	return out
}
