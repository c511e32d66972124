package ingest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"

	"github.com/bluesky-social/indigo/atproto/repo"
	"github.com/bluesky-social/indigo/atproto/repo/mst"
	"github.com/bluesky-social/indigo/atproto/syntax"
)

// errInvalid says that bytes of another server are not what they have to be, or prove nothing.
var errInvalid = errors.New("not valid")

func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{errInvalid}, args...)...)
}

const (
	maxHeaderBytes = 4 << 10
	maxBlockBytes  = 2 << 20 // a record has at most 1,000,000 bytes
	maxTreeDepth   = 128     // keys are placed by the zeros of a 256-bit hash, two a level
)

// car is the blocks of a CAR, each with the hash that its CID names.
type car struct {
	root   cid.Cid
	blocks map[cid.Cid][]byte
}

// readCAR reads a CAR v1 of at most as many bytes as r gives. Every block is hashed: what is in the map is
// what its CID says. Blocks with hashes that atproto does not use are left out.
//
// Source: https://ipld.io/specs/transport/car/carv1/
func readCAR(r []byte) (*car, error) {
	header, rest, err := section(r, maxHeaderBytes)
	if err != nil {
		return nil, err
	}
	root, err := carRoot(header)
	if err != nil {
		return nil, err
	}
	c := &car{root: root, blocks: map[cid.Cid][]byte{}}
	for len(rest) > 0 {
		var body []byte
		if body, rest, err = section(rest, maxBlockBytes); err != nil {
			return nil, err
		}
		n, id, err := cid.CidFromBytes(body)
		if err != nil {
			return nil, invalid("a block has no CID: %v", err)
		}
		p := id.Prefix()
		if p.Version != 1 || p.MhType != multihash.SHA2_256 || p.MhLength != 32 {
			continue
		}
		if data := body[n:]; sum(p.Codec, data) == id {
			c.blocks[id] = data
		} else {
			return nil, invalid("a block has another hash than its CID")
		}
	}
	return c, nil
}

// section is one length and as many bytes.
func section(r []byte, limit uint64) (body, rest []byte, err error) {
	size, n := binary.Uvarint(r)
	if n <= 0 || size == 0 || size > limit || size > uint64(len(r)-n) {
		return nil, nil, invalid("a CAR is cut off, or has a section that is too large")
	}
	return r[n : n+int(size)], r[n+int(size):], nil
}

// carRoot finds the first root in a header, DAG-CBOR of {"roots": [CID, …], "version": 1}: keys in that order,
// as the canonical form has them.
func carRoot(header []byte) (cid.Cid, error) {
	rest, ok := bytes.CutPrefix(header, []byte{0xa2, 0x65, 'r', 'o', 'o', 't', 's'})
	if !ok || len(rest) < 6 || rest[0] < 0x81 || rest[0] > 0x97 {
		return cid.Undef, invalid("a CAR has no root")
	}
	// Tag 42 over a byte string (one byte of length) that begins with zero.
	if rest[1] != 0xd8 || rest[2] != 0x2a || rest[3] != 0x58 || int(rest[4]) > len(rest)-5 || rest[4] < 2 || rest[5] != 0 {
		return cid.Undef, invalid("a CAR has no root")
	}
	root, err := cid.Cast(rest[6 : 5+int(rest[4])])
	if err != nil {
		return cid.Undef, invalid("a CAR's root: %v", err)
	}
	return root, nil
}

func sum(codec uint64, b []byte) cid.Cid {
	hash, err := multihash.Sum(b, multihash.SHA2_256, -1)
	if err != nil {
		panic("ingest: " + err.Error()) // a sha256 can always be made
	}
	return cid.NewCidV1(codec, hash)
}

// Get is for indigo's trees.
func (c *car) Get(_ context.Context, id cid.Cid) (blocks.Block, error) {
	raw, ok := c.blocks[id]
	if !ok {
		return nil, errMissing{id}
	}
	return blocks.NewBlockWithCid(raw, id)
}

// errMissing is a block that is not there, in the form by which indigo's trees know one.
type errMissing struct{ id cid.Cid }

func (e errMissing) Error() string  { return "block " + e.id.String() + " is not there" }
func (e errMissing) NotFound() bool { return true }
func (e errMissing) Is(target error) bool {
	other, ok := target.(interface{ NotFound() bool })
	return ok && other.NotFound()
}

