package upload

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/bluesky-social/indigo/atproto/syntax"
)

// intakeChunk is how much is copied at a time where bytes wait in a file for their turn.
const intakeChunk = 64 << 10

var chunks = sync.Pool{New: func() any { return new([intakeChunk]byte) }}

// intake is the body as the Writer reads it: on the way it is hashed, counted, and cut at the limits.
//
// It is hashed by who reads, while the bytes are still in that processor's cache and another writes those before: a
// goroutine of its own for the hash would need a copy of everything.
type intake struct {
	ctx     context.Context
	u       *Uploads
	s       *session
	body    io.Reader
	metered bool

	budget int64 // until the next checkpoint: io.EOF then, err stays nil
	read   int64 // bytes handed to the Writer in this turn
	err    error // why no more come; io.EOF at the end of body, which is done then
	done   bool
	asked  int64 // bytes since Allow was asked
}

func newIntake(ctx context.Context, u *Uploads, s *session, body io.Reader, metered bool) *intake {
	return &intake{ctx: ctx, u: u, s: s, body: body, metered: metered}
}

func (in *intake) Read(p []byte) (int, error) {
	if in.err != nil {
		return 0, in.err
	}
	if in.budget == 0 {
		return 0, io.EOF
	}
	switch {
	case in.s.gone.Load():
		in.err = ErrUnknown
	case in.s.stopping.Load():
		in.err = ErrClosed
	}
	if in.err != nil {
		return 0, in.err
	}
	n, err := in.body.Read(p[:min(int64(len(p)), in.budget)])
	in.budget -= int64(n)
	in.read += int64(n)
	in.s.hash.Write(p[:n])
	last := err != nil
	if in.done = err == io.EOF; in.done || err == nil {
		in.err = err
	} else {
		in.err = fmt.Errorf("%w: %w", ErrBrokenOff, err)
	}
	if limit := in.meter(n, last); limit != nil {
		in.err, in.done = limit, false
	}
	return n, in.err
}

const askEvery = 1 << 20

// meter counts n new bytes and asks whether they may be.
func (in *intake) meter(n int, last bool) error {
	if !in.metered {
		return nil
	}
	in.asked += int64(n)
	if n > 0 {
		in.u.metrics.bytes.Add(float64(n))
		in.s.active.Store(in.u.now().UnixMilli())
		if in.s.received.Add(int64(n)) > in.u.cfg.MaxBlobBytes {
			return fmt.Errorf("%w: more than %d bytes", ErrTooLarge, in.u.cfg.MaxBlobBytes)
		}
	}
	if in.asked == 0 || in.asked < askEvery && !last {
		return nil
	}
	in.asked = 0
	return in.u.allow(in.ctx, in.s)
}

// allow asks the hook whether the owner of s may have what they have in unfinished uploads.
func (u *Uploads) allow(ctx context.Context, s *session) error {
	if u.cfg.Allow == nil {
		return nil
	}
	var sum int64
	u.mu.Lock()
	for _, other := range u.byID {
		if other.owner == s.owner {
			sum += other.received.Load() + other.spooled.Load()
		}
	}
	u.mu.Unlock()
	err := u.cfg.Allow(ctx, s.owner, sum)
	if _, ok := errors.AsType[*Refused](err); ok {
		return fmt.Errorf("%w: %w", ErrQuota, err)
	}
	return err
}

// Refused is why the owner of an upload may not have it: a sentence for them.
type Refused struct{ Reason string }

func (r *Refused) Error() string { return r.Reason }

// Arriving calls fn with the bytes of each unfinished upload.
func (u *Uploads) Arriving(fn func(owner syntax.DID, bytes int64)) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, s := range u.byID {
		fn(s.owner, s.received.Load()+s.spooled.Load())
	}
}
