package pds

import (
	"bytes"
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/bluesky-social/indigo/atproto/atcrypto"
	"github.com/bluesky-social/indigo/atproto/repo"
	"github.com/bluesky-social/indigo/atproto/syntax"
	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"

	"atcr.io/internal/pds/tree"
)

// Repo is one account's records. Safe for concurrent use.
type Repo struct {
	host   *Host
	did    syntax.DID
	handle string

	mu      sync.Mutex // of key, waiting and hooks
	key     atcrypto.PrivateKey
	waiting []*request
	hooks   []func([]Op)
	turn    chan struct{} // one token: who has it gathers and commits
	owned   chan struct{} // one token: who has it owns the tree; taken after turn
	// The rest belongs to who commits.
	tree     *tree.Tree
	records  int64 // in the tree
	lastRkey string
	head     Head
}

// Head is the newest commit.
type Head struct {
	CID   cid.Cid
	Data  cid.Cid // root of the tree
	Rev   string
	block []byte
}

// Op is a change that a commit made.
type Op struct {
	Collection syntax.NSID
	Rkey       syntax.RecordKey
	CID        cid.Cid // cid.Undef: deleted
	Prev       cid.Cid // cid.Undef: created
	Value      []byte  // DRISL-CBOR; nil: deleted
}

func (o Op) path() string { return o.Collection.String() + "/" + o.Rkey.String() }

// DID is whose repo it is.
func (r *Repo) DID() syntax.DID { return r.did }

// Handle is the account's handle, "" where it has none.
func (r *Repo) Handle() string { return r.handle }

// OnCommit has fn called after each commit, in their order, by the one who commits: it must be quick.
func (r *Repo) OnCommit(fn func([]Op)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.hooks = append(r.hooks, fn)
}

// Head is the newest commit. Errors: the database's.
func (r *Repo) Head(ctx context.Context) (Head, error) {
	return readHead(ctx, r.host.db.Reader(), r.did)
}

type queryer interface {
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}

func readHead(ctx context.Context, q queryer, did syntax.DID) (Head, error) {
	var h Head
	var head, data []byte
	err := q.QueryRowContext(ctx, `SELECT head, head_block, data, rev FROM repo WHERE did = ?`, did.String()).Scan(&head, &h.block, &data, &h.Rev)
	if err != nil {
		return h, err
	}
	if h.CID, err = cid.Cast(head); err != nil {
		return h, fmt.Errorf("%w: head: %w", ErrCorrupt, err)
	}
	if h.Data, err = cid.Cast(data); err != nil {
		return h, fmt.Errorf("%w: data: %w", ErrCorrupt, err)
	}
	return h, nil
}

// load builds the tree from the record rows and compares it with the head, which must be signed with
// the repo's key. Errors: sql.ErrNoRows where there is no repo; ErrCorrupt.
func (r *Repo) load(ctx context.Context) error {
	tx, err := r.host.db.Reader().BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }()
	head, err := readHead(ctx, tx, r.did)
	if err != nil {
		return err
	}
	var commit repo.Commit
	if err := commit.UnmarshalCBOR(bytes.NewReader(head.block)); err != nil {
		return fmt.Errorf("%w: head: %w", ErrCorrupt, err)
	}
	public, err := r.signer().PublicKey()
	if err != nil {
		return err
	}
	if err := commit.VerifySignature(public); err != nil {
		return fmt.Errorf("%w: the newest commit was signed with another key", ErrOtherKey)
	}
	records := int64(0)
	t, err := loadTree(ctx, tx, r.did, func() { records++; r.host.grow(1) })
	if err != nil {
		r.host.grow(-records)
		return err
	}
	root, err := t.Root()
	if err != nil {
		return err
	}
	if root != head.Data || commit.Data != root || commit.Rev != head.Rev {
		return fmt.Errorf("%w: the records make the tree %s, the newest commit names %s", ErrCorrupt, root, head.Data)
	}
	r.host.grow(-r.records) // those of the tree before
	r.tree, r.head, r.records = t, head, records
	return nil
}

