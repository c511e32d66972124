package sqldb_test

import (
	"database/sql"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"atcr.io/internal/sqldb"
)

func open(t *testing.T, path string) *sqldb.DB {
	t.Helper()
	db, err := sqldb.Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return db
}

// Would catch a pragma that reached only the first connection of a pool, and a reader that can write.
func TestPragmas(t *testing.T) {
	t.Parallel()
	db := open(t, filepath.Join(t.TempDir(), "a b?.sqlite3"))
	check := func(write func() (mode string, sync int)) {
		mode, synchronous := write()
		if mode != "wal" {
			t.Errorf("journal_mode %q", mode)
		}
		_ = synchronous
	}
	for _, w := range []struct {
		name string
		run  func(func(*sql.Tx) error) error
		want int
	}{
		{"durable", func(f func(*sql.Tx) error) error { return db.Write(t.Context(), f) }, 2},
		{"relaxed", func(f func(*sql.Tx) error) error { return db.WriteRelaxed(t.Context(), f) }, 1},
	} {
		check(func() (mode string, synchronous int) {
			err := w.run(func(tx *sql.Tx) error {
				if err := tx.QueryRow("PRAGMA journal_mode").Scan(&mode); err != nil {
					return err
				}
				return tx.QueryRow("PRAGMA synchronous").Scan(&synchronous)
			})
			if err != nil || synchronous != w.want {
				t.Errorf("%s: synchronous %d, want %d (%v)", w.name, synchronous, w.want, err)
			}
			return mode, synchronous
		})
	}
	if _, err := db.Reader().Exec("CREATE TABLE x (a INTEGER)"); err == nil {
		t.Error("the reader pool could write")
	}
}

// Would catch a transaction that stays open after an error, and writers that fail with SQLITE_BUSY.
func TestWrite(t *testing.T) {
	t.Parallel()
	db := open(t, filepath.Join(t.TempDir(), "db.sqlite3"))
	if err := db.Migrate(t.Context(), "t", []string{"CREATE TABLE t (n INTEGER NOT NULL) STRICT"}); err != nil {
		t.Fatal(err)
	}
	boom := errors.New("boom")
	err := db.Write(t.Context(), func(tx *sql.Tx) error {
		if _, err := tx.Exec("INSERT INTO t VALUES (1)"); err != nil {
			return err
		}
		return boom
	})
	if !errors.Is(err, boom) {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			write := db.Write
			if i%2 == 0 {
				write = db.WriteRelaxed
			}
			if err := write(t.Context(), func(tx *sql.Tx) error {
				_, err := tx.Exec("INSERT INTO t VALUES (?)", i)
				return err
			}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	var n int
	if err := db.Reader().QueryRow("SELECT count(*) FROM t").Scan(&n); err != nil || n != 40 {
		t.Fatalf("%d rows, %v", n, err)
	}
}

// Would catch a migration run twice, and an old program that writes into a newer schema.
func TestMigrate(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "db.sqlite3")
	db := open(t, path)
	one := []string{"CREATE TABLE a (n INTEGER) STRICT"}
	two := append(one, "CREATE TABLE b (n INTEGER) STRICT; CREATE INDEX b_n ON b (n)")
	for _, m := range [][]string{one, one, two, two} {
		if err := db.Migrate(t.Context(), "c", m); err != nil {
			t.Fatal(err)
		}
	}
	if err := db.Migrate(t.Context(), "c", one); !errors.Is(err, sqldb.ErrNewerSchema) {
		t.Fatalf("got %v", err)
	}
	if err := db.Migrate(t.Context(), "other", one[:0]); err != nil {
		t.Fatal(err)
	}
}

// Would catch a start on a file that is no database, which would then be overwritten.
func TestOpenDamaged(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "db.sqlite3")
	if err := os.WriteFile(path, []byte("this is a text file and certainly not a database, is it"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := sqldb.Open(t.Context(), path); !errors.Is(err, sqldb.ErrCorrupt) {
		t.Fatalf("got %v", err)
	}
}

// Would catch a copy that lacks what was written last, that others may read, or that is made over something.
func TestCopyTo(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	db, err := sqldb.Open(t.Context(), filepath.Join(dir, "a"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	err = db.WriteRelaxed(t.Context(), func(tx *sql.Tx) error {
		_, err := tx.ExecContext(t.Context(), `CREATE TABLE t (v INTEGER); INSERT INTO t VALUES (7)`)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "b")
	if err := db.CopyTo(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	if err := db.CopyTo(t.Context(), path); !errors.Is(err, os.ErrExist) {
		t.Errorf("copied over a file: %v", err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info, err)
	}
	copied, err := sqldb.Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = copied.Close() }()
	var v int
	if err := copied.Reader().QueryRowContext(t.Context(), `SELECT v FROM t`).Scan(&v); err != nil || v != 7 {
		t.Errorf("%d %v", v, err)
	}
}

// Would catch a full disk that is told as some failure of the program's.
func TestFull(t *testing.T) {
	t.Parallel()
	db := open(t, filepath.Join(t.TempDir(), "db"))
	err := db.Write(t.Context(), func(tx *sql.Tx) error {
		_, err := tx.Exec("CREATE TABLE x (a BLOB) STRICT")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	err = db.Write(t.Context(), func(tx *sql.Tx) error {
		if _, err := tx.Exec("PRAGMA max_page_count = 16"); err != nil {
			return err
		}
		_, err := tx.Exec("INSERT INTO x VALUES (zeroblob(1000000))")
		return err
	})
	if !errors.Is(err, sqldb.ErrFull) {
		t.Errorf("%v", err)
	}
	var n int
	if err := db.Reader().QueryRow("SELECT count(*) FROM x").Scan(&n); err != nil || n != 0 {
		t.Errorf("%d rows, %v", n, err)
	}
}

// Would catch a lock that passes for something else, so that nobody knows what to do.
func TestClassify(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "db.sqlite3")
	db := open(t, path)
	other, err := sql.Open("sqlite", "file:"+path+"?_txlock=immediate") // which does not wait
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Close() }()
	err = db.Write(t.Context(), func(*sql.Tx) error {
		tx, err := other.BeginTx(t.Context(), nil)
		if err == nil {
			_ = tx.Rollback()
		}
		return err
	})
	if err = sqldb.Classify(err); !errors.Is(err, sqldb.ErrLocked) {
		t.Errorf("locked: %v", err)
	}
	plain := errors.New("plain")
	if err := sqldb.Classify(plain); !errors.Is(err, plain) || errors.Is(err, sqldb.ErrCorrupt) || sqldb.Classify(nil) != nil {
		t.Errorf("%v", err)
	}
}
