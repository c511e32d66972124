package identity

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"

	indigo "github.com/bluesky-social/indigo/atproto/identity"
	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/internal/httpx"
)

// fetchDID asks the directory or the host that the DID names.
func (r *Resolver) fetchDID(ctx context.Context, did syntax.DID) (*Identity, error) {
	if _, err := syntax.ParseDID(did.String()); err != nil { // it becomes a part of a URL
		return nil, fmt.Errorf("%w: %.200q is no DID", ErrInvalid, did)
	}
	client, target := r.guarded, ""
	switch did.Method() {
	case "plc":
		client, target = r.trusted, strings.TrimSuffix(r.config.PLCURL, "/")+"/"+did.String()
	case "web":
		var err error
		if target, err = r.webURL(did); err != nil {
			return nil, err
		}
	default:
		return nil, fmt.Errorf("%w: method did:%s is not supported", ErrInvalid, did.Method())
	}
	body, err := get(ctx, client, target, maxAnswerBytes)
	if errors.Is(err, errStrange) && client == r.trusted { // the directory's fault, not the name's: what is known stays
		err = &unavailable{errors.New(err.Error())}
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", did, err)
	}
	var document indigo.DIDDocument
	if err := json.Unmarshal(body, &document); err != nil {
		return nil, fmt.Errorf("%w: %s: the document is no JSON", ErrInvalid, did)
	}
	if document.DID != did {
		return nil, fmt.Errorf("%w: the document of %s says that it is %.200s", ErrInvalid, did, document.DID)
	}
	i := newIdentity(&document)
	i.large = len(body) > maxCachedBytes
	return i, nil
}

// webURL is where a did:web's document is. atproto allows no path, and a port for localhost alone; others
// are accepted where private addresses are.
//
// Source: https://w3c-ccg.github.io/did-method-web/, https://atproto.com/specs/did
func (r *Resolver) webURL(did syntax.DID) (string, error) {
	host, err := url.PathUnescape(did.Identifier())
	if err != nil || strings.ContainsAny(host, "/?#@\\ ") || strings.Contains(did.Identifier(), ":") {
		return "", fmt.Errorf("%w: %s: a did:web here is a host name alone", ErrInvalid, did)
	}
	name, scheme := host, "https"
	if n, _, err := net.SplitHostPort(host); err == nil {
		name = n
	}
	// What SplitHostPort does not take apart, a URL may: "]:0" has a port too.
	if (name != host || strings.ContainsAny(host, ":[]%")) && !httpx.IsLoopbackHost(name) && !r.config.AllowPrivate {
		return "", fmt.Errorf("%w: %s: a did:web has no port", ErrInvalid, did)
	}
	if httpx.IsLoopbackHost(name) {
		if !r.config.AllowPrivate {
			return "", fmt.Errorf("%w: %s is a name of this machine", ErrInvalid, did)
		}
		scheme = "http"
	} else if r.config.AllowPrivate && name != host {
		scheme = "http"
	}
	return scheme + "://" + host + "/.well-known/did.json", nil
}

// fetchHandle asks the operator's resolver where there is one, else DNS and the handle's own host.
func (r *Resolver) fetchHandle(ctx context.Context, handle syntax.Handle) (syntax.DID, error) {
	if r.config.HandleResolverURL == "" {
		return r.findHandle(ctx, handle)
	}
	did, err := r.askResolver(ctx, handle)
	if err == nil || !handle.AllowedTLD() {
		return did, err
	}
	did, elsewhere := r.findHandle(ctx, handle)
	if errors.Is(elsewhere, ErrNotFound) && errors.Is(err, ErrUnavailable) {
		return "", err // that there is none is believed only where the one that knows has answered
	}
	return did, elsewhere
}