// commit reads the commit that the root names. Its signature is still to be checked.
func (c *car) commit() (out repo.Commit, err error) {
	raw, ok := c.blocks[c.root]
	if !ok {
		return out, invalid("the commit is not in the CAR")
	}
	if err := out.UnmarshalCBOR(bytes.NewReader(raw)); err != nil {
		return out, invalid("the commit: %v", err)
	}
	if err := out.VerifyStructure(); err != nil {
		return out, invalid("the commit: %v", err)
	}
	return out, nil
}

// walk visits the records of the tree whose keys are in [from, to), in their order, and looks at no node that
// cannot have one. A node that is not there ends it with an error.
func (c *car) walk(node cid.Cid, from, to string, visit func(path string, value cid.Cid) error) error {
	last := ""
	return c.walkNode(node, from, to, 0, &last, visit)
}

func (c *car) node(id cid.Cid) (*mst.NodeData, error) {
	raw, ok := c.blocks[id]
	if !ok {
		return nil, invalid("a node of the tree is not there: %s", id)
	}
	data, err := mst.NodeDataFromCBOR(bytes.NewReader(raw))
	if err != nil {
		return nil, invalid("a node of the tree: %v", err)
	}
	return data, nil
}

func (c *car) walkNode(id cid.Cid, from, to string, depth int, last *string, visit func(string, cid.Cid) error) error {
	if depth > maxTreeDepth {
		return invalid("the tree is too deep")
	}
	data, err := c.node(id)
	if err != nil {
		return err
	}
	keys, err := nodeKeys(data)
	if err != nil {
		return err
	}
	// A child holds what is between the keys beside it.
	child := func(id *cid.Cid, low, high string) error {
		if id == nil || high != "" && high <= from || low+"\x00" >= to {
			return nil
		}
		return c.walkNode(*id, from, to, depth+1, last, visit)
	}
	at := func(i int) string {
		if i < 0 || i >= len(keys) {
			return ""
		}
		return keys[i]
	}
	if err := child(data.Left, "", at(0)); err != nil {
		return err
	}
	for i, key := range keys {
		if key >= from && key < to {
			if key <= *last {
				return invalid("the tree is not in order")
			}
			*last = key
			if err := visit(key, data.Entries[i].Value); err != nil {
				return err
			}
		}
		if err := child(data.Entries[i].Right, key, at(i+1)); err != nil {
			return err
		}
	}
	return nil
}

// nodeKeys unfolds the keys of a node.
func nodeKeys(data *mst.NodeData) ([]string, error) {
	keys := make([]string, 0, len(data.Entries))
	previous := ""
	for i := range data.Entries {
		e := &data.Entries[i]
		if e.PrefixLen < 0 || e.PrefixLen > int64(len(previous)) {
			return nil, invalid("a node's key has no beginning")
		}
		key := previous[:e.PrefixLen] + string(e.KeySuffix)
		if i > 0 && key <= previous {
			return nil, invalid("a node is not in order")
		}
		keys = append(keys, key)
		previous = key
	}
	return keys, nil
}

// find is the CID that the tree has for path, cid.Undef where it proves that there is none.
func (c *car) find(root cid.Cid, path string) (cid.Cid, error) {
	out := cid.Undef
	err := c.walk(root, path, path+"\x00", func(_ string, value cid.Cid) error {
		out = value
		return nil
	})
	return out, err
}

// record is the bytes of a record.
func (c *car) record(id cid.Cid) ([]byte, error) {
	raw, ok := c.blocks[id]
	if !ok {
		return nil, invalid("a record is not in the CAR: %s", id)
	}
	return raw, nil
}

// readAll reads at most limit bytes; more is errTooLarge.
func readAll(r io.Reader, limit int64) ([]byte, error) {
	raw, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err == nil && int64(len(raw)) > limit {
		return nil, errTooLarge
	}
	return raw, err
}

var errTooLarge = errors.New("it is too large to be read at once")

// splitPath is collection and rkey of a record's path.
func splitPath(path string) (collection, rkey string, err error) {
	nsid, key, err := syntax.ParseRepoPath(path)
	if err != nil {
		return "", "", invalid("path: %v", err)
	}
	return nsid.String(), key.String(), nil
}
