package tree

import (
	"github.com/bluesky-social/indigo/atproto/repo/mst"
	"github.com/ipfs/go-cid"
)

// Walk calls node for each node before its children, and record for each record, all in the order of paths.
// The tree must be whole and clean (after Root or Diff).
func (t *Tree) Walk(node func(Block) error, record func(path string, c cid.Cid) error) error {
	return walk(t.t.Root, node, record)
}

func walk(n *mst.Node, node func(Block) error, record func(string, cid.Cid) error) error {
	data := n.NodeData()
	raw, c, err := data.Bytes()
	if err != nil {
		return err
	}
	if err := node(Block{CID: *c, Data: raw}); err != nil {
		return err
	}
	for i := range n.Entries {
		e := &n.Entries[i]
		switch {
		case e.IsValue():
			err = record(string(e.Key), *e.Value)
		case e.Child != nil:
			err = walk(e.Child, node, record)
		default:
			err = mst.ErrPartialTree
		}
		if err != nil {
			return err
		}
	}
	return nil
}
