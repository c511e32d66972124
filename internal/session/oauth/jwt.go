package oauth

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net/url"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// assertionLifetime is short: an assertion is made for one request.
const assertionLifetime = time.Minute

// assertion tells the authorization server who we are. at is the server's time, as far as we know it: one
// that seems to come from the future is refused, without tolerance.
//
// Source: RFC 7523 section 3
func assertion(key Key, clientID, issuer string, at time.Time) (string, error) {
	token := jwt.NewWithClaims(jwt.SigningMethodES256, jwt.RegisteredClaims{
		Issuer: clientID, Subject: clientID, Audience: jwt.ClaimStrings{issuer}, ID: rand.Text(),
		IssuedAt: jwt.NewNumericDate(at), ExpiresAt: jwt.NewNumericDate(at.Add(assertionLifetime)),
	})
	token.Header["kid"] = key.ID
	signed, err := token.SignedString(key.Private)
	if err != nil {
		return "", fmt.Errorf("sign client assertion: %w", err)
	}
	return signed, nil
}

type proofClaims struct {
	jwt.RegisteredClaims
	Method      string `json:"htm"`
	URL         string `json:"htu"` // without query
	Nonce       string `json:"nonce,omitempty"`
	AccessToken string `json:"ath,omitempty"` // its hash
}

// proof tells a server that who sends this request has the session's key. accessToken is "" at the
// authorization server.
//
// Source: RFC 9449 section 4.2
func proof(key *ecdsa.PrivateKey, method string, u *url.URL, nonce, accessToken string, at time.Time) (string, error) {
	jwk, err := publicJWK(&key.PublicKey)
	if err != nil {
		return "", err
	}
	claims := proofClaims{
		RegisteredClaims: jwt.RegisteredClaims{ID: rand.Text(), IssuedAt: jwt.NewNumericDate(at)},
		Method:           method, URL: (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path, RawPath: u.RawPath}).String(), Nonce: nonce,
	}
	if accessToken != "" {
		sum := sha256.Sum256([]byte(accessToken))
		claims.AccessToken = base64.RawURLEncoding.EncodeToString(sum[:])
	}
	token := jwt.NewWithClaims(jwt.SigningMethodES256, claims)
	token.Header["typ"], token.Header["jwk"] = "dpop+jwt", jwk
	signed, err := token.SignedString(key)
	if err != nil {
		return "", fmt.Errorf("sign DPoP proof: %w", err)
	}
	return signed, nil
}
