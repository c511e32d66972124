package upload

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"hash"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/internal/blobstore"
	"atcr.io/internal/oci"
)

// How the bytes of a session come. It is none until the first of them.
const (
	modeNone = iota
	modeStream
	modeParts
	modePresigned
)

// session is one unfinished upload. Whoever holds working owns the fields of the last group.
type session struct {
	id         string
	secretHash [32]byte
	owner      syntax.DID
	location   string
	created    time.Time

	received atomic.Int64 // bytes that arrived, those of a running append included
	active   atomic.Int64 // when the last of them did, in milliseconds
	stopping atomic.Bool  // the hold stops: end with ErrClosed, keep what arrived
	gone     atomic.Bool  // given up: end with ErrUnknown, keep nothing

	mu      sync.Mutex
	working bool
	ended   bool       // completed or dropped: not in the maps any more
	joins   oci.Digest // acknowledged as this digest: nobody but join works on it any more
	mode    int
	adding  int // the part that is being appended from its request; 0: none
	parts   []part
	spool   map[int]*spooledPart

	spooled   atomic.Int64 // bytes in spool
	beginning sync.Mutex   // held while a multipart upload is begun
	algorithm string
	keyDigest oci.Digest // the final key that the Writer was made for, if any
	stagedKey string     // where the bytes went to be read back, if they did
	placed    oci.Digest // what the bytes were to be committed as, when that failed: nothing can be added now
	joined    *joined    // what the storage made of presigned parts, if it did
	hash      hash.Hash
	writer    blobstore.Writer
	offset    int64
	last      *saved // what the database has; nil: no row yet
}

// acquire makes the caller the one that works on s. Errors: ErrBusy, ErrUnknown, ErrMixed.
func (s *session) acquire(mode int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.claimLocked(mode); err != nil {
		return err
	}
	if s.working {
		return ErrBusy
	}
	s.working = true
	return nil
}

// claimLocked settles how the bytes come; modeNone claims nothing.
func (s *session) claimLocked(mode int) error {
	if s.ended || s.joins != "" || s.gone.Load() {
		return ErrUnknown
	}
	if mode == modeNone {
		return nil
	}
	switch s.mode {
	case modeNone:
		s.mode = mode
	case mode: // not written again: whoever works on s reads it
	default:
		return ErrMixed
	}
	return nil
}

// release ends what acquire began. Where the session was given up meanwhile, it is cleared away now.
func (u *Uploads) release(ctx context.Context, s *session) {
	s.mu.Lock()
	s.working = false
	clear := s.gone.Load() && !s.ended
	if clear {
		s.working = true
	}
	s.mu.Unlock()
	if clear {
		u.drop(ctx, s, "aborted")
	}
}

// giveUp ends s now, or when whoever works on it notices.
func (u *Uploads) giveUp(ctx context.Context, s *session, outcome string) {
	s.mu.Lock()
	mine := false
	if s.joins == "" { // else it is acknowledged
		s.gone.Store(true)
		if mine = !s.working && !s.ended; mine {
			s.working = true
		}
	}
	s.mu.Unlock()
	if mine {
		u.drop(ctx, s, outcome)
	}
}

// ready makes sure that s has a Writer that stands at s.offset, and a row that names what it leaves in the
// storage: from then on no crash can leave bytes behind that nobody knows of.
func (u *Uploads) ready(ctx context.Context, s *session) error {
	if s.writer != nil {
		return nil
	}
	if s.last != nil {
		w, err := u.store.Resume(ctx, s.last.storeState)
		if err == nil && w.Size() != s.last.offset {
			err = errors.Join(fmt.Errorf("the storage has %d bytes, not %d: %w", w.Size(), s.last.offset, blobstore.ErrNotFound), w.Close())
		}
		if errors.Is(err, blobstore.ErrNotFound) {
			return u.lost(ctx, s, err)
		}
		if err != nil {
			return fmt.Errorf("resume upload: %w", err)
		}
		s.writer = w
		return nil
	}
	key := ""
	if s.keyDigest != "" {
		key = blobstore.BlobKey(s.keyDigest)
	}
	w, err := u.store.Create(ctx, key)
	if err != nil {
		return fmt.Errorf("begin upload: %w", err)
	}
	s.writer = w
	if s.hash == nil {
		if s.hash, err = oci.NewHash(s.algorithm); err != nil {
			return err
		}
	}
	return u.persist(ctx, s, nil)
}

