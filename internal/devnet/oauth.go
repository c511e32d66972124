package devnet

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/internal/httpx"
	"atcr.io/internal/xrpc"
)

// Lifetimes of the authorization server, as the reference PDS has them.
const (
	requestLifetime = 5 * time.Minute
	codeLifetime    = time.Minute
	oauthLifetime   = time.Hour
)

// OAuth is the authorization server of the network, stricter than those that people meet: it takes every token,
// code, proof and assertion once, wants a nonce with each proof, and has no tolerance for clocks that are ahead
// of its own. What it knows is lost when the network ends.
type OAuth struct {
	server  *server
	handler http.Handler
	clients *http.Client // fetches what clients say of themselves
	now     func() time.Time

	mu       sync.Mutex
	coarse   bool
	nonces   [2]string // the newest first; the one before is good as well
	seen     map[string]struct{}
	requests map[string]*oauthRequest // by request_uri
	codes    map[string]*oauthRequest
	grants   map[string]*oauthGrant // by every token that it ever had
}

// oauthRequest is an authorization request, from its push to its code.
type oauthRequest struct {
	client    *oauthClient
	clientKey string // kid of the assertion; "" for a public client
	jkt       string // thumbprint of the session's key
	redirect  string
	scope     string
	state     string
	challenge string
	hint      string
	expires   time.Time

	did   syntax.DID // once somebody has approved
	grant *oauthGrant
}

// oauthGrant is a session.
type oauthGrant struct {
	did       syntax.DID
	clientID  string
	clientKey string
	jkt       string
	scope     string
	access    string
	refresh   string
	expires   time.Time
	ended     bool
}

func newOAuth(s *server, clients *http.Client) *OAuth {
	if clients == nil {
		clients = httpx.NewClient(httpx.ClientConfig{AllowPrivate: true, Timeout: 5 * time.Second, UserAgent: "atcr-devnet"})
	}
	o := &OAuth{
		server: s, clients: clients, now: s.now, nonces: [2]string{rand.Text(), rand.Text()}, seen: map[string]struct{}{},
		requests: map[string]*oauthRequest{}, codes: map[string]*oauthRequest{}, grants: map[string]*oauthGrant{},
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /.well-known/oauth-protected-resource", o.resourceMetadata)
	mux.HandleFunc("GET /.well-known/oauth-authorization-server", o.metadata)
	mux.HandleFunc("POST /oauth/par", o.answer(o.par))
	mux.HandleFunc("POST /oauth/token", o.answer(o.token))
	mux.HandleFunc("POST /oauth/revoke", o.answer(o.revoke))
	mux.HandleFunc("GET /oauth/authorize", o.page)
	mux.HandleFunc("POST /oauth/authorize", o.decide)
	o.handler = mux
	return o
}

// RotateNonce makes all nonces that were given out old.
func (o *OAuth) RotateNonce() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.nonces = [2]string{rand.Text(), rand.Text()}
}

// KnowNoPermissions makes the server an old one: it refuses every scope but atproto and transition:generic.
func (o *OAuth) KnowNoPermissions() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.coarse = true
}

// Grants are how many sessions are not ended.
func (o *OAuth) Grants() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	n := 0
	for token, g := range o.grants {
		if !g.ended && g.refresh == token {
			n++
		}
	}
	return n
}

func (o *OAuth) resourceMetadata(w http.ResponseWriter, _ *http.Request) {
	xrpc.WriteJSON(w, http.StatusOK, map[string]any{"resource": o.server.url, "authorization_servers": []string{o.server.url}})
}

func (o *OAuth) metadata(w http.ResponseWriter, _ *http.Request) {
	at := func(path string) string { return o.server.url + path }
	xrpc.WriteJSON(w, http.StatusOK, map[string]any{
		"issuer":                                           at(""),
		"authorization_endpoint":                           at("/oauth/authorize"),
		"token_endpoint":                                   at("/oauth/token"),
		"revocation_endpoint":                              at("/oauth/revoke"),
		"pushed_authorization_request_endpoint":            at("/oauth/par"),
		"require_pushed_authorization_requests":            true,
		"scopes_supported":                                 []string{"atproto", "transition:generic"},
		"response_types_supported":                         []string{"code"},
		"grant_types_supported":                            []string{"authorization_code", "refresh_token"},
		"code_challenge_methods_supported":                 []string{"S256"},
		"dpop_signing_alg_values_supported":                []string{"ES256"},
		"token_endpoint_auth_methods_supported":            []string{"none", "private_key_jwt"},
		"token_endpoint_auth_signing_alg_values_supported": []string{"ES256"},
		"authorization_response_iss_parameter_supported":   true,
		"client_id_metadata_document_supported":            true,
	})
}

// oauthError is an error in OAuth's form.
type oauthError struct {
	status  int
	name    string
	message string
}

func (e *oauthError) Error() string { return e.name + ": " + e.message }

func refuse(name, format string, args ...any) error {
	return &oauthError{http.StatusBadRequest, name, fmt.Sprintf(format, args...)}
}

// answer serves an endpoint that clients call, past the browser. Every answer has a nonce for the next proof.
func (o *OAuth) answer(endpoint func(r *http.Request, form url.Values, from *caller) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("DPoP-Nonce", o.nonce())
		w.Header().Set("Cache-Control", "no-store")
		r.Body = http.MaxBytesReader(w, r.Body, 64<<10)
		out, err := o.call(r, endpoint)
		if err == nil {
			xrpc.WriteJSON(w, http.StatusOK, out)
			return
		}
		e, ok := errors.AsType[*oauthError](err)
		if !ok {
			e = &oauthError{http.StatusInternalServerError, "server_error", "failed"}
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(e.status)
		_ = json.NewEncoder(w).Encode(map[string]string{"error": e.name, "error_description": e.message}) // the client may be gone
	}
}

