package upload

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"os"
	"slices"
	"strings"
	"syscall"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/internal/blobstore"
	"atcr.io/internal/oci"
)

// part is a part that arrived. Its checksum recognises a repetition, nothing more: the blob's own digest
// is what proves the bytes.
type part struct {
	size int64
	crc  uint32
}

func (p part) etag() string { return fmt.Sprintf("%x-%08x", p.size, p.crc) }

// spooledPart is a part ahead of its turn, in a file without a name; nil while it arrives.
type spooledPart struct {
	part
	file *os.File
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// summed counts and sums what is read.
type summed struct {
	r   io.Reader
	crc hash.Hash32
	n   int64
}

func newSummed(r io.Reader) *summed { return &summed{r: r, crc: crc32.New(castagnoli)} }

func (s *summed) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	s.crc.Write(p[:n])
	s.n += int64(n)
	return n, err
}

func (s *summed) part() part { return part{size: s.n, crc: s.crc.Sum32()} }

func (u *Uploads) lookID(owner syntax.DID, id string) (*session, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	s := u.byID[id]
	if s == nil || s.owner != owner || s.gone.Load() {
		return nil, ErrUnknown
	}
	if err := s.joining(); err != nil {
		return nil, err
	}
	if u.expired(s) {
		return nil, ErrUnknown
	}
	return s, nil
}

// PutPart takes part number (1 to 10,000, without gaps) and returns its etag, of at most 256 bytes. Parts
// may come a little ahead of their turn; those are lost with the process, and Complete then says so. A
// part that breaks off leaves nothing; one that is sent again with the same bytes gets the same etag.
//
// Errors: ErrUnknown, ErrPartNumber, ErrPartDiffers, ErrBusy, ErrMixed, ErrQuota, ErrTooLarge, ErrClosed,
// body's own, the storage's.
func (u *Uploads) PutPart(ctx context.Context, owner syntax.DID, id string, number int, body io.Reader) (etag string, err error) {
	s, err := u.lookID(owner, id)
	if err != nil {
		return "", err
	}
	if err := u.enter(); err != nil {
		return "", err
	}
	defer u.inflight.Done()
	if number < 1 || number > maxPartNumber {
		return "", fmt.Errorf("%w: part numbers are 1 to %d", ErrPartNumber, maxPartNumber)
	}
	s.mu.Lock()
	if err := s.claimLocked(modeParts); err != nil {
		s.mu.Unlock()
		return "", err
	}
	next := len(s.parts) + 1
	waiting := s.spool[number]
	switch {
	case number < next:
		known := s.parts[number-1]
		s.mu.Unlock()
		return repeated(body, known)
	case waiting != nil && waiting.file == nil, s.adding == number:
		s.mu.Unlock()
		return "", ErrBusy // the same part is arriving
	case waiting != nil:
		known := waiting.part
		s.mu.Unlock()
		return repeated(body, known)
	case number == next && !s.working:
		s.working, s.adding = true, number
		s.mu.Unlock()
		p, err := u.appendPart(ctx, s, body, true)
		s.mu.Lock()
		s.adding = 0
		s.mu.Unlock()
		u.release(ctx, s)
		if err != nil {
			return "", err
		}
		etag = p.etag()
	default:
		if len(s.spool) >= maxSpoolParts {
			s.mu.Unlock()
			return "", &PartNumberError{Next: next}
		}
		if s.spool == nil {
			s.spool = map[int]*spooledPart{}
		}
		s.spool[number] = &spooledPart{}
		s.mu.Unlock()
		p, err := u.spoolPart(ctx, s, number, body)
		if err != nil {
			return "", err
		}
		etag = p.etag()
	}
	if err := u.drain(ctx, s); err != nil { // this part is safe; Complete tries again, and tells
		u.log.Warn("parts wait for their turn", "upload", s.id, "error", err)
	}
	return etag, nil
}

// repeated compares a part that is sent again.
func repeated(body io.Reader, known part) (string, error) {
	again := newSummed(io.LimitReader(body, known.size+1))
	if _, err := io.Copy(io.Discard, again); err != nil {
		return "", err
	}
	if again.part() != known {
		return "", ErrPartDiffers
	}
	return known.etag(), nil
}

