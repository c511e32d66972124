package appview

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/api/atcr"
	"atcr.io/internal/oci"
	"atcr.io/internal/registry"
	"atcr.io/internal/sqldb"
	"atcr.io/internal/xrpc"
)

const (
	// pullsEvery is how often counts are written down and looked through.
	pullsEvery = 2 * time.Second
	// pullsGathered is how long pulls of a repository are gathered: holds take one message a minute.
	pullsGathered = 61 * time.Second
	pullsLease    = time.Minute // within which a claimed count is sent
	pullsLongest  = time.Hour   // between attempts
	pullsBatch    = 100
	// pullsFresh bounds the repositories that are pulled from between two looks.
	pullsFresh = 50_000
	// pullsRefused is how long a hold that takes no counts of ours is not told.
	pullsRefused  = time.Hour
	maxPullsAtOne = 1_000_000
)

var pullMigrations = []string{`
CREATE TABLE pull_count (
	hold TEXT NOT NULL, owner TEXT NOT NULL, repository TEXT NOT NULL, digest TEXT NOT NULL, media_type TEXT NOT NULL,
	pulls INTEGER NOT NULL, due_at INTEGER NOT NULL, attempts INTEGER NOT NULL, PRIMARY KEY (hold, owner, repository)
) STRICT, WITHOUT ROWID;
CREATE INDEX pull_count_due ON pull_count (due_at);
`}

// pullKey is a repository whose image is at a hold.
type pullKey struct {
	hold, owner syntax.DID
	repository  string
}

// pull is the last manifest that was pulled of it.
type pull struct {
	digest, mediaType string
	count             int64
}

// pulls counts pulls, and tells holds of them in the AppView's own name, gathered. What a hold could not be told
// stays in the database, added up: it is never dropped, and never grows but by repositories.
//
// Source: contract, "notifyManifest", pull.
type pulls struct {
	db       *sqldb.DB
	self     *self
	holds    *holds
	upstream xrpc.Upstream
	logger   *slog.Logger
	clock    clock

	mu      sync.Mutex
	fresh   map[pullKey]pull
	refused map[syntax.DID]time.Time
}

func openPulls(ctx context.Context, db *sqldb.DB, s *self, h *holds, u xrpc.Upstream, logger *slog.Logger, now clock) (*pulls, error) {
	if err := db.Migrate(ctx, "pull_count", pullMigrations); err != nil {
		return nil, err
	}
	return &pulls{db: db, self: s, holds: h, upstream: u, logger: logger, clock: now, fresh: map[pullKey]pull{}, refused: map[syntax.DID]time.Time{}}, nil
}

// isIndex tells whether a manifest names others: of a pull that goes through it, the one that is chosen counts.
func isIndex(mediaType string) bool {
	return mediaType == oci.MediaTypeImageIndex || mediaType == oci.MediaTypeDockerManifestList
}

// count counts one pull.
func (p *pulls) count(key pullKey, m registry.Manifest) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now, ok := p.fresh[key]
	if !ok && len(p.fresh) >= pullsFresh {
		return
	}
	p.fresh[key] = pull{digest: m.Digest.String(), mediaType: m.MediaType, count: now.count + 1}
}

// take empties what was counted since the last look.
func (p *pulls) take() map[pullKey]pull {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.fresh) == 0 {
		return nil
	}
	out := p.fresh
	p.fresh = map[pullKey]pull{}
	now := p.clock()
	for hold, until := range p.refused {
		if !now.Before(until) {
			delete(p.refused, hold)
		}
	}
	for key := range out {
		if _, no := p.refused[key.hold]; no {
			delete(out, key)
		}
	}
	return out
}

