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

// A large object in S3 comes into being when the storage joins its parts, which takes some servers seconds. By then the
// parts are durable and hashed, so that the upload is acknowledged before: the row says which digest it joins, the session
// belongs to join from then on, also after a restart, and who asks for the blob waits.

// joins are the blobs that are being joined.
type joins struct {
	mu   sync.Mutex
	open map[oci.Digest]*joining
}

// joining are the uploads of one digest.
type joining struct {
	uploads int
	ended   chan struct{} // closed when one of them ends
}

func (j *joins) begin(d oci.Digest) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.open == nil {
		j.open = map[oci.Digest]*joining{}
	}
	if j.open[d] == nil {
		j.open[d] = &joining{ended: make(chan struct{})}
	}
	j.open[d].uploads++
}

func (j *joins) end(d oci.Digest) {
	j.mu.Lock()
	defer j.mu.Unlock()
	at := j.open[d]
	close(at.ended)
	if at.uploads--; at.uploads == 0 {
		delete(j.open, d)
		return
	}
	at.ended = make(chan struct{})
}

// of is closed when an upload of d ends; nil where none is being joined.
func (j *joins) of(d oci.Digest) <-chan struct{} {
	j.mu.Lock()
	defer j.mu.Unlock()
	if at := j.open[d]; at != nil {
		return at.ended
	}
	return nil
}

func (j *joins) count() (n float64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, at := range j.open {
		n += float64(at.uploads)
	}
	return n
}

// joining is ErrUnknown for an upload that is acknowledged, and ErrBusy while it is about to be.
func (s *session) joining() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.joins == "":
		return nil
	case s.working:
		return ErrBusy
	}
	return ErrUnknown
}

// toJoin makes s one that nobody gives up any more, or with "" such as it was. Errors: ErrUnknown where somebody has given it
// up.
func (s *session) toJoin(d oci.Digest) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if d != "" && s.gone.Load() {
		return ErrUnknown
	}
	s.joins = d
	return nil
}

// seal acknowledges a stream whose bytes were found to have the digest d before the storage has made an object of them;
// false: that is not worth it, or not possible, and nothing has changed. The caller works on s.
func (u *Uploads) seal(ctx context.Context, s *session, d oci.Digest) (Blob, bool, error) {
	w, ok := s.writer.(blobstore.Sealer)
	if !ok || s.mode != modeStream || s.placed != "" {
		return Blob{}, false, nil
	}
	if _, err := u.Verified(ctx, d); !errors.Is(err, ErrNoBlob) {
		return Blob{}, false, err
	}
	sealed, err := w.Seal(ctx)
	if err != nil {
		return Blob{}, false, u.notCommitted(ctx, s, err)
	}
	if !sealed {
		return Blob{}, false, nil
	}
	if err := s.toJoin(d); err != nil {
		return Blob{}, false, err
	}
	now := u.now()
	blob := Blob{Digest: d, Size: s.offset, Verified: true, Owner: s.owner, CreatedAt: now, TouchedAt: now}
	if err := u.saveSealed(ctx, s, d); err != nil {
		return Blob{}, false, fmt.Errorf("acknowledge upload: %w", err)
	}
	return blob, true, nil
}

// saveSealed writes the row of a sealed upload and begins join. After an error s stands where it last did; but where nobody
// knows what the database has, it is joined, which can do no harm, and only not acknowledged.
func (u *Uploads) saveSealed(ctx context.Context, s *session, d oci.Digest) error {
	ctx, cancel := detached(ctx)
	defer cancel()
	next, err := s.toSave(ctx)
	if err == nil {
		err = u.save(ctx, s, next, nil)
	} else {
		next.storeState = nil
	}
	if err != nil {
		var joins string
		readErr := u.db.Reader().QueryRowContext(ctx, `SELECT joins FROM upload WHERE id = ?`, s.id).Scan(&joins)
		switch {
		case readErr != nil && next.storeState != nil:
			err = errors.Join(err, readErr)
		case joins != d.String():
			u.suspend(s)
			return errors.Join(err, s.toJoin(""))
		default:
			err = nil
		}
	}
	s.last = &next
	u.goJoin(s)
	return err
}

// goJoin gives s to join, and has Stat wait for it from now on.
func (u *Uploads) goJoin(s *session) {
	u.joins.begin(s.joins)
	u.workers.Go(func() {
		if u.join(s, s.joins) {
			u.joins.end(s.joins)
		}
	})
}

// errPartsMissing says: the storage has neither the parts of an acknowledged upload nor the object that they make.
var errPartsMissing = errors.New("the storage has neither the parts nor the object")

