package appview

import (
	"context"
	"database/sql"
	"fmt"
	"sync"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/internal/oci"
	"atcr.io/internal/sqldb"
)

// deletedFor is how long a blob that was deleted in a repository is not there, unless it is pushed again. By
// then a hold has collected one that nothing names.
const deletedFor = 48 * time.Hour

// deletedMax bounds what is remembered of all repositories.
const deletedMax = 100_000

var deletedMigrations = []string{`
CREATE TABLE deleted_blob (
	did TEXT NOT NULL, repository TEXT NOT NULL, digest TEXT NOT NULL, deleted_at INTEGER NOT NULL, PRIMARY KEY (did, repository, digest)
) STRICT, WITHOUT ROWID;
`}

// deletedBlobs are blobs that were deleted in a repository. The bytes are the hold's, and stay for every other
// repository that has them.
type deletedBlobs struct {
	db    *sqldb.DB
	clock clock

	mu sync.RWMutex
	at map[blobKey]time.Time
}

func newDeletedBlobs(ctx context.Context, db *sqldb.DB, now clock) (*deletedBlobs, error) {
	if err := db.Migrate(ctx, "deleted_blob", deletedMigrations); err != nil {
		return nil, err
	}
	d := &deletedBlobs{db: db, clock: now, at: map[blobKey]time.Time{}}
	rows, err := db.Reader().QueryContext(ctx, `SELECT did, repository, digest, deleted_at FROM deleted_blob WHERE deleted_at > ? LIMIT ?`,
		now().Add(-deletedFor).UnixMilli(), deletedMax)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var did, repository, digest string
		var at int64
		if err := rows.Scan(&did, &repository, &digest, &at); err != nil {
			return nil, err
		}
		d.at[blobKey{syntax.DID(did), repository, oci.Digest(digest)}] = time.UnixMilli(at)
	}
	return d, rows.Err()
}

// has tells whether the blob was deleted there.
func (d *deletedBlobs) has(key blobKey) bool {
	d.mu.RLock()
	defer d.mu.RUnlock()
	at, ok := d.at[key]
	return ok && d.clock().Sub(at) < deletedFor
}

// add deletes it. Errors: *oci.Error where too many are remembered.
func (d *deletedBlobs) add(ctx context.Context, key blobKey) error {
	now := d.clock()
	if err := d.expire(ctx, now); err != nil {
		return err
	}
	err := d.db.WriteRelaxed(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `INSERT INTO deleted_blob (did, repository, digest, deleted_at) VALUES (?,?,?,?)
			ON CONFLICT DO UPDATE SET deleted_at = excluded.deleted_at`, key.did.String(), key.repository, key.digest.String(), now.UnixMilli())
		return err
	})
	if err != nil {
		return fmt.Errorf("delete blob: %w", err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.at[key] = now
	return nil
}

// expire forgets those that are over, when there are many.
func (d *deletedBlobs) expire(ctx context.Context, now time.Time) error {
	d.mu.Lock()
	if len(d.at) < deletedMax/2 {
		d.mu.Unlock()
		return nil
	}
	for key, at := range d.at {
		if now.Sub(at) >= deletedFor {
			delete(d.at, key)
		}
	}
	full := len(d.at) >= deletedMax
	d.mu.Unlock()
	if full {
		return &oci.Error{Code: oci.CodeTooManyRequests, Message: "too many blobs were deleted in the last days: try again later", RetryAfter: time.Hour}
	}
	return d.db.WriteRelaxed(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `DELETE FROM deleted_blob WHERE deleted_at <= ?`, now.Add(-deletedFor).UnixMilli())
		return err
	})
}

// restore takes the deletion back: the blob came again.
func (d *deletedBlobs) restore(ctx context.Context, key blobKey) error {
	if !d.has(key) {
		return nil
	}
	err := d.db.WriteRelaxed(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `DELETE FROM deleted_blob WHERE did = ? AND repository = ? AND digest = ?`, key.did.String(), key.repository, key.digest.String())
		return err
	})
	if err != nil {
		return fmt.Errorf("restore blob: %w", err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.at, key)
	return nil
}
