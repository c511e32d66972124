package xrpc

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"atcr.io/internal/httpx"
)

// Upstream calls methods of servers that others run: slow, down, wrong or endless ones included. Client
// bounds the time; Upstream bounds the size, and follows no redirect that Client does not.
type Upstream struct {
	Client *http.Client
}

// UpstreamCall is one call of a method.
type UpstreamCall struct {
	Base        string // scheme and host
	NSID        string
	Method      string // default GET, or POST where there is a body
	Query       url.Values
	Token       string // bearer token; "" none
	Body        io.Reader
	Size        int64 // of Body; -1 where unknown
	ContentType string
	Header      http.Header
	Limit       int64 // of the answer, in bytes; default MaxJSONBytes
}

// JSONCall is a POST of in.
func JSONCall(base, nsid, token string, in any) (UpstreamCall, error) {
	body, err := json.Marshal(in)
	if err != nil {
		return UpstreamCall{}, fmt.Errorf("encode %s: %w", nsid, err)
	}
	return UpstreamCall{
		Base: base, NSID: nsid, Method: http.MethodPost, Token: token,
		Body: bytes.NewReader(body), Size: int64(len(body)), ContentType: "application/json",
	}, nil
}

// UpstreamError is an answer that is no success, or none at all (Status 0). Name and Message are the other
// server's words: bounded, but not to be trusted.
type UpstreamError struct {
	Host       string
	NSID       string
	Status     int
	Name       string
	Message    string
	RetryAfter time.Duration
	Header     http.Header // the answer's; nil where there is none
	Timeout    bool        // no answer in time
	Invalid    bool        // an answer that the protocol does not know: garbage, too long, a redirect
	Err        error
}

func (e *UpstreamError) Error() string {
	text := e.Host + " " + e.NSID
	if e.Status != 0 {
		text += fmt.Sprintf(": status %d", e.Status)
	}
	if e.Name != "" {
		text += ": " + e.Name + ": " + e.Message
	}
	if e.Err != nil {
		text += ": " + e.Err.Error()
	}
	return text
}

func (e *UpstreamError) Unwrap() error { return e.Err }

// IsUpstream tells whether err is an UpstreamError with one of these names.
func IsUpstream(err error, names ...string) bool {
	e, ok := errors.AsType[*UpstreamError](err)
	if !ok {
		return false
	}
	for _, name := range names {
		if e.Name == name {
			return true
		}
	}
	return false
}

// JSON calls a method and decodes its answer into out (nil: not looked at). Errors: *UpstreamError.
func (u Upstream) JSON(ctx context.Context, c UpstreamCall, out any) error {
	body, _, err := u.Bytes(ctx, c)
	if err != nil || out == nil {
		return err
	}
	if err := decodeJSON(body, out); err != nil {
		return &UpstreamError{Host: HostOf(c.Base), NSID: c.NSID, Status: http.StatusOK, Invalid: true, Err: fmt.Errorf("the answer is not the expected JSON: %w", err)}
	}
	return nil
}

// Bytes calls a method and returns its answer whole. Errors: *UpstreamError.
func (u Upstream) Bytes(ctx context.Context, c UpstreamCall) ([]byte, http.Header, error) {
	res, err := u.Do(ctx, c)
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = res.Body.Close() }()
	limit := c.Limit
	if limit == 0 {
		limit = MaxJSONBytes
	}
	if res.ContentLength > limit {
		return nil, nil, &UpstreamError{Host: HostOf(c.Base), NSID: c.NSID, Status: res.StatusCode, Invalid: true, Err: httpx.ErrTooLarge}
	}
	body, err := httpx.ReadLimited(res.Body, limit)
	if err != nil {
		return nil, nil, TransportError(c.Base, c.NSID, err)
	}
	return body, res.Header, nil
}

// Do calls a method; a 2xx answer is returned with its body open. Errors: *UpstreamError.
func (u Upstream) Do(ctx context.Context, c UpstreamCall) (*http.Response, error) {
	req, err := c.request(ctx)
	if err != nil {
		e := TransportError(c.Base, c.NSID, err)
		e.Invalid = true
		return nil, e
	}
	res, err := u.Client.Do(req)
	if err != nil {
		return nil, TransportError(c.Base, c.NSID, err)
	}
	if res.StatusCode >= 200 && res.StatusCode < 300 {
		return res, nil
	}
	defer func() { _ = res.Body.Close() }()
	return nil, AnswerError(c.Base, c.NSID, res)
}