// loadTree builds the tree of the record rows, and calls each with every one of them.
func loadTree(ctx context.Context, q queryer, did syntax.DID, each func()) (*tree.Tree, error) {
	b := tree.NewBuilder(true, nil)
	err := eachRow(ctx, q, did, false, func(path string, c cid.Cid, _, _ []byte) error {
		each()
		return b.Add(path, c)
	})
	if err != nil {
		return nil, err
	}
	_, t, err := b.Finish()
	return t, err
}

// eachRow calls fn with every record in the order of paths, which is not that of collections: "a.b/x" comes after
// "a.b-c/x" and "a.b.c/x". value is nil where it is not wanted, and valid during the call alone.
func eachRow(ctx context.Context, q queryer, did syntax.DID, values bool, fn func(path string, c cid.Cid, value, rev []byte) error) error {
	collections, err := collectionsOf(ctx, q, did)
	if err != nil {
		return err
	}
	slices.SortFunc(collections, func(a, b string) int { return strings.Compare(a+"/", b+"/") })
	columns := "NULL, NULL"
	if values {
		columns = "value, rev"
	}
	for _, collection := range collections {
		if err := eachOf(ctx, q, did, collection, columns, fn); err != nil {
			return err
		}
	}
	return nil
}

func eachOf(ctx context.Context, q queryer, did syntax.DID, collection, columns string, fn func(string, cid.Cid, []byte, []byte) error) error {
	rows, err := q.QueryContext(ctx, `SELECT rkey, cid, `+columns+` FROM record WHERE did = ? AND collection = ? ORDER BY rkey`, did.String(), collection)
	if err != nil {
		return err
	}
	defer func() { _ = rows.Close() }()
	var rkey string
	var raw, value, rev sql.RawBytes
	for rows.Next() {
		if err := rows.Scan(&rkey, &raw, &value, &rev); err != nil {
			return err
		}
		_, c, err := cid.CidFromBytes(raw)
		if err != nil {
			return fmt.Errorf("%w: record %s/%s: %w", ErrCorrupt, collection, rkey, err)
		}
		if err := fn(collection+"/"+rkey, c, value, rev); err != nil {
			return err
		}
	}
	return rows.Err()
}

// collectionsOf are the collections that have records, one look-up each.
func collectionsOf(ctx context.Context, q queryer, did syntax.DID) ([]string, error) {
	out := []string{}
	for last := ""; ; {
		err := q.QueryRowContext(ctx, `SELECT collection FROM record WHERE did = ? AND collection > ? ORDER BY collection LIMIT 1`, did.String(), last).Scan(&last)
		if errors.Is(err, sql.ErrNoRows) {
			return out, nil
		}
		if err != nil {
			return nil, err
		}
		out = append(out, last)
	}
}

// create makes the first, empty commit, and announces the account.
func (r *Repo) create(ctx context.Context) error {
	t := tree.New()
	root, _, err := t.Diff(ctx)
	if err != nil {
		return err
	}
	head, err := r.sign(root, r.nextRev(""))
	if err != nil {
		return err
	}
	err = r.host.publish(ctx, func(tx *sql.Tx, add func(eventBody) error) error {
		_, err := tx.ExecContext(ctx, `INSERT INTO repo (did, handle, head, head_block, data, rev) VALUES (?, ?, ?, ?, ?, ?)`,
			r.did.String(), r.handle, head.CID.Bytes(), head.block, head.Data.Bytes(), head.Rev)
		if err != nil {
			return err
		}
		return errors.Join(add(identityEvent(r.did, r.handle)), add(accountEvent(r.did)), add(syncEvent(r.did, head)))
	})
	if err != nil {
		return err
	}
	r.tree, r.head = t, head
	return nil
}

