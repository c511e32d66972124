package postgres

import (
	"context"
	"database/sql/driver"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"

	"atcr.io/internal/sqldb"
)

// connector makes connections that take SQLite's placeholders and arguments.
type connector struct{ driver.Connector }

func connect(config *pgx.ConnConfig) driver.Connector { return connector{stdlib.GetConnector(*config)} }

// Connect implements driver.Connector.
func (c connector) Connect(ctx context.Context) (driver.Conn, error) {
	opened, err := c.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	inner, ok := opened.(*stdlib.Conn)
	if !ok {
		return nil, errors.Join(errors.New("postgres: the driver has another kind of connection"), opened.Close())
	}
	return conn{inner}, nil
}

type conn struct{ *stdlib.Conn }

// Prepare implements driver.Conn.
func (c conn) Prepare(query string) (driver.Stmt, error) {
	return c.Conn.Prepare(sqldb.Numbered(query))
}

// PrepareContext implements driver.ConnPrepareContext.
func (c conn) PrepareContext(ctx context.Context, query string) (driver.Stmt, error) {
	return c.Conn.PrepareContext(ctx, sqldb.Numbered(query))
}

// ExecContext implements driver.ExecerContext.
func (c conn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	return c.Conn.ExecContext(ctx, sqldb.Numbered(query), args)
}

// QueryContext implements driver.QueryerContext.
func (c conn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	return c.Conn.QueryContext(ctx, sqldb.Numbered(query), args)
}

// CheckNamedValue implements driver.NamedValueChecker: the arguments of SQLite, where a boolean is a number.
func (c conn) CheckNamedValue(v *driver.NamedValue) error {
	value, err := driver.DefaultParameterConverter.ConvertValue(v.Value)
	if err != nil {
		return err
	}
	switch known := value.(type) {
	case bool:
		value = int64(0)
		if known {
			value = int64(1)
		}
	case time.Time:
		return errors.New("postgres: a time is stored as a number")
	}
	v.Value = value
	return nil
}
