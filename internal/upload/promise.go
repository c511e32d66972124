package upload

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/internal/oci"
)

const (
	// maxPromises and maxPromisesEach bound who is remembered to have been told of a blob.
	maxPromises     = 100_000
	maxPromisesEach = 64
)

// Promise is Stat for an answer that somebody will rely on: the blob stays for CollectAfter from now, at
// least. told, where not "", is whose image it is for: they are asked before the blob is collected.
//
// The answer is given after the row was renewed, so that a collection in between cannot make it a lie.
// Errors: ErrNoBlob.
func (u *Uploads) Promise(ctx context.Context, d oci.Digest, viewer, told syntax.DID) (Blob, error) {
	blob, err := u.Stat(ctx, d, viewer)
	if err == nil {
		if err = u.touch(ctx, blob); errors.Is(err, ErrNoBlob) { // collected, or verified, since it was read
			if blob, err = u.Stat(ctx, d, viewer); err == nil {
				err = u.touch(ctx, blob)
			}
		}
	}
	if err == nil && told != "" && blob.Verified {
		err = u.remember(ctx, d, told)
	}
	return blob, err
}

// touch notes that somebody was told that b is there. It writes at most once an hour and blob.
// Errors: ErrNoBlob where the row is gone.
func (u *Uploads) touch(ctx context.Context, b Blob) error {
	now := u.now()
	if now.Sub(b.TouchedAt) < touchEvery { // too young for any collection
		return nil
	}
	verified := 0
	if b.Verified {
		verified = 1
	}
	var rows int64
	err := u.db.WriteRelaxed(ctx, func(tx *sql.Tx) (err error) {
		rows, err = changed(tx.ExecContext(ctx, `UPDATE blob SET touched_at = max(touched_at, ?) WHERE digest = ? AND verified = ? AND key = ?`,
			now.UnixMilli(), b.Digest.String(), verified, b.Key))
		return err
	})
	if err != nil {
		return fmt.Errorf("touch blob: %w", err)
	}
	u.uncache(b.Digest) // whoever asks next reads the row
	if rows == 0 {
		return ErrNoBlob
	}
	return nil
}

// promised is a blob that somebody was told of.
type promised struct {
	digest oci.Digest
	did    syntax.DID
}

// remember notes that did was told of d, at most once an hour, where nothing else says that d matters to them. The
// rows are looked at each time: others delete them.
func (u *Uploads) remember(ctx context.Context, d oci.Digest, did syntax.DID) error {
	known, err := u.remembers(ctx, d, did)
	if err == nil && !known {
		err = u.db.WriteRelaxed(ctx, func(tx *sql.Tx) error {
			if named, err := u.named(ctx, tx, did, d); err != nil || named != 0 {
				return err
			}
			if err := u.concern(ctx, tx, d, did); err != nil {
				return err
			}
			_, err := tx.ExecContext(ctx, `DELETE FROM blob_promise WHERE (SELECT count(*) FROM blob_promise) > ?1
				AND at <= (SELECT at FROM blob_promise ORDER BY at DESC LIMIT 1 OFFSET ?1)`, maxPromises)
			return err
		})
	}
	if err != nil {
		return fmt.Errorf("remember who was told of a blob: %w", err)
	}
	return nil
}

// remembers tells whether did will be asked of d, or a manifest of theirs names it: its end has them asked (see Naming).
func (u *Uploads) remembers(ctx context.Context, d oci.Digest, did syntax.DID) (known bool, err error) {
	err = u.db.Reader().QueryRowContext(ctx, `SELECT EXISTS (SELECT 1 FROM blob_promise WHERE digest = ?1 AND did = ?2 AND at > ?3)
		OR EXISTS (SELECT 1 FROM blob_uploader WHERE digest = ?1 AND uploader = ?2)`,
		d.String(), did.String(), u.now().Add(-touchEvery).UnixMilli()).Scan(&known)
	if err != nil || known {
		return known, err
	}
	named, err := u.named(ctx, u.db.Reader(), did, d)
	return named != 0, err
}

// concern notes that did must be asked before d is collected. Of too many of one blob, the oldest go.
func (u *Uploads) concern(ctx context.Context, tx *sql.Tx, d oci.Digest, did syntax.DID) error {
	_, err := tx.ExecContext(ctx, `INSERT INTO blob_promise (digest, did, at) SELECT ?1, ?2, ?3
		WHERE NOT EXISTS (SELECT 1 FROM blob_uploader WHERE digest = ?1 AND uploader = ?2)
		ON CONFLICT (digest, did) DO UPDATE SET at = excluded.at`, d.String(), did.String(), u.now().UnixMilli())
	if err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, `DELETE FROM blob_promise WHERE digest = ?1 AND did NOT IN
		(SELECT did FROM blob_promise WHERE digest = ?1 ORDER BY at DESC LIMIT ?2)`, d.String(), maxPromisesEach)
	return err
}

// Naming tells, in the transaction that changes it, whether a manifest of did names d now. A blob that none
// of theirs names any more may be collected after CollectAfter, and did is asked before: they may rely on it
// again by then, which remember did not note.
func (u *Uploads) Naming(ctx context.Context, tx *sql.Tx, did syntax.DID, d oci.Digest, named bool) error {
	value := 0
	if named {
		value = 1
	}
	_, err := tx.ExecContext(ctx, `UPDATE blob_uploader SET named = ? WHERE digest = ? AND uploader = ?`, value, d.String(), did.String())
	if err != nil {
		return err
	}
	if named {
		_, err = tx.ExecContext(ctx, `DELETE FROM blob_promise WHERE digest = ? AND did = ?`, d.String(), did.String())
		return err
	}
	changes, err := changed(tx.ExecContext(ctx, `UPDATE blob SET touched_at = max(touched_at, ?) WHERE digest = ? AND verified = 1`, u.now().UnixMilli(), d.String()))
	if err != nil || changes == 0 {
		return err
	}
	return u.concern(ctx, tx, d, did)
}

// concerned are who uploaded d, or was told that it is here.
func (u *Uploads) concerned(ctx context.Context, d oci.Digest) ([]syntax.DID, error) {
	rows, err := u.db.Reader().QueryContext(ctx, `SELECT uploader FROM blob_uploader WHERE digest = ?1 UNION SELECT did FROM blob_promise WHERE digest = ?1`, d.String())
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

// Disown forgets that did uploaded blobs or was told of them: no manifest in their repo keeps a blob any more. The
// bytes stay as long as somebody else's do, or are collected. Bytes that are not verified yet stay theirs.
func (u *Uploads) Disown(ctx context.Context, did syntax.DID) error {
	err := u.db.Write(ctx, func(tx *sql.Tx) error {
		for _, query := range []string{
			// Nobody's, and not unknown: what was found in the storage is kept until somebody says otherwise.
			`UPDATE OR IGNORE blob_uploader SET uploader = '', named = 1 WHERE uploader = ?`, `DELETE FROM blob_uploader WHERE uploader = ?`,
			`DELETE FROM blob_promise WHERE did = ?`, `UPDATE blob SET uploader = '' WHERE uploader = ? AND verified = 1`,
			`UPDATE upload SET owner = '' WHERE owner = ? AND joins <> '' AND ended_at IS NULL`, // they are blobs in a moment
		} {
			if _, err := tx.ExecContext(ctx, query, did.String()); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("disown blobs: %w", err)
	}
	return nil
}
