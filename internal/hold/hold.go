// Package hold wires a hold: the repo that says who may do what, the uploads and the blob index, the storage,
// and the methods under which the network reaches them.
//
// It owns the hold's settings, routes and permission checks, and refuses to own what the packages that it
// plugs together own.
//
// Source: contract, "XRPC methods of a hold" and "Who may do what at a hold".
package hold

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bluesky-social/indigo/atproto/atcrypto"
	"github.com/bluesky-social/indigo/atproto/syntax"
	"github.com/gofrs/flock"
	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/prometheus/client_golang/prometheus"

	"atcr.io/internal/blobstore"
	"atcr.io/internal/blobstore/filesystem"
	"atcr.io/internal/blobstore/s3"
	"atcr.io/internal/daemon"
	"atcr.io/internal/httpx"
	"atcr.io/internal/identity"
	"atcr.io/internal/ledger"
	"atcr.io/internal/oci"
	"atcr.io/internal/pds"
	"atcr.io/internal/plc"
	"atcr.io/internal/sqldb"
	"atcr.io/internal/upload"
	"atcr.io/internal/xrpc"
)

const (
	userAgent  = "atcr-hold"
	remembered = 10_000 // entries of each cache
)

// errNoOwner is a first start that does not say whose hold it is.
var errNoOwner = errors.New("HOLD_OWNER is required at the first start: set it to your DID (did:plc:…)")

// Hold is an open hold. Safe for concurrent use.
type Hold struct {
	config Config
	did    syntax.DID
	handle string // "" where the public URL has no name that can be one
	public atomic.Pointer[atcrypto.PublicKey]
	log    *slog.Logger
	now    func() time.Time
	repair repair

	identityMu sync.Mutex // of changes of key, address and handle
	settled    bool       // directory and followers know of the last one
	plc        *plc.Client
	state      *state

	db         *sqldb.DB
	store      blobstore.Store
	host       *pds.Host
	repo       *pds.Repo
	roster     *roster
	uploads    *upload.Uploads
	presigns   bool // blobs are fetched from the storage
	ledger     *ledger.Ledger
	quota      *quota
	blocks     *blocks
	verifier   *xrpc.Verifier
	identities *identity.Resolver
	links      atomic.Pointer[linker]
	limits     limits
	catalog    catalog
	posts      poster
	handler    http.Handler

	following   following
	persons     persons
	counting    sync.Mutex // counts and posts on their way into records
	registering sync.Mutex // one registration at a time, so that the day's number holds
	collecting  sync.Mutex // one collection at a time
	collected   *collectMetrics

	told     atomic.Int64 // when a trusted AppView last told of pulls, in nanoseconds
	recentMu sync.Mutex
	recent   *lru.Cache[string, time.Time] // what was counted in the last minute
	pullers  *lru.Cache[string, time.Time] // addresses and config blobs of the last hour
	configs  *lru.Cache[oci.Digest, []ledger.Manifest]
	images   atomic.Int64 // rises when images come or go: what was read of them before is not kept in configs

	relays map[string]relayState // by what HOLD_RELAYS calls them; only followRelays has them

	lock       *flock.Flock // one process a database
	stop       context.CancelFunc
	background sync.WaitGroup
}

