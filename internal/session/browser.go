package session

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"
)

const (
	// browserAge is how long a browser stays signed in without being used.
	browserAge = 30 * 24 * time.Hour
	// browserNoted is how old the time of the last use may be.
	browserNoted = 10 * time.Minute
	// maxBrowsers bounds the rows that one account can make.
	maxBrowsers = 50
	maxAgent    = 200
	// forBrowser marks hashes of browsers' secrets.
	forBrowser = "browser"
	maxSecret  = 128
)

// Browser is a browser that is signed in here. It knows a secret; a keyed hash of that is kept.
type Browser struct {
	ID        string // for lists; it opens nothing
	Session   Session
	Agent     string // its User-Agent, cut
	Address   string // where it signed in
	CreatedAt time.Time
	UsedAt    time.Time // up to some minutes ago
	// Noted: this use is the new UsedAt, so that the cookie may live as much longer.
	Noted bool
	// Missing are permissions that this AppView needs by now and the approval lacks.
	Missing []string
}

// OpenBrowser signs a browser in that has just come back from its person's server. secret is for its cookie.
// Errors: ErrGone (the session has ended).
func (s *Store) OpenBrowser(ctx context.Context, sessionID, agent, address string) (secret string, err error) {
	t, err := s.load(ctx, sessionID)
	if err != nil {
		return "", err
	}
	secret = rand.Text() + rand.Text()
	id, now := rand.Text(), s.now().Unix()
	err = s.db.Write(ctx, func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, `INSERT INTO browser (id, secret_hash, session, did, agent, address, created_at, used_at)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?)`, id, s.vault.browserHash(forBrowser, secret), t.id, t.did.String(),
			cut(agent, maxAgent), cut(address, 64), now, now); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, `DELETE FROM browser WHERE did = ?1 AND id NOT IN
			(SELECT id FROM browser WHERE did = ?1 ORDER BY used_at DESC, CASE WHEN id = ?2 THEN 0 ELSE 1 END LIMIT ?3)`, t.did.String(), id, maxBrowsers)
		return err
	})
	if err != nil {
		return "", fmt.Errorf("write browser: %w", err)
	}
	return secret, nil
}

// cut makes other people's text short, on one line and fit for any database.
func cut(s string, limit int) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	if len(s) > limit {
		s = strings.ToValidUTF8(s[:limit], "")
	}
	return s
}

const browserColumns = `b.id, b.session, b.did, b.agent, b.address, b.created_at, b.used_at, s.scope, s.issuer`

// Browser is whose browser it is that shows secret. Errors: ErrGone: made up, too old, or signed out.
func (s *Store) Browser(ctx context.Context, secret string) (Browser, error) {
	if secret == "" || len(secret) > maxSecret {
		return Browser{}, ErrGone
	}
	b, err := Browser{}, ErrGone
	for _, hash := range s.vault.browserHashes(forBrowser, secret) {
		b, err = s.scanBrowser(s.db.Reader().QueryRowContext(ctx, `SELECT `+browserColumns+` FROM browser b
			JOIN session s ON s.id = b.session AND s.did = b.did WHERE b.secret_hash = ?`, hash))
		if !errors.Is(err, ErrGone) {
			break
		}
	}
	if err != nil {
		return Browser{}, err
	}
	now := s.now()
	if now.Sub(b.UsedAt) > browserAge {
		return Browser{}, ErrGone
	}
	if now.Sub(b.UsedAt) > browserNoted {
		err := s.db.WriteRelaxed(ctx, func(tx *sql.Tx) error {
			_, err := tx.ExecContext(ctx, `UPDATE browser SET used_at = ? WHERE id = ?`, now.Unix(), b.ID)
			return err
		})
		if err != nil {
			return Browser{}, fmt.Errorf("write browser: %w", err)
		}
		b.Noted = true
	}
	return b, nil
}

func (s *Store) scanBrowser(row interface{ Scan(...any) error }) (Browser, error) {
	var b Browser
	var did, scope, issuer string
	var created, used int64
	err := row.Scan(&b.ID, &b.Session.ID, &did, &b.Agent, &b.Address, &created, &used, &scope, &issuer)
	if errors.Is(err, sql.ErrNoRows) {
		return Browser{}, ErrGone
	}
	if err != nil {
		return Browser{}, fmt.Errorf("read browser: %w", err)
	}
	b.Session.DID, b.CreatedAt, b.UsedAt = syntax.DID(did), time.Unix(created, 0), time.Unix(used, 0)
	if issuer != "" {
		b.Missing = s.missing(scope)
	}
	return b, nil
}

// Browsers are those that a person is signed in with, the newest use first.
func (s *Store) Browsers(ctx context.Context, did syntax.DID) ([]Browser, error) {
	rows, err := s.db.Reader().QueryContext(ctx, `SELECT `+browserColumns+` FROM browser b
		JOIN session s ON s.id = b.session AND s.did = b.did WHERE b.did = ? AND b.used_at >= ? ORDER BY b.used_at DESC, b.id`,
		did.String(), s.now().Add(-browserAge).Unix())
	if err != nil {
		return nil, fmt.Errorf("list browsers: %w", err)
	}
	defer func() { _ = rows.Close() }()
	var out []Browser
	for rows.Next() {
		b, err := s.scanBrowser(rows)
		if err != nil {
			return nil, err
		}
		out = append(out, b)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("list browsers: %w", err)
	}
	return out, nil
}

// EndBrowser signs one browser of a person out. The session that it used goes on, for devices and others.
// Errors: ErrGone.
func (s *Store) EndBrowser(ctx context.Context, did syntax.DID, id string) error {
	var rows int64
	err := s.db.Write(ctx, func(tx *sql.Tx) error {
		result, err := tx.ExecContext(ctx, `DELETE FROM browser WHERE id = ? AND did = ?`, id, did.String())
		if err != nil {
			return err
		}
		rows, err = result.RowsAffected()
		return err
	})
	if err != nil {
		return fmt.Errorf("remove browser: %w", err)
	}
	if rows == 0 {
		return ErrGone
	}
	return nil
}

func (s *Store) endBrowsers(ctx context.Context, did syntax.DID) error {
	err := s.db.Write(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `DELETE FROM browser WHERE did = ?`, did.String())
		return err
	})
	if err != nil {
		return fmt.Errorf("remove browsers: %w", err)
	}
	return nil
}
