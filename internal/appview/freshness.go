package appview

import (
	"sync"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"
	lru "github.com/hashicorp/golang-lru/v2"
)

const (
	// freshEvery is how often a PDS is asked past all caches for one account, freshMost how often in that time
	// for all accounts together.
	freshEvery = time.Second
	freshMost  = 30
)

// freshness limits requests that ask for nothing from a cache: of a flood of them most are answered with what is
// seconds old, or told of by a firehose.
type freshness struct {
	now    clock
	mu     sync.Mutex
	asked  *lru.Cache[syntax.DID, time.Time]
	window time.Time
	spent  int
}

func newFreshness(now clock) *freshness {
	return &freshness{now: now, asked: newLRU[syntax.DID, time.Time](10_000)}
}

func (f *freshness) allow(did syntax.DID) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := f.now()
	if last, ok := f.asked.Get(did); ok && now.Sub(last) < freshEvery {
		return false
	}
	if now.Sub(f.window) >= freshEvery {
		f.window, f.spent = now, 0
	}
	if f.spent++; f.spent > freshMost {
		return false
	}
	f.asked.Add(did, now)
	return true
}
