package ledger

import (
	"context"
	"database/sql"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"
)

// Counts are pushes and pulls of a repository that are in no record yet.
type Counts struct {
	Owner          syntax.DID
	Repository     string
	Pushes, Pulls  int64
	Pushed, Pulled time.Time // the last ones; zero: none
}

// Pending are up to limit counts that wait to be published.
func (l *Ledger) Pending(ctx context.Context, limit int) ([]Counts, error) {
	rows, err := l.db.Reader().QueryContext(ctx, `SELECT user_did, repository, pushes, pulls, last_push, last_pull FROM pending_stats ORDER BY user_did, repository LIMIT ?`, limit)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	var out []Counts
	for rows.Next() {
		var c Counts
		var did string
		var pushed, pulled int64
		if err := rows.Scan(&did, &c.Repository, &c.Pushes, &c.Pulls, &pushed, &pulled); err != nil {
			return nil, err
		}
		c.Owner, c.Pushed, c.Pulled = syntax.DID(did), moment(pushed), moment(pulled)
		out = append(out, c)
	}
	return out, rows.Err()
}

func moment(milliseconds int64) time.Time {
	if milliseconds == 0 {
		return time.Time{}
	}
	return time.UnixMilli(milliseconds)
}

// Published takes away what a commit published, in its transaction; what was counted since stays.
func (l *Ledger) Published(ctx context.Context, tx *sql.Tx, counts []Counts) error {
	for _, c := range counts {
		_, err := tx.ExecContext(ctx, `UPDATE pending_stats SET pushes = pushes - ?, pulls = pulls - ? WHERE user_did = ? AND repository = ?`,
			c.Pushes, c.Pulls, c.Owner.String(), c.Repository)
		if err != nil {
			return err
		}
	}
	_, err := tx.ExecContext(ctx, `DELETE FROM pending_stats WHERE pushes <= 0 AND pulls <= 0`)
	return err
}
