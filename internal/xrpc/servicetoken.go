package xrpc

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/bluesky-social/indigo/atproto/atcrypto"
	"github.com/bluesky-social/indigo/atproto/syntax"
	lru "github.com/hashicorp/golang-lru/v2"
)

// The limits of a service token.
const (
	maxTokenBytes   = 4096
	maxLifetime     = time.Hour
	maxOnceLifetime = 5 * time.Minute
	issuedLeeway    = 90 * time.Second
	expiryLeeway    = 30 * time.Second
	cachedTokens    = 8192
	maxUsed         = 1000 // once-only tokens remembered an issuer
	maxUsedIssuers  = 10_000
)

// Keys finds an account's signing key (`#atproto`).
type Keys interface {
	// SigningKey may come from a cache.
	SigningKey(ctx context.Context, did syntax.DID) (atcrypto.PublicKey, error)
	// RefreshSigningKey asks again, unless it was asked too often: then it fails.
	RefreshSigningKey(ctx context.Context, did syntax.DID) (atcrypto.PublicKey, error)
}

// VerifierConfig is what a Verifier needs.
type VerifierConfig struct {
	Audience syntax.DID // the service's DID
	Fragment string     // of the service in its document; DID#Fragment is accepted too
	Keys     Keys
	Now      func() time.Time // nil: time.Now
}

// Call says what a token must be good for.
type Call struct {
	Lxm        []string // any one of these
	RequireLxm bool     // a token without lxm is refused
	// Once: lxm always, a lifetime of at most five minutes, and good for one call: see Use.
	Once bool
}

// Verifier checks service tokens: JWTs that a person's PDS signed for this service. Safe for concurrent use.
//
// Source: https://atproto.com/specs/xrpc, "Inter-Service Authentication"; contract, "Callers authenticate".
type Verifier struct {
	config  VerifierConfig
	started time.Time
	good    *lru.Cache[[32]byte, claims] // tokens whose signature was verified

	mu   sync.Mutex
	used map[syntax.DID]map[tokenID]time.Time // once-only tokens, until they expire
}

type tokenHeader struct {
	Typ string `json:"typ"`
	Alg string `json:"alg"`
	Kid string `json:"kid"`

	Crit json.RawMessage `json:"crit"` // what must be understood, and is not
}

// tokenID stands for a jti or a token: of one size, so that long ones cost no more memory than others.
type tokenID [sha256.Size]byte

type claims struct {
	Iss string `json:"iss"`
	Aud string `json:"aud"`
	Lxm string `json:"lxm"`
	Iat int64  `json:"iat"`
	Exp int64  `json:"exp"`
	Jti string `json:"jti"`
}

// NewVerifier makes a Verifier. Tokens for once-only calls that are older than it are refused, since what
// was used before is not known.
func NewVerifier(c VerifierConfig) *Verifier {
	if c.Now == nil {
		c.Now = time.Now
	}
	cache, err := lru.New[[32]byte, claims](cachedTokens)
	if err != nil {
		panic("xrpc: " + err.Error()) // the size is a constant
	}
	return &Verifier{config: c, started: c.Now(), good: cache, used: map[syntax.DID]map[tokenID]time.Time{}}
}

// BearerToken is the request's bearer token, "" where there is none.
func BearerToken(r *http.Request) string {
	scheme, token, ok := strings.Cut(r.Header.Get("Authorization"), " ")
	if !ok || !strings.EqualFold(scheme, "Bearer") {
		return ""
	}
	return strings.TrimSpace(token)
}

// Verify returns whose token it is. What costs nothing is checked first; a key is looked up only for a
// token that is good in all else.
//
// Errors: *Error 401 InvalidToken, BadJwtAudience, BadJwtLexiconMethod, ExpiredToken, BadJwtSignature; 503
// where the issuer's key cannot be found out now.
func (v *Verifier) Verify(ctx context.Context, token string, call Call) (syntax.DID, error) {
	if len(token) > maxTokenBytes {
		return "", invalidToken("the token is larger than %d bytes", maxTokenBytes)
	}
	sum := sha256.Sum256([]byte(token))
	if c, ok := v.good.Get(sum); ok {
		if err := v.check(c, call); err != nil {
			return "", err
		}
		return syntax.DID(c.Iss), nil
	}
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return "", invalidToken("a service token has three parts")
	}
	var h tokenHeader
	var c claims
	if err := errors.Join(decodePart(parts[0], &h), decodePart(parts[1], &c)); err != nil {
		return "", invalidToken("the token is not a JWT")
	}
	if err := errors.Join(h.check(), v.check(c, call)); err != nil {
		return "", AsError(err)
	}
	did, err := syntax.ParseDID(c.Iss)
	if err != nil {
		return "", invalidToken("iss is not a DID")
	}
	signature, err := tokenEncoding.DecodeString(parts[2])
	if err != nil || len(signature) != 64 || len(parts[2]) != 86 { // the decoder skips line ends
		return "", Errorf(http.StatusUnauthorized, "BadJwtSignature", "the signature has not 64 bytes")
	}
	if err := v.verifySignature(ctx, did, h.Alg, []byte(parts[0]+"."+parts[1]), signature); err != nil {
		return "", err
	}
	v.good.Add(sum, c)
	return did, nil
}

