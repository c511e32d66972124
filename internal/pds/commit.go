package pds

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"runtime/debug"

	comatproto "github.com/bluesky-social/indigo/api/atproto"
	"github.com/bluesky-social/indigo/atproto/repo"
	"github.com/bluesky-social/indigo/atproto/syntax"
	lexutil "github.com/bluesky-social/indigo/lex/util"
	"github.com/ipfs/go-cid"

	"atcr.io/internal/pds/tree"
)

// Result is what Apply did. Where nothing changed, Commit and Rev are those that stand.
type Result struct {
	Commit cid.Cid
	Rev    string
	Writes []WriteResult // one a write, in order
}

// WriteResult is where a write's record is.
type WriteResult struct {
	URI    syntax.ATURI
	Action Action  // Create, Update or Delete: what a Put came to
	CID    cid.Cid // cid.Undef: deleted
	Status string  // of its validation: "valid", "unknown", or "" where it was not asked for
}

// errTooLarge says that a relay would refuse a commit for its size.
var errTooLarge = fmt.Errorf("%w: too much for one commit", ErrInvalidRecord)

// request is an Apply that waits for its commit.
type request struct {
	ctx    context.Context
	writes []encoded
	bytes  int
	swap   *cid.Cid
	result Result
	err    error
	done   chan struct{}
}

// Apply makes all of writes, or none, in one commit; callers that come together share it. On a nil error
// the commit is durable. swapCommit, where not nil, is the head that must stand.
//
// Errors: ErrInvalidRecord, ErrRecordExists, ErrRecordNotFound, ErrInvalidSwap, ErrBlobNotFound; the
// database's, after which nothing was changed.
func (r *Repo) Apply(ctx context.Context, writes []Write, swapCommit *cid.Cid) (Result, error) {
	if len(writes) > MaxCommitOps {
		return Result{}, fmt.Errorf("%w: %d writes, at most %d are allowed at once", ErrInvalidRecord, len(writes), MaxCommitOps)
	}
	q := &request{ctx: ctx, writes: make([]encoded, len(writes)), swap: swapCommit, done: make(chan struct{})}
	for i, w := range writes {
		e, err := r.host.encode(w)
		if err != nil {
			return Result{}, err
		}
		q.writes[i], q.bytes = e, q.bytes+len(e.value)
	}
	if q.bytes > MaxCommitBytes {
		return Result{}, fmt.Errorf("%w: the batch has %d bytes, at most %d are allowed at once", ErrInvalidRecord, q.bytes, MaxCommitBytes)
	}
	r.mu.Lock()
	r.waiting = append(r.waiting, q)
	r.mu.Unlock()
	// Whose turn it is commits for all who wait; the others find their result, or that it is their turn, next. The tree
	// is taken after the gathering: who only reads of it does not wait for that.
	for {
		select {
		case <-q.done:
			return q.result, q.err
		case r.turn <- struct{}{}:
			select {
			case <-q.done:
			default:
				r.gather(ctx)
				r.owned <- struct{}{}
				r.commitWaiting()
				<-r.owned
			}
			<-r.turn
		}
	}
}

// take is the next group: no path twice, within the limits of a commit, a swap of the commit alone.
func (r *Repo) take() []*request {
	r.mu.Lock()
	defer r.mu.Unlock()
	ops, size, n := 0, 0, 0
	paths := map[string]bool{}
group:
	for ; n < len(r.waiting); n++ {
		q := r.waiting[n]
		ops, size = ops+len(q.writes), size+q.bytes
		if n > 0 && (ops > MaxCommitOps || size > MaxCommitBytes || q.swap != nil || r.waiting[0].swap != nil) {
			break
		}
		for i := range q.writes {
			if w := &q.writes[i]; n > 0 && w.Rkey != "" && paths[w.path()] { // one that is yet to be given a key is new
				break group
			}
		}
		for i := range q.writes {
			paths[q.writes[i].path()] = true
		}
	}
	group := r.waiting[:n:n]
	r.waiting = append([]*request(nil), r.waiting[n:]...)
	return group
}

