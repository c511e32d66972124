package ledger

import (
	"context"
	"database/sql"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/api/atcr"
)

// registeredMigration keeps when people registered, apart from who is registered: leaving gives no place back.
const registeredMigration = `
CREATE TABLE registered (created_at INTEGER NOT NULL) STRICT;
CREATE INDEX registered_created ON registered (created_at);
INSERT INTO registered (created_at) SELECT created_at FROM registration;
`

// registeredFor is how long a registration counts.
const registeredFor = 24 * time.Hour

// Register remembers that did registered, in the transaction of the commit that says so.
func (l *Ledger) Register(ctx context.Context, tx *sql.Tx, did syntax.DID) error {
	now := l.now().UnixMilli()
	_, err := tx.ExecContext(ctx, `DELETE FROM registered WHERE created_at < ?`, l.now().Add(-registeredFor).UnixMilli())
	if err == nil {
		_, err = tx.ExecContext(ctx, `INSERT INTO registered (created_at) VALUES (?)`, now)
	}
	if err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, `INSERT INTO registration (did, rkey, created_at, pushed_at) VALUES (?1, ?2, ?3, ?3)
		ON CONFLICT (did) DO UPDATE SET rkey = ?2, created_at = ?3, pushed_at = ?3`, did.String(), atcr.CrewRkey(did.String()), now)
	return err
}

// Registrations is how many registered in the last day, those who left again included.
func (l *Ledger) Registrations(ctx context.Context) (n int, err error) {
	err = l.db.Reader().QueryRowContext(ctx, `SELECT count(*) FROM registered WHERE created_at >= ?`, l.now().Add(-registeredFor).UnixMilli()).Scan(&n)
	return n, err
}

// Registered tells whether did is a member by their own wish.
func (l *Ledger) Registered(ctx context.Context, did syntax.DID) (bool, error) {
	var n int
	err := l.db.Reader().QueryRowContext(ctx, `SELECT count(*) FROM registration WHERE did = ?`, did.String()).Scan(&n)
	return n > 0, err
}

// AllRegistered are all who are members by their own wish.
func (l *Ledger) AllRegistered(ctx context.Context) (map[syntax.DID]bool, error) {
	rows, err := l.db.Reader().QueryContext(ctx, `SELECT did FROM registration`)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	out := map[syntax.DID]bool{}
	for rows.Next() {
		var did string
		if err := rows.Scan(&did); err != nil {
			return nil, err
		}
		out[syntax.DID(did)] = true
	}
	return out, rows.Err()
}

// Idle are up to limit people who registered and pushed nothing since before.
func (l *Ledger) Idle(ctx context.Context, before time.Time, limit int) ([]syntax.DID, error) {
	rows, err := l.db.Reader().QueryContext(ctx, `SELECT did FROM registration WHERE pushed_at < ? LIMIT ?`, before.UnixMilli(), limit)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	var out []syntax.DID
	for rows.Next() {
		var did string
		if err := rows.Scan(&did); err != nil {
			return nil, err
		}
		out = append(out, syntax.DID(did))
	}
	return out, rows.Err()
}

// Deregister forgets a registration, when its crew record is gone or was written by somebody else.
func (l *Ledger) Deregister(ctx context.Context, tx *sql.Tx, rkey syntax.RecordKey) error {
	_, err := tx.ExecContext(ctx, `DELETE FROM registration WHERE rkey = ?`, rkey.String())
	return err
}
