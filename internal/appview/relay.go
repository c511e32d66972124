package appview

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"atcr.io/api/atcr"
	"atcr.io/internal/httpx"
	"atcr.io/internal/oci"
	"atcr.io/internal/registry"
)

// relay passes upload calls on to a hold's uploadUrl, which speaks them too. Memory does not grow with the
// blob: bytes go from one connection to the other.
type relay struct {
	client   *http.Client // without a total timeout
	testMode bool
	patience time.Duration // with a hold that stalls; 0: holdPatience
}

// patch sends a chunk and returns the range that has arrived.
func (l *relay) patch(ctx context.Context, t *ticket, chunk registry.Chunk) (string, error) {
	query := url.Values{}
	if chunk.Algorithm != "" {
		query.Set("digest-algorithm", chunk.Algorithm)
	}
	res, err := l.send(ctx, http.MethodPatch, t, query, chunk)
	if err != nil {
		return "", err
	}
	defer drain(res)
	return l.arrived(t, res)
}

func (l *relay) get(ctx context.Context, t *ticket) (string, error) {
	res, err := l.send(ctx, http.MethodGet, t, nil, registry.Chunk{})
	if err != nil {
		return "", err
	}
	defer drain(res)
	return l.arrived(t, res)
}

// put sends the last chunk. joining: the hold has the bytes, and its storage has yet to make an object of them.
func (l *relay) put(ctx context.Context, t *ticket, d oci.Digest, chunk registry.Chunk) (joining bool, err error) {
	res, err := l.send(ctx, http.MethodPut, t, url.Values{"digest": {d.String()}}, chunk)
	if err != nil {
		return false, err
	}
	defer drain(res)
	if said := res.Header.Get("Docker-Content-Digest"); said != d.String() {
		return false, l.senseless(t, errors.New("the hold does not say that it has the blob with that digest"))
	}
	return res.Header.Get(atcr.JoiningHeader) != "", nil
}

func (l *relay) delete(ctx context.Context, t *ticket) error {
	res, err := l.send(ctx, http.MethodDelete, t, nil, registry.Chunk{})
	if err != nil {
		return err
	}
	drain(res)
	return nil
}

// arrived reads how far the upload is, and where it goes on.
func (l *relay) arrived(t *ticket, res *http.Response) (string, error) {
	if location := res.Header.Get("Location"); location != "" {
		next, err := res.Request.URL.Parse(location)
		if err != nil || next.Host != res.Request.URL.Host || httpx.CheckURL(next, l.testMode) != nil {
			return "", l.senseless(t, errors.New("the upload goes on at another host"))
		}
		t.URL = next.String()
	}
	r := res.Header.Get("Range")
	if r == "" {
		r = emptyRange
	}
	if start, end, ok := strings.Cut(r, "-"); !ok || start != "0" || !digits(end) {
		return "", l.senseless(t, errors.New("the hold answered with a Range of another form"))
	}
	return r, nil
}

func digits(s string) bool {
	return s != "" && len(s) < 20 && !strings.ContainsFunc(s, func(r rune) bool { return r < '0' || r > '9' })
}

func (l *relay) send(ctx context.Context, method string, t *ticket, query url.Values, chunk registry.Chunk) (*http.Response, error) {
	target, err := url.Parse(t.URL)
	if err != nil {
		return nil, l.senseless(t, err)
	}
	all := target.Query()
	for k, v := range query {
		all[k] = v
	}
	target.RawQuery = all.Encode()
	within, cancel := context.WithCancelCause(ctx)
	watch := l.watchdog(func() { cancel(errStalled) })
	body := &sentBody{from: chunk.Body, watch: watch}
	end := func() { watch.pause(); cancel(nil) }
	req, err := http.NewRequestWithContext(within, method, target.String(), http.NoBody)
	if err != nil {
		end()
		return nil, l.senseless(t, err)
	}
	if chunk.Body != nil && chunk.Size != 0 {
		req.Body, req.ContentLength = io.NopCloser(body), chunk.Size
		req.Header.Set("Content-Type", "application/octet-stream")
	}
	if chunk.ContentRange != "" {
		req.Header.Set("Content-Range", chunk.ContentRange)
	}
	res, err := l.client.Do(req)
	if err != nil {
		err = errors.Join(err, context.Cause(within))
		end()
		return nil, l.failed(ctx, t, body, err)
	}
	watch.resume() // for the answer's own bytes
	res.Body = &watched{res.Body, end}
	if res.StatusCode == done[method] {
		return res, nil
	}
	defer drain(res)
	if res.StatusCode/100 == 2 { // a page of some proxy's, perhaps: nothing to call a push done for
		return nil, l.senseless(t, errors.New(method+" was answered with "+res.Status))
	}
	return nil, l.refused(t, res)
}

