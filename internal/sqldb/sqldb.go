// Package sqldb opens the databases of the daemons: one writer, a pool of readers, migrations. A database is a
// SQLite file, or one on a PostgreSQL server (sqldb/postgres), with the same SQL for both.
//
// It owns how a database is opened and changed, and refuses to own what is in it: tables, queries and
// their meaning belong to the packages that call it.
//
// What SQL for both keeps to: placeholders are ? or ?1; tables are written for SQLite and translated (see
// Translate); INTEGER columns hold booleans (WHERE gone = 1, arguments may be bool); BLOB columns take []byte
// and TEXT columns string, valid UTF-8 without a NUL; TEXT is ordered by its bytes; ON CONFLICT names its
// columns; a new row's id comes by RETURNING, not LastInsertId; LIKE is not used, since PostgreSQL's heeds
// case; nor is anything that only one of the two has, outside of a section of a migration that is for it.
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
	"syscall"

	"modernc.org/sqlite" // the driver, without cgo
	sqlite3 "modernc.org/sqlite/lib"
)

// ErrNewerSchema says that the database was written by a newer version of the program.
var ErrNewerSchema = errors.New("the database was written by a newer version")

// ErrCorrupt says that SQLite found the file damaged or no database at all.
var ErrCorrupt = errors.New("the database file is damaged")

// ErrLocked says that another program has the database open, and does not let go.
var ErrLocked = errors.New("another program has the database locked")

// ErrFull says that the disk has no room for what was to be written. Nothing was.
var ErrFull = errors.New("the disk of the database is full")

// Classify gives an error of SQLite's the name that it has here: ErrCorrupt, ErrLocked or ErrFull; another it
// leaves as it is.
func Classify(err error) error {
	if errors.Is(err, ErrCorrupt) || errors.Is(err, ErrLocked) || errors.Is(err, ErrFull) {
		return err
	}
	if e, ok := errors.AsType[*sqlite.Error](err); ok {
		switch e.Code() & 0xff { // the rest says which kind of it
		case sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB:
			return fmt.Errorf("%w: %w", ErrCorrupt, err)
		case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED:
			return fmt.Errorf("%w: %w", ErrLocked, err)
		case sqlite3.SQLITE_FULL:
			return fmt.Errorf("%w: %w", ErrFull, err)
		}
	}
	if errors.Is(err, syscall.ENOSPC) {
		return fmt.Errorf("%w: %w", ErrFull, err)
	}
	return err
}

// DB is a database. One SQLite file in WAL mode: writers wait for each other in the process, not in SQLite,
// where waiting is polling. Or one on a server, where several processes share it. Safe for concurrent use.
type DB struct {
	server  *Server    // nil: SQLite
	mu      sync.Mutex // held by the one write transaction
	durable *sql.DB    // synchronous=FULL
	relaxed *sql.DB    // synchronous=NORMAL
	reader  *sql.DB
	path    string
}

// Open opens or creates the file at path (mode 0600) and checks that it is a sound database.
//
// Errors: ErrCorrupt where the file is none; ErrLocked; ErrFull; anything else is the operating system's or SQLite's.
func Open(ctx context.Context, path string) (*DB, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open database: %w", Classify(err))
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
			return nil, errors.Join(fmt.Errorf("open database %s: %w", path, Classify(err)), db.Close())
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

// Write runs fn in a write transaction that is as if there were no other at the same time, of this process or
// another. On a nil error what fn wrote has reached the disk.
//
// fn must use tx alone: a second Write inside it would wait for itself. An error or panic of fn rolls back. On
// a server fn runs again where its transaction met another one: it sets what it returns anew each time, and
// does nothing that cannot be undone.
func (db *DB) Write(ctx context.Context, fn func(tx *sql.Tx) error) error {
	return db.write(ctx, db.durable, fn)
}

// WriteRelaxed is Write without the wait for the disk: what fn wrote outlives a crash of the process but
// perhaps not a power cut, and never reaches the disk before an earlier Write did.
func (db *DB) WriteRelaxed(ctx context.Context, fn func(tx *sql.Tx) error) error {
	return db.write(ctx, db.relaxed, fn)
}

func (db *DB) write(ctx context.Context, pool *sql.DB, fn func(tx *sql.Tx) error) error {
	if db.server != nil {
		return db.server.write(ctx, pool, fn)
	}
	db.mu.Lock()
	defer db.mu.Unlock()
	return transact(ctx, pool, nil, fn)
}

// transact runs fn in a transaction, once.
func transact(ctx context.Context, pool *sql.DB, options *sql.TxOptions, fn func(tx *sql.Tx) error) error {
	tx, err := pool.BeginTx(ctx, options)
	if err != nil {
		return Classify(fmt.Errorf("begin: %w", err))
	}
	defer func() { _ = tx.Rollback() }() // after Commit it does nothing
	if err := fn(tx); err != nil {
		return Classify(err)
	}
	if err := tx.Commit(); err != nil {
		return Classify(fmt.Errorf("commit: %w", err))
	}
	return nil
}

// Reader is the pool for queries. It cannot write. A query that began sees no later write.
func (db *DB) Reader() *sql.DB { return db.reader }

// ForUpdate is what a SELECT in Write ends with that is to wait for others who change the same rows: " FOR
// UPDATE" on a server, nothing on SQLite, where Write has already waited. It saves a second run of Write's fn.
func (db *DB) ForUpdate() string {
	if db.server != nil {
		return " FOR UPDATE"
	}
	return ""
}

// SkipLocked is ForUpdate for a SELECT that leaves rows out which others are about to change.
func (db *DB) SkipLocked() string {
	if db.server != nil {
		return " FOR UPDATE SKIP LOCKED"
	}
	return ""
}

// OnServer tells whether the database is one on a server, rather than a SQLite file.
func (db *DB) OnServer() bool { return db.server != nil }

// CopyTo writes the database as it stands into a new file (mode 0600), while others read and write. The file
// must not exist. On an error it may be there in part. A database on a server is copied by its own tools.
func (db *DB) CopyTo(ctx context.Context, path string) error {
	if db.server != nil {
		return errors.New("copy database: it is on a server: use pg_dump")
	}
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

// Path is the file's path as given to Open, "" for a database on a server.
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
