// Package ledger knows what each person keeps at a hold: which manifests brought which blobs, how many bytes
// that makes, who registered themselves, and the counts that wait to be published.
//
// It owns the tables that follow from layer records, changed in the transaction of each commit, and what a
// hold remembers beside its records. It refuses to own records, permissions and bytes: the wiring feeds it
// and asks it.
//
// Source: records io.atcr.hold.layer and io.atcr.hold.stats; contract, "notifyManifest".
package ledger

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/api/atcr"
	"atcr.io/internal/oci"
	"atcr.io/internal/sqldb"
)

// migrations of the tables. layer and usage follow from layer records; the others are the hold's memory.
var migrations = []string{`
CREATE TABLE layer (
	rkey TEXT PRIMARY KEY, digest TEXT NOT NULL, user_did TEXT NOT NULL, size INTEGER NOT NULL, manifest TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX layer_digest ON layer (digest);
CREATE INDEX layer_user ON layer (user_did, digest);
CREATE INDEX layer_manifest ON layer (manifest);
CREATE TABLE usage (user_did TEXT PRIMARY KEY, blobs INTEGER NOT NULL, bytes INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE built (one INTEGER PRIMARY KEY CHECK (one = 1)) STRICT;
CREATE TABLE told (one INTEGER PRIMARY KEY CHECK (one = 1)) STRICT;
CREATE TABLE pushed (
	user_did TEXT NOT NULL, digest TEXT NOT NULL, repository TEXT NOT NULL, manifest TEXT NOT NULL, config TEXT NOT NULL,
	PRIMARY KEY (user_did, digest, repository)
) STRICT, WITHOUT ROWID;
CREATE INDEX pushed_config ON pushed (config);
CREATE INDEX pushed_repository ON pushed (user_did, repository);
CREATE TABLE pending_stats (
	user_did TEXT NOT NULL, repository TEXT NOT NULL, pushes INTEGER NOT NULL, pulls INTEGER NOT NULL,
	last_push INTEGER NOT NULL, last_pull INTEGER NOT NULL, PRIMARY KEY (user_did, repository)
) STRICT, WITHOUT ROWID;
CREATE TABLE registration (did TEXT PRIMARY KEY, rkey TEXT NOT NULL UNIQUE, created_at INTEGER NOT NULL, pushed_at INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE INDEX registration_created ON registration (created_at);
`, postMigration, registeredMigration, postDueMigration}

// Ledger is one hold's. Safe for concurrent use.
type Ledger struct {
	db  *sqldb.DB
	now func() time.Time
}

// Open migrates the tables.
func Open(ctx context.Context, db *sqldb.DB, now func() time.Time) (*Ledger, error) {
	if err := db.Migrate(ctx, "ledger", migrations); err != nil {
		return nil, err
	}
	return &Ledger{db: db, now: now}, nil
}

// Change is what a commit did to a layer record.
type Change struct {
	Rkey  syntax.RecordKey
	Layer *atcr.HoldLayer // nil: deleted
}

// Naming says that the first layer record of a person names a blob now, or that none does any more.
type Naming struct {
	DID    syntax.DID
	Digest oci.Digest
	Named  bool
}

// Follow applies the changes of one commit, in its transaction, and returns what they make of who names what, in
// their order.
func (l *Ledger) Follow(ctx context.Context, tx *sql.Tx, changes []Change) (namings []Naming, err error) {
	note := func(user, digest string, named bool) {
		namings = append(namings, Naming{syntax.DID(user), oci.Digest(digest), named})
	}
	for _, c := range changes {
		if err := l.remove(ctx, tx, c.Rkey, note); err != nil {
			return nil, err
		}
		if c.Layer == nil {
			continue
		}
		if err := l.add(ctx, tx, c.Rkey, c.Layer, note); err != nil {
			return nil, err
		}
	}
	return namings, nil
}

