package hold

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/bluesky-social/indigo/atproto/atcrypto"
)

// errNoKey says that the hold has a repo but not the key that signs it.
var errNoKey = errors.New("the signing key is missing")

// loadKey reads the hold's secp256k1 key: raw 32 bytes, hexadecimal or multibase.
// Errors: fs.ErrNotExist; others are sentences for an operator and never show the key.
func loadKey(path string) (*atcrypto.PrivateKeyK256, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	if len(raw) == 32 {
		return parseRawKey(path, raw)
	}
	text := string(bytes.TrimSpace(raw))
	if b, err := hex.DecodeString(text); err == nil && len(b) == 32 {
		return parseRawKey(path, b)
	}
	if key, err := atcrypto.ParsePrivateMultibase(text); err == nil {
		if k256, ok := key.(*atcrypto.PrivateKeyK256); ok {
			return k256, nil
		}
		return nil, fmt.Errorf("key file %s: the key is not a secp256k1 one", path)
	}
	return nil, fmt.Errorf("key file %s: neither raw 32 bytes, nor 64 hex digits, nor multibase", path)
}

func parseRawKey(path string, raw []byte) (*atcrypto.PrivateKeyK256, error) {
	key, err := atcrypto.ParsePrivateBytesK256(raw)
	if err != nil {
		return nil, fmt.Errorf("key file %s: not a secp256k1 key", path)
	}
	return key, nil
}

// makeKey makes a key and writes it, raw, 0600, durable before it is first used. It never replaces a file.
func makeKey(path string) (*atcrypto.PrivateKeyK256, error) {
	key, err := atcrypto.GeneratePrivateKeyK256()
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("make key: %w", err)
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), ".signing.key-*") // CreateTemp makes it 0600
	if err != nil {
		return nil, fmt.Errorf("make key: %w", err)
	}
	defer func() { _ = os.Remove(tmp.Name()) }()
	_, err = tmp.Write(key.Bytes())
	err = errors.Join(err, tmp.Sync(), tmp.Close())
	if err == nil {
		err = os.Link(tmp.Name(), path) // unlike Rename it fails where path exists
	}
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	if err != nil {
		return nil, fmt.Errorf("make key: %w", err)
	}
	return key, nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// signingKey is the hold's key. Only where there is no repo yet is one made: a new key for an old repo
// would be another identity.
func signingKey(path string, repoExists bool) (*atcrypto.PrivateKeyK256, error) {
	key, err := loadKey(path)
	switch {
	case err == nil:
		return key, nil
	case !errors.Is(err, fs.ErrNotExist):
		return nil, err
	case repoExists:
		return nil, fmt.Errorf("%w: %s does not exist, but the database has a repo that was signed with it; restore the file, or set HOLD_KEY_PATH", errNoKey, path)
	}
	return makeKey(path)
}
