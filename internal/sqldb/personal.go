package sqldb

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
)

// Personal are rows of a table that are about somebody: what a person is given of what is kept of them, and what
// is deleted when they say so.
type Personal struct {
	Table string
	Where string // with one parameter: who
	Show  string // the columns that they are given; "" where the rows say nothing more to them
}

// Show is a person's rows, each by column.
func (db *DB) Show(ctx context.Context, p Personal, who string) (out []map[string]any, err error) {
	rows, err := db.reader.QueryContext(ctx, `SELECT `+p.Show+` FROM `+p.Table+` WHERE `+p.Where, who)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", p.Table, err)
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	names, err := rows.Columns()
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", p.Table, err)
	}
	for rows.Next() {
		values, into := make([]any, len(names)), make([]any, len(names))
		for i := range values {
			into[i] = &values[i]
		}
		if err := rows.Scan(into...); err != nil {
			return nil, fmt.Errorf("read %s: %w", p.Table, err)
		}
		row := map[string]any{}
		for i, name := range names {
			row[name] = values[i]
		}
		out = append(out, row)
	}
	return out, rows.Err()
}

// Forget deletes a person's rows of all tables, in the order given.
func (db *DB) Forget(ctx context.Context, who string, all ...Personal) error {
	err := db.Write(ctx, func(tx *sql.Tx) error {
		for _, p := range all {
			if _, err := tx.ExecContext(ctx, `DELETE FROM `+p.Table+` WHERE `+p.Where, who); err != nil {
				return fmt.Errorf("%s: %w", p.Table, err)
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("forget a person: %w", err)
	}
	return nil
}