// keep writes down what was counted. On an error it is counted again.
func (p *pulls) keep(ctx context.Context) error {
	counted := p.take()
	if len(counted) == 0 {
		return nil
	}
	due := p.clock().Add(pullsGathered).UnixMilli()
	err := p.db.WriteRelaxed(ctx, func(tx *sql.Tx) error {
		for key, c := range counted {
			_, err := tx.ExecContext(ctx, `INSERT INTO pull_count (hold, owner, repository, digest, media_type, pulls, due_at, attempts) VALUES (?,?,?,?,?,?,?,0)
				ON CONFLICT (hold, owner, repository) DO UPDATE SET pulls = pull_count.pulls + excluded.pulls, digest = excluded.digest, media_type = excluded.media_type`,
				key.hold.String(), key.owner.String(), key.repository, c.digest, c.mediaType, c.count, due)
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for key, c := range counted {
		c.count += p.fresh[key].count
		p.fresh[key] = c
	}
	return fmt.Errorf("keep counts of pulls: %w", err)
}

// step writes down what was counted, and tells the holds whose time has come.
func (p *pulls) step(ctx context.Context) {
	err := p.keep(ctx)
	if err == nil {
		err = p.send(ctx)
	}
	if err != nil && ctx.Err() == nil {
		p.logger.Error("count pulls", "error", err)
	}
}

// waiting is a row of the table.
type waiting struct {
	key      pullKey
	pull     pull
	due      int64
	attempts int
}

func (p *pulls) send(ctx context.Context) error {
	due, err := p.due(ctx)
	if err != nil {
		return err
	}
	failed := map[syntax.DID]bool{}
	for _, w := range due {
		if failed[w.key.hold] || ctx.Err() != nil {
			continue
		}
		mine, err := p.claim(ctx, w)
		if err != nil {
			return err
		}
		if !mine {
			continue // another process has it
		}
		sent := min(w.pull.count, maxPullsAtOne)
		switch err := p.tell(ctx, w.key, w.pull, sent); {
		case err == nil:
			err = p.settle(ctx, w.key, sent)
			if err != nil {
				return err
			}
		case refusesPulls(err):
			p.logger.Info("a hold takes no counts of pulls from here", "hold", w.key.hold.String(), "error", err)
			if err := p.giveUp(ctx, w.key.hold); err != nil {
				return err
			}
			failed[w.key.hold] = true
		case ctx.Err() == nil:
			p.logger.Info("a hold is told of pulls again later", "hold", w.key.hold.String(), "attempts", w.attempts+1, "error", err)
			if err := p.postpone(ctx, w); err != nil {
				return err
			}
			failed[w.key.hold] = true
		}
	}
	return nil
}

func (p *pulls) due(ctx context.Context) ([]waiting, error) {
	rows, err := p.db.Reader().QueryContext(ctx, `SELECT hold, owner, repository, digest, media_type, pulls, due_at, attempts FROM pull_count
		WHERE due_at <= ? ORDER BY due_at LIMIT ?`, p.clock().UnixMilli(), pullsBatch)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	var out []waiting
	for rows.Next() {
		var w waiting
		var hold, owner string
		if err := rows.Scan(&hold, &owner, &w.key.repository, &w.pull.digest, &w.pull.mediaType, &w.pull.count, &w.due, &w.attempts); err != nil {
			return nil, err
		}
		w.key.hold, w.key.owner = syntax.DID(hold), syntax.DID(owner)
		out = append(out, w)
	}
	return out, rows.Err()
}

// claim makes a row this process's for a while.
func (p *pulls) claim(ctx context.Context, w waiting) (mine bool, err error) {
	err = p.db.WriteRelaxed(ctx, func(tx *sql.Tx) error {
		result, err := tx.ExecContext(ctx, `UPDATE pull_count SET due_at = ? WHERE hold = ? AND owner = ? AND repository = ? AND due_at = ?`,
			p.clock().Add(pullsLease).UnixMilli(), w.key.hold.String(), w.key.owner.String(), w.key.repository, w.due)
		if err != nil {
			return err
		}
		n, err := result.RowsAffected()
		mine = n == 1
		return err
	})
	return mine, err
}

// settle takes away what was told; pulls that came meanwhile wait their minute.
func (p *pulls) settle(ctx context.Context, key pullKey, sent int64) error {
	ctx = context.WithoutCancel(ctx) // it was told
	return p.db.WriteRelaxed(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `UPDATE pull_count SET pulls = pulls - ?, attempts = 0, due_at = ? WHERE hold = ? AND owner = ? AND repository = ?`,
			sent, p.clock().Add(pullsGathered).UnixMilli(), key.hold.String(), key.owner.String(), key.repository)
		if err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, `DELETE FROM pull_count WHERE pulls <= 0 AND hold = ? AND owner = ? AND repository = ?`,
			key.hold.String(), key.owner.String(), key.repository)
		return err
	})
}

// postpone has all that a hold is to be told wait.
func (p *pulls) postpone(ctx context.Context, w waiting) error {
	now := p.clock()
	next := now.Add(min(pullsGathered<<min(w.attempts, 10), pullsLongest)).UnixMilli()
	return p.db.WriteRelaxed(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `UPDATE pull_count SET due_at = ?, attempts = attempts + 1 WHERE hold = ? AND due_at <= ?`,
			next, w.key.hold.String(), now.Add(pullsLease).UnixMilli())
		return err
	})
}

// giveUp forgets what a hold does not want to know.
func (p *pulls) giveUp(ctx context.Context, hold syntax.DID) error {
	p.mu.Lock()
	p.refused[hold] = p.clock().Add(pullsRefused)
	p.mu.Unlock()
	return p.db.WriteRelaxed(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `DELETE FROM pull_count WHERE hold = ?`, hold.String())
		return err
	})
}

// refusesPulls tells whether a hold will not be told, tomorrow either. What has no name is a proxy's, whose hold is away.
func refusesPulls(err error) bool {
	e, ok := errors.AsType[*xrpc.UpstreamError](err)
	return ok && !e.Invalid && e.Name != "" && (e.Status == http.StatusForbidden || e.Status == http.StatusNotFound ||
		e.Status == http.StatusMethodNotAllowed || e.Status == http.StatusNotImplemented)
}

// tell sends one message.
func (p *pulls) tell(ctx context.Context, key pullKey, what pull, count int64) error {
	ctx, cancel := context.WithTimeout(ctx, pullsLease/2)
	defer cancel()
	at, err := p.holds.find(ctx, key.hold)
	if err != nil {
		return err
	}
	body, err := json.Marshal(pulled(key, what, count))
	if err != nil {
		return err
	}
	for _, audience := range []syntax.DID{key.hold + "#atcr_hold", key.hold} { // some take the one, some the other
		token, tokenErr := p.self.token(audience, atcr.HoldNotifyManifestNSID)
		if tokenErr != nil {
			return tokenErr
		}
		var call xrpc.UpstreamCall
		if call, err = xrpc.JSONCall(at.URL, atcr.HoldNotifyManifestNSID, token, json.RawMessage(body)); err != nil {
			return err
		}
		err = p.upstream.JSON(ctx, call, nil)
		if e, ok := errors.AsType[*xrpc.UpstreamError](err); !ok || e.Status != http.StatusUnauthorized {
			return err
		}
	}
	return err
}
