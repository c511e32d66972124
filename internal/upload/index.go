package upload

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/internal/blobstore"
	"atcr.io/internal/oci"
)

// Blob is a row of the index.
type Blob struct {
	Digest oci.Digest
	Size   int64
	Key    string // in the store
	// Verified: the hold hashed the bytes. Else only Owner may read them.
	Verified bool
	// Owner is who uploaded it first; "" where it was found in the storage.
	Owner     syntax.DID
	CreatedAt time.Time
	// TouchedAt is when somebody was last told that it is there; at most an hour behind.
	TouchedAt time.Time
}

// Stat is the blob d as viewer may see it: the verified one, else viewer's own unverified one. viewer is
// "" for nobody. Whether viewer may read at this hold at all was decided before. Errors: ErrNoBlob.
func (u *Uploads) Stat(ctx context.Context, d oci.Digest, viewer syntax.DID) (Blob, error) {
	blob, err := u.verified(ctx, d)
	if !errors.Is(err, ErrNoBlob) || viewer == "" {
		return blob, err
	}
	blob, err = scanBlob(u.db.Reader().QueryRowContext(ctx, selectBlob+`verified = 0 AND digest = ? AND uploader = ?`,
		d.String(), viewer.String()))
	if errors.Is(err, ErrNoBlob) { // it may have been verified in between
		return u.verified(ctx, d)
	}
	return blob, err
}

const selectBlob = `SELECT digest, verified, uploader, size, key, created_at, touched_at FROM blob WHERE `

func scanBlob(row interface{ Scan(...any) error }) (Blob, error) {
	var b Blob
	var digest, uploader string
	var created, touched int64
	err := row.Scan(&digest, &b.Verified, &uploader, &b.Size, &b.Key, &created, &touched)
	if errors.Is(err, sql.ErrNoRows) {
		return Blob{}, ErrNoBlob
	}
	b.Digest, b.Owner = oci.Digest(digest), syntax.DID(uploader)
	b.CreatedAt, b.TouchedAt = time.UnixMilli(created), time.UnixMilli(touched)
	return b, err
}

// verified is the verified blob d, from the cache where it is there. Errors: ErrNoBlob.
func (u *Uploads) verified(ctx context.Context, d oci.Digest) (Blob, error) {
	if b, ok := u.cache.Get(d); ok {
		return b, nil
	}
	epoch := u.epoch.Load()
	b, err := scanBlob(u.db.Reader().QueryRowContext(ctx, selectBlob+`verified = 1 AND digest = ?`, d.String()))
	if err == nil {
		u.cache.ContainsOrAdd(d, b) // never over a row that was written since
		if u.epoch.Load() != epoch {
			u.cache.Remove(d) // the row may have been collected since it was read
		}
	}
	return b, err
}

// recordVerified writes the row of a verified blob, and that uploader brought it.
func (u *Uploads) recordVerified(ctx context.Context, tx *sql.Tx, b Blob, uploader syntax.DID) error {
	now := u.now().UnixMilli()
	_, err := tx.ExecContext(ctx, `INSERT INTO blob (digest, verified, uploader, size, key, created_at, touched_at, verified_at)
		VALUES (?,1,?,?,?,?,?,?)
		ON CONFLICT (digest) WHERE verified = 1 DO UPDATE SET size = excluded.size, key = excluded.key, touched_at = excluded.touched_at`,
		b.Digest.String(), b.Owner.String(), b.Size, b.Key, b.CreatedAt.UnixMilli(), now, now)
	if err != nil || uploader == "" {
		return err
	}
	_, err = tx.ExecContext(ctx, `INSERT INTO blob_uploader (digest, uploader, created_at) VALUES (?,?,?)
		ON CONFLICT (digest, uploader) DO UPDATE SET created_at = excluded.created_at`,
		b.Digest.String(), uploader.String(), now)
	return err
}

// UploadedBy tells whether did sent all the bytes of the verified blob d, whoever else did.
func (u *Uploads) UploadedBy(ctx context.Context, d oci.Digest, did syntax.DID) (bool, error) {
	var n int
	err := u.db.Reader().QueryRowContext(ctx, `SELECT count(*) FROM blob_uploader WHERE digest = ? AND uploader = ?`,
		d.String(), did.String()).Scan(&n)
	return n > 0, err
}

