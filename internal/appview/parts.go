package appview

import (
	"bytes"
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
	openParts   = 1000
	openOwn     = 100       // of one person: contract, uploads a caller
	partsIdle   = time.Hour // an upload without bytes for so long is forgotten
	// tailBytes bounds what all uploads together have waiting for more.
	tailBytes = 64 << 20
	// bufferPatience is how long a sender who is slow keeps a buffer from others.
	bufferPatience = 10 * time.Second
	maxParts       = 10_000
)

// parts uploads to holds that have no uploadUrl, by parts. What has been sent of an upload is known to this
// process alone: after a restart such an upload is begun anew. At most partBuffers parts are in memory.
type parts struct {
	calls   *holdCalls
	holds   *holds
	clock   clock
	buffers chan []byte

	mu    sync.Mutex
	open  map[string]*partUpload // by hold and upload id
	tails int64                  // bytes in tails
}

type partUpload struct {
	busy    sync.Mutex
	subject string

	mu   sync.Mutex
	used time.Time
	size int64 // that the hold has
	sent []atcr.HoldCompleteUploadPart
	tail []byte // bytes that do not fill a part yet
}

func newParts(calls *holdCalls, h *holds, now clock) *parts {
	p := &parts{calls: calls, holds: h, clock: now, buffers: make(chan []byte, partBuffers), open: map[string]*partUpload{}}
	for range partBuffers {
		p.buffers <- nil // made when first needed
	}
	return p
}

func partsKey(at syntax.DID, id string) string { return at.String() + " " + id }

func (p *parts) begin(subject string, at syntax.DID, id string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.clock()
	for key, u := range p.open {
		if now.Sub(u.lastUsed()) > partsIdle {
			p.drop(key)
		}
	}
	own := 0
	for _, u := range p.open {
		if u.subject == subject {
			own++
		}
	}
	if own >= openOwn || len(p.open) >= openParts {
		return &oci.Error{Code: oci.CodeTooManyRequests, Message: "too many uploads are open: try again later", RetryAfter: time.Minute}
	}
	if id == "" || len(id) > 256 || p.open[partsKey(at, id)] != nil {
		return oci.Unavailable(http.StatusBadGateway, nil, "the hold %s answered without an upload of its own", at)
	}
	p.open[partsKey(at, id)] = &partUpload{subject: subject, used: now}
	return nil
}

func (p *parts) find(t ticket) (*partUpload, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	u := p.open[partsKey(t.Hold, t.UploadID)]
	if u == nil || u.subject != t.Subject {
		return nil, oci.Errorf(oci.CodeBlobUploadUnknown, "there is no such upload (any more): begin a new one")
	}
	return u, nil
}

func (p *parts) forget(t ticket) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.drop(partsKey(t.Hold, t.UploadID))
}

// drop is called with p.mu held.
func (p *parts) drop(key string) {
	if u := p.open[key]; u != nil {
		delete(p.open, key)
		u.mu.Lock()
		defer u.mu.Unlock()
		p.tails -= int64(len(u.tail))
		u.tail = nil
	}
}

// keep holds the bytes back that do not fill a part.
func (p *parts) keep(t ticket, u *partUpload, tail []byte) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.open[partsKey(t.Hold, t.UploadID)] != u {
		return oci.Errorf(oci.CodeBlobUploadUnknown, "the upload was cancelled")
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	grows := int64(len(tail) - len(u.tail))
	if grows > 0 && p.tails+grows > tailBytes {
		return &oci.Error{Code: oci.CodeTooManyRequests, Message: "too many uploads are open: try again later", RetryAfter: time.Minute}
	}
	p.tails += grows
	u.tail = append([]byte(nil), tail...)
	u.used = p.clock()
	return nil
}

func (u *partUpload) lastUsed() time.Time {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.used
}

func (u *partUpload) copyTail(to []byte) int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return copy(to, u.tail)
}

