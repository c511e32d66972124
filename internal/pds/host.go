// Package pds is a repo host: records, the tree over them, signed commits, the firehose, and atproto blobs,
// for one repo (a hold) or several (a development network).
//
// It owns the state of repos and how it is served, and refuses to own identity, permission and the meaning
// of records: who may write is asked of the wiring, and it knows neither crew nor OCI.
//
// Source: https://atproto.com/specs/repository, https://atproto.com/specs/sync
package pds

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bluesky-social/indigo/atproto/atcrypto"
	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/internal/sqldb"
)

// The errors that callers translate.
var (
	// ErrRepoNotFound says: this host has no such repo.
	ErrRepoNotFound = errors.New("no such repo")
	// ErrRecordNotFound says: the repo has no such record.
	ErrRecordNotFound = errors.New("no such record")
	// ErrRecordExists says: a create of a record that is there.
	ErrRecordExists = errors.New("the record exists already")
	// ErrInvalidSwap says: what a swap compared with is not what is there.
	ErrInvalidSwap = errors.New("the record or commit to be swapped is another")
	// ErrInvalidRecord says: a record, path or batch that is not well formed. Its text is for the caller.
	ErrInvalidRecord = errors.New("invalid record")
	// ErrBlobNotFound says: the repo has no such blob.
	ErrBlobNotFound = errors.New("no such blob")
	// ErrCorrupt says: the records in the database are not those that the head was signed over.
	ErrCorrupt = errors.New("the repo in the database is damaged")
	// ErrOtherKey says: the head was signed with another key than the one given.
	ErrOtherKey = errors.New("the key is not the repo's")
)

// Config is what Open needs.
type Config struct {
	DB     *sqldb.DB
	Logger *slog.Logger
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// Authorise says who the caller of a write is, or an *xrpc.Error. It sees every change of the batch.
	// nil refuses all writes over HTTP.
	Authorise func(ctx context.Context, r *http.Request, nsid string, repo *Repo, writes []Write) error
	// Validate holds a record, decoded, against the Lexicon of its collection, where that is known; rkey is ""
	// where it is yet to be given. Its error is for the caller. nil knows none.
	Validate func(collection syntax.NSID, rkey syntax.RecordKey, record map[string]any) (known bool, err error)
	// AuthoriseBlob is the same as Authorise for uploadBlob: the repo that the blob goes to.
	AuthoriseBlob func(ctx context.Context, r *http.Request) (*Repo, error)
	// Follow, where not nil, is called in the transaction of each commit, for tables that follow from records:
	// its error undoes the commit.
	Follow func(ctx context.Context, tx *sql.Tx, did syntax.DID, ops []Op) error
	// ServerDID and Domains are for describeServer.
	ServerDID syntax.DID
	Domains   []string
	// DIDDocument is for describeRepo; it may be nil.
	DIDDocument func(ctx context.Context, did syntax.DID) (any, error)
	// Budget of events; the zero value has no bounds. As it is used up, commits wait for others to share them.
	Budget Budget
	// Reserve, where not nil, is told how many bytes the trees in memory take, about, when that has grown much.
	Reserve func(bytes int64)
	// MaxSubscribers of the firehose; 0 means 100.
	MaxSubscribers int
	// SubscriberKey is what stands for one client, "" for one that is not counted by itself; MaxSubscribersEach
	// is how many such a client may be. nil counts them together alone.
	SubscriberKey      func(r *http.Request) string
	MaxSubscribersEach int
}

// Host has repos and one sequence of events. Safe for concurrent use.
type Host struct {
	config   Config
	db       *sqldb.DB
	log      *slog.Logger
	now      func() time.Time
	events   *events
	spending spending

	subscribers subscribers   // for the caps
	records     atomic.Int64  // in the trees in memory, about
	reserved    atomic.Int64  // of them, what Reserve was told last
	exports     atomic.Int64  // downloads of whole repos, for theirs
	spooling    chan struct{} // a token for each export that reads the database

	mu    sync.RWMutex
	repos map[syntax.DID]*Repo
}

