package hold

import (
	"context"
	"database/sql"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/internal/oci"
	"atcr.io/internal/sqldb"
	"atcr.io/internal/xrpc"
)

var blockMigrations = []string{`
CREATE TABLE blocked (subject TEXT PRIMARY KEY, reason TEXT NOT NULL, created_at INTEGER NOT NULL) STRICT, WITHOUT ROWID;
`}

// maxReason bounds the words that callers are told.
const maxReason = 500

// block is a person or a blob that the hold's operator does not serve, and why. Records stay as they are.
type block struct {
	Subject string    `json:"subject"` // a DID or a digest
	Reason  string    `json:"reason"`
	At      time.Time `json:"at"`
}

// blocks are few, and looked at with each request: they are in memory.
type blocks struct {
	db       *sqldb.DB
	changing sync.Mutex // so that rows and memory change in one order

	mu  sync.RWMutex
	all map[string]block
}

func openBlocks(ctx context.Context, db *sqldb.DB) (*blocks, error) {
	if err := db.Migrate(ctx, "blocked", blockMigrations); err != nil {
		return nil, err
	}
	b := &blocks{db: db, all: map[string]block{}}
	rows, err := db.Reader().QueryContext(ctx, `SELECT subject, reason, created_at FROM blocked`)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var one block
		var at int64
		if err := rows.Scan(&one.Subject, &one.Reason, &at); err != nil {
			return nil, err
		}
		one.At = time.UnixMilli(at)
		b.all[one.Subject] = one
	}
	return b, rows.Err()
}

func (b *blocks) find(subject string) (block, bool) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	found, ok := b.all[subject]
	return found, ok
}

func (b *blocks) list() []block {
	b.mu.RLock()
	defer b.mu.RUnlock()
	out := make([]block, 0, len(b.all))
	for _, one := range b.all {
		out = append(out, one)
	}
	slices.SortFunc(out, func(x, y block) int { return strings.Compare(x.Subject, y.Subject) })
	return out
}

func (b *blocks) add(ctx context.Context, one block) error {
	b.changing.Lock()
	defer b.changing.Unlock()
	err := b.db.Write(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `INSERT INTO blocked (subject, reason, created_at) VALUES (?,?,?) ON CONFLICT DO UPDATE SET reason = excluded.reason, created_at = excluded.created_at`,
			one.Subject, one.Reason, one.At.UnixMilli())
		return err
	})
	if err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.all[one.Subject] = one
	return nil
}

func (b *blocks) remove(ctx context.Context, subject string) error {
	b.changing.Lock()
	defer b.changing.Unlock()
	err := b.db.Write(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `DELETE FROM blocked WHERE subject = ?`, subject)
		return err
	})
	if err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.all, subject)
	return nil
}

// blockedPerson is the refusal of somebody whom the operator blocked, nil of everybody else.
func (h *Hold) blockedPerson(did syntax.DID) error {
	if found, ok := h.blocks.find(did.String()); ok {
		return xrpc.Errorf(http.StatusForbidden, "AccountBlocked", "%s", found.why())
	}
	return nil
}

func (b block) why() string {
	return fmt.Sprintf("%s is blocked at this hold: %s", b.Subject, b.Reason)
}

// blockedBlob is the same for a blob, and for the images of its owner.
func (h *Hold) blockedBlob(d oci.Digest, owner string) error {
	if found, ok := h.blocks.find(d.String()); ok {
		return xrpc.Errorf(http.StatusUnavailableForLegalReasons, "BlobBlocked", "%s", found.why())
	}
	if found, ok := h.blocks.find(owner); ok && owner != "" {
		return xrpc.Errorf(http.StatusUnavailableForLegalReasons, "AccountBlocked", "the images of %s are blocked at this hold: %s", owner, found.Reason)
	}
	return nil
}

// subjectOf is what a command blocks.
func subjectOf(r *http.Request) (string, error) {
	text, err := required(r, "subject")
	if err != nil {
		return "", err
	}
	if did, err := syntax.ParseDID(text); err == nil {
		return did.String(), nil
	}
	if d, err := oci.ParseDigest(text); err == nil {
		return d.String(), nil
	}
	return "", fmt.Errorf("%q is neither a DID nor a digest", text)
}

func adminBlock(ctx context.Context, h *Hold, r *http.Request, tell say) error {
	subject, err := subjectOf(r)
	if err != nil {
		return err
	}
	reason, err := required(r, "reason")
	if err != nil || len(reason) > maxReason || strings.ContainsFunc(reason, func(c rune) bool { return c < ' ' }) {
		return fmt.Errorf("a reason is needed, of at most %d bytes on one line: callers are told", maxReason)
	}
	if captain, _, err := h.captain(ctx); err != nil || captain.Owner == subject {
		return fmt.Errorf("%s owns this hold", subject)
	}
	one := block{Subject: subject, Reason: reason, At: h.now()}
	if err := h.blocks.add(ctx, one); err != nil {
		return err
	}
	tell(Line{Text: subject + " is blocked: " + reason, Data: one})
	return nil
}

func adminUnblock(ctx context.Context, h *Hold, r *http.Request, tell say) error {
	subject, err := subjectOf(r)
	if err != nil {
		return err
	}
	if _, ok := h.blocks.find(subject); !ok {
		return fmt.Errorf("%s is not blocked", subject)
	}
	if err := h.blocks.remove(ctx, subject); err != nil {
		return err
	}
	tell(Line{Text: subject + " is served again", Data: map[string]any{"subject": subject}})
	return nil
}

func adminBlocks(_ context.Context, h *Hold, _ *http.Request, tell say) error {
	for _, one := range h.blocks.list() {
		tell(Line{Text: one.Subject + "  " + one.At.UTC().Format("2006-01-02") + "  " + one.Reason, Data: one})
	}
	return nil
}
