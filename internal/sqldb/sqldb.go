// Package sqldb opens the SQLite databases of the daemons: pragmas, one writer, a pool of readers, migrations.
//
// It owns how a database is opened and changed, and refuses to own what is in it: tables, queries and
// their meaning belong to the packages that call it.
package sqldb

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"sync"

	"modernc.org/sqlite" // the driver, without cgo
	sqlite3 "modernc.org/sqlite/lib"
)

// ErrNewerSchema says that the database was written by a newer version of the program.
var ErrNewerSchema = errors.New("the database was written by a newer version")

// ErrCorrupt says that SQLite found the file damaged or no database at all.
var ErrCorrupt = errors.New("the database file is damaged")

// ErrFull says that the disk has no room for what was to be written. Nothing was.
var ErrFull = errors.New("the disk of the database is full")

// DB is one SQLite file in WAL mode. Writers wait for each other in the process, not in SQLite,
// where waiting is polling. Safe for concurrent use.
type DB struct {
	mu      sync.Mutex // held by the one write transaction
	durable *sql.DB    // synchronous=FULL
	relaxed *sql.DB    // synchronous=NORMAL
	reader  *sql.DB
	path    string
}

// Open opens or creates the file at path (mode 0600) and checks that it is a sound database.
//
// Errors: ErrCorrupt where the file is none; anything else is the operating system's or SQLite's.
func Open(ctx context.Context, path string) (*DB, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open database: %w", err)
	}
	if err := f.Close(); err != nil {
		return nil, fmt.Errorf("open database: %w", err)
	}
	db := &DB{path: path}
	for _, c := range []struct {
		pool  **sql.DB
		sync  string
		mode  string
		conns int
	}{
		{&db.durable, "FULL", "rw", 1},
		{&db.relaxed, "NORMAL", "rw", 1},
		{&db.reader, "NORMAL", "ro", max(4, runtime.GOMAXPROCS(0))},
	} {
		pool, err := sql.Open("sqlite", dsn(path, c.sync, c.mode))
		if err != nil {
			return nil, errors.Join(fmt.Errorf("open database: %w", err), db.Close())
		}
		pool.SetMaxOpenConns(c.conns)
		pool.SetMaxIdleConns(c.conns)
		*c.pool = pool
	}
	// The first reader comes after the first writer: a read-only connection cannot turn WAL on.
	for _, pool := range []*sql.DB{db.durable, db.relaxed, db.reader} {
		var n int
		if err := pool.QueryRowContext(ctx, "SELECT count(*) FROM sqlite_schema").Scan(&n); err != nil {
			return nil, errors.Join(fmt.Errorf("open database %s: %w: %w", path, ErrCorrupt, err), db.Close())
		}
	}
	return db, nil
}

// dsn puts the pragmas where every connection of a pool gets them.
func dsn(path, synchronous, mode string) string {
	q := url.Values{}
	for _, p := range []string{
		"busy_timeout(10000)", "journal_mode(WAL)", "synchronous(" + synchronous + ")", "foreign_keys(1)",
		"temp_store(MEMORY)", "cache_size(-4096)", "journal_size_limit(67108864)",
	} {
		if mode == "ro" && p == "journal_mode(WAL)" {
			continue
		}
		q.Add("_pragma", p)
	}
	if mode == "ro" {
		q.Add("_pragma", "query_only(1)")
	}
	q.Set("_txlock", "immediate")
	abs, err := filepath.Abs(path)
	if err != nil {
		abs = path
	}
	return "file:" + (&url.URL{Path: abs}).EscapedPath() + "?" + q.Encode()
}

// Write runs fn in the one write transaction. On a nil error what fn wrote has reached the disk.
//
// fn must use tx alone: a second Write inside it would wait for itself. An error or panic of fn rolls back.
func (db *DB) Write(ctx context.Context, fn func(tx *sql.Tx) error) error {
	return db.write(ctx, db.durable, fn)
}

