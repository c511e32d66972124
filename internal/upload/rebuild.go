package upload

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/internal/blobstore"
	"atcr.io/internal/oci"
)

const (
	finalPrefix   = "docker/registry/v2/blobs/"
	pointerPrefix = "atcr/pointers/"
	rebuildBatch  = 500
	maxPointer    = 4 << 10
)

// Rebuilt says what Rebuild changed.
type Rebuilt struct {
	Added   int64 `json:"added"`   // blobs whose object was there and whose row was not
	Removed int64 `json:"removed"` // rows whose object is not there
}

// Rebuild makes the index agree with the storage: what stands under a final key, or is named by a pointer,
// is believed (only bytes that a hold hashed come there), and rows without their object go. Who uploaded
// a blob is known only from pointers. It may run beside uploads, and again after an error.
func (u *Uploads) Rebuild(ctx context.Context) (Rebuilt, error) {
	u.rebuilding.Lock()
	defer u.rebuilding.Unlock()
	u.deletions.watch(true)
	defer u.deletions.watch(false)
	start := u.now().UnixMilli()
	if err := u.exec(ctx, `DELETE FROM blob_found`); err != nil {
		return Rebuilt{}, fmt.Errorf("rebuild index: %w", err)
	}
	for _, prefix := range []string{finalPrefix, blobstore.StagingPrefix} {
		if err := u.listFound(ctx, prefix); err != nil {
			return Rebuilt{}, fmt.Errorf("rebuild index: %w", err)
		}
	}
	if err := u.store.List(ctx, pointerPrefix, func(key string, size int64) error {
		return u.followPointer(ctx, key, size)
	}); err != nil {
		return Rebuilt{}, fmt.Errorf("rebuild index: %w", err)
	}
	r, err := u.enterFound(ctx, start)
	u.epoch.Add(1)
	u.cache.Purge()
	if err != nil {
		return Rebuilt{}, fmt.Errorf("rebuild index: %w", err)
	}
	return r, nil
}

// enterFound makes rows of what was found since start, and deletes those of what was not.
func (u *Uploads) enterFound(ctx context.Context, start int64) (r Rebuilt, err error) {
	u.deletions.under.Lock()
	defer u.deletions.under.Unlock()
	u.deletions.mu.Lock()
	deleted := slices.Collect(maps.Keys(u.deletions.noted))
	u.deletions.mu.Unlock()
	err = u.db.Write(ctx, func(tx *sql.Tx) (err error) {
		for _, key := range deleted {
			if _, err := tx.ExecContext(ctx, `DELETE FROM blob_found WHERE key = ?`, key); err != nil {
				return err
			}
		}
		if r.Removed, err = changed(tx.ExecContext(ctx, `DELETE FROM blob WHERE touched_at < ?
			AND NOT EXISTS (SELECT 1 FROM blob_found f WHERE f.key = blob.key AND f.size = blob.size)`, start)); err != nil {
			return err
		}
		// Of what the index has it knows more than a pointer, which still names who had their data deleted since.
		if _, err = tx.ExecContext(ctx, `INSERT INTO blob_uploader (digest, uploader, created_at)
			SELECT digest, uploader, ? FROM blob_found f WHERE digest <> '' AND uploader <> ''
			AND NOT EXISTS (SELECT 1 FROM blob b WHERE b.digest = f.digest AND b.verified = 1) ON CONFLICT DO NOTHING`, start); err != nil {
			return err
		}
		if r.Added, err = changed(tx.ExecContext(ctx, `INSERT INTO blob (digest, verified, uploader, size, key, created_at, touched_at, verified_at)
			SELECT digest, 1, uploader, size, key, ?1, ?1, ?1 FROM blob_found WHERE digest <> '' ORDER BY uploader
			ON CONFLICT DO NOTHING`, start)); err != nil {
			return err
		}
		if err := u.settleNamed(ctx, tx); err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, `DELETE FROM blob_found`)
		return err
	})
	return r, err
}

func changed(r sql.Result, err error) (int64, error) {
	if err != nil {
		return 0, err
	}
	return r.RowsAffected()
}

func (u *Uploads) exec(ctx context.Context, query string, args ...any) error {
	return u.db.WriteRelaxed(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, query, args...)
		return err
	})
}

// listFound notes every object below prefix, in batches: the memory it takes does not grow with the storage.
func (u *Uploads) listFound(ctx context.Context, prefix string) error {
	type object struct {
		key  string
		size int64
	}
	var batch []object
	flush := func() error {
		defer func() { batch = batch[:0] }()
		return u.db.WriteRelaxed(ctx, func(tx *sql.Tx) error {
			for _, o := range batch {
				if _, err := tx.ExecContext(ctx, `INSERT INTO blob_found (key, size, digest, uploader) VALUES (?,?,?,'')
					ON CONFLICT DO NOTHING`, o.key, o.size, digestOfKey(o.key).String()); err != nil {
					return err
				}
			}
			return nil
		})
	}
	err := u.store.List(ctx, prefix, func(key string, size int64) error {
		if batch = append(batch, object{key, size}); len(batch) >= rebuildBatch {
			return flush()
		}
		return nil
	})
	if err != nil {
		return err
	}
	return flush()
}

// digestOfKey is the digest whose final key is key, "" where it is no final key.
func digestOfKey(key string) oci.Digest {
	p := strings.Split(strings.TrimPrefix(key, finalPrefix), "/")
	if len(p) != 4 {
		return ""
	}
	d, err := oci.ParseDigest(p[0] + ":" + p[2])
	if err != nil || blobstore.BlobKey(d) != key {
		return ""
	}
	return d
}

// followPointer enters the object that a pointer names. One that makes no sense, or leads nowhere, is
// logged and left alone.
func (u *Uploads) followPointer(ctx context.Context, key string, size int64) error {
	p, err := u.readPointer(ctx, key, size)
	if errors.Is(err, errBadPointer) || errors.Is(err, blobstore.ErrNotFound) {
		u.log.Warn("a pointer is not believed", "key", key, "error", err)
		return nil
	}
	if err != nil {
		return err
	}
	return u.exec(ctx, `UPDATE blob_found SET digest = ?, uploader = ? WHERE key = ? AND size = ? AND digest = ''`,
		p.Digest.String(), p.Uploader, p.Key, p.Size)
}

var errBadPointer = errors.New("the pointer is malformed")

func (u *Uploads) readPointer(ctx context.Context, key string, size int64) (pointer, error) {
	if size > maxPointer {
		return pointer{}, errBadPointer
	}
	object, err := u.store.Open(ctx, key)
	if err != nil {
		return pointer{}, err
	}
	defer func() { _ = object.Close() }() // only read
	raw, err := io.ReadAll(io.LimitReader(object, maxPointer))
	if err != nil {
		return pointer{}, err
	}
	return parsePointer(key, raw)
}

// parsePointer reads what stands under a pointer's key. Errors: errBadPointer.
func parsePointer(key string, raw []byte) (pointer, error) {
	var p pointer
	if err := json.Unmarshal(raw, &p); err != nil {
		return pointer{}, fmt.Errorf("%w: %w", errBadPointer, err)
	}
	d, err := oci.ParseDigest(string(p.Digest))
	if err != nil || blobstore.PointerKey(d) != key || p.Size < 0 || !strings.HasPrefix(p.Key, blobstore.StagingPrefix) {
		return pointer{}, errBadPointer
	}
	if p.Uploader != "" {
		if _, err := syntax.ParseDID(p.Uploader); err != nil {
			return pointer{}, fmt.Errorf("%w: %w", errBadPointer, err)
		}
	}
	return p, nil
}