// commitWaiting makes one commit of the next group. Only whose turn it is, and who has the tree, calls it.
func (r *Repo) commitWaiting() {
	group := r.take()
	r.commitGroup(group)
	for _, q := range group {
		close(q.done)
	}
}

// commitGroup makes one commit of group, or several where the one would be too large, and tells the hooks.
func (r *Repo) commitGroup(group []*request) {
	ops, err := r.tryCommit(group)
	if n := len(group) / 2; n > 0 && errors.Is(err, errTooLarge) {
		r.commitGroup(group[:n])
		r.commitGroup(group[n:])
		return
	}
	if err != nil {
		fail(group, err)
		return
	}
	if len(ops) == 0 {
		return
	}
	r.mu.Lock()
	hooks := r.hooks
	r.mu.Unlock()
	for _, hook := range hooks {
		r.tell(hook, ops)
	}
}

// tell calls a hook. The commit is durable, so a panic is neither the callers' failure nor the other hooks'.
func (r *Repo) tell(hook func([]Op), ops []Op) {
	defer func() {
		if p := recover(); p != nil {
			r.host.log.Error("a hook behind a commit panicked", "did", r.did, "panic", p, "stack", string(debug.Stack()))
		}
	}()
	hook(ops)
}

// tryCommit makes one commit of what can be made of group; who cannot be part of it is told so in the request.
// An error is that of all others, of whom nothing was made.
func (r *Repo) tryCommit(group []*request) (_ []Op, err error) {
	defer func() {
		if p := recover(); p != nil { // must not pass for success, nor keep others from committing
			r.tree = nil
			err = fmt.Errorf("commit: panic: %v\n%s", p, debug.Stack())
		}
	}()
	// A request that was given up meanwhile must not take the others with it, so the commit has its own context.
	ctx := context.WithoutCancel(group[0].ctx)
	if err := r.ensureTree(ctx); err != nil {
		return nil, err
	}
	var ops []Op
	var blobs []encoded
	pending := map[string]cid.Cid{}
	planned := group[:0:0]
	for _, q := range group {
		if q.err != nil {
			continue // it was refused before the group was divided
		}
		mine, err := r.planRequest(q, pending)
		if err != nil {
			q.err = err
			continue
		}
		for _, op := range mine {
			pending[op.path()] = op.CID
		}
		ops, planned = append(ops, mine...), append(planned, q)
		blobs = append(blobs, q.writes...)
	}
	head := r.head
	if len(ops) > 0 {
		if head, err = r.commit(ctx, ops, blobs); err != nil {
			r.tree = nil // it may be ahead of the database, or damaged
			return nil, err
		}
	}
	for _, q := range planned {
		q.result.Commit, q.result.Rev = head.CID, head.Rev
	}
	return ops, nil
}

func fail(group []*request, err error) {
	for _, q := range group {
		if q.err == nil {
			q.err = err
		}
	}
}

// ensureTree loads the tree again after an error dropped it.
func (r *Repo) ensureTree(ctx context.Context) error {
	if r.tree != nil {
		return nil
	}
	return r.load(ctx)
}

func (r *Repo) planRequest(q *request, pending map[string]cid.Cid) ([]Op, error) {
	if err := q.ctx.Err(); err != nil {
		return nil, err
	}
	if q.swap != nil && *q.swap != r.head.CID {
		return nil, fmt.Errorf("%w: the head is %s", ErrInvalidSwap, r.head.CID)
	}
	for i := range q.writes {
		w := &q.writes[i]
		if w.Rkey == "" {
			w.Rkey = syntax.RecordKey(r.nextRkey())
		}
		// Asked again by the transaction, where it would be the error of all who share the commit.
		if err := r.checkBlobs(q.ctx, r.host.db.Reader(), w); err != nil {
			return nil, err
		}
	}
	ops, err := plan(r.tree, pending, q.writes)
	if err != nil {
		return nil, err
	}
	q.result.Writes = make([]WriteResult, len(q.writes))
	for i := range q.writes {
		w := &q.writes[i]
		out := WriteResult{URI: syntax.ATURI("at://" + r.did.String() + "/" + w.path()), Action: w.Action, CID: w.cid, Status: w.status}
		if w.Action == Put {
			out.Action = Create
			if prev, err := r.tree.Get(w.path()); err == nil && prev.Defined() {
				out.Action = Update
			}
		}
		q.result.Writes[i] = out
	}
	return ops, nil
}

