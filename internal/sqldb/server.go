package sqldb

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"
)

// Server is a database on a server, as the package of its kind opens it: sqldb/postgres.
type Server struct {
	// Durable and Relaxed write; what Relaxed wrote may be lost when the server's machine fails. Reader cannot
	// write. All three take the placeholders of this package.
	Durable, Relaxed, Reader *sql.DB
	// MigrationLock is SQL that waits until no other transaction has run it and not ended.
	MigrationLock string
	// Clock is an expression for the server's time in milliseconds since 1970.
	Clock string
	// Retry says what an error of a transaction is worth.
	Retry func(err error) Retry
}

// Retry is whether a transaction that failed may be run again.
type Retry int

// Values of Retry.
const (
	Never   Retry = iota
	Perhaps       // may be another's doing, or the transaction's own fault
	Always        // another transaction's doing
)

const (
	// alwaysTimes bounds the runs of one Write; with the pauses between them it is some 5 s.
	alwaysTimes  = 40
	perhapsTimes = 3
	firstPause   = time.Millisecond
	longestPause = 200 * time.Millisecond
)

// FromServer is the database of a server, whose pools it closes in the end.
func FromServer(s Server) *DB {
	return &DB{server: &s, durable: s.Durable, relaxed: s.Relaxed, reader: s.Reader}
}

func (s *Server) write(ctx context.Context, pool *sql.DB, fn func(tx *sql.Tx) error) error {
	options := &sql.TxOptions{Isolation: sql.LevelSerializable}
	for run := 1; ; run++ {
		err := transact(ctx, pool, options, fn)
		if err == nil {
			return nil
		}
		switch s.Retry(err) {
		case Never:
			return err
		case Perhaps:
			if run >= perhapsTimes {
				return err
			}
		case Always:
			if run >= alwaysTimes {
				return fmt.Errorf("too many others write the same: %w", err)
			}
		}
		pause := min(firstPause<<min(run, 20), longestPause)
		timer := time.NewTimer(pause/2 + rand.N(pause))
		select {
		case <-ctx.Done():
			timer.Stop()
			return errors.Join(ctx.Err(), err)
		case <-timer.C:
		}
	}
}
