package appview

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/internal/oci"
	"atcr.io/internal/sqldb"
)

const (
	// recentFor is how long a repository has a blob that came and that no manifest names: by then a hold has
	// collected it.
	recentFor = 48 * time.Hour
	// recentAgain is how long a blob that comes once more need not be noted anew.
	recentAgain = time.Hour
	// sweepOneIn is how many notes there are to one look for those that are over.
	sweepOneIn = 200
)

var recentMigrations = []string{`
CREATE TABLE recent_blob (
	did TEXT NOT NULL, repository TEXT NOT NULL, digest TEXT NOT NULL, hold TEXT NOT NULL, at INTEGER NOT NULL, PRIMARY KEY (did, repository, digest)
) STRICT, WITHOUT ROWID;
CREATE INDEX recent_blob_at ON recent_blob (at);
`}

// anyDigest stands for the blobs that a client sends to a hold itself, of which nobody here sees which they are.
const anyDigest oci.Digest = ""

// recentBlobs are blobs that came to a repository a while ago, as all processes of this AppView see it.
type recentBlobs struct {
	db    *sqldb.DB
	clock clock
}

func openRecentBlobs(ctx context.Context, db *sqldb.DB, now clock) (*recentBlobs, error) {
	if err := db.Migrate(ctx, "recent_blob", recentMigrations); err != nil {
		return nil, err
	}
	return &recentBlobs{db: db, clock: now}, nil
}

// find is the hold that a blob came to, "" for none.
func (r *recentBlobs) find(ctx context.Context, key blobKey) (syntax.DID, error) {
	at, _, err := r.look(ctx, key)
	return at, err
}

func (r *recentBlobs) look(ctx context.Context, key blobKey) (hold syntax.DID, age time.Duration, err error) {
	var at int64
	err = r.db.Reader().QueryRowContext(ctx, `SELECT hold, at FROM recent_blob WHERE did = ? AND repository = ? AND digest = ?`,
		key.did.String(), key.repository, key.digest.String()).Scan(&hold, &at)
	if errors.Is(err, sql.ErrNoRows) {
		return "", 0, nil
	}
	if err != nil {
		return "", 0, fmt.Errorf("look for a recent blob: %w", err)
	}
	if age = r.clock().Sub(time.UnixMilli(at)); age >= recentFor {
		return "", 0, nil
	}
	return hold, age, nil
}

// came notes blobs that a repository has, at a hold.
func (r *recentBlobs) came(ctx context.Context, did syntax.DID, repository string, hold syntax.DID, digests ...oci.Digest) error {
	var fresh []oci.Digest
	for _, d := range digests {
		known, age, err := r.look(ctx, blobKey{did, repository, d})
		if err != nil {
			return err
		}
		if known != hold || age > recentAgain {
			fresh = append(fresh, d)
		}
	}
	if len(fresh) == 0 {
		return nil
	}
	now := r.clock()
	err := r.db.WriteRelaxed(ctx, func(tx *sql.Tx) error {
		if rand.IntN(sweepOneIn) == 0 {
			if _, err := tx.ExecContext(ctx, `DELETE FROM recent_blob WHERE at <= ?`, now.Add(-recentFor).UnixMilli()); err != nil {
				return err
			}
		}
		for _, d := range fresh {
			if _, err := tx.ExecContext(ctx, `INSERT INTO recent_blob (did, repository, digest, hold, at) VALUES (?,?,?,?,?)
				ON CONFLICT (did, repository, digest) DO UPDATE SET hold = excluded.hold, at = excluded.at`,
				did.String(), repository, d.String(), hold.String(), now.UnixMilli()); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("note a blob: %w", err)
	}
	return nil
}
