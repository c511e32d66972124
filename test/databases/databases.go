// Package databases runs a test on each kind of database that an AppView takes: a SQLite file, and PostgreSQL.
//
// It owns one PostgreSQL server a test binary, started when the first test wants it, with a fresh database a
// test. It refuses to own what is tested.
package databases

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"atcr.io/internal/sqldb"
	"atcr.io/internal/sqldb/postgres"
	"atcr.io/test/components"
)

// Main is the TestMain of a package whose tests call Each: it stops the server at the end.
func Main(m *testing.M) { os.Exit(Run(m)) }

// Run is Main for a TestMain that has more to do at the end.
func Run(m *testing.M) (code int) {
	server.inUse = true
	code = m.Run()
	if err := server.stop(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	return code
}

// Database is an empty database for one test.
type Database struct {
	Kind string // SQLite or PostgreSQL
	Dir  string // of SQLite's file db.sqlite3; "" for PostgreSQL
	URL  string // of PostgreSQL; "" for SQLite
}

// Each runs f on a database of each kind, at the same time.
func Each(t *testing.T, f func(t *testing.T, d Database)) {
	t.Helper()
	for _, kind := range []string{"SQLite", "PostgreSQL"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			d := Database{Kind: kind}
			if kind == "SQLite" {
				d.Dir = t.TempDir()
			} else {
				d.URL = NewPostgres(t)
			}
			f(t, d)
		})
	}
}

// NewPostgres is the URL of an empty database on the server.
func NewPostgres(t *testing.T) string {
	t.Helper()
	return server.get(t).CreateDatabase(t)
}

// Open opens the database, as one more process would, until the end of the test.
func (d Database) Open(t *testing.T) *sqldb.DB {
	t.Helper()
	var db *sqldb.DB
	var err error
	if d.URL != "" {
		db, err = postgres.Open(t.Context(), d.URL)
	} else {
		db, err = sqldb.Open(t.Context(), filepath.Join(d.Dir, "db.sqlite3"))
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() }) // a test may have closed it
	return db
}

// shared is the server of a test binary.
type shared struct {
	inUse bool
	once  sync.Once
	pg    *components.Postgres
	end   context.CancelFunc
	ended chan error
}

var server shared

func (s *shared) get(t *testing.T) *components.Postgres {
	t.Helper()
	if !s.inUse {
		t.Fatal("databases: the package has no TestMain that calls databases.Main")
	}
	s.once.Do(func() {
		ctx, cancel := context.WithCancel(context.Background())
		s.end, s.ended = cancel, make(chan error, 1)
		ready := make(chan *components.Postgres, 1)
		go func() {
			err := components.Program(context.WithoutCancel(ctx), func(tb components.TB) {
				ready <- components.StartPostgres(tb)
				<-ctx.Done()
			})
			close(ready)
			s.ended <- err
		}()
		s.pg = <-ready
	})
	if s.pg == nil {
		t.Fatal("databases: the PostgreSQL server did not start")
	}
	return s.pg
}

func (s *shared) stop() error {
	if s.end == nil {
		return nil
	}
	s.end()
	if err := <-s.ended; err != nil {
		return errors.Join(errors.New("databases"), err)
	}
	return nil
}
