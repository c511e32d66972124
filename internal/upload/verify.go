package upload

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"atcr.io/internal/blobstore"
)

// wake lets the background look for unverified blobs now.
func (u *Uploads) wake() {
	select {
	case u.wakeVerify <- struct{}{}:
	default: // it will look anyway
	}
}

// verifyLoop reads unverified blobs back, one at a time: bandwidth is for people.
func (u *Uploads) verifyLoop(ctx context.Context) {
	tick := time.NewTicker(verifyRetryPause)
	defer tick.Stop()
	for {
		if err := u.verifyAll(ctx); err != nil && ctx.Err() == nil {
			u.log.Warn("unverified blobs wait", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-u.wakeVerify:
		}
	}
}

// verifyAll tries every unverified blob once.
func (u *Uploads) verifyAll(ctx context.Context) error {
	rows, err := u.ids(ctx, `SELECT id FROM blob WHERE verified = 0 ORDER BY id`)
	if err != nil {
		return err
	}
	var errs []error
	for _, row := range rows {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err := u.verify(ctx, row); err != nil && !errors.Is(err, ErrDigestMismatch) && !errors.Is(err, errBeingVerified) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (u *Uploads) ids(ctx context.Context, query string, args ...any) ([]int64, error) {
	rows, err := u.db.Reader().QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	var all []int64
	for rows.Next() {
		var id int64
		if err := rows.Scan(&id); err != nil {
			return nil, err
		}
		all = append(all, id)
	}
	return all, rows.Err()
}

var errBeingVerified = errors.New("the blob is being verified")

// verify reads one unverified blob back: it becomes the verified one, or its row and object go. A row
// that is gone is no error. Errors: ErrDigestMismatch, errBeingVerified, the storage's and the database's,
// after which it may be tried again.
func (u *Uploads) verify(ctx context.Context, row int64) error {
	blob, err := u.unverified(ctx, row)
	if err == nil {
		if err := u.claim(blob.Key); err != nil {
			return err
		}
		defer u.unclaim(blob.Key)
		var again Blob // it may have been settled in between
		if again, err = u.unverified(ctx, row); err == nil && again.Key != blob.Key {
			return errBeingVerified
		}
	}
	if errors.Is(err, ErrNoBlob) {
		return nil
	}
	if err != nil {
		return err
	}
	actual, size, err := u.hashObject(ctx, blob.Key, blob.Digest.Algorithm())
	if errors.Is(err, blobstore.ErrNotFound) {
		u.metrics.verified.WithLabelValues("lost").Inc()
		u.log.Warn("an unverified blob's object is gone", "digest", blob.Digest.String(), "did", blob.Owner.String())
		return errors.Join(ErrDigestMismatch, u.reject(ctx, row, blob))
	}
	if err != nil {
		return err
	}
	if actual != blob.Digest || size != blob.Size {
		u.metrics.verified.WithLabelValues("mismatch").Inc()
		u.log.Warn("a presigned upload does not have its digest", "digest", blob.Digest.String(), "did", blob.Owner.String())
		return errors.Join(ErrDigestMismatch, u.reject(ctx, row, blob))
	}
	if err := u.promote(ctx, row, blob); err != nil {
		return fmt.Errorf("record verified blob: %w", err)
	}
	u.metrics.verified.WithLabelValues("match").Inc()
	return nil
}

// claim makes the caller the one that settles the unverified blob at key, until unclaim. Errors: errBeingVerified.
func (u *Uploads) claim(key string) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.verifying[key] != nil {
		return errBeingVerified
	}
	u.verifying[key] = make(chan struct{})
	return nil
}

func (u *Uploads) unclaim(key string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	close(u.verifying[key])
	delete(u.verifying, key)
}

// verifyNow is verify that waits for who is at it already: the background may have found the row first.
func (u *Uploads) verifyNow(ctx context.Context, row int64, key string) error {
	for {
		err := u.verify(ctx, row)
		if !errors.Is(err, errBeingVerified) {
			return err
		}
		u.mu.Lock()
		busy := u.verifying[key]
		u.mu.Unlock()
		if busy == nil {
			continue
		}
		select {
		case <-busy:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (u *Uploads) unverified(ctx context.Context, row int64) (Blob, error) {
	return scanBlob(u.db.Reader().QueryRowContext(ctx, selectBlob+`verified = 0 AND id = ?`, row))
}

// reject removes an unverified blob; its object goes now or with a later Sweep.
func (u *Uploads) reject(ctx context.Context, row int64, b Blob) error {
	err := u.db.Write(ctx, func(tx *sql.Tx) error {
		if err := u.discardRow(ctx, tx, row, b.Key); err != nil {
			return err
		}
		return u.addGarbage(ctx, tx, b.Key)
	})
	if err != nil {
		return err
	}
	return u.collectGarbage(ctx)
}

var errReplaced = errors.New("the row was replaced")

// discardRow deletes an unverified row. The database gives the id of a row that is gone to another, so that the key
// says which it is. Errors: errReplaced.
func (u *Uploads) discardRow(ctx context.Context, tx *sql.Tx, row int64, key string) error {
	done, err := tx.ExecContext(ctx, `DELETE FROM blob WHERE id = ? AND verified = 0 AND key = ?`, row, key)
	if err != nil {
		return err
	}
	if n, err := done.RowsAffected(); err != nil || n != 1 {
		return errors.Join(errReplaced, err)
	}
	return nil
}

// promote makes an unverified blob, whose bytes were found right, the verified one. Where there is one
// already it stays, and this object goes.
func (u *Uploads) promote(ctx context.Context, row int64, b Blob) error {
	spare, err := u.promoteLocked(ctx, row, b)
	if err != nil || !spare {
		return err
	}
	return u.collectGarbage(ctx) // which takes the locks of digests itself
}

func (u *Uploads) promoteLocked(ctx context.Context, row int64, b Blob) (spare bool, err error) {
	unlock, err := u.digests.lock(ctx, b.Digest)
	if err != nil {
		return false, err
	}
	defer unlock()
	if current, err := u.unverified(ctx, row); errors.Is(err, ErrNoBlob) {
		return false, nil // replaced by a newer upload of the same person
	} else if err != nil || current.Key != b.Key {
		return false, errors.Join(errReplaced, err)
	}
	standing, there, err := u.standing(ctx, b.Digest)
	if err != nil {
		return false, err
	}
	if !there {
		standing = b
		standing.Verified = true
		if err := u.point(ctx, standing); err != nil {
			return false, err
		}
	}
	err = u.db.Write(ctx, func(tx *sql.Tx) error {
		if err := u.discardRow(ctx, tx, row, b.Key); err != nil {
			return err
		}
		if there {
			if err := u.addGarbage(ctx, tx, b.Key); err != nil {
				return err
			}
		}
		return u.recordVerified(ctx, tx, standing, b.Owner)
	})
	if err != nil {
		return false, err
	}
	u.encache(standing)
	return there, nil
}
