package ledger

import (
	"context"
	"database/sql"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/internal/oci"
)

// postMigration remembers which images were posted about, so that each is once, and how often a day.
const postMigration = `
CREATE TABLE post (
	user_did TEXT NOT NULL, manifest TEXT NOT NULL, tag TEXT NOT NULL, rkey TEXT NOT NULL, created_at INTEGER NOT NULL,
	PRIMARY KEY (user_did, manifest, tag)
) STRICT, WITHOUT ROWID;
CREATE INDEX post_day ON post (user_did, created_at);
`

// postDueMigration keeps posts that are to be made, so that none is lost with the process.
const postDueMigration = `
CREATE TABLE post_due (
	user_did TEXT NOT NULL, manifest TEXT NOT NULL, tag TEXT NOT NULL, message BLOB NOT NULL, created_at INTEGER NOT NULL,
	PRIMARY KEY (user_did, manifest, tag)
) STRICT, WITHOUT ROWID;
`

// postDay is how long a post counts.
const postDay = 24 * time.Hour

// Post is a post about a push.
type Post struct {
	Owner    syntax.DID
	Manifest syntax.ATURI
	Tag      string
	Rkey     syntax.RecordKey
}

// MayPost tells whether there was no post about the manifest and that tag, and fewer than limit about that person in the
// last day; known, whether the manifest is remembered (see Push).
func (l *Ledger) MayPost(ctx context.Context, p Post, limit int) (may, known bool, err error) {
	var same, today int
	err = l.db.Reader().QueryRowContext(ctx, `SELECT (SELECT count(*) FROM post WHERE user_did = ?1 AND manifest = ?2 AND tag = ?3),
		(SELECT count(*) FROM post WHERE user_did = ?1 AND created_at > ?4), EXISTS (SELECT 1 FROM pushed WHERE user_did = ?1 AND manifest = ?2)`,
		p.Owner.String(), p.Manifest.String(), p.Tag, l.now().Add(-postDay).UnixMilli()).Scan(&same, &today, &known)
	return same == 0 && today < limit, known, err
}

// Posted remembers a post, in the transaction of the commit that has it.
func (l *Ledger) Posted(ctx context.Context, tx *sql.Tx, p Post) error {
	_, err := tx.ExecContext(ctx, `INSERT INTO post (user_did, manifest, tag, rkey, created_at) VALUES (?,?,?,?,?)`,
		p.Owner.String(), p.Manifest.String(), p.Tag, p.Rkey.String(), l.now().UnixMilli())
	if err != nil {
		return err
	}
	return settled(ctx, tx, p)
}

// PostDue is a post that a push asks for. Message is what is to be known of the push.
type PostDue struct {
	Post
	Message []byte
}

// due notes a post in the transaction of its push.
func (l *Ledger) due(ctx context.Context, tx *sql.Tx, p *PostDue) error {
	_, err := tx.ExecContext(ctx, `INSERT INTO post_due (user_did, manifest, tag, message, created_at) VALUES (?,?,?,?,?)
		ON CONFLICT DO UPDATE SET message = excluded.message, created_at = excluded.created_at`,
		p.Owner.String(), p.Manifest.String(), p.Tag, p.Message, l.now().UnixMilli())
	return err
}

// PostsDue are up to limit posts that were to be made in the last day, oldest first. Older ones are forgotten: they are
// no news any more.
func (l *Ledger) PostsDue(ctx context.Context, limit int) (out []PostDue, err error) {
	err = l.db.Write(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `DELETE FROM post_due WHERE created_at <= ?`, l.now().Add(-postDay).UnixMilli())
		return err
	})
	if err != nil {
		return nil, err
	}
	rows, err := l.db.Reader().QueryContext(ctx, `SELECT user_did, manifest, tag, message FROM post_due ORDER BY created_at LIMIT ?`, limit)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var did, manifest string
		var p PostDue
		if err := rows.Scan(&did, &manifest, &p.Tag, &p.Message); err != nil {
			return nil, err
		}
		p.Owner, p.Manifest = syntax.DID(did), syntax.ATURI(manifest)
		out = append(out, p)
	}
	return out, rows.Err()
}

// PostSettled forgets that a post is to be made.
func (l *Ledger) PostSettled(ctx context.Context, p Post) error {
	return l.db.Write(ctx, func(tx *sql.Tx) error { return settled(ctx, tx, p) })
}

func settled(ctx context.Context, tx *sql.Tx, p Post) error {
	_, err := tx.ExecContext(ctx, `DELETE FROM post_due WHERE user_did = ? AND manifest = ? AND tag = ?`, p.Owner.String(), p.Manifest.String(), p.Tag)
	return err
}

// PostsOf are the keys of the posts about did; some may be deleted meanwhile.
func (l *Ledger) PostsOf(ctx context.Context, did syntax.DID) ([]syntax.RecordKey, error) {
	return l.keys(ctx, `SELECT rkey FROM post WHERE user_did = ? ORDER BY rkey`, did.String())
}

// erasePosts forgets the posts about did. Those of the last day go on counting, without a word of what they said.
func (l *Ledger) erasePosts(ctx context.Context, tx *sql.Tx, did syntax.DID) error {
	_, err := tx.ExecContext(ctx, `DELETE FROM post WHERE user_did = ? AND created_at <= ?`, did.String(), l.now().Add(-postDay).UnixMilli())
	if err == nil {
		_, err = tx.ExecContext(ctx, `UPDATE post SET manifest = rkey, tag = '' WHERE user_did = ?`, did.String())
	}
	return err
}

// Contents are the blobs that the layer records of manifests name, each once and without the manifests' configs:
// how many, and the bytes, configs included.
func (l *Ledger) Contents(ctx context.Context, manifests []syntax.ATURI) (layers int, bytes int64, err error) {
	seen := map[oci.Digest]bool{}
	for _, m := range manifests {
		if err := l.contents(ctx, m, func(d oci.Digest, size int64, isConfig bool) {
			if seen[d] {
				return
			}
			seen[d] = true
			if bytes += size; !isConfig {
				layers++
			}
		}); err != nil {
			return 0, 0, err
		}
	}
	return layers, bytes, nil
}

func (l *Ledger) contents(ctx context.Context, manifest syntax.ATURI, fn func(d oci.Digest, size int64, isConfig bool)) error {
	rows, err := l.db.Reader().QueryContext(ctx, `SELECT digest, size, digest IN (SELECT config FROM pushed WHERE manifest = ?1) FROM layer WHERE manifest = ?1`, manifest.String())
	if err != nil {
		return err
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var digest string
		var size int64
		var isConfig bool
		if err := rows.Scan(&digest, &size, &isConfig); err != nil {
			return err
		}
		fn(oci.Digest(digest), size, isConfig)
	}
	return rows.Err()
}
