package upload

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding"
	"errors"
	"fmt"
	"hash"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/internal/oci"
)

// migrations is append-only. Times are milliseconds since 1970.
//
// upload.ended_at is set when an upload was completed (digest is then the blob's) or given up (digest is
// then empty); a store_state that is still there has yet to be discarded.
var migrations = []string{`
CREATE TABLE blob (
	id          INTEGER PRIMARY KEY,
	digest      TEXT    NOT NULL,
	verified    INTEGER NOT NULL,
	uploader    TEXT    NOT NULL,
	size        INTEGER NOT NULL,
	key         TEXT    NOT NULL,
	created_at  INTEGER NOT NULL,
	touched_at  INTEGER NOT NULL,
	verified_at INTEGER
) STRICT;
CREATE UNIQUE INDEX blob_verified ON blob (digest) WHERE verified = 1;
CREATE UNIQUE INDEX blob_unverified ON blob (digest, uploader) WHERE verified = 0;
CREATE TABLE blob_uploader (
	digest     TEXT    NOT NULL,
	uploader   TEXT    NOT NULL,
	created_at INTEGER NOT NULL,
	PRIMARY KEY (digest, uploader)
) STRICT, WITHOUT ROWID;
CREATE INDEX blob_uploader_uploader ON blob_uploader (uploader);
CREATE TABLE blob_garbage (
	key        TEXT    PRIMARY KEY,
	created_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE blob_found (
	key      TEXT    PRIMARY KEY,
	size     INTEGER NOT NULL,
	digest   TEXT    NOT NULL,
	uploader TEXT    NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE upload (
	id          TEXT    PRIMARY KEY,
	secret_hash BLOB    NOT NULL UNIQUE,
	owner       TEXT    NOT NULL,
	location    TEXT    NOT NULL,
	mode        INTEGER NOT NULL,
	algorithm   TEXT    NOT NULL,
	key_digest  TEXT    NOT NULL,
	staged_key  TEXT    NOT NULL,
	byte_offset INTEGER NOT NULL,
	hash_state  BLOB,
	store_state BLOB,
	created_at  INTEGER NOT NULL,
	active_at   INTEGER NOT NULL,
	ended_at    INTEGER,
	digest      TEXT    NOT NULL DEFAULT ''
) STRICT;
CREATE INDEX upload_ended ON upload (ended_at);
CREATE TABLE upload_part (
	upload TEXT    NOT NULL REFERENCES upload (id) ON DELETE CASCADE,
	number INTEGER NOT NULL,
	size   INTEGER NOT NULL,
	crc    INTEGER NOT NULL,
	PRIMARY KEY (upload, number)
) STRICT, WITHOUT ROWID;
`, `
-- named: 1 where a manifest of the uploader names the blob, which then counts elsewhere; 2: not looked at yet.
ALTER TABLE blob_uploader ADD COLUMN named INTEGER NOT NULL DEFAULT 2;
CREATE INDEX blob_uploader_unnamed ON blob_uploader (uploader) WHERE named <> 1;
CREATE TABLE blob_promise (
	digest TEXT    NOT NULL,
	did    TEXT    NOT NULL,
	at     INTEGER NOT NULL,
	PRIMARY KEY (digest, did)
) STRICT, WITHOUT ROWID;
CREATE INDEX blob_promise_at ON blob_promise (at);
`, `
-- joins: the digest of an upload that is acknowledged, and of which the storage has yet to make an object.
ALTER TABLE upload ADD COLUMN joins TEXT NOT NULL DEFAULT '';
CREATE INDEX upload_joins ON upload (joins) WHERE joins <> '';
`}

// saved is the part of a session that outlives the process: bytes up to offset, the hash over them, and
// where the storage has them. The three belong together.
type saved struct {
	offset     int64
	hashState  []byte
	storeState []byte
}

// save writes the session's row, and a part's if it is not nil, in one transaction: a relaxed one, unless the upload is to
// be acknowledged.
func (u *Uploads) save(ctx context.Context, s *session, next saved, finished *part) error {
	write := u.db.WriteRelaxed
	if s.joins != "" {
		write = u.db.Write
	}
	return write(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `INSERT INTO upload (id, secret_hash, owner, location, mode, algorithm, key_digest,
				staged_key, byte_offset, hash_state, store_state, created_at, active_at, joins)
			VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?)
			ON CONFLICT (id) DO UPDATE SET mode = excluded.mode, algorithm = excluded.algorithm,
				key_digest = excluded.key_digest, staged_key = excluded.staged_key, byte_offset = excluded.byte_offset,
				hash_state = excluded.hash_state, store_state = excluded.store_state, active_at = excluded.active_at, joins = excluded.joins`,
			s.id, s.secretHash[:], s.owner.String(), s.location, s.mode, s.algorithm, s.keyDigest.String(),
			s.stagedKey, next.offset, next.hashState, next.storeState, s.created.UnixMilli(), s.active.Load(), s.joins.String())
		if err != nil || finished == nil {
			return err
		}
		_, err = tx.ExecContext(ctx, `INSERT INTO upload_part (upload, number, size, crc) VALUES (?,?,?,?)`,
			s.id, len(s.parts)+1, finished.size, int64(finished.crc))
		return err
	})
}

