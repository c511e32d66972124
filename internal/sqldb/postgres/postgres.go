// Package postgres opens databases on PostgreSQL servers for sqldb.
//
// It owns the driver and what PostgreSQL's errors mean, and refuses to own what is in a database. It stands
// apart from sqldb so that a program that has SQLite alone does not link the driver.
package postgres

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"atcr.io/internal/sqldb"
)

// ErrUnreachable says that there is no server at the address, or that it does not let us in.
var ErrUnreachable = errors.New("the database cannot be used")

const (
	connectTimeout = 10 * time.Second
	// Connections of one process, opened when they are needed: a server takes 100 as it is installed.
	durableConns = 4
	relaxedConns = 4
	readerConns  = 8
	idleTime     = 5 * time.Minute
	// oldest is the first version of the server that we run on, as server_version_num.
	oldest = 130000
)

// Check tells whether text is the URL of a database, without asking anybody.
func Check(text string) error {
	_, err := parse(text)
	return err
}

// parse never repeats text, which has a password.
func parse(text string) (*pgx.ConnConfig, error) {
	errForm := errors.New("is no URL like postgres://user:password@host:5432/database")
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "postgres" && u.Scheme != "postgresql" {
		return nil, errForm
	}
	config, err := pgx.ParseConfig(text)
	if err != nil {
		if inner := errors.Unwrap(err); inner != nil && u.User == nil {
			return nil, fmt.Errorf("%w: %w", errForm, inner)
		}
		return nil, errForm
	}
	if config.Database == "" {
		return nil, errors.New("names no database: write postgres://user:password@host:5432/database")
	}
	if config.ConnectTimeout == 0 {
		config.ConnectTimeout = connectTimeout
	}
	if config.RuntimeParams["application_name"] == "" {
		config.RuntimeParams["application_name"] = "atcr"
	}
	// Where a process hangs in the middle of a transaction, others do not wait for it for ever.
	config.RuntimeParams["idle_in_transaction_session_timeout"] = "60000"
	return config, nil
}

// Open opens the database that a postgres:// URL names, and checks that it is one that can be used.
//
// Errors: ErrUnreachable, with a sentence for who set the URL; none of them has the password.
func Open(ctx context.Context, text string) (*sqldb.DB, error) {
	config, err := parse(text)
	if err != nil {
		return nil, fmt.Errorf("the database's URL %w", err)
	}
	server := sqldb.Server{
		MigrationLock: `SELECT pg_advisory_xact_lock(4707461529975390209)`, // "ATCR", and 1
		Clock:         `CAST(extract(epoch FROM clock_timestamp()) * 1000 AS BIGINT)`,
		Retry:         retry,
		Durable:       pool(config, "", "", durableConns),
		Relaxed:       pool(config, "synchronous_commit", "off", relaxedConns),
		Reader:        pool(config, "default_transaction_read_only", "on", readerConns),
	}
	db := sqldb.FromServer(server)
	if err := usable(ctx, config, server.Durable); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return db, nil
}

// pool has connections with one parameter of their own.
func pool(config *pgx.ConnConfig, parameter, value string, conns int) *sql.DB {
	config = config.Copy()
	if parameter != "" {
		config.RuntimeParams[parameter] = value
	}
	p := sql.OpenDB(connect(config))
	p.SetMaxOpenConns(conns)
	p.SetMaxIdleConns(conns)
	p.SetConnMaxIdleTime(idleTime)
	return p
}

// usable asks the server what it is.
func usable(ctx context.Context, config *pgx.ConnConfig, p *sql.DB) error {
	where := net.JoinHostPort(config.Host, strconv.Itoa(int(config.Port)))
	if strings.HasPrefix(config.Host, "/") {
		where = config.Host
	}
	var version int
	var encoding string
	var standby bool
	err := p.QueryRowContext(ctx, `SELECT CAST(current_setting('server_version_num') AS BIGINT), current_setting('server_encoding'), pg_is_in_recovery()`).
		Scan(&version, &encoding, &standby)
	said, isAnswer := errors.AsType[*pgconn.PgError](err)
	switch {
	case isAnswer && strings.HasPrefix(said.Code, "28"):
		return fmt.Errorf("%w: the PostgreSQL server at %s refuses the user %q or its password", ErrUnreachable, where, config.User)
	case isAnswer && said.Code == "3D000":
		return fmt.Errorf("%w: the PostgreSQL server at %s has no database %q: create it, in the encoding UTF8", ErrUnreachable, where, config.Database)
	case isAnswer:
		return fmt.Errorf("%w: the PostgreSQL server at %s says: %s", ErrUnreachable, where, said.Message)
	case err != nil:
		return fmt.Errorf("%w: the PostgreSQL server at %s cannot be reached: %w", ErrUnreachable, where, cause(err))
	case version < oldest:
		return fmt.Errorf("%w: the PostgreSQL server at %s is older than version %d", ErrUnreachable, where, oldest/10000)
	case encoding != "UTF8":
		return fmt.Errorf("%w: the database %q at %s has the encoding %s: create one with UTF8", ErrUnreachable, config.Database, where, encoding)
	case standby:
		return fmt.Errorf("%w: the PostgreSQL server at %s is a standby, which takes no writes: name the primary", ErrUnreachable, where)
	}
	return nil
}

// cause is the innermost error: those around it repeat the address.
func cause(err error) error {
	if e, ok := errors.AsType[*net.OpError](err); ok {
		return e
	}
	if e, ok := errors.AsType[*pgconn.ConnectError](err); ok {
		if inner := e.Unwrap(); inner != nil {
			return inner
		}
	}
	return err
}

// retry judges by the codes of PostgreSQL's manual, "Serialization Failure Handling".
func retry(err error) sqldb.Retry {
	e, ok := errors.AsType[*pgconn.PgError](err)
	if !ok {
		return sqldb.Never
	}
	switch e.Code {
	case "40001", "40P01": // serialization failure, deadlock
		return sqldb.Always
	case "23505", "23P01": // a row that another transaction made in between, or not
		return sqldb.Perhaps
	}
	return sqldb.Never
}
