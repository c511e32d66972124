// Package upload takes bytes in and knows which blobs a hold has: upload sessions (streamed, in parts
// through the hold, or in parts straight to the storage), the running hash, completion, expiry, and the
// blob index.
//
// It owns the rule that a digest is readable only after the hold itself hashed its bytes, and the order
// in which bytes, pointer and index row become durable. It refuses to own permissions, quotas (a hook
// asks the wiring) and where the bytes lie: that is blobstore's.
package upload

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"
	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/prometheus/client_golang/prometheus"

	"atcr.io/internal/blobstore"
	"atcr.io/internal/oci"
	"atcr.io/internal/sqldb"
)

// The errors that callers translate. Storage errors (blobstore.ErrNoSpace above all) pass as they are.
var (
	// ErrUnknown says: no such upload, or somebody else's: the two are not told apart.
	ErrUnknown = errors.New("no such upload")
	// ErrRange says: the bytes do not begin where the upload stands; the error is a *RangeError.
	ErrRange = errors.New("the bytes do not begin where the upload stands")
	// ErrDigestMismatch says: the bytes have another digest than the one named; they were thrown away.
	ErrDigestMismatch = errors.New("the bytes do not have that digest")
	// ErrAlgorithm says: the digest's algorithm was not announced and the upload is too large to be read again.
	ErrAlgorithm = errors.New("the digest algorithm was not announced")
	// ErrMissingParts says: the parts named at completion are not those that arrived.
	ErrMissingParts = errors.New("the parts named are not those that arrived")
	// ErrPartNumber says: a part number that cannot be taken (now); mostly a *PartNumberError.
	ErrPartNumber = errors.New("the part number cannot be taken")
	// ErrPartDiffers says: a part was sent again with other bytes.
	ErrPartDiffers = errors.New("the part was sent before with other bytes")
	// ErrMixed says: an upload goes by its URL, by parts, or by presigned parts, never by two of them.
	ErrMixed = errors.New("the upload was begun in another way")
	// ErrNoPresign says: the storage cannot take parts directly, or must not.
	ErrNoPresign = errors.New("the storage takes no presigned parts")
	// ErrQuota says: the hook refused the upload, which is gone; it wraps the *Refused.
	ErrQuota = errors.New("the quota is used up")
	// ErrTooLarge says: more than Config.MaxBlobBytes; the upload is gone.
	ErrTooLarge = errors.New("the blob is too large")
	// ErrTooManyOpen says: too many unfinished uploads, of this owner or in all.
	ErrTooManyOpen = errors.New("too many uploads are open")
	// ErrBusy says: the upload is being written to by another request.
	ErrBusy = errors.New("the upload is busy")
	// ErrInvalid says: options that Begin does not take.
	ErrInvalid = errors.New("the upload cannot be begun so")
	// ErrBrokenOff says: the body ended with an error, which is wrapped; what came before it is kept.
	ErrBrokenOff = errors.New("the bytes broke off")
	// ErrClosed says: the hold is stopping; the upload can be resumed after its restart.
	ErrClosed = errors.New("the hold is stopping")
	// ErrJoining says: the blob is durable, and the storage has not made an object of its parts in all the time that
	// one can wait. It goes on.
	ErrJoining = errors.New("the storage is still at joining the parts of this blob: try again in a moment")
	// ErrNoBlob says: the index has no such blob that this viewer may see.
	ErrNoBlob = errors.New("no such blob")
)

// RangeError is ErrRange with the offset at which the upload stands.
type RangeError struct{ Offset int64 }

func (e *RangeError) Error() string {
	return fmt.Sprintf("the upload stands at byte %d: go on from there", e.Offset)
}

// Is makes it an ErrRange.
func (e *RangeError) Is(target error) bool { return target == ErrRange }

// PartNumberError is ErrPartNumber with the number that is expected next.
type PartNumberError struct{ Next int }

func (e *PartNumberError) Error() string {
	return fmt.Sprintf("send parts in order: next is %d", e.Next)
}

// Is makes it an ErrPartNumber.
func (e *PartNumberError) Is(target error) bool { return target == ErrPartNumber }

// The ages at which things end.
const (
	// OpenFor is how long an upload may take.
	OpenFor = 24 * time.Hour
	// IdleFor is how long an upload that is streamed may go without bytes.
	IdleFor = time.Hour
	// RememberFor is how long a finished upload answers again with the same result.
	RememberFor = 24 * time.Hour
	// UnverifiedFor is how long a blob may stay unverified.
	UnverifiedFor = 48 * time.Hour
)

