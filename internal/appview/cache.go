package appview

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/sync/singleflight"

	"atcr.io/internal/identity"
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

	// stamp, where not nil, changes when what is kept of a key may no longer be so.
	stamp func(ctx context.Context, key K) uint64
	// covered, where not nil, tells before a look-up whether changes will be told of: then what it answers is
	// believed for coveredFresh.
	covered func(ctx context.Context, key K) bool

	// changes count what was put in or forgotten, by a hash of the key: a look-up that began before does not
	// say how it is.
	seed    maphash.Seed
	changes [256]changes

	// weight, where not nil, is what a value takes of memory, in bytes: all that is kept takes at most room.
	weight func(V) int
	room   int
	mu     sync.Mutex // of what is added, where it is weighed
	held   atomic.Int64
}

// changes are counted, and what follows from their number is done, with mu held.
type changes struct {
	mu sync.Mutex
	n  uint64
}

func (c *changes) count() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n
}

// make makes a change.
func (c *changes) make(change func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n++
	change()
}

// unchanged does something, unless a change was made since there were n.
func (c *changes) unchanged(n uint64, do func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n == n {
		do()
	}
}

type kept[V any] struct {
	value  V
	err    error
	until  time.Time
	stamp  uint64
	weight int
}

// weigh bounds the memory of all that is kept, in bytes.
func (c *cache[K, V]) weigh(room int, weight func(V) int) {
	c.room, c.weight = room, weight
}

func newCache[K comparable, V any](size int, fresh, failed time.Duration, now func() time.Time, load func(context.Context, K) (V, error)) *cache[K, V] {
	c := &cache[K, V]{load: load, fresh: fresh, failed: failed, timeout: lookupTimeout, now: now, seed: maphash.MakeSeed()}
	var err error
	c.kept, err = lru.NewWithEvict(size, func(_ K, e kept[V]) { c.held.Add(int64(-e.weight)) })
	if err != nil {
		panic("appview: " + err.Error()) // sizes are constants
	}
	return c
}

func (c *cache[K, V]) add(key K, e kept[V]) {
	if c.weight == nil {
		c.kept.Add(key, e)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.kept.Remove(key) // what is replaced is not told of as evicted
	e.weight = c.weight(e.value)
	c.held.Add(int64(e.weight))
	c.kept.Add(key, e)
	for c.held.Load() > int64(c.room) && c.kept.Len() > 0 {
		c.kept.RemoveOldest()
	}
}

func newLRU[K comparable, V any](size int) *lru.Cache[K, V] {
	c, err := lru.New[K, V](size)
	if err != nil {
		panic("appview: " + err.Error()) // sizes are constants
	}
	return c
}

func (c *cache[K, V]) stampOf(ctx context.Context, key K) uint64 {
	if c.stamp == nil {
		return 0
	}
	return c.stamp(ctx, key)
}

// get answers from memory, or looks up. A caller that gives up leaves the look-up to those who wait for the
// same key.
func (c *cache[K, V]) get(ctx context.Context, key K) (V, error) {
	if e, ok := c.kept.Get(key); ok && !asksPDS(ctx) && c.now().Before(e.until) && e.stamp == c.stampOf(ctx, key) {
		return e.value, e.err
	}
	changes := c.changesOf(key)
	before := changes.count() // in the flight's name: nobody joins a look-up that began before the last change
	flight := fmt.Sprint(before, " ", key)
	if asksPDS(ctx) {
		flight += " anew"
	}
	mine := false
	result := c.flight.DoChan(flight, func() (any, error) {
		mine = true
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.timeout)
		defer cancel()
		stamp, fresh := c.stampOf(ctx, key), c.fresh
		if c.covered != nil && c.covered(ctx, key) {
			fresh = coveredFresh
		}
		value, err := c.load(ctx, key)
		if errors.Is(err, identity.ErrTooMany) { // that says something of who asks, and nothing of key
			return value, err
		}
		until := c.now().Add(fresh)
		if err != nil {
			until = c.now().Add(c.failed)
		}
		changes.unchanged(before, func() { // what was put in meanwhile is newer than what was read
			c.add(key, kept[V]{value: value, err: err, until: until, stamp: stamp})
		})
		return value, err
	})
	select {
	case <-ctx.Done():
		var zero V
		return zero, ctx.Err()
	case r := <-result:
		if !mine && errors.Is(r.Err, identity.ErrTooMany) { // who began it
			return c.get(ctx, key)
		}
		value, _ := r.Val.(V)
		return value, r.Err
	}
}

func (c *cache[K, V]) changesOf(key K) *changes {
	return &c.changes[maphash.Comparable(c.seed, key)%uint64(len(c.changes))]
}

// put enters what this process has just written.
func (c *cache[K, V]) put(key K, value V) {
	e := kept[V]{value: value, until: c.now().Add(c.fresh), stamp: c.stampOf(context.Background(), key)}
	c.changesOf(key).make(func() { c.add(key, e) })
}

// forget makes the next get look up.
func (c *cache[K, V]) forget(key K) {
	c.changesOf(key).make(func() { c.kept.Remove(key) })
}
