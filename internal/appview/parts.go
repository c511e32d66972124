package appview

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/api/atcr"
	"atcr.io/internal/httpx"
	"atcr.io/internal/oci"
	"atcr.io/internal/registry"
)

const (
	partBytes   = 8 << 20
	partBuffers = 4 // at once, of all uploads: what they take of memory
	// bufferPatience is how long a sender who is slow keeps a buffer from others.
	bufferPatience = 10 * time.Second
	maxParts       = 10_000
)

// parts uploads to holds that have no uploadUrl, by parts. What has been sent of an upload is in the database, so
// that it goes on after a restart and at any process. At most partBuffers parts are in memory.
type parts struct {
	calls   *holdCalls
	holds   *holds
	kept    *partStore
	buffers chan []byte

	mu   sync.Mutex
	busy map[string]bool // uploads that a request of this process writes to
}

func newParts(calls *holdCalls, h *holds, kept *partStore) *parts {
	p := &parts{calls: calls, holds: h, kept: kept, buffers: make(chan []byte, partBuffers), busy: map[string]bool{}}
	for range partBuffers {
		p.buffers <- nil // made when first needed
	}
	return p
}

func (p *parts) begin(ctx context.Context, subject string, at syntax.DID, id string) error {
	if id == "" || len(id) > 256 {
		return noUploadOfItsOwn(at)
	}
	return p.kept.begin(ctx, subject, at, id)
}

// enter keeps other requests of this process away from an upload; those of others are found by its version.
func (p *parts) enter(t ticket) (leave func(), err error) {
	key := t.Hold.String() + " " + t.UploadID
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.busy[key] {
		return nil, errBusy()
	}
	p.busy[key] = true
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.busy, key)
	}, nil
}

func errBusy() error {
	return &oci.Error{Code: oci.CodeTooManyRequests, Message: "another request is writing to this upload", RetryAfter: time.Second}
}

func (p *parts) status(ctx context.Context, t ticket) (string, error) {
	u, err := p.kept.find(ctx, t)
	if err != nil {
		return "", err
	}
	return u.arrived(), nil
}

// append sends all full parts of what has come; the rest waits for more.
func (p *parts) append(ctx context.Context, c registry.Caller, t ticket, chunk registry.Chunk) (string, error) {
	leave, err := p.enter(t)
	if err != nil {
		return "", err
	}
	defer leave()
	u, err := p.kept.find(ctx, t)
	if err != nil {
		return "", err
	}
	if err := p.take(ctx, c, t, u, chunk, false); err != nil {
		return "", err
	}
	return u.arrived(), nil
}

// take reads a chunk into parts and sends them; with last also the one that is not full.
func (p *parts) take(ctx context.Context, c registry.Caller, t ticket, u *partUpload, chunk registry.Chunk, last bool) error {
	if !follows(chunk.ContentRange, u.offset()) {
		return outOfOrder(u.arrived())
	}
	at, err := p.holds.find(ctx, t.Hold)
	if err != nil {
		return err
	}
	for ended := false; !ended; { // a round a buffer: of slow senders others may have it in between
		if ended, err = p.fillParts(ctx, c, at, t, u, chunk, last); err != nil {
			return err
		}
	}
	return nil
}

// fillParts has a buffer for as long as the sender fills parts with it, or for a while.
func (p *parts) fillParts(ctx context.Context, c registry.Caller, at *hold, t ticket, u *partUpload, chunk registry.Chunk, last bool) (ended bool, err error) {
	buffer, err := p.buffer(ctx)
	if err != nil {
		return false, err
	}
	defer func() { p.buffers <- buffer }()
	n, err := p.kept.tail(ctx, t, u, buffer)
	if err != nil {
		return false, err
	}
	for {
		var m int
		readErr := io.EOF
		if chunk.Body != nil {
			m, readErr = fill(chunk.Body, buffer[n:], bufferPatience)
		}
		n += m
		ended = errors.Is(readErr, io.EOF)
		if readErr != nil && !ended {
			return false, p.brokenOff(readErr)
		}
		if n == partBytes || last && ended && (n > 0 || u.sent == 0) {
			if err := p.send(ctx, c, at, t, u, buffer[:n]); err != nil {
				return false, err
			}
			n = 0
		}
		if n > 0 || ended {
			return ended, p.kept.keep(ctx, t, u, buffer[:n])
		}
	}
}

