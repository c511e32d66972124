package appview

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

const secretBytes = 32

// maxSecrets bounds a rotation: the secret in use, and those before and after it.
const maxSecrets = 4

// loadSecrets reads the secrets, each a line of 32 bytes in hex, or makes one where there is none. The first is
// used; what was signed or encrypted with the others is accepted. The file is made whole or not at all, and never
// over one that is there.
func loadSecrets(path string) ([][]byte, error) {
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if err := makeSecret(path); err != nil {
			return nil, err
		}
		raw, err = os.ReadFile(path)
	}
	if err != nil {
		return nil, fmt.Errorf("ATCR_SECRET_KEY_FILE: %w", err)
	}
	var secrets [][]byte
	for line := range bytes.FieldsSeq(raw) {
		secret, err := hex.DecodeString(string(line))
		if err != nil || len(secret) < secretBytes {
			return nil, fmt.Errorf("ATCR_SECRET_KEY_FILE: %s does not hold %d bytes in hex a line", path, secretBytes)
		}
		secrets = append(secrets, secret)
	}
	if len(secrets) == 0 || len(secrets) > maxSecrets {
		return nil, fmt.Errorf("ATCR_SECRET_KEY_FILE: %s has %d lines, not 1 to %d", path, len(secrets), maxSecrets)
	}
	return secrets, nil
}

func makeSecret(path string) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("ATCR_SECRET_KEY_FILE: make: %w", err)
		}
	}()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	secret := make([]byte, secretBytes)
	_, _ = rand.Read(secret) // never fails
	f, err := os.CreateTemp(filepath.Dir(path), ".secret-*")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(f.Name()) }()
	if _, err := f.WriteString(hex.EncodeToString(secret) + "\n"); err != nil {
		return errors.Join(err, f.Close())
	}
	if err := errors.Join(f.Chmod(0o600), f.Sync(), f.Close()); err != nil {
		return err
	}
	// A link fails where another process was faster; its secret is the one then.
	if err := os.Link(f.Name(), path); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}
