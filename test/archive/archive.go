// Package archive mends CARs, so that what a test or a fuzzer changed in one comes further than its hashes.
package archive

import (
	"bytes"
	"encoding/binary"
	"slices"

	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"
)

// Mend gives the blocks of a CAR the names of their bytes, and renames them where others link to them, so that what was
// changed in a block is read, and not refused for its hash alone.
func Mend(car []byte) []byte {
	var sections [][]byte
	for rest := car; len(rest) > 0; {
		size, n := binary.Uvarint(rest)
		if n <= 0 || size > uint64(len(rest)-n) {
			return car
		}
		sections = append(sections, slices.Clone(rest[n:n+int(size)]))
		rest = rest[n+int(size):]
	}
	nameBytes := len(name(nil))
	for changed, round := true, 0; changed && round < 8; round++ { // those that link to a block may stand before or behind it
		changed = false
		for i := 1; i < len(sections); i++ {
			if len(sections[i]) < nameBytes {
				continue
			}
			old, own := slices.Clone(sections[i][:nameBytes]), name(sections[i][nameBytes:])
			if bytes.Equal(old, own) {
				continue
			}
			changed = true
			copy(sections[i], own)
			for j := range sections {
				sections[j] = bytes.ReplaceAll(sections[j], old, own)
			}
		}
	}
	var out []byte
	for _, s := range sections {
		out = append(binary.AppendUvarint(out, uint64(len(s))), s...)
	}
	return out
}

// name is the CID of a block of DAG-CBOR.
func name(block []byte) []byte {
	hash, err := multihash.Sum(block, multihash.SHA2_256, -1)
	if err != nil {
		panic("archive: " + err.Error()) // a sha256 can always be made
	}
	return cid.NewCidV1(cid.DagCBOR, hash).Bytes()
}
