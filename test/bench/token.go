package main

import (
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// tokens signs what a distribution asks for that knows who may read what, as the servers do that stand beside it. RS256
// is the signature that costs its reader the least of those that it takes.
//
// Source: https://distribution.github.io/distribution/spec/auth/jwt/
type tokens struct {
	key  *rsa.PrivateKey
	jwks string // the file
}

const (
	tokenService = "bench"
	tokenKeyID   = "bench-key"
)

func newTokens(dir string) (*tokens, error) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return nil, err
	}
	number := func(n *big.Int) string { return base64.RawURLEncoding.EncodeToString(n.Bytes()) }
	raw, err := json.Marshal(map[string]any{"keys": []any{map[string]string{
		"kty": "RSA", "use": "sig", "alg": "RS256", "kid": tokenKeyID, "n": number(key.N), "e": number(big.NewInt(int64(key.E))),
	}}})
	if err != nil {
		return nil, err
	}
	t := &tokens{key: key, jwks: filepath.Join(dir, "bench.jwks")}
	return t, os.WriteFile(t.jwks, raw, 0o600)
}

// config is the part of a distribution's configuration that has it ask for tokens.
func (t *tokens) config() string {
	return fmt.Sprintf("auth:\n  token:\n    realm: http://127.0.0.1:1/token\n    service: %[1]s\n    issuer: %[1]s\n    jwks: %[2]s\n", tokenService, t.jwks)
}

// bearer is what Authorization says of who may pull from repository and push to it.
func (t *tokens) bearer(repository string) (string, error) {
	now := time.Now()
	token := jwt.NewWithClaims(jwt.SigningMethodRS256, jwt.MapClaims{
		"iss": tokenService, "aud": tokenService, "sub": "alice", "jti": "1",
		"iat": now.Unix(), "nbf": now.Add(-time.Minute).Unix(), "exp": now.Add(6 * time.Hour).Unix(),
		"access": []any{map[string]any{"type": "repository", "name": repository, "actions": []string{"pull", "push"}}},
	})
	token.Header["kid"] = tokenKeyID
	signed, err := token.SignedString(t.key)
	return "Bearer " + signed, err
}
