package devnet

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"atcr.io/internal/httpx"
)

// maxProofAge is how old proofs and assertions may be. None may come from the future.
const maxProofAge = time.Minute

const assertionType = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"

// oauthClient is what a client says of itself.
type oauthClient struct {
	id           string
	ID           string   `json:"client_id"`
	Name         string   `json:"client_name"`
	RedirectURIs []string `json:"redirect_uris"`
	Scope        string   `json:"scope"`
	AuthMethod   string   `json:"token_endpoint_auth_method"`
	JWKSURI      string   `json:"jwks_uri"`
	DPoPBound    bool     `json:"dpop_bound_access_tokens"`
}

func (c *oauthClient) declares(scope string) bool {
	return slices.Contains(strings.Fields(c.Scope), scope)
}

func (c *oauthClient) mayReturnTo(redirect string) bool {
	return slices.Contains(c.RedirectURIs, redirect)
}

// caller is who called an endpoint: which client, by which of its keys, with which key of a session.
type caller struct {
	client *oauthClient
	key    string
	jkt    string
}

// authenticate finds out who calls. The proof is looked at before anything is used up.
func (o *OAuth) authenticate(r *http.Request, form url.Values) (*caller, error) {
	jkt, err := o.proof(r, "")
	if err != nil {
		return nil, err
	}
	client, err := o.client(r, form.Get("client_id"))
	if err != nil {
		return nil, err
	}
	from := &caller{client: client, jkt: jkt}
	switch client.AuthMethod {
	case "none":
		return from, nil
	case "private_key_jwt":
		from.key, err = o.assertion(r, client, form)
		return from, err
	}
	return nil, refuse("invalid_client_metadata", "token_endpoint_auth_method is %q", client.AuthMethod)
}

// client reads what a client says of itself: in its name, on loopback, else where its name leads.
//
// Source: https://atproto.com/specs/oauth, "Clients"
func (o *OAuth) client(r *http.Request, id string) (*oauthClient, error) {
	u, err := url.Parse(id)
	if err != nil || u.Host == "" {
		return nil, refuse("invalid_client", "client_id is no URL")
	}
	if u.Scheme == "http" && u.Host == "localhost" && (u.Path == "" || u.Path == "/") {
		c := &oauthClient{id: id, Name: "a client on this machine", RedirectURIs: u.Query()["redirect_uri"], Scope: u.Query().Get("scope"), AuthMethod: "none"}
		for _, redirect := range c.RedirectURIs {
			if to, err := url.Parse(redirect); err != nil || to.Scheme != "http" || !httpx.IsLoopbackHost(to.Hostname()) || to.Hostname() == "localhost" {
				return nil, refuse("invalid_client", "redirect_uri must be on 127.0.0.1 or [::1]")
			}
		}
		return c, o.knows(c)
	}
	c := &oauthClient{id: id}
	if err := o.fetch(r, id, c); err != nil {
		return nil, refuse("invalid_client_metadata", "%v", err)
	}
	if c.ID != id || !c.DPoPBound {
		return nil, refuse("invalid_client_metadata", "client_id is another, or tokens are not to be bound")
	}
	return c, o.knows(c)
}

// knows refuses a client whose metadata name scopes that the server does not know, as older servers do.
func (o *OAuth) knows(c *oauthClient) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	for s := range strings.FieldsSeq(c.Scope) {
		if o.coarse && o.checkPermission(s) != nil {
			return refuse("invalid_client_metadata", "Unsupported scope %q", s)
		}
	}
	return nil
}

func (o *OAuth) fetch(r *http.Request, from string, out any) error {
	req, err := http.NewRequestWithContext(r.Context(), http.MethodGet, from, nil)
	if err != nil {
		return err
	}
	res, err := o.clients.Do(req)
	if err != nil {
		return fmt.Errorf("%s cannot be fetched: %w", from, err)
	}
	defer func() { _ = res.Body.Close() }()
	if res.StatusCode != http.StatusOK || !strings.HasPrefix(res.Header.Get("Content-Type"), "application/json") {
		return fmt.Errorf("%s: status %d, Content-Type %q", from, res.StatusCode, res.Header.Get("Content-Type"))
	}
	body, err := httpx.ReadLimited(res.Body, 64<<10)
	if err != nil {
		return err
	}
	return json.Unmarshal(body, out)
}

// assertion checks that the client is itself, and tells which of its keys it used. Source: RFC 7523 section 3.
func (o *OAuth) assertion(r *http.Request, client *oauthClient, form url.Values) (kid string, err error) {
	if form.Get("client_assertion_type") != assertionType {
		return "", refuse("invalid_client", "a client_assertion is required")
	}
	var keys struct{ Keys []webKey }
	if err := o.fetch(r, client.JWKSURI, &keys); err != nil {
		return "", refuse("invalid_client_metadata", "%v", err)
	}
	var claims jwt.RegisteredClaims
	err = o.verify(form.Get("client_assertion"), &claims, o.server.url, func(header map[string]any) (*ecdsa.PublicKey, error) {
		kid, _ = header["kid"].(string)
		for _, k := range keys.Keys {
			if k.ID == kid && kid != "" {
				return k.public()
			}
		}
		return nil, fmt.Errorf("key %q is not in the client's set", kid)
	})
	if err != nil {
		return "", refuse("invalid_client", "%v", err)
	}
	if claims.Issuer != client.id || claims.Subject != client.id {
		return "", refuse("invalid_client", "iss or sub is another")
	}
	if err := o.fresh(&claims); err != nil {
		return "", refuse("invalid_client", "%v", err)
	}
	return kid, nil
}

