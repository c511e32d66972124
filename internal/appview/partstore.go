package appview

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/api/atcr"
	"atcr.io/internal/oci"
	"atcr.io/internal/sqldb"
)

const (
	openParts = 1000
	openOwn   = 100       // of one person: contract, uploads a caller
	partsIdle = time.Hour // an upload without bytes for so long is forgotten
	// tailBytes bounds what all uploads together have waiting for more.
	tailBytes = 64 << 20
)

var partMigrations = []string{`
CREATE TABLE part_upload (
	hold TEXT NOT NULL, upload TEXT NOT NULL, subject TEXT NOT NULL, version INTEGER NOT NULL,
	size INTEGER NOT NULL, sent INTEGER NOT NULL, -- bytes and parts that the hold has
	tail_size INTEGER NOT NULL, tail BLOB NOT NULL, -- bytes that do not fill a part yet
	used_at INTEGER NOT NULL, PRIMARY KEY (hold, upload)
) STRICT;
CREATE INDEX part_upload_subject ON part_upload (subject);
CREATE TABLE part_sent (
	hold TEXT NOT NULL, upload TEXT NOT NULL, number INTEGER NOT NULL, etag TEXT NOT NULL, PRIMARY KEY (hold, upload, number)
) STRICT, WITHOUT ROWID;
`}

// partStore keeps how far uploads by parts are.
type partStore struct {
	db    *sqldb.DB
	clock clock
}

// partUpload is an upload as a request found it, and as it has changed it since.
type partUpload struct {
	version  int64 // another request that writes changes it too: then this one stops
	size     int64 // that the hold has
	sent     int   // parts that the hold has
	tailSize int64 // bytes that do not fill a part yet
}

func (u *partUpload) offset() int64 { return u.size + u.tailSize }

func (u *partUpload) arrived() string { return "0-" + strconv.FormatInt(max(u.offset()-1, 0), 10) }

func openPartStore(ctx context.Context, db *sqldb.DB, now clock) (*partStore, error) {
	if err := db.Migrate(ctx, "part_upload", partMigrations); err != nil {
		return nil, err
	}
	return &partStore{db: db, clock: now}, nil
}

// write is a transaction whose failure is told as one of uploads.
func (s *partStore) write(ctx context.Context, fn func(tx *sql.Tx) error) error {
	err := s.db.WriteRelaxed(ctx, fn)
	if _, ok := errors.AsType[*oci.Error](err); ok || err == nil {
		return err
	}
	return fmt.Errorf("keep an upload: %w", err)
}

func tooManyUploads() error {
	return &oci.Error{Code: oci.CodeTooManyRequests, Message: "too many uploads are open: try again later", RetryAfter: time.Minute}
}

func noUploadOfItsOwn(at syntax.DID) error {
	return oci.Unavailable(http.StatusBadGateway, nil, "the hold %s answered without an upload of its own", at)
}

func noSuchUpload() error {
	return oci.Errorf(oci.CodeBlobUploadUnknown, "there is no such upload (any more): begin a new one")
}

// begin makes an upload that a hold has given an id. Errors: *oci.Error where too many are open, or the id is in use.
func (s *partStore) begin(ctx context.Context, subject string, at syntax.DID, id string) error {
	now := s.clock()
	return s.write(ctx, func(tx *sql.Tx) error {
		idle := now.Add(-partsIdle).UnixMilli()
		for _, query := range []string{
			`DELETE FROM part_sent WHERE EXISTS (SELECT 1 FROM part_upload u WHERE u.hold = part_sent.hold AND u.upload = part_sent.upload AND u.used_at < ?)`,
			`DELETE FROM part_upload WHERE used_at < ?`,
		} {
			if _, err := tx.ExecContext(ctx, query, idle); err != nil {
				return err
			}
		}
		var own, all int
		err := tx.QueryRowContext(ctx, `SELECT (SELECT count(*) FROM part_upload WHERE subject = ?), (SELECT count(*) FROM part_upload)`, subject).Scan(&own, &all)
		if err != nil {
			return err
		}
		if own >= openOwn || all >= openParts {
			return tooManyUploads()
		}
		result, err := tx.ExecContext(ctx, `INSERT INTO part_upload (hold, upload, subject, version, size, sent, tail_size, tail, used_at) VALUES (?,?,?,0,0,0,0,?,?)
			ON CONFLICT (hold, upload) DO NOTHING`, at.String(), id, subject, []byte{}, now.UnixMilli())
		if err != nil {
			return err
		}
		if n, err := result.RowsAffected(); err != nil || n == 0 {
			return errors.Join(err, noUploadOfItsOwn(at))
		}
		return nil
	})
}

// find is an upload of the ticket's person. Errors: *oci.Error for none.
func (s *partStore) find(ctx context.Context, t ticket) (*partUpload, error) {
	u := &partUpload{}
	err := s.db.Reader().QueryRowContext(ctx, `SELECT version, size, sent, tail_size FROM part_upload WHERE hold = ? AND upload = ? AND subject = ?`,
		t.Hold.String(), t.UploadID, t.Subject).Scan(&u.version, &u.size, &u.sent, &u.tailSize)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, noSuchUpload()
	}
	if err != nil {
		return nil, fmt.Errorf("find an upload: %w", err)
	}
	return u, nil
}

