// Package oauth is an atproto OAuth client: a confidential web client with keys of its own, or the public one
// that development on loopback uses.
//
// It owns what goes over the wire: who we say we are, discovery, PAR, PKCE, DPoP, tokens, and what other
// servers' clocks and nonces are. It refuses to own where sessions are kept and when they are used.
//
// Source: https://atproto.com/specs/oauth; RFC 7636 (PKCE), 7523 (client assertions), 8414 (metadata), 9126
// (PAR), 9207 (iss), 9449 (DPoP)
package oauth

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"

	"atcr.io/internal/httpx"
)

// Paths at the AppView, known to servers by our metadata.
const (
	MetadataPath = "/oauth-client-metadata.json"
	// GenericMetadataPath is for servers that know no fine permissions.
	GenericMetadataPath = "/oauth-client-metadata-generic.json"
	JWKSPath            = "/oauth/jwks.json"
	CallbackPath        = "/oauth/callback"
)

var (
	// ErrUnsuitable says: the server's metadata lie, or do not offer what atproto asks for.
	ErrUnsuitable = errors.New("the server offers no OAuth sign-in that can be used")
	// ErrKeyGone says: the session is bound to a key that this client has no longer.
	ErrKeyGone = errors.New("the key of this session is gone")
)

// Config is what New needs.
type Config struct {
	// BaseURL is the AppView's, without a slash at the end. http on a loopback address makes a public client.
	BaseURL string
	// Keys of a confidential client; not used by a public one.
	Keys *Keys
	// HTTP calls servers that others run: guarded, with a timeout, following no redirects.
	HTTP *http.Client
	// AllowHTTP accepts servers with http URLs and private addresses: development.
	AllowHTTP bool
	// PermissionSet is the NSID of a published permission set to ask for first; "" for single permissions.
	PermissionSet string
	Now           func() time.Time // nil: time.Now
}

// Client signs people in at their servers. Safe for concurrent use.
type Client struct {
	config   Config
	id       string // client_id
	generic  string // the same where no fine permissions are known
	redirect string
	public   bool
	peers    *peers
	servers  *lru.Cache[string, cachedServer] // by issuer
}

// New makes a client of a valid base URL.
func New(c Config) (*Client, error) {
	if c.Now == nil {
		c.Now = time.Now
	}
	base, err := url.Parse(c.BaseURL)
	if err != nil || base.Host == "" {
		return nil, fmt.Errorf("oauth: %q is no base URL", c.BaseURL)
	}
	o := &Client{config: c, peers: newPeers(c.Now), servers: newLRU[string, cachedServer](1024)}
	o.public = IsPublic(base)
	if o.public {
		if base.Hostname() == "localhost" { // the network takes redirects to loopback addresses alone
			base.Host = "127.0.0.1"
			if port := mustPort(c.BaseURL); port != "" {
				base.Host = net.JoinHostPort("127.0.0.1", port)
			}
		}
		o.redirect = base.Scheme + "://" + base.Host + CallbackPath
		o.id, o.generic = loopbackClientID(o.redirect, declared(c.PermissionSet)), loopbackClientID(o.redirect, coarse)
		return o, nil
	}
	if c.Keys == nil {
		return nil, errors.New("oauth: a confidential client needs keys")
	}
	o.redirect, o.id, o.generic = c.BaseURL+CallbackPath, c.BaseURL+MetadataPath, c.BaseURL+GenericMetadataPath
	return o, nil
}

// IsPublic tells whether an AppView at base is the public client of loopback: it needs no keys.
func IsPublic(base *url.URL) bool {
	return base.Scheme == "http" && httpx.IsLoopbackHost(base.Hostname())
}

func mustPort(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return "" // New has parsed it
	}
	return u.Port()
}

// Origin is where sign-in must begin, so that its cookie comes along to the redirect: the base URL's, but for
// a base URL that says localhost.
func (c *Client) Origin() string { return c.redirect[:len(c.redirect)-len(CallbackPath)] }

// Metadata is the document at MetadataPath: who we are, for authorization servers.
type Metadata struct {
	ClientID                    string   `json:"client_id"`
	ClientName                  string   `json:"client_name"`
	ClientURI                   string   `json:"client_uri"`
	ApplicationType             string   `json:"application_type"`
	RedirectURIs                []string `json:"redirect_uris"`
	GrantTypes                  []string `json:"grant_types"`
	ResponseTypes               []string `json:"response_types"`
	Scope                       string   `json:"scope"`
	DPoPBoundAccessTokens       bool     `json:"dpop_bound_access_tokens"`
	TokenEndpointAuthMethod     string   `json:"token_endpoint_auth_method"`
	TokenEndpointAuthSigningAlg string   `json:"token_endpoint_auth_signing_alg,omitempty"`
	JWKSURI                     string   `json:"jwks_uri,omitempty"`
}

// Metadata says who we are, and GenericMetadata the same for servers that know no fine permissions. A public
// client's are not fetched by anybody, and shown all the same.
func (c *Client) Metadata(name string) Metadata {
	return c.metadata(name, c.id, declared(c.config.PermissionSet))
}

// GenericMetadata is the document at GenericMetadataPath.
func (c *Client) GenericMetadata(name string) Metadata { return c.metadata(name, c.generic, coarse) }

func (c *Client) metadata(name, id, scope string) Metadata {
	m := Metadata{
		ClientID: id, ClientName: name, ClientURI: c.config.BaseURL, ApplicationType: "web",
		RedirectURIs: []string{c.redirect}, GrantTypes: []string{"authorization_code", "refresh_token"},
		ResponseTypes: []string{"code"}, Scope: scope, DPoPBoundAccessTokens: true,
		TokenEndpointAuthMethod: "none",
	}
	if c.public {
		m.ApplicationType = "native"
		return m
	}
	m.TokenEndpointAuthMethod, m.TokenEndpointAuthSigningAlg = "private_key_jwt", "ES256"
	m.JWKSURI = c.config.BaseURL + JWKSPath
	return m
}

// JWKS are the public halves of all keys, those that are kept for old sessions included.
type JWKS struct {
	Keys []JWK `json:"keys"`
}

// HasKey tells whether a session that is bound to one of our keys can be refreshed.
func (c *Client) HasKey(id string) bool {
	if c.public {
		return id == ""
	}
	_, ok := c.config.Keys.ByID(id)
	return ok
}

// JWKS is the document at JWKSPath.
func (c *Client) JWKS() (JWKS, error) {
	out := JWKS{Keys: []JWK{}}
	if c.public {
		return out, nil
	}
	for _, key := range c.config.Keys.All() {
		jwk, err := publicJWK(&key.Private.PublicKey)
		if err != nil {
			return JWKS{}, err
		}
		jwk.ID, jwk.Use, jwk.Algorithm = key.ID, "sig", "ES256"
		out.Keys = append(out.Keys, jwk)
	}
	return out, nil
}
