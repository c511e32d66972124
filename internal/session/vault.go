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
	browserKeys [][]byte      // the first hashes what is new
}

// newVault derives the keys. secret is used; what was sealed with one of accepted opens too.
func newVault(secret []byte, accepted ...[]byte) (*vault, error) {
	v := &vault{}
	for _, s := range append([][]byte{secret}, accepted...) {
		aead, err := newAEAD(s)
		if err != nil {
			return nil, err
		}
		browserKey, err := hkdf.Key(sha256.New, s, nil, "atcr session browser hash", 32)
		if err != nil {
			return nil, fmt.Errorf("session: %w", err)
		}
		v.aeads, v.browserKeys = append(v.aeads, aead), append(v.browserKeys, browserKey)
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

// browserHash finds what belongs to a random value that a browser or a server brings back. purpose keeps
// values of one kind from being good as another.
//
// What was hashed with a secret that is accepted still is found by one of browserHashes.
func (v *vault) browserHash(purpose, value string) []byte { return v.browserHashes(purpose, value)[0] }

func (v *vault) browserHashes(purpose, value string) (hashes [][]byte) {
	for _, key := range v.browserKeys {
		h := hmac.New(sha256.New, key)
		h.Write([]byte(purpose))
		h.Write([]byte{0})
		h.Write([]byte(value))
		hashes = append(hashes, h.Sum(nil))
	}
	return hashes
}

type sealedTokens struct {
	Access  string `json:"a"`
	Refresh string `json:"r"`
	Key     []byte `json:"k,omitempty"` // the session's own, of OAuth
}

// seal binds the tokens to their row, so that rows cannot be exchanged.
func (v *vault) seal(id string, did syntax.DID, t sealedTokens) ([]byte, error) {
	return v.sealJSON(id+"\x00"+did.String(), t)
}

func (v *vault) open(id string, did syntax.DID, sealed []byte) (t sealedTokens, err error) {
	return t, v.openJSON(id+"\x00"+did.String(), sealed, &t)
}

// sealJSON encrypts in for place, where alone it can be opened.
func (v *vault) sealJSON(place string, in any) ([]byte, error) {
	plain, err := json.Marshal(in)
	if err != nil {
		return nil, err
	}
	return v.aeads[0].Seal(nil, nil, plain, []byte(place)), nil
}

func (v *vault) openJSON(place string, sealed []byte, out any) error {
	var plain []byte
	var err error
	for _, aead := range v.aeads {
		if plain, err = aead.Open(nil, nil, sealed, []byte(place)); err == nil {
			break
		}
	}
	if err != nil {
		return err
	}
	return json.Unmarshal(plain, out)
}
