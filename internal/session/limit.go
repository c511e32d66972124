package session

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/internal/sqldb"
)

// A PDS allows 30 attempts in 5 minutes for an account and address, and all of ours come from one address:
// the account's limit stays below, so that guesses here do not lock its person out of the PDS.
const (
	limitWindow = 5 * time.Minute
	perPair     = 10 // wrong passwords for one account from one address
	perAddress  = 40
	perAccount  = 25
)

var limitMigrations = []string{`
CREATE TABLE login_attempt (
	did TEXT NOT NULL, address TEXT NOT NULL, -- "" for all
	since INTEGER NOT NULL, count INTEGER NOT NULL, PRIMARY KEY (did, address)
) STRICT, WITHOUT ROWID;
CREATE INDEX login_attempt_since ON login_attempt (since);
`}

// limits count wrong passwords, for all processes together. An attempt is counted when it begins and given
// back when it was right, so that attempts at the same time count too.
type limits struct {
	db  *sqldb.DB
	now func() time.Time
}

// limitKey is what is counted, and how far.
type limitKey struct {
	did     string
	address string
	max     int
}

// bySignIn stands where a DID would, for sign-ins by OAuth.
const bySignIn = "oauth"

// begin counts an attempt, or refuses it with a *LimitError. giveBack uncounts it.
func (l *limits) begin(ctx context.Context, did syntax.DID, address string) (giveBack func(), err error) {
	return l.count(ctx, limitKey{did.String(), address, perPair}, limitKey{"", address, perAddress}, limitKey{did.String(), "", perAccount})
}

// beginSignIn counts a sign-in by OAuth, or refuses it with a *LimitError. It shows no password, so there is
// nothing to guess: an account has no limit, which anybody could use up for its person.
func (l *limits) beginSignIn(ctx context.Context, address string) error {
	_, err := l.count(ctx, limitKey{bySignIn, address, perAddress})
	return err
}

func (l *limits) count(ctx context.Context, keys ...limitKey) (giveBack func(), err error) {
	now := l.now()
	err = l.db.WriteRelaxed(ctx, func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, `DELETE FROM login_attempt WHERE since <= ?`, now.Add(-limitWindow).UnixMilli()); err != nil {
			return err
		}
		for _, k := range keys {
			var since int64
			var count int
			err := tx.QueryRowContext(ctx, `SELECT since, count FROM login_attempt WHERE did = ? AND address = ?`+l.db.ForUpdate(), k.did, k.address).
				Scan(&since, &count)
			if err != nil && !errors.Is(err, sql.ErrNoRows) {
				return err
			}
			if count >= k.max {
				return &LimitError{RetryAfter: time.UnixMilli(since).Add(limitWindow).Sub(now)}
			}
		}
		for _, k := range keys {
			if _, err := tx.ExecContext(ctx, `INSERT INTO login_attempt (did, address, since, count) VALUES (?,?,?,1)
				ON CONFLICT (did, address) DO UPDATE SET count = login_attempt.count + 1`, k.did, k.address, now.UnixMilli()); err != nil {
				return err
			}
		}
		return nil
	})
	if _, ok := errors.AsType[*LimitError](err); ok {
		return nil, err
	}
	if err != nil {
		return nil, fmt.Errorf("count attempts: %w", err)
	}
	return func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), keepTimeout)
		defer cancel()
		// Where this fails one attempt too many is counted, for a while.
		_ = l.db.WriteRelaxed(ctx, func(tx *sql.Tx) error {
			for _, k := range keys {
				if _, err := tx.ExecContext(ctx, `UPDATE login_attempt SET count = count - 1 WHERE did = ? AND address = ? AND count > 0`,
					k.did, k.address); err != nil {
					return err
				}
			}
			return nil
		})
	}, nil
}