const (
	maxPartNumber     = 10_000
	maxSpoolParts     = 32        // a session's parts ahead of their turn
	maxSpoolBytes     = 256 << 20 // a session's
	maxSpoolTotal     = 1 << 30   // of all sessions
	maxReadBackBytes  = 64 << 20  // hashed again when sha512 shows only at the end
	maxInlineBytes    = 32 << 20  // presigned uploads up to this are hashed in the request
	maxLocationBytes  = 2048
	checkpointBytes   = 256 << 20       // a crash costs a stream at most this much
	checkpointPause   = 5 * time.Second // or, if that is more, what came in this time
	cachedBlobs       = 8192
	idleWriterFor     = time.Minute // then its file or buffers are given back
	detachedFor       = 2 * time.Minute
	joinWait          = 20 * time.Second // less than the 30 for which AppViews wait for a hold
	joinPause         = time.Second
	joinPauseMost     = 10 * time.Second // less than joinWait
	joinFor           = 15 * time.Minute // a try
	joinsAtOnce       = 16
	joinGrace         = 5 * time.Second  // how long a hold that stops waits for the storage
	joinLostAfter     = 15 * time.Minute // of tries in which the storage has neither the parts nor the object
	verifyRetryPause  = time.Minute
	touchEvery        = time.Hour
	partURLValid      = time.Hour
	emptySessionGrace = 5 * time.Minute
)

// Config is what Open needs. Zero limits mean their defaults.
type Config struct {
	DB     *sqldb.DB
	Store  blobstore.Store
	Logger *slog.Logger
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// Metrics may be nil.
	Metrics prometheus.Registerer
	// Named says whether a manifest of did names d: the wiring's word for it, which it also gives by Naming at
	// each change. nil: none does.
	Named func(ctx context.Context, q Queryer, did syntax.DID, d oci.Digest) (bool, error)
	// Allow says whether owner may have bytes in unfinished uploads beside what the index says they
	// uploaded (see Usage). It is asked as bytes arrive, at least once a MiB, and at the end, so it must be quick. A
	// *Refused cuts the upload with ErrQuota; after another error it can go on. nil allows everything.
	Allow func(ctx context.Context, owner syntax.DID, bytes int64) error
	// Stored is told of each upload that was completed, before it ceases to be asked about by Allow. It must be
	// quick. nil: nobody is told.
	Stored func(owner syntax.DID, bytes int64)
	// NoPresign keeps every byte passing through the hold, whatever the storage can.
	NoPresign bool
	// SpoolDir is where parts ahead of their turn wait, in files without a name; "" means the system's.
	SpoolDir string
	// MaxOpenPerOwner (100) and MaxOpen (1,000) bound unfinished uploads.
	MaxOpenPerOwner int
	MaxOpen         int
	// MaxBlobBytes (256 GiB) bounds one blob.
	MaxBlobBytes int64
	// SweepEvery (1 min) is the pause between two rounds of Sweep.
	SweepEvery time.Duration
	// JoinWait (20 s) is how long who asks for a blob waits for the storage to make an object of it.
	JoinWait time.Duration

	joinPause time.Duration // between two tries to have it joined, at first
}

// database is what of *sqldb.DB is used; tests put faults in front of it.
type database interface {
	Write(ctx context.Context, fn func(tx *sql.Tx) error) error
	WriteRelaxed(ctx context.Context, fn func(tx *sql.Tx) error) error
	Reader() *sql.DB
}

// Uploads has the upload sessions and the blob index of one hold. Safe for concurrent use.
type Uploads struct {
	cfg        Config
	db         database
	store      blobstore.Store
	log        *slog.Logger
	now        func() time.Time
	metrics    *metrics
	cache      *lru.Cache[oci.Digest, Blob] // verified rows alone
	digests    keyedLock
	joins      joins
	joining    chan struct{} // a token for each that the storage is at
	deletions  deletions
	rebuilding sync.Mutex   // one Rebuild at a time
	epoch      atomic.Int64 // rises when a row was changed, so that no reader puts the old one into the cache

	mu        sync.Mutex
	byID      map[string]*session
	bySecret  map[[32]byte]*session
	verifying map[string]chan struct{} // keys of unverified blobs that are being read; closed when that is over
	spooled   int64                    // bytes in spool files
	closing   bool

	inflight        sync.WaitGroup
	workers         sync.WaitGroup
	background      context.Context //nolint:containedctx // ends when the hold stops
	stop            context.CancelFunc
	waiting         context.Context //nolint:containedctx // ends when nobody is to wait for a join any more
	endWaiting      context.CancelFunc
	wakeVerify      chan struct{}
	checkpoint      int64
	checkpointPause time.Duration
	inline          int64
}

// Open migrates the tables, takes up the unfinished uploads of an earlier process, and starts the
// background work: expiry and the verification of presigned uploads. ctx bounds the opening alone.
func Open(ctx context.Context, cfg Config) (*Uploads, error) {
	if err := cfg.DB.Migrate(ctx, "upload", migrations); err != nil {
		return nil, err
	}
	return open(ctx, cfg, cfg.DB)
}