// lost ends an upload whose bytes the storage does not have any more: the client begins again. One that is acknowledged is
// not ended by one such answer.
func (u *Uploads) lost(ctx context.Context, s *session, cause error) error {
	if s.joins != "" {
		u.suspend(s)
		return fmt.Errorf("%w: %w", errPartsMissing, cause)
	}
	u.log.Warn("an upload's bytes are gone from the storage", "upload", s.id, "error", cause)
	u.drop(ctx, s, "lost")
	return ErrUnknown
}

// toSave is where s stands, for its row. After an error it may have a storeState all the same.
func (s *session) toSave(ctx context.Context) (next saved, err error) {
	next.offset = s.offset
	if next.storeState, err = s.writer.State(ctx); err == nil {
		next.hashState, err = hashState(s.hash)
	}
	return next, err
}

// persist makes what arrived outlive the process. After an error s stands where it last did.
func (u *Uploads) persist(ctx context.Context, s *session, finished *part) error {
	ctx, cancel := detached(ctx)
	defer cancel()
	next, err := s.toSave(ctx)
	if err == nil {
		if err = u.save(ctx, s, next, finished); err != nil {
			err = u.outcome(ctx, s, next, err)
		}
	}
	if err != nil {
		if s.last == nil && next.storeState != nil {
			err = errors.Join(err, s.writer.Close(), u.store.Discard(ctx, next.storeState))
			s.writer = nil
		}
		u.suspend(s)
		return fmt.Errorf("keep upload: %w", err)
	}
	s.last = &next
	return nil
}

// outcome finds out whether a write that answered saveErr is in the database all the same, since a
// transaction that fails at its very end may be. nil: it is.
func (u *Uploads) outcome(ctx context.Context, s *session, next saved, saveErr error) error {
	var offset int64
	var state []byte
	err := u.db.Reader().QueryRowContext(ctx, `SELECT byte_offset, store_state FROM upload WHERE id = ? AND ended_at IS NULL`,
		s.id).Scan(&offset, &state)
	switch {
	case err == nil && offset == next.offset && bytes.Equal(state, next.storeState):
		return nil
	case err == nil || errors.Is(err, sql.ErrNoRows):
		return saveErr
	}
	u.abandon(s)
	return errors.Join(saveErr, err)
}

// abandon lets go of a session of which nobody knows what the database has: it is taken up again, or not,
// by the next Open. Nothing is freed, since its bytes may be a blob's.
func (u *Uploads) abandon(s *session) {
	u.log.Error("an upload is left to the next start: the database fails", "upload", s.id)
	s.gone.Store(true)
	u.forget(s)
}

// suspend puts s back to what the database has of it.
func (u *Uploads) suspend(s *session) {
	if s.writer != nil {
		if err := s.writer.Close(); err != nil {
			u.log.Warn("close an upload's writer", "upload", s.id, "error", err)
		}
		s.writer = nil
	}
	s.hash, s.offset = nil, 0
	if s.last != nil {
		h, err := restoreHash(s.algorithm, s.last.hashState)
		if err != nil {
			u.log.Error("restore an upload's hash", "upload", s.id, "error", err)
			s.gone.Store(true) // it would never match
			return
		}
		s.hash, s.offset = h, s.last.offset
	}
	s.received.Store(s.offset)
}

// append takes all of body. On an error of body what came before it is taken (and not yet persisted); on
// any other s stands where it last did.
func (u *Uploads) append(ctx context.Context, s *session, body io.Reader, options appendOptions) error {
	if err := u.ready(ctx, s); err != nil {
		return err
	}
	in := newIntake(ctx, u, s, body, options.metered)
	kept := u.now()
	for {
		in.budget = u.checkpoint
		taken, err := s.writer.ReadFrom(in)
		if err == nil && !in.done {
			err = in.err
		}
		bodyErr := in.err != nil && !in.done && errors.Is(err, in.err)
		if taken != in.read && (err == nil || bodyErr) {
			err, bodyErr = fmt.Errorf("the storage took %d bytes of %d: %w", taken, in.read, err), false
		}
		if err != nil && !bodyErr {
			if errors.Is(err, blobstore.ErrNotFound) {
				return u.lost(ctx, s, err)
			}
			u.suspend(s)
			return fmt.Errorf("store upload: %w", err)
		}
		s.offset += taken
		in.read = 0
		switch {
		case in.done:
			return nil
		case in.err != nil:
			return in.err
		}
		if options.checkpoints && u.now().Sub(kept) >= u.checkpointPause {
			if err := u.persist(ctx, s, nil); err != nil {
				return err
			}
			kept = u.now()
		}
	}
}