// findHandle asks DNS, and the handle's own host.
func (r *Resolver) findHandle(ctx context.Context, handle syntax.Handle) (syntax.DID, error) {
	if !handle.AllowedTLD() {
		return "", fmt.Errorf("%w: handle %s has a top-level domain that no handle has", ErrNotFound, handle)
	}
	if r.silent() {
		return "", &unavailable{errSilent}
	}
	dns, cancel := context.WithTimeout(ctx, dnsTimeout)
	defer cancel()
	did, outage := r.askDNS(dns, handle)
	if outage == nil || errors.Is(outage, ErrInvalid) {
		return did, outage
	}
	if timedOut(outage) && !r.listen(ctx) { // its own host has no address then
		return "", &unavailable{errSilent}
	}
	body, err := get(ctx, r.guarded, "https://"+handle.String()+"/.well-known/atproto-did", 4096)
	if err != nil && errors.Is(outage, ErrUnavailable) { // "not there" is believed only where DNS has answered
		return "", outage
	}
	if dnsErr, ok := errors.AsType[*net.DNSError](err); ok && dnsErr.IsNotFound {
		return "", fmt.Errorf("%w: handle %s: there is no such host", ErrNotFound, handle)
	}
	if err != nil {
		return "", fmt.Errorf("handle %s: %w", handle, err)
	}
	return parseHandleDID(handle, strings.TrimSpace(string(body)))
}

func (r *Resolver) askResolver(ctx context.Context, handle syntax.Handle) (syntax.DID, error) {
	body, err := get(ctx, r.trusted, strings.TrimSuffix(r.config.HandleResolverURL, "/")+
		"/xrpc/com.atproto.identity.resolveHandle?handle="+url.QueryEscape(handle.String()), 4096)
	if err != nil {
		return "", fmt.Errorf("handle %s: %w", handle, err)
	}
	var out struct{ DID string }
	if err := json.Unmarshal(body, &out); err != nil {
		return "", fmt.Errorf("%w: handle %s: the resolver's answer is no JSON", ErrInvalid, handle)
	}
	return parseHandleDID(handle, out.DID)
}

func (r *Resolver) askDNS(ctx context.Context, handle syntax.Handle) (syntax.DID, error) {
	records, err := r.dns.LookupTXT(ctx, "_atproto."+handle.String())
	if dnsErr, ok := errors.AsType[*net.DNSError](err); ok && dnsErr.IsNotFound {
		return "", ErrNotFound
	}
	if err != nil {
		return "", &unavailable{err}
	}
	found := ""
	for _, record := range records {
		if did, ok := strings.CutPrefix(record, "did="); ok {
			if found != "" {
				return "", fmt.Errorf("%w: handle %s has several DIDs in DNS", ErrInvalid, handle)
			}
			found = did
		}
	}
	if found == "" {
		return "", ErrNotFound
	}
	return parseHandleDID(handle, found)
}

func parseHandleDID(handle syntax.Handle, text string) (syntax.DID, error) {
	did, err := syntax.ParseDID(text)
	if err != nil {
		return "", fmt.Errorf("%w: handle %s leads to no DID", ErrInvalid, handle)
	}
	return did, nil
}

// errStrange is an answer that is neither the document, nor that there is none, nor an outage.
var errStrange = fmt.Errorf("%w: an answer out of place", ErrInvalid)

// get is one bounded GET without redirects. A refusal of the guard is ErrInvalid: it will not get better.
func get(ctx context.Context, client *http.Client, target string, limit int64) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	req.Header.Set("Accept", "application/did+ld+json, application/json, text/plain")
	res, err := client.Do(req)
	if errors.Is(err, httpx.ErrForbiddenAddress) || errors.Is(err, httpx.ErrInsecureURL) {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if err != nil {
		return nil, &unavailable{err}
	}
	defer func() { _ = res.Body.Close() }()
	switch {
	case res.StatusCode == http.StatusNotFound || res.StatusCode == http.StatusGone || res.StatusCode == http.StatusBadRequest:
		return nil, ErrNotFound
	case res.StatusCode == http.StatusTooManyRequests || res.StatusCode >= 500:
		return nil, &unavailable{fmt.Errorf("%s answered %s", req.URL.Host, res.Status)}
	case res.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("%w: %s answered %s", errStrange, req.URL.Host, res.Status)
	}
	body, err := httpx.ReadLimited(res.Body, limit)
	if errors.Is(err, httpx.ErrTooLarge) {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if err != nil {
		return nil, &unavailable{err}
	}
	return body, nil
}
