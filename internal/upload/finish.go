package upload

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/internal/blobstore"
	"atcr.io/internal/oci"
)

// Finish adds body, which may be nil, and makes the upload the blob d. Called again within 24 h with the
// same digest it answers the same. start is as in Append.
//
// On a nil error the bytes are durable and their digest is d. A blob that was there before stays
// untouched. After ErrDigestMismatch the upload is gone. Where the storage has yet to make an object of the parts, the
// answer is Blob.Joining, and Stat waits for it.
//
// Errors: those of Append, ErrDigestMismatch, ErrAlgorithm (the upload is kept).
func (u *Uploads) Finish(ctx context.Context, secret string, d oci.Digest, start *int64, body io.Reader) (Blob, error) {
	blob, _, err := u.finishStream(ctx, secret, d, start, body)
	return blob, err
}

// finishStream is Finish that tells the upload's location as well.
func (u *Uploads) finishStream(ctx context.Context, secret string, d oci.Digest, start *int64, body io.Reader) (Blob, string, error) {
	s, err := u.beginStream(secret)
	if errors.Is(err, ErrUnknown) {
		hashed := sha256.Sum256([]byte(secret))
		return u.finishedBefore(ctx, "secret_hash", hashed[:], "", d)
	}
	if err != nil {
		return Blob{}, "", err
	}
	defer u.inflight.Done()
	defer u.release(ctx, s)
	if err := s.checkStart(start); err != nil {
		return Blob{}, "", err
	}
	if s.last == nil { // no bytes yet: the digest is known first
		if err := s.announce(d.Algorithm()); err != nil {
			return Blob{}, "", err
		}
		s.keyDigest = d
	}
	if body == nil {
		body = strings.NewReader("")
	}
	before := s.offset
	if s.has(d) {
		err = u.ready(ctx, s) // a PUT that comes again with all its bytes adds none
	} else {
		err = u.stream(ctx, s, body, false)
	}
	if err == nil && s.offset == before { // else the stream asked
		if err = u.allow(ctx, s); cut(err) {
			u.drop(ctx, s, "cut")
		}
	}
	if err != nil {
		return Blob{}, "", err
	}
	blob, err := u.complete(ctx, s, d)
	if err != nil && s.joins == "" && s.writer != nil && s.last.offset != s.offset {
		err = errors.Join(err, u.persist(ctx, s, nil)) // it can be finished later
	}
	return blob, s.location, err
}

// has tells whether all bytes of d are here already, or the storage may have made an object of what is
// here, so that nothing can be added.
func (s *session) has(d oci.Digest) bool {
	if s.stagedKey != "" || s.placed != "" {
		return true
	}
	return s.offset > 0 && d.Algorithm() == s.algorithm && oci.DigestOf(s.algorithm, s.hash) == d
}

// finishedBefore answers for an upload that was completed in the last 24 h. owner "" is not compared.
func (u *Uploads) finishedBefore(ctx context.Context, column string, value any, owner syntax.DID, d oci.Digest) (Blob, string, error) {
	e, err := u.endedBy(ctx, column, value)
	if err != nil {
		return Blob{}, "", err
	}
	if owner != "" && owner != e.owner || e.digest != d {
		return Blob{}, "", ErrUnknown
	}
	if e.joining {
		return Blob{Digest: d, Size: e.size, Verified: true, Owner: e.owner}, e.location, nil
	}
	blob, err := u.Stat(ctx, d, e.owner)
	if errors.Is(err, ErrNoBlob) { // it was read back since, and was something else
		return Blob{}, "", ErrDigestMismatch
	}
	return blob, e.location, err
}

// complete makes the blob d of a session whose bytes are all here. The caller works on s.
func (u *Uploads) complete(ctx context.Context, s *session, d oci.Digest) (Blob, error) {
	ctx, cancel := detached(ctx)
	defer cancel()
	if s.keyDigest != "" && s.keyDigest != d || s.placed != "" && s.placed != d {
		u.drop(ctx, s, "mismatch")
		return Blob{}, ErrDigestMismatch
	}
	if d.Algorithm() != s.algorithm || s.stagedKey != "" {
		return u.completeReadBack(ctx, s, d)
	}
	if oci.DigestOf(s.algorithm, s.hash) != d {
		u.drop(ctx, s, "mismatch")
		return Blob{}, ErrDigestMismatch
	}
	if blob, sealed, err := u.seal(ctx, s, d); sealed || err != nil {
		return blob, err
	}
	return u.place(ctx, s, d)
}

