package oauth

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/internal/xrpc"
)

const (
	maxAnswerBytes = 64 << 10
	maxTokenBytes  = 16 << 10
	// maxNonces is how often one request is sent again with a newer nonce.
	maxNonces = 2
)

// Bound is what a session is bound to, from its first request on.
type Bound struct {
	Key     *ecdsa.PrivateKey // its own
	KeyID   string            // of ours; "" for a public client
	Generic bool              // we were the client that knows no fine permissions
}

// Request is an authorization request that a server has taken: what the callback will be judged by.
type Request struct {
	Bound
	State    string
	Verifier string // PKCE
	Scope    string // as asked for
}

// Start pushes an authorization request and returns it with the URL to send the browser to. hint is a handle
// or DID, prompt one of OAuth's or "". A server that refuses fine permissions is asked for the coarse one.
//
// Errors: ErrUnsuitable, *xrpc.UpstreamError.
func (c *Client) Start(ctx context.Context, s Server, hint, prompt string) (*Request, string, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, "", fmt.Errorf("make a session key: %w", err)
	}
	r := &Request{State: rand.Text(), Bound: Bound{Key: key}}
	if !c.public {
		r.KeyID = c.config.Keys.Signing().ID
	}
	asked := append(wanted(c.config.PermissionSet), coarse)
	for i, scope := range asked {
		r.Scope, r.Generic = scope, i == len(asked)-1
		r.Verifier = rand.Text() + rand.Text() // a challenge is used once at most
		var uri string
		uri, err = c.push(ctx, s, r, hint, prompt)
		if err == nil {
			return c.pushed(s, r, uri)
		}
		if !refusesScope(err) {
			break
		}
	}
	return nil, "", err
}

// refusesScope tells whether a server may take a request for another scope: it refused what was asked for, or
// that our metadata name what it does not know. Metadata that it could not fetch are another matter.
func refusesScope(err error) bool {
	e, ok := errors.AsType[*xrpc.UpstreamError](err)
	return ok && (e.Name == "invalid_scope" || e.Name == "invalid_client_metadata" && strings.Contains(strings.ToLower(e.Message), "scope"))
}

// pushed is where the browser goes with a request that was taken.
func (c *Client) pushed(s Server, r *Request, uri string) (*Request, string, error) {
	u, err := url.Parse(s.authorize)
	if err != nil {
		return nil, "", fmt.Errorf("%w: %w", ErrUnsuitable, err)
	}
	query := u.Query()
	query.Set("client_id", c.clientID(r.Bound))
	query.Set("request_uri", uri)
	u.RawQuery = query.Encode()
	return r, u.String(), nil
}

func (c *Client) clientID(b Bound) string {
	if b.Generic {
		return c.generic
	}
	return c.id
}

// push sends the request past the browser. Source: RFC 9126.
func (c *Client) push(ctx context.Context, s Server, r *Request, hint, prompt string) (string, error) {
	challenge := sha256.Sum256([]byte(r.Verifier))
	form := url.Values{
		"response_type": {"code"}, "redirect_uri": {c.redirect}, "scope": {r.Scope}, "state": {r.State},
		"code_challenge": {base64.RawURLEncoding.EncodeToString(challenge[:])}, "code_challenge_method": {"S256"},
	}
	if hint != "" {
		form.Set("login_hint", hint)
	}
	if prompt != "" {
		form.Set("prompt", prompt)
	}
	var out struct {
		RequestURI string `json:"request_uri"`
	}
	if err := c.post(ctx, s, s.par, r.Bound, form, &out); err != nil {
		return "", err
	}
	if out.RequestURI == "" || len(out.RequestURI) > 2048 {
		return "", invalid(s.par, "the answer has no request_uri")
	}
	return out.RequestURI, nil
}

// Tokens are what a server gave.
type Tokens struct {
	DID     syntax.DID
	Access  string
	Refresh string
	Scope   string
	Expires time.Time // of Access, by our clock; zero where the server does not say
}

type tokenAnswer struct {
	Access    string `json:"access_token"`
	Refresh   string `json:"refresh_token"`
	Type      string `json:"token_type"`
	Scope     string `json:"scope"`
	Subject   string `json:"sub"`
	ExpiresIn int64  `json:"expires_in"`
}

// Exchange gives the code of a callback for tokens. Whose they are is for the caller to check.
//
// Errors: ErrKeyGone, *xrpc.UpstreamError.
func (c *Client) Exchange(ctx context.Context, s Server, r *Request, code string) (Tokens, error) {
	form := url.Values{"grant_type": {"authorization_code"}, "code": {code}, "code_verifier": {r.Verifier}, "redirect_uri": {c.redirect}}
	return c.tokens(ctx, s, r.Bound, form)
}

