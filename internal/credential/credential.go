// Package credential keeps what this AppView itself gives out to stand for a person: the secrets of devices,
// which a person approved in a browser, and access tokens, which they made in their settings.
//
// It owns how those are made, kept, found again and revoked, and the codes by which a device is approved. It
// refuses to own what they open: whoever calls Verify decides that. Secrets are shown once and kept as keyed
// hashes.
//
// Source: RFC 8628 (OAuth 2.0 Device Authorization Grant) for the codes.
package credential

import (
	"context"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/internal/httpx"
	"atcr.io/internal/sqldb"
)

// How secrets begin, so that people and secret scanners know them.
const (
	DevicePrefix = "atcrd_"
	TokenPrefix  = "atcrt_"
)

// ErrUnknown says: no such credential; it was never given out, was revoked, or has expired.
var ErrUnknown = errors.New("the credential is not known, or no longer")

// ErrTooMany says that a person has as many of a kind as they can have.
var ErrTooMany = errors.New("there are too many already: revoke some that are not used")

// LimitError says that somebody tried too often.
type LimitError struct{ RetryAfter time.Duration }

func (e *LimitError) Error() string { return "too many attempts" }

// Kind is what sort of credential it is.
type Kind string

// The kinds.
const (
	Device Kind = "device"
	Token  Kind = "token"
)

// Credential is what is known of one. Its secret is not.
type Credential struct {
	ID        string // public: for lists and Revoke
	Kind      Kind
	DID       syntax.DID
	Name      string // as its maker called it
	Platform  string // of a device, as it says itself: "linux/amd64"
	Address   string // from where a device asked
	Scope     Scope
	CreatedAt time.Time
	UsedAt    time.Time // to the hour
	ExpiresAt time.Time // zero: never
}

const (
	// maxPerPerson bounds each kind.
	maxPerPerson = 100
	// deviceIdle is how long a device may go unused.
	deviceIdle = 180 * 24 * time.Hour
	// usedStep is how exactly the last use is kept, so that few uses write.
	usedStep = time.Hour
	maxName  = 64
)

// Config is what Open needs.
type Config struct {
	// Secret keys the hashes, at least 32 bytes. Another one ends every credential.
	Secret []byte
	// Accepted are earlier secrets: what was made with them goes on, and is hashed anew when it is used.
	Accepted [][]byte
	Now      func() time.Time // nil: time.Now
}

// Store is all credentials of the processes that share a database. Safe for concurrent use.
type Store struct {
	db      *sqldb.DB
	keys    [][]byte // the one for what is new, and earlier ones
	now     func() time.Time
	asked   *httpx.Limiter // codes, by address
	guessed *httpx.Limiter // wrong user codes, by who tries
	polled  *httpx.Limiter // by address
}

// Open brings db's tables to their newest form.
func Open(ctx context.Context, db *sqldb.DB, c Config) (*Store, error) {
	if c.Now == nil {
		c.Now = time.Now
	}
	var keys [][]byte
	for _, secret := range append([][]byte{c.Secret}, c.Accepted...) {
		if len(secret) < 32 {
			return nil, errors.New("credential: the secret is shorter than 32 bytes")
		}
		key, err := hkdf.Key(sha256.New, secret, nil, "atcr credential hash", 32)
		if err != nil {
			return nil, fmt.Errorf("credential: %w", err)
		}
		keys = append(keys, key)
	}
	if err := db.Migrate(ctx, "credential", migrations); err != nil {
		return nil, err
	}
	return &Store{
		db: db, keys: keys, now: c.Now,
		asked:   httpx.NewLimiter(maxCodesPerAddress, limitWindow, c.Now),
		guessed: httpx.NewLimiter(maxGuesses, limitWindow, c.Now),
		polled:  httpx.NewLimiter(maxPollsPerAddress, limitWindow, c.Now),
	}, nil
}

// hash finds a secret again. Without the key it tells nothing.
func (s *Store) hash(kind, secret string) []byte { return hashBy(s.keys[0], kind, secret) }

func hashBy(key []byte, kind, secret string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(kind))
	h.Write([]byte{0})
	h.Write([]byte(secret))
	return h.Sum(nil)
}

// newSecret has 260 random bits behind its prefix.
func newSecret(prefix string) string { return prefix + rand.Text() + rand.Text() }

// IsSecret tells whether text looks like a secret of this package: app passwords never do.
func IsSecret(text string) bool {
	return strings.HasPrefix(text, DevicePrefix) || strings.HasPrefix(text, TokenPrefix)
}

// Verify is the credential of a secret. Errors: ErrUnknown.
func (s *Store) Verify(ctx context.Context, secret string) (Credential, error) {
	if !IsSecret(secret) || len(secret) > 128 {
		return Credential{}, ErrUnknown
	}
	var c Credential
	err := sql.ErrNoRows
	old := false
	for i := 0; i < len(s.keys) && errors.Is(err, sql.ErrNoRows); i++ {
		old = i > 0
		c, err = scan(s.db.Reader().QueryRowContext(ctx,
			`SELECT `+columns+` FROM credential WHERE hash = ?`, hashBy(s.keys[i], "secret", secret)))
	}
	if errors.Is(err, sql.ErrNoRows) {
		return Credential{}, ErrUnknown
	}
	if err != nil {
		return Credential{}, fmt.Errorf("read credential: %w", err)
	}
	now := s.now()
	if s.dead(c, now) {
		return Credential{}, ErrUnknown
	}
	if now.Sub(c.UsedAt) >= usedStep || old {
		if err := s.touch(ctx, c.ID, s.hash("secret", secret), now); err != nil {
			return Credential{}, err
		}
		c.UsedAt = now
	}
	return c, nil
}

