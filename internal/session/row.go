package session

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/internal/session/oauth"
	"atcr.io/internal/sqldb"
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
	// password_hash is byOAuth for a session of OAuth: one a person.
	`ALTER TABLE session ADD COLUMN issuer TEXT NOT NULL DEFAULT ''; -- '' for an app password
	ALTER TABLE session ADD COLUMN scope TEXT NOT NULL DEFAULT ''; -- as the server granted it
	ALTER TABLE session ADD COLUMN client_key TEXT NOT NULL DEFAULT ''; -- ours, that the session is bound to
	ALTER TABLE session ADD COLUMN expires_at INTEGER NOT NULL DEFAULT 0; -- of the access token
	CREATE TABLE sign_in ( -- begun, not ended
		state_hash   BLOB PRIMARY KEY,
		browser_hash BLOB NOT NULL,
		request      BLOB NOT NULL, -- encrypted
		created_at   INTEGER NOT NULL
	) STRICT;
	CREATE INDEX sign_in_created ON sign_in (created_at);
	CREATE TABLE browser (
		id          TEXT PRIMARY KEY,
		secret_hash BLOB NOT NULL,
		session     TEXT NOT NULL,
		did         TEXT NOT NULL,
		agent       TEXT NOT NULL,
		address     TEXT NOT NULL,
		created_at  INTEGER NOT NULL,
		used_at     INTEGER NOT NULL
	) STRICT;
	CREATE UNIQUE INDEX browser_secret ON browser (secret_hash);
	CREATE INDEX browser_did ON browser (did);
	CREATE INDEX browser_session ON browser (session);
	CREATE INDEX browser_used ON browser (used_at);`,
	`ALTER TABLE session ADD COLUMN generic INTEGER NOT NULL DEFAULT 0; -- opened as the client without fine permissions`,
	`ALTER TABLE sign_in ADD COLUMN did TEXT NOT NULL DEFAULT '';
	CREATE INDEX sign_in_did ON sign_in (did);`,
}

// Personal is what is kept of people beside sessions and browsers.
var Personal = []sqldb.Personal{
	{Table: "sign_in", Where: "did = ?", Show: "created_at"},
	{Table: "login_attempt", Where: "did = ?", Show: "address, count, since"},
}

// byOAuth stands where other rows have the hash of a password.
var byOAuth = []byte("oauth")

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
	expires time.Time // of access; zero where that is not known
	read    time.Time // from the database

	// Of OAuth alone.
	issuer string
	scope  string
	bound  oauth.Bound
}

func (t *tokens) byOAuth() bool { return t.issuer != "" }

const columns = `id, did, pds, tokens, issuer, scope, client_key, generic, expires_at`

// load reads the newest tokens. Errors: ErrGone.
func (s *Store) load(ctx context.Context, id string) (*tokens, error) {
	return s.scan(s.db.Reader().QueryRowContext(ctx, `SELECT `+columns+` FROM session WHERE id = ?`, id))
}

// find is the session that a password opened, or byOAuth. Errors: ErrGone.
func (s *Store) find(ctx context.Context, did syntax.DID, passwordHash []byte) (*tokens, error) {
	return s.scan(s.db.Reader().QueryRowContext(ctx,
		`SELECT `+columns+` FROM session WHERE did = ? AND password_hash = ?`, did.String(), passwordHash))
}

func (s *Store) scan(row interface{ Scan(...any) error }) (*tokens, error) {
	t := &tokens{read: s.now()}
	var did string
	var sealed []byte
	var generic, expires int64
	err := row.Scan(&t.id, &did, &t.pds, &sealed, &t.issuer, &t.scope, &t.bound.KeyID, &generic, &expires)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, ErrGone
	}
	if err != nil {
		return nil, fmt.Errorf("read session: %w", err)
	}
	t.did, t.bound.Generic = syntax.DID(did), generic != 0
	plain, err := s.vault.open(t.id, t.did, sealed)
	if err != nil { // written with another secret: as good as gone
		return nil, fmt.Errorf("%w: decrypt: %w", ErrGone, err)
	}
	t.access, t.refresh = plain.Access, plain.Refresh
	if !t.byOAuth() {
		t.expires = readToken(t.access).expires
		return t, nil
	}
	if expires > 0 {
		t.expires = time.Unix(expires, 0)
	}
	if t.bound.Key, err = ecdsa.ParseRawPrivateKey(elliptic.P256(), plain.Key); err != nil {
		return nil, fmt.Errorf("%w: read its key: %w", ErrGone, err)
	}
	return t, nil
}

