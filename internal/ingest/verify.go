package ingest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"time"
	"unicode/utf8"

	comatproto "github.com/bluesky-social/indigo/api/atproto"
	"github.com/bluesky-social/indigo/atproto/atdata"
	"github.com/bluesky-social/indigo/atproto/repo"
	"github.com/bluesky-social/indigo/atproto/repo/mst"
	"github.com/bluesky-social/indigo/atproto/syntax"
	"github.com/ipfs/go-cid"

	"atcr.io/internal/identity"
)

var (
	errSignature = errors.New("it is not signed by whose repo it is")
	errIdentity  = errors.New("whose it is cannot be found out")
	errFuture    = errors.New("its rev is ahead of time")
)

// caught turns a panic of a reader of foreign bytes into an error.
func (i *Ingester) caught(err *error) {
	if p := recover(); p != nil {
		i.log.Error("reading foreign bytes panicked", "panic", p, "stack", string(debug.Stack()))
		*err = invalid("it cannot be read")
	}
}

// signed checks that a commit is did's: by the key that is known, and where that fails by the one that the
// directory has now.
func (i *Ingester) signed(ctx context.Context, did syntax.DID, commit *repo.Commit) error {
	if commit.DID != did.String() {
		return fmt.Errorf("%w: it is of %s", errSignature, commit.DID)
	}
	rev, err := syntax.ParseTID(commit.Rev)
	if err != nil {
		return invalid("rev: %v", err)
	}
	if rev.Time().After(i.now().Add(futureRev)) {
		return errFuture
	}
	who, err := i.config.Directory.LookupDID(ctx, did)
	if err != nil {
		return fmt.Errorf("%w: %w", errIdentity, err)
	}
	if signedBy(who, commit) == nil {
		return nil
	}
	if who, err = i.config.Directory.Refresh(ctx, did); err != nil {
		if errors.Is(err, identity.ErrUnavailable) {
			return fmt.Errorf("%w: by no key that is known; %w", errSignature, err)
		}
		return fmt.Errorf("%w: %w", errIdentity, err)
	}
	if err := signedBy(who, commit); err != nil {
		return fmt.Errorf("%w: %w", errSignature, err)
	}
	return nil
}

func signedBy(who *identity.Identity, commit *repo.Commit) error {
	key, err := who.SigningKey()
	if err != nil {
		return err
	}
	return commit.VerifySignature(key)
}

// verifyCommit checks all that a commit's event says, and returns the changes that are kept.
func (i *Ingester) verifyCommit(ctx context.Context, m *comatproto.SyncSubscribeRepos_Commit) (out Commit, err error) {
	defer i.caught(&err)
	did, err := syntax.ParseDID(m.Repo)
	if err != nil {
		return out, invalid("repo: %v", err)
	}
	c, err := readCAR(m.Blocks)
	if err != nil {
		return out, err
	}
	if c.root != cid.Cid(m.Commit) {
		return out, invalid("the CAR has another root than the event")
	}
	commit, err := c.commit()
	if err != nil {
		return out, err
	}
	if commit.Rev != m.Rev {
		return out, invalid("the commit has another rev than the event")
	}
	if err := i.signed(ctx, did, &commit); err != nil {
		return out, err
	}
	out = Commit{DID: did, Rev: commit.Rev, InOrder: true, Data: commit.Data.String()}
	if m.Since != nil {
		out.Since = *m.Since
	}
	if out.PrevData, err = c.inverted(ctx, commit.Data, m); err != nil {
		return out, err
	}
	for _, op := range m.Ops {
		change, err := i.provedOp(c, commit.Data, op)
		if err != nil {
			return out, err
		}
		if i.kept[change.Collection] {
			out.Changes = append(out.Changes, change)
		}
	}
	return out, nil
}

// provedOp is what an operation does, if the tree says so too.
func (i *Ingester) provedOp(c *car, data cid.Cid, op *comatproto.SyncSubscribeRepos_RepoOp) (out Change, err error) {
	if out.Collection, out.Rkey, err = splitPath(op.Path); err != nil {
		return out, err
	}
	if !i.kept[out.Collection] {
		return out, nil // proved by the inversion alone, or not needed
	}
	value, err := c.find(data, op.Path)
	if err != nil {
		return out, err
	}
	if op.Action == "delete" {
		if value.Defined() {
			return out, invalid("the record %s is said to be gone, and is there", op.Path)
		}
		return out, nil
	}
	if op.Action != "create" && op.Action != "update" || op.Cid == nil || cid.Cid(*op.Cid) != value {
		return out, invalid("the tree says another thing of %s", op.Path)
	}
	raw, err := c.record(value)
	if err != nil {
		return out, err
	}
	out.CID, out.Value = value.String(), recordJSON(raw)
	return out, nil
}

