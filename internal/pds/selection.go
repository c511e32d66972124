package pds

import (
	"context"
	"database/sql"
	"fmt"

	"github.com/bluesky-social/indigo/atproto/syntax"
	"github.com/ipfs/go-cid"
)

// selection says which blocks of a repo at its head go into a CAR; nil: all.
type selection struct {
	// block, where not nil, says which: then they are of no one tree.
	block func(cid.Cid) bool
	// since, else, is the revision that the reader has: what they lack is the commit, the tree's nodes, and the
	// records that changed after it. Which nodes are new is not kept (they follow from the records), so all of
	// them are sent, unless nothing changed.
	since   string
	changed map[cid.Cid]bool // records; filled by read
	same    bool
}

// read finds what changed. A record that stands at two paths is new where one of them is.
func (s *selection) read(ctx context.Context, tx *sql.Tx, did syntax.DID, head Head) error {
	if s == nil || s.since == "" {
		return nil
	}
	s.changed, s.same = map[cid.Cid]bool{}, s.since >= head.Rev
	rows, err := tx.QueryContext(ctx, `SELECT DISTINCT cid FROM record WHERE did = ? AND rev > ?`, did.String(), s.since)
	if err != nil {
		return err
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var raw []byte
		if err := rows.Scan(&raw); err != nil {
			return err
		}
		c, err := cid.Cast(raw)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrCorrupt, err)
		}
		s.changed[c] = true
	}
	return rows.Err()
}

func (s *selection) node(c cid.Cid) bool {
	switch {
	case s == nil:
		return true
	case s.block != nil:
		return s.block(c)
	}
	return !s.same
}

func (s *selection) record(c cid.Cid) bool {
	switch {
	case s == nil:
		return true
	case s.block != nil:
		return s.block(c)
	}
	return s.changed[c]
}

// commit tells whether the commit is among them, and whether it is the CAR's root.
func (s *selection) commit(c cid.Cid) (there, root bool) {
	if s != nil && s.block != nil {
		return s.block(c), false
	}
	return true, true
}