// tokenEncoding is strict: two spellings of one signature would be two tokens.
var tokenEncoding = base64.RawURLEncoding.Strict()

func decodePart(part string, v any) error {
	raw, err := tokenEncoding.DecodeString(part)
	if err != nil {
		return err
	}
	return json.Unmarshal(raw, v)
}

func invalidToken(format string, args ...any) *Error {
	return Errorf(http.StatusUnauthorized, "InvalidToken", format, args...)
}

func (h tokenHeader) check() error {
	switch {
	case h.Typ != "" && !strings.EqualFold(h.Typ, "JWT"):
		return invalidToken("typ is %.20q: this is no service token", h.Typ)
	case h.Alg != "ES256K" && h.Alg != "ES256":
		return invalidToken("alg must be ES256K or ES256")
	case h.Kid != "" && h.Kid != "#atproto":
		return invalidToken("kid must be absent or #atproto")
	case h.Crit != nil:
		return invalidToken("crit must be absent")
	}
	return nil
}

// check is all that can be said of the claims without a key.
func (v *Verifier) check(c claims, call Call) error {
	audience := v.config.Audience.String()
	if c.Aud != audience && (v.config.Fragment == "" || c.Aud != audience+"#"+v.config.Fragment) {
		return Errorf(http.StatusUnauthorized, "BadJwtAudience", "the token is not for this service: aud must be %s", audience)
	}
	if c.Lxm == "" && (call.RequireLxm || call.Once) || c.Lxm != "" && !slices.Contains(call.Lxm, c.Lxm) {
		return Errorf(http.StatusUnauthorized, "BadJwtLexiconMethod", "the token is not for this call: lxm must be %s", strings.Join(call.Lxm, " or "))
	}
	now, longest := v.config.Now(), maxLifetime
	if call.Once {
		longest = maxOnceLifetime
	}
	issued, expires := time.Unix(c.Iat, 0), time.Unix(c.Exp, 0)
	if c.Iat == 0 { // older PDSes leave it out
		issued = expires.Add(-longest)
		if expires.After(now.Add(longest)) {
			return invalidToken("the token lives longer than %s", longest)
		}
	}
	switch {
	case c.Exp <= 0 || !now.Before(expires.Add(expiryLeeway)):
		return Errorf(http.StatusUnauthorized, "ExpiredToken", "the token has expired")
	case issued.After(now.Add(issuedLeeway)):
		return invalidToken("the token is from the future: check the clock of the server that signed it")
	case expires.Sub(issued) > longest:
		return invalidToken("the token lives longer than %s", longest)
	case call.Once && c.Iat != 0 && issued.Before(v.started.Truncate(time.Second)): // iat has whole seconds
		return invalidToken("the token is older than this server: ask for a new one")
	case call.Once && c.Iat == 0:
		return invalidToken("a token for this call must have iat")
	}
	return nil
}

// verifySignature binds the algorithm to the key's curve, and asks for the key once more on failure, since
// it may have been rotated.
func (v *Verifier) verifySignature(ctx context.Context, did syntax.DID, alg string, message, signature []byte) error {
	key, err := v.config.Keys.SigningKey(ctx, did)
	if err != nil {
		return unresolved(did, err)
	}
	if verifyWith(key, alg, message, signature) {
		return nil
	}
	if key, err = v.config.Keys.RefreshSigningKey(ctx, did); err == nil && verifyWith(key, alg, message, signature) {
		return nil
	}
	return &Error{Status: http.StatusUnauthorized, Name: "BadJwtSignature", Message: "the token was not signed with the key of " + did.String(), Err: err}
}

