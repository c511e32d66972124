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
	Key    string // in the store; "" in the answer to an upload that the storage has yet to make an object of
	// Verified: the hold hashed the bytes. Else only Owner may read them.
	Verified bool
	// Owner is who uploaded it first; "" where it was found in the storage.
	Owner     syntax.DID
	CreatedAt time.Time
	// TouchedAt is when somebody was last told that it is there (at most an hour behind), or when the last
	// manifest ceased to name it: from then on it may be collected after CollectAfter.
	TouchedAt time.Time
}

// Joining tells whether the bytes are here and hashed, and the storage has yet to make an object of them.
func (b Blob) Joining() bool { return b.Verified && b.Key == "" }

// Stat is the blob d as viewer may see it: the verified one, else viewer's own unverified one. viewer is
// "" for nobody. Whether viewer may read at this hold at all was decided before. It waits for the storage where that is
// at making an object of the blob. Errors: ErrNoBlob, ErrJoining, ErrClosed.
func (u *Uploads) Stat(ctx context.Context, d oci.Digest, viewer syntax.DID) (Blob, error) {
	ended := u.joins.of(d) // looked at first: one that ends after this has left a row
	blob, err := u.Verified(ctx, d)
	if !errors.Is(err, ErrNoBlob) {
		return blob, err
	}
	if viewer != "" {
		blob, err = scanBlob(u.db.Reader().QueryRowContext(ctx, selectBlob+`verified = 0 AND digest = ? AND uploader = ?`,
			d.String(), viewer.String()))
		if errors.Is(err, ErrNoBlob) { // it may have been verified in between
			blob, err = u.Verified(ctx, d)
		}
	}
	if ended != nil && errors.Is(err, ErrNoBlob) {
		return u.awaitJoined(ctx, d, ended)
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

// Verified is the blob d that anybody may see, from the cache where it is there; it waits for nothing. Errors: ErrNoBlob.
func (u *Uploads) Verified(ctx context.Context, d oci.Digest) (Blob, error) {
	if b, ok := u.cache.Get(d); ok {
		return b, nil
	}
	epoch := u.epoch.Load()
	b, err := scanBlob(u.db.Reader().QueryRowContext(ctx, selectBlob+`verified = 1 AND digest = ?`, d.String()))
	if err == nil {
		u.cache.ContainsOrAdd(d, b) // never over a row that was written since
		if u.epoch.Load() != epoch {
			u.cache.Remove(d) // the row may have been changed, or collected, since it was read
		}
	}
	return b, err
}

// encache remembers a row that was just written, whoever read the one before it.
func (u *Uploads) encache(b Blob) {
	u.epoch.Add(1)
	u.cache.Add(b.Digest, b)
}

// uncache forgets a row that was just changed or deleted.
func (u *Uploads) uncache(d oci.Digest) {
	u.epoch.Add(1)
	u.cache.Remove(d)
}

// recordVerified writes the row of a verified blob, and that uploader brought it, "" for nobody.
func (u *Uploads) recordVerified(ctx context.Context, tx *sql.Tx, b Blob, uploader syntax.DID) error {
	now := u.now().UnixMilli()
	_, err := tx.ExecContext(ctx, `INSERT INTO blob (digest, verified, uploader, size, key, created_at, touched_at, verified_at)
		VALUES (?,1,?,?,?,?,?,?)
		ON CONFLICT (digest) WHERE verified = 1 DO UPDATE SET size = excluded.size, key = excluded.key, touched_at = excluded.touched_at`,
		b.Digest.String(), b.Owner.String(), b.Size, b.Key, b.CreatedAt.UnixMilli(), now, now)
	if err != nil {
		return err
	}
	named := 1 // nobody's, and not unknown: it is kept until somebody says otherwise
	if uploader != "" {
		if named, err = u.named(ctx, tx, uploader, b.Digest); err != nil {
			return err
		}
	}
	_, err = tx.ExecContext(ctx, `INSERT INTO blob_uploader (digest, uploader, created_at, named) VALUES (?,?,?,?)
		ON CONFLICT (digest, uploader) DO UPDATE SET created_at = excluded.created_at, named = excluded.named`,
		b.Digest.String(), uploader.String(), now, named)
	return err
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

// randomName is 128 random bits in lowercase hex, for keys.
func randomName() string {
	b := make([]byte, 16)
	_, _ = rand.Read(b) // never fails
	return hex.EncodeToString(b)
}
