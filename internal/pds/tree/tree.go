// Package tree is the Merkle search tree of a repo: the only place that knows indigo's tree and its traps.
//
// It owns the tree in memory and its blocks, and refuses to own records and commits.
//
// Source: https://atproto.com/specs/repository, "MST Structure".
package tree

import (
	"bytes"
	"context"
	"fmt"

	"github.com/bluesky-social/indigo/atproto/repo/mst"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	blockstore "github.com/ipfs/go-ipfs-blockstore"
)

// Tree maps paths (collection/rkey) to CIDs of records. Not safe for concurrent use. After an error it may
// be damaged: drop it and load it again.
type Tree struct{ t mst.Tree }

// Block is an encoded node.
type Block struct {
	CID  cid.Cid
	Data []byte
}

// New is the empty tree.
func New() *Tree { return &Tree{t: mst.NewEmptyTree()} }

// Get is the CID at path, cid.Undef where there is none.
func (t *Tree) Get(path string) (cid.Cid, error) {
	c, err := t.t.Get([]byte(path))
	if err != nil || c == nil {
		return cid.Undef, err
	}
	return *c, nil
}

// Set puts c at path; cid.Undef removes it.
func (t *Tree) Set(path string, c cid.Cid) error {
	if c.Defined() {
		_, err := t.t.Insert([]byte(path), c)
		return err
	}
	if _, err := t.t.Remove([]byte(path)); err != nil {
		return err
	}
	if t.t.IsEmpty() {
		t.t = mst.NewEmptyTree() // an emptied tree keeps its height, and would then give a wrong root
	}
	return nil
}

// Root is the CID of the root node. Changes since the last Diff are no longer in the next one.
func (t *Tree) Root() (cid.Cid, error) {
	c, err := t.t.RootCID()
	if err != nil {
		return cid.Undef, err
	}
	return *c, nil
}

// Diff is the root, and the nodes that changed or prove a change since the last Diff or Root. The root's
// own node is always among them.
func (t *Tree) Diff(ctx context.Context) (cid.Cid, []Block, error) {
	sink := &collector{}
	root, err := t.t.WriteDiffBlocks(ctx, sink)
	if err != nil {
		return cid.Undef, nil, err
	}
	for _, b := range sink.blocks {
		if b.CID == *root {
			return *root, sink.blocks, nil
		}
	}
	data := t.t.Root.NodeData()
	raw, c, err := data.Bytes()
	if err != nil {
		return cid.Undef, nil, err
	}
	if *c != *root {
		return cid.Undef, nil, fmt.Errorf("root node has CID %s, tree says %s", c, root)
	}
	return *root, append([]Block{{CID: *c, Data: raw}}, sink.blocks...), nil
}

// Proof is the nodes from the root down to where path is or would be: with them anybody can see whether the
// root has it. The tree must be whole and clean.
func (t *Tree) Proof(path string) ([]Block, error) {
	var out []Block
	for n := t.t.Root; n != nil; {
		data := n.NodeData()
		raw, c, err := data.Bytes()
		if err != nil {
			return nil, err
		}
		out = append(out, Block{CID: *c, Data: raw})
		var next *mst.Node
		for i := range n.Entries {
			e := &n.Entries[i]
			if e.IsValue() && string(e.Key) == path {
				return out, nil
			}
			if e.IsValue() && string(e.Key) > path {
				break
			}
			if next = e.Child; e.IsChild() && next == nil {
				return nil, mst.ErrPartialTree
			}
		}
		n = next
	}
	return out, nil
}

// collector is a block store that keeps what it is given. The tree calls Put alone.
type collector struct {
	blockstore.Blockstore
	blocks []Block
}

func (c *collector) Put(_ context.Context, b blocks.Block) error {
	c.blocks = append(c.blocks, Block{CID: b.Cid(), Data: b.RawData()})
	return nil
}

// Node is an encoded node, read: what is left of its first entry, and its entries in order.
type Node struct {
	Left    cid.Cid // cid.Undef: nothing
	Entries []NodeEntry
}

// NodeEntry is a path with its record, and the node of what is between it and the next.
type NodeEntry struct {
	Path  string
	Value cid.Cid
	Right cid.Cid // cid.Undef: nothing
}

// DecodeNode reads somebody else's node: whatever the bytes are, it gives an error rather than panic. The order
// of paths, and whether they belong into this node, is for the reader to see.
func DecodeNode(raw []byte) (n Node, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("tree node: %v", p)
		}
	}()
	r := bytes.NewReader(raw)
	data, err := mst.NodeDataFromCBOR(r)
	if err != nil {
		return n, fmt.Errorf("tree node: %w", err)
	}
	if r.Len() > 0 {
		return n, fmt.Errorf("tree node: %d bytes behind its end", r.Len())
	}
	child := func(c *cid.Cid) cid.Cid {
		if c == nil {
			return cid.Undef
		}
		return *c
	}
	n.Left = child(data.Left)
	previous := ""
	for _, e := range data.Entries {
		if e.PrefixLen < 0 || e.PrefixLen > int64(len(previous)) {
			return n, fmt.Errorf("tree node: a path shares %d bytes with one of %d", e.PrefixLen, len(previous))
		}
		previous = previous[:e.PrefixLen] + string(e.KeySuffix)
		if len(previous) > MaxPathBytes {
			return n, fmt.Errorf("tree node: a path of %d bytes", len(previous))
		}
		n.Entries = append(n.Entries, NodeEntry{previous, e.Value, child(e.Right)})
	}
	return n, nil
}

// MaxPathBytes bounds a path: a collection of 317, a slash, a record key of 512.
const MaxPathBytes = 317 + 1 + 512
