// Package ingest reads the network: firehoses as they come, and repos whole where one is new or changes of it
// may have been missed.
//
// It owns what is believed: a commit with its signature and its proof, or a record with the proof that its
// owner's PDS gives. It refuses to own what is made of records: they go to a Sink. Other people's servers may
// send what they like; what is not valid is counted and left out.
//
// Source: https://atproto.com/specs/sync, https://atproto.com/specs/event-stream
package ingest

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"
	"github.com/prometheus/client_golang/prometheus"

	"atcr.io/internal/identity"
	"atcr.io/internal/xrpc"
)

// Repo is what the Sink knows of a repo.
type Repo struct {
	DID      syntax.DID
	PDS      string
	Rev      string
	Data     string // CID of the tree's root at Rev, "" where unknown
	Source   string // the stream that brings its changes, "" where none is known to
	Active   bool
	Complete bool
	Attempts int
	Doubts   int64 // grows with every Mark after which it is to be read whole
}

// Change is a record that was written, or is gone.
type Change struct {
	Collection string
	Rkey       string
	CID        string
	Value      []byte // JSON; nil: it is gone
}

// Commit is changes of a repo that are proved.
type Commit struct {
	DID     syntax.DID
	Rev     string
	Changes []Change
	Source  string
	// InOrder: it is a stream's next one of the repo. Since and PrevData say what it follows, Data what it
	// leads to; PrevData "" says that it is not known whether all changes are named.
	InOrder               bool
	Since, Data, PrevData string
}

// Mark is what became of a repo. One field is set, and what says that it goes with it.
type Mark struct {
	Doubt     bool      // changes may have been missed
	Left      bool      // its stream no longer brings its changes
	Confirmed string    // it stands at this rev, which is known whole, unless there are more doubts by now than Doubts
	RetryAt   time.Time // it could not be read
	Status    string    // of the account: active, deactivated, takendown, suspended, deleted

	Doubts int64 // beside Confirmed: from before the PDS was asked
}

// Sink takes what was read. Safe for concurrent use; writing the same again does no harm.
type Sink interface {
	// Repo is what is known of a repo; false: it is not followed.
	Repo(ctx context.Context, did syntax.DID) (Repo, bool, error)
	// CID of a record that is there, "" for none.
	CID(ctx context.Context, did syntax.DID, collection, rkey string) (string, error)
	// Due are repos that are to be read whole.
	Due(ctx context.Context, limit int) ([]Repo, error)
	Cursor(ctx context.Context, source string) (int64, error)
	// Write makes changes and keeps the cursor of source ("": none), all or nothing.
	Write(ctx context.Context, commits []Commit, source string, cursor int64) error
	// Replace makes a repo what records say, all that it has in the collections. doubts are those from before it was
	// read: with more by now it is to be read again.
	Replace(ctx context.Context, commit Commit, doubts int64) error
	// Meet takes up a repo. handle "" leaves what is known of it, syntax.HandleInvalid says that there is none;
	// source "" leaves it too.
	Meet(ctx context.Context, did syntax.DID, handle syntax.Handle, pds, source string) error
	Mark(ctx context.Context, did syntax.DID, mark Mark) error
	// DoubtSource marks every repo that a stream brings as one of which changes may have been missed.
	DoubtSource(ctx context.Context, source string) error
}

// Directory finds identities: identity.Resolver.
type Directory interface {
	LookupDID(ctx context.Context, did syntax.DID) (*identity.Identity, error)
	Refresh(ctx context.Context, did syntax.DID) (*identity.Identity, error)
	Lookup(ctx context.Context, name syntax.AtIdentifier) (*identity.Identity, error)
}

// Config is what New needs.
type Config struct {
	// Relays are base URLs of relays or PDSes whose subscribeRepos is read, all of them.
	Relays []string
	// Jetstreams are base URLs of Jetstream servers, tried in order; one is read at a time.
	Jetstreams []string
	// Dictionary of Jetstream's zstd compression; nil asks for none.
	Dictionary []byte
	// Collections that are kept, below io.atcr.
	Collections []string
	Directory   Directory
	// Upstream calls the PDSes of people: guarded. Trusted calls Relays and Jetstreams, the operator's choice.
	Upstream, Trusted *http.Client
	Sink              Sink
	Logger            *slog.Logger
	Metrics           prometheus.Registerer // may be nil
	Now               func() time.Time      // nil: time.Now
}

