package upload

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/internal/blobstore"
	"atcr.io/internal/oci"
)

// joined is an object that the storage made of presigned parts.
type joined struct {
	key  string
	size int64
}

func (s *session) presigned() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mode == modePresigned
}

// PartURL is where to PUT part number, with the headers to send along, valid for an hour. An upload that
// asked once goes this way to its end. Errors: ErrNoPresign (send the part to the hold), ErrUnknown, ErrPartNumber, ErrMixed, ErrBusy,
// ErrQuota, the storage's.
func (u *Uploads) PartURL(ctx context.Context, owner syntax.DID, id string, number int) (url string, headers map[string]string, err error) {
	s, err := u.lookID(owner, id)
	if err != nil {
		return "", nil, err
	}
	if number < 1 || number > maxPartNumber {
		return "", nil, fmt.Errorf("%w: part numbers are 1 to %d", ErrPartNumber, maxPartNumber)
	}
	store, ok := u.store.(blobstore.Multipart)
	if !ok || u.cfg.NoPresign {
		return "", nil, ErrNoPresign
	}
	if err := u.enter(); err != nil {
		return "", nil, err
	}
	defer u.inflight.Done()
	if err := u.allow(ctx, s); err != nil {
		return "", nil, err
	}
	state, err := u.multipart(ctx, s, store)
	if err != nil {
		return "", nil, err
	}
	s.active.Store(u.now().UnixMilli())
	url, headers, err = store.PresignPart(ctx, state, number, partURLValid)
	if err != nil {
		return "", nil, fmt.Errorf("presign part: %w", err)
	}
	return url, headers, nil
}

// multipart is the state of the session's multipart upload, begun where there is none. Clients ask for
// several parts at once, so callers wait for each other here rather than be told ErrBusy.
func (u *Uploads) multipart(ctx context.Context, s *session, store blobstore.Multipart) ([]byte, error) {
	s.beginning.Lock()
	defer s.beginning.Unlock()
	if err := s.acquire(modePresigned); err != nil {
		return nil, err
	}
	defer u.release(ctx, s)
	if s.last != nil {
		return s.last.storeState, nil
	}
	ctx, cancel := detached(ctx)
	defer cancel()
	state, err := store.NewMultipart(ctx)
	if err != nil {
		return nil, fmt.Errorf("begin multipart: %w", err)
	}
	next := saved{storeState: state}
	if err := u.save(ctx, s, next, nil); err != nil {
		if err = u.outcome(ctx, s, next, err); err != nil {
			return nil, errors.Join(fmt.Errorf("keep upload: %w", err), u.store.Discard(ctx, state))
		}
	}
	s.last = &next
	return state, nil
}

// completePresigned joins the parts at a key of their own and enters it as unverified: what they hold is
// known only once they were read. Small ones are read at once.
func (u *Uploads) completePresigned(ctx context.Context, s *session, d oci.Digest, parts []blobstore.Part) (Blob, error) {
	blob, row, err := u.joinParts(ctx, s, d, parts)
	if err != nil {
		return Blob{}, err
	}
	if blob.Size > u.inline {
		u.wake()
		return blob, nil
	}
	err = u.verifyNow(ctx, row, blob.Key)
	switch {
	case errors.Is(err, ErrDigestMismatch):
		return Blob{}, err
	case err != nil:
		u.log.Warn("a presigned upload is verified later", "digest", d.String(), "error", err)
		u.wake()
		return blob, nil
	}
	if blob, err = u.Stat(ctx, d, s.owner); errors.Is(err, ErrNoBlob) { // the background found it wrong
		err = ErrDigestMismatch
	}
	return blob, err
}

func (u *Uploads) joinParts(ctx context.Context, s *session, d oci.Digest, parts []blobstore.Part) (Blob, int64, error) {
	store, ok := u.store.(blobstore.Multipart)
	if !ok || len(parts) == 0 {
		return Blob{}, 0, fmt.Errorf("%w: none is named", ErrMissingParts)
	}
	if err := s.acquire(modePresigned); err != nil {
		return Blob{}, 0, err
	}
	defer u.release(ctx, s)
	if s.last == nil {
		return Blob{}, 0, fmt.Errorf("%w: none was asked for", ErrMissingParts)
	}
	ctx, cancel := detached(ctx)
	defer cancel()
	if s.joined == nil { // else only the recording failed
		key, size, err := store.CompleteMultipart(ctx, s.last.storeState, parts)
		if errors.Is(err, blobstore.ErrNotFound) {
			return Blob{}, 0, fmt.Errorf("%w: %w", ErrMissingParts, err)
		}
		if err != nil {
			return Blob{}, 0, fmt.Errorf("join parts: %w", err)
		}
		s.joined = &joined{key, size}
		s.stagedKey = key // drop deletes it
	}
	if err := u.admitJoined(ctx, s); err != nil {
		if cut(err) {
			u.drop(ctx, s, "cut")
		}
		return Blob{}, 0, err
	}
	now := u.now()
	blob := Blob{Digest: d, Size: s.joined.size, Key: s.joined.key, Owner: s.owner, CreatedAt: now, TouchedAt: now}
	row, err := u.recordUnverified(ctx, s, blob)
	if err != nil {
		err = u.completed(ctx, s, d, err)
	}
	if err != nil {
		return Blob{}, 0, fmt.Errorf("record blob: %w", err)
	}
	u.stored(s.owner, blob.Size)
	u.forget(s)
	u.metrics.finished.WithLabelValues("unverified").Inc()
	return blob, row, nil
}

// admitJoined asks for the size, which nobody knew before.
func (u *Uploads) admitJoined(ctx context.Context, s *session) error {
	if s.joined.size > u.cfg.MaxBlobBytes {
		return fmt.Errorf("%w: more than %d bytes", ErrTooLarge, u.cfg.MaxBlobBytes)
	}
	s.received.Store(s.joined.size)
	return u.allow(ctx, s)
}

// recordUnverified enters the blob for its uploader alone, in place of an earlier try of theirs.
func (u *Uploads) recordUnverified(ctx context.Context, s *session, b Blob) (row int64, err error) {
	unlock, err := u.digests.lock(ctx, b.Digest)
	if err != nil {
		return 0, err
	}
	defer unlock()
	err = u.db.Write(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `INSERT INTO blob_garbage (key, created_at)
			SELECT key, ? FROM blob WHERE digest = ? AND uploader = ? AND verified = 0 AND key <> ? ON CONFLICT DO NOTHING`,
			b.CreatedAt.UnixMilli(), b.Digest.String(), b.Owner.String(), b.Key)
		if err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, `DELETE FROM blob WHERE digest = ? AND uploader = ? AND verified = 0`,
			b.Digest.String(), b.Owner.String())
		if err != nil {
			return err
		}
		done, err := tx.ExecContext(ctx, `INSERT INTO blob (digest, verified, uploader, size, key, created_at, touched_at)
			VALUES (?,0,?,?,?,?,?)`, b.Digest.String(), b.Owner.String(), b.Size, b.Key, b.CreatedAt.UnixMilli(), b.CreatedAt.UnixMilli())
		if err != nil {
			return err
		}
		if row, err = done.LastInsertId(); err != nil {
			return err
		}
		return u.endSession(ctx, tx, s, s.owner, b.Digest, leftover{})
	})
	return row, err
}
