package devnet

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// publicClient is a client on this machine, made by hand: what is right with it is what a test leaves alone.
type publicClient struct {
	network *Network
	id      string
	key     *ecdsa.PrivateKey
	nonce   string
}

const testRedirect = "http://127.0.0.1:1/callback"

func newPublicClient(t *testing.T, n *Network) *publicClient {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	id := "http://localhost?" + url.Values{"redirect_uri": {testRedirect}, "scope": {"atproto repo:io.atcr.tag"}}.Encode()
	return &publicClient{network: n, id: id, key: key}
}

func (c *publicClient) proof(t *testing.T, method, target string, change func(header, claims map[string]any)) string {
	t.Helper()
	point, err := c.key.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	claims := jwt.MapClaims{"jti": rand.Text(), "htm": method, "htu": target, "iat": time.Now().Unix(), "nonce": c.nonce}
	token := jwt.NewWithClaims(jwt.SigningMethodES256, claims)
	token.Header["typ"] = "dpop+jwt"
	token.Header["jwk"] = map[string]string{
		"kty": "EC", "crv": "P-256", "x": base64.RawURLEncoding.EncodeToString(point[1:33]), "y": base64.RawURLEncoding.EncodeToString(point[33:]),
	}
	if change != nil {
		change(token.Header, claims)
	}
	signed, err := token.SignedString(c.key)
	if err != nil {
		t.Fatal(err)
	}
	return signed
}

// post sends a form and returns the server's error, or "" and its answer.
func (c *publicClient) post(t *testing.T, path string, form url.Values, change func(header, claims map[string]any)) (name string, out map[string]any) {
	t.Helper()
	form.Set("client_id", c.id)
	for {
		used := c.nonce
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, c.network.PDSURL+path, strings.NewReader(form.Encode()))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		req.Header.Set("DPoP", c.proof(t, http.MethodPost, c.network.PDSURL+path, change))
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		out = map[string]any{}
		err = json.NewDecoder(res.Body).Decode(&out)
		if err := res.Body.Close(); err != nil {
			t.Fatal(err)
		}
		if err != nil {
			t.Fatalf("%s: %s, %v", path, res.Status, err)
		}
		c.nonce = res.Header.Get("DPoP-Nonce")
		name, _ = out["error"].(string)
		if name != "use_dpop_nonce" || used == c.nonce {
			return name, out
		}
	}
}

func (c *publicClient) request(verifier string) url.Values {
	return url.Values{
		"response_type": {"code"}, "redirect_uri": {testRedirect}, "scope": {"atproto repo:io.atcr.tag"}, "state": {"s"},
		"code_challenge": {challengeOf(verifier)}, "code_challenge_method": {"S256"},
	}
}

// code signs alice in and returns the code and its verifier.
func (c *publicClient) code(t *testing.T) (code, verifier string) {
	t.Helper()
	verifier = rand.Text() + rand.Text()
	name, out := c.post(t, "/oauth/par", c.request(verifier), nil)
	if name != "" {
		t.Fatalf("par: %v", out)
	}
	target := c.network.PDSURL + "/oauth/authorize?" + url.Values{"client_id": {c.id}, "request_uri": {out["request_uri"].(string)}}.Encode()
	callback, err := c.network.Authorize(t.Context(), target, Decision{Handle: "alice.test", Password: c.network.Accounts[0].Password})
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(callback)
	if err != nil || u.Query().Get("iss") != c.network.PDSURL || u.Query().Get("state") != "s" {
		t.Fatalf("%s, %v", callback, err)
	}
	return u.Query().Get("code"), verifier
}

