package pds

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/bluesky-social/indigo/atproto/atcrypto"
	"github.com/bluesky-social/indigo/atproto/atdata"
	"github.com/bluesky-social/indigo/atproto/repo"
	"github.com/bluesky-social/indigo/atproto/syntax"
	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"

	"atcr.io/internal/pds/tree"
)

// ErrInvalidArchive says: the bytes are no CAR of a whole repo. Its text says what is wrong.
var ErrInvalidArchive = errors.New("not a whole repo in a CAR")

// Bounds of a CAR that is read, far over what a hold of a million records has.
const (
	maxArchiveBytes  = 16 << 30
	maxArchiveBlocks = 20_000_000
	maxArchiveBlock  = 2 << 20 // records have at most MaxRecordBytes
	maxArchiveHeader = 4 << 10
	maxTreeDepth     = 140 // a path's hash has 128 pairs of bits
)

// Archive is a repo read from a CAR: whole, each block with the hash that its name says, the tree in the one
// form that its records have. Whether its signature is good is asked of Verify.
type Archive struct {
	DID syntax.DID
	Rev string

	commit  repo.Commit
	blocks  map[cid.Cid]span
	file    *os.File // what the CAR had, for as long as it is read
	paths   []string
	records map[string]cid.Cid
}

type span struct {
	offset int64
	size   int
}

// ReadArchive reads a CAR of a whole repo through a file without a name in dir. Close it.
//
// Errors: ErrInvalidArchive, also of bytes that were made to harm; the system's.
func ReadArchive(ctx context.Context, r io.Reader, dir string) (_ *Archive, err error) {
	a := &Archive{blocks: map[cid.Cid]span{}, records: map[string]cid.Cid{}}
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: %v", ErrInvalidArchive, p)
		}
		if err != nil {
			err = errors.Join(err, a.Close())
		}
	}()
	if a.file, err = os.CreateTemp(dir, ".import-*.car"); err != nil {
		return nil, fmt.Errorf("import: %w", err)
	}
	if err := os.Remove(a.file.Name()); err != nil {
		return nil, fmt.Errorf("import: %w", err)
	}
	root, err := a.readBlocks(ctx, bufio.NewReaderSize(io.LimitReader(r, maxArchiveBytes), 1<<16))
	if err != nil {
		return nil, err
	}
	return a, a.readRepo(ctx, root)
}

// Close frees the file.
func (a *Archive) Close() error {
	if a.file == nil {
		return nil
	}
	return a.file.Close()
}

// Records is how many there are.
func (a *Archive) Records() int { return len(a.paths) }

// Verify is nil where key signed the commit. Errors: ErrInvalidArchive.
func (a *Archive) Verify(key atcrypto.PublicKey) error {
	if err := a.commit.VerifySignature(key); err != nil {
		return fmt.Errorf("%w: the commit was not signed with %s", ErrInvalidArchive, key.DIDKey())
	}
	return nil
}

// Each calls fn for every record in the order of paths.
func (a *Archive) Each(ctx context.Context, fn func(path string, c cid.Cid, value []byte) error) error {
	for _, path := range a.paths {
		if err := ctx.Err(); err != nil {
			return err
		}
		c := a.records[path]
		value, err := a.block(c)
		if err != nil {
			return err
		}
		if err := fn(path, c, value); err != nil {
			return err
		}
	}
	return nil
}

func (a *Archive) readBlocks(ctx context.Context, r *bufio.Reader) (root cid.Cid, err error) {
	bad := func(err error) (cid.Cid, error) {
		return cid.Undef, fmt.Errorf("%w: block %d: %w", ErrInvalidArchive, len(a.blocks), err)
	}
	header, err := readSection(r, maxArchiveHeader)
	if err != nil {
		return bad(fmt.Errorf("header: %w", err))
	}
	if root, err = archiveRoot(header); err != nil {
		return bad(err)
	}
	out := bufio.NewWriterSize(a.file, 1<<16)
	for offset := int64(0); ; {
		if err := ctx.Err(); err != nil {
			return cid.Undef, err
		}
		section, err := readSection(r, maxArchiveBlock)
		if errors.Is(err, io.EOF) {
			return root, out.Flush()
		}
		if err != nil {
			return bad(err)
		}
		n, c, err := cid.CidFromBytes(section)
		if err != nil {
			return bad(err)
		}
		if p := c.Prefix(); p.Version != 1 || p.MhType != multihash.SHA2_256 || p.MhLength != 32 {
			return bad(fmt.Errorf("%s is a name of a kind that repos do not have", c))
		}
		if sumCID(c.Prefix().Codec, section[n:]) != c {
			return bad(fmt.Errorf("the bytes are not those of %s", c))
		}
		if len(a.blocks) == maxArchiveBlocks {
			return bad(errors.New("too many"))
		}
		a.blocks[c] = span{offset, len(section) - n}
		if _, err := out.Write(section[n:]); err != nil {
			return cid.Undef, fmt.Errorf("import: %w", err)
		}
		offset += int64(len(section) - n)
	}
}