func open(ctx context.Context, cfg Config, db database) (*Uploads, error) {
	setDefault(&cfg.MaxOpenPerOwner, 100)
	setDefault(&cfg.MaxOpen, 1000)
	setDefault(&cfg.MaxBlobBytes, 256<<30)
	setDefault(&cfg.SweepEvery, time.Minute)
	setDefault(&cfg.JoinWait, joinWait)
	setDefault(&cfg.joinPause, joinPause)
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if cfg.SpoolDir == "" {
		cfg.SpoolDir = os.TempDir()
	}
	cache, err := lru.New[oci.Digest, Blob](cachedBlobs)
	if err != nil {
		return nil, err
	}
	u := &Uploads{
		cfg: cfg, db: db, store: cfg.Store, log: cfg.Logger, now: cfg.Now, cache: cache,
		byID: map[string]*session{}, bySecret: map[[32]byte]*session{}, verifying: map[string]chan struct{}{},
		wakeVerify: make(chan struct{}, 1), checkpoint: checkpointBytes, checkpointPause: checkpointPause, inline: maxInlineBytes, joining: make(chan struct{}, joinsAtOnce),
	}
	if err := u.loadSessions(ctx); err != nil {
		return nil, fmt.Errorf("load unfinished uploads: %w", err)
	}
	if err := db.Write(ctx, func(tx *sql.Tx) error { return u.settleNamed(ctx, tx) }); err != nil {
		return nil, fmt.Errorf("count what is in use: %w", err)
	}
	u.metrics = newMetrics(cfg.Metrics, u.countOpen, u.joins.count)
	background, stop := context.WithCancel(context.Background())
	u.background, u.stop = background, stop
	u.waiting, u.endWaiting = context.WithCancel(background)
	u.mu.Lock()
	sessions := u.sessionsLocked()
	u.mu.Unlock()
	for _, s := range sessions {
		if s.joins != "" {
			u.goJoin(s)
		}
	}
	u.workers.Go(func() { u.sweepLoop(background) })
	u.workers.Go(func() { u.verifyLoop(background) })
	return u, nil
}

func setDefault[T int | int64 | time.Duration](v *T, def T) {
	if *v <= 0 {
		*v = def
	}
}

// StopWaiting has whoever waits for a join, or would, be answered with ErrClosed at once. It is for a hold that is about to
// stop, which lets its requests in flight end before Close.
func (u *Uploads) StopWaiting() { u.endWaiting() }

// Close ends the background work, lets running calls keep what arrived (their bodies end with ErrClosed),
// and gives the files back. Unfinished uploads can be resumed by the next Open. Errors: ctx's.
func (u *Uploads) Close(ctx context.Context) error {
	u.mu.Lock()
	u.closing = true
	sessions := u.sessionsLocked()
	u.mu.Unlock()
	u.stop()
	for _, s := range sessions {
		s.stopping.Store(true)
	}
	done := make(chan struct{})
	go func() {
		u.inflight.Wait()
		u.workers.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-ctx.Done():
		return fmt.Errorf("close uploads: %w", ctx.Err())
	}
	for _, s := range sessions {
		u.releaseFiles(s)
	}
	return nil
}

// enter counts a call as running, so that Close waits for it.
func (u *Uploads) enter() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.closing {
		return ErrClosed
	}
	u.inflight.Add(1)
	return nil
}

func (u *Uploads) sessionsLocked() []*session {
	all := make([]*session, 0, len(u.byID))
	for _, s := range u.byID {
		all = append(all, s)
	}
	return all
}

func (u *Uploads) countOpen() float64 {
	u.mu.Lock()
	defer u.mu.Unlock()
	return float64(len(u.byID))
}

// detached is a context for what must be finished although the client may be gone.
func detached(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), detachedFor)
}

// keyedLock is one mutex a digest.
type keyedLock struct {
	mu   sync.Mutex
	held map[oci.Digest]*keyedEntry
}

type keyedEntry struct {
	turn chan struct{}
	refs int
}

// lock waits for d and returns what releases it. Errors: ctx's.
func (k *keyedLock) lock(ctx context.Context, d oci.Digest) (func(), error) {
	k.mu.Lock()
	if k.held == nil {
		k.held = map[oci.Digest]*keyedEntry{}
	}
	e := k.held[d]
	if e == nil {
		e = &keyedEntry{turn: make(chan struct{}, 1)}
		k.held[d] = e
	}
	e.refs++
	k.mu.Unlock()
	leave := func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		if e.refs--; e.refs == 0 {
			delete(k.held, d)
		}
	}
	select {
	case e.turn <- struct{}{}:
		return func() { <-e.turn; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, ctx.Err()
	}
}
