package sqldb

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
)

const versionTable = `CREATE TABLE IF NOT EXISTS schema_version (
	component TEXT PRIMARY KEY, version INTEGER NOT NULL) STRICT`

// Migrate brings the tables of one component to their newest form. migrations is append-only: entry i is
// the SQL that leads from version i to i+1, run once, each in its own transaction. It is written for SQLite;
// see Translate for what becomes of it on a server. Several processes may migrate at once.
//
// Errors: ErrNewerSchema where the database has more versions than the program knows.
func (db *DB) Migrate(ctx context.Context, component string, migrations []string) error {
	for done := false; !done; {
		err := db.migrating(ctx, func(tx *sql.Tx) (err error) {
			done, err = db.step(ctx, tx, component, migrations)
			return err
		})
		if err != nil {
			return fmt.Errorf("migrate %s: %w", component, err)
		}
	}
	return nil
}

// migrating runs fn in a transaction of which there is one at a time, and which sees all that the last one did.
func (db *DB) migrating(ctx context.Context, fn func(tx *sql.Tx) error) error {
	if db.server == nil {
		return db.Write(ctx, fn)
	}
	return transact(ctx, db.durable, &sql.TxOptions{Isolation: sql.LevelReadCommitted}, func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, db.server.MigrationLock); err != nil {
			return err
		}
		return fn(tx)
	})
}

// step goes one version up, unless it is done.
func (db *DB) step(ctx context.Context, tx *sql.Tx, component string, migrations []string) (done bool, err error) {
	if err := db.define(ctx, tx, versionTable); err != nil {
		return false, err
	}
	var version int
	err = tx.QueryRowContext(ctx, `SELECT version FROM schema_version WHERE component = ?`, component).Scan(&version)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return false, err
	}
	if version > len(migrations) {
		return false, fmt.Errorf("%w: %s has version %d, this program knows %d", ErrNewerSchema, component, version, len(migrations))
	}
	if version == len(migrations) {
		return true, nil
	}
	if err := db.define(ctx, tx, migrations[version]); err != nil {
		return false, fmt.Errorf("version %d: %w", version+1, err)
	}
	_, err = tx.ExecContext(ctx, `INSERT INTO schema_version (component, version) VALUES (?, ?)
		ON CONFLICT (component) DO UPDATE SET version = excluded.version`, component, version+1)
	return false, err
}

// define runs the SQL of a migration.
func (db *DB) define(ctx context.Context, tx *sql.Tx, text string) error {
	text, err := section(text, db.server != nil)
	if err == nil && db.server != nil {
		text, err = Translate(text)
	}
	if err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, text)
	return err
}
