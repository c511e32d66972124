package plc

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/internal/httpx"
)

var (
	// ErrNotFound says: the directory has no such identity.
	ErrNotFound = errors.New("the directory does not know this identity")
	// ErrUnavailable says: the directory did not answer. A retry is safe.
	ErrUnavailable = errors.New("the directory cannot be reached")
	// ErrRefused says: the directory does not take the operation, and will not.
	ErrRefused = errors.New("the directory refuses the operation")
	// ErrInvalid says: the directory's answer makes no sense.
	ErrInvalid = errors.New("the directory's answer is not valid")
)

// maxLogBytes bounds an identity's log: a thousand operations of the largest size.
const maxLogBytes = 4 << 20

// Client asks a directory and gives it operations.
type Client struct {
	// HTTP bounds the time of a call.
	HTTP *http.Client
	// URL of the directory.
	URL string
}

// Entry is an operation in an identity's log.
type Entry struct {
	Operation *Operation
	CID       string
}

// Last is the operation that counts now.
//
// Errors: ErrNotFound, ErrUnavailable, ErrInvalid.
func (c *Client) Last(ctx context.Context, did syntax.DID) (Entry, error) {
	body, err := c.do(ctx, http.MethodGet, did, "/log/audit", nil)
	if err != nil {
		return Entry{}, err
	}
	var log []struct {
		CID       string          `json:"cid"`
		Nullified bool            `json:"nullified"`
		Operation json.RawMessage `json:"operation"`
	}
	if err := json.Unmarshal(body, &log); err != nil {
		return Entry{}, fmt.Errorf("%w: the log is no JSON", ErrInvalid)
	}
	for i := len(log) - 1; i >= 0; i-- {
		if log[i].Nullified {
			continue
		}
		op, err := Parse(log[i].Operation)
		if err != nil {
			return Entry{}, fmt.Errorf("%w: %w", ErrInvalid, err)
		}
		// An operation whose name is another has something in it that is not understood here, and would be lost.
		if name, err := op.CID(); err != nil || name != log[i].CID {
			return Entry{}, fmt.Errorf("%w: the operation %.100q is not the one of that name", ErrInvalid, log[i].CID)
		}
		return Entry{op, log[i].CID}, nil
	}
	return Entry{}, ErrNotFound
}

// Submit gives the directory a signed operation.
//
// Errors: ErrUnavailable, after which it may have been taken; ErrRefused.
func (c *Client) Submit(ctx context.Context, did syntax.DID, op *Operation) error {
	raw, err := json.Marshal(op)
	if err != nil {
		return err
	}
	_, err = c.do(ctx, http.MethodPost, did, "", raw)
	return err
}

func (c *Client) do(ctx context.Context, method string, did syntax.DID, path string, in []byte) ([]byte, error) {
	if _, err := syntax.ParseDID(did.String()); err != nil { // it becomes a part of a URL
		return nil, fmt.Errorf("%w: %.100q is no DID", ErrInvalid, did)
	}
	req, err := http.NewRequestWithContext(ctx, method, strings.TrimSuffix(c.URL, "/")+"/"+did.String()+path, bytes.NewReader(in))
	if err != nil {
		return nil, err
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := c.HTTP.Do(req)
	if err != nil {
		if e, ok := errors.AsType[*url.Error](err); ok {
			err = e.Err
		}
		return nil, fmt.Errorf("%w: %s: %w", ErrUnavailable, c.URL, err)
	}
	defer func() { _ = res.Body.Close() }()
	body, err := httpx.ReadLimited(res.Body, maxLogBytes)
	switch {
	case err != nil:
		return nil, fmt.Errorf("%w: %s: %w", ErrUnavailable, c.URL, err)
	case res.StatusCode >= 200 && res.StatusCode < 300:
		return body, nil
	case res.StatusCode == http.StatusTooManyRequests || res.StatusCode >= 500:
		return nil, fmt.Errorf("%w: %s answers %s", ErrUnavailable, c.URL, res.Status)
	case method == http.MethodGet && res.StatusCode == http.StatusNotFound:
		return nil, ErrNotFound
	case method == http.MethodGet:
		return nil, fmt.Errorf("%w: %s", ErrInvalid, res.Status)
	}
	return nil, fmt.Errorf("%w: %s: %s", ErrRefused, res.Status, reason(body))
}

// reason is what the directory says, short and on one line.
func reason(body []byte) string {
	var said struct{ Message string }
	if json.Unmarshal(body, &said) != nil {
		return ""
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(said.Message[:min(len(said.Message), 300)], ""))
}