// place has the storage make an object of the bytes, which have the digest d, and makes that the blob.
func (u *Uploads) place(ctx context.Context, s *session, d oci.Digest) (Blob, error) {
	return u.commit(ctx, s, d, func() (string, error) {
		s.placed = d
		key, err := s.writer.Commit(ctx, blobstore.BlobKey(d))
		if err != nil {
			return "", u.notCommitted(ctx, s, err)
		}
		return key, nil
	})
}

// notCommitted is for an error of Commit: it can be tried again, unless the bytes are gone.
func (u *Uploads) notCommitted(ctx context.Context, s *session, err error) error {
	if errors.Is(err, blobstore.ErrNotFound) {
		return u.lost(ctx, s, err)
	}
	u.suspend(s)
	return fmt.Errorf("commit upload: %w", err)
}

// commit makes place's object the blob d, unless there is one: object, pointer, row, in this order, so
// that a row never names what is not there. The bytes were found to have the digest d.
func (u *Uploads) commit(ctx context.Context, s *session, d oci.Digest, place func() (key string, err error)) (Blob, error) {
	unlock, err := u.digests.lock(ctx, d)
	if err != nil {
		return Blob{}, err
	}
	defer unlock()
	blob, there, err := u.standing(ctx, d)
	if err != nil {
		return Blob{}, err
	}
	if there && s.owns(blob.Key) { // an earlier try was all but done, and Rebuild found it, or the database was silent on it
		there = false
	}
	key := blob.Key
	if !there {
		if key, err = place(); err != nil {
			return Blob{}, err
		}
	}
	owner, err := u.ownerNow(ctx, s)
	if err == nil && !there {
		now := u.now()
		blob = Blob{Digest: d, Size: s.offset, Key: key, Verified: true, Owner: owner, CreatedAt: now, TouchedAt: now}
		err = u.point(ctx, blob)
	}
	if err != nil {
		u.suspend(s)
		return Blob{}, err
	}
	spare := leftover{}
	if there {
		spare.state = s.last.storeState
	}
	if s.stagedKey != blob.Key {
		spare.key = s.stagedKey
	}
	err = u.db.Write(ctx, func(tx *sql.Tx) error {
		if err := u.recordVerified(ctx, tx, blob, owner); err != nil {
			return err
		}
		return u.endSession(ctx, tx, s, owner, d, spare)
	})
	if err != nil {
		if err = u.completed(ctx, s, d, err); err != nil {
			u.suspend(s)
			return Blob{}, fmt.Errorf("record blob: %w", err)
		}
	}
	u.encache(blob)
	if owner != "" {
		u.stored(owner, blob.Size)
	}
	u.finished(ctx, s, spare)
	return blob, nil
}

// owns tells whether key is of the object that the session makes, and of no other's.
func (s *session) owns(key string) bool {
	w, ok := s.writer.(blobstore.Sealer)
	return ok && w.Key() == key && strings.HasPrefix(key, blobstore.StagingPrefix)
}

func (u *Uploads) stored(owner syntax.DID, bytes int64) {
	if u.cfg.Stored != nil {
		u.cfg.Stored(owner, bytes)
	}
}

// completed finds out whether a completion that answered writeErr is in the database all the same. nil: it is.
func (u *Uploads) completed(ctx context.Context, s *session, d oci.Digest, writeErr error) error {
	var ended sql.NullInt64
	var digest string
	err := u.db.Reader().QueryRowContext(ctx, `SELECT ended_at, digest FROM upload WHERE id = ?`, s.id).Scan(&ended, &digest)
	switch {
	case err == nil && ended.Valid && digest == d.String():
		return nil
	case err != nil && s.joins == "": // else it is tried again
		u.abandon(s)
	}
	return errors.Join(writeErr, err)
}

// standing is the verified blob d, where its object is there as well. One without is replaced.
func (u *Uploads) standing(ctx context.Context, d oci.Digest) (Blob, bool, error) {
	blob, err := u.Verified(ctx, d)
	if errors.Is(err, ErrNoBlob) {
		return Blob{}, false, nil
	}
	if err != nil {
		return Blob{}, false, err
	}
	size, err := u.store.Stat(ctx, blob.Key)
	if errors.Is(err, blobstore.ErrNotFound) || err == nil && size != blob.Size {
		u.log.Error("a blob's object is missing or cut off; it is replaced by a new upload", "digest", d.String())
		return Blob{}, false, nil
	}
	return blob, err == nil, err
}