// WriteRelaxed is Write without the wait for the disk: what fn wrote outlives a crash of the process but
// perhaps not a power cut, and never reaches the disk before an earlier Write did.
func (db *DB) WriteRelaxed(ctx context.Context, fn func(tx *sql.Tx) error) error {
	return db.write(ctx, db.relaxed, fn)
}

func (db *DB) write(ctx context.Context, pool *sql.DB, fn func(tx *sql.Tx) error) error {
	db.mu.Lock()
	defer db.mu.Unlock()
	tx, err := pool.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	defer func() { _ = tx.Rollback() }() // after Commit it does nothing
	if err := fn(tx); err != nil {
		return full(err)
	}
	if err := tx.Commit(); err != nil {
		return full(fmt.Errorf("commit: %w", err))
	}
	return nil
}

// full names the one failure of SQLite's that callers pass on in words.
func full(err error) error {
	if e, ok := errors.AsType[*sqlite.Error](err); ok && e.Code()&0xff == sqlite3.SQLITE_FULL {
		return fmt.Errorf("%w: %w", ErrFull, err)
	}
	return err
}

// Reader is the pool for queries. It cannot write. A query that began sees no later write.
func (db *DB) Reader() *sql.DB { return db.reader }

// CopyTo writes the database as it stands into a new file (mode 0600), while others read and write. The file
// must not exist. On an error it may be there in part.
func (db *DB) CopyTo(ctx context.Context, path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("copy database: %w", err)
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("copy database: %w", err)
	}
	pool, err := sql.Open("sqlite", dsn(db.path, "FULL", "rw")) // of its own, so that writers do not wait
	if err != nil {
		return fmt.Errorf("copy database: %w", err)
	}
	_, err = pool.ExecContext(ctx, "VACUUM INTO ?", path)
	if err = errors.Join(err, pool.Close()); err != nil {
		return fmt.Errorf("copy database: %w", err)
	}
	return nil
}

// Path is the file's path as given to Open.
func (db *DB) Path() string { return db.path }

// Close waits for the running write and closes every connection.
func (db *DB) Close() error {
	db.mu.Lock()
	defer db.mu.Unlock()
	var errs []error
	for _, pool := range []*sql.DB{db.reader, db.relaxed, db.durable} {
		if pool != nil {
			errs = append(errs, pool.Close())
		}
	}
	return errors.Join(errs...)
}

// Migrate brings the tables of one component to their newest form. migrations is append-only: entry i is
// the SQL that leads from version i to i+1, run once, each in its own transaction.
//
// Errors: ErrNewerSchema where the file has more versions than the program knows.
func (db *DB) Migrate(ctx context.Context, component string, migrations []string) error {
	err := db.Write(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `CREATE TABLE IF NOT EXISTS schema_version (
			component TEXT PRIMARY KEY, version INTEGER NOT NULL) STRICT`)
		return err
	})
	if err != nil {
		return fmt.Errorf("migrate %s: %w", component, err)
	}
	for {
		done := false
		err := db.Write(ctx, func(tx *sql.Tx) error {
			var version int
			err := tx.QueryRowContext(ctx, `SELECT version FROM schema_version WHERE component = ?`, component).Scan(&version)
			if err != nil && !errors.Is(err, sql.ErrNoRows) {
				return err
			}
			if version > len(migrations) {
				return fmt.Errorf("%w: %s has version %d, this program knows %d", ErrNewerSchema, component, version, len(migrations))
			}
			if done = version == len(migrations); done {
				return nil
			}
			if _, err := tx.ExecContext(ctx, migrations[version]); err != nil {
				return fmt.Errorf("version %d: %w", version+1, err)
			}
			_, err = tx.ExecContext(ctx, `INSERT INTO schema_version (component, version) VALUES (?, ?)
				ON CONFLICT (component) DO UPDATE SET version = excluded.version`, component, version+1)
			return err
		})
		if err != nil {
			return fmt.Errorf("migrate %s: %w", component, err)
		}
		if done {
			return nil
		}
	}
}