func (u *partUpload) arrived() string {
	u.mu.Lock()
	defer u.mu.Unlock()
	return "0-" + strconv.FormatInt(max(u.size+int64(len(u.tail))-1, 0), 10)
}

func (u *partUpload) offset() int64 {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.size + int64(len(u.tail))
}

func (p *parts) status(t ticket) (string, error) {
	u, err := p.find(t)
	if err != nil {
		return "", err
	}
	return u.arrived(), nil
}

// append sends all full parts of what has come; the rest waits for more.
func (p *parts) append(ctx context.Context, c registry.Caller, t ticket, chunk registry.Chunk) (string, error) {
	u, err := p.find(t)
	if err != nil {
		return "", err
	}
	if !u.busy.TryLock() {
		return "", &oci.Error{Code: oci.CodeTooManyRequests, Message: "another request is writing to this upload", RetryAfter: time.Second}
	}
	defer u.busy.Unlock()
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
	buffer, err := p.buffer(ctx)
	if err != nil {
		return err
	}
	held := true
	defer func() {
		if held {
			p.buffers <- buffer
		}
	}()
	for {
		n := u.copyTail(buffer)
		m, readErr := 0, io.EOF
		if chunk.Body != nil {
			m, readErr = fill(chunk.Body, buffer[n:], bufferPatience)
		}
		n += m
		ended := errors.Is(readErr, io.EOF)
		if readErr != nil && !ended {
			return p.brokenOff(readErr)
		}
		if n == partBytes || last && ended && (n > 0 || len(u.sent) == 0) {
			if err := p.send(ctx, c, at, t, u, buffer[:n]); err != nil {
				return err
			}
			n = 0
		}
		if err := p.keep(t, u, buffer[:n]); err != nil {
			return err
		}
		if ended {
			return nil
		}
		if n > 0 { // the sender is slow: others may have the buffer first
			p.buffers <- buffer
			if buffer, err = p.buffer(ctx); err != nil {
				held = false
				return err
			}
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
	number := len(u.sent) + 1
	if number > maxParts {
		return &oci.Error{Code: oci.CodeSizeInvalid, Status: http.StatusRequestEntityTooLarge, Message: "the blob is too large for this hold"}
	}
	etag, err := p.calls.part(ctx, c, at, t.UploadID, number, bytes.NewReader(raw), int64(len(raw)))
	if err != nil {
		return err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.sent = append(u.sent, atcr.HoldCompleteUploadPart{PartNumber: int64(number), Etag: etag})
	u.size += int64(len(raw))
	return nil
}

// finish sends what is left and has the hold compare the digest.
func (p *parts) finish(ctx context.Context, c registry.Caller, t ticket, d oci.Digest, chunk registry.Chunk) error {
	u, err := p.find(t)
	if err != nil {
		return err
	}
	if !u.busy.TryLock() {
		return &oci.Error{Code: oci.CodeTooManyRequests, Message: "another request is writing to this upload", RetryAfter: time.Second}
	}
	defer u.busy.Unlock()
	if err := p.take(ctx, c, t, u, chunk, true); err != nil {
		return err
	}
	at, err := p.holds.find(ctx, t.Hold)
	if err != nil {
		return err
	}
	var out atcr.HoldCompleteUploadOutput
	err = p.calls.call(ctx, c, at, atcr.HoldCompleteUploadNSID, atcr.HoldCompleteUploadInput{
		UploadId: t.UploadID, Digest: d.String(), Parts: u.sent,
	}, &out)
	if err != nil {
		return err
	}
	if out.Status != "completed" || out.Digest != d.String() {
		return oci.Unavailable(http.StatusBadGateway, nil, "the hold %s does not say that it has the blob with that digest", t.Hold)
	}
	p.forget(t)
	return nil
}

func (p *parts) cancel(ctx context.Context, c registry.Caller, t ticket) error {
	if _, err := p.find(t); err != nil {
		return err
	}
	at, err := p.holds.find(ctx, t.Hold)
	if err != nil {
		return err
	}
	p.forget(t)
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