// nextRkey is a TID that no record of this repo was given before.
func (r *Repo) nextRkey() string {
	r.lastRkey = r.nextRev(max(r.lastRkey, r.head.Rev))
	return r.lastRkey
}

// commit makes ops the newest commit: tree, signature, check, and one transaction for records, head and frame.
func (r *Repo) commit(ctx context.Context, ops []Op, writes []encoded) (Head, error) {
	for _, op := range ops {
		if err := r.tree.Set(op.path(), op.CID); err != nil {
			return Head{}, fmt.Errorf("tree: %w", err)
		}
	}
	root, nodes, err := r.tree.Diff(ctx)
	if err != nil {
		return Head{}, fmt.Errorf("tree: %w", err)
	}
	// After every key that was given, so that the next start knows by the head which keys were.
	head, err := r.sign(root, r.nextRev(max(r.head.Rev, r.lastRkey)))
	if err != nil {
		return Head{}, err
	}
	message, err := r.commitMessage(head, ops, nodes)
	if err != nil {
		return Head{}, err
	}
	if len(message.Blocks) > MaxCommitBytes {
		return Head{}, fmt.Errorf("%w: %d bytes, at most %d are allowed", errTooLarge, len(message.Blocks), MaxCommitBytes)
	}
	if err := verify(ctx, message); err != nil {
		return Head{}, fmt.Errorf("a commit that a relay would refuse was not made: %w", err)
	}
	err = r.host.publish(ctx, func(tx *sql.Tx, add func(eventBody) error) error {
		if err := r.store(ctx, tx, ops, writes, head); err != nil {
			return err
		}
		if follow := r.host.config.Follow; follow != nil {
			if err := follow(ctx, tx, r.did, ops); err != nil {
				return fmt.Errorf("follow commit: %w", err)
			}
		}
		return add(commitEvent(message))
	})
	if err != nil {
		return Head{}, err
	}
	r.head = head
	var more int64
	for _, op := range ops {
		switch {
		case !op.Prev.Defined():
			more++
		case !op.CID.Defined():
			more--
		}
	}
	r.records += more
	r.host.grow(more)
	return head, nil
}

func (r *Repo) commitMessage(head Head, ops []Op, nodes []tree.Block) (*comatproto.SyncSubscribeRepos_Commit, error) {
	var car bytes.Buffer
	blocks := append([]tree.Block{{CID: head.CID, Data: head.block}}, nodes...)
	prevData, since := lexutil.LexLink(r.head.Data), r.head.Rev
	m := &comatproto.SyncSubscribeRepos_Commit{
		Blobs: []lexutil.LexLink{}, Commit: lexutil.LexLink(head.CID), PrevData: &prevData, Repo: r.did.String(), Rev: head.Rev, Since: &since,
		Ops: make([]*comatproto.SyncSubscribeRepos_RepoOp, 0, len(ops)),
	}
	for _, op := range ops {
		out := &comatproto.SyncSubscribeRepos_RepoOp{Path: op.path(), Action: "create"}
		if op.CID.Defined() {
			out.Cid = (*lexutil.LexLink)(&op.CID)
			blocks = append(blocks, tree.Block{CID: op.CID, Data: op.Value})
		}
		if op.Prev.Defined() {
			out.Prev, out.Action = (*lexutil.LexLink)(&op.Prev), "update"
		}
		if !op.CID.Defined() {
			out.Action = "delete"
		}
		m.Ops = append(m.Ops, out)
	}
	err := writeCARHeader(&car, head.CID)
	seen := cid.NewSet()
	for _, b := range blocks {
		if seen.Visit(b.CID) {
			_, writeErr := writeCARBlock(&car, b)
			err = errors.Join(err, writeErr)
		}
	}
	m.Blocks = car.Bytes()
	return m, err
}

