package hold

import (
	"context"
	"database/sql"
	"errors"

	"atcr.io/internal/sqldb"
)

var stateMigrations = []string{`
CREATE TABLE hold_state (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
`}

// What a hold remembers of itself beside its repo.
const (
	// stateGenesis is the operation that made the did:plc, as JSON, from before the directory had it.
	stateGenesis = "genesis"
	// stateAnnounced is the DID document that followers were last told of.
	stateAnnounced = "announced"
	// stateExported is the rotation key (did:key) that was written out.
	stateExported = "rotation key exported"
)

// state is names with values. Safe for concurrent use.
type state struct{ db *sqldb.DB }

func openState(ctx context.Context, db *sqldb.DB) (*state, error) {
	return &state{db}, db.Migrate(ctx, "hold_state", stateMigrations)
}

// get is "" where nothing was set.
func (s *state) get(ctx context.Context, name string) (value string, err error) {
	err = s.db.Reader().QueryRowContext(ctx, `SELECT value FROM hold_state WHERE name = ?`, name).Scan(&value)
	if errors.Is(err, sql.ErrNoRows) {
		return "", nil
	}
	return value, err
}

func (s *state) set(ctx context.Context, name, value string) error {
	return s.db.Write(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `INSERT INTO hold_state (name, value) VALUES (?, ?)
			ON CONFLICT (name) DO UPDATE SET value = excluded.value`, name, value)
		return err
	})
}