// readSection reads a length and as many bytes. Errors: io.EOF where nothing comes any more.
func readSection(r *bufio.Reader, limit uint64) ([]byte, error) {
	size, err := binary.ReadUvarint(r)
	if err != nil {
		return nil, err // io.EOF only where not a byte came
	}
	if size == 0 || size > limit {
		return nil, fmt.Errorf("%d bytes; 1 to %d are allowed", size, limit)
	}
	section := make([]byte, size)
	if _, err := io.ReadFull(r, section); err != nil {
		return nil, io.ErrUnexpectedEOF
	}
	return section, nil
}

func archiveRoot(header []byte) (cid.Cid, error) {
	data, err := atdata.UnmarshalCBOR(header)
	if err != nil {
		return cid.Undef, fmt.Errorf("header: %w", err)
	}
	roots, _ := data["roots"].([]any)
	if version, _ := data["version"].(int64); version != 1 || len(roots) == 0 {
		return cid.Undef, errors.New("header: not a CAR of version 1 with a root")
	}
	link, ok := roots[0].(atdata.CIDLink)
	if !ok {
		return cid.Undef, errors.New("header: the root is no CID")
	}
	return link.CID(), nil
}

func (a *Archive) block(c cid.Cid) ([]byte, error) {
	s, ok := a.blocks[c]
	if !ok {
		return nil, fmt.Errorf("%w: the block %s is missing", ErrInvalidArchive, c)
	}
	raw := make([]byte, s.size)
	if _, err := a.file.ReadAt(raw, s.offset); err != nil {
		return nil, fmt.Errorf("import: %w", err)
	}
	return raw, nil
}

// readRepo reads commit and tree, and makes the tree anew of its records: it must be the same one.
func (a *Archive) readRepo(ctx context.Context, root cid.Cid) error {
	raw, err := a.block(root)
	if err != nil {
		return err
	}
	if err := a.commit.UnmarshalCBOR(bytes.NewReader(raw)); err != nil {
		return fmt.Errorf("%w: commit: %w", ErrInvalidArchive, err)
	}
	if err := a.commit.VerifyStructure(); err != nil {
		return fmt.Errorf("%w: commit: %w", ErrInvalidArchive, err)
	}
	a.DID, a.Rev = syntax.DID(a.commit.DID), a.commit.Rev
	if err := a.readTree(ctx, a.commit.Data, 0); err != nil {
		return err
	}
	own := tree.New()
	for _, path := range a.paths {
		if err := own.Set(path, a.records[path]); err != nil {
			return fmt.Errorf("%w: %w", ErrInvalidArchive, err)
		}
	}
	if made, err := own.Root(); err != nil || made != a.commit.Data {
		return errors.Join(fmt.Errorf("%w: its records make the tree %s, the commit names %s", ErrInvalidArchive, made, a.commit.Data), err)
	}
	return nil
}

// readTree reads a node and those below it. Paths must rise, so that no node is read twice but empty ones,
// of which there is one a level.
func (a *Archive) readTree(ctx context.Context, c cid.Cid, depth int) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if depth > maxTreeDepth {
		return fmt.Errorf("%w: the tree is deeper than %d levels", ErrInvalidArchive, maxTreeDepth)
	}
	raw, err := a.block(c)
	if err != nil {
		return err
	}
	node, err := tree.DecodeNode(raw)
	if err != nil {
		return fmt.Errorf("%w: %s: %w", ErrInvalidArchive, c, err)
	}
	if node.Left.Defined() {
		if err := a.readTree(ctx, node.Left, depth+1); err != nil {
			return err
		}
	}
	for _, e := range node.Entries {
		if err := a.addRecord(e.Path, e.Value); err != nil {
			return err
		}
		if e.Right.Defined() {
			if err := a.readTree(ctx, e.Right, depth+1); err != nil {
				return err
			}
		}
	}
	return nil
}

func (a *Archive) addRecord(path string, c cid.Cid) error {
	if n := len(a.paths); n > 0 && path <= a.paths[n-1] {
		return fmt.Errorf("%w: the path %.200q is out of order", ErrInvalidArchive, path)
	}
	value, err := a.block(c)
	if err != nil {
		return err
	}
	if err := checkRecord(path, c, value); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalidArchive, err)
	}
	a.paths, a.records[path] = append(a.paths, path), c
	return nil
}

// checkRecord tells whether a record is one that this host would have taken.
func checkRecord(path string, c cid.Cid, value []byte) error {
	if _, _, err := syntax.ParseRepoPath(path); err != nil {
		return fmt.Errorf("path %.200q: %w", path, err)
	}
	if cborCID(value) != c {
		return fmt.Errorf("%s does not have the bytes that its CID names", path)
	}
	if len(value) > MaxRecordBytes {
		return fmt.Errorf("%s has %d bytes, at most %d are allowed", path, len(value), MaxRecordBytes)
	}
	if _, err := decodeRecord(value); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}
