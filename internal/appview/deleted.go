package appview

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"hash/maphash"
	"sync"
	"time"

	"atcr.io/internal/index"
	"atcr.io/internal/oci"
	"atcr.io/internal/sqldb"
)

// deletedFor is how long a blob that was deleted in a repository is not there, unless it is pushed again. By
// then a hold has collected one that nothing names.
const deletedFor = 48 * time.Hour

// deletedMax bounds what is remembered of all repositories, deletedOwn of one person's.
const (
	deletedMax = 100_000
	deletedOwn = 5_000
)

var deletedMigrations = []string{`
CREATE TABLE deleted_blob (
	did TEXT NOT NULL, repository TEXT NOT NULL, digest TEXT NOT NULL, deleted_at INTEGER NOT NULL, PRIMARY KEY (did, repository, digest)
) STRICT, WITHOUT ROWID;
`, `
CREATE INDEX deleted_blob_at ON deleted_blob (deleted_at);
`}

// deletedBlobs are blobs that were deleted in a repository, as all processes of this AppView see it. The bytes
// are the hold's, and stay for every other repository that has them.
type deletedBlobs struct {
	db    *sqldb.DB
	index *index.Index // says what was pushed again by another AppView
	clock clock

	// in are the repositories with deletions, by hash, where this process alone writes: of others nobody has to be
	// asked. nil where several processes share the database.
	mu   sync.RWMutex
	in   map[uint64]struct{}
	seed maphash.Seed
}

func newDeletedBlobs(ctx context.Context, db *sqldb.DB, x *index.Index, now clock) (*deletedBlobs, error) {
	if err := db.Migrate(ctx, "deleted_blob", deletedMigrations); err != nil {
		return nil, err
	}
	d := &deletedBlobs{db: db, index: x, clock: now, seed: maphash.MakeSeed()}
	if db.OnServer() {
		return d, nil
	}
	d.in = map[uint64]struct{}{}
	rows, err := db.Reader().QueryContext(ctx, `SELECT DISTINCT did, repository FROM deleted_blob`)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var did, repository string
		if err := rows.Scan(&did, &repository); err != nil {
			return nil, err
		}
		d.in[d.hash(did, repository)] = struct{}{}
	}
	return d, rows.Err()
}

func (d *deletedBlobs) hash(did, repository string) uint64 {
	return maphash.Comparable(d.seed, [2]string{did, repository})
}

// none tells whether nothing was ever deleted in a repository, as far as that is known without a look.
func (d *deletedBlobs) none(key blobKey) bool {
	if d.in == nil {
		return false
	}
	d.mu.RLock()
	defer d.mu.RUnlock()
	_, ok := d.in[d.hash(key.did.String(), key.repository)]
	return !ok
}

// has tells whether the blob was deleted there, and no manifest names it that was made later: one that was is by
// another AppView, through which the blob was pushed again.
func (d *deletedBlobs) has(ctx context.Context, key blobKey) (bool, error) {
	at, deleted, err := d.at(ctx, key)
	if err != nil || !deleted {
		return false, err
	}
	// By its own date: an old one that is read again, or comes again, is as old as it was.
	named, err := d.index.NamedSince(ctx, key.did, key.repository, key.digest.String(), at)
	return !named, err
}

// at is when the blob was deleted there.
func (d *deletedBlobs) at(ctx context.Context, key blobKey) (_ time.Time, deleted bool, err error) {
	if d.none(key) {
		return time.Time{}, false, nil
	}
	var at int64
	err = d.db.Reader().QueryRowContext(ctx, `SELECT deleted_at FROM deleted_blob WHERE did = ? AND repository = ? AND digest = ?`,
		key.did.String(), key.repository, key.digest.String()).Scan(&at)
	if errors.Is(err, sql.ErrNoRows) {
		return time.Time{}, false, nil
	}
	if err != nil {
		return time.Time{}, false, fmt.Errorf("look for deleted blobs: %w", err)
	}
	return time.UnixMilli(at), d.clock().Sub(time.UnixMilli(at)) < deletedFor, nil
}

// anyIn tells whether blobs of a repository were deleted lately.
func (d *deletedBlobs) anyIn(ctx context.Context, key repositoryKey) (bool, error) {
	if d.none(blobKey{did: key.did, repository: key.repository}) {
		return false, nil
	}
	var n int
	err := d.db.Reader().QueryRowContext(ctx, `SELECT count(*) FROM deleted_blob WHERE did = ? AND repository = ? AND deleted_at > ?`,
		key.did.String(), key.repository, d.clock().Add(-deletedFor).UnixMilli()).Scan(&n)
	if err != nil {
		return false, fmt.Errorf("look for deleted blobs: %w", err)
	}
	return n > 0, nil
}

// add deletes it. Errors: *oci.Error where too many are remembered.
func (d *deletedBlobs) add(ctx context.Context, key blobKey) error {
	now := d.clock()
	var all, own int
	err := d.db.Reader().QueryRowContext(ctx, `SELECT (SELECT count(*) FROM deleted_blob WHERE deleted_at > ?1), (SELECT count(*) FROM deleted_blob WHERE deleted_at > ?1 AND did = ?2)`,
		now.Add(-deletedFor).UnixMilli(), key.did.String()).Scan(&all, &own)
	if err != nil {
		return fmt.Errorf("delete blob: %w", err)
	}
	if all >= deletedMax || own >= deletedOwn {
		return &oci.Error{Code: oci.CodeTooManyRequests, Message: "too many blobs were deleted in the last days: try again later", RetryAfter: time.Hour}
	}
	if d.in != nil {
		d.mu.Lock()
		d.in[d.hash(key.did.String(), key.repository)] = struct{}{}
		d.mu.Unlock()
	}
	err = d.db.WriteRelaxed(ctx, func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, `DELETE FROM deleted_blob WHERE deleted_at <= ?`, now.Add(-deletedFor).UnixMilli()); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, `INSERT INTO deleted_blob (did, repository, digest, deleted_at) VALUES (?,?,?,?)
			ON CONFLICT (did, repository, digest) DO UPDATE SET deleted_at = excluded.deleted_at`,
			key.did.String(), key.repository, key.digest.String(), now.UnixMilli())
		return err
	})
	if err != nil {
		return fmt.Errorf("delete blob: %w", err)
	}
	return nil
}

// restore takes the deletion back: the blob came again.
func (d *deletedBlobs) restore(ctx context.Context, key blobKey) error {
	if _, deleted, err := d.at(ctx, key); err != nil || !deleted {
		return err
	}
	err := d.db.WriteRelaxed(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `DELETE FROM deleted_blob WHERE did = ? AND repository = ? AND digest = ?`, key.did.String(), key.repository, key.digest.String())
		return err
	})
	if err != nil {
		return fmt.Errorf("restore blob: %w", err)
	}
	return nil
}
