package upload

import (
	"context"
	"database/sql"
	"errors"
	"strings"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/internal/oci"
)

// named is 1 where a manifest of did names d, else 0.
func (u *Uploads) named(ctx context.Context, q Queryer, did syntax.DID, d oci.Digest) (int, error) {
	if u.cfg.Named == nil {
		return 0, nil
	}
	named, err := u.cfg.Named(ctx, q, did, d)
	if named {
		return 1, err
	}
	return 0, err
}

// settleNamed looks at the uploads of which nobody knows yet whether a manifest of their uploader names them.
func (u *Uploads) settleNamed(ctx context.Context, tx *sql.Tx) error {
	rows, err := tx.QueryContext(ctx, `SELECT digest, uploader FROM blob_uploader WHERE named = 2`)
	if err != nil {
		return err
	}
	var open []promised
	for rows.Next() {
		var digest, did string
		if err := rows.Scan(&digest, &did); err != nil {
			return errors.Join(err, rows.Close())
		}
		open = append(open, promised{oci.Digest(digest), syntax.DID(did)})
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return err
	}
	for _, p := range open {
		named, err := u.named(ctx, tx, p.did, p.digest)
		if err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, `UPDATE blob_uploader SET named = ? WHERE digest = ? AND uploader = ?`, named, p.digest.String(), p.did.String()); err != nil {
			return err
		}
	}
	return nil
}

// UploadedBy tells whether did sent all the bytes of the verified blob d, whoever else did.
func (u *Uploads) UploadedBy(ctx context.Context, d oci.Digest, did syntax.DID) (bool, error) {
	var n int
	err := u.db.Reader().QueryRowContext(ctx, `SELECT count(*) FROM blob_uploader WHERE digest = ? AND uploader = ?`,
		d.String(), did.String()).Scan(&n)
	return n > 0, err
}

// Usage is how many blobs owner uploaded that no manifest of theirs names, and their bytes together, the
// unverified ones included: those that Config.Named says are named count elsewhere. It reads those alone, so
// that it costs the same however much owner has.
func (u *Uploads) Usage(ctx context.Context, owner syntax.DID) (blobs, bytes int64, err error) {
	err = u.usages(ctx, owner, func(_ syntax.DID, size int64) { blobs, bytes = blobs+1, bytes+size })
	return blobs, bytes, err
}

// Usages calls fn with the bytes of each blob that Usage counts, of everybody.
func (u *Uploads) Usages(ctx context.Context, fn func(owner syntax.DID, bytes int64)) error {
	return u.usages(ctx, "", fn)
}

func (u *Uploads) usages(ctx context.Context, owner syntax.DID, fn func(owner syntax.DID, bytes int64)) error {
	type row struct {
		digest, uploader string
		verified         bool
		size             int64
	}
	of, args := "", []any(nil)
	if owner != "" {
		of, args = " AND uploader = ?1", []any{owner.String()}
	}
	rows, err := u.db.Reader().QueryContext(ctx, `SELECT b.digest, p.uploader, 1, b.size FROM blob_uploader p JOIN blob b ON b.digest = p.digest AND b.verified = 1
		WHERE p.named <> 1`+strings.Replace(of, "uploader", "p.uploader", 1)+` UNION ALL SELECT digest, uploader, 0, size FROM blob WHERE verified = 0`+of, args...)
	if err != nil {
		return err
	}
	var unverified []row
	for rows.Next() {
		var r row
		if err := rows.Scan(&r.digest, &r.uploader, &r.verified, &r.size); err != nil {
			return errors.Join(err, rows.Close())
		}
		if r.verified {
			fn(syntax.DID(r.uploader), r.size)
		} else {
			unverified = append(unverified, r)
		}
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return err
	}
	for _, r := range unverified {
		named, err := u.named(ctx, u.db.Reader(), syntax.DID(r.uploader), oci.Digest(r.digest))
		if err != nil {
			return err
		}
		if named == 0 {
			fn(syntax.DID(r.uploader), r.size)
		}
	}
	return nil
}
