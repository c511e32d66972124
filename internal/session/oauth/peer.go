package oauth

import (
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
)

// maxPeers bounds the servers that are remembered.
const maxPeers = 4096

// maxNonceBytes bounds what a server can make us carry.
const maxNonceBytes = 512

// peers is what other servers told: their time, and the nonce that the next proof for them must carry. A
// server can be both an authorization server and a PDS, with a nonce for each.
type peers struct {
	now    func() time.Time
	mu     sync.Mutex
	clocks *lru.Cache[string, time.Duration] // origin → how far its clock is ahead of ours
	nonces *lru.Cache[nonceKey, string]
}

type nonceKey struct {
	origin string
	pds    bool // as a PDS, not as an authorization server
}

func newPeers(now func() time.Time) *peers {
	return &peers{now: now, clocks: newLRU[string, time.Duration](maxPeers), nonces: newLRU[nonceKey, string](maxPeers)}
}

func newLRU[K comparable, V any](size int) *lru.Cache[K, V] {
	c, err := lru.New[K, V](size)
	if err != nil {
		panic("oauth: " + err.Error()) // sizes are constants
	}
	return c
}

func originOf(u *url.URL) string { return u.Scheme + "://" + u.Host }

// heard remembers what an answer tells: of time, and of nonces.
func (p *peers) heard(origin string, pds bool, res *http.Response) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if nonce := res.Header.Get("DPoP-Nonce"); nonce != "" && len(nonce) <= maxNonceBytes {
		p.nonces.Add(nonceKey{origin, pds}, nonce)
	}
	date, err := http.ParseTime(res.Header.Get("Date"))
	if err != nil {
		return
	}
	if age, err := strconv.ParseUint(res.Header.Get("Age"), 10, 31); err == nil { // from a cache on the way
		date = date.Add(time.Duration(age) * time.Second)
	}
	// A Date has whole seconds and comes from before the answer's way here: what follows from it is never ahead
	// of the server's clock.
	p.clocks.Add(origin, date.Sub(p.now()))
}

// known tells whether the server's time is known.
func (p *peers) known(origin string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.clocks.Contains(origin)
}

// time is what the server's clock shows, or a second less; ours, where it is not known.
func (p *peers) time(origin string) time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	offset, _ := p.clocks.Get(origin)
	return p.now().Add(offset)
}

func (p *peers) nonce(origin string, pds bool) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	nonce, _ := p.nonces.Get(nonceKey{origin, pds})
	return nonce
}
