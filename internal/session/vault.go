package session

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/bluesky-social/indigo/atproto/syntax"
)

// vault encrypts what is kept, and hashes passwords, with keys of its own derived from the secret.
type vault struct {
	aeads       []cipher.AEAD // the first seals, all open
	passwordKey []byte        // of the first: after a change of secrets a password opens a new session
}

// newVault derives the keys. secret is used; what was sealed with one of accepted opens too.
func newVault(secret []byte, accepted ...[]byte) (*vault, error) {
	v := &vault{}
	for _, s := range append([][]byte{secret}, accepted...) {
		aead, err := newAEAD(s)
		if err != nil {
			return nil, err
		}
		v.aeads = append(v.aeads, aead)
	}
	var err error
	v.passwordKey, err = hkdf.Key(sha256.New, secret, nil, "atcr session password hash", 32)
	if err != nil {
		return nil, fmt.Errorf("session: %w", err)
	}
	return v, nil
}

func newAEAD(secret []byte) (cipher.AEAD, error) {
	if len(secret) < 32 {
		return nil, errors.New("session: the secret is shorter than 32 bytes")
	}
	tokenKey, err := hkdf.Key(sha256.New, secret, nil, "atcr session tokens, aes-256-gcm", 32)
	if err != nil {
		return nil, fmt.Errorf("session: %w", err)
	}
	block, err := aes.NewCipher(tokenKey)
	if err != nil {
		return nil, fmt.Errorf("session: %w", err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, fmt.Errorf("session: %w", err)
	}
	return aead, nil
}

// passwordHash finds a session again by its password. Without the secret it tells nothing, and with it no
// more than whether a guess is right.
func (v *vault) passwordHash(did syntax.DID, password string) []byte {
	h := hmac.New(sha256.New, v.passwordKey)
	h.Write([]byte(did))
	h.Write([]byte{0})
	h.Write([]byte(password))
	return h.Sum(nil)
}

type sealedTokens struct {
	Access  string `json:"a"`
	Refresh string `json:"r"`
}

// seal binds the tokens to their row, so that rows cannot be exchanged.
func (v *vault) seal(id string, did syntax.DID, t sealedTokens) ([]byte, error) {
	plain, err := json.Marshal(t)
	if err != nil {
		return nil, err
	}
	return v.aeads[0].Seal(nil, nil, plain, []byte(id+"\x00"+did.String())), nil
}

func (v *vault) open(id string, did syntax.DID, sealed []byte) (t sealedTokens, err error) {
	var plain []byte
	for _, aead := range v.aeads {
		if plain, err = aead.Open(nil, nil, sealed, []byte(id+"\x00"+did.String())); err == nil {
			break
		}
	}
	if err != nil {
		return t, err
	}
	return t, json.Unmarshal(plain, &t)
}