// appendPart appends the part whose turn it is, all of it or nothing. The caller works on s.
func (u *Uploads) appendPart(ctx context.Context, s *session, body io.Reader, metered bool) (part, error) {
	in := newSummed(body)
	if err := u.append(ctx, s, in, appendOptions{metered: metered}); err != nil {
		if cut(err) {
			u.drop(ctx, s, "cut")
		} else {
			u.suspend(s)
		}
		return part{}, err
	}
	p := in.part()
	if err := u.persist(ctx, s, &p); err != nil {
		return part{}, err
	}
	s.mu.Lock()
	s.parts = append(s.parts, p)
	s.mu.Unlock()
	return p, nil
}

// spoolPart puts a part ahead of its turn aside. Its slot is taken already.
func (u *Uploads) spoolPart(ctx context.Context, s *session, number int, body io.Reader) (part, error) {
	in := newSummed(body)
	file, err := os.CreateTemp(u.cfg.SpoolDir, "atcr-part-*")
	if err != nil {
		err = spoolError(err)
	} else {
		if err = os.Remove(file.Name()); err == nil {
			err = u.fillSpool(ctx, s, file, in)
		}
	}
	s.mu.Lock()
	if err == nil && s.ended {
		err = ErrUnknown
	}
	if err == nil {
		*s.spool[number] = spooledPart{part: in.part(), file: file}
	} else {
		delete(s.spool, number)
	}
	next := len(s.parts) + 1
	s.mu.Unlock()
	if err == nil {
		return in.part(), nil
	}
	u.unspool(s, spooledPart{part: in.part(), file: file})
	if errors.Is(err, errSpoolFull) {
		err = &PartNumberError{Next: next}
	}
	if cut(err) {
		u.giveUp(ctx, s, "cut")
	}
	return part{}, err
}

var errSpoolFull = errors.New("too much waits for its turn")

// spoolError tells a full disk from other failures of the spool.
func spoolError(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w: put part aside: %w", blobstore.ErrNoSpace, err)
	}
	return fmt.Errorf("put part aside: %w", err)
}

