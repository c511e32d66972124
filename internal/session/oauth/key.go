package oauth

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// PublishedFirst is how long a new key is published before it signs: servers keep our key set for a while,
// and refuse what is signed by a key that they have not seen.
const PublishedFirst = time.Hour

// maxKeys bounds the file: a server reads them all at each sign-in.
const maxKeys = 16

// Key signs assertions of who we are.
type Key struct {
	ID      string // RFC 7638 thumbprint
	Private *ecdsa.PrivateKey
	Created time.Time
}

// Keys are the client's keys in a file, newest first. Processes that share a database share the file, and
// notice when another has added a key. Safe for concurrent use.
//
// A session is bound to the key that opened it, at the server: an older key stays in the file, and is
// published, as long as there are sessions of it.
type Keys struct {
	path string
	now  func() time.Time

	mu   sync.Mutex
	raw  []byte // of the file, as it was read
	keys []Key
}

// OpenKeys reads the file at path (PEM, PKCS #8, P-256), or makes it with one key, mode 0600. now may be nil.
func OpenKeys(path string, now func() time.Time) (*Keys, error) {
	if now == nil {
		now = time.Now
	}
	k := &Keys{path: path, now: now}
	err := k.read()
	if errors.Is(err, fs.ErrNotExist) {
		if err = k.create(); err == nil {
			err = k.read()
		}
	}
	if err != nil {
		return nil, err
	}
	return k, nil
}

// Signing is the key for new sessions: the newest that servers had the time to see.
func (k *Keys) Signing() Key {
	keys := k.All()
	for _, key := range keys {
		if k.now().Sub(key.Created) >= PublishedFirst {
			return key
		}
	}
	return keys[len(keys)-1]
}

// ByID is the key that a session is bound to; false where it is in the file no longer.
func (k *Keys) ByID(id string) (Key, bool) {
	for _, key := range k.All() {
		if key.ID == id {
			return key, true
		}
	}
	return Key{}, false
}

// All are the keys as the file has them now, newest first; where it cannot be read, as it was last.
func (k *Keys) All() []Key {
	k.mu.Lock()
	defer k.mu.Unlock()
	_ = k.readLocked() // a file that is being moved or damaged does not end what works
	return k.keys
}

// Rotate puts a new key into the file, and takes those out that needed does not name, by ID. The one that signs
// now stays, and the one before the new one. The new one signs after an hour.
func (k *Keys) Rotate(needed func(id string) (bool, error)) (Key, error) {
	signing := k.Signing()
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.readLocked(); err != nil {
		return Key{}, err
	}
	made, err := newKey(k.now())
	if err != nil {
		return Key{}, err
	}
	kept := []Key{made, k.keys[0]}
	for _, old := range k.keys[1:] {
		keep, err := needed(old.ID)
		if err != nil {
			return Key{}, err
		}
		if keep || old.ID == signing.ID {
			kept = append(kept, old)
		}
	}
	if len(kept) > maxKeys {
		return Key{}, fmt.Errorf("there are %d keys with sessions of their own already; sessions end within months, then there is room", len(kept)-1)
	}
	text, err := encodeKeys(kept)
	if err != nil {
		return Key{}, err
	}
	temporary, err := k.write(text)
	if err != nil {
		return Key{}, err
	}
	if err := os.Rename(temporary, k.path); err != nil {
		return Key{}, errors.Join(err, os.Remove(temporary))
	}
	return made, k.readLocked()
}

func (k *Keys) read() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.readLocked()
}

func (k *Keys) readLocked() error {
	raw, err := os.ReadFile(k.path)
	if err != nil {
		return fmt.Errorf("read the OAuth key: %w", err)
	}
	if k.keys != nil && bytes.Equal(raw, k.raw) {
		return nil
	}
	keys, err := parseKeys(raw)
	if err != nil {
		return fmt.Errorf("%s: %w", k.path, err)
	}
	k.raw, k.keys = raw, keys
	return nil
}

