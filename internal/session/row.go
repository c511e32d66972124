package session

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"
)

var migrations = []string{
	`CREATE TABLE session (
		id            TEXT PRIMARY KEY,
		did           TEXT NOT NULL,
		pds           TEXT NOT NULL,
		password_hash BLOB NOT NULL, -- HMAC of did and password
		tokens        BLOB NOT NULL, -- encrypted
		created_at    INTEGER NOT NULL,
		used_at       INTEGER NOT NULL -- last refresh
	) STRICT;
	CREATE UNIQUE INDEX session_password ON session (did, password_hash);
	CREATE INDEX session_used ON session (used_at);`,
}

const (
	// maxAge is the life of a refresh token.
	maxAge = 90 * 24 * time.Hour
	// maxPerAccount bounds the rows that one account can make.
	maxPerAccount = 50
)

// tokens are a session as it is used. Never changed in place.
type tokens struct {
	id      string
	did     syntax.DID
	pds     string
	access  string
	refresh string
	expires time.Time // of access, as it says itself; zero where it does not
	read    time.Time // from the database
}

const columns = `id, did, pds, tokens`

// load reads the newest tokens. Errors: ErrGone.
func (s *Store) load(ctx context.Context, id string) (*tokens, error) {
	return s.scan(s.db.Reader().QueryRowContext(ctx, `SELECT `+columns+` FROM session WHERE id = ?`, id))
}

// find is the session that a password opened. Errors: ErrGone.
func (s *Store) find(ctx context.Context, did syntax.DID, passwordHash []byte) (*tokens, error) {
	return s.scan(s.db.Reader().QueryRowContext(ctx,
		`SELECT `+columns+` FROM session WHERE did = ? AND password_hash = ?`, did.String(), passwordHash))
}

func (s *Store) scan(row *sql.Row) (*tokens, error) {
	t := &tokens{}
	var did string
	var sealed []byte
	err := row.Scan(&t.id, &did, &t.pds, &sealed)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, ErrGone
	}
	if err != nil {
		return nil, fmt.Errorf("read session: %w", err)
	}
	t.did = syntax.DID(did)
	plain, err := s.vault.open(t.id, t.did, sealed)
	if err != nil { // written with another secret: as good as gone
		return nil, fmt.Errorf("%w: decrypt: %w", ErrGone, err)
	}
	t.access, t.refresh, t.read = plain.Access, plain.Refresh, s.now()
	t.expires = readToken(t.access).expires
	return t, nil
}

// insert makes the row of a new session, in place of an older one with the same password.
func (s *Store) insert(ctx context.Context, t *tokens, passwordHash []byte) error {
	t.id, t.read = rand.Text(), s.now()
	sealed, err := s.vault.seal(t.id, t.did, sealedTokens{t.access, t.refresh})
	if err != nil {
		return fmt.Errorf("encrypt session: %w", err)
	}
	now := s.now().Unix()
	err = s.db.Write(ctx, func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, `DELETE FROM session WHERE did = ? AND password_hash = ?`, t.did.String(), passwordHash); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, `INSERT INTO session (id, did, pds, password_hash, tokens, created_at, used_at)
			VALUES (?, ?, ?, ?, ?, ?, ?)`, t.id, t.did.String(), t.pds, passwordHash, sealed, now, now); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, `DELETE FROM session WHERE did = ?1 AND id NOT IN
			(SELECT id FROM session WHERE did = ?1 ORDER BY used_at DESC, id = ?2 DESC LIMIT ?3)`, t.did.String(), t.id, maxPerAccount)
		return err
	})
	if err != nil {
		return fmt.Errorf("write session: %w", err)
	}
	return nil
}

// update keeps refreshed tokens: before they are used, since the old ones are good no longer.
func (s *Store) update(ctx context.Context, t *tokens) error {
	sealed, err := s.vault.seal(t.id, t.did, sealedTokens{t.access, t.refresh})
	if err != nil {
		return fmt.Errorf("encrypt session: %w", err)
	}
	err = s.db.Write(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `UPDATE session SET tokens = ?, used_at = ? WHERE id = ?`, sealed, s.now().Unix(), t.id)
		return err
	})
	if err != nil {
		return fmt.Errorf("write session: %w", err)
	}
	return nil
}

func (s *Store) remove(ctx context.Context, id string) error {
	s.live.Remove(id)
	return s.db.Write(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `DELETE FROM session WHERE id = ?`, id)
		return err
	})
}

func (s *Store) forgetOld(ctx context.Context) error {
	return s.db.Write(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `DELETE FROM session WHERE used_at < ?`, s.now().Add(-maxAge).Unix())
		return err
	})
}
