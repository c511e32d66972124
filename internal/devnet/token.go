package devnet

import (
	"errors"
	"net/http"
	"slices"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"
	"github.com/golang-jwt/jwt/v5"

	"atcr.io/internal/xrpc"
)

// What a session token may do: the scopes of the reference PDS.
const (
	scopeAccess  = "com.atproto.access"  // opened with the main password
	scopeAppPass = "com.atproto.appPass" // opened with an app password
	scopeRefresh = "com.atproto.refresh"
)

const (
	accessLifetime  = 2 * time.Hour
	refreshLifetime = 90 * 24 * time.Hour
)

type sessionClaims struct {
	Scope string `json:"scope"`
	jwt.RegisteredClaims
}

// tokens signs and checks the tokens of sessions. They are the server's own affair: HMAC, one key.
type tokens struct {
	key      []byte
	audience string // the PDS's DID
	now      func() time.Time
}

// sign makes an access token, or a refresh token where id is not empty.
func (t *tokens) sign(did syntax.DID, scope, id string) (string, error) {
	kind, lifetime := "at+jwt", accessLifetime
	if scope == scopeRefresh {
		kind, lifetime = "refresh+jwt", refreshLifetime
	}
	now := t.now()
	token := jwt.NewWithClaims(jwt.SigningMethodHS256, &sessionClaims{Scope: scope, RegisteredClaims: jwt.RegisteredClaims{
		Subject: did.String(), Audience: jwt.ClaimStrings{t.audience}, ID: id,
		IssuedAt: jwt.NewNumericDate(now), ExpiresAt: jwt.NewNumericDate(now.Add(lifetime)),
	}})
	token.Header["typ"] = kind
	return token.SignedString(t.key)
}

// verify takes the bearer token of a request that has one of the scopes. Errors: *xrpc.Error, as the
// reference PDS answers them (a token that is no good is 400, one that is missing 401).
func (t *tokens) verify(r *http.Request, scopes ...string) (*sessionClaims, error) {
	raw := xrpc.BearerToken(r)
	if raw == "" {
		return nil, xrpc.Errorf(http.StatusUnauthorized, "AuthMissing", "Authentication Required")
	}
	var claims sessionClaims
	_, err := jwt.ParseWithClaims(raw, &claims, func(*jwt.Token) (any, error) { return t.key, nil },
		jwt.WithValidMethods([]string{jwt.SigningMethodHS256.Alg()}), jwt.WithAudience(t.audience),
		jwt.WithExpirationRequired(), jwt.WithTimeFunc(t.now))
	if errors.Is(err, jwt.ErrTokenExpired) {
		return nil, xrpc.Errorf(http.StatusBadRequest, "ExpiredToken", "Token has expired")
	}
	if err != nil {
		return nil, xrpc.Errorf(http.StatusBadRequest, "InvalidToken", "Token could not be verified")
	}
	if !slices.Contains(scopes, claims.Scope) {
		return nil, xrpc.Errorf(http.StatusBadRequest, "InvalidToken", "Bad token scope")
	}
	return &claims, nil
}