// create makes the file whole or not at all, and never over one that is there.
func (k *Keys) create() error {
	made, err := newKey(k.now())
	if err != nil {
		return err
	}
	text, err := encodeKeys([]Key{made})
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(k.path), 0o700); err != nil {
		return fmt.Errorf("make the OAuth key: %w", err)
	}
	temporary, err := k.write(text)
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(temporary) }()
	// A link fails where another process was faster; its key is the one then.
	if err := os.Link(temporary, k.path); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("make the OAuth key: %w", err)
	}
	return nil
}

// write puts text into a temporary file beside the real one, and on the disk.
func (k *Keys) write(text []byte) (path string, err error) {
	f, err := os.CreateTemp(filepath.Dir(k.path), ".oauth-key-*") // mode 0600
	if err != nil {
		return "", fmt.Errorf("write the OAuth key: %w", err)
	}
	_, err = f.Write(text)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return "", errors.Join(fmt.Errorf("write the OAuth key: %w", err), os.Remove(f.Name()))
	}
	return f.Name(), nil
}

const (
	pemType    = "PRIVATE KEY"
	pemCreated = "Created"
)

func encodeKeys(keys []Key) ([]byte, error) {
	var out []byte
	for _, key := range keys {
		der, err := x509.MarshalPKCS8PrivateKey(key.Private)
		if err != nil {
			return nil, fmt.Errorf("encode the OAuth key: %w", err)
		}
		out = append(out, pem.EncodeToMemory(&pem.Block{
			Type: pemType, Headers: map[string]string{pemCreated: key.Created.UTC().Format(time.RFC3339)}, Bytes: der,
		})...)
	}
	return out, nil
}

func parseKeys(raw []byte) ([]Key, error) {
	var keys []Key
	for {
		block, rest := pem.Decode(raw)
		if block == nil {
			break
		}
		raw = rest
		parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
		private, ok := parsed.(*ecdsa.PrivateKey)
		if err != nil || !ok || private.Curve != elliptic.P256() {
			return nil, errors.New("it does not hold P-256 keys in PKCS #8 PEM")
		}
		created, err := time.Parse(time.RFC3339, block.Headers[pemCreated])
		if err != nil {
			created = time.Time{} // made by another tool: as old as can be
		}
		key, err := withID(Key{Private: private, Created: created})
		if err != nil {
			return nil, err
		}
		keys = append(keys, key)
	}
	if len(keys) == 0 || len(keys) > maxKeys {
		return nil, fmt.Errorf("it holds %d keys, not 1 to %d", len(keys), maxKeys)
	}
	return keys, nil
}

func newKey(now time.Time) (Key, error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Key{}, fmt.Errorf("make a key: %w", err)
	}
	return withID(Key{Private: private, Created: now})
}

func withID(key Key) (Key, error) {
	jwk, err := publicJWK(&key.Private.PublicKey)
	if err != nil {
		return Key{}, err
	}
	key.ID = jwk.thumbprint()
	return key, nil
}

// JWK is a public P-256 key in JSON.
//
// Source: RFC 7517, RFC 7518 section 6.2.1
type JWK struct {
	KeyType   string `json:"kty"`
	Curve     string `json:"crv"`
	X         string `json:"x"`
	Y         string `json:"y"`
	ID        string `json:"kid,omitempty"`
	Use       string `json:"use,omitempty"`
	Algorithm string `json:"alg,omitempty"`
}

func publicJWK(public *ecdsa.PublicKey) (JWK, error) {
	point, err := public.Bytes() // 4, x, y
	if err != nil || len(point) != 65 {
		return JWK{}, fmt.Errorf("encode a key: %w", err)
	}
	return JWK{
		KeyType: "EC", Curve: "P-256",
		X: base64.RawURLEncoding.EncodeToString(point[1:33]), Y: base64.RawURLEncoding.EncodeToString(point[33:]),
	}, nil
}

// thumbprint names the key. Source: RFC 7638.
func (j JWK) thumbprint() string {
	sum := sha256.Sum256(fmt.Appendf(nil, `{"crv":%q,"kty":%q,"x":%q,"y":%q}`, j.Curve, j.KeyType, j.X, j.Y))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}
