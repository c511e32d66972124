package oauth

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"time"

	"atcr.io/internal/httpx"
	"atcr.io/internal/xrpc"
)

const (
	maxMetadataBytes = 64 << 10
	// serverLifetime is how long metadata are believed.
	serverLifetime = 10 * time.Minute
)

// Server is an authorization server, as its own metadata have it.
type Server struct {
	Issuer     string
	par        string
	authorize  string
	token      string
	revocation string // "" for none
}

type cachedServer struct {
	server Server
	until  time.Time
}

// serverMetadata are what is read of a server's metadata.
//
// Source: RFC 8414; https://atproto.com/specs/oauth, "Authorization Servers"
type serverMetadata struct {
	Issuer                 string   `json:"issuer"`
	PAR                    string   `json:"pushed_authorization_request_endpoint"`
	Authorize              string   `json:"authorization_endpoint"`
	Token                  string   `json:"token_endpoint"`
	Revocation             string   `json:"revocation_endpoint"`
	ResponseTypes          []string `json:"response_types_supported"`
	GrantTypes             []string `json:"grant_types_supported"`
	ChallengeMethods       []string `json:"code_challenge_methods_supported"`
	AuthMethods            []string `json:"token_endpoint_auth_methods_supported"`
	AuthSigningAlgorithms  []string `json:"token_endpoint_auth_signing_alg_values_supported"`
	DPoPAlgorithms         []string `json:"dpop_signing_alg_values_supported"`
	Scopes                 []string `json:"scopes_supported"`
	IssInResponse          bool     `json:"authorization_response_iss_parameter_supported"`
	ClientIDMetadata       bool     `json:"client_id_metadata_document_supported"`
	RequiresPushedRequests bool     `json:"require_pushed_authorization_requests"`
}

// ServerOf is the authorization server of a PDS. Errors: ErrUnsuitable, *xrpc.UpstreamError.
func (c *Client) ServerOf(ctx context.Context, pds string) (Server, error) {
	var resource struct {
		Resource             string   `json:"resource"`
		AuthorizationServers []string `json:"authorization_servers"`
	}
	if err := c.getJSON(ctx, pds, "/.well-known/oauth-protected-resource", &resource); err != nil {
		return Server{}, err
	}
	if resource.Resource != "" && resource.Resource != pds {
		return Server{}, fmt.Errorf("%w: %s speaks for another server", ErrUnsuitable, xrpc.HostOf(pds))
	}
	if len(resource.AuthorizationServers) != 1 {
		return Server{}, fmt.Errorf("%w: %s names %d authorization servers, not one", ErrUnsuitable, xrpc.HostOf(pds), len(resource.AuthorizationServers))
	}
	return c.ServerAt(ctx, resource.AuthorizationServers[0])
}

// ServerAt is the authorization server with this issuer. Errors: ErrUnsuitable, *xrpc.UpstreamError.
func (c *Client) ServerAt(ctx context.Context, issuer string) (Server, error) {
	if kept, ok := c.servers.Get(issuer); ok && c.config.Now().Before(kept.until) {
		return kept.server, nil
	}
	u, err := url.Parse(issuer)
	if err != nil || u.Path != "" || u.RawQuery != "" || u.Fragment != "" || httpx.CheckURL(u, c.config.AllowHTTP) != nil {
		return Server{}, fmt.Errorf("%w: %.200q is no issuer", ErrUnsuitable, issuer)
	}
	var m serverMetadata
	if err := c.getJSON(ctx, issuer, "/.well-known/oauth-authorization-server", &m); err != nil {
		return Server{}, err
	}
	if m.Issuer != issuer {
		return Server{}, fmt.Errorf("%w: %s says that it is %.200q", ErrUnsuitable, u.Host, m.Issuer)
	}
	if lacking := c.lacking(&m); lacking != "" {
		return Server{}, fmt.Errorf("%w: %s does not offer %s", ErrUnsuitable, u.Host, lacking)
	}
	s := Server{Issuer: issuer, par: m.PAR, authorize: m.Authorize, token: m.Token, revocation: m.Revocation}
	c.servers.Add(issuer, cachedServer{s, c.config.Now().Add(serverLifetime)})
	return s, nil
}

// lacking names what a server must offer and does not, "" for nothing.
func (c *Client) lacking(m *serverMetadata) string {
	method := "private_key_jwt"
	if c.public {
		method = "none"
	}
	for _, need := range []struct {
		ok   bool
		what string
	}{
		{c.endpoint(m.PAR), "a pushed_authorization_request_endpoint"},
		{c.endpoint(m.Authorize), "an authorization_endpoint"},
		{c.endpoint(m.Token), "a token_endpoint"},
		{m.Revocation == "" || c.endpoint(m.Revocation), "a revocation_endpoint that can be used"},
		{slices.Contains(m.ResponseTypes, "code"), "the response type code"},
		{slices.Contains(m.GrantTypes, "authorization_code") && slices.Contains(m.GrantTypes, "refresh_token"), "the grant types authorization_code and refresh_token"},
		{slices.Contains(m.ChallengeMethods, "S256"), "PKCE with S256"},
		{slices.Contains(m.AuthMethods, method), "the client authentication " + method},
		{c.public || slices.Contains(m.AuthSigningAlgorithms, "ES256"), "ES256 for client assertions"},
		{slices.Contains(m.DPoPAlgorithms, "ES256"), "DPoP with ES256"},
		{slices.Contains(m.Scopes, scopeAtproto), "the scope atproto"},
		{m.IssInResponse, "iss in its answers"},
		{m.ClientIDMetadata, "clients that are named by their metadata"},
		{m.RequiresPushedRequests, "to take pushed requests alone"},
	} {
		if !need.ok {
			return need.what
		}
	}
	return ""
}

func (c *Client) endpoint(raw string) bool {
	u, err := url.Parse(raw)
	return err == nil && u.Fragment == "" && httpx.CheckURL(u, c.config.AllowHTTP) == nil
}

// getJSON fetches a document from a well-known place. What is not there is ErrUnsuitable.
func (c *Client) getJSON(ctx context.Context, base, path string, out any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+path, nil)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnsuitable, err)
	}
	req.Header.Set("Accept", "application/json")
	body, err := c.send(req, path, maxMetadataBytes)
	if e, ok := errors.AsType[*xrpc.UpstreamError](err); ok && (e.Status == http.StatusNotFound || e.Status == http.StatusMethodNotAllowed) {
		return fmt.Errorf("%w: %s has no %s", ErrUnsuitable, e.Host, path)
	}
	if err != nil {
		return err
	}
	if err := json.Unmarshal(body, out); err != nil {
		return fmt.Errorf("%w: %s of %s is not the expected JSON", ErrUnsuitable, path, xrpc.HostOf(base))
	}
	return nil
}

// send is one exchange; a 2xx answer is read whole. Errors: *xrpc.UpstreamError.
func (c *Client) send(req *http.Request, what string, limit int64) ([]byte, error) {
	base := originOf(req.URL)
	res, err := c.config.HTTP.Do(req)
	if err != nil {
		return nil, xrpc.TransportError(base, what, err)
	}
	defer func() { _ = res.Body.Close() }()
	c.peers.heard(base, false, res)
	if res.StatusCode < 200 || res.StatusCode >= 300 {
		return nil, xrpc.AnswerError(base, what, res)
	}
	body, err := httpx.ReadLimited(res.Body, limit)
	if err != nil {
		return nil, xrpc.TransportError(base, what, err)
	}
	return body, nil
}
