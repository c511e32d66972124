package upload

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/internal/blobstore"
	"atcr.io/internal/oci"
)

// CollectAfter is how long a blob stays that nobody names, counted from when somebody last was told of it.
const CollectAfter = 48 * time.Hour

// collectPage is how many rows are looked at in one query.
const collectPage = 500

// Unnamed is a blob that may be collected.
type Unnamed struct {
	Digest oci.Digest
	Size   int64
	Owner  syntax.DID // who uploaded it first; "" where it was found in the storage
	Since  time.Time  // when somebody was last told of it
}

// CollectOptions say what to collect.
type CollectOptions struct {
	// Named tells whether something still names a blob. It is asked in the transaction that deletes the row,
	// so that what is named meanwhile stays.
	Named func(ctx context.Context, tx *sql.Tx, d oci.Digest) (bool, error)
	// DryRun only reports.
	DryRun bool
	// Report is called with each blob that was, or would be, collected; nil: nobody is told.
	Report func(Unnamed)
}

// Collect deletes the verified blobs that nothing has named for CollectAfter: the row first, then the
// object, so that a crash in between leaves an object that the next round deletes, and never a row without
// bytes. Uploads of the same digest wait. It goes on past single errors and returns them together.
func (u *Uploads) Collect(ctx context.Context, o CollectOptions) error {
	var errs []error
	cutoff := u.now().Add(-CollectAfter).UnixMilli()
	for after := int64(0); ; {
		page, last, err := u.collectable(ctx, after, cutoff)
		if err != nil || len(page) == 0 {
			return errors.Join(append(errs, err)...)
		}
		after = last
		for _, d := range page {
			gone, err := u.collect(ctx, d, cutoff, o)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err != nil {
				errs = append(errs, fmt.Errorf("collect %s: %w", d, err))
			} else if gone != nil && o.Report != nil {
				o.Report(*gone)
			}
		}
	}
}

// collectable are the digests of old rows, by id.
func (u *Uploads) collectable(ctx context.Context, after, cutoff int64) (page []oci.Digest, last int64, err error) {
	rows, err := u.db.Reader().QueryContext(ctx, `SELECT id, digest FROM blob WHERE verified = 1 AND id > ?1
		AND touched_at < ?2 AND coalesce(verified_at, created_at) < ?2 ORDER BY id LIMIT ?3`, after, cutoff, collectPage)
	if err != nil {
		return nil, 0, err
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var digest string
		if err := rows.Scan(&last, &digest); err != nil {
			return nil, 0, err
		}
		page = append(page, oci.Digest(digest))
	}
	return page, last, rows.Err()
}

// errKept ends a transaction that has nothing to delete.
var errKept = errors.New("the blob stays")

// collect deletes one blob, if it still may; nil: it stays.
func (u *Uploads) collect(ctx context.Context, d oci.Digest, cutoff int64, o CollectOptions) (*Unnamed, error) {
	unlock, err := u.digests.lock(ctx, d)
	if err != nil {
		return nil, err
	}
	defer unlock()
	var b Blob
	err = u.db.Write(ctx, func(tx *sql.Tx) error {
		var err error
		if b, err = scanBlob(tx.QueryRowContext(ctx, selectBlob+`verified = 1 AND digest = ? AND touched_at < ? AND coalesce(verified_at, created_at) < ?`,
			d.String(), cutoff, cutoff)); err != nil {
			return err
		}
		named, err := o.Named(ctx, tx, d)
		if err != nil {
			return err
		}
		if named || o.DryRun {
			if !named {
				return errWould
			}
			return errKept
		}
		for _, query := range []string{`DELETE FROM blob WHERE verified = 1 AND digest = ?`, `DELETE FROM blob_uploader WHERE digest = ?`} {
			if _, err := tx.ExecContext(ctx, query, d.String()); err != nil {
				return err
			}
		}
		return errors.Join(u.addGarbage(ctx, tx, b.Key), u.addGarbage(ctx, tx, blobstore.PointerKey(d)))
	})
	out := &Unnamed{Digest: d, Size: b.Size, Owner: b.Owner, Since: b.TouchedAt}
	switch {
	case errors.Is(err, errWould):
		return out, nil
	case errors.Is(err, errKept), errors.Is(err, ErrNoBlob):
		return nil, nil
	case err != nil:
		return nil, err
	}
	u.epoch.Add(1)
	u.cache.Remove(d)
	// The pointer first: it must not lead a rebuilt index to an object that is gone.
	for _, key := range []string{blobstore.PointerKey(d), b.Key} {
		if err := u.deleteGarbage(ctx, key); err != nil {
			return nil, err
		}
	}
	return out, nil
}

var errWould = errors.New("the blob would be deleted")

// deleteGarbage deletes an object, and then that it is to be deleted.
func (u *Uploads) deleteGarbage(ctx context.Context, key string) error {
	if err := u.store.Delete(ctx, key); err != nil {
		return fmt.Errorf("delete %s: %w", key, err)
	}
	return u.db.WriteRelaxed(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `DELETE FROM blob_garbage WHERE key = ?`, key)
		return err
	})
}