// Ingester reads until its Run ends.
type Ingester struct {
	config   Config
	log      *slog.Logger
	now      func() time.Time
	kept     map[string]bool
	upstream xrpc.Upstream
	trusted  xrpc.Upstream
	metrics  metrics
	wake     chan struct{} // there is a repo to be read
	tripped  breaker

	mu    sync.Mutex
	live  map[string]bool
	heard []func()
	busy  map[syntax.DID]bool // repos that are being read
}

const (
	namespace = "io.atcr."
	// JetstreamSource is the name of what is heard from whichever Jetstream.
	JetstreamSource = "jetstream"
	// futureRev is how far ahead of our clock a commit may be.
	futureRev = 5 * time.Minute
)

// New makes an Ingester.
func New(c Config) (*Ingester, error) {
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	i := &Ingester{
		config: c, log: c.Logger, now: c.Now, kept: map[string]bool{}, upstream: xrpc.Upstream{Client: c.Upstream}, trusted: xrpc.Upstream{Client: c.Trusted},
		wake: make(chan struct{}, 1), live: map[string]bool{}, busy: map[syntax.DID]bool{}, tripped: breaker{now: c.Now},
	}
	for _, collection := range c.Collections {
		if !strings.HasPrefix(collection, namespace) {
			return nil, errors.New("a collection is not below " + namespace)
		}
		i.kept[collection] = true
	}
	return i, i.metrics.open(c.Metrics, i)
}

// Run reads all streams, and repos that are to be read whole, until ctx ends.
func (i *Ingester) Run(ctx context.Context) {
	var running sync.WaitGroup
	for _, base := range i.config.Relays {
		running.Go(func() { i.follow(ctx, &relayStream{ingester: i, base: base}) })
	}
	if len(i.config.Jetstreams) > 0 {
		running.Go(func() { i.follow(ctx, &jetstream{ingester: i}) })
	}
	for range backfillWorkers {
		running.Go(func() { i.backfill(ctx) })
	}
	running.Wait()
}

// Live tells whether a stream is connected and up to date: what it did not bring has not happened.
func (i *Ingester) Live(source string) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return source != "" && i.live[source]
}

// OnLive has fn called when a stream becomes live or stops being so.
func (i *Ingester) OnLive(fn func()) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.heard = append(i.heard, fn)
}

func (i *Ingester) setLive(source string, live bool) {
	i.mu.Lock()
	changed := i.live[source] != live
	i.live[source] = live
	heard := i.heard
	i.mu.Unlock()
	if !changed {
		return
	}
	i.log.Info("a firehose", "source", source, "live", live)
	for _, fn := range heard {
		fn()
	}
}

// lateness is a timer that has a stream not be live while what it brought is not followed: while a PDS that is asked
// does not answer, or the Sink does not take it. It is not running yet.
func (i *Ingester) lateness(source string) *time.Timer {
	late := time.AfterFunc(time.Hour, func() { i.setLive(source, false) })
	late.Stop()
	return late
}

func (i *Ingester) poke() {
	select {
	case i.wake <- struct{}{}:
	default:
	}
}

// Poke says that there may be a repo to be read.
func (i *Ingester) Poke() { i.poke() }

// stream is a firehose.
type stream interface {
	name() string
	// run reads until ctx ends or the connection breaks. read tells whether anything came.
	run(ctx context.Context) (read bool, err error)
}

const (
	firstPause   = 500 * time.Millisecond
	longestPause = time.Minute
)

// follow runs a stream again and again, with a pause that grows while nothing comes.
func (i *Ingester) follow(ctx context.Context, s stream) {
	pause := firstPause
	for ctx.Err() == nil {
		read, err := s.run(ctx)
		i.setLive(s.name(), false)
		if ctx.Err() != nil {
			return
		}
		i.metrics.reconnects.Inc()
		if read {
			pause = firstPause
		}
		i.log.Warn("a firehose broke off", "source", s.name(), "again_in", pause, "error", err)
		if !sleep(ctx, jitter(pause)) {
			return
		}
		pause = min(2*pause, longestPause)
	}
}