// fill reads until p is full, r ends, or patience is over; a single Read may take longer, which ends by the
// deadline that r has of its own. The error is r's.
func fill(r io.Reader, p []byte, patience time.Duration) (n int, err error) {
	for since := time.Now(); n < len(p) && err == nil && (n == 0 || time.Since(since) < patience); {
		var m int
		m, err = r.Read(p[n:])
		n += m
	}
	return n, err
}

func (p *parts) brokenOff(err error) error {
	e := oci.Errorf(oci.CodeBlobUploadInvalid, "the bytes broke off: send the chunk again")
	if errors.Is(err, httpx.ErrTooSlow) {
		e.Status = http.StatusRequestTimeout
	}
	e.Err = err
	return e
}

func (p *parts) buffer(ctx context.Context) ([]byte, error) {
	select {
	case b := <-p.buffers:
		if b == nil {
			b = make([]byte, partBytes)
		}
		return b, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (p *parts) send(ctx context.Context, c registry.Caller, at *hold, t ticket, u *partUpload, raw []byte) error {
	number := u.sent + 1
	if number > maxParts {
		return &oci.Error{Code: oci.CodeSizeInvalid, Status: http.StatusRequestEntityTooLarge, Message: "the blob is too large for this hold"}
	}
	etag, err := p.calls.part(ctx, c, at, t.UploadID, number, raw)
	if err != nil {
		return err
	}
	return p.kept.sent(ctx, t, u, etag, int64(len(raw)))
}

// finish sends what is left and has the hold compare the digest.
func (p *parts) finish(ctx context.Context, c registry.Caller, t ticket, d oci.Digest, chunk registry.Chunk) error {
	leave, err := p.enter(t)
	if err != nil {
		return err
	}
	defer leave()
	u, err := p.kept.find(ctx, t)
	if err != nil {
		return err
	}
	if err := p.take(ctx, c, t, u, chunk, true); err != nil {
		return err
	}
	at, err := p.holds.find(ctx, t.Hold)
	if err != nil {
		return err
	}
	sent, err := p.kept.list(ctx, t)
	if err != nil {
		return err
	}
	var out atcr.HoldCompleteUploadOutput
	err = p.calls.call(ctx, c, at, atcr.HoldCompleteUploadNSID, atcr.HoldCompleteUploadInput{
		UploadId: t.UploadID, Digest: d.String(), Parts: sent,
	}, &out)
	if err != nil {
		return err
	}
	if out.Status != "completed" || out.Digest != d.String() {
		return oci.Unavailable(http.StatusBadGateway, nil, "the hold %s does not say that it has the blob with that digest", t.Hold)
	}
	return p.kept.forget(context.WithoutCancel(ctx), t)
}

func (p *parts) cancel(ctx context.Context, c registry.Caller, t ticket) error {
	if _, err := p.kept.find(ctx, t); err != nil {
		return err
	}
	at, err := p.holds.find(ctx, t.Hold)
	if err != nil {
		return err
	}
	if err := p.kept.forget(ctx, t); err != nil {
		return err
	}
	return p.calls.call(ctx, c, at, atcr.HoldAbortUploadNSID, atcr.HoldAbortUploadInput{UploadId: t.UploadID}, nil)
}

// follows tells whether a chunk begins at offset; one that does not say is believed to.
func follows(contentRange string, offset int64) bool {
	if contentRange == "" {
		return true
	}
	text := strings.TrimPrefix(contentRange, "bytes ")
	start, _, ok := strings.Cut(text, "-")
	n, err := strconv.ParseInt(start, 10, 64)
	return ok && err == nil && n == offset
}