func (c *UpstreamCall) request(ctx context.Context) (*http.Request, error) {
	method := c.Method
	if method == "" {
		method = http.MethodGet
		if c.Body != nil {
			method = http.MethodPost
		}
	}
	target := strings.TrimSuffix(c.Base, "/") + "/xrpc/" + c.NSID
	if len(c.Query) > 0 {
		target += "?" + c.Query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, method, target, c.Body)
	if err != nil {
		return nil, err
	}
	for name, values := range c.Header {
		req.Header[name] = values
	}
	if c.Body != nil {
		req.ContentLength = c.Size
		req.Header.Set("Content-Type", c.ContentType)
	}
	if c.Token != "" {
		req.Header.Set("Authorization", "Bearer "+c.Token)
	}
	req.Header.Set("Accept", "*/*")
	return req, nil
}

// TransportError tells of a request to base that got no answer, or none that could be read whole. what names
// the method.
func TransportError(base, what string, err error) *UpstreamError {
	e := &UpstreamError{Host: HostOf(base), NSID: what, Err: err}
	if urlErr, ok := errors.AsType[*url.Error](err); ok {
		e.Err = urlErr.Err // without the URL, which may hold a secret
	}
	netErr, isNet := errors.AsType[net.Error](err)
	e.Timeout = errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) || isNet && netErr.Timeout()
	e.Invalid = errors.Is(err, httpx.ErrTooLarge) || errors.Is(err, httpx.ErrForbiddenAddress) || errors.Is(err, httpx.ErrInsecureURL)
	return e
}

const (
	maxErrorBytes   = 16 << 10
	maxErrorMessage = 300
)

// AnswerError tells of an answer that is no success, with the server's words where it says them in XRPC's
// form or in OAuth's. The body is read, not closed.
func AnswerError(base, what string, res *http.Response) *UpstreamError {
	e := &UpstreamError{Host: HostOf(base), NSID: what, Status: res.StatusCode, RetryAfter: retryAfter(res), Header: res.Header}
	e.Invalid = res.StatusCode < 400 // a redirect, or stranger
	if e.Invalid {
		e.Err = errors.New("the server redirects")
		return e
	}
	body, err := io.ReadAll(io.LimitReader(res.Body, maxErrorBytes))
	if err != nil {
		return e
	}
	var envelope struct {
		Error, Message string
		Description    string `json:"error_description"`
	}
	if json.Unmarshal(body, &envelope) == nil {
		if envelope.Message == "" {
			envelope.Message = envelope.Description
		}
		e.Name, e.Message = clean(envelope.Error, 64), clean(envelope.Message, maxErrorMessage)
	}
	return e
}

// clean keeps other people's text short and on one line.
func clean(s string, limit int) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	if len(s) > limit {
		s = strings.ToValidUTF8(s[:limit], "") + "…"
	}
	return s
}

// retryAfter reads Retry-After, or at 429 RateLimit-Reset as PDSes send it (seconds of the Unix clock, with
// every answer), bounded to a day.
func retryAfter(res *http.Response) time.Duration {
	var d time.Duration
	if n, err := strconv.ParseInt(res.Header.Get("Retry-After"), 10, 32); err == nil {
		d = time.Duration(n) * time.Second
	} else if t, err := http.ParseTime(res.Header.Get("Retry-After")); err == nil {
		d = time.Until(t)
	} else if n, err := strconv.ParseInt(res.Header.Get("RateLimit-Reset"), 10, 64); err == nil && res.StatusCode == http.StatusTooManyRequests {
		d = time.Until(time.Unix(n, 0))
	}
	return min(max(d, 0), 24*time.Hour)
}

// HostOf is the host of a base URL, for messages.
func HostOf(base string) string {
	if u, err := url.Parse(base); err == nil && u.Host != "" {
		return u.Host
	}
	return base
}