// holdPatience is how long a hold may take no byte of a body, or give none of an answer.
const holdPatience = time.Minute

var errStalled = errors.New("the hold takes no more bytes")

// watchdog bites when it was the hold's turn for too long.
type watchdog struct {
	timer    *time.Timer
	patience time.Duration
}

func (l *relay) watchdog(bite func()) *watchdog {
	patience := cmp.Or(l.patience, holdPatience)
	return &watchdog{time.AfterFunc(patience, bite), patience}
}

func (w *watchdog) pause() {
	if w != nil {
		w.timer.Stop()
	}
}

func (w *watchdog) resume() {
	if w != nil {
		w.timer.Reset(w.patience)
	}
}

// watched is an answer's body whose end is the end of the watch over it.
type watched struct {
	io.ReadCloser
	end func()
}

func (w *watched) Close() error {
	defer w.end()
	return w.ReadCloser.Close()
}

// done are the statuses that say that a call was done.
//
// Source: contract, "uploadUrl".
var done = map[string]int{
	http.MethodPatch: http.StatusAccepted, http.MethodPut: http.StatusCreated, http.MethodGet: http.StatusNoContent, http.MethodDelete: http.StatusNoContent,
}

// failed tells a client that broke off from a hold that did.
func (l *relay) failed(ctx context.Context, t *ticket, body *sentBody, err error) error {
	if cause := body.failure(); cause != nil || ctx.Err() != nil {
		e := oci.Errorf(oci.CodeBlobUploadInvalid, "the bytes broke off; what came is kept")
		if errors.Is(cause, httpx.ErrTooSlow) {
			e = &oci.Error{Code: oci.CodeBlobUploadInvalid, Status: http.StatusRequestTimeout, Message: "the bytes came too slowly; what came is kept"}
		}
		e.Err = errors.Join(cause, ctx.Err())
		return e
	}
	stalled := errors.Is(err, errStalled)
	if urlErr, ok := errors.AsType[*url.Error](err); ok {
		err = urlErr.Err // without the URL, which is a secret
	}
	status := http.StatusServiceUnavailable
	if stalled {
		status = http.StatusGatewayTimeout
	}
	if netErr, ok := errors.AsType[net.Error](err); ok && netErr.Timeout() {
		status = http.StatusGatewayTimeout
	}
	e := oci.Unavailable(status, err, "the hold %s cannot be reached: try again in a moment", t.Hold)
	e.RetryAfter = retryHint
	return e
}

func (l *relay) senseless(t *ticket, err error) error {
	return oci.Unavailable(http.StatusBadGateway, err, "the hold %s answered something that makes no sense", t.Hold)
}

// relayed are the hold's error codes that are passed on, with the status that goes with each.
var relayed = map[oci.Code]bool{
	oci.CodeBlobUploadInvalid: true, oci.CodeBlobUploadUnknown: true, oci.CodeDigestInvalid: true, oci.CodeSizeInvalid: true,
	oci.CodeDenied: true, oci.CodeTooManyRequests: true, oci.CodeUnsupported: true,
}

