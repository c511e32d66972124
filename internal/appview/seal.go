package appview

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"
)

// uploadLifetime is that of a hold's uploadUrl.
const uploadLifetime = 24 * time.Hour

// ticket is the state of an upload. It stands, sealed, in the Location that the client has, so that any
// process with the same secret goes on with it and nothing is kept here.
type ticket struct {
	URL        string     `json:"u,omitempty"` // the hold's uploadUrl
	UploadID   string     `json:"i,omitempty"` // or the id of an upload in parts
	Hold       syntax.DID `json:"h"`
	Subject    string     `json:"s"`
	Repository string     `json:"r"`
	Expires    int64      `json:"e"`
}

var errTicket = errors.New("the upload's address is not valid")

// sealer encrypts tickets, so that a client that must not know the hold's URL does not, and cannot make one.
type sealer struct {
	aeads []cipher.AEAD // the first seals, all open
	now   clock
}

func newSealer(secrets [][]byte, now clock) (*sealer, error) {
	s := &sealer{now: now}
	for _, secret := range secrets {
		key, err := hkdf.Key(sha256.New, secret, nil, "atcr upload location, aes-256-gcm", 32)
		if err != nil {
			return nil, fmt.Errorf("derive key: %w", err)
		}
		block, err := aes.NewCipher(key)
		if err != nil {
			return nil, err
		}
		aead, err := cipher.NewGCMWithRandomNonce(block)
		if err != nil {
			return nil, err
		}
		s.aeads = append(s.aeads, aead)
	}
	return s, nil
}

func (s *sealer) seal(t ticket) (string, error) {
	plain, err := json.Marshal(t)
	if err != nil {
		return "", fmt.Errorf("seal upload: %w", err)
	}
	return base64.RawURLEncoding.EncodeToString(s.aeads[0].Seal(nil, nil, plain, nil)), nil
}

// open reads what seal wrote, if subject and repository are those that it was written for.
// Errors: errTicket.
func (s *sealer) open(id, subject, repository string) (ticket, error) {
	var t ticket
	sealed, err := base64.RawURLEncoding.Strict().DecodeString(id)
	if err != nil {
		return t, errTicket
	}
	var plain []byte
	for _, aead := range s.aeads {
		if plain, err = aead.Open(nil, nil, sealed, nil); err == nil {
			break
		}
	}
	if err != nil {
		return t, errTicket
	}
	if json.Unmarshal(plain, &t) != nil || t.Subject != subject || t.Repository != repository || s.now().Unix() > t.Expires {
		return ticket{}, errTicket
	}
	return t, nil
}