// Open opens database, repo and storage, and writes what the first start writes. config was validated.
// Its errors are sentences for an operator.
func Open(ctx context.Context, config Config, logger *slog.Logger, registry prometheus.Registerer) (_ *Hold, err error) {
	h := &Hold{config: config, log: logger, now: config.now, repair: config.repair, relays: map[string]relayState{}}
	if h.now == nil {
		h.now = time.Now
	}
	for _, cache := range []**lru.Cache[string, time.Time]{&h.recent, &h.pullers} {
		if *cache, err = lru.New[string, time.Time](remembered); err != nil {
			return nil, err
		}
	}
	if h.configs, err = lru.New[oci.Digest, []ledger.Manifest](remembered); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(explain(err), h.Close())
		}
	}()
	h.warn()
	if h.store, err = h.openStore(ctx); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(config.DatabaseDir, 0o700); err != nil {
		return nil, fmt.Errorf("HOLD_DATABASE_DIR: %w", err)
	}
	h.lock = flock.New(filepath.Join(config.DatabaseDir, "lock"))
	if free, err := h.lock.TryLock(); err != nil || !free {
		h.lock = nil
		return nil, errors.Join(fmt.Errorf("another atcr-hold uses HOLD_DATABASE_DIR %s: stop it first", config.DatabaseDir), err)
	}
	if h.db, err = sqldb.Open(ctx, filepath.Join(config.DatabaseDir, "db.sqlite3")); err != nil {
		return nil, err
	}
	if h.blocks, err = openBlocks(ctx, h.db); err != nil {
		return nil, err
	}
	if err := h.openRepo(ctx); err != nil {
		return nil, err
	}
	h.quota = &quota{hold: h, quotas: config.quotas, open: config.openQuota, used: map[syntax.DID]use{}}
	presign, why := config.presigning(ctx)
	h.presigns = presign
	h.uploads, err = upload.Open(ctx, upload.Config{
		DB: h.db, Store: h.store, Logger: logger, Metrics: registry, NoPresign: !presign, SpoolDir: h.spoolDir(),
		Allow: h.quota.allow, Stored: h.quota.stored, Now: h.now, JoinWait: config.joinWait,
		Named: func(ctx context.Context, q upload.Queryer, did syntax.DID, d oci.Digest) (bool, error) {
			return h.ledger.NamedBy(ctx, q, did, d)
		},
	})
	if err != nil {
		return nil, fmt.Errorf("uploads: %w", err)
	}
	if err := h.finishRestore(ctx); err != nil {
		return nil, err
	}
	level := slog.LevelInfo
	if config.StorageDriver == "s3" && !config.DisablePresigned && !presign { // not what was asked for
		level = slog.LevelWarn
	}
	logger.Log(ctx, level, "presigned URLs are "+map[bool]string{true: "on", false: "off"}[presign], "why", why)
	h.identities = identity.New(identity.Config{
		PLCURL: config.PLCURL, HandleResolverURL: config.HandleResolver, AllowPrivate: config.TestMode, UserAgent: userAgent, Logger: logger,
	})
	h.verifier = xrpc.NewVerifier(xrpc.VerifierConfig{Audience: h.did, Fragment: "atcr_hold", Keys: h.identities})
	h.limits = newLimits(config, h.now)
	h.posts.client = httpx.NewClient(httpx.ClientConfig{AllowPrivate: config.TestMode, Timeout: readManifestTimeout, UserAgent: userAgent})
	h.handler = h.routes(httpx.NewAdapter(logger, registry, "atcr_hold"))
	h.collected = newCollectMetrics(registry)
	h.startBackground(ctx)
	return h, nil
}

// explain adds what an operator can do about a database that cannot be used.
func explain(err error) error {
	switch err = sqldb.Classify(err); {
	case errors.Is(err, sqldb.ErrCorrupt):
		return fmt.Errorf("%w. Move the files of HOLD_DATABASE_DIR away and restore a backup: `atcr-hold restore FILE`; where there is none, docs/hold.md, \"Recovery\", says what can be had from elsewhere", err)
	case errors.Is(err, sqldb.ErrLocked):
		return fmt.Errorf("%w. End that program (a shell of sqlite3, something that copies the file: `atcr-hold backup` does that without), and start again", err)
	case errors.Is(err, sqldb.ErrFull):
		return fmt.Errorf("%w. Make room on the volume of HOLD_DATABASE_DIR, and start again: nothing is lost", err)
	}
	return err
}

func (h *Hold) warn() {
	if h.config.TestMode {
		h.log.Warn("TEST_MODE: http and private addresses are allowed. Never set it on a hold that others reach")
	}
}

// spoolDir is where parts wait that are not in the storage yet.
func (h *Hold) spoolDir() string { return filepath.Join(h.config.DatabaseDir, "spool") }

func (h *Hold) openStore(ctx context.Context) (blobstore.Store, error) {
	if err := os.MkdirAll(h.spoolDir(), 0o700); err != nil {
		return nil, fmt.Errorf("HOLD_DATABASE_DIR: %w", err)
	}
	var store blobstore.Store = filesystem.New(h.config.StorageRootDir)
	if h.config.StorageDriver == "s3" {
		var err error
		store, err = s3.New(s3.Config{
			Endpoint: h.config.S3Endpoint, PublicEndpoint: h.config.S3PublicEndpoint, Region: h.config.Region, Bucket: h.config.S3Bucket,
			AccessKeyID: h.config.AccessKeyID, SecretAccessKey: h.config.SecretAccessKey, SpoolDir: h.spoolDir(),
		})
		if err != nil {
			return nil, err
		}
	}
	return store, store.Check(ctx)
}

