package pds

import "github.com/ipfs/go-cid"

// selection says which blocks of a repo at its head go into a CAR; nil: all.
type selection struct {
	// block, where not nil, says which: then they are of no one tree.
	block func(cid.Cid) bool
	// since, else, is the revision that the reader has: what they lack is the commit, the tree's nodes, and the
	// records that changed after it. Which nodes are new is not kept (they follow from the records), so all of
	// them are sent, unless nothing changed.
	since string
	same  bool // set by of
}

// of tells which head it is that is selected from.
func (s *selection) of(head Head) {
	if s != nil {
		s.same = s.since >= head.Rev
	}
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

// record tells whether a record goes in that was written at rev. One that stands at two paths is new where one of them is.
func (s *selection) record(c cid.Cid, rev []byte) bool {
	switch {
	case s == nil:
		return true
	case s.block != nil:
		return s.block(c)
	}
	return string(rev) > s.since
}

// commit tells whether the commit is among them, and whether it is the CAR's root.
func (s *selection) commit(c cid.Cid) (there, root bool) {
	if s != nil && s.block != nil {
		return s.block(c), false
	}
	return true, true
}