func (s *Store) dead(c Credential, now time.Time) bool {
	return !c.ExpiresAt.IsZero() && !now.Before(c.ExpiresAt) || c.Kind == Device && now.Sub(c.UsedAt) > deviceIdle
}

// NewToken makes an access token. The secret is shown once. lifetime 0 is for ever.
//
// Errors: ErrScope, ErrTooMany.
func (s *Store) NewToken(ctx context.Context, did syntax.DID, name string, scope Scope, lifetime time.Duration) (secret string, c Credential, err error) {
	if err := scope.validate(); err != nil {
		return "", c, err
	}
	now := s.now()
	c = Credential{ID: rand.Text(), Kind: Token, DID: did, Name: clean(name), Scope: scope, CreatedAt: now, UsedAt: now}
	if lifetime > 0 {
		c.ExpiresAt = now.Add(lifetime)
	}
	secret = newSecret(TokenPrefix)
	err = s.db.Write(ctx, func(tx *sql.Tx) error { return s.insert(ctx, tx, c, secret) })
	if err != nil {
		return "", Credential{}, fmt.Errorf("write access token: %w", err)
	}
	return secret, c, nil
}

// List is every live credential of a person, the newest first.
func (s *Store) List(ctx context.Context, did syntax.DID) (out []Credential, err error) {
	rows, err := s.db.Reader().QueryContext(ctx,
		`SELECT `+columns+` FROM credential WHERE did = ? ORDER BY created_at DESC, id`, did.String())
	if err != nil {
		return nil, fmt.Errorf("list credentials: %w", err)
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	now := s.now()
	for rows.Next() {
		c, err := scan(rows)
		if err != nil {
			return nil, fmt.Errorf("list credentials: %w", err)
		}
		if !s.dead(c, now) {
			out = append(out, c)
		}
	}
	return out, rows.Err()
}

// Revoke ends a credential of a person, at once. Errors: ErrUnknown.
func (s *Store) Revoke(ctx context.Context, did syntax.DID, id string) error {
	n := int64(0)
	err := s.db.Write(ctx, func(tx *sql.Tx) error {
		res, err := tx.ExecContext(ctx, `DELETE FROM credential WHERE did = ? AND id = ?`, did.String(), id)
		if err != nil {
			return err
		}
		n, err = res.RowsAffected()
		return err
	})
	if err != nil {
		return fmt.Errorf("revoke: %w", err)
	}
	if n == 0 {
		return ErrUnknown
	}
	return nil
}

// RevokeAll ends every credential of a person, and the codes that they have approved.
func (s *Store) RevokeAll(ctx context.Context, did syntax.DID) error {
	err := s.db.Write(ctx, func(tx *sql.Tx) error {
		for _, table := range []string{"credential", "device_code"} {
			if _, err := tx.ExecContext(ctx, `DELETE FROM `+table+` WHERE did = ?`, did.String()); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("revoke all: %w", err)
	}
	return nil
}

// insert makes the row of a new credential. Of devices the one that was unused longest gives way.
func (s *Store) insert(ctx context.Context, tx *sql.Tx, c Credential, secret string) error {
	now := s.now()
	if _, err := tx.ExecContext(ctx, `DELETE FROM credential WHERE did = ? AND (expires_at > 0 AND expires_at <= ? OR kind = ? AND used_at < ?)`,
		c.DID.String(), now.Unix(), string(Device), now.Add(-deviceIdle).Unix()); err != nil {
		return err
	}
	n := 0
	if err := tx.QueryRowContext(ctx, `SELECT count(*) FROM credential WHERE did = ? AND kind = ?`, c.DID.String(), string(c.Kind)).Scan(&n); err != nil {
		return err
	}
	if n >= maxPerPerson {
		if c.Kind == Token {
			return ErrTooMany
		}
		if _, err := tx.ExecContext(ctx, `DELETE FROM credential WHERE id IN
			(SELECT id FROM credential WHERE did = ? AND kind = ? ORDER BY used_at, id LIMIT ?)`,
			c.DID.String(), string(c.Kind), n-maxPerPerson+1); err != nil {
			return err
		}
	}
	scope, err := json.Marshal(c.Scope)
	if err != nil {
		return err
	}
	expires := int64(0)
	if !c.ExpiresAt.IsZero() {
		expires = c.ExpiresAt.Unix()
	}
	_, err = tx.ExecContext(ctx, `INSERT INTO credential (id, kind, did, hash, name, platform, address, scope, created_at, used_at, expires_at)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`, c.ID, string(c.Kind), c.DID.String(), s.hash("secret", secret), c.Name, c.Platform, c.Address,
		string(scope), c.CreatedAt.Unix(), c.UsedAt.Unix(), expires)
	return err
}

func (s *Store) touch(ctx context.Context, id string, hash []byte, now time.Time) error {
	err := s.db.WriteRelaxed(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `UPDATE credential SET used_at = ?, hash = ? WHERE id = ?`, now.Unix(), hash, id)
		return err
	})
	if err != nil {
		return fmt.Errorf("write credential: %w", err)
	}
	return nil
}

// clean keeps a name that others chose short and on one line.
func clean(name string) string {
	name = strings.TrimSpace(strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, strings.ToValidUTF8(name, "")))
	if runes := []rune(name); len(runes) > maxName {
		name = string(runes[:maxName])
	}
	return name
}
