package ingest

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"
)

// sleep waits for d; false: ctx ended.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

func jitter(d time.Duration) time.Duration { return d/2 + rand.N(d/2+1) }

const (
	trippedFor = 30 * time.Second
	trippedMax = 10_000
)

// breaker remembers hosts that just failed, so that one that never answers holds up nobody else.
type breaker struct {
	now func() time.Time
	mu  sync.Mutex
	at  map[string]time.Time
}

func (b *breaker) open(host string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	at, ok := b.at[host]
	return ok && b.now().Sub(at) < trippedFor
}

func (b *breaker) trip(host string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.at == nil || len(b.at) >= trippedMax {
		b.at = map[string]time.Time{}
	}
	b.at[host] = b.now()
}

func (b *breaker) reset(host string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.at, host)
}