// sign makes the commit over root.
func (r *Repo) sign(root cid.Cid, rev string) (Head, error) {
	commit := repo.Commit{DID: r.did.String(), Version: repo.ATPROTO_REPO_VERSION, Data: root, Rev: rev}
	if err := commit.Sign(r.signer()); err != nil {
		return Head{}, fmt.Errorf("sign commit: %w", err)
	}
	var b bytes.Buffer
	if err := commit.MarshalCBOR(&b); err != nil {
		return Head{}, err
	}
	return Head{CID: cborCID(b.Bytes()), Data: root, Rev: rev, block: b.Bytes()}, nil
}

// signer is the key that commits are signed with.
func (r *Repo) signer() atcrypto.PrivateKey {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.key
}

// nextRev is a TID after the last one, whatever the clock does.
func (r *Repo) nextRev(last string) string {
	next := syntax.NewTIDFromTime(r.host.now(), 0)
	if last != "" && next.String() <= last {
		previous := syntax.TID(last)
		next = syntax.NewTIDFromTime(previous.Time().Add(time.Microsecond), previous.ClockID())
	}
	return next.String()
}

// cborCID is the CID of a DRISL-CBOR block.
func cborCID(b []byte) cid.Cid { return sumCID(cid.DagCBOR, b) }

func sumCID(codec uint64, b []byte) cid.Cid {
	sum := sha256.Sum256(b)
	hash, err := multihash.Encode(sum[:], multihash.SHA2_256)
	if err != nil {
		panic("pds: " + err.Error()) // a sha256 can always be encoded
	}
	return cid.NewCidV1(codec, hash)
}

// Resign signs the repo as it stands anew, with key (nil: the one that it has) and a rev after all before it,
// and tells everybody who follows: after a restore, or when key, address or handle changed. Who knows the key
// must know the new one before.
//
// The new rev is what makes others look: they drop a state whose rev they have seen, or are ahead of.
func (r *Repo) Resign(ctx context.Context, key atcrypto.PrivateKey) error {
	select {
	case r.owned <- struct{}{}: // no commit in between
		defer func() { <-r.owned }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if err := r.ensureTree(ctx); err != nil {
		return err
	}
	old := r.signer()
	if key != nil {
		r.setSigner(key)
	}
	head, err := r.sign(r.head.Data, r.nextRev(max(r.head.Rev, r.lastRkey)))
	if err == nil {
		err = r.host.publish(ctx, func(tx *sql.Tx, add func(eventBody) error) error {
			if err := r.moveHead(ctx, tx, head); err != nil {
				return err
			}
			return errors.Join(add(identityEvent(r.did, r.handle)), add(accountEvent(r.did)), add(syncEvent(r.did, head)))
		})
	}
	if err != nil {
		r.setSigner(old)
		return err
	}
	r.head = head
	return nil
}

func (r *Repo) setSigner(key atcrypto.PrivateKey) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.key = key
}

// Verify reads every record, compares it with its CID and what records may be, and the tree that they make with the head, whose
// signature is checked too. It returns how many records there are. Errors: ErrCorrupt, which names the record.
func (r *Repo) Verify(ctx context.Context) (records int, err error) {
	fresh := &Repo{host: r.host, did: r.did, key: r.signer()}
	if err := fresh.load(ctx); err != nil {
		return 0, err
	}
	defer func() { r.host.grow(-fresh.records) }()
	rows, err := r.host.db.Reader().QueryContext(ctx, `SELECT collection, rkey, cid, value FROM record WHERE did = ?`, r.did.String())
	if err != nil {
		return 0, err
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var collection, rkey string
		var raw, value []byte
		if err := rows.Scan(&collection, &rkey, &raw, &value); err != nil {
			return records, err
		}
		c, err := cid.Cast(raw)
		if err == nil {
			err = checkRecord(collection+"/"+rkey, c, value)
		}
		if err != nil {
			return records, fmt.Errorf("%w: record %w", ErrCorrupt, err)
		}
		records++
	}
	return records, rows.Err()
}
