package identity

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bluesky-social/indigo/atproto/atcrypto"
	"github.com/bluesky-social/indigo/atproto/syntax"
	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/sync/singleflight"

	"atcr.io/internal/httpx"
)

const (
	freshFor       = 10 * time.Minute
	staleFor       = 24 * time.Hour // believed so long while the directory is down
	failureFor     = 20 * time.Second
	lookupTimeout  = 10 * time.Second
	dnsTimeout     = 3 * time.Second // leaves time for the handle's own host
	cachedEntries  = 4_000
	maxCachedBytes = 8 << 10                   // of a document: larger ones are asked for each time
	maxLookups     = 64                        // at once, and as many at the directory: strangers' hosts may be slow on purpose
	shareLookups   = maxLookups / 8            // of one caller at once
	shareWaiting   = maxLookups - shareLookups // for them, no longer than sharePatience
	sharePatience  = 5 * time.Second
	refreshEvery   = 30 * time.Second
	maxRefreshes   = 30 // in refreshEvery, of all
	maxAnswerBytes = 256 << 10
)

// Config is what New needs.
type Config struct {
	// PLCURL is the directory of did:plc, the operator's choice and so not guarded.
	PLCURL string
	// HandleResolverURL, where set, is a server with com.atproto.identity.resolveHandle that is asked first;
	// the operator's choice too.
	HandleResolverURL string
	// AllowPrivate allows http and private addresses for did:web and handles.
	AllowPrivate bool
	UserAgent    string
	Logger       *slog.Logger
	Now          func() time.Time // nil: time.Now
}

// Resolver finds identities. Safe for concurrent use.
type Resolver struct {
	config  Config
	guarded *http.Client // to addresses that others chose
	trusted *http.Client // to those of the operator
	dns     resolver
	silence atomic.Int64 // until when DNS is not asked, in nanoseconds
	flight  singleflight.Group
	slots   chan struct{}
	own     chan struct{} // the same, to the directory
	shares  *httpx.Lines  // of those that requests come from, by httpx.Event.Caller
	dids    *lru.Cache[syntax.DID, entry[*Identity]]
	handles *lru.Cache[syntax.Handle, entry[syntax.DID]]

	asked atomic.Uint64 // questions
	adds  sync.Mutex    // to the caches

	mu        sync.Mutex
	refreshed *lru.Cache[syntax.DID, time.Time]
	window    time.Time // of refreshes
	spent     int
}

// entry is a cached answer or failure.
type entry[T any] struct {
	value T
	err   error
	at    time.Time
	tried time.Time // when asking again failed last: an outage must not cost each caller its wait
	asked uint64    // which question it answers: a later one's answer is newer, whichever comes first
}

// good tells whether the entry is the answer, without asking.
func (e entry[T]) good(now time.Time) bool {
	if e.err != nil {
		return now.Sub(e.at) < failureFor
	}
	return now.Sub(e.at) < freshFor || e.usable(now) && now.Sub(e.tried) < failureFor
}

// usable tells whether the entry is better than no answer.
func (e entry[T]) usable(now time.Time) bool { return e.err == nil && now.Sub(e.at) < staleFor }

// New makes a Resolver.
func New(c Config) *Resolver {
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.PLCURL == "" {
		c.PLCURL = "https://plc.directory"
	}
	return &Resolver{
		config:    c,
		guarded:   httpx.NewClient(httpx.ClientConfig{AllowPrivate: c.AllowPrivate, Timeout: lookupTimeout, UserAgent: c.UserAgent}),
		trusted:   httpx.NewClient(httpx.ClientConfig{AllowPrivate: true, Timeout: lookupTimeout, UserAgent: c.UserAgent}),
		dns:       net.DefaultResolver,
		slots:     make(chan struct{}, maxLookups),
		own:       make(chan struct{}, maxLookups),
		shares:    httpx.NewLines(shareLookups, shareWaiting),
		dids:      newCache[syntax.DID, entry[*Identity]](),
		handles:   newCache[syntax.Handle, entry[syntax.DID]](),
		refreshed: newCache[syntax.DID, time.Time](),
	}
}

