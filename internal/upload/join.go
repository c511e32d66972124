package upload

import (
	"context"
	"errors"
	"sync"
	"time"

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

func (s *session) joining() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.joins != ""
}

// toJoin makes s one that nobody gives up any more. Errors: ErrUnknown where somebody has.
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
	if _, err := u.verified(ctx, d); !errors.Is(err, ErrNoBlob) {
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
	if err := u.persist(ctx, s, nil); err != nil {
		return Blob{}, false, errors.Join(err, s.toJoin(""))
	}
	now := u.now()
	blob := Blob{Digest: d, Size: s.offset, Verified: true, Owner: s.owner, CreatedAt: now, TouchedAt: now}
	u.goJoin(s)
	return blob, true, nil
}

// goJoin begins join, and has Stat wait for it from now on.
func (u *Uploads) goJoin(s *session) {
	u.joins.begin(s.joins)
	u.workers.Go(func() {
		if u.join(s, s.joins) {
			u.joins.end(s.joins)
		}
	})
}

// join makes a blob of an acknowledged upload, however often that fails; false: the hold stops, and the next start goes on.
func (u *Uploads) join(s *session, d oci.Digest) bool {
	for pause := u.cfg.joinPause; ; pause = min(2*pause, joinPauseMost) {
		err := u.joinOnce(s, d)
		if err == nil {
			return true
		}
		if errors.Is(err, ErrUnknown) {
			u.log.Error("a blob that was acknowledged is lost: the storage has thrown its parts away", "digest", d.String(), "did", s.owner.String())
			return true
		}
		u.log.Warn("the storage has not joined a blob's parts; they are kept, and it is tried again", "digest", d.String(), "did", s.owner.String(),
			"pause", pause, "error", err)
		select {
		case <-u.background.Done():
			return false
		case <-time.After(pause):
		}
	}
}

func (u *Uploads) joinOnce(s *session, d oci.Digest) error {
	ctx, cancel := context.WithTimeout(context.Background(), detachedFor)
	defer cancel()
	defer context.AfterFunc(u.background, func() { time.AfterFunc(joinGrace, cancel) })()
	if err := u.ready(ctx, s); err != nil {
		return err
	}
	_, err := u.place(ctx, s, d)
	return err
}

// awaitJoined is the blob d once one of its uploads is joined. Errors: ErrNoBlob where none could be, ErrJoining,
// ErrClosed, ctx's.
func (u *Uploads) awaitJoined(ctx context.Context, d oci.Digest, ended <-chan struct{}) (Blob, error) {
	patience := time.NewTimer(u.cfg.joinWait)
	defer patience.Stop()
	for {
		select {
		case <-ended:
		case <-patience.C:
			return Blob{}, ErrJoining
		case <-u.background.Done():
			return Blob{}, ErrClosed
		case <-ctx.Done():
			return Blob{}, ctx.Err()
		}
		ended = u.joins.of(d)
		if blob, err := u.verified(ctx, d); ended == nil || !errors.Is(err, ErrNoBlob) {
			return blob, err
		}
	}
}
