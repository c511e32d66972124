package appview

import (
	"context"
	"database/sql"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/internal/oci"
	"atcr.io/internal/sqldb"
)

var blockMigrations = []string{`
CREATE TABLE blocked (subject TEXT PRIMARY KEY, reason TEXT NOT NULL, created_at INTEGER NOT NULL) STRICT, WITHOUT ROWID;
`}

const (
	// maxReason bounds the words that callers are told.
	maxReason = 500
	// blocksFresh is how late another process's block takes effect here.
	blocksFresh = 2 * time.Second
)

// Block is a person, a repository or a digest that this AppView does not serve, and why. Records and blobs stay
// as they are: other AppViews serve them.
type Block struct {
	Subject string    `json:"subject"` // a DID, <DID>/<repository>, or a digest
	Reason  string    `json:"reason"`
	At      time.Time `json:"at"`
}

// blocks are few, and looked at with each request: they are in memory, and read again every few seconds, since
// the command that makes one is another process.
type blocks struct {
	db  *sqldb.DB
	all atomic.Pointer[map[string]Block]
}

func openBlocks(ctx context.Context, db *sqldb.DB) (*blocks, error) {
	if err := db.Migrate(ctx, "blocked", blockMigrations); err != nil {
		return nil, err
	}
	b := &blocks{db: db}
	return b, b.reload(ctx)
}

func (b *blocks) reload(ctx context.Context) error {
	rows, err := b.db.Reader().QueryContext(ctx, `SELECT subject, reason, created_at FROM blocked`)
	if err != nil {
		return fmt.Errorf("read blocks: %w", err)
	}
	defer func() { _ = rows.Close() }()
	all := map[string]Block{}
	for rows.Next() {
		var one Block
		var at int64
		if err := rows.Scan(&one.Subject, &one.Reason, &at); err != nil {
			return fmt.Errorf("read blocks: %w", err)
		}
		one.At = time.UnixMilli(at)
		all[one.Subject] = one
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("read blocks: %w", err)
	}
	b.all.Store(&all)
	return nil
}

// none tells whether nothing is blocked: then nobody has to be looked up.
func (b *blocks) none() bool { return len(*b.all.Load()) == 0 }

func (b *blocks) find(subject string) (Block, bool) {
	one, ok := (*b.all.Load())[subject]
	return one, ok
}

func (b *blocks) list() []Block {
	var out []Block
	for _, one := range *b.all.Load() {
		out = append(out, one)
	}
	slices.SortFunc(out, func(x, y Block) int { return strings.Compare(x.Subject, y.Subject) })
	return out
}

func (b *blocks) add(ctx context.Context, one Block) error {
	err := b.db.Write(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `INSERT INTO blocked (subject, reason, created_at) VALUES (?,?,?)
			ON CONFLICT (subject) DO UPDATE SET reason = excluded.reason`, one.Subject, one.Reason, one.At.UnixMilli())
		return err
	})
	if err != nil {
		return fmt.Errorf("block: %w", err)
	}
	return b.reload(ctx)
}

func (b *blocks) remove(ctx context.Context, subject string) error {
	err := b.db.Write(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `DELETE FROM blocked WHERE subject = ?`, subject)
		return err
	})
	if err != nil {
		return fmt.Errorf("unblock: %w", err)
	}
	return b.reload(ctx)
}

// person refuses somebody who is blocked, whatever they want; nil for everybody else.
func (b *blocks) person(did string) error {
	if one, ok := b.find(did); ok && did != "" {
		return oci.Errorf(oci.CodeDenied, "%s is blocked at this registry: %s", did, one.Reason)
	}
	return nil
}

// repository refuses what belongs to a blocked person or repository. 451 and not 403, after which clients try
// again with other credentials.
func (b *blocks) repository(of syntax.DID, repository string) error {
	if one, ok := b.find(of.String()); ok {
		return unavailableHere("the images of %s are blocked at this registry: %s", of, one.Reason)
	}
	if one, ok := b.find(of.String() + "/" + repository); ok {
		return unavailableHere("%s/%s is blocked at this registry: %s", of, repository, one.Reason)
	}
	return nil
}

// digest refuses a manifest or a blob, in whatever repository.
func (b *blocks) digest(d oci.Digest) error {
	if one, ok := b.find(d.String()); ok && d != "" {
		return unavailableHere("%s is blocked at this registry: %s", d, one.Reason)
	}
	return nil
}

func unavailableHere(format string, args ...any) error {
	e := oci.Errorf(oci.CodeDenied, format, args...)
	e.Status = http.StatusUnavailableForLegalReasons
	return e
}

// blockSubject is what a command blocks: a DID or handle, <DID or handle>/<repository>, or a digest. Handles
// become DIDs, which stay.
func blockSubject(ctx context.Context, o owners, text string) (string, error) {
	if d, err := oci.ParseDigest(text); err == nil {
		return d.String(), nil
	}
	who, repository, inRepository := strings.Cut(text, "/")
	if inRepository {
		if _, err := oci.ParseName("a/" + repository); err != nil {
			return "", fmt.Errorf("%q is no repository of anybody", text)
		}
	}
	did, err := syntax.ParseDID(who)
	if err != nil { // a DID is blocked even where it cannot be looked up any more
		found, err := o.find(ctx, who)
		if err != nil {
			return "", fmt.Errorf("%q is neither a DID, a handle, a repository of one, nor a digest: %s", text, oci.AsError(err).Message)
		}
		did = found.DID
	}
	if inRepository {
		return did.String() + "/" + repository, nil
	}
	return did.String(), nil
}