func newCache[K comparable, V any]() *lru.Cache[K, V] {
	c, err := lru.New[K, V](cachedEntries)
	if err != nil {
		panic("identity: " + err.Error()) // the size is a constant
	}
	return c
}

// LookupDID is the identity of did. Its Handle is not checked against the handle's own word.
// Errors: ErrNotFound, ErrInvalid, ErrUnavailable.
func (r *Resolver) LookupDID(ctx context.Context, did syntax.DID) (*Identity, error) {
	return lookup(ctx, r, r.dids, did, r.fetchDID, false)
}

// ResolveHandle is the DID that a handle leads to, one way. Errors: as LookupDID.
func (r *Resolver) ResolveHandle(ctx context.Context, handle syntax.Handle) (syntax.DID, error) {
	return lookup(ctx, r, r.handles, handle.Normalize(), r.fetchHandle, false)
}

// Lookup is the identity of a handle or DID. A handle must be claimed back by the document: else
// ErrHandleMismatch. Errors: as LookupDID too.
func (r *Resolver) Lookup(ctx context.Context, name syntax.AtIdentifier) (*Identity, error) {
	if did, err := name.AsDID(); err == nil {
		return r.LookupDID(ctx, did)
	}
	handle, err := name.AsHandle()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	handle = handle.Normalize()
	did, err := r.ResolveHandle(ctx, handle)
	if err != nil {
		return nil, err
	}
	i, err := r.claimed(ctx, did, handle)
	if old, ok := r.handles.Get(handle); ok && (errors.Is(err, ErrHandleMismatch) || errors.Is(err, errUnseen)) && r.config.Now().Sub(old.at) >= failureFor {
		// It may have gone to somebody else since.
		if now, err := lookup(ctx, r, r.handles, handle, r.fetchHandle, true); err == nil && now != did {
			return r.claimed(ctx, now, handle)
		}
	}
	return i, err
}

// errUnseen is a handle that a document does not claim which may be older than it.
var errUnseen = errors.New("whether its DID claims the handle cannot be seen")

// claimed is the identity that a handle leads to, if it says so itself. Errors: errUnseen, as Lookup.
func (r *Resolver) claimed(ctx context.Context, did syntax.DID, handle syntax.Handle) (*Identity, error) {
	i, err := r.LookupDID(ctx, did)
	if err != nil {
		return nil, err
	}
	if i.Handle != handle { // it may be newer than what is remembered
		now, err := r.Refresh(ctx, did)
		if err == nil {
			i = now
		} else if !r.justSeen(did, i) {
			return nil, fmt.Errorf("%w: %s leads to %s: %w", errUnseen, handle, did, err)
		}
	}
	if i.Handle != handle {
		return nil, fmt.Errorf("%w: %s leads to %s", ErrHandleMismatch, handle, did)
	}
	return i, nil
}

// justSeen tells whether i, which a look-up of did answered, is as new as a Refresh would be.
func (r *Resolver) justSeen(did syntax.DID, i *Identity) bool {
	known, ok := r.dids.Get(did)
	return i.large || ok && known.value == i && r.config.Now().Sub(known.at) < refreshEvery
}

// Refresh asks for a DID document again, whatever is cached; at most so often for each DID and in all.
// What is cached stays where the answer is ErrUnavailable: a stranger's bad token must not take it away.
// Errors: ErrUnavailable where it was asked for too often; as LookupDID.
func (r *Resolver) Refresh(ctx context.Context, did syntax.DID) (*Identity, error) {
	if !r.mayRefresh(did) {
		return nil, &unavailable{errors.New("it was asked for a moment ago")}
	}
	return lookup(ctx, r, r.dids, did, r.fetchDID, true)
}

func (r *Resolver) mayRefresh(did syntax.DID) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.config.Now()
	if last, ok := r.refreshed.Get(did); ok && now.Sub(last) < refreshEvery {
		return false
	}
	if now.Sub(r.window) > refreshEvery {
		r.window, r.spent = now, 0
	}
	if r.spent++; r.spent > maxRefreshes {
		return false
	}
	r.refreshed.Add(did, now)
	return true
}

