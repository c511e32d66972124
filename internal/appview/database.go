package appview

import (
	"context"
	"crypto/hkdf"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"atcr.io/internal/sqldb"
	"atcr.io/internal/sqldb/postgres"
)

// openDatabase opens the file of this process, or the database that it shares with others.
func openDatabase(ctx context.Context, c Config) (*sqldb.DB, error) {
	if c.DatabaseURL == "" {
		if err := os.MkdirAll(c.DatabaseDir, 0o700); err != nil {
			return nil, fmt.Errorf("ATCR_DATABASE_DIR: %w", err)
		}
		return sqldb.Open(ctx, filepath.Join(c.DatabaseDir, "db.sqlite3"))
	}
	db, err := postgres.Open(ctx, c.DatabaseURL)
	if err != nil {
		return nil, fmt.Errorf("ATCR_DATABASE_URL: %w", err)
	}
	return db, nil
}

var secretMigrations = []string{
	`CREATE TABLE appview_secret (fingerprint TEXT PRIMARY KEY) STRICT`,
}

// errOtherSecret says that this process would read nothing of what the others wrote, and take none of their
// tokens.
var errOtherSecret = errors.New("ATCR_SECRET_KEY_FILE: the AppViews that share this database have another secret: copy their file here. " +
	"To begin with a new secret on purpose, which signs everybody out, stop them all and empty the table appview_secret")

// sameSecret refuses secrets of which none was ever in use at this database. What is kept of them tells nobody
// what they are.
func sameSecret(ctx context.Context, db *sqldb.DB, secrets [][]byte) error {
	var own []string
	for _, secret := range secrets {
		raw, err := hkdf.Key(sha256.New, secret, nil, "atcr secret's fingerprint", 16)
		if err != nil {
			return fmt.Errorf("derive the fingerprint: %w", err)
		}
		own = append(own, hex.EncodeToString(raw))
	}
	if err := db.Migrate(ctx, "appview_secret", secretMigrations); err != nil {
		return err
	}
	return db.Write(ctx, func(tx *sql.Tx) error {
		var all, known int
		if err := tx.QueryRowContext(ctx, `SELECT count(*) FROM appview_secret`).Scan(&all); err != nil {
			return err
		}
		for _, fingerprint := range own {
			result, err := tx.ExecContext(ctx, `INSERT INTO appview_secret (fingerprint) VALUES (?) ON CONFLICT (fingerprint) DO NOTHING`, fingerprint)
			if err != nil {
				return err
			}
			if n, err := result.RowsAffected(); err != nil {
				return err
			} else if n == 0 {
				known++
			}
		}
		if all > 0 && known == 0 {
			return errOtherSecret
		}
		return nil
	})
}
