package pds_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"atcr.io/internal/pds"
	"atcr.io/internal/sqldb"
)

// limitPages makes the database full at its present size, or, with 0, no more.
func (s *simulation) limitPages(t *testing.T, more int) {
	t.Helper()
	err := s.w.db.Write(t.Context(), func(tx *sql.Tx) error { // of the one connection that commits use
		var n int
		if err := tx.QueryRowContext(t.Context(), `PRAGMA page_count`).Scan(&n); err != nil {
			return err
		}
		limit := 1 << 30
		if more > 0 {
			limit = n + more
		}
		return tx.QueryRowContext(t.Context(), fmt.Sprintf(`PRAGMA max_page_count = %d`, limit)).Scan(&n)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// Would catch a commit of which a part stays when the disk is full, one that is acknowledged, reads that fail then,
// and a repo that does not go on once there is room.
func TestFullDatabase(t *testing.T) {
	t.Parallel()
	s := newSimulation(t, 21)
	s.write()
	s.walker.walk(t, s.model)
	full := 0
	for round := range 6 {
		s.limitPages(t, 1+round%4)
		for range 40 {
			writes := s.full()
			_, err := s.w.repo.Apply(t.Context(), writes, nil)
			if err == nil {
				s.made(writes)
				s.walker.walk(t, s.model)
				continue
			}
			full++
			if !errors.Is(sqldb.Classify(err), sqldb.ErrFull) {
				t.Fatalf("a full disk is not named: %v", err)
			}
			s.walker.walk(t, s.model)
			break
		}
		if round%3 == 0 {
			s.w.reopen(t) // lifts the limit as well
		}
		s.limitPages(t, 0)
		writes := s.full()
		if _, err := s.w.repo.Apply(t.Context(), writes, nil); err != nil {
			t.Fatalf("there is room, and it does not go on: %v", err)
		}
		s.made(writes)
		s.walker.walk(t, s.model)
	}
	if full < 4 {
		t.Errorf("the disk was full %d times", full)
	}
}

// Would catch a start on a database that was cut short: as if nothing were missing, or with an error that does not
// say that the file is damaged.
func TestCutDatabase(t *testing.T) {
	t.Parallel()
	s := newSimulation(t, 8)
	for range 30 {
		s.write()
	}
	s.walker.walk(t, s.model)
	s.w.host.Close()
	if err := s.w.db.Close(); err != nil { // all is in the one file
		t.Fatal(err)
	}
	raw, err := os.ReadFile(s.w.path)
	if err != nil {
		t.Fatal(err)
	}
	const cuts = 24
	refused := 0
	for i := 1; i < cuts; i++ {
		path := filepath.Join(t.TempDir(), "db.sqlite3")
		if err := os.WriteFile(path, raw[:len(raw)*i/cuts], 0o600); err != nil {
			t.Fatal(err)
		}
		records, err := s.start(path)
		switch {
		case err == nil && records != len(s.model):
			t.Errorf("cut to %d of %d: started with %d records of %d", i, cuts, records, len(s.model))
		case err != nil && !errors.Is(sqldb.Classify(err), sqldb.ErrCorrupt) && !errors.Is(err, pds.ErrCorrupt):
			t.Errorf("cut to %d of %d: %v", i, cuts, err)
		case err != nil:
			refused++
		}
	}
	if refused < cuts/2 {
		t.Errorf("%d of %d cut files were refused", refused, cuts-1)
	}
}

// start opens a database as a hold does at its start, and reads every record.
func (s *simulation) start(path string) (records int, err error) {
	ctx := context.Background()
	db, err := sqldb.Open(ctx, path)
	if err != nil {
		return 0, err
	}
	defer func() { _ = db.Close() }()
	host, err := pds.Open(ctx, pds.Config{DB: db, Now: s.clock})
	if err != nil {
		return 0, err
	}
	repo, err := host.AddRepo(ctx, did, s.w.key, "hold.example")
	if err != nil {
		return 0, err
	}
	return repo.Verify(ctx)
}