func (o *OAuth) call(r *http.Request, endpoint func(r *http.Request, form url.Values, from *caller) (any, error)) (any, error) {
	if err := r.ParseForm(); err != nil {
		return nil, refuse("invalid_request", "no form")
	}
	from, err := o.authenticate(r, r.PostForm)
	if err != nil {
		return nil, err
	}
	return endpoint(r, r.PostForm, from)
}

// par takes an authorization request. Source: RFC 9126.
func (o *OAuth) par(_ *http.Request, form url.Values, from *caller) (any, error) {
	q := &oauthRequest{
		client: from.client, clientKey: from.key, jkt: from.jkt, redirect: form.Get("redirect_uri"), scope: form.Get("scope"),
		state: form.Get("state"), challenge: form.Get("code_challenge"), hint: form.Get("login_hint"), expires: o.now().Add(requestLifetime),
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case form.Get("response_type") != "code":
		return nil, refuse("unsupported_response_type", "only code")
	case !from.client.mayReturnTo(q.redirect):
		return nil, refuse("invalid_request", "redirect_uri is not the client's")
	case form.Get("code_challenge_method") != "S256" || len(q.challenge) != 43:
		return nil, refuse("invalid_request", "PKCE with S256 is required")
	case !o.once("challenge " + q.challenge):
		return nil, refuse("invalid_request", "code_challenge was used before")
	case q.state == "":
		return nil, refuse("invalid_request", "state is missing")
	}
	if err := o.checkScope(q.scope, from.client); err != nil {
		return nil, err
	}
	uri := "urn:ietf:params:oauth:request_uri:" + rand.Text()
	o.requests[uri] = q
	return map[string]any{"request_uri": uri, "expires_in": int(requestLifetime / time.Second)}, nil
}

// token gives tokens for a code or a refresh token, each good for once.
func (o *OAuth) token(_ *http.Request, form url.Values, from *caller) (any, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	switch form.Get("grant_type") {
	case "authorization_code":
		return o.redeem(form, from)
	case "refresh_token":
		return o.refresh(form, from)
	}
	return nil, refuse("unsupported_grant_type", "only authorization_code and refresh_token")
}

func (o *OAuth) redeem(form url.Values, from *caller) (any, error) {
	q := o.codes[form.Get("code")]
	if q == nil {
		return nil, refuse("invalid_grant", "the code is not known")
	}
	if q.grant != nil { // used twice: whoever has it now
		q.grant.ended = true
		return nil, refuse("invalid_grant", "the code was used before")
	}
	switch {
	case o.now().After(q.expires):
		return nil, refuse("invalid_grant", "the code has expired")
	case q.client.id != from.client.id || q.clientKey != from.key || q.jkt != from.jkt:
		return nil, refuse("invalid_grant", "the code belongs to another client or key")
	case form.Get("redirect_uri") != q.redirect:
		return nil, refuse("invalid_grant", "redirect_uri is another")
	case challengeOf(form.Get("code_verifier")) != q.challenge:
		return nil, refuse("invalid_grant", "code_verifier is wrong")
	}
	q.grant = &oauthGrant{did: q.did, clientID: from.client.id, clientKey: from.key, jkt: from.jkt, scope: q.scope}
	return o.issue(q.grant), nil
}

func (o *OAuth) refresh(form url.Values, from *caller) (any, error) {
	token := form.Get("refresh_token")
	g := o.grants[token]
	switch {
	case g == nil || g.ended || g.access == token:
		return nil, refuse("invalid_grant", "the refresh token is not known")
	case g.refresh != token: // used twice
		g.ended = true
		return nil, refuse("invalid_grant", "the refresh token was used before")
	case g.clientID != from.client.id || g.clientKey != from.key || g.jkt != from.jkt:
		return nil, refuse("invalid_grant", "the session belongs to another client or key")
	}
	return o.issue(g), nil
}

// issue makes the next tokens of a session. The caller has the lock.
func (o *OAuth) issue(g *oauthGrant) map[string]any {
	g.access, g.refresh, g.expires = "access-"+rand.Text(), "refresh-"+rand.Text(), o.now().Add(oauthLifetime)
	o.grants[g.access], o.grants[g.refresh] = g, g
	return map[string]any{
		"access_token": g.access, "refresh_token": g.refresh, "token_type": "DPoP", "scope": g.scope, "sub": g.did,
		"expires_in": int(oauthLifetime / time.Second),
	}
}

// revoke ends a session. Source: RFC 7009.
func (o *OAuth) revoke(_ *http.Request, form url.Values, from *caller) (any, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if g := o.grants[form.Get("token")]; g != nil && g.clientID == from.client.id {
		g.ended = true
	}
	return map[string]any{}, nil
}

// once tells whether key was never seen. The caller has the lock.
func (o *OAuth) once(key string) bool {
	if _, old := o.seen[key]; old {
		return false
	}
	o.seen[key] = struct{}{}
	return true
}

func (o *OAuth) nonce() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.nonces[0]
}

// checkScope looks at what is asked for. The caller has the lock.
func (o *OAuth) checkScope(scope string, client *oauthClient) error {
	fields := strings.Fields(scope)
	atproto := false
	for _, f := range fields {
		atproto = atproto || f == "atproto"
		if !client.declares(f) {
			return refuse("invalid_scope", "%s is not in the client's metadata", f)
		}
		if err := o.checkPermission(f); err != nil {
			return err
		}
	}
	if !atproto {
		return refuse("invalid_scope", "atproto is required")
	}
	return nil
}
