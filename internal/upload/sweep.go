package upload

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"atcr.io/internal/blobstore"
)

func (u *Uploads) sweepLoop(ctx context.Context) {
	tick := time.NewTicker(u.cfg.SweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if err := u.Sweep(ctx); err != nil && ctx.Err() == nil {
			u.log.Warn("sweep uploads", "error", err)
		}
	}
}

// expired tells whether s has come to its age.
func (u *Uploads) expired(s *session) bool {
	now := u.now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if now.Sub(s.created) > OpenFor {
		return true
	}
	streamed := s.mode == modeNone || s.mode == modeStream
	return streamed && !s.working && now.Sub(time.UnixMilli(s.active.Load())) > IdleFor
}

// Sweep ends uploads that were left unfinished, frees what earlier ones left in the storage, and gives
// back the files of those that pause. It runs by itself; calling it is always safe.
func (u *Uploads) Sweep(ctx context.Context) error {
	u.mu.Lock()
	sessions := u.sessionsLocked()
	u.mu.Unlock()
	for _, s := range sessions {
		if u.expired(s) {
			u.giveUp(ctx, s, "expired")
			continue
		}
		u.rest(ctx, s)
	}
	return errors.Join(u.clearEnded(ctx), u.expireUnverified(ctx), u.collectGarbage(ctx))
}

// rest closes the Writer of an upload that pauses; it is resumed when bytes come.
func (u *Uploads) rest(ctx context.Context, s *session) {
	if u.now().Sub(time.UnixMilli(s.active.Load())) < idleWriterFor || s.acquire(modeNone) != nil {
		return
	}
	defer u.release(ctx, s)
	if s.writer != nil {
		u.suspend(s)
	}
}

// clearEnded frees what could not be freed when its upload ended, and forgets those that are long over.
func (u *Uploads) clearEnded(ctx context.Context) error {
	type row struct {
		id, stagedKey, digest string
		state                 []byte
	}
	if err := u.endForgotten(ctx); err != nil {
		return err
	}
	old := u.now().Add(-RememberFor).UnixMilli()
	rows, err := u.db.Reader().QueryContext(ctx, `SELECT id, staged_key, digest, store_state FROM upload WHERE ended_at IS NOT NULL
		AND (store_state IS NOT NULL OR staged_key <> '' OR digest = '' OR ended_at < ?)`, old)
	if err != nil {
		return err
	}
	var all []row
	for rows.Next() {
		var r row
		if err := rows.Scan(&r.id, &r.stagedKey, &r.digest, &r.state); err != nil {
			return errors.Join(err, rows.Close())
		}
		all = append(all, r)
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return err
	}
	var errs []error
	for _, r := range all {
		if err := u.clear(ctx, r.id, r.state, r.stagedKey, r.digest == ""); err != nil {
			errs = append(errs, fmt.Errorf("free upload %s: %w", r.id, err))
		}
	}
	if len(all) > 0 {
		errs = append(errs, u.db.WriteRelaxed(ctx, func(tx *sql.Tx) error {
			_, err := tx.ExecContext(ctx, `DELETE FROM upload WHERE ended_at < ? AND store_state IS NULL AND staged_key = ''`, old)
			return err
		}))
	}
	return errors.Join(errs...)
}

// endForgotten gives up old rows that no session stands for: the database failed when theirs ended.
func (u *Uploads) endForgotten(ctx context.Context) error {
	rows, err := u.db.Reader().QueryContext(ctx, `SELECT id FROM upload WHERE ended_at IS NULL AND created_at < ?`,
		u.now().Add(-OpenFor).UnixMilli())
	if err != nil {
		return err
	}
	var forgotten []string
	for rows.Next() {
		var id string
		if err := rows.Scan(&id); err != nil {
			return errors.Join(err, rows.Close())
		}
		u.mu.Lock()
		if u.byID[id] == nil {
			forgotten = append(forgotten, id)
		}
		u.mu.Unlock()
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return err
	}
	for _, id := range forgotten {
		if err := u.exec(ctx, `UPDATE upload SET ended_at = ?, digest = '' WHERE id = ? AND ended_at IS NULL`, u.now().UnixMilli(), id); err != nil {
			return err
		}
	}
	return nil
}

// expireUnverified removes what could not be verified in all its time.
func (u *Uploads) expireUnverified(ctx context.Context) error {
	rows, err := u.ids(ctx, `SELECT id FROM blob WHERE verified = 0 AND created_at < ?`, u.now().Add(-UnverifiedFor).UnixMilli())
	if err != nil {
		return err
	}
	var errs []error
	for _, row := range rows {
		blob, err := u.unverified(ctx, row)
		if err == nil {
			err = u.claim(blob.Key)
		}
		if err == nil {
			err = u.reject(ctx, row, blob)
			u.unclaim(blob.Key)
		}
		if errors.Is(err, ErrNoBlob) || errors.Is(err, errBeingVerified) {
			continue
		}
		if err != nil && !errors.Is(err, errReplaced) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (u *Uploads) addGarbage(ctx context.Context, tx *sql.Tx, key string) error {
	_, err := tx.ExecContext(ctx, `INSERT INTO blob_garbage (key, created_at) VALUES (?,?) ON CONFLICT DO NOTHING`,
		key, u.now().UnixMilli())
	return err
}

// collectGarbage deletes the objects that no row names any more.
func (u *Uploads) collectGarbage(ctx context.Context) error {
	rows, err := u.db.Reader().QueryContext(ctx, `SELECT key FROM blob_garbage g
		WHERE NOT EXISTS (SELECT 1 FROM blob b WHERE b.key = g.key)`)
	if err != nil {
		return err
	}
	var keys []string
	for rows.Next() {
		var key string
		if err := rows.Scan(&key); err != nil {
			return errors.Join(err, rows.Close())
		}
		keys = append(keys, key)
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return err
	}
	var errs []error
	for _, key := range keys {
		if err := u.collectKey(ctx, key); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// collectKey deletes one of them. A blob may be on its way to its final key, or to its pointer's, again: who
// brings it holds the lock of its digest, and then has a row.
func (u *Uploads) collectKey(ctx context.Context, key string) error {
	if d, ok := blobstore.KeyDigest(key); ok {
		if joins, err := u.isJoined(ctx, d); err != nil || joins { // for which its lock is held long
			return err
		}
		unlock, err := u.digests.lock(ctx, d)
		if err != nil {
			return err
		}
		defer unlock()
		leave := u.deletions.enter()
		defer leave()
		if joins, err := u.isJoined(ctx, d); err != nil || joins {
			return err
		}
		if b, err := u.Verified(ctx, d); err == nil && (b.Key == key || key == blobstore.PointerKey(d) && b.Key != blobstore.BlobKey(d)) {
			return u.db.WriteRelaxed(ctx, func(tx *sql.Tx) error {
				_, err := tx.ExecContext(ctx, `DELETE FROM blob_garbage WHERE key = ?`, key)
				return err
			})
		} else if err != nil && !errors.Is(err, ErrNoBlob) {
			return err
		}
	}
	if named, err := u.keyNamed(ctx, key); err != nil || named {
		return err
	}
	return u.deleteGarbage(ctx, key)
}

// keyNamed tells whether an object is a blob's.
func (u *Uploads) keyNamed(ctx context.Context, key string) (bool, error) {
	var n int
	err := u.db.Reader().QueryRowContext(ctx, `SELECT count(*) FROM (SELECT 1 FROM blob WHERE key = ? LIMIT 1)`, key).Scan(&n)
	return n > 0, err
}
