package sqldb

import (
	"context"
	"crypto/rand"
	"database/sql"
	"fmt"
	"sync"
	"time"

	mathrand "math/rand/v2"
)

// Leases are names that one holder has at a time, among all processes that share a database. Where a holder
// ends without giving a name back, others have it after a while: so no connection is held meanwhile, as a
// lock of rows would. Safe for concurrent use.
type Leases struct {
	db *DB

	mu    sync.Mutex
	local map[string]*localLease // those of this process wait here, not in the database
}

type localLease struct {
	held    chan struct{}
	waiting int
}

const (
	shortestWait = 5 * time.Millisecond
	longestWait  = 100 * time.Millisecond
	giveBackIn   = 5 * time.Second
)

var leaseMigrations = []string{
	`CREATE TABLE lease (name TEXT PRIMARY KEY, holder TEXT NOT NULL, until INTEGER NOT NULL) STRICT, WITHOUT ROWID`,
}

// OpenLeases migrates the table.
func (db *DB) OpenLeases(ctx context.Context) (*Leases, error) {
	if err := db.Migrate(ctx, "lease", leaseMigrations); err != nil {
		return nil, err
	}
	err := db.WriteRelaxed(ctx, func(tx *sql.Tx) error { // of processes that ended
		_, err := tx.ExecContext(ctx, `DELETE FROM lease WHERE until < `+db.clock())
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("remove old leases: %w", err)
	}
	return &Leases{db: db, local: map[string]*localLease{}}, nil
}

// clock is SQL for the time in milliseconds: the database's, which all processes agree on.
func (db *DB) clock() string {
	if db.server != nil {
		return db.server.Clock
	}
	return `CAST(unixepoch('subsec') * 1000 AS INTEGER)`
}

// Take waits until nobody has the name, and has it then until release, or for d where that does not come. The
// holder ends what it does before d is over.
func (l *Leases) Take(ctx context.Context, name string, d time.Duration) (release func(), err error) {
	leave, err := l.enter(ctx, name)
	if err != nil {
		return nil, err
	}
	holder := rand.Text()
	for wait := shortestWait; ; wait = min(2*wait, longestWait) {
		taken, err := l.try(ctx, name, holder, d)
		if err != nil {
			leave()
			return nil, fmt.Errorf("wait for others: %w", err)
		}
		if taken {
			break
		}
		timer := time.NewTimer(wait/2 + mathrand.N(wait))
		select {
		case <-ctx.Done():
			timer.Stop()
			leave()
			return nil, ctx.Err()
		case <-timer.C:
		}
	}
	return func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), giveBackIn)
		defer cancel()
		// Where this fails the name is free when its time is over.
		_ = l.db.WriteRelaxed(ctx, func(tx *sql.Tx) error {
			_, err := tx.ExecContext(ctx, `DELETE FROM lease WHERE name = ? AND holder = ?`, name, holder)
			return err
		})
		leave()
	}, nil
}

// TakeHere is Take among those of this process alone, which costs the database nothing.
func (l *Leases) TakeHere(ctx context.Context, name string) (release func(), err error) {
	return l.enter(ctx, name)
}

func (l *Leases) try(ctx context.Context, name, holder string, d time.Duration) (taken bool, err error) {
	err = l.db.WriteRelaxed(ctx, func(tx *sql.Tx) error {
		now := l.db.clock()
		result, err := tx.ExecContext(ctx, `INSERT INTO lease (name, holder, until) VALUES (?, ?, `+now+` + ?)
			ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, until = excluded.until WHERE lease.until <= `+now,
			name, holder, d.Milliseconds())
		if err != nil {
			return err
		}
		n, err := result.RowsAffected()
		taken = n == 1
		return err
	})
	return taken, err
}

// enter waits for those of this process.
func (l *Leases) enter(ctx context.Context, name string) (leave func(), err error) {
	l.mu.Lock()
	own := l.local[name]
	if own == nil {
		own = &localLease{held: make(chan struct{}, 1)}
		l.local[name] = own
	}
	own.waiting++
	l.mu.Unlock()
	gone := func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if own.waiting--; own.waiting == 0 {
			delete(l.local, name)
		}
	}
	select {
	case own.held <- struct{}{}:
		return func() { <-own.held; gone() }, nil
	case <-ctx.Done():
		gone()
		return nil, ctx.Err()
	}
}
