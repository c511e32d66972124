// Package index is the AppView's view of the network: what people's records say, in tables that pages and
// pulls can ask.
//
// It owns those tables, the order in which what it is told counts, and the reading of records that others
// wrote: badly written ones are kept out and counted. It refuses to own where records come from and whether
// they are to be believed. All of it can be lost: `atcr-appview reindex` makes it anew.
package index

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"
	"github.com/prometheus/client_golang/prometheus"

	"atcr.io/internal/sqldb"
)

// Config is what Open needs.
type Config struct {
	DB *sqldb.DB
	// ContentBytes bounds the bytes of manifests that are kept; 0 keeps none.
	ContentBytes int64
	Logger       *slog.Logger
	Metrics      prometheus.Registerer // may be nil
	Now          func() time.Time      // nil: time.Now
}

// Index is an open index. Safe for concurrent use, by several processes on one database too.
type Index struct {
	db       *sqldb.DB
	log      *slog.Logger
	now      func() time.Time
	content  content
	rejected *prometheus.CounterVec
	stale    prometheus.Counter

	mu        sync.Mutex
	listeners []func([]Touched)
}

// Touched is a record that may have changed, for those who keep copies. Repository and Tag are those that it
// had or has; a tag that moved to another name is touched twice. Without a Collection it is all of a repo, and
// without a DID everything.
type Touched struct {
	DID        syntax.DID
	Collection string
	Rkey       string
	Repository string
	Tag        string
}

// Open migrates the tables.
func Open(ctx context.Context, c Config) (*Index, error) {
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if err := c.DB.Migrate(ctx, "index", migrations); err != nil {
		return nil, err
	}
	x := &Index{db: c.DB, log: c.Logger, now: c.Now}
	x.rejected = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "atcr_appview_index_rejected_records_total", Help: "Records of others that are not well formed and were kept out, by collection.",
	}, []string{"collection"})
	x.stale = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "atcr_appview_index_stale_changes_total", Help: "Changes that came again, or after a newer one, and were left out.",
	})
	if c.Metrics != nil {
		if err := errors.Join(c.Metrics.Register(x.rejected), c.Metrics.Register(x.stale)); err != nil {
			return nil, err
		}
	}
	if err := x.openContent(ctx, c.ContentBytes); err != nil {
		return nil, fmt.Errorf("open index: %w", err)
	}
	return x, nil
}

// OnChange has fn called after each write that touched something, by the one who wrote: it must be quick.
func (x *Index) OnChange(fn func([]Touched)) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.listeners = append(x.listeners, fn)
}

// Tell passes on what another process of this AppView touched.
func (x *Index) Tell(touched []Touched) {
	if len(touched) == 0 {
		return
	}
	x.mu.Lock()
	listeners := x.listeners
	x.mu.Unlock()
	for _, fn := range listeners {
		fn(touched)
	}
}

// keepTombstones is how long it is remembered that a record is gone: longer than a firehose can be asked for.
const keepTombstones = 7 * 24 * time.Hour

// Maintain removes what is no longer needed, a bounded number a call.
func (x *Index) Maintain(ctx context.Context) error {
	if err := x.exec(ctx, `DELETE FROM index_gone WHERE gone_at < ?`, x.now().Add(-keepTombstones).UnixMilli()); err != nil {
		return err
	}
	return x.evict(ctx)
}