type appendOptions struct {
	metered     bool // the bytes are new: ask the quota, count them
	checkpoints bool // persist in between; a part that breaks off is undone instead
}

// cut tells whether err is one after which an upload is not kept.
func cut(err error) bool { return errors.Is(err, ErrQuota) || errors.Is(err, ErrTooLarge) }

// drop ends s and frees what it has. The caller works on s. What cannot be freed now is freed by Sweep.
func (u *Uploads) drop(ctx context.Context, s *session, outcome string) {
	ctx, cancel := detached(ctx)
	defer cancel()
	s.gone.Store(true)
	if !u.forget(s) {
		return
	}
	u.metrics.finished.WithLabelValues(outcome).Inc()
	if s.writer != nil && s.last != nil {
		if state, err := s.writer.State(ctx); err == nil { // newer than the row's: it may name more
			s.last.storeState = state
		}
	}
	u.releaseFiles(s)
	if s.last == nil {
		return
	}
	open := int64(0)
	err := u.db.WriteRelaxed(ctx, func(tx *sql.Tx) error {
		done, err := tx.ExecContext(ctx, `UPDATE upload SET ended_at = ?, digest = '', store_state = ?, staged_key = ?
			WHERE id = ? AND ended_at IS NULL`, u.now().UnixMilli(), s.last.storeState, s.stagedKey, s.id)
		if err == nil {
			open, err = done.RowsAffected()
		}
		return err
	})
	if err == nil && open == 1 { // else it was completed, and its bytes are a blob's
		err = u.clear(ctx, s.id, s.last.storeState, s.stagedKey, true)
	}
	if err != nil {
		u.log.Warn("an upload's bytes are not freed yet", "upload", s.id, "error", err)
	}
}

// forget takes s out of the maps; false: somebody did before.
func (u *Uploads) forget(s *session) bool {
	s.mu.Lock()
	before := s.ended
	s.ended = true
	s.mu.Unlock()
	u.mu.Lock()
	delete(u.byID, s.id)
	delete(u.bySecret, s.secretHash)
	u.mu.Unlock()
	return !before
}

// clear frees what an ended upload left in the storage, then its row (or only the row's memory of it).
func (u *Uploads) clear(ctx context.Context, id string, state []byte, stagedKey string, row bool) error {
	if len(state) > 0 {
		if err := u.store.Discard(ctx, state); err != nil {
			return fmt.Errorf("discard: %w", err)
		}
	}
	if stagedKey != "" {
		if err := u.deleteStaged(ctx, stagedKey); err != nil {
			return fmt.Errorf("delete: %w", err)
		}
	}
	return u.db.WriteRelaxed(ctx, func(tx *sql.Tx) error {
		query := `UPDATE upload SET store_state = NULL, staged_key = '' WHERE id = ?`
		if row {
			query = `DELETE FROM upload WHERE id = ?`
		}
		_, err := tx.ExecContext(ctx, query, id)
		return err
	})
}

// deleteStaged deletes the object of an upload that came to nothing, unless Rebuild found its pointer and made
// it a blob's.
func (u *Uploads) deleteStaged(ctx context.Context, key string) error {
	leave := u.deletions.enter()
	defer leave()
	if named, err := u.keyNamed(ctx, key); err != nil || named {
		return err
	}
	u.deletions.note(key)
	return u.store.Delete(ctx, key)
}

// releaseFiles gives back what s holds in this process.
func (u *Uploads) releaseFiles(s *session) {
	if s.writer != nil {
		_ = s.writer.Close() // what it holds is in the row, or to be discarded
		s.writer = nil
	}
	s.mu.Lock()
	var waiting []spooledPart
	for number, p := range s.spool {
		if p.file != nil { // one that is arriving is cleared away by whom it came to
			waiting = append(waiting, *p)
			delete(s.spool, number)
		}
	}
	s.mu.Unlock()
	for _, p := range waiting {
		u.unspool(s, p)
	}
}
