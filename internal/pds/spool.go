package pds

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/ipfs/go-cid"

	"atcr.io/internal/pds/tree"
)

// carBuffer is what is copied of a CAR at once.
const carBuffer = 256 << 10

// carSpool is a CAR in two files without a name: records in the order of their paths, and nodes as they were
// finished. Read together in the order of places they are in pre-order. So an export is one pass over the
// rows, and its memory a few bytes a record, whatever the records have.
type carSpool struct {
	head    []byte   // header, and the commit's section
	records *os.File // sections, one after the other
	lengths []uint32 // of each record's section; 0: it is not in the CAR
	nodes   *os.File
	places  []nodePlace
	bytes   int64
}

// nodePlace is where a node's section is, and where it belongs: before the record with the number first, higher
// nodes first.
type nodePlace struct {
	offset int64
	length uint32
	first  uint32
	height uint8
}

// spool takes a snapshot of the repo at its head: all of it, or the blocks that are selected. It waits its turn, for
// the database has few connections. Errors: ErrCorrupt.
func (r *Repo) spool(ctx context.Context, which *selection) (_ *carSpool, err error) {
	select {
	case r.host.spooling <- struct{}{}:
		defer func() { <-r.host.spooling }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	s := &carSpool{}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	for _, f := range []**os.File{&s.records, &s.nodes} {
		if *f, err = namelessFile(filepath.Dir(r.host.db.Path())); err != nil {
			return nil, err
		}
	}
	tx, err := r.host.db.Reader().BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return nil, err
	}
	defer func() { _ = tx.Rollback() }()
	head, err := readHead(ctx, tx, r.did)
	if err != nil {
		return nil, err
	}
	which.of(head)
	return s, s.fill(ctx, tx, r, head, which)
}

func namelessFile(dir string) (*os.File, error) {
	f, err := os.CreateTemp(dir, ".export-*.car")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// fill reads the rows once.
func (s *carSpool) fill(ctx context.Context, tx *sql.Tx, r *Repo, head Head, which *selection) error {
	records, nodes := bufio.NewWriterSize(s.records, carBuffer), bufio.NewWriterSize(s.nodes, carBuffer)
	b := tree.NewBuilder(false, func(node tree.Block, first, height int) error {
		if !which.node(node.CID) {
			return nil
		}
		place := nodePlace{first: uint32(first), height: uint8(height)} //nolint:gosec // fewer records than 2^32, and a key has at most 128 levels
		if len(s.places) > 0 {
			last := s.places[len(s.places)-1]
			place.offset = last.offset + int64(last.length)
		}
		n, err := writeCARBlock(nodes, node)
		place.length = uint32(n) //nolint:gosec // a section has at most a few megabytes
		s.places, s.bytes = append(s.places, place), s.bytes+int64(n)
		return err
	})
	seen := map[[16]byte]struct{}{} // equal records share a block
	err := eachRow(ctx, tx, r.did, true, func(path string, c cid.Cid, value, rev []byte) error {
		n := 0
		key := [16]byte([]byte(c.KeyString())[c.ByteLen()-16:])
		if _, again := seen[key]; !again && which.record(c, rev) {
			seen[key] = struct{}{}
			var err error
			if n, err = writeCARBlock(records, tree.Block{CID: c, Data: value}); err != nil {
				return err
			}
		}
		s.lengths, s.bytes = append(s.lengths, uint32(n)), s.bytes+int64(n) //nolint:gosec // a record has at most a megabyte
		return b.Add(path, c)
	})
	if err != nil {
		return err
	}
	root, _, err := b.Finish()
	if err != nil {
		return err
	}
	if root != head.Data {
		return fmt.Errorf("%w: the records do not make the head's tree", ErrCorrupt)
	}
	slices.SortFunc(s.places, func(a, b nodePlace) int {
		return cmp.Or(cmp.Compare(a.first, b.first), cmp.Compare(b.height, a.height))
	})
	return errors.Join(records.Flush(), nodes.Flush(), s.begin(head, which))
}

// begin writes the head: the root is the commit, or none where the blocks are not of the whole.
func (s *carSpool) begin(head Head, which *selection) error {
	var b bytes.Buffer
	there, isRoot := which.commit(head.CID)
	root := head.CID
	if !isRoot {
		root = cid.Undef
	}
	if err := writeCARHeader(&b, root); err != nil {
		return err
	}
	if there {
		if _, err := writeCARBlock(&b, tree.Block{CID: head.CID, Data: head.block}); err != nil {
			return err
		}
	}
	s.head = b.Bytes()
	s.bytes += int64(len(s.head))
	return nil
}

// size of the CAR in bytes.
func (s *carSpool) size() int64 { return s.bytes }

// writeTo writes the CAR, in pieces of about carBuffer.
func (s *carSpool) writeTo(w io.Writer) error {
	out := bufio.NewWriterSize(w, carBuffer)
	if _, err := out.Write(s.head); err != nil {
		return err
	}
	if _, err := s.records.Seek(0, io.SeekStart); err != nil {
		return err
	}
	records := bufio.NewReaderSize(s.records, carBuffer)
	var section []byte
	next := 0
	node := func(p nodePlace) error {
		section = slices.Grow(section[:0], int(p.length))[:p.length]
		if _, err := s.nodes.ReadAt(section, p.offset); err != nil {
			return err
		}
		_, err := out.Write(section)
		return err
	}
	for i, length := range s.lengths {
		for ; next < len(s.places) && int(s.places[next].first) == i; next++ {
			if err := node(s.places[next]); err != nil {
				return err
			}
		}
		section = slices.Grow(section[:0], int(length))[:length]
		if _, err := io.ReadFull(records, section); err != nil {
			return err
		}
		if _, err := out.Write(section); err != nil {
			return err
		}
	}
	for ; next < len(s.places); next++ { // the empty tree's
		if err := node(s.places[next]); err != nil {
			return err
		}
	}
	return out.Flush()
}

// Close frees the files.
func (s *carSpool) Close() error {
	var errs []error
	for _, f := range []*os.File{s.records, s.nodes} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	return errors.Join(errs...)
}
