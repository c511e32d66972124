package session

import (
	"sync"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"
	lru "github.com/hashicorp/golang-lru/v2"
)

// A PDS allows 30 attempts in 5 minutes for an account and address, and all of ours come from one address:
// the account's limit stays below, so that guesses here do not lock its person out of the PDS.
const (
	limitWindow  = 5 * time.Minute
	perPair      = 10 // wrong passwords for one account from one address
	perAddress   = 40
	perAccount   = 25
	limitEntries = 20_000
)

// limits count wrong passwords. An attempt is counted when it begins and given back when it was right, so
// that attempts at the same time count too.
type limits struct {
	mu     sync.Mutex
	now    func() time.Time
	counts *lru.Cache[limitKey, limitCount]
}

type limitKey struct {
	did     syntax.DID
	address string
}

type limitCount struct {
	since time.Time
	n     int
}

func newLimits(now func() time.Time) *limits {
	return &limits{now: now, counts: newLRU[limitKey, limitCount](limitEntries)}
}

// begin counts an attempt, or refuses it with a *LimitError. giveBack uncounts it.
func (l *limits) begin(did syntax.DID, address string) (giveBack func(), err error) {
	keys := [...]struct {
		limitKey
		max int
	}{{limitKey{did, address}, perPair}, {limitKey{"", address}, perAddress}, {limitKey{did, ""}, perAccount}}
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	for _, k := range keys {
		if c, ok := l.counts.Get(k.limitKey); ok && now.Sub(c.since) < limitWindow && c.n >= k.max {
			return nil, &LimitError{RetryAfter: c.since.Add(limitWindow).Sub(now)}
		}
	}
	for _, k := range keys {
		c, ok := l.counts.Get(k.limitKey)
		if !ok || now.Sub(c.since) >= limitWindow {
			c = limitCount{since: now}
		}
		c.n++
		l.counts.Add(k.limitKey, c)
	}
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		for _, k := range keys {
			if c, ok := l.counts.Get(k.limitKey); ok && c.n > 0 {
				c.n--
				l.counts.Add(k.limitKey, c)
			}
		}
	}, nil
}