// join makes a blob of an acknowledged upload, however often that fails; false: the hold stops, and the next start goes on.
// Parts that are missing are lost only when they have been for long: a storage that was restored, or is not the one that it
// should be, may have them again.
func (u *Uploads) join(s *session, d oci.Digest) bool {
	var missing time.Time // since when the parts are
	for pause := u.cfg.joinPause; ; pause = min(2*pause, joinPauseMost) {
		err := u.joinOnce(s, d)
		if err == nil {
			return true
		}
		if errors.Is(err, ErrUnknown) { // an earlier lose was written, and the database did not say so
			u.drop(context.Background(), s, "lost")
			return true
		}
		if !errors.Is(err, errPartsMissing) {
			missing = time.Time{}
		} else if missing.IsZero() {
			missing = u.now()
		} else if u.now().Sub(missing) > joinLostAfter {
			lostErr := u.lose(s, d)
			if lostErr == nil {
				return true
			}
			err = errors.Join(err, lostErr)
		}
		u.log.Warn("the storage has not joined a blob's parts; it is tried again", "digest", d.String(), "did", s.owner.String(), "pause", pause, "error", err)
		select {
		case <-u.background.Done():
			return false
		case <-time.After(pause):
		}
	}
}

func (u *Uploads) joinOnce(s *session, d oci.Digest) error {
	ctx, cancel := context.WithTimeout(context.Background(), joinFor)
	defer cancel()
	defer context.AfterFunc(u.background, func() { time.AfterFunc(joinGrace, cancel) })()
	select {
	case u.joining <- struct{}{}:
		defer func() { <-u.joining }()
	case <-u.background.Done():
		return ErrClosed
	}
	if err := u.ready(ctx, s); err != nil {
		return err
	}
	_, err := u.place(ctx, s, d)
	return err
}

// lose ends an acknowledged upload that is lost. What may be left of it is freed by Sweep.
func (u *Uploads) lose(s *session, d oci.Digest) error {
	ctx, cancel := detached(context.Background())
	defer cancel()
	if err := u.exec(ctx, `UPDATE upload SET ended_at = ?, digest = '', joins = '' WHERE id = ? AND ended_at IS NULL`, u.now().UnixMilli(), s.id); err != nil {
		return err
	}
	u.log.Error("a blob that was acknowledged is lost: the storage has thrown its parts away", "digest", d.String(), "did", s.owner.String())
	u.drop(ctx, s, "lost")
	return nil
}

// ownerNow is who uploaded s, "" where they had their data deleted since it was acknowledged: neither index nor pointer is to
// name them then. Where they do so a moment later, endSession refuses, and join asks again. Errors: ErrUnknown where s was ended
// for lost.
func (u *Uploads) ownerNow(ctx context.Context, s *session) (owner syntax.DID, err error) {
	if s.joins == "" {
		return s.owner, nil
	}
	err = u.db.Reader().QueryRowContext(ctx, `SELECT owner FROM upload WHERE id = ? AND (ended_at IS NULL OR digest <> '')`, s.id).Scan(&owner)
	if errors.Is(err, sql.ErrNoRows) {
		err = ErrUnknown
	}
	if err != nil {
		return "", fmt.Errorf("whose the blob is: %w", err)
	}
	return owner, nil
}

// isJoined tells whether an acknowledged upload is to become d: its object may be there, and have no row yet.
func (u *Uploads) isJoined(ctx context.Context, d oci.Digest) (joins bool, err error) {
	err = u.db.Reader().QueryRowContext(ctx, `SELECT EXISTS (SELECT 1 FROM upload WHERE joins = ? AND joins <> '' AND ended_at IS NULL)`, d.String()).Scan(&joins)
	return joins, err
}

// awaitJoined is the blob d once one of its uploads is joined. Errors: ErrNoBlob where none could be, ErrJoining,
// ErrClosed, ctx's.
func (u *Uploads) awaitJoined(ctx context.Context, d oci.Digest, ended <-chan struct{}) (Blob, error) {
	patience := time.NewTimer(u.cfg.JoinWait)
	defer patience.Stop()
	for {
		select {
		case <-ended:
		case <-patience.C:
			return Blob{}, ErrJoining
		case <-u.waiting.Done():
			return Blob{}, ErrClosed
		case <-ctx.Done():
			return Blob{}, ctx.Err()
		}
		ended = u.joins.of(d)
		if blob, err := u.Verified(ctx, d); ended == nil || !errors.Is(err, ErrNoBlob) {
			return blob, err
		}
	}
}