// Would catch an authorization server that lets clients pass which stricter ones refuse: then no test of ours
// would see what is wrong with them.
func TestOAuthIsStrict(t *testing.T) {
	t.Parallel()
	n := startNetwork(t, nil)
	type m = map[string]any
	for name, tt := range map[string]struct {
		form   func(url.Values)
		change func(header, claims map[string]any)
		want   string
	}{
		"right":                {nil, nil, ""},
		"proof of the future":  {nil, func(_, c m) { c["iat"] = time.Now().Add(5 * time.Second).Unix() }, "invalid_dpop_proof"},
		"old proof":            {nil, func(_, c m) { c["iat"] = time.Now().Add(-70 * time.Second).Unix() }, "invalid_dpop_proof"},
		"proof without jti":    {nil, func(_, c m) { delete(c, "jti") }, "invalid_dpop_proof"},
		"proof of a GET":       {nil, func(_, c m) { c["htm"] = "GET" }, "invalid_dpop_proof"},
		"proof for elsewhere":  {nil, func(_, c m) { c["htu"] = "https://pds.test/oauth/par" }, "invalid_dpop_proof"},
		"proof of another typ": {nil, func(h, _ m) { h["typ"] = "JWT" }, "invalid_dpop_proof"},
		"no nonce":             {nil, func(_, c m) { delete(c, "nonce") }, "use_dpop_nonce"},
		"plain challenge":      {func(f url.Values) { f.Set("code_challenge_method", "plain") }, nil, "invalid_request"},
		"no challenge":         {func(f url.Values) { f.Del("code_challenge") }, nil, "invalid_request"},
		"another redirect":     {func(f url.Values) { f.Set("redirect_uri", "http://127.0.0.1:2/callback") }, nil, "invalid_request"},
		"undeclared scope":     {func(f url.Values) { f.Set("scope", "atproto repo:io.atcr.manifest") }, nil, "invalid_scope"},
		"no atproto":           {func(f url.Values) { f.Set("scope", "repo:io.atcr.tag") }, nil, "invalid_scope"},
		"no state":             {func(f url.Values) { f.Del("state") }, nil, "invalid_request"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newPublicClient(t, n)
			form := c.request(rand.Text() + rand.Text())
			if tt.form != nil {
				tt.form(form)
			}
			if got, out := c.post(t, "/oauth/par", form, tt.change); got != tt.want {
				t.Errorf("%q: %v", got, out)
			}
		})
	}
}

// Would catch codes and tokens that are good twice, or for others than whom they were given to.
func TestOAuthTokensAreGoodOnce(t *testing.T) {
	t.Parallel()
	n := startNetwork(t, nil)
	c := newPublicClient(t, n)
	redeem := func(code, verifier string) url.Values {
		return url.Values{"grant_type": {"authorization_code"}, "code": {code}, "code_verifier": {verifier}, "redirect_uri": {testRedirect}}
	}
	code, verifier := c.code(t)
	if name, _ := c.post(t, "/oauth/token", redeem(code, "another"), nil); name != "invalid_grant" {
		t.Errorf("another verifier: %q", name)
	}
	if name, _ := newPublicClient(t, n).post(t, "/oauth/token", redeem(code, verifier), nil); name != "invalid_grant" {
		t.Errorf("another key: %q", name)
	}
	name, first := c.post(t, "/oauth/token", redeem(code, verifier), nil)
	if name != "" || first["sub"] != n.Accounts[0].DID || first["token_type"] != "DPoP" {
		t.Fatalf("%v", first)
	}
	refresh := func(of map[string]any) url.Values {
		return url.Values{"grant_type": {"refresh_token"}, "refresh_token": {of["refresh_token"].(string)}}
	}
	name, second := c.post(t, "/oauth/token", refresh(first), nil)
	if name != "" || second["refresh_token"] == first["refresh_token"] || n.OAuth.Grants() != 1 {
		t.Fatalf("%v", second)
	}
	if name, _ := c.post(t, "/oauth/token", refresh(first), nil); name != "invalid_grant" {
		t.Errorf("a refresh token used twice: %q", name)
	}
	if name, _ := c.post(t, "/oauth/token", refresh(second), nil); name != "invalid_grant" || n.OAuth.Grants() != 0 {
		t.Errorf("after that: %q, %d grants", name, n.OAuth.Grants())
	}
	code, verifier = c.code(t)
	if name, out := c.post(t, "/oauth/token", redeem(code, verifier), nil); name != "" {
		t.Fatalf("%v", out)
	}
	if name, _ := c.post(t, "/oauth/token", redeem(code, verifier), nil); name != "invalid_grant" || n.OAuth.Grants() != 0 {
		t.Errorf("a code used twice: %q, %d grants", name, n.OAuth.Grants())
	}
}
