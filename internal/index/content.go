package index

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync"
	"time"

	"atcr.io/internal/oci"
)

const (
	evictBatch = 64
	// usedEvery is how exact it is known when bytes were asked for last: a write for each would cost more
	// than it is worth.
	usedEvery = time.Hour
)

// content bounds the bytes of manifests that are kept.
type content struct {
	limit int64
	mu    sync.Mutex
	size  int64 // as this process knows it
}

func (x *Index) openContent(ctx context.Context, limit int64) error {
	x.content.limit = limit
	return x.measureContent(ctx)
}

func (x *Index) measureContent(ctx context.Context) error {
	var size sql.NullInt64
	if err := x.db.Reader().QueryRowContext(ctx, `SELECT sum(size) FROM index_content`).Scan(&size); err != nil {
		return err
	}
	x.content.mu.Lock()
	defer x.content.mu.Unlock()
	x.content.size = size.Int64
	return nil
}

// PutContent keeps the bytes of a manifest, which have digest d. Those that were asked for longest ago make
// room.
func (x *Index) PutContent(ctx context.Context, d oci.Digest, raw []byte) error {
	size := int64(len(raw)) + 256 // with what a row takes
	if size > x.content.limit/4 {
		return nil
	}
	fresh := false
	err := x.db.WriteRelaxed(ctx, func(tx *sql.Tx) error {
		result, err := tx.ExecContext(ctx, `INSERT INTO index_content (digest, size, used_at, data) VALUES (?,?,?,?) ON CONFLICT (digest) DO NOTHING`,
			d.String(), size, x.now().UnixMilli(), raw)
		if err != nil {
			return err
		}
		n, err := result.RowsAffected()
		fresh = n > 0
		return err
	})
	if err != nil {
		return fmt.Errorf("keep a manifest: %w", err)
	}
	x.content.mu.Lock()
	if fresh {
		x.content.size += size
	}
	full := x.content.size > x.content.limit
	x.content.mu.Unlock()
	if full {
		return x.evict(ctx)
	}
	return nil
}

// Content is the bytes of a manifest, checked against d; nil where they are not kept.
func (x *Index) Content(ctx context.Context, d oci.Digest) ([]byte, error) {
	var raw []byte
	var used int64
	err := x.db.Reader().QueryRowContext(ctx, `SELECT data, used_at FROM index_content WHERE digest = ?`, d.String()).Scan(&raw, &used)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read a kept manifest: %w", err)
	}
	if !d.Matches(raw) {
		return nil, nil
	}
	if now := x.now(); now.Sub(time.UnixMilli(used)) > usedEvery {
		if err := x.exec(ctx, `UPDATE index_content SET used_at = ? WHERE digest = ?`, now.UnixMilli(), d.String()); err != nil {
			x.log.Warn("a manifest's use could not be noted", "error", err)
		}
	}
	return raw, nil
}

// evict removes what was asked for longest ago until all fits with a tenth to spare.
func (x *Index) evict(ctx context.Context) error {
	if err := x.measureContent(ctx); err != nil { // other processes write too
		return err
	}
	x.content.mu.Lock()
	over := x.content.size - x.content.limit*9/10
	full := x.content.size > x.content.limit
	x.content.mu.Unlock()
	for full && over > 0 {
		freed, err := x.evictSome(ctx, over)
		if err != nil || freed == 0 {
			return err
		}
		over -= freed
		x.content.mu.Lock()
		x.content.size -= freed
		x.content.mu.Unlock()
	}
	return nil
}

func (x *Index) evictSome(ctx context.Context, over int64) (freed int64, err error) {
	err = x.db.WriteRelaxed(ctx, func(tx *sql.Tx) error {
		freed = 0
		rows, err := tx.QueryContext(ctx, `SELECT digest, size FROM index_content ORDER BY used_at, digest LIMIT ?`, evictBatch)
		if err != nil {
			return err
		}
		var doomed []string
		for rows.Next() && freed < over {
			var digest string
			var size int64
			if err := rows.Scan(&digest, &size); err != nil {
				return errors.Join(err, rows.Close())
			}
			doomed, freed = append(doomed, digest), freed+size
		}
		if err := errors.Join(rows.Err(), rows.Close()); err != nil {
			return err
		}
		for _, digest := range doomed {
			if _, err := tx.ExecContext(ctx, `DELETE FROM index_content WHERE digest = ?`, digest); err != nil {
				return err
			}
		}
		return nil
	})
	return freed, err
}