type proofClaims struct {
	jwt.RegisteredClaims
	Method      string `json:"htm"`
	URL         string `json:"htu"`
	Nonce       string `json:"nonce"`
	AccessToken string `json:"ath"`
}

// proof checks the DPoP header and returns the thumbprint of its key. access is the token that it must be
// for, "" for none. Source: RFC 9449 section 4.3.
func (o *OAuth) proof(r *http.Request, access string) (jkt string, err error) {
	headers := r.Header.Values("DPoP")
	if len(headers) != 1 {
		return "", refuse("invalid_dpop_proof", "one DPoP header is required")
	}
	var claims proofClaims
	err = o.verify(headers[0], &claims, "", func(header map[string]any) (*ecdsa.PublicKey, error) {
		if header["typ"] != "dpop+jwt" {
			return nil, fmt.Errorf("typ is %v", header["typ"])
		}
		raw, err := json.Marshal(header["jwk"])
		if err != nil {
			return nil, err
		}
		var k webKey
		if err := json.Unmarshal(raw, &k); err != nil {
			return nil, err
		}
		jkt = k.thumbprint()
		return k.public()
	})
	if err != nil {
		return "", refuse("invalid_dpop_proof", "%v", err)
	}
	sum := sha256.Sum256([]byte(access))
	switch {
	case claims.Method != r.Method || claims.URL != o.server.url+r.URL.EscapedPath():
		return "", refuse("invalid_dpop_proof", "it is for another request: %s %s", claims.Method, claims.URL)
	case access != "" && claims.AccessToken != base64.RawURLEncoding.EncodeToString(sum[:]):
		return "", refuse("invalid_dpop_proof", "it is for another token")
	case !o.knownNonce(claims.Nonce):
		return "", refuse("use_dpop_nonce", "use the nonce of this answer")
	}
	if err := o.fresh(&claims.RegisteredClaims); err != nil {
		return "", refuse("invalid_dpop_proof", "%v", err)
	}
	return jkt, nil
}

func (o *OAuth) knownNonce(nonce string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return nonce == o.nonces[0] || nonce == o.nonces[1]
}

// verify reads a token of ES256 into claims. With an audience it must be for that, and end.
//
// The check is by hand: indigo's auth package puts an ES256 of its own, for its own keys, into the jwt package.
func (o *OAuth) verify(raw string, claims jwt.Claims, audience string, key func(header map[string]any) (*ecdsa.PublicKey, error)) error {
	token, parts, err := jwt.NewParser().ParseUnverified(raw, claims)
	if err != nil {
		return err
	}
	if token.Header["alg"] != jwt.SigningMethodES256.Alg() {
		return fmt.Errorf("alg is %v", token.Header["alg"])
	}
	public, err := key(token.Header)
	if err != nil {
		return err
	}
	signature, err := base64.RawURLEncoding.DecodeString(parts[2])
	if err != nil {
		return err
	}
	if err := jwt.SigningMethodES256.Verify(parts[0]+"."+parts[1], signature, public); err != nil {
		return err
	}
	options := []jwt.ParserOption{jwt.WithTimeFunc(o.now)}
	if audience != "" {
		options = append(options, jwt.WithAudience(audience), jwt.WithExpirationRequired())
	}
	return jwt.NewValidator(options...).Validate(claims)
}

// fresh refuses what was seen before, is old, or comes from the future.
func (o *OAuth) fresh(c *jwt.RegisteredClaims) error {
	if c.ID == "" || c.IssuedAt == nil {
		return fmt.Errorf("jti or iat is missing")
	}
	if age := o.now().Sub(c.IssuedAt.Time); age < 0 || age > maxProofAge {
		return fmt.Errorf("it is %s old", age.Round(time.Second))
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.once("jti " + c.ID) {
		return fmt.Errorf("it was used before")
	}
	return nil
}

// webKey is a public P-256 key in JSON.
type webKey struct {
	Type  string `json:"kty"`
	Curve string `json:"crv"`
	X     string `json:"x"`
	Y     string `json:"y"`
	D     string `json:"d"`
	ID    string `json:"kid"`
}

func (k webKey) public() (*ecdsa.PublicKey, error) {
	x, errX := base64.RawURLEncoding.DecodeString(k.X)
	y, errY := base64.RawURLEncoding.DecodeString(k.Y)
	if k.Type != "EC" || k.Curve != "P-256" || k.D != "" || errX != nil || errY != nil || len(x) != 32 || len(y) != 32 {
		return nil, fmt.Errorf("the key is no public P-256 key")
	}
	return ecdsa.ParseUncompressedPublicKey(elliptic.P256(), slices.Concat([]byte{4}, x, y))
}

func (k webKey) thumbprint() string {
	sum := sha256.Sum256(fmt.Appendf(nil, `{"crv":%q,"kty":%q,"x":%q,"y":%q}`, k.Curve, k.Type, k.X, k.Y))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

func challengeOf(verifier string) string {
	sum := sha256.Sum256([]byte(verifier))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}
