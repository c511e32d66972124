// Package appview wires an AppView: the registry's handlers, their tokens and people's sessions, on the
// repos of people and the holds that they chose.
//
// It owns what an image is in atproto's terms: which records, at which keys, in which order, and where blobs
// are. It refuses to own what it plugs together: HTTP of the registry, tokens, sessions. What is kept here
// can be lost: images are in people's repos and in holds.
package appview

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"
	"github.com/prometheus/client_golang/prometheus"

	"atcr.io/internal/credential"
	"atcr.io/internal/httpx"
	"atcr.io/internal/identity"
	"atcr.io/internal/oci"
	"atcr.io/internal/outbox"
	"atcr.io/internal/registry"
	"atcr.io/internal/regtoken"
	"atcr.io/internal/session"
	"atcr.io/internal/session/oauth"
	"atcr.io/internal/sqldb"
	"atcr.io/internal/xrpc"
)

const userAgent = "atcr-appview"

// AppView is an open AppView. Close it.
type AppView struct {
	config   Config
	logger   *slog.Logger
	db       *sqldb.DB
	registry *registry.Server
	outbox   *outbox.Outbox
	sessions *session.Store
	// credentials are the devices and access tokens.
	credentials *credential.Store
	pulls       *pulls
	mux         *http.ServeMux
	view        *view
	proxyTold   sync.Once
	stop        context.CancelFunc // of what runs in the background
	running     sync.WaitGroup
}

// Open makes an AppView of a validated config. reg may be nil.
func Open(ctx context.Context, config Config, logger *slog.Logger, reg prometheus.Registerer) (*AppView, error) {
	return open(ctx, config, logger, reg, time.Now)
}

// open is Open with the clock of caches and records.
func open(ctx context.Context, config Config, logger *slog.Logger, reg prometheus.Registerer, now clock) (*AppView, error) {
	if config.TestMode {
		logger.Warn("TEST_MODE is on: http and private addresses are allowed. Never run this where others reach it")
	}
	secrets, err := loadSecrets(config.SecretKeyFile)
	if err != nil {
		return nil, err
	}
	db, err := openDatabase(ctx, config)
	if err != nil {
		return nil, err
	}
	if db.OnServer() {
		if err := sameSecret(ctx, db, secrets); err != nil {
			return nil, errors.Join(err, db.Close())
		}
	}
	a := &AppView{config: config, logger: logger, db: db}
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	a.stop = stop
	if err := a.wire(ctx, background, secrets, reg, now); err != nil {
		return nil, errors.Join(err, a.Close())
	}
	return a, nil
}

// every runs step again and again until the AppView is closed.
func (a *AppView) every(ctx context.Context, pause time.Duration, step func(context.Context)) {
	a.running.Go(func() {
		tick := time.NewTicker(pause)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				step(ctx)
			}
		}
	})
}