func (l *Ledger) add(ctx context.Context, tx *sql.Tx, rkey syntax.RecordKey, layer *atcr.HoldLayer, note func(string, string, bool)) error {
	first, err := absent(ctx, tx, layer.UserDid, layer.Digest)
	if err != nil {
		return err
	}
	size := max(layer.Size, 0)
	_, err = tx.ExecContext(ctx, `INSERT INTO layer (rkey, digest, user_did, size, manifest) VALUES (?,?,?,?,?)`,
		rkey.String(), layer.Digest, layer.UserDid, size, layer.Manifest)
	if err != nil || !first {
		return err
	}
	note(layer.UserDid, layer.Digest, true)
	_, err = tx.ExecContext(ctx, `INSERT INTO usage (user_did, blobs, bytes) VALUES (?1, 1, ?2)
		ON CONFLICT (user_did) DO UPDATE SET blobs = blobs + 1, bytes = bytes + ?2`, layer.UserDid, size)
	return err
}

func (l *Ledger) remove(ctx context.Context, tx *sql.Tx, rkey syntax.RecordKey, note func(string, string, bool)) error {
	var digest, user string
	var size int64
	err := tx.QueryRowContext(ctx, `DELETE FROM layer WHERE rkey = ? RETURNING digest, user_did, size`, rkey.String()).Scan(&digest, &user, &size)
	if errors.Is(err, sql.ErrNoRows) {
		return nil
	}
	if err != nil {
		return err
	}
	last, err := absent(ctx, tx, user, digest)
	if err != nil || !last {
		return err
	}
	note(user, digest, false)
	_, err = tx.ExecContext(ctx, `UPDATE usage SET blobs = blobs - 1, bytes = max(bytes - ?, 0) WHERE user_did = ?`, size, user)
	if err == nil {
		_, err = tx.ExecContext(ctx, `DELETE FROM usage WHERE user_did = ? AND blobs <= 0`, user)
	}
	return err
}

// absent tells whether no layer of user names digest.
func absent(ctx context.Context, tx *sql.Tx, user, digest string) (bool, error) {
	var n int
	err := tx.QueryRowContext(ctx, `SELECT count(*) FROM (SELECT 1 FROM layer WHERE user_did = ? AND digest = ? LIMIT 1)`, user, digest).Scan(&n)
	return n == 0, err
}

// Build fills the tables from all layer records where that was never done. each calls its argument with every
// record; it is called in one transaction.
func (l *Ledger) Build(ctx context.Context, each func(func(Change) error) error) error {
	return l.db.Write(ctx, func(tx *sql.Tx) error {
		var built int
		if err := tx.QueryRowContext(ctx, `SELECT count(*) FROM built`).Scan(&built); err != nil || built > 0 {
			return err
		}
		for _, table := range []string{"layer", "usage"} {
			if _, err := tx.ExecContext(ctx, `DELETE FROM `+table); err != nil {
				return err
			}
		}
		if err := each(func(c Change) error { _, err := l.Follow(ctx, tx, []Change{c}); return err }); err != nil {
			return fmt.Errorf("layer records: %w", err)
		}
		_, err := tx.ExecContext(ctx, `INSERT INTO built VALUES (1)`)
		return err
	})
}

// Reset has the next Build fill the tables anew: after the records changed without being followed.
func (l *Ledger) Reset(ctx context.Context) error {
	return l.db.Write(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `DELETE FROM built`)
		return err
	})
}

// Layers are the keys of the layer records of a manifest, by its at-uri.
func (l *Ledger) Layers(ctx context.Context, manifest string) ([]syntax.RecordKey, error) {
	return l.keys(ctx, `SELECT rkey FROM layer WHERE manifest = ? ORDER BY rkey`, manifest)
}

// LayersOf are the keys of all layer records of a person.
func (l *Ledger) LayersOf(ctx context.Context, did syntax.DID) ([]syntax.RecordKey, error) {
	return l.keys(ctx, `SELECT rkey FROM layer WHERE user_did = ? ORDER BY rkey`, did.String())
}