// SigningKey is the key #atproto of did: for the verifier of service tokens.
func (r *Resolver) SigningKey(ctx context.Context, did syntax.DID) (atcrypto.PublicKey, error) {
	i, err := r.LookupDID(ctx, did)
	if err != nil {
		return nil, err
	}
	return i.SigningKey()
}

// RefreshSigningKey is SigningKey by Refresh.
func (r *Resolver) RefreshSigningKey(ctx context.Context, did syntax.DID) (atcrypto.PublicKey, error) {
	i, err := r.Refresh(ctx, did)
	if err != nil {
		return nil, err
	}
	return i.SigningKey()
}

// lookup answers from the cache, or asks, once for all who want the same name, and of one caller's names some at once. What
// one caller gives up goes on for the others, within its own time. force asks in any case, and takes no old answer.
func lookup[K ~string, V any](ctx context.Context, r *Resolver, cache interface {
	Get(K) (entry[V], bool)
	Add(K, entry[V]) bool
}, name K, fetch func(context.Context, K) (V, error), force bool,
) (V, error) {
	old, ok := cache.Get(name)
	if ok && !force && old.good(r.config.Now()) {
		return old.value, old.err
	}
	known := ok && !force && old.usable(r.config.Now())
	leave, err := r.share(ctx, known)
	if err != nil && known {
		return old.value, nil
	}
	if err != nil {
		var none V
		return none, &unavailable{err}
	}
	if now, ok := cache.Get(name); ok && !force && now.good(r.config.Now()) { // found while this one waited
		leave()
		return now.value, now.err
	}
	result := r.flight.DoChan(fmt.Sprintf("%T %t %s", name, force, name), func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lookupTimeout)
		defer cancel()
		asked := r.asked.Add(1)
		value, err := slot(ctx, r, name, func(ctx context.Context, name K) (V, error) {
			asked = r.asked.Add(1)
			return fetch(ctx, name)
		})
		r.adds.Lock()
		defer r.adds.Unlock()
		old, ok := cache.Get(name)
		now := r.config.Now()
		if ok && old.asked > asked { // somebody asked later, and has an answer: it is newer than this one
			return old.value, old.err
		}
		if ok && old.usable(now) && errors.Is(err, ErrUnavailable) {
			old.tried = now
			cache.Add(name, old)
			if force {
				return nil, err
			}
			r.config.Logger.Warn("an identity is answered from an old look-up", "name", string(name), "error", err)
			return old.value, nil
		}
		if i, is := any(value).(*Identity); is && i != nil && i.large {
			return value, err
		}
		if !errors.Is(err, errBusy) && !errors.Is(err, errSilent) { // they say nothing of the name
			cache.Add(name, entry[V]{value: value, err: err, at: now, asked: asked})
		}
		return value, err
	})
	select {
	case <-ctx.Done():
		go func() { <-result; leave() }() // it goes on, and counts
		var zero V
		return zero, &unavailable{ctx.Err()}
	case got := <-result:
		leave()
		value, _ := got.Val.(V)
		return value, got.Err
	}
}

// share is a part of all look-ups for who asks in ctx, until leave; those of this program itself take no part. Who knows an
// old answer does not wait. Errors: ErrTooMany, ctx's.
func (r *Resolver) share(ctx context.Context, known bool) (leave func(), err error) {
	caller := httpx.EventFrom(ctx).Caller
	switch {
	case caller == "":
		return func() {}, nil
	case known:
		leave, err = r.shares.Try(caller)
	default:
		patient, cancel := context.WithTimeout(ctx, sharePatience)
		defer cancel()
		leave, err = r.shares.Enter(patient, caller)
	}
	if err != nil && ctx.Err() == nil {
		return nil, ErrTooMany
	}
	return leave, err
}

var errBusy = errors.New("too many look-ups at once")

// slot fetches as one of at most maxLookups.
func slot[K ~string, V any](ctx context.Context, r *Resolver, name K, fetch func(context.Context, K) (V, error)) (value V, err error) {
	slots := r.slots
	if strings.HasPrefix(string(name), "did:plc:") {
		slots = r.own
	}
	select {
	case slots <- struct{}{}:
		defer func() { <-slots }()
	case <-ctx.Done():
		return value, &unavailable{errBusy}
	}
	return fetch(ctx, name)
}
