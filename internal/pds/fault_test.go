package pds_test

import (
	"database/sql"
	"testing"

	"atcr.io/internal/sqldb"
)

func exec(t testing.TB, db *sqldb.DB, query string) {
	t.Helper()
	err := db.Write(t.Context(), func(tx *sql.Tx) error {
		_, err := tx.ExecContext(t.Context(), query)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