// layerPage is how many keys EachLayerOf has in memory.
const layerPage = 500

// EachLayerOf calls fn with the key of each layer record of a person, and holds no read of the database open meanwhile.
func (l *Ledger) EachLayerOf(ctx context.Context, did syntax.DID, fn func(rkey syntax.RecordKey) error) error {
	for digest, rkey := "", ""; ; {
		rows, err := l.db.Reader().QueryContext(ctx, `SELECT digest, rkey FROM layer WHERE user_did = ? AND (digest, rkey) > (?, ?) ORDER BY digest, rkey LIMIT ?`,
			did.String(), digest, rkey, layerPage)
		if err != nil {
			return err
		}
		keys := make([]syntax.RecordKey, 0, layerPage)
		for err == nil && rows.Next() {
			err = rows.Scan(&digest, &rkey)
			keys = append(keys, syntax.RecordKey(rkey))
		}
		if err := errors.Join(err, rows.Err(), rows.Close()); err != nil {
			return err
		}
		for _, k := range keys {
			if err := fn(k); err != nil {
				return err
			}
		}
		if len(keys) < layerPage {
			return nil
		}
	}
}

func (l *Ledger) keys(ctx context.Context, query, argument string) ([]syntax.RecordKey, error) {
	rows, err := l.db.Reader().QueryContext(ctx, query, argument)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	var out []syntax.RecordKey
	for rows.Next() {
		var key string
		if err := rows.Scan(&key); err != nil {
			return nil, err
		}
		out = append(out, syntax.RecordKey(key))
	}
	return out, rows.Err()
}

// Usage is how many blobs the manifests of did name, and their bytes.
func (l *Ledger) Usage(ctx context.Context, did syntax.DID) (blobs, bytes int64, err error) {
	err = l.db.Reader().QueryRowContext(ctx, `SELECT blobs, bytes FROM usage WHERE user_did = ?`, did.String()).Scan(&blobs, &bytes)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, 0, nil
	}
	return blobs, bytes, err
}

// Usages calls fn with the bytes of everybody who has some.
func (l *Ledger) Usages(ctx context.Context, fn func(did syntax.DID, bytes int64)) error {
	rows, err := l.db.Reader().QueryContext(ctx, `SELECT user_did, bytes FROM usage`)
	if err != nil {
		return err
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var did string
		var bytes int64
		if err := rows.Scan(&did, &bytes); err != nil {
			return err
		}
		fn(syntax.DID(did), bytes)
	}
	return rows.Err()
}

// Queryer is a database, or a transaction of it.
type Queryer interface {
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// Named tells whether a layer record names a blob.
func (l *Ledger) Named(ctx context.Context, q Queryer, digest oci.Digest) (bool, error) {
	var n int
	err := q.QueryRowContext(ctx, `SELECT count(*) FROM (SELECT 1 FROM layer WHERE digest = ? LIMIT 1)`, digest.String()).Scan(&n)
	return n > 0, err
}

// Told tells whether anybody ever told this hold of a manifest: else it does not know what is in use.
func (l *Ledger) Told(ctx context.Context) (bool, error) {
	var n int
	err := l.db.Reader().QueryRowContext(ctx, `SELECT (SELECT count(*) FROM told) + (SELECT count(*) FROM (SELECT 1 FROM layer LIMIT 1))`).Scan(&n)
	return n > 0, err
}

// NamedBy tells whether a layer record of did names the blob.
func (l *Ledger) NamedBy(ctx context.Context, q Queryer, did syntax.DID, digest oci.Digest) (bool, error) {
	var n int
	err := q.QueryRowContext(ctx, `SELECT count(*) FROM (SELECT 1 FROM layer WHERE user_did = ? AND digest = ? LIMIT 1)`,
		did.String(), digest.String()).Scan(&n)
	return n > 0, err
}