// Refresh gives a refresh token for new tokens. It can be used once: a second use ends the session.
//
// Errors: ErrKeyGone, *xrpc.UpstreamError; with the name invalid_grant where the session has ended.
func (c *Client) Refresh(ctx context.Context, s Server, b Bound, refresh string) (Tokens, error) {
	form := url.Values{"grant_type": {"refresh_token"}, "refresh_token": {refresh}}
	t, err := c.tokens(ctx, s, b, form)
	if err == nil && t.Refresh == "" {
		t.Refresh = refresh // RFC 6749 section 6 lets a server keep it
	}
	return t, err
}

func (c *Client) tokens(ctx context.Context, s Server, b Bound, form url.Values) (Tokens, error) {
	var out tokenAnswer
	if err := c.post(ctx, s, s.token, b, form, &out); err != nil {
		return Tokens{}, err
	}
	did, err := syntax.ParseDID(out.Subject)
	switch {
	case err != nil:
		return Tokens{}, invalid(s.token, "sub is no DID")
	case !strings.EqualFold(out.Type, "DPoP"):
		return Tokens{}, invalid(s.token, "the token is not bound by DPoP")
	case out.Access == "" || len(out.Access) > maxTokenBytes || len(out.Refresh) > maxTokenBytes:
		return Tokens{}, invalid(s.token, "the answer has no tokens, or endless ones")
	}
	t := Tokens{DID: did, Access: out.Access, Refresh: out.Refresh, Scope: out.Scope}
	if out.ExpiresIn > 0 {
		t.Expires = c.config.Now().Add(time.Duration(min(out.ExpiresIn, 1<<31)) * time.Second)
	}
	return t, nil
}

// Revoke ends a session at its server. Errors: ErrKeyGone, *xrpc.UpstreamError.
func (c *Client) Revoke(ctx context.Context, s Server, b Bound, refresh string) error {
	if s.revocation == "" {
		return nil
	}
	return c.post(ctx, s, s.revocation, b, url.Values{"token": {refresh}, "token_type_hint": {"refresh_token"}}, nil)
}

func invalid(endpoint, why string) error {
	return &xrpc.UpstreamError{Host: xrpc.HostOf(endpoint), NSID: nameOf(endpoint), Status: http.StatusOK, Invalid: true, Err: errors.New(why)}
}

// nameOf is an endpoint's path, for messages.
func nameOf(endpoint string) string {
	if u, err := url.Parse(endpoint); err == nil {
		return u.Path
	}
	return ""
}

// post sends a form as the client that we are, with a proof of the session's key. It is sent again where the
// server asks for another nonce; and once where it refused the time, if we know its time better now. Neither
// refusal has used up what the form holds.
func (c *Client) post(ctx context.Context, s Server, endpoint string, b Bound, form url.Values, out any) error {
	u, err := url.Parse(endpoint)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnsuitable, err)
	}
	origin := originOf(u)
	if !c.peers.known(origin) { // after a restart
		if err := c.learn(ctx, s); err != nil {
			return err
		}
	}
	corrected := false
	for nonces := 0; ; {
		nonce, at := c.peers.nonce(origin, false), c.peers.time(origin)
		body, err := c.postOnce(ctx, s, u, b, form, nonce, at)
		if err == nil {
			return decode(endpoint, body, out)
		}
		switch {
		case xrpc.IsUpstream(err, "use_dpop_nonce") && nonces < maxNonces && c.peers.nonce(origin, false) != nonce:
			nonces++
		case xrpc.IsUpstream(err, "invalid_client", "invalid_dpop_proof") && !corrected && c.peers.time(origin).Sub(at).Abs() > time.Second:
			corrected = true
		default:
			return err
		}
	}
}

// learn asks the server for anything, to see its clock.
func (c *Client) learn(ctx context.Context, s Server) error {
	c.servers.Remove(s.Issuer)
	_, err := c.ServerAt(ctx, s.Issuer)
	return err
}

func (c *Client) postOnce(ctx context.Context, s Server, u *url.URL, b Bound, form url.Values, nonce string, at time.Time) ([]byte, error) {
	id := c.clientID(b)
	form.Set("client_id", id)
	if !c.public {
		ours, ok := c.config.Keys.ByID(b.KeyID)
		if !ok {
			return nil, ErrKeyGone
		}
		signed, err := assertion(ours, id, s.Issuer, at)
		if err != nil {
			return nil, err
		}
		form.Set("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer")
		form.Set("client_assertion", signed)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u.String(), strings.NewReader(form.Encode()))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnsuitable, err)
	}
	signed, err := proof(b.Key, req.Method, u, nonce, "", at)
	if err != nil {
		return nil, err
	}
	req.Header.Set("DPoP", signed)
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Accept", "application/json")
	return c.send(req, u.Path, maxAnswerBytes)
}

func decode(endpoint string, body []byte, out any) error {
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(body, out); err != nil {
		return invalid(endpoint, "the answer is not the expected JSON")
	}
	return nil
}
