package appview

import (
	"context"
	"fmt"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/sync/singleflight"
)

// cache keeps what was looked up elsewhere for a short while: bounded, one look-up at a time for a key, and
// failures too, so that nobody can make it ask again and again.
type cache[K comparable, V any] struct {
	kept    *lru.Cache[K, kept[V]]
	flight  singleflight.Group
	load    func(ctx context.Context, key K) (V, error)
	fresh   time.Duration // how long an answer is believed
	failed  time.Duration // how long a failure is
	timeout time.Duration // of one look-up
	now     func() time.Time
}

type kept[V any] struct {
	value V
	err   error
	at    time.Time
	until time.Time
}

func newCache[K comparable, V any](size int, fresh, failed time.Duration, now func() time.Time, load func(context.Context, K) (V, error)) *cache[K, V] {
	return &cache[K, V]{kept: newLRU[K, kept[V]](size), load: load, fresh: fresh, failed: failed, timeout: lookupTimeout, now: now}
}

func newLRU[K comparable, V any](size int) *lru.Cache[K, V] {
	c, err := lru.New[K, V](size)
	if err != nil {
		panic("appview: " + err.Error()) // sizes are constants
	}
	return c
}

// get answers from memory, or looks up. A caller that gives up leaves the look-up to those who wait for the
// same key.
func (c *cache[K, V]) get(ctx context.Context, key K) (V, error) {
	if e, ok := c.kept.Get(key); ok && c.now().Before(e.until) {
		return e.value, e.err
	}
	result := c.flight.DoChan(fmt.Sprint(key), func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.timeout)
		defer cancel()
		started := c.now()
		value, err := c.load(ctx, key)
		until := c.now().Add(c.fresh)
		if err != nil {
			until = c.now().Add(c.failed)
		}
		// What was put in meanwhile is newer than what was read.
		if e, ok := c.kept.Peek(key); !ok || !e.at.After(started) {
			c.kept.Add(key, kept[V]{value, err, started, until})
		}
		return value, err
	})
	select {
	case <-ctx.Done():
		var zero V
		return zero, ctx.Err()
	case r := <-result:
		value, _ := r.Val.(V)
		return value, r.Err
	}
}

// put enters what this process has just written.
func (c *cache[K, V]) put(key K, value V) {
	now := c.now()
	c.kept.Add(key, kept[V]{value: value, at: now, until: now.Add(c.fresh)})
	c.flight.Forget(fmt.Sprint(key))
}

// forget makes the next get look up.
func (c *cache[K, V]) forget(key K) {
	c.kept.Add(key, kept[V]{at: c.now()})
	c.flight.Forget(fmt.Sprint(key))
}
