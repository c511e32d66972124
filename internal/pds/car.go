package pds

import (
	"encoding/binary"
	"io"

	"github.com/ipfs/go-cid"

	"atcr.io/internal/pds/tree"
)

// writeCARHeader begins a CAR v1 with one root, or none: then the blocks are of no one tree.
//
// Source: https://ipld.io/specs/transport/car/carv1/
func writeCARHeader(w io.Writer, root cid.Cid) error {
	// {"roots": [CID], "version": 1} in DAG-CBOR; a CID is tag 42 over its bytes behind a zero.
	header := []byte{0xa2, 0x65, 'r', 'o', 'o', 't', 's', 0x80}
	if root.Defined() {
		header[len(header)-1] = 0x81
		header = append(header, 0xd8, 0x2a, 0x58, byte(root.ByteLen()+1), 0x00)
		header = append(header, root.Bytes()...)
	}
	header = append(header, 0x67, 'v', 'e', 'r', 's', 'i', 'o', 'n', 0x01)
	if _, err := w.Write(binary.AppendUvarint(nil, uint64(len(header)))); err != nil {
		return err
	}
	_, err := w.Write(header)
	return err
}

// writeCARBlock adds a block, and returns how many bytes that took.
func writeCARBlock(w io.Writer, b tree.Block) (int, error) {
	var start [96]byte
	head := binary.AppendUvarint(start[:0], uint64(b.CID.ByteLen()+len(b.Data)))
	head = append(head, b.CID.KeyString()...)
	if _, err := w.Write(head); err != nil {
		return 0, err
	}
	_, err := w.Write(b.Data)
	return len(head) + len(b.Data), err
}