// fillSpool copies to file, within the limits and asking the quota.
func (u *Uploads) fillSpool(ctx context.Context, s *session, file *os.File, body io.Reader) error {
	buffer := chunks.Get().(*[intakeChunk]byte) //nolint:errcheck,forcetypeassert // nothing else is put in
	defer chunks.Put(buffer)
	var asked int64
	for {
		n, err := body.Read(buffer[:])
		u.mu.Lock()
		u.spooled += int64(n)
		full := u.spooled > maxSpoolTotal
		u.mu.Unlock()
		own := s.spooled.Add(int64(n))
		asked += int64(n)
		u.metrics.bytes.Add(float64(n))
		s.active.Store(u.now().UnixMilli())
		switch {
		case s.gone.Load():
			return ErrUnknown
		case s.stopping.Load():
			return ErrClosed
		case full || own > maxSpoolBytes:
			return errSpoolFull
		case own+s.received.Load() > u.cfg.MaxBlobBytes:
			return fmt.Errorf("%w: more than %d bytes", ErrTooLarge, u.cfg.MaxBlobBytes)
		}
		if asked >= askEvery || err != nil && asked > 0 {
			asked = 0
			if err := u.allow(ctx, s); err != nil {
				return err
			}
		}
		if _, werr := file.Write(buffer[:n]); werr != nil {
			return spoolError(werr)
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// unspool gives a spooled part's file and bytes back.
func (u *Uploads) unspool(s *session, p spooledPart) {
	if p.file != nil {
		_ = p.file.Close() // it has no name
	}
	s.spooled.Add(-p.size)
	u.mu.Lock()
	u.spooled -= p.size
	u.mu.Unlock()
}

// drain appends the parts whose turn has come, unless somebody else works on s, who will.
func (u *Uploads) drain(ctx context.Context, s *session) error {
	for {
		s.mu.Lock()
		p := s.spool[len(s.parts)+1]
		if s.working || s.ended || p == nil || p.file == nil {
			s.mu.Unlock()
			return nil
		}
		s.working = true
		s.mu.Unlock()
		err := u.drainOne(ctx, s, p)
		u.release(ctx, s)
		if err != nil {
			return err
		}
	}
}

// drainOne appends one spooled part. The caller works on s.
func (u *Uploads) drainOne(ctx context.Context, s *session, p *spooledPart) error {
	if _, err := p.file.Seek(0, io.SeekStart); err != nil {
		return err
	}
	ctx, cancel := detached(ctx)
	defer cancel()
	if _, err := u.appendPart(ctx, s, p.file, false); err != nil {
		return err
	}
	s.received.Store(s.offset)
	s.mu.Lock()
	delete(s.spool, len(s.parts))
	s.mu.Unlock()
	u.unspool(s, *p)
	return nil
}

// Complete makes the upload the blob d, of the parts given: all that were sent, each once, in any order.
// Called again within 24 h with the same digest it answers the same.
//
// The blob is unverified where the parts went straight to the storage and are too large to be hashed at
// once; the hold then goes on by itself.
//
// Errors: ErrUnknown, ErrMissingParts (the upload is kept), ErrDigestMismatch (it is gone), ErrBusy,
// ErrMixed, ErrQuota, ErrTooLarge, ErrAlgorithm, the storage's.
func (u *Uploads) Complete(ctx context.Context, owner syntax.DID, id string, d oci.Digest, parts []blobstore.Part) (Blob, error) {
	s, err := u.lookID(owner, id)
	if errors.Is(err, ErrUnknown) {
		blob, _, err := u.finishedBefore(ctx, "id", id, owner, d)
		return blob, err
	}
	if err != nil {
		return Blob{}, err
	}
	if err := u.enter(); err != nil {
		return Blob{}, err
	}
	defer u.inflight.Done()
	sorted, err := sortParts(parts)
	if err != nil {
		return Blob{}, err
	}
	if s.presigned() {
		return u.completePresigned(ctx, s, d, sorted)
	}
	if err := u.drain(ctx, s); err != nil {
		return Blob{}, err
	}
	if err := s.acquire(modeParts); err != nil {
		return Blob{}, err
	}
	defer u.release(ctx, s)
	if err := s.checkParts(sorted, d); err != nil {
		return Blob{}, err
	}
	if s.last == nil { // no part at all: the empty blob
		s.algorithm, s.hash, s.keyDigest = d.Algorithm(), nil, d
	}
	if err := u.ready(ctx, s); err != nil {
		return Blob{}, err
	}
	return u.complete(ctx, s, d)
}

// sortParts puts parts in order and checks what holds for every storage.
func sortParts(parts []blobstore.Part) ([]blobstore.Part, error) {
	if len(parts) > maxPartNumber {
		return nil, fmt.Errorf("%w: more than %d", ErrMissingParts, maxPartNumber)
	}
	sorted := slices.Clone(parts)
	slices.SortFunc(sorted, func(a, b blobstore.Part) int { return a.Number - b.Number })
	for i, p := range sorted {
		if p.Number < 1 || p.Number > maxPartNumber || p.ETag == "" || len(p.ETag) > 256 {
			return nil, fmt.Errorf("%w: part %d has no number or no etag", ErrMissingParts, p.Number)
		}
		if i > 0 && sorted[i-1].Number == p.Number {
			return nil, fmt.Errorf("%w: part %d is named twice", ErrMissingParts, p.Number)
		}
	}
	return sorted, nil
}

// checkParts compares the parts named with those that arrived. The caller works on s.
func (s *session) checkParts(named []blobstore.Part, d oci.Digest) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.spool) > 0 {
		return fmt.Errorf("%w: part %d was not sent, although later ones were", ErrMissingParts, len(s.parts)+1)
	}
	for i, p := range named {
		if p.Number != i+1 || i >= len(s.parts) {
			return fmt.Errorf("%w: part %d was not sent, or is not named", ErrMissingParts, min(i+1, p.Number))
		}
		if strings.Trim(p.ETag, `"`) != s.parts[i].etag() {
			return fmt.Errorf("%w: part %d has another etag", ErrMissingParts, p.Number)
		}
	}
	if len(named) != len(s.parts) {
		return fmt.Errorf("%w: part %d is not named", ErrMissingParts, len(named)+1)
	}
	if len(s.parts) == 0 && !d.Matches(nil) {
		return fmt.Errorf("%w: none was sent", ErrMissingParts)
	}
	return nil
}

// Cancel ends the upload and frees its bytes. Errors: ErrUnknown.
func (u *Uploads) Cancel(ctx context.Context, owner syntax.DID, id string) error {
	s, err := u.lookID(owner, id)
	if err != nil {
		return err
	}
	if err := u.enter(); err != nil {
		return err
	}
	defer u.inflight.Done()
	u.giveUp(ctx, s, "aborted")
	return nil
}