// Usage is how many blobs owner uploaded and their bytes together, the unverified ones included.
func (u *Uploads) Usage(ctx context.Context, owner syntax.DID) (blobs, bytes int64, err error) {
	err = u.db.Reader().QueryRowContext(ctx, `SELECT count(*), coalesce(sum(size), 0) FROM (
		SELECT b.size FROM blob_uploader p JOIN blob b ON b.digest = p.digest AND b.verified = 1 WHERE p.uploader = ?1
		UNION ALL SELECT size FROM blob WHERE verified = 0 AND uploader = ?1)`, owner.String()).Scan(&blobs, &bytes)
	return blobs, bytes, err
}

// Open opens a blob's bytes. Errors: blobstore.ErrNotFound where the object is gone although the index
// has it, and others of the storage.
func (u *Uploads) Open(ctx context.Context, b Blob) (blobstore.Object, error) {
	return u.store.Open(ctx, b.Key)
}

// Presign is a URL that answers method (GET or HEAD) for ttl; ok is false where the storage cannot, or
// must not, be reached directly.
func (u *Uploads) Presign(ctx context.Context, b Blob, method string, ttl time.Duration) (url string, ok bool, err error) {
	p, ok := u.store.(blobstore.Presigner)
	if !ok || u.cfg.NoPresign {
		return "", false, nil
	}
	url, err = p.PresignGet(ctx, method, b.Key, ttl)
	if err != nil {
		return "", false, fmt.Errorf("presign: %w", err)
	}
	return url, true, nil
}

// MarkTouched notes that somebody was told that b is there, which keeps it from collection for a while.
// It writes at most once an hour and blob.
func (u *Uploads) MarkTouched(ctx context.Context, b Blob) error {
	now := u.now()
	if now.Sub(b.TouchedAt) < touchEvery {
		return nil
	}
	verified := 0
	if b.Verified {
		verified = 1
	}
	err := u.db.WriteRelaxed(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `UPDATE blob SET touched_at = ? WHERE digest = ? AND verified = ? AND key = ?`,
			now.UnixMilli(), b.Digest.String(), verified, b.Key)
		return err
	})
	if err != nil {
		return fmt.Errorf("touch blob: %w", err)
	}
	if cached, ok := u.cache.Get(b.Digest); ok && b.Verified && cached.Key == b.Key {
		cached.TouchedAt = now
		u.cache.Add(b.Digest, cached)
	}
	return nil
}

// randomName is 128 random bits in lowercase hex, for keys.
func randomName() string {
	b := make([]byte, 16)
	_, _ = rand.Read(b) // never fails
	return hex.EncodeToString(b)
}

// UsageBeside is Usage without the blobs that named says are counted elsewhere.
func (u *Uploads) UsageBeside(ctx context.Context, owner syntax.DID, named func(oci.Digest) (bool, error)) (blobs, bytes int64, err error) {
	rows, err := u.db.Reader().QueryContext(ctx, `SELECT b.digest, b.size FROM blob_uploader p JOIN blob b ON b.digest = p.digest AND b.verified = 1 WHERE p.uploader = ?1
		UNION ALL SELECT digest, size FROM blob WHERE verified = 0 AND uploader = ?1`, owner.String())
	if err != nil {
		return 0, 0, err
	}
	sizes := map[oci.Digest]int64{}
	for rows.Next() {
		var digest string
		var size int64
		if err := rows.Scan(&digest, &size); err != nil {
			return 0, 0, errors.Join(err, rows.Close())
		}
		sizes[oci.Digest(digest)] = size
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil { // before named asks for a connection of its own
		return 0, 0, err
	}
	for d, size := range sizes {
		if counted, err := named(d); err != nil {
			return 0, 0, err
		} else if !counted {
			blobs, bytes = blobs+1, bytes+size
		}
	}
	return blobs, bytes, nil
}

// Uploaders are all who uploaded something that is here.
func (u *Uploads) Uploaders(ctx context.Context) ([]syntax.DID, error) {
	rows, err := u.db.Reader().QueryContext(ctx, `SELECT DISTINCT uploader FROM blob_uploader UNION SELECT DISTINCT uploader FROM blob WHERE verified = 0`)
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