// openRepo opens the hold's own repo, with the key that belongs to it, and makes its records follow the
// settings.
func (h *Hold) openRepo(ctx context.Context) error {
	var err error
	if h.ledger, err = ledger.Open(ctx, h.db, h.now); err != nil {
		return err
	}
	if h.catalog, err = newCatalog(); err != nil {
		return err
	}
	if h.state, err = openState(ctx, h.db); err != nil {
		return err
	}
	stored, err := pds.DIDs(ctx, h.db)
	if err != nil {
		return err
	}
	if len(stored) == 0 && h.config.Owner == "" && h.repair.archive == nil { // before anything is made
		return errNoOwner
	}
	key, err := h.identify(ctx, stored)
	if err != nil {
		return err
	}
	h.host, err = pds.Open(ctx, pds.Config{
		DB: h.db, Logger: h.log, Now: h.now, ServerDID: h.did, Authorise: h.authoriseWrite, AuthoriseBlob: h.authoriseBlob, Validate: h.catalog.validate,
		Follow: h.follow, Budget: pds.RelayBudget, Reserve: daemon.Reserve,
		MaxSubscribers: h.config.Subscribers, MaxSubscribersEach: h.config.SubscribersPerAddress, SubscriberKey: h.clientNetwork,
		DIDDocument: func(context.Context, syntax.DID) (any, error) { return h.document(), nil },
	})
	if err != nil {
		return err
	}
	if err := h.addRepo(ctx, key, len(stored) > 0); err != nil {
		return err
	}
	if err := h.settleIdentity(ctx); err != nil {
		return err
	}
	if err := h.buildLedger(ctx); err != nil {
		return err
	}
	if err := errors.Join(h.settle(ctx), h.introduce(ctx)); err != nil {
		return err
	}
	h.roster = &roster{repo: h.repo}
	h.repo.OnCommit(h.roster.forget)
	_, err = h.roster.policy(ctx)
	return err
}

// addRepo opens the repo with the key that it was signed with, repaired where that was asked for.
func (h *Hold) addRepo(ctx context.Context, key *atcrypto.PrivateKeyK256, exists bool) error {
	if err := h.repair.run(ctx, h, key); err != nil {
		return err
	}
	var pending *atcrypto.PrivateKeyK256
	var err error
	if exists {
		if key, pending, err = h.chooseKey(ctx, key); err != nil {
			return err
		}
	}
	if err := h.setKey(key); err != nil {
		return err
	}
	h.repo, err = h.host.AddRepo(ctx, h.did, key, h.handle)
	switch {
	case errors.Is(err, pds.ErrOtherKey):
		return fmt.Errorf("%w: HOLD_KEY_PATH %s has another than the one that the newest commit was signed with. Put that file there (a backup has it); where it is lost for good, move this one away and run `atcr-hold repo rebuild --new-key`", err, h.config.KeyPath)
	case errors.Is(err, pds.ErrCorrupt):
		return fmt.Errorf("%w. Restore a backup into empty folders (`atcr-hold restore FILE`); where there is none, `atcr-hold repo rebuild` keeps every record that is whole", err)
	case err != nil || pending == nil:
		return err
	}
	h.log.Warn("a rotation of the signing key was cut short; it goes on")
	return h.rotateKey(ctx)
}

// Handler serves the hold.
func (h *Hold) Handler() http.Handler { return h.handler }

// DID is the hold's DID.
func (h *Hold) DID() syntax.DID { return h.did }

// Close ends what runs in the background and closes the database.
func (h *Hold) Close() error {
	var errs []error
	if h.stop != nil {
		h.stop()
		h.background.Wait()
		h.posts.making.Wait()
	}
	if h.host != nil {
		h.host.Close()
	}
	if h.uploads != nil {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		errs = append(errs, h.uploads.Close(ctx))
	}
	if h.db != nil {
		errs = append(errs, h.db.Close())
	}
	if h.lock != nil {
		errs = append(errs, h.lock.Unlock())
	}
	return errors.Join(errs...)
}