func unresolved(did syntax.DID, err error) error {
	e := &Error{
		Status: http.StatusUnauthorized, Name: "InvalidToken", Err: err,
		Message: "the signing key of " + did.String() + " cannot be found: does its DID document have #atproto?",
	}
	if t, ok := errors.AsType[interface {
		error
		Temporary() bool
	}](err); ok && t.Temporary() {
		e.Status, e.Name, e.RetryAfter = http.StatusServiceUnavailable, "UpstreamFailure", 10*time.Second
		e.Message = "the DID document of " + did.String() + " cannot be had right now"
	}
	return e
}

func verifyWith(key atcrypto.PublicKey, alg string, message, signature []byte) bool {
	switch key.(type) {
	case *atcrypto.PublicKeyK256:
		if alg != "ES256K" {
			return false
		}
	case *atcrypto.PublicKeyP256:
		if alg != "ES256" {
			return false
		}
	default:
		return false
	}
	// High-S signatures too, as PDSes may make them: nothing here takes the signature for the token's name.
	return key.HashAndVerifyLenient(message, signature) == nil
}

// Use spends a once-only token that was verified, after its issuer was found permitted.
// Errors: *Error 401 InvalidToken where it was spent before; 429 where the issuer has too many open.
func (v *Verifier) Use(token string) error {
	parts := strings.Split(token, ".")
	var c claims
	if len(parts) != 3 || decodePart(parts[1], &c) != nil {
		return invalidToken("the token is not a JWT")
	}
	id := tokenID(sha256.Sum256([]byte("jti:" + c.Jti)))
	if c.Jti == "" {
		// Of what is signed: whoever has a token can make another signature for it, but no other claims.
		id = sha256.Sum256([]byte("token:" + parts[0] + "." + parts[1]))
	}
	now, did := v.config.Now(), syntax.DID(c.Iss)
	v.mu.Lock()
	defer v.mu.Unlock()
	mine := v.used[did]
	if mine == nil {
		if len(v.used) >= maxUsedIssuers {
			v.forgetExpired(now)
		}
		if len(v.used) >= maxUsedIssuers {
			return tooManyTokens()
		}
		mine = map[tokenID]time.Time{}
		v.used[did] = mine
	}
	if until, ok := mine[id]; ok && now.Before(until) {
		return invalidToken("the token was used before: ask for a new one for each call")
	}
	if len(mine) >= maxUsed {
		forget(mine, now) // of this issuer alone: a flood must not cost a walk over all the others' each time
	}
	if len(mine) >= maxUsed {
		return tooManyTokens()
	}
	mine[id] = time.Unix(c.Exp, 0).Add(expiryLeeway)
	v.used[did] = mine
	return nil
}

func tooManyTokens() error {
	return &Error{Status: http.StatusTooManyRequests, Name: "RateLimitExceeded", Message: "too many calls in the last minutes", RetryAfter: time.Minute}
}

func (v *Verifier) forgetExpired(now time.Time) {
	for did, mine := range v.used {
		if forget(mine, now); len(mine) == 0 {
			delete(v.used, did)
		}
	}
}

func forget(mine map[tokenID]time.Time, now time.Time) {
	for id, until := range mine {
		if !now.Before(until) {
			delete(mine, id)
		}
	}
}

// SignServiceToken is a token as a PDS makes it: for development networks and tests.
func SignServiceToken(key atcrypto.PrivateKey, iss syntax.DID, aud, lxm string, issued time.Time, lifetime time.Duration) (string, error) {
	alg := "ES256K"
	if _, ok := key.(*atcrypto.PrivateKeyP256); ok {
		alg = "ES256"
	}
	body := map[string]any{"iss": iss, "aud": aud, "iat": issued.Unix(), "exp": issued.Add(lifetime).Unix(), "jti": rand.Text()}
	if lxm != "" {
		body["lxm"] = lxm
	}
	return SignJWT(key, map[string]any{"typ": "JWT", "alg": alg}, body)
}

// SignJWT signs any header and claims, right or wrong ones.
func SignJWT(key atcrypto.PrivateKey, header, body map[string]any) (string, error) {
	h, err := json.Marshal(header)
	if err != nil {
		return "", err
	}
	b, err := json.Marshal(body)
	if err != nil {
		return "", err
	}
	message := base64.RawURLEncoding.EncodeToString(h) + "." + base64.RawURLEncoding.EncodeToString(b)
	signature, err := key.HashAndSign([]byte(message))
	if err != nil {
		return "", err
	}
	return message + "." + base64.RawURLEncoding.EncodeToString(signature), nil
}