func (s *Store) seal(t *tokens) ([]byte, error) {
	plain := sealedTokens{Access: t.access, Refresh: t.refresh}
	if t.bound.Key != nil {
		raw, err := t.bound.Key.Bytes()
		if err != nil {
			return nil, fmt.Errorf("encrypt session: %w", err)
		}
		plain.Key = raw
	}
	sealed, err := s.vault.seal(t.id, t.did, plain)
	if err != nil {
		return nil, fmt.Errorf("encrypt session: %w", err)
	}
	return sealed, nil
}

// unix is t as it is stored: 0 for none.
func unix(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.Unix()
}

// insert makes the row of a new session, in place of an older one with the same password.
func (s *Store) insert(ctx context.Context, t *tokens, passwordHash []byte) error {
	t.id, t.read = rand.Text(), s.now()
	sealed, err := s.seal(t)
	if err != nil {
		return err
	}
	now := s.now().Unix()
	err = s.db.Write(ctx, func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, `DELETE FROM session WHERE did = ? AND password_hash = ?`, t.did.String(), passwordHash); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, `INSERT INTO session
			(id, did, pds, password_hash, tokens, issuer, scope, client_key, generic, expires_at, created_at, used_at)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
			t.id, t.did.String(), t.pds, passwordHash, sealed, t.issuer, t.scope, t.bound.KeyID, t.bound.Generic, unix(t.expires), now, now); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, `DELETE FROM session WHERE did = ?1 AND issuer = '' AND id NOT IN
			(SELECT id FROM session WHERE did = ?1 AND issuer = ''
			ORDER BY used_at DESC, CASE WHEN id = ?2 THEN 0 ELSE 1 END LIMIT ?3)`, t.did.String(), t.id, maxPerAccount)
		return err
	})
	if err != nil {
		return fmt.Errorf("write session: %w", err)
	}
	return nil
}

// update keeps newer tokens: before they are used, since the old ones are good no longer. false: there is no
// such session any more.
func (s *Store) update(ctx context.Context, t *tokens) (bool, error) {
	sealed, err := s.seal(t)
	if err != nil {
		return false, err
	}
	t.read = s.now()
	var rows int64
	err = s.db.Write(ctx, func(tx *sql.Tx) error {
		result, err := tx.ExecContext(ctx, `UPDATE session SET pds = ?, tokens = ?, issuer = ?, scope = ?, client_key = ?,
			generic = ?, expires_at = ?, used_at = ? WHERE id = ?`,
			t.pds, sealed, t.issuer, t.scope, t.bound.KeyID, t.bound.Generic, unix(t.expires), s.now().Unix(), t.id)
		if err != nil {
			return err
		}
		rows, err = result.RowsAffected()
		return err
	})
	if err != nil {
		return false, fmt.Errorf("write session: %w", err)
	}
	return rows > 0, nil
}

// remove forgets a session, and signs out the browsers that it signed in.
func (s *Store) remove(ctx context.Context, id string) error {
	s.live.Remove(id)
	err := s.db.Write(ctx, func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, `DELETE FROM browser WHERE session = ?`, id); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, `DELETE FROM session WHERE id = ?`, id)
		return err
	})
	if err != nil {
		return fmt.Errorf("remove session: %w", err)
	}
	return nil
}

func (s *Store) forgetOld(ctx context.Context) error {
	now := s.now()
	return s.db.Write(ctx, func(tx *sql.Tx) error {
		for _, old := range []struct {
			query string
			age   time.Duration
		}{
			{`DELETE FROM session WHERE used_at < ?`, maxAge},
			{`DELETE FROM browser WHERE used_at < ?`, browserAge},
			{`DELETE FROM sign_in WHERE created_at < ?`, signInTime},
		} {
			if _, err := tx.ExecContext(ctx, old.query, now.Add(-old.age).Unix()); err != nil {
				return err
			}
		}
		return nil
	})
}