// pointer is the small object that says where a blob is that is not under its final key.
type pointer struct {
	Digest   oci.Digest `json:"digest"`
	Key      string     `json:"key"`
	Size     int64      `json:"size"`
	Uploader string     `json:"uploader"` // a DID; "": nobody's
}

func (u *Uploads) point(ctx context.Context, b Blob) error {
	if b.Key == blobstore.BlobKey(b.Digest) {
		return nil
	}
	raw, err := json.Marshal(pointer{b.Digest, b.Key, b.Size, b.Owner.String()})
	if err != nil {
		return err
	}
	if err := u.store.Put(ctx, blobstore.PointerKey(b.Digest), raw); err != nil {
		return fmt.Errorf("write pointer: %w", err)
	}
	return nil
}

// leftover is what a completed session has in the storage that is no blob's.
type leftover struct {
	state []byte // for Discard
	key   string // an object to delete
}

// endSession marks the session's row completed, where it is owner's still. Its bytes belong to the blob now, but for spare,
// which has yet to be freed.
func (u *Uploads) endSession(ctx context.Context, tx *sql.Tx, s *session, owner syntax.DID, d oci.Digest, spare leftover) error {
	done, err := tx.ExecContext(ctx, `UPDATE upload SET ended_at = ?, digest = ?, hash_state = NULL, store_state = ?,
		staged_key = ? WHERE id = ? AND owner = ? AND ended_at IS NULL`, u.now().UnixMilli(), d.String(), spare.state, spare.key, s.id, owner.String())
	if err != nil {
		return err
	}
	if n, err := done.RowsAffected(); err != nil || n != 1 {
		return errors.Join(fmt.Errorf("upload %s has no row of %q to complete", s.id, owner), err)
	}
	_, err = tx.ExecContext(ctx, `DELETE FROM upload_part WHERE upload = ?`, s.id)
	return err
}

// finished lets go of a completed session.
func (u *Uploads) finished(ctx context.Context, s *session, spare leftover) {
	u.forget(s)
	outcome := "stored"
	if spare.state != nil {
		outcome = "known"
		if s.writer != nil {
			if newer, err := s.writer.State(ctx); err == nil {
				spare.state = newer
			}
		}
	}
	u.releaseFiles(s)
	u.metrics.finished.WithLabelValues(outcome).Inc()
	if spare.state == nil && spare.key == "" {
		return
	}
	if err := u.clear(ctx, s.id, spare.state, spare.key, false); err != nil {
		u.log.Warn("a spare upload's bytes are not freed yet", "upload", s.id, "error", err)
	}
}

// completeReadBack is for a digest whose algorithm shows only at the end: the bytes get a key of their own,
// are read once, and that key becomes the blob's.
func (u *Uploads) completeReadBack(ctx context.Context, s *session, d oci.Digest) (Blob, error) {
	if s.offset > maxReadBackBytes {
		if err := u.persist(ctx, s, nil); err != nil {
			return Blob{}, err
		}
		return Blob{}, fmt.Errorf("%w: begin the upload with ?digest-algorithm=%s", ErrAlgorithm, d.Algorithm())
	}
	if s.stagedKey == "" {
		s.stagedKey = blobstore.StagingPrefix + strings.ToLower(s.id) + "-" + randomName()
	}
	if err := u.persist(ctx, s, nil); err != nil { // the row names the key before there is an object
		return Blob{}, err
	}
	key, err := s.writer.Commit(ctx, s.stagedKey)
	if err != nil {
		return Blob{}, u.notCommitted(ctx, s, err)
	}
	actual, size, err := u.hashObject(ctx, key, d.Algorithm())
	if err != nil {
		u.suspend(s)
		return Blob{}, err
	}
	if actual != d || size != s.offset {
		s.stagedKey = key
		u.drop(ctx, s, "mismatch")
		return Blob{}, ErrDigestMismatch
	}
	return u.commit(ctx, s, d, func() (string, error) { return key, nil })
}

// hashObject reads an object once.
func (u *Uploads) hashObject(ctx context.Context, key, algorithm string) (oci.Digest, int64, error) {
	h, err := oci.NewHash(algorithm)
	if err != nil {
		return "", 0, err
	}
	object, err := u.store.Open(ctx, key)
	if err != nil {
		return "", 0, fmt.Errorf("read back: %w", err)
	}
	defer func() { _ = object.Close() }() // only read
	n, err := io.Copy(h, contextReader{ctx, object})
	if err != nil {
		return "", 0, fmt.Errorf("read back: %w", err)
	}
	return oci.DigestOf(algorithm, h), n, nil
}

// contextReader ends reading when ctx does.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (r contextReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}
