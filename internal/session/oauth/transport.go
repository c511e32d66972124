package oauth

import (
	"crypto/ecdsa"
	"errors"
	"net/http"
	"strings"
	"time"
)

// ClientFor is an HTTP client whose requests carry the access token of a session and a proof of its key. It
// is for the session's PDS alone. A request is sent again, once, where the PDS asks for another nonce, or where
// it refuses the proof and we know its time better now.
func (c *Client) ClientFor(key *ecdsa.PrivateKey, access string) *http.Client {
	next := c.config.HTTP.Transport
	if next == nil {
		next = http.DefaultTransport
	}
	return &http.Client{
		Transport: &bound{client: c, next: next, key: key, access: access},
		Timeout:   c.config.HTTP.Timeout, CheckRedirect: c.config.HTTP.CheckRedirect,
	}
}

type bound struct {
	client *Client
	next   http.RoundTripper
	key    *ecdsa.PrivateKey
	access string
}

// RoundTrip implements http.RoundTripper. Source: RFC 9449 sections 7 and 9.
func (b *bound) RoundTrip(r *http.Request) (*http.Response, error) {
	origin := originOf(r.URL)
	for again := false; ; again = true {
		nonce, at := b.client.peers.nonce(origin, true), b.client.peers.time(origin)
		signed, err := proof(b.key, r.Method, r.URL, nonce, b.access, at)
		if err != nil {
			return nil, errors.Join(err, closeBody(r))
		}
		sent := r.Clone(r.Context())
		sent.Header.Set("Authorization", "DPoP "+b.access)
		sent.Header.Set("DPoP", signed)
		if again && r.Body != nil {
			if sent.Body, err = r.GetBody(); err != nil {
				return nil, err
			}
		}
		res, err := b.next.RoundTrip(sent)
		if err != nil {
			return nil, err
		}
		b.client.peers.heard(origin, true, res)
		helps := refusedFor(res, "use_dpop_nonce") && b.client.peers.nonce(origin, true) != nonce ||
			refusedFor(res, "invalid_dpop_proof") && b.client.peers.time(origin).Sub(at).Abs() > time.Second
		if again || !helps || r.Body != nil && r.GetBody == nil {
			return res, nil
		}
		if err := res.Body.Close(); err != nil {
			return nil, err
		}
	}
}

func closeBody(r *http.Request) error {
	if r.Body == nil {
		return nil
	}
	return r.Body.Close()
}

func refusedFor(res *http.Response, reason string) bool {
	if res.StatusCode != http.StatusUnauthorized {
		return false
	}
	for _, challenge := range res.Header.Values("WWW-Authenticate") {
		if strings.HasPrefix(strings.ToLower(challenge), "dpop") && strings.Contains(challenge, `error="`+reason+`"`) {
			return true
		}
	}
	return false
}