// refused puts a hold's refusal into an answer of ours.
func (l *relay) refused(t *ticket, res *http.Response) error {
	// Without a Range the hold could not read the Content-Range, and says so in words.
	if res.StatusCode == http.StatusRequestedRangeNotSatisfiable && res.Header.Get("Range") != "" {
		arrived, err := l.arrived(t, res)
		if err != nil {
			return err
		}
		return outOfOrder(arrived)
	}
	var body struct {
		Errors []struct {
			Code    oci.Code `json:"code"`
			Message string   `json:"message"`
			Detail  any      `json:"detail"`
		} `json:"errors"`
	}
	raw, err := io.ReadAll(io.LimitReader(res.Body, 16<<10))
	if err == nil {
		err = json.Unmarshal(raw, &body)
	}
	if err != nil || len(body.Errors) == 0 || !relayed[body.Errors[0].Code] || res.StatusCode < 400 {
		status := http.StatusBadGateway
		if res.StatusCode == http.StatusServiceUnavailable || res.StatusCode == http.StatusInsufficientStorage {
			status = res.StatusCode
		}
		e := oci.Unavailable(status, errors.New(res.Status), "the hold %s cannot take the blob now", t.Hold)
		if len(body.Errors) > 0 && status != http.StatusBadGateway {
			e.Message += ": " + short(body.Errors[0].Message)
		}
		e.RetryAfter = retryHint
		return e
	}
	said := body.Errors[0]
	e := &oci.Error{Code: said.Code, Message: short(said.Message), Status: res.StatusCode}
	if text, ok := said.Detail.(string); ok {
		e.Detail = short(text)
	}
	if n, err := strconv.Atoi(res.Header.Get("Retry-After")); err == nil && n > 0 {
		e.RetryAfter = time.Duration(min(n, 3600)) * time.Second
	}
	return e
}

// short bounds other people's words.
func short(s string) string {
	s = strings.ToValidUTF8(s, "?")
	if len(s) > 300 {
		s = strings.ToValidUTF8(s[:300], "") + "…"
	}
	return s
}

// sentBody remembers why the client's body could not be read, and has the hold watched while it is the hold's turn.
type sentBody struct {
	from  io.Reader
	watch *watchdog // may be nil
	mu    sync.Mutex
	err   error
}

func (b *sentBody) Read(p []byte) (int, error) {
	b.watch.pause()
	n, err := b.from.Read(p)
	b.watch.resume()
	if err != nil && err != io.EOF { //nolint:errorlint // readers return it as it is
		b.mu.Lock()
		b.err = err
		b.mu.Unlock()
	}
	return n, err
}

// relayBytes is how much is sent on at a time: clients send chunks of 32 KiB, and each costs a frame and a
// system call at either end.
const relayBytes = 256 << 10

// relayPatience bounds how long bytes wait for more to travel with.
const relayPatience = 20 * time.Millisecond

var relayBuffers = sync.Pool{New: func() any { return new([relayBytes]byte) }}

// WriteTo sends what comes in larger pieces than it came.
func (b *sentBody) WriteTo(w io.Writer) (sent int64, err error) {
	buffer := relayBuffers.Get().(*[relayBytes]byte) //nolint:errcheck,forcetypeassert // nothing else is put in
	defer relayBuffers.Put(buffer)
	for err == nil {
		n := 0
		for since := time.Now(); err == nil && n < relayBytes && (n == 0 || time.Since(since) < relayPatience); {
			var m int
			m, err = b.Read(buffer[n:])
			n += m
		}
		if n == 0 {
			continue
		}
		m, writeErr := w.Write(buffer[:n])
		sent += int64(m)
		if writeErr != nil {
			return sent, writeErr
		}
	}
	if err == io.EOF { //nolint:errorlint // readers return it as it is
		err = nil
	}
	return sent, err
}

func (b *sentBody) failure() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.err
}

// drain lets the connection be used again.
func drain(res *http.Response) {
	_, _ = io.Copy(io.Discard, io.LimitReader(res.Body, 64<<10))
	_ = res.Body.Close()
}