// loadSessions brings the unfinished uploads into memory; their Writers are resumed when bytes come.
func (u *Uploads) loadSessions(ctx context.Context) error {
	rows, err := u.db.Reader().QueryContext(ctx, `SELECT id, secret_hash, owner, location, mode, algorithm, key_digest,
		staged_key, byte_offset, hash_state, store_state, created_at, active_at, joins FROM upload WHERE ended_at IS NULL`)
	if err != nil {
		return err
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var (
			s               session
			secret          []byte
			owner, keyed    string
			joins           string
			created, active int64
			last            saved
		)
		if err := rows.Scan(&s.id, &secret, &owner, &s.location, &s.mode, &s.algorithm, &keyed, &s.stagedKey,
			&last.offset, &last.hashState, &last.storeState, &created, &active, &joins); err != nil {
			return err
		}
		if len(secret) != sha256.Size {
			return fmt.Errorf("upload %s: a secret's hash of %d bytes", s.id, len(secret))
		}
		copy(s.secretHash[:], secret)
		s.owner, s.keyDigest, s.joins = syntax.DID(owner), oci.Digest(keyed), oci.Digest(joins)
		s.created = time.UnixMilli(created)
		s.active.Store(active)
		s.last = &last
		s.offset = last.offset
		s.received.Store(last.offset)
		if s.mode != modePresigned {
			if s.hash, err = restoreHash(s.algorithm, last.hashState); err != nil {
				return fmt.Errorf("upload %s: %w", s.id, err)
			}
		}
		u.byID[s.id] = &s
		u.bySecret[s.secretHash] = &s
	}
	if err := rows.Err(); err != nil {
		return err
	}
	return u.loadParts(ctx)
}

func (u *Uploads) loadParts(ctx context.Context) error {
	rows, err := u.db.Reader().QueryContext(ctx, `SELECT p.upload, p.number, p.size, p.crc FROM upload_part p
		JOIN upload s ON s.id = p.upload WHERE s.ended_at IS NULL ORDER BY p.upload, p.number`)
	if err != nil {
		return err
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var (
			id     string
			number int
			size   int64
			crc    int64
		)
		if err := rows.Scan(&id, &number, &size, &crc); err != nil {
			return err
		}
		s := u.byID[id]
		if s == nil || number != len(s.parts)+1 {
			return fmt.Errorf("upload %s: part %d is out of order", id, number)
		}
		s.parts = append(s.parts, part{size: size, crc: uint32(crc)}) //nolint:gosec // it was one when written
	}
	return rows.Err()
}

// ended is a finished upload as the database remembers it.
type ended struct {
	owner    syntax.DID
	digest   oci.Digest // "": given up
	size     int64      // bytes; only while joining
	joining  bool       // it was acknowledged, and the storage has yet to make an object of it
	location string
}

// endedBy finds a finished upload by a column. Errors: ErrUnknown.
func (u *Uploads) endedBy(ctx context.Context, column string, value any) (ended, error) {
	var owner, digest, joins string
	var e ended
	var at sql.NullInt64
	err := u.db.Reader().QueryRowContext(ctx, `SELECT owner, digest, joins, byte_offset, location, ended_at FROM upload
		WHERE `+column+` = ? AND (ended_at IS NOT NULL OR joins <> '')`, value).Scan(&owner, &digest, &joins, &e.size, &e.location, &at)
	if e.joining = err == nil && !at.Valid; e.joining {
		e.owner, e.digest = syntax.DID(owner), oci.Digest(joins)
		return e, nil
	}
	if errors.Is(err, sql.ErrNoRows) || err == nil && (digest == "" || u.now().Sub(time.UnixMilli(at.Int64)) > RememberFor) {
		return ended{}, ErrUnknown
	}
	e.owner, e.digest = syntax.DID(owner), oci.Digest(digest)
	return e, err
}

func hashState(h hash.Hash) ([]byte, error) {
	m, ok := h.(encoding.BinaryMarshaler)
	if !ok {
		return nil, fmt.Errorf("the state of %T cannot be kept", h)
	}
	return m.MarshalBinary()
}

func restoreHash(algorithm string, state []byte) (hash.Hash, error) {
	h, err := oci.NewHash(algorithm)
	if err != nil || len(state) == 0 {
		return h, err
	}
	m, ok := h.(encoding.BinaryUnmarshaler)
	if !ok {
		return nil, fmt.Errorf("the state of %T cannot be restored", h)
	}
	if err := m.UnmarshalBinary(state); err != nil {
		return nil, fmt.Errorf("restore the hash: %w", err)
	}
	return h, nil
}