// migrations of the host's tables. Tree nodes are not among them: they follow from the records.
var migrations = []string{`
CREATE TABLE repo (
	did TEXT PRIMARY KEY, handle TEXT NOT NULL, head BLOB NOT NULL, head_block BLOB NOT NULL, data BLOB NOT NULL, rev TEXT NOT NULL
) STRICT;
CREATE TABLE record (
	did TEXT NOT NULL, collection TEXT NOT NULL, rkey TEXT NOT NULL, cid BLOB NOT NULL, value BLOB NOT NULL, rev TEXT NOT NULL,
	PRIMARY KEY (did, collection, rkey)
) STRICT, WITHOUT ROWID;
CREATE TABLE event (seq INTEGER PRIMARY KEY, time INTEGER NOT NULL, frame BLOB NOT NULL) STRICT;
CREATE TABLE atblob (
	did TEXT NOT NULL, cid TEXT NOT NULL, mime TEXT NOT NULL, size INTEGER NOT NULL, created_at INTEGER NOT NULL, data BLOB NOT NULL,
	PRIMARY KEY (did, cid)
) STRICT;
CREATE TABLE atblob_ref (
	did TEXT NOT NULL, cid TEXT NOT NULL, collection TEXT NOT NULL, rkey TEXT NOT NULL, PRIMARY KEY (did, cid, collection, rkey)
) STRICT, WITHOUT ROWID;
CREATE INDEX atblob_ref_record ON atblob_ref (did, collection, rkey);
`}

// Open migrates the tables and checks what is there. Repos are taken up by AddRepo, with their keys.
func Open(ctx context.Context, c Config) (*Host, error) {
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.MaxSubscribers == 0 {
		c.MaxSubscribers = 100
	}
	if err := c.DB.Migrate(ctx, "pds", migrations); err != nil {
		return nil, err
	}
	h := &Host{config: c, db: c.DB, log: c.Logger, now: c.Now, spooling: make(chan struct{}, maxSpooling), repos: map[syntax.DID]*Repo{}}
	var err error
	if h.events, err = openEvents(ctx, c.DB); err != nil {
		return nil, err
	}
	h.spending.budget = c.Budget
	return h, h.spending.load(ctx, c.DB.Reader(), h.now())
}

// Close ends the subscriptions; commits under way end as they would.
func (h *Host) Close() { h.events.close() }

// DIDs are the repos in a database, before a host opens it.
func DIDs(ctx context.Context, db *sqldb.DB) ([]syntax.DID, error) {
	if err := db.Migrate(ctx, "pds", migrations); err != nil {
		return nil, err
	}
	rows, err := db.Reader().QueryContext(ctx, `SELECT did FROM repo ORDER BY did`)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	var out []syntax.DID
	for rows.Next() {
		var did string
		if err := rows.Scan(&did); err != nil {
			return nil, err
		}
		out = append(out, syntax.DID(did))
	}
	return out, rows.Err()
}

// AddRepo takes up the repo of did, and makes it, empty, where the database has none. handle is what
// #identity events say; "" for none.
//
// Errors: ErrCorrupt where the records are not those of the head; ErrOtherKey.
func (h *Host) AddRepo(ctx context.Context, did syntax.DID, key atcrypto.PrivateKey, handle string) (*Repo, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, ok := h.repos[did]; ok {
		return nil, fmt.Errorf("repo %s is open already", did)
	}
	r := &Repo{host: h, did: did, key: key, handle: handle, turn: make(chan struct{}, 1), owned: make(chan struct{}, 1)}
	err := r.load(ctx)
	if errors.Is(err, sql.ErrNoRows) {
		err = r.create(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("repo %s: %w", did, err)
	}
	h.repos[did] = r
	return r, nil
}

// Repo is an open repo. Errors: ErrRepoNotFound.
func (h *Host) Repo(did syntax.DID) (*Repo, error) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	if r, ok := h.repos[did]; ok {
		return r, nil
	}
	return nil, ErrRepoNotFound
}

// repoBy is the repo of a DID or of a handle.
func (h *Host) repoBy(name string) (*Repo, error) {
	if r, err := h.Repo(syntax.DID(name)); err == nil {
		return r, nil
	}
	h.mu.RLock()
	defer h.mu.RUnlock()
	for _, r := range h.repos {
		if r.handle != "" && strings.EqualFold(r.handle, name) {
			return r, nil
		}
	}
	return nil, ErrRepoNotFound
}

// Repos are the open repos, by DID.
func (h *Host) Repos() []*Repo {
	h.mu.RLock()
	defer h.mu.RUnlock()
	out := make([]*Repo, 0, len(h.repos))
	for _, r := range h.repos {
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b *Repo) int {
		if a.did < b.did {
			return -1
		}
		return 1
	})
	return out
}

const (
	recordBytes  = 300    // of a tree in memory, a record
	reserveEvery = 20_000 // records
)

// grow notes that trees have n records more.
func (h *Host) grow(n int64) {
	now, last := h.records.Add(n), h.reserved.Load()
	if h.config.Reserve != nil && now-last >= reserveEvery && h.reserved.CompareAndSwap(last, now) {
		h.config.Reserve((now + reserveEvery) * recordBytes)
	}
}