// wire makes everything. ctx is that of opening, background ends with Close.
func (a *AppView) wire(ctx, background context.Context, secrets [][]byte, reg prometheus.Registerer, now clock) error {
	c := a.config
	directory := identity.New(identity.Config{
		PLCURL: c.PLCURL, HandleResolverURL: c.HandleResolverURL, AllowPrivate: c.TestMode, UserAgent: userAgent, Logger: a.logger,
	})
	guarded := httpx.NewClient(httpx.ClientConfig{AllowPrivate: c.TestMode, Timeout: cmp.Or(c.patience, callTimeout), UserAgent: userAgent})
	upstream := xrpc.Upstream{Client: guarded}
	whole := collections{upstream, newTurns()}
	signIn, err := newOAuth(c, guarded)
	if err != nil {
		return err
	}
	sessions, err := session.Open(ctx, a.db, session.Config{
		Secret: secrets[0], Accepted: secrets[1:], Client: guarded, OAuth: signIn, AllowMainPassword: c.AllowMainPassword, Logger: a.logger, Now: now,
	})
	if err != nil {
		return err
	}
	a.sessions = sessions
	if err := warnOfLostKeys(ctx, c, sessions, signIn, a.logger); err != nil {
		return err
	}
	tokens, err := regtoken.New(regtoken.Config{Secret: secrets[0], Accepted: secrets[1:], Issuer: c.BaseURL, Audience: c.ServiceName, Lifetime: c.TokenExpiration})
	if err != nil {
		return err
	}
	sealer, err := newSealer(secrets, now)
	if err != nil {
		return err
	}
	adapter := httpx.NewAdapter(a.logger, reg, "atcr_appview")
	if err := a.openNetwork(ctx, background, directory, guarded, reg, now); err != nil {
		return err
	}
	people := newOwners(directory, a.view.index)
	targets, err := newTargets(c.BaseURL, c.TestMode, net.DefaultResolver.LookupNetIP, now)
	if err != nil {
		return err
	}
	if host, ok := strings.CutPrefix(c.DefaultHoldDID, "did:web:"); ok && targets.takesCredentials("https://"+strings.ReplaceAll(host, "%3A", ":")) {
		a.logger.Warn("the default hold is on this AppView's own host name or below it: its blobs go through the AppView, since clients would take their tokens there",
			"hold", c.DefaultHoldDID)
	}
	holds := newHolds(directory, upstream, targets, c, now)
	calls := &holdCalls{upstream: upstream, tokens: sessions, targets: targets, again: holds.again}
	places := newPlaces(whole, directory, a.view, now)
	gone, err := newDeletedBlobs(ctx, a.db, a.view.index, now)
	if err != nil {
		return err
	}
	recent, err := openRecentBlobs(ctx, a.db, now)
	if err != nil {
		return err
	}
	leases, err := a.db.OpenLeases(ctx)
	if err != nil {
		return err
	}
	partial, err := openPartStore(ctx, a.db, now)
	if err != nil {
		return err
	}
	blocked, err := openBlocks(ctx, a.db)
	if err != nil {
		return err
	}
	a.every(background, cmp.Or(c.blocksFresh, blocksFresh), func(ctx context.Context) {
		if err := blocked.reload(ctx); err != nil && ctx.Err() == nil {
			a.logger.Error("read what is blocked", "error", err)
		}
	})
	own, err := newSelf(secrets[0], c.BaseURL)
	if err != nil {
		return err
	}
	if a.pulls, err = openPulls(ctx, a.db, own, holds, upstream, a.logger, now); err != nil {
		return err
	}
	a.every(background, pullsEvery, a.pulls.step)
	told := newNotifier(holds, calls, sessions, a.logger, now)
	a.outbox, err = outbox.Open(ctx, outbox.Config{DB: a.db, Deliver: told.deliver, Logger: a.logger, Metrics: reg, Now: now, LookEvery: c.outboxLooks, Prefix: "atcr_appview"})
	if err != nil {
		return err
	}
	told.queue = a.outbox
	manifests := &manifests{
		notifier: told, gone: gone, recent: recent, pulls: a.pulls, leases: leases, shared: a.db.OnServer(),
		upstream: upstream, owners: people, holds: holds, calls: calls, records: newRecords(upstream, directory, a.view, now), places: places,
		bytes: newContents(manifestCacheBytes), lists: newLists(whole, directory, a.view, now), sessions: sessions, clock: now, sparse: c.SparseIndexes,
		met: newLRU[syntax.DID, owner](10_000), fresh: newFreshness(now),
	}
	places.manifests = manifests
	blobs := &blobs{
		owners: people, holds: holds, calls: calls, places: places, gone: gone, recent: recent, kept: newLRU[placeKey, keptPlace](placesAhead), clock: now,
		through: httpx.NewClient(httpx.ClientConfig{AllowPrivate: c.TestMode, UserAgent: userAgent, FollowRedirects: true}),
	}
	limits := newLimiter(c.RateLimit, a.clientAddress, now)
	a.registry = registry.New(registry.Config{
		Authorizer: &gate{tokens: tokens, owners: people, blocks: blocked, caller: a.callerNetwork, baseURL: c.BaseURL, service: c.ServiceName},
		Manifests:  blockedManifests{manifests, blocked},
		Blobs:      blockedBlobs{blobs, blocked},
		Uploads: blockedUploads{&uploads{
			owners: people, holds: holds, calls: calls, blobs: blobs, places: places, sealer: sealer, parts: newParts(calls, holds, partial),
			relay:   &relay{client: httpx.NewClient(httpx.ClientConfig{AllowPrivate: c.TestMode, UserAgent: userAgent}), testMode: c.TestMode},
			baseURL: c.BaseURL, direct: c.DirectUploads, clock: now,
		}, blocked, people},
		Limiter: limits,
		Adapter: adapter,
	})
	address := func(r *http.Request) string { return a.clientAddress(r).String() }
	greeter := &greeter{sessions: sessions, holds: holds, logger: a.logger, clock: now}
	a.credentials, err = credential.Open(ctx, a.db, credential.Config{Secret: secrets[0], Accepted: secrets[1:], Now: now})
	if err != nil {
		return err
	}
	token := &tokenServer{
		directory: directory, owners: people, sessions: sessions, credentials: a.credentials, tokens: tokens, welcome: greeter.welcome,
		blocked: blocked.person, limits: limits, caller: a.callerNetwork, service: c.ServiceName, baseURL: c.BaseURL, logger: a.logger,
	}
	device := &deviceServer{
		directory: directory, credentials: a.credentials, sessions: sessions, address: address, caller: a.callerNetwork, baseURL: c.BaseURL, blocked: blocked.person,
		choice: &chooser{holds: holds, calls: calls, sessions: sessions, upstream: upstream, from: whole, owners: people, crew: a.view.index.HoldsOf, clock: now},
	}
	site, err := a.newPages(&pages{
		directory: directory, sessions: sessions, credentials: a.credentials, choice: device.choice, welcome: greeter.welcome,
		manifests: manifests, blocks: blocked, db: a.db,
	}, address, a.callerNetwork, adapter, now)
	if err != nil {
		return err
	}
	a.mux = http.NewServeMux()
	if err := site.Register(a.mux); err != nil {
		return err
	}
	for pattern, h := range map[string]httpx.Handler{
		"GET /auth/token": token.serve, "POST /auth/token": token.serve, "GET /healthz": getHealth, "GET /.well-known/did.json": own.getDocument,
		"GET " + oauth.MetadataPath: getClientMetadata(signIn.Metadata, c.ServiceName), "GET " + oauth.GenericMetadataPath: getClientMetadata(signIn.GenericMetadata, c.ServiceName),
		"GET " + oauth.JWKSPath: getJWKS(signIn),
	} {
		a.mux.Handle(pattern, adapter.Wrap(pattern, oci.WriteError, h))
	}
	for pattern, h := range device.routes() {
		a.mux.Handle(pattern, adapter.Wrap(pattern, writeOAuthError, h))
	}
	return nil
}

