package appview

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"atcr.io/internal/httpx"
	"atcr.io/internal/oci"
	"atcr.io/internal/registry"
	"atcr.io/internal/xrpc"
)

const (
	namesFresh  = 5 * time.Minute
	namesFailed = 30 * time.Second
)

// targets judges where a hold sends clients: a URL is somebody else's word.
type targets struct {
	own      string // the registry's host name
	testMode bool
	names    *cache[string, struct{}] // that lead to public addresses
}

func newTargets(baseURL string, testMode bool, resolve func(ctx context.Context, network, host string) ([]netip.Addr, error), now clock) (*targets, error) {
	u, err := url.Parse(baseURL)
	if err != nil {
		return nil, err
	}
	t := &targets{own: hostName(u), testMode: testMode}
	t.names = newCache(1000, namesFresh, namesFailed, now, func(ctx context.Context, name string) (struct{}, error) {
		found, err := resolve(ctx, "ip", name)
		if err != nil {
			return struct{}{}, fmt.Errorf("look up %s: %w", name, err)
		}
		for _, ip := range found {
			if !httpx.PublicAddress(ip) {
				return struct{}{}, fmt.Errorf("%w: %s", httpx.ErrForbiddenAddress, name)
			}
		}
		return struct{}{}, nil
	})
	return t, nil
}

func hostName(u *url.URL) string { return strings.TrimSuffix(strings.ToLower(u.Hostname()), ".") }

// check refuses a URL that no client should be sent to: not https, with credentials, or at an address that is not
// public, by its name or by what the name leads to. at's own host was asked by us, and so is public.
func (t *targets) check(ctx context.Context, at *hold, text string) error {
	u, err := url.Parse(text)
	if err != nil {
		return errors.New("the URL cannot be read") // which may be a secret
	}
	if err := httpx.CheckURL(u, t.testMode); err != nil || t.testMode {
		return err
	}
	if _, err := netip.ParseAddr(u.Hostname()); err == nil || u.Hostname() == xrpcHostName(at.URL) {
		return nil
	}
	_, err = t.names.get(ctx, hostName(u))
	return err
}

func xrpcHostName(base string) string {
	host := xrpc.HostOf(base)
	if name, _, err := net.SplitHostPort(host); err == nil {
		return name
	}
	return host
}

// takesCredentials tells whether clients that are sent to target take along the token that they have for us: HTTP
// libraries do on the same host name, whatever the port, and below it.
//
// Source: net/http, Client, "When following redirects".
func (t *targets) takesCredentials(target string) bool {
	u, err := url.Parse(target)
	if err != nil {
		return true
	}
	name := hostName(u)
	return name == t.own || strings.HasSuffix(name, "."+t.own)
}

// Fetch gets the bytes that a client is not sent to. Nothing of the client goes along but the range that it wants.
func (b *blobs) Fetch(ctx context.Context, p registry.Place, want http.Header) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.URL, nil)
	if err != nil {
		return nil, oci.Unavailable(http.StatusBadGateway, errors.New("no URL"), "the hold answered something that makes no sense")
	}
	for _, name := range []string{"Range", "If-Range"} {
		if v := want.Get(name); v != "" {
			req.Header.Set(name, v)
		}
	}
	req.Header.Set("Accept-Encoding", "identity")
	res, err := b.through.Do(req)
	if err != nil {
		if urlErr, ok := errors.AsType[*url.Error](err); ok {
			err = urlErr.Err // without the URL, which is a secret
		}
		e := oci.Unavailable(http.StatusServiceUnavailable, err, "%s, which has the blob, cannot be reached: try again in a moment", req.URL.Host)
		e.RetryAfter = retryHint
		return nil, e
	}
	switch res.StatusCode {
	case http.StatusOK, http.StatusPartialContent, http.StatusRequestedRangeNotSatisfiable:
		return res, nil
	}
	drain(res)
	if res.StatusCode == http.StatusNotFound {
		return nil, oci.Errorf(oci.CodeBlobUnknown, "%s does not have the blob", req.URL.Host)
	}
	return nil, oci.Unavailable(http.StatusBadGateway, errors.New(res.Status), "%s, which has the blob, does not give it out", req.URL.Host)
}
