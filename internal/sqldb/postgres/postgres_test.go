package postgres_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"atcr.io/internal/sqldb"
	"atcr.io/internal/sqldb/postgres"
	"atcr.io/test/databases"
)

func TestMain(m *testing.M) { databases.Main(m) }

var things = []string{`
CREATE TABLE thing (
	id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, body BLOB, gone INTEGER NOT NULL DEFAULT 0, n INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX thing_n ON thing (n);
-- only SQLite
CREATE VIEW which AS SELECT 'SQLite' AS kind;
-- only PostgreSQL
CREATE VIEW which AS SELECT 'PostgreSQL' AS kind;
`, `
CREATE TABLE pair (a TEXT NOT NULL, b TEXT NOT NULL, PRIMARY KEY (a, b)) STRICT, WITHOUT ROWID;
ALTER TABLE thing ADD COLUMN size REAL;
`}

func migrated(t *testing.T, d databases.Database) *sqldb.DB {
	t.Helper()
	db := d.Open(t)
	if err := db.Migrate(t.Context(), "thing", things); err != nil {
		t.Fatal(err)
	}
	return db
}

// Would catch SQL that means one thing on a file and another on a server: types of columns, placeholders,
// booleans, order, keys that the database fills, rows that were changed.
func TestSameSQL(t *testing.T) {
	t.Parallel()
	databases.Each(t, func(t *testing.T, d databases.Database) {
		ctx, db := t.Context(), migrated(t, d)
		type name string // of another type, as DIDs are
		err := db.Write(ctx, func(tx *sql.Tx) error {
			for i, n := range []name{"b", "B", "a", "Ä", "_", "a?"} {
				var id int64
				err := tx.QueryRowContext(ctx, `INSERT INTO thing (name, body, gone, n, size) VALUES (?, ?, ?, ?, 0.5) RETURNING id`,
					n, []byte{0, 0xff, '?'}, i == 0, i).Scan(&id)
				if err != nil || id != int64(i+1) {
					return fmt.Errorf("id %d, %w", id, err)
				}
			}
			result, err := tx.ExecContext(ctx, `INSERT INTO thing (name, n) VALUES (?2, ?1) ON CONFLICT (name) DO UPDATE SET n = excluded.n`, 1<<40, "a?")
			if err != nil {
				return err
			}
			if n, err := result.RowsAffected(); err != nil || n != 1 {
				return fmt.Errorf("%d rows, %w", n, err)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		rows, err := db.Reader().QueryContext(ctx, `SELECT name /* what? */ FROM thing WHERE name <> '?' AND name > ? ORDER BY name LIMIT ?`, "", 10) //nolint:rowserrcheck // below
		if err != nil {
			t.Fatal(err)
		}
		for rows.Next() {
			var n string
			if err := rows.Scan(&n); err != nil {
				t.Fatal(err)
			}
			names = append(names, n)
		}
		if err := errors.Join(rows.Err(), rows.Close()); err != nil || !slices.Equal(names, []string{"B", "_", "a", "a?", "b", "Ä"}) {
			t.Errorf("in order: %q, %v", names, err)
		}
		var body []byte
		var gone bool
		var size float64
		if err := db.Reader().QueryRowContext(ctx, `SELECT body, gone, size FROM thing WHERE gone = ? AND id = ?`, true, 1).Scan(&body, &gone, &size); err != nil ||
			string(body) != "\x00\xff?" || !gone || size != 0.5 {
			t.Errorf("%q %v %v %v", body, gone, size, err)
		}
		var kind string
		var sum int64
		if err := db.Reader().QueryRowContext(ctx, `SELECT kind, (SELECT sum(n) FROM thing) FROM which`).Scan(&kind, &sum); err != nil || kind != d.Kind || sum != 1<<40+10 {
			t.Errorf("%s %d %v", kind, sum, err)
		}
		if _, err := db.Reader().ExecContext(ctx, `DELETE FROM thing`); err == nil {
			t.Error("the reader could write")
		}
	})
}

// Would catch two writers of which one decides by what the other has changed, in one process or in two.
func TestWritesDoNotMeet(t *testing.T) {
	t.Parallel()
	databases.Each(t, func(t *testing.T, d databases.Database) {
		ctx, dbs := t.Context(), []*sqldb.DB{migrated(t, d), d.Open(t)}
		var wg sync.WaitGroup
		for i := range 30 {
			wg.Go(func() {
				write := dbs[i%2].Write
				if i%3 == 0 {
					write = dbs[i%2].WriteRelaxed
				}
				err := write(ctx, func(tx *sql.Tx) error {
					var n int
					if err := tx.QueryRowContext(ctx, `SELECT count(*) FROM thing`).Scan(&n); err != nil {
						return err
					}
					_, err := tx.ExecContext(ctx, `INSERT INTO thing (name, n) VALUES (?, ?)`, fmt.Sprint("as number ", n), n)
					return err
				})
				if err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		var n, largest int
		if err := dbs[0].Reader().QueryRowContext(ctx, `SELECT count(*), max(n) FROM thing`).Scan(&n, &largest); err != nil || n != 30 || largest != 29 {
			t.Errorf("%d rows, the largest %d, %v", n, largest, err)
		}
	})
}

// Would catch a transaction that is kept after an error, one that is run again for ever, and an error that
// is another on a server.
func TestFailedWrites(t *testing.T) {
	t.Parallel()
	databases.Each(t, func(t *testing.T, d databases.Database) {
		ctx, db := t.Context(), migrated(t, d)
		boom, runs := errors.New("boom"), 0
		insert := func(tx *sql.Tx) error {
			runs++
			_, err := tx.ExecContext(ctx, `INSERT INTO thing (name) VALUES ('x')`)
			return err
		}
		if err := db.Write(ctx, func(tx *sql.Tx) error { return errors.Join(insert(tx), boom) }); !errors.Is(err, boom) || runs != 1 {
			t.Errorf("%v after %d runs", err, runs)
		}
		if err := db.Write(ctx, insert); err != nil {
			t.Error(err)
		}
		if err := db.Write(ctx, insert); err == nil || runs > 6 {
			t.Errorf("a second row with the key: %v after %d runs", err, runs)
		}
	})
}

// Would catch processes that start at once and stumble over each other's tables, and an old program that
// writes into a newer schema.
func TestMigrateAtOnce(t *testing.T) {
	t.Parallel()
	databases.Each(t, func(t *testing.T, d databases.Database) {
		var wg sync.WaitGroup
		for range 4 {
			db := d.Open(t)
			for _, component := range []string{"thing", "other"} {
				wg.Go(func() {
					steps := things
					if component == "other" {
						steps = []string{`CREATE TABLE other (id INTEGER PRIMARY KEY) STRICT`}
					}
					if err := db.Migrate(t.Context(), component, steps); err != nil {
						t.Error(err)
					}
				})
			}
		}
		wg.Wait()
		if err := d.Open(t).Migrate(t.Context(), "thing", things[:1]); !errors.Is(err, sqldb.ErrNewerSchema) {
			t.Errorf("an older program: %v", err)
		}
	})
}

// Would catch a name that two processes have at once, one that is never free again after a crash, and a
// waiter who cannot give up.
func TestLeases(t *testing.T) {
	t.Parallel()
	databases.Each(t, func(t *testing.T, d databases.Database) {
		var all []*sqldb.Leases
		for range 2 {
			l, err := d.Open(t).OpenLeases(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, l)
		}
		var wg sync.WaitGroup
		var mu sync.Mutex
		for i := range 12 {
			wg.Go(func() {
				release, err := all[i%2].Take(t.Context(), "name", time.Minute)
				if err != nil {
					t.Error(err)
					return
				}
				defer release()
				if !mu.TryLock() {
					t.Error("two have it")
					return
				}
				mu.Unlock()
			})
		}
		wg.Wait()
		if _, err := all[0].Take(t.Context(), "lost", 50*time.Millisecond); err != nil { // its holder dies
			t.Fatal(err)
		}
		release, err := all[1].Take(t.Context(), "lost", time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		defer release()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		if _, err := all[0].Take(ctx, "lost", time.Minute); err == nil {
			t.Error("it was taken away")
		}
		here, err := all[0].TakeHere(t.Context(), "here")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := all[0].TakeHere(ctx, "here"); err == nil {
			t.Error("two of one process have it")
		}
		here()
		if here, err = all[0].TakeHere(t.Context(), "here"); err != nil {
			t.Fatal(err)
		}
		here()
	})
}

// Would catch an operator left alone with a driver's words, and a password in an error.
func TestCannotBeUsed(t *testing.T) {
	t.Parallel()
	var lc net.ListenConfig
	closed, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := closed.Addr().String()
	if err := closed.Close(); err != nil {
		t.Fatal(err)
	}
	good := databases.NewPostgres(t)
	for _, test := range []struct{ url, says string }{
		{"postgres://me:secretword@" + nobody + "/atcr", nobody + " cannot be reached"},
		{strings.Replace(good, "/test", "/nothing", 1), "has no database"},
		{strings.Replace(good, "atcr@", "stranger:secretword@", 1), `"stranger"`},
		{"mysql://me:secretword@host/atcr", "postgres://user:password@host"},
		{"postgres://me:secretword@host:port/atcr", "postgres://user:password@host"},
		{"postgres://me:secretword@host", "names no database"},
		{"host=x password=secretword", "postgres://user:password@host"},
		{"", "postgres://user:password@host"},
	} {
		db, err := postgres.Open(t.Context(), test.url)
		if err == nil {
			_ = db.Close()
			t.Errorf("%s was opened", test.url)
			continue
		}
		if !strings.Contains(err.Error(), test.says) || strings.Contains(err.Error(), "secretword") {
			t.Errorf("%s: %v", test.url, err)
		}
	}
}

// Would catch a pool that stays broken once the server has ended its connections.
func TestServerRestarts(t *testing.T) {
	t.Parallel()
	url := databases.NewPostgres(t)
	db, err := postgres.Open(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	other, err := postgres.Open(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Close() }()
	ask := func() error {
		var n int
		return db.Reader().QueryRowContext(t.Context(), `SELECT 1`).Scan(&n)
	}
	if err := ask(); err != nil {
		t.Fatal(err)
	}
	err = other.Write(t.Context(), func(tx *sql.Tx) error {
		_, err := tx.ExecContext(t.Context(), `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()`)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	_ = ask() // the one that met the end may fail
	if err := ask(); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}
