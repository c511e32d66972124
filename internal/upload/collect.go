package upload

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/internal/blobstore"
	"atcr.io/internal/oci"
)

// CollectAfter is how long a blob stays that nobody names, counted from when somebody last was told of it or
// the last manifest ceased to name it.
const CollectAfter = 48 * time.Hour

// collectPage is how many rows are looked at in one query.
const collectPage = 500

// Unnamed is a blob that may be collected.
type Unnamed struct {
	Digest oci.Digest
	Size   int64
	Owner  syntax.DID // who uploaded it first; "" where it was found in the storage
	Since  time.Time  // when somebody was last told of it, or the last manifest ceased to name it
	// Concerned are all who uploaded it or were told that it is here.
	Concerned []syntax.DID
	// Kept says why it stays all the same; "": it goes.
	Kept string
}

// Queryer is a database, or a transaction of it.
type Queryer interface {
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// CollectOptions say what to collect.
type CollectOptions struct {
	// Named tells whether something still names a blob. It is asked first, and again in the transaction that
	// deletes the row, so that what is named meanwhile stays.
	Named func(ctx context.Context, q Queryer, d oci.Digest) (bool, error)
	// Keep says why a blob that nothing here names must stay all the same, "" for no reason. It is asked while
	// pushes go on, and may take its time: what it does not know of because it came later has renewed the blob.
	// nil: nothing.
	Keep func(ctx context.Context, b Unnamed) (reason string, err error)
	// DryRun only reports.
	DryRun bool
	// Report is called with each blob that nothing here names: those that were, or would be, collected, and those
	// that were kept.
	Report func(Unnamed)
	// Progress is called with how many blobs were looked at so far.
	Progress func(looked int64)
}

// Collect deletes the verified blobs that nothing has named for CollectAfter: the row first, then the
// object, so that a crash in between leaves an object that the next round deletes, and never a row without
// bytes. Uploads of the same digest wait. It goes on past single errors and returns them together.
func (u *Uploads) Collect(ctx context.Context, o CollectOptions) error {
	var errs []error
	cutoff := u.now().Add(-CollectAfter).UnixMilli()
	looked := int64(0)
	for after := int64(0); ; {
		page, last, err := u.collectable(ctx, after, cutoff)
		if err != nil || len(page) == 0 {
			return errors.Join(append(errs, err)...)
		}
		after = last
		for _, b := range page {
			err := u.consider(ctx, b, cutoff, o)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err != nil {
				errs = append(errs, fmt.Errorf("collect %s: %w", b.Digest, err))
			}
		}
		if looked += int64(len(page)); o.Progress != nil {
			o.Progress(looked)
		}
	}
}

// collectable are old rows, by id.
func (u *Uploads) collectable(ctx context.Context, after, cutoff int64) (page []Blob, last int64, err error) {
	rows, err := u.db.Reader().QueryContext(ctx, `SELECT id, digest, uploader, size, touched_at FROM blob WHERE verified = 1 AND id > ?1
		AND touched_at < ?2 AND coalesce(verified_at, created_at) < ?2 ORDER BY id LIMIT ?3`, after, cutoff, collectPage)
	if err != nil {
		return nil, 0, err
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var digest, owner string
		var b Blob
		var touched int64
		if err := rows.Scan(&last, &digest, &owner, &b.Size, &touched); err != nil {
			return nil, 0, err
		}
		b.Digest, b.Owner, b.TouchedAt = oci.Digest(digest), syntax.DID(owner), time.UnixMilli(touched)
		page = append(page, b)
	}
	return page, last, rows.Err()
}

// consider collects one blob, if it may go.
func (u *Uploads) consider(ctx context.Context, b Blob, cutoff int64, o CollectOptions) error {
	if named, err := o.Named(ctx, u.db.Reader(), b.Digest); err != nil || named {
		return err
	}
	out := Unnamed{Digest: b.Digest, Size: b.Size, Owner: b.Owner, Since: b.TouchedAt}
	var err error
	if out.Concerned, err = u.concerned(ctx, b.Digest); err != nil {
		return err
	}
	if o.Keep != nil {
		if out.Kept, err = o.Keep(ctx, out); err != nil {
			return err
		}
	}
	gone := false
	if out.Kept == "" {
		gone, err = u.collect(ctx, b.Digest, cutoff, o)
	}
	if (gone || out.Kept != "") && o.Report != nil {
		o.Report(out)
	}
	return err
}

var (
	errKept  = errors.New("the blob stays") // it ends a transaction that has nothing to delete
	errWould = errors.New("the blob would be deleted")
)

// collect deletes a blob, if it still may; false: it stays. Where gone comes with an error, the object is left
// to the next Sweep.
func (u *Uploads) collect(ctx context.Context, d oci.Digest, cutoff int64, o CollectOptions) (gone bool, err error) {
	unlock, err := u.digests.lock(ctx, d)
	if err != nil {
		return false, err
	}
	defer unlock()
	leave := u.deletions.enter()
	defer leave()
	var b Blob
	err = u.db.Write(ctx, func(tx *sql.Tx) error {
		var err error
		if b, err = scanBlob(tx.QueryRowContext(ctx, selectBlob+`verified = 1 AND digest = ? AND touched_at < ? AND coalesce(verified_at, created_at) < ?`,
			d.String(), cutoff, cutoff)); err != nil {
			return err
		}
		switch named, err := o.Named(ctx, tx, d); {
		case err != nil:
			return err
		case named:
			return errKept
		case o.DryRun:
			return errWould
		}
		for _, query := range []string{
			`DELETE FROM blob WHERE verified = 1 AND digest = ?`, `DELETE FROM blob_uploader WHERE digest = ?`, `DELETE FROM blob_promise WHERE digest = ?`,
		} {
			if _, err := tx.ExecContext(ctx, query, d.String()); err != nil {
				return err
			}
		}
		return errors.Join(u.addGarbage(ctx, tx, b.Key), u.addGarbage(ctx, tx, blobstore.PointerKey(d)))
	})
	switch {
	case errors.Is(err, errWould):
		return true, nil
	case errors.Is(err, errKept), errors.Is(err, ErrNoBlob):
		return false, nil
	case err != nil:
		return false, err
	}
	u.uncache(d)
	// The pointer first: it must not lead a rebuilt index to an object that is gone.
	for _, key := range []string{blobstore.PointerKey(d), b.Key} {
		if err := u.deleteGarbage(ctx, key); err != nil {
			return true, err
		}
	}
	return true, nil
}

// deleteGarbage deletes an object, and then that it is to be deleted. Whoever calls it entered deletions before
// they saw that no row names the object.
func (u *Uploads) deleteGarbage(ctx context.Context, key string) error {
	u.deletions.note(key)
	if err := u.store.Delete(ctx, key); err != nil {
		return fmt.Errorf("delete %s: %w", key, err)
	}
	return u.db.WriteRelaxed(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `DELETE FROM blob_garbage WHERE key = ?`, key)
		return err
	})
}

// deletions keep Rebuild from entering an object that was listed and is deleted since: a deletion is over
// before Rebuild writes its rows, and noted, or begins after it, and finds the row.
type deletions struct {
	under sync.RWMutex // read: objects are being deleted; written: rows of found objects are

	mu    sync.Mutex
	noted map[string]bool // what was deleted since Rebuild began; nil: none is running
}

func (l *deletions) enter() (leave func()) {
	l.under.RLock()
	return l.under.RUnlock
}

func (l *deletions) note(key string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.noted != nil {
		l.noted[key] = true
	}
}

func (l *deletions) watch(on bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.noted = nil; on {
		l.noted = map[string]bool{}
	}
}