// verify does what a strict relay does: parse the CAR, invert the ops, and reach prevData.
func verify(ctx context.Context, m *comatproto.SyncSubscribeRepos_Commit) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("verify: %v", p)
		}
	}()
	for _, op := range m.Ops {
		if (op.Action == "update" || op.Action == "delete") && op.Prev == nil {
			return fmt.Errorf("%s of %s has no prev", op.Action, op.Path) // indigo would let it pass
		}
	}
	check := *m
	check.Time = syntax.DatetimeNow().String()
	_, err = repo.VerifyCommitMessage(ctx, &check)
	return err
}

// store writes the rows of a commit.
func (r *Repo) store(ctx context.Context, tx *sql.Tx, ops []Op, writes []encoded, head Head) error {
	put, err := tx.PrepareContext(ctx, `INSERT INTO record (did, collection, rkey, cid, value, rev) VALUES (?, ?, ?, ?, ?, ?)
		ON CONFLICT (did, collection, rkey) DO UPDATE SET cid = excluded.cid, value = excluded.value, rev = excluded.rev`)
	if err != nil {
		return err
	}
	defer func() { _ = put.Close() }()
	did := r.did.String()
	for _, op := range ops {
		if op.Prev.Defined() {
			if _, err := tx.ExecContext(ctx, `DELETE FROM atblob_ref WHERE did = ? AND collection = ? AND rkey = ?`, did, op.Collection.String(), op.Rkey.String()); err != nil {
				return err
			}
		}
		if op.CID.Defined() {
			_, err = put.ExecContext(ctx, did, op.Collection.String(), op.Rkey.String(), op.CID.Bytes(), op.Value, head.Rev)
		} else {
			_, err = tx.ExecContext(ctx, `DELETE FROM record WHERE did = ? AND collection = ? AND rkey = ?`, did, op.Collection.String(), op.Rkey.String())
		}
		if err != nil {
			return err
		}
	}
	for i := range writes {
		if err := r.refer(ctx, tx, &writes[i]); err != nil {
			return err
		}
	}
	return r.moveHead(ctx, tx, head)
}

// moveHead makes head the newest commit, where the one that is known here still is.
func (r *Repo) moveHead(ctx context.Context, tx *sql.Tx, head Head) error {
	res, err := tx.ExecContext(ctx, `UPDATE repo SET head = ?, head_block = ?, data = ?, rev = ? WHERE did = ? AND head = ?`,
		head.CID.Bytes(), head.block, head.Data.Bytes(), head.Rev, r.did.String(), r.head.CID.Bytes())
	if err != nil {
		return err
	}
	if n, err := res.RowsAffected(); err != nil || n != 1 {
		return fmt.Errorf("the head in the database is another: %w", errors.Join(ErrCorrupt, err))
	}
	return nil
}

// checkBlobs tells whether all blobs that a record names are here, and what the record says they are.
func (r *Repo) checkBlobs(ctx context.Context, q queryer, w *encoded) error {
	for _, b := range w.blobs {
		var mime string
		var size int64
		err := q.QueryRowContext(ctx, `SELECT mime, size FROM atblob WHERE did = ? AND cid = ?`, r.did.String(), b.Ref.String()).Scan(&mime, &size)
		if errors.Is(err, sql.ErrNoRows) {
			return fmt.Errorf("%w: %s names %s; upload it first", ErrBlobNotFound, w.path(), b.Ref)
		}
		if err != nil {
			return err
		}
		if b.Size != size || b.MimeType != mime {
			return fmt.Errorf("%w: %s says of %s that it is %q of %d bytes; uploaded were %q, %d bytes", ErrInvalidRecord, w.path(), b.Ref, b.MimeType, b.Size, mime, size)
		}
	}
	return nil
}

// refer notes which blobs a record names; all must be here.
func (r *Repo) refer(ctx context.Context, tx *sql.Tx, w *encoded) error {
	if err := r.checkBlobs(ctx, tx, w); err != nil {
		return err
	}
	for _, b := range w.blobs {
		_, err := tx.ExecContext(ctx, `INSERT OR IGNORE INTO atblob_ref (did, cid, collection, rkey) VALUES (?, ?, ?, ?)`,
			r.did.String(), b.Ref.String(), w.Collection.String(), w.Rkey.String())
		if err != nil {
			return err
		}
	}
	return nil
}
