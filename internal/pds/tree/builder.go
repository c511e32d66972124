package tree

import (
	"errors"
	"fmt"
	"slices"

	"github.com/bluesky-social/indigo/atproto/repo/mst"
	"github.com/ipfs/go-cid"
)

// Builder makes a tree of records that come in the order of their paths, one pass and no look-ups. What it holds
// is one node a level, unless it keeps the tree.
type Builder struct {
	keep   bool
	node   func(b Block, first, height int) error
	levels []level
	count  int
	last   string
}

// level is the node that is being filled at one height.
type level struct {
	entries []mst.NodeEntry
	first   int // the record that is the leftmost at or below the node
}

// NewBuilder makes a builder. node, where not nil, is called with each finished node, children before parents: its
// block, the number (from 0) of the leftmost record at or below it, and its height.
func NewBuilder(keep bool, node func(b Block, first, height int) error) *Builder {
	return &Builder{keep: keep, node: node}
}

// errOrder says that a record came that belongs before the last one.
var errOrder = errors.New("records are not in the order of their paths")

// Add adds the next record. path must be greater than the last one.
func (b *Builder) Add(path string, c cid.Cid) error {
	if path <= b.last {
		return fmt.Errorf("%w: %q after %q", errOrder, path, b.last)
	}
	key := []byte(path)
	if !mst.IsValidKey(key) {
		return mst.ErrInvalidKey
	}
	height := mst.HeightForKey(key)
	for len(b.levels) <= height {
		b.levels = append(b.levels, level{})
	}
	for l := range height {
		if _, err := b.finish(l, true); err != nil {
			return err
		}
	}
	b.append(height, b.count, mst.NodeEntry{Key: key, Value: &c})
	b.last = path
	b.count++
	return nil
}

func (b *Builder) append(at, first int, e mst.NodeEntry) {
	l := &b.levels[at]
	if len(l.entries) == 0 {
		l.first = first
	}
	l.entries = append(l.entries, e)
}

// finish encodes the node of a level, where there is one, and hangs it below the next level.
func (b *Builder) finish(at int, hang bool) (*mst.Node, error) {
	l := &b.levels[at]
	if len(l.entries) == 0 {
		return nil, nil
	}
	n := &mst.Node{Entries: l.entries, Height: at}
	data := n.NodeData()
	raw, c, err := data.Bytes()
	if err != nil {
		return nil, err
	}
	n.CID = c
	if b.node != nil {
		if err := b.node(Block{CID: *c, Data: raw}, l.first, at); err != nil {
			return nil, err
		}
	}
	child := mst.NodeEntry{ChildCID: c}
	if b.keep {
		n.Entries = slices.Clone(l.entries)
		child.Child = n
	}
	clear(l.entries)
	l.entries = l.entries[:0]
	if hang {
		b.append(at+1, l.first, child)
	}
	return n, nil
}

// Finish ends the tree. The returned one is whole where the builder keeps it; else it is nil, but for the empty one. Its root is clean.
func (b *Builder) Finish() (root cid.Cid, t *Tree, err error) {
	top := len(b.levels) - 1
	if top < 0 { // no record: one empty node
		t = New()
		data := t.t.Root.NodeData()
		raw, c, err := data.Bytes()
		if err == nil && b.node != nil {
			err = b.node(Block{CID: *c, Data: raw}, 0, 0)
		}
		if err != nil {
			return cid.Undef, nil, err
		}
		return *c, t, nil
	}
	for l := range top {
		if _, err := b.finish(l, true); err != nil {
			return cid.Undef, nil, err
		}
	}
	n, err := b.finish(top, false)
	if err != nil {
		return cid.Undef, nil, err
	}
	if b.keep {
		t = &Tree{t: mst.Tree{Root: n}}
	}
	return *n.CID, t, nil
}
