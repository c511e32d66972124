package appview

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"atcr.io/internal/identity"
	"atcr.io/internal/sqldb"
)

// Blocking is the list of what an AppView does not serve, opened beside the running processes, which follow it
// within seconds. Close it.
type Blocking struct {
	db     *sqldb.DB
	blocks *blocks
	owners owners
}

// OpenBlocking opens the list of the AppView of a validated config.
func OpenBlocking(ctx context.Context, c Config, logger *slog.Logger) (*Blocking, error) {
	db, err := openDatabase(ctx, c)
	if err != nil {
		return nil, err
	}
	b := &Blocking{db: db, owners: newOwners(identity.New(identity.Config{
		PLCURL: c.PLCURL, HandleResolverURL: c.HandleResolverURL, AllowPrivate: c.TestMode, UserAgent: userAgent, Logger: logger,
	}), nil)}
	if b.blocks, err = openBlocks(ctx, db); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return b, nil
}

// List is all that is blocked, sorted.
func (b *Blocking) List() []Block { return b.blocks.list() }

// Add blocks subject: a DID, a handle, a repository of one, or a digest. Callers are told the reason, which is one
// line of at most 500 bytes.
func (b *Blocking) Add(ctx context.Context, subject, reason string) (Block, error) {
	reason = strings.TrimSpace(reason)
	if reason == "" || len(reason) > maxReason || strings.ContainsFunc(reason, func(c rune) bool { return c < ' ' }) {
		return Block{}, fmt.Errorf("a reason is needed, of at most %d bytes on one line: callers are told", maxReason)
	}
	known, err := blockSubject(ctx, b.owners, subject)
	if err != nil {
		return Block{}, err
	}
	one := Block{Subject: known, Reason: reason, At: time.Now()}
	return one, b.blocks.add(ctx, one)
}

// Remove serves subject again. It fails where it is not blocked.
func (b *Blocking) Remove(ctx context.Context, subject string) (Block, error) {
	known := subject
	if _, ok := b.blocks.find(subject); !ok { // as the list has it, or as people write it
		var err error
		if known, err = blockSubject(ctx, b.owners, subject); err != nil {
			return Block{}, err
		}
	}
	one, ok := b.blocks.find(known)
	if !ok {
		return Block{}, fmt.Errorf("%s is not blocked", known)
	}
	return one, b.blocks.remove(ctx, known)
}

// Close closes the database.
func (b *Blocking) Close() error { return b.db.Close() }
