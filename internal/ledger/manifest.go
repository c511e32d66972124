package ledger

import (
	"context"
	"database/sql"
	"errors"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/api/atcr"
	"atcr.io/internal/oci"
)

// Manifest is a manifest that somebody said they pushed.
type Manifest struct {
	Owner      syntax.DID
	Repository string
	Digest     oci.Digest
	Config     oci.Digest // "" where it names none
}

// ManifestURI is the at-uri of m's record in its owner's repo: the one it was remembered under, else the one
// that the contract gives it: the digest alone for the first repository that has it, digest and repository
// for every other.
func (l *Ledger) ManifestURI(ctx context.Context, m Manifest) (syntax.ATURI, error) {
	var uri string
	err := l.db.Reader().QueryRowContext(ctx, `SELECT manifest FROM pushed WHERE user_did = ? AND digest = ? AND repository = ?`,
		m.Owner.String(), m.Digest.String(), m.Repository).Scan(&uri)
	if err == nil {
		return syntax.ATURI(uri), nil
	}
	if !errors.Is(err, sql.ErrNoRows) {
		return "", err
	}
	prefix := "at://" + m.Owner.String() + "/" + atcr.ManifestNSID + "/"
	plain := prefix + atcr.ManifestRkey(m.Digest.String())
	var taken int
	err = l.db.Reader().QueryRowContext(ctx, `SELECT count(*) FROM pushed WHERE user_did = ? AND digest = ? AND manifest = ?`,
		m.Owner.String(), m.Digest.String(), plain).Scan(&taken)
	if err == nil && taken > 0 {
		return syntax.ATURI(prefix + atcr.ManifestRkeyIn(m.Digest.String(), m.Repository)), nil
	}
	return syntax.ATURI(plain), err
}

// Push remembers m under its record's at-uri, counts the push, and notes the post that it asks for (nil: none). m may be
// remembered already.
func (l *Ledger) Push(ctx context.Context, m Manifest, uri syntax.ATURI, count bool, post *PostDue) error {
	now := l.now().UnixMilli()
	return l.db.Write(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `INSERT INTO pushed (user_did, digest, repository, manifest, config) VALUES (?,?,?,?,?)
			ON CONFLICT (user_did, digest, repository) DO UPDATE SET config = excluded.config`,
			m.Owner.String(), m.Digest.String(), m.Repository, uri.String(), m.Config.String())
		if err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, `INSERT INTO told VALUES (1) ON CONFLICT DO NOTHING`); err != nil {
			return err
		}
		if post != nil {
			if err := l.due(ctx, tx, post); err != nil {
				return err
			}
		}
		if _, err = tx.ExecContext(ctx, `UPDATE registration SET pushed_at = ? WHERE did = ?`, now, m.Owner.String()); err != nil || !count {
			return err
		}
		_, err = tx.ExecContext(ctx, `INSERT INTO pending_stats (user_did, repository, pushes, pulls, last_push, last_pull) VALUES (?,?,1,0,?,0)
			ON CONFLICT (user_did, repository) DO UPDATE SET pushes = pushes + 1, last_push = excluded.last_push`,
			m.Owner.String(), m.Repository, now)
		return err
	})
}

// Forget drops a manifest that was deleted.
func (l *Ledger) Forget(ctx context.Context, m Manifest) error {
	return l.db.Write(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `DELETE FROM pushed WHERE user_did = ? AND digest = ? AND repository = ?`,
			m.Owner.String(), m.Digest.String(), m.Repository)
		return err
	})
}

// Pull counts pulls of a repository that has manifests here, and tells whether it has.
func (l *Ledger) Pull(ctx context.Context, owner syntax.DID, repository string, count int64) (known bool, err error) {
	now := l.now().UnixMilli()
	err = l.db.WriteRelaxed(ctx, func(tx *sql.Tx) error {
		var n int
		err := tx.QueryRowContext(ctx, `SELECT count(*) FROM (SELECT 1 FROM pushed WHERE user_did = ? AND repository = ? LIMIT 1)`,
			owner.String(), repository).Scan(&n)
		if known = n > 0; err != nil || !known {
			return err
		}
		_, err = tx.ExecContext(ctx, `INSERT INTO pending_stats (user_did, repository, pushes, pulls, last_push, last_pull) VALUES (?1,?2,0,?3,0,?4)
			ON CONFLICT (user_did, repository) DO UPDATE SET pulls = pulls + ?3, last_pull = ?4`, owner.String(), repository, count, now)
		return err
	})
	return known, err
}

// ConfigOf are up to 10 manifests whose config is the blob digest.
func (l *Ledger) ConfigOf(ctx context.Context, digest oci.Digest) ([]Manifest, error) {
	rows, err := l.db.Reader().QueryContext(ctx, `SELECT DISTINCT user_did, repository FROM pushed WHERE config = ? LIMIT 10`, digest.String())
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	var out []Manifest
	for rows.Next() {
		var did, repository string
		if err := rows.Scan(&did, &repository); err != nil {
			return nil, err
		}
		out = append(out, Manifest{Owner: syntax.DID(did), Repository: repository, Config: digest})
	}
	return out, rows.Err()
}

// Erase drops all that is remembered of a person beside records.
func (l *Ledger) Erase(ctx context.Context, did syntax.DID) error {
	return l.db.Write(ctx, func(tx *sql.Tx) error {
		for _, query := range []string{
			`DELETE FROM pushed WHERE user_did = ?`, `DELETE FROM pending_stats WHERE user_did = ?`, `DELETE FROM registration WHERE did = ?`, `DELETE FROM post_due WHERE user_did = ?`,
		} {
			if _, err := tx.ExecContext(ctx, query, did.String()); err != nil {
				return err
			}
		}
		return l.erasePosts(ctx, tx, did)
	})
}