// inverted undoes the operations on the tree, which must lead to prevData: then the event names all of them.
// It returns prevData, "" where the event has none.
func (c *car) inverted(ctx context.Context, data cid.Cid, m *comatproto.SyncSubscribeRepos_Commit) (string, error) {
	ops := make([]repo.Operation, 0, len(m.Ops))
	for _, op := range m.Ops {
		if op == nil {
			return "", invalid("an operation is missing")
		}
		if op.Action != "create" && op.Prev == nil {
			return "", nil // an older event
		}
		ops = append(ops, repo.Operation{Path: op.Path, Value: (*cid.Cid)(op.Cid), Prev: (*cid.Cid)(op.Prev)})
	}
	if m.PrevData == nil {
		return "", nil
	}
	ops, err := repo.NormalizeOps(ops)
	if err != nil {
		return "", invalid("%v", err)
	}
	tree, err := mst.LoadTreeFromStore(ctx, c, data)
	if err != nil {
		return "", invalid("the tree: %v", err)
	}
	for i := range ops {
		if err := repo.InvertOp(tree, &ops[i]); err != nil {
			return "", invalid("%v", err)
		}
		if tree.IsEmpty() {
			*tree = mst.NewEmptyTree() // an emptied tree keeps its height, and would then give a wrong root
		}
	}
	root, err := tree.RootCID()
	if err != nil {
		return "", invalid("the tree: %v", err)
	}
	if *root != cid.Cid(*m.PrevData) {
		return "", invalid("undone, the operations do not lead to prevData")
	}
	return root.String(), nil
}

// verifyRecord checks a proof of com.atproto.sync.getRecord: what the repo has at a path now.
func (i *Ingester) verifyRecord(ctx context.Context, did syntax.DID, collection, rkey string, raw []byte) (out Commit, err error) {
	defer i.caught(&err)
	c, commit, err := i.openCAR(ctx, did, raw)
	if err != nil {
		return out, err
	}
	value, err := c.find(commit.Data, collection+"/"+rkey)
	if err != nil {
		return out, err
	}
	change := Change{Collection: collection, Rkey: rkey}
	if value.Defined() {
		record, err := c.record(value)
		if err != nil {
			return out, err
		}
		change.CID, change.Value = value.String(), recordJSON(record)
	}
	return Commit{DID: did, Rev: commit.Rev, Changes: []Change{change}}, nil
}

// verifyRepo checks a whole repo, and returns all records of the collections that are kept.
func (i *Ingester) verifyRepo(ctx context.Context, did syntax.DID, raw []byte) (out Commit, err error) {
	defer i.caught(&err)
	c, commit, err := i.openCAR(ctx, did, raw)
	if err != nil {
		return out, err
	}
	out = Commit{DID: did, Rev: commit.Rev, Data: commit.Data.String()}
	err = c.walk(commit.Data, namespace, "io.atcr/", func(path string, value cid.Cid) error {
		collection, rkey, err := splitPath(path)
		if err != nil || !i.kept[collection] {
			return nil // an odd key is nobody's record
		}
		record, err := c.record(value)
		if err != nil {
			return err
		}
		out.Changes = append(out.Changes, Change{Collection: collection, Rkey: rkey, CID: value.String(), Value: recordJSON(record)})
		return nil
	})
	return out, err
}

func (i *Ingester) openCAR(ctx context.Context, did syntax.DID, raw []byte) (*car, repo.Commit, error) {
	c, err := readCAR(raw)
	if err != nil {
		return nil, repo.Commit{}, err
	}
	commit, err := c.commit()
	if err != nil {
		return nil, commit, err
	}
	return c, commit, i.signed(ctx, did, &commit)
}

// noRecord is the JSON of a record that is not in the data model: it is there, and no collection takes it.
var noRecord = []byte("null")

// recordJSON is a record as JSON. Text that is not UTF-8, which the library lets pass, would be other text there.
func recordJSON(raw []byte) []byte {
	value, err := atdata.UnmarshalCBOR(raw)
	if err != nil || !validText(value) {
		return noRecord
	}
	out, err := json.Marshal(value)
	if err != nil {
		return noRecord
	}
	return out
}

// validText tells whether all text in v, which was decoded, is UTF-8.
func validText(v any) bool {
	switch v := v.(type) {
	case string:
		return utf8.ValidString(v)
	case atdata.Blob:
		return utf8.ValidString(v.MimeType)
	case []any:
		return !slices.ContainsFunc(v, func(e any) bool { return !validText(e) })
	case map[string]any:
		for k, e := range v {
			if !utf8.ValidString(k) || !validText(e) {
				return false
			}
		}
	}
	return true
}

// reason is why an event is left out, by its error.
func reason(err error) string {
	switch {
	case errors.Is(err, errSignature):
		return dropSignature
	case errors.Is(err, errIdentity):
		return dropIdentity
	case errors.Is(err, errFuture):
		return dropFuture
	}
	return dropProof
}

// parseTime reads a time of an event, the zero time where it has none.
func parseTime(text string) time.Time {
	at, err := syntax.ParseDatetimeLenient(text)
	if err != nil {
		return time.Time{}
	}
	return at.Time()
}
