package pds

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"

	"github.com/bluesky-social/indigo/atproto/syntax"
	"github.com/ipfs/go-cid"

	"atcr.io/internal/pds/tree"
)

// Record is a stored record.
type Record struct {
	URI   syntax.ATURI
	Rkey  syntax.RecordKey
	CID   cid.Cid
	Value json.RawMessage
}

// GetRecord reads a record. Errors: ErrRecordNotFound.
func (r *Repo) GetRecord(ctx context.Context, collection syntax.NSID, rkey syntax.RecordKey) (Record, error) {
	row := r.host.db.Reader().QueryRowContext(ctx, `SELECT rkey, cid, value FROM record WHERE did = ? AND collection = ? AND rkey = ?`,
		r.did.String(), collection.String(), rkey.String())
	record, err := r.scan(collection, row)
	if errors.Is(err, sql.ErrNoRows) {
		return Record{}, fmt.Errorf("%w: %s/%s", ErrRecordNotFound, collection, rkey)
	}
	return record, err
}

// ListRecords reads up to limit records of a collection behind cursor (an rkey, "" for the beginning), by
// rkey from the greatest down, reverse from the smallest up.
func (r *Repo) ListRecords(ctx context.Context, collection syntax.NSID, limit int, cursor string, reverse bool) ([]Record, error) {
	return r.list(ctx, collection, limit, math.MaxInt, cursor, reverse)
}

// list is ListRecords that ends with the record that brings their JSON to size bytes.
func (r *Repo) list(ctx context.Context, collection syntax.NSID, limit, size int, cursor string, reverse bool) ([]Record, error) {
	query := `SELECT rkey, cid, value FROM record WHERE did = ? AND collection = ? AND (? = '' OR rkey < ?) ORDER BY rkey DESC LIMIT ?`
	if reverse {
		query = `SELECT rkey, cid, value FROM record WHERE did = ? AND collection = ? AND (? = '' OR rkey > ?) ORDER BY rkey LIMIT ?`
	}
	rows, err := r.host.db.Reader().QueryContext(ctx, query, r.did.String(), collection.String(), cursor, cursor, limit)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	var out []Record
	for size > 0 && rows.Next() {
		record, err := r.scan(collection, rows)
		if err != nil {
			return nil, err
		}
		out, size = append(out, record), size-len(record.Value)
	}
	return out, rows.Err()
}

func (r *Repo) scan(collection syntax.NSID, row interface{ Scan(...any) error }) (Record, error) {
	var rkey string
	var rawCID, value []byte
	if err := row.Scan(&rkey, &rawCID, &value); err != nil {
		return Record{}, err
	}
	c, err := cid.Cast(rawCID)
	var text json.RawMessage
	if err == nil {
		text, err = recordJSON(value)
	}
	if err != nil {
		return Record{}, fmt.Errorf("%w: record %s/%s: %w", ErrCorrupt, collection, rkey, err)
	}
	uri := syntax.ATURI("at://" + r.did.String() + "/" + collection.String() + "/" + rkey)
	return Record{URI: uri, Rkey: syntax.RecordKey(rkey), CID: c, Value: text}, nil
}

// Count is how many records a collection has.
func (r *Repo) Count(ctx context.Context, collection syntax.NSID) (n int64, err error) {
	err = r.host.db.Reader().QueryRowContext(ctx, `SELECT count(*) FROM record WHERE did = ? AND collection = ?`, r.did.String(), collection.String()).Scan(&n)
	return n, err
}

// Collections are the collections that have records.
func (r *Repo) Collections(ctx context.Context) ([]string, error) {
	return collectionsOf(ctx, r.host.db.Reader(), r.did)
}

// Export writes the whole repo at its head as a CAR: the commit, then nodes and records in pre-order. Only
// what can be reached from the head is in it. It reads one snapshot; writers go on.
func (r *Repo) Export(ctx context.Context, w io.Writer) error {
	spool, err := r.spool(ctx, nil)
	if err != nil {
		return err
	}
	return errors.Join(spool.writeTo(w), spool.Close())
}

// Proof writes a CAR with the commit, the nodes that lead to a record's place, and the record where there
// is one.
func (r *Repo) Proof(ctx context.Context, w io.Writer, collection syntax.NSID, rkey syntax.RecordKey) error {
	// Who commits owns the tree, so that is who this becomes, for a moment.
	select {
	case r.owned <- struct{}{}:
		defer func() { <-r.owned }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if err := r.ensureTree(ctx); err != nil {
		return err
	}
	nodes, err := r.tree.Proof(collection.String() + "/" + rkey.String())
	if err != nil {
		return err
	}
	blocks := append([]tree.Block{{CID: r.head.CID, Data: r.head.block}}, nodes...)
	var raw, value []byte
	err = r.host.db.Reader().QueryRowContext(ctx, `SELECT cid, value FROM record WHERE did = ? AND collection = ? AND rkey = ?`,
		r.did.String(), collection.String(), rkey.String()).Scan(&raw, &value)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return err
	}
	if err == nil {
		c, err := cid.Cast(raw)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrCorrupt, err)
		}
		blocks = append(blocks, tree.Block{CID: c, Data: value})
	}
	err = writeCARHeader(w, r.head.CID)
	for _, b := range blocks {
		_, writeErr := writeCARBlock(w, b)
		err = errors.Join(err, writeErr)
	}
	return err
}

// ListBlobs are the CIDs of up to limit blobs that records name, behind cursor (a CID, "" for the beginning),
// where since is not "" only those of records that changed after that rev.
func (r *Repo) ListBlobs(ctx context.Context, since, cursor string, limit int) ([]string, error) {
	rows, err := r.host.db.Reader().QueryContext(ctx, `SELECT DISTINCT atblob_ref.cid FROM atblob_ref
		JOIN record USING (did, collection, rkey) WHERE did = ? AND atblob_ref.cid > ? AND rev > ? ORDER BY atblob_ref.cid LIMIT ?`,
		r.did.String(), cursor, since, limit)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	out := []string{}
	for rows.Next() {
		var c string
		if err := rows.Scan(&c); err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	return out, rows.Err()
}
