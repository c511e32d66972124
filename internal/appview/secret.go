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

// loadSecret reads the secret, 32 bytes in hex, or makes it where there is none. It is made whole or not at
// all, and never over one that is there.
func loadSecret(path string) ([]byte, error) {
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
	secret, err := hex.DecodeString(string(bytes.TrimSpace(raw)))
	if err != nil || len(secret) < secretBytes {
		return nil, fmt.Errorf("ATCR_SECRET_KEY_FILE: %s does not hold %d bytes in hex", path, secretBytes)
	}
	return secret, nil
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