// callTimeout bounds one call of another server, its answer included.
const callTimeout = 30 * time.Second

// Handler serves everything. Paths below /v2/ go past the mux, which would redirect `//`.
func (a *AppView) Handler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v2" || strings.HasPrefix(r.URL.Path, "/v2/") {
			a.registry.ServeHTTP(w, r)
			return
		}
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
		a.mux.ServeHTTP(w, httpx.WithEvent(r, &httpx.Event{Caller: a.callerNetwork(r)}))
	})
}

// Close ends what runs in the background and closes the database. Requests must have ended.
func (a *AppView) Close() error {
	a.stop()
	a.running.Wait()
	if a.outbox != nil {
		a.outbox.Close()
	}
	var err error
	if a.pulls != nil {
		err = a.pulls.keep(context.Background()) // what was counted since the last look
	}
	return errors.Join(err, a.db.Close())
}

func getHealth(w http.ResponseWriter, _ *http.Request) error {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, err := w.Write([]byte("ok\n"))
	return err
}

// callerNetwork is who called, for limits. Addresses that are not public may be a proxy that the settings do not name: who
// comes by one counts as one.
func (a *AppView) callerNetwork(r *http.Request) string {
	return httpx.ClientNetwork(a.clientAddress(r))
}

// clientAddress is who called, by X-Forwarded-For where the call came from a trusted proxy: the last address
// that no trusted proxy has.
func (a *AppView) clientAddress(r *http.Request) netip.Addr {
	address := httpx.ClientAddress(r, a.config.proxies)
	if !httpx.PublicAddress(address) && r.Header.Get("X-Forwarded-For") != "" {
		a.proxyTold.Do(func() {
			a.logger.Warn("requests come by a proxy that ATCR_TRUSTED_PROXIES does not name: all its clients count as one, or are not limited", "address", address.String())
		})
	}
	return address
}
