package regtoken

import (
	"bytes"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bluesky-social/indigo/atproto/atcrypto"
	"github.com/golang-jwt/jwt/v5"

	"atcr.io/internal/xrpc"
)

var (
	secret = bytes.Repeat([]byte{7}, 32)
	start  = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	pull   = []Access{{Type: "repository", Name: "alice.test/app", Actions: []string{Pull}}}
)

func newIssuer(t testing.TB, change func(*Config)) *Issuer {
	t.Helper()
	c := Config{Secret: secret, Issuer: "https://atcr.test", Audience: "atcr.test", Lifetime: 5 * time.Minute, Now: func() time.Time { return start }}
	if change != nil {
		change(&c)
	}
	i, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func sign(t testing.TB, i *Issuer, c Claims) string {
	t.Helper()
	token, _, _, err := i.Sign(c)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// Would catch a claim that is lost on the way, and grants that leak to other names or actions.
func TestRoundTrip(t *testing.T) {
	t.Parallel()
	i := newIssuer(t, nil)
	token := sign(t, i, Claims{Subject: "did:plc:abc", Session: "s1", Access: pull})
	for range 2 { // the second is answered from memory
		c, err := i.Verify(token)
		if err != nil {
			t.Fatal(err)
		}
		if c.Subject != "did:plc:abc" || c.Session != "s1" || !c.Expires.Equal(start.Add(5*time.Minute)) {
			t.Errorf("claims %+v", c)
		}
		if !c.Allows("alice.test/app", Pull) || c.Allows("alice.test/app", Push) || c.Allows("alice.test/ap", Pull) || c.Names("alice.test/ap") {
			t.Errorf("grants %+v", c.Access)
		}
	}
	if other := newIssuer(t, nil); other.public.Equal(i.public) == false {
		t.Error("processes with one secret have different keys")
	}
}

// Would catch a remembered token that outlives its time.
func TestExpiry(t *testing.T) {
	t.Parallel()
	now := start
	i := newIssuer(t, func(c *Config) { c.Now = func() time.Time { return now } })
	token := sign(t, i, Claims{Access: pull})
	if _, err := i.Verify(token); err != nil {
		t.Fatal(err)
	}
	now = start.Add(5*time.Minute + clockLeeway + time.Second)
	if _, err := i.Verify(token); !errors.Is(err, ErrInvalid) {
		t.Errorf("an expired token that was seen before: %v", err)
	}
	now = start.Add(-time.Minute)
	if _, err := newIssuer(t, func(c *Config) { c.Now = func() time.Time { return now } }).Verify(token); !errors.Is(err, ErrInvalid) {
		t.Errorf("a token from the future: %v", err)
	}
}

// Would catch every known way to pass something else for a registry token.
func TestForgeries(t *testing.T) {
	t.Parallel()
	i := newIssuer(t, nil)
	good := sign(t, i, Claims{Subject: "did:plc:abc", Access: pull})
	claims := wireClaims{RegisteredClaims: jwt.RegisteredClaims{
		Issuer: "https://atcr.test", Audience: jwt.ClaimStrings{"atcr.test"}, Subject: "did:plc:abc",
		IssuedAt: jwt.NewNumericDate(start), ExpiresAt: jwt.NewNumericDate(start.Add(time.Minute)),
	}}
	forge := func(method jwt.SigningMethod, typ any, key any, c wireClaims) string {
		token := jwt.NewWithClaims(method, c)
		token.Header["typ"] = typ
		signed, err := token.SignedString(key)
		if err != nil {
			t.Fatal(err)
		}
		return signed
	}
	der, err := x509.MarshalPKIXPublicKey(i.public)
	if err != nil {
		t.Fatal(err)
	}
	_, stranger, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	noExpiry := claims
	noExpiry.ExpiresAt = nil
	parts := strings.Split(good, ".")
	serviceKey, err := atcrypto.GeneratePrivateKeyK256()
	if err != nil {
		t.Fatal(err)
	}
	service, err := xrpc.SignServiceToken(serviceKey, "did:plc:abc", "atcr.test", "", start, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	for what, token := range map[string]string{
		"empty":                      "",
		"no JWT":                     "abc",
		"another secret":             sign(t, newIssuer(t, func(c *Config) { c.Secret = bytes.Repeat([]byte{8}, 32) }), Claims{Access: pull}),
		"another audience":           sign(t, newIssuer(t, func(c *Config) { c.Audience = "other.test" }), Claims{Access: pull}),
		"another issuer":             sign(t, newIssuer(t, func(c *Config) { c.Issuer = "https://other.test" }), Claims{Access: pull}),
		"a stranger's key":           forge(jwt.SigningMethodEdDSA, tokenType, stranger, claims),
		"alg none":                   forge(jwt.SigningMethodNone, tokenType, jwt.UnsafeAllowNoneSignatureType, claims),
		"HMAC with the public key":   forge(jwt.SigningMethodHS256, tokenType, []byte(i.public), claims),
		"HMAC with the key in DER":   forge(jwt.SigningMethodHS256, tokenType, der, claims),
		"another type":               forge(jwt.SigningMethodEdDSA, "JWT", i.private, claims),
		"a type that is no text":     forge(jwt.SigningMethodEdDSA, 1, i.private, claims),
		"without an expiry":          forge(jwt.SigningMethodEdDSA, tokenType, i.private, noExpiry),
		"a changed payload":          parts[0] + "." + base64.RawURLEncoding.EncodeToString([]byte(`{"sub":"did:plc:other"}`)) + "." + parts[2],
		"a hold's service token":     service,
		"without a signature":        parts[0] + "." + parts[1] + ".",
		"longer than any":            good + strings.Repeat("A", maxTokenBytes),
		"with something appended":    good + "A",
		"with a fourth part":         good + ".x",
		"with padding in a part":     parts[0] + "=." + parts[1] + "." + parts[2],
		"with a line break within":   parts[0] + "\n." + parts[1] + "." + parts[2],
		"with the parts exchanged":   parts[1] + "." + parts[0] + "." + parts[2],
		"with a signature of zeroes": parts[0] + "." + parts[1] + "." + base64.RawURLEncoding.EncodeToString(bytes.Repeat([]byte{0}, 64)),
	} {
		if c, err := i.Verify(token); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %+v, %v", what, c, err)
		}
	}
}

// Would catch a key that is taken from the token itself: whoever made it chose that one.
func TestKeysInHeadersAreNotRead(t *testing.T) {
	t.Parallel()
	i := newIssuer(t, nil)
	claims := wireClaims{RegisteredClaims: jwt.RegisteredClaims{
		Issuer: "https://atcr.test", Audience: jwt.ClaimStrings{"atcr.test"}, Subject: "did:plc:abc",
		IssuedAt: jwt.NewNumericDate(start), ExpiresAt: jwt.NewNumericDate(start.Add(time.Minute)),
	}}
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	jwk := map[string]any{"kty": "OKP", "crv": "Ed25519", "x": base64.RawURLEncoding.EncodeToString(public)}
	for name, value := range map[string]any{
		"jwk": jwk, "jku": "https://evil.test/keys", "x5u": "https://evil.test/cert", "x5c": []string{"MIIB"}, "kid": "../../dev/null",
	} {
		for key, wanted := range map[*ed25519.PrivateKey]bool{&private: false, &i.private: true} {
			token := jwt.NewWithClaims(jwt.SigningMethodEdDSA, claims)
			token.Header["typ"], token.Header[name] = tokenType, value
			signed, err := token.SignedString(*key)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := i.Verify(signed); (err == nil) != wanted {
				t.Errorf("%s, signed by us %v: %v", name, wanted, err)
			}
		}
	}
}

// Would catch a change of keys that ends tokens before their time, and a key that goes on after it was taken away.
func TestTwoKeys(t *testing.T) {
	t.Parallel()
	old, next := bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 32)
	issuer := func(secret []byte, accepted ...[]byte) *Issuer {
		return newIssuer(t, func(c *Config) { c.Secret, c.Accepted = secret, accepted })
	}
	before, during, after := issuer(old, next), issuer(next, old), issuer(next)
	ofOld, ofNext := sign(t, before, Claims{Access: pull}), sign(t, during, Claims{Access: pull})
	for what, tt := range map[string]struct {
		issuer *Issuer
		token  string
		good   bool
	}{
		"old, before": {before, ofOld, true}, "next, before": {before, ofNext, true}, "old, during": {during, ofOld, true},
		"next, during": {during, ofNext, true}, "old, after": {after, ofOld, false}, "next, after": {after, ofNext, true},
	} {
		if _, err := tt.issuer.Verify(tt.token); (err == nil) != tt.good {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := New(Config{Secret: old, Accepted: [][]byte{{1}}, Issuer: "i", Audience: "a", Lifetime: time.Minute}); err == nil {
		t.Error("a short secret is taken")
	}
}

// Would catch scopes read by the wrong colon, unknown actions that are granted, and unbounded ones.
func TestParseScopes(t *testing.T) {
	t.Parallel()
	all := []string{Pull, Push, Delete}
	for _, tt := range []struct {
		in   []string
		want []Access
		bad  bool
	}{
		{nil, nil, false},
		{[]string{""}, nil, false},
		{[]string{"repository:alice.test/app:pull,push"}, []Access{{"repository", "alice.test/app", []string{Pull, Push}}}, false},
		{[]string{"repository:a/b:pull repository:a/c:push"}, []Access{{"repository", "a/b", []string{Pull}}, {"repository", "a/c", []string{Push}}}, false},
		{[]string{"repository:a/b:pull", "repository:a/b:push,pull"}, []Access{{"repository", "a/b", []string{Pull, Push}}}, false},
		{[]string{"repository:did:plc:abc/app:pull"}, []Access{{"repository", "did:plc:abc/app", []string{Pull}}}, false},
		{[]string{"repository:h:5000/a/b:*"}, []Access{{"repository", "h:5000/a/b", all}}, false},
		{[]string{"repository(plugin):a/b:pull,frob"}, []Access{{"repository", "a/b", []string{Pull}}}, false},
		{[]string{"registry:catalog:*"}, nil, false},
		{[]string{"repository:a/b:"}, []Access{{"repository", "a/b", nil}}, false},
		{[]string{"repository"}, nil, true},
		{[]string{"repository:a/b"}, nil, true},
		{[]string{"repository::pull"}, nil, true},
		{[]string{"repository:" + strings.Repeat("a", 256) + ":pull"}, nil, true},
		{[]string{strings.Repeat(" ", maxScopeBytes+1)}, nil, true},
	} {
		got, err := ParseScopes(tt.in)
		if (err != nil) != tt.bad || err != nil && !errors.Is(err, ErrScope) {
			t.Errorf("%q: error %v", tt.in, err)
		}
		if !slices.EqualFunc(got, tt.want, func(a, b Access) bool {
			return a.Type == b.Type && a.Name == b.Name && slices.Equal(a.Actions, b.Actions)
		}) {
			t.Errorf("%q: %+v, want %+v", tt.in, got, tt.want)
		}
	}
	var many []string
	for n := range MaxScopes + 1 {
		many = append(many, "repository:a/b"+strings.Repeat("x", n)+":pull")
	}
	if _, err := ParseScopes(many); !errors.Is(err, ErrScope) {
		t.Errorf("%d scopes: %v", len(many), err)
	}
}

func FuzzParseScopes(f *testing.F) {
	f.Add("repository:alice.test/app:pull,push,delete")
	f.Add("repository(plugin):did:plc:x/y:* registry:catalog:*")
	f.Add("::")
	f.Fuzz(func(t *testing.T, s string) {
		list, err := ParseScopes([]string{s})
		if err != nil {
			return
		}
		for _, a := range list {
			if a.Type != "repository" || a.Name == "" || len(a.Name) > maxNameBytes || len(a.Actions) > 3 || strings.ContainsAny(a.Name, " \t") {
				t.Errorf("%q: %+v", s, a)
			}
		}
	})
}

// FuzzVerify would catch a token that ends the process, one that nobody signed and is believed, and a signed one that is
// believed beyond what it says: of another kind, for others, or without an end.
func FuzzVerify(f *testing.F) {
	i := newIssuer(f, nil)
	genuine := sign(f, i, Claims{Subject: "did:plc:abc", Session: "s1", Access: pull})
	parts := strings.Split(genuine, ".")
	decode := func(part string) string {
		raw, err := base64.RawURLEncoding.DecodeString(part)
		if err != nil {
			f.Fatal(err)
		}
		return string(raw)
	}
	header, payload := decode(parts[0]), decode(parts[1])
	f.Add(genuine, "", false)
	f.Add(genuine+"=", "", false)
	f.Add(parts[0]+"."+parts[1]+".", "", false)
	for _, pair := range [][2]string{
		{header, payload}, {`{"alg":"none","typ":"atcr-registry+jwt"}`, payload}, {`{"alg":"EdDSA"}`, payload}, {`{"alg":"EdDSA","alg":"HS256","typ":"atcr-registry+jwt"}`, payload},
		{header, `{}`}, {header, `null`}, {header, strings.Replace(payload, `"exp":`, `"exp":1e400,"x":`, 1)}, {header, strings.Replace(payload, `"exp":`, `"exp":-1,"x":`, 1)},
		{header, strings.Replace(payload, `"aud":["atcr.test"]`, `"aud":"atcr.test"`, 1)}, {header, strings.Replace(payload, `"access":`, `"access":[null],"x":`, 1)},
		{header, strings.Replace(payload, `"iat":`, `"nbf":"soon","iat":`, 1)}, {header, strings.Repeat("[", 10_000)},
	} {
		f.Add(pair[0], pair[1], true)
	}
	f.Fuzz(func(t *testing.T, header, payload string, signed bool) {
		i := newIssuer(t, nil) // which remembers nothing
		token := header
		if signed {
			token = base64.RawURLEncoding.EncodeToString([]byte(header)) + "." + base64.RawURLEncoding.EncodeToString([]byte(payload))
			token += "." + base64.RawURLEncoding.EncodeToString(ed25519.Sign(i.private, []byte(token)))
		}
		c, err := i.Verify(token)
		if err != nil {
			if !errors.Is(err, ErrInvalid) || c != nil {
				t.Fatalf("%q: %+v, %v", token, c, err)
			}
			return
		}
		if !signed {
			if token != genuine {
				t.Fatalf("%q was signed by nobody: %+v", token, c)
			}
			return
		}
		var says map[string]any
		if json.Unmarshal([]byte(header), &says) != nil || says["alg"] != "EdDSA" || says["typ"] != tokenType {
			t.Fatalf("%q is believed", header)
		}
		var wire struct {
			Iss string
			Aud any
			Exp json.Number
		}
		if err := json.Unmarshal([]byte(payload), &wire); err != nil || wire.Iss != "https://atcr.test" || !strings.Contains(fmt.Sprint(wire.Aud), "atcr.test") || wire.Exp == "" {
			t.Fatalf("%q is believed: %v", payload, err)
		}
		if c.Expires.Before(start.Add(-clockLeeway)) {
			t.Fatalf("%q is believed after %v", payload, c.Expires)
		}
		if again, err := i.Verify(token); err != nil && i.config.Now().Before(c.Expires) || again != nil && again != c {
			t.Fatalf("%q is not remembered: %v", token, err)
		}
	})
}