// tail reads the bytes that wait for more into buffer.
func (s *partStore) tail(ctx context.Context, t ticket, u *partUpload, buffer []byte) (n int, err error) {
	if u.tailSize == 0 {
		return 0, nil
	}
	var raw []byte
	err = s.db.Reader().QueryRowContext(ctx, `SELECT tail FROM part_upload WHERE hold = ? AND upload = ? AND version = ?`,
		t.Hold.String(), t.UploadID, u.version).Scan(&raw)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, errBusy()
	}
	if err != nil {
		return 0, fmt.Errorf("find an upload: %w", err)
	}
	return copy(buffer, raw), nil
}

// keep holds the bytes back that do not fill a part.
func (s *partStore) keep(ctx context.Context, t ticket, u *partUpload, tail []byte) error {
	if len(tail) == 0 && u.tailSize == 0 {
		return nil
	}
	return s.change(ctx, t, u, func(tx *sql.Tx, next *partUpload) error {
		if next.tailSize = int64(len(tail)); next.tailSize > u.tailSize {
			var all int64
			if err := tx.QueryRowContext(ctx, `SELECT coalesce(sum(tail_size), 0) FROM part_upload`).Scan(&all); err != nil {
				return err
			}
			if all+next.tailSize-u.tailSize > tailBytes {
				return tooManyUploads()
			}
		}
		return nil
	}, tail)
}

// sent notes a part that the hold has; with it the tail has gone.
func (s *partStore) sent(ctx context.Context, t ticket, u *partUpload, etag string, size int64) error {
	return s.change(context.WithoutCancel(ctx), t, u, func(tx *sql.Tx, next *partUpload) error {
		next.sent, next.size, next.tailSize = u.sent+1, u.size+size, 0
		_, err := tx.ExecContext(ctx, `INSERT INTO part_sent (hold, upload, number, etag) VALUES (?,?,?,?)
			ON CONFLICT (hold, upload, number) DO UPDATE SET etag = excluded.etag`, t.Hold.String(), t.UploadID, next.sent, etag)
		return err
	}, nil)
}

// change writes an upload that nobody else has changed. Errors: *oci.Error where somebody has.
func (s *partStore) change(ctx context.Context, t ticket, u *partUpload, fn func(tx *sql.Tx, next *partUpload) error, tail []byte) error {
	var next partUpload
	err := s.write(ctx, func(tx *sql.Tx) error {
		next = *u
		next.version++
		if err := fn(tx, &next); err != nil {
			return err
		}
		result, err := tx.ExecContext(ctx, `UPDATE part_upload SET version = ?, size = ?, sent = ?, tail_size = ?, tail = ?, used_at = ?
			WHERE hold = ? AND upload = ? AND version = ?`,
			next.version, next.size, next.sent, next.tailSize, append([]byte{}, tail...), s.clock().UnixMilli(), t.Hold.String(), t.UploadID, u.version)
		if err != nil {
			return err
		}
		n, err := result.RowsAffected()
		if err == nil && n == 0 {
			return errBusyOrGone(ctx, tx, t)
		}
		return err
	})
	if err == nil {
		*u = next
	}
	return err
}

func errBusyOrGone(ctx context.Context, tx *sql.Tx, t ticket) error {
	var n int
	err := tx.QueryRowContext(ctx, `SELECT count(*) FROM part_upload WHERE hold = ? AND upload = ?`, t.Hold.String(), t.UploadID).Scan(&n)
	switch {
	case err != nil:
		return err
	case n > 0:
		return errBusy()
	}
	return oci.Errorf(oci.CodeBlobUploadUnknown, "the upload was cancelled")
}

// list is what was sent, in order.
func (s *partStore) list(ctx context.Context, t ticket) ([]atcr.HoldCompleteUploadPart, error) {
	rows, err := s.db.Reader().QueryContext(ctx, `SELECT number, etag FROM part_sent WHERE hold = ? AND upload = ? ORDER BY number`, t.Hold.String(), t.UploadID)
	if err != nil {
		return nil, fmt.Errorf("list parts: %w", err)
	}
	defer func() { _ = rows.Close() }()
	var out []atcr.HoldCompleteUploadPart
	for rows.Next() {
		var p atcr.HoldCompleteUploadPart
		if err := rows.Scan(&p.PartNumber, &p.Etag); err != nil {
			return nil, fmt.Errorf("list parts: %w", err)
		}
		out = append(out, p)
	}
	return out, rows.Err()
}

// forget removes an upload.
func (s *partStore) forget(ctx context.Context, t ticket) error {
	return s.write(ctx, func(tx *sql.Tx) error {
		for _, table := range []string{"part_sent", "part_upload"} {
			if _, err := tx.ExecContext(ctx, `DELETE FROM `+table+` WHERE hold = ? AND upload = ?`, t.Hold.String(), t.UploadID); err != nil {
				return err
			}
		}
		return nil
	})
}
