package credhelper

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/zalando/go-keyring"
)

// service is the name of our entries in the keychain.
const service = "docker-credential-atcr"

// errLocked says that the keychain waits for somebody, or is broken.
var errLocked = errors.New("the keychain is locked, or does not answer: unlock it, or sign in again with --file to keep secrets in a file")

// Keychain keeps secrets for this machine's user. It may block, as where it shows a dialogue.
type Keychain interface {
	Set(key, secret string) error
	Get(key string) (string, error) // errNoSecret
	Delete(key string) error
}

// errNoSecret says that a secret is not where it was put.
var errNoSecret = errors.New("the secret is not there any more")

// SystemKeychain is that of macOS, Windows, or a Linux desktop (Secret Service).
type SystemKeychain struct{}

// Set keeps a secret. Errors: errLocked.
func (SystemKeychain) Set(key, secret string) error {
	return keychainError(keyring.Set(service, key, secret))
}

// keychainError finds out that the keychain could not be unlocked where nobody is asked: the Secret Service's library
// says it in these words, and the program of macOS by the last byte of errSecInteractionNotAllowed.
func keychainError(err error) error {
	if err != nil && (strings.Contains(err.Error(), "failed to unlock") || runtime.GOOS == "darwin" && err.Error() == "exit status 36") {
		return fmt.Errorf("%w (%w)", errLocked, err)
	}
	return err
}

// Get reads a secret. Errors: errNoSecret, errLocked.
func (SystemKeychain) Get(key string) (string, error) {
	secret, err := keyring.Get(service, key)
	if errors.Is(err, keyring.ErrNotFound) {
		return "", errNoSecret
	}
	return secret, keychainError(err)
}

// Delete removes a secret. One that is not there is no error.
func (SystemKeychain) Delete(key string) error {
	err := keyring.Delete(service, key)
	if errors.Is(err, keyring.ErrNotFound) {
		return nil
	}
	return keychainError(err)
}

// within bounds what a keychain may take: docker waits for the answer, and nobody may be at the screen.
func within[T any](limit time.Duration, f func() (T, error)) (T, error) {
	type result struct {
		value T
		err   error
	}
	done := make(chan result, 1)
	go func() {
		value, err := f()
		done <- result{value, err}
	}()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case r := <-done:
		return r.value, r.err
	case <-timer.C:
		var zero T
		return zero, errLocked
	}
}

// keep stores an account's secret: in the keychain where one can be used, else in a file. Then note says so, once.
func (h *Helper) keep(s *state, a *Account, secret string, patience time.Duration) (note string, err error) {
	key, why := a.key(), "As you asked"
	if !h.OnlyFile {
		_, err := within(patience, func() (struct{}, error) { return struct{}{}, h.Keys.Set(key, secret) })
		if err == nil {
			a.Store = inKeychain
			return "", nil
		}
		why = fmt.Sprintf("There is no keychain here that works (%v)", err)
		if errors.Is(err, errLocked) {
			why = "The keychain is locked, or does not answer"
		}
	}
	a.Store = inFile
	if !s.ToldFile {
		note = why + ": secrets are kept in " + h.secretsFile() + ", which you alone can read."
	}
	s.ToldFile = true
	return note, h.changeFile(func(secrets map[string]string) { secrets[key] = secret })
}

// secret reads an account's secret. Errors: errNoSecret, errLocked.
func (h *Helper) secret(a Account) (string, error) {
	if a.Store == inKeychain {
		return within(h.Patience, func() (string, error) { return h.Keys.Get(a.key()) })
	}
	secrets, err := h.readFile()
	if err != nil {
		return "", err
	}
	secret, ok := secrets[a.key()]
	if !ok {
		return "", errNoSecret
	}
	return secret, nil
}

// forget removes an account's secret.
func (h *Helper) forget(a Account) error {
	if a.Store == inKeychain {
		_, err := within(h.Patience, func() (struct{}, error) { return struct{}{}, h.Keys.Delete(a.key()) })
		return err
	}
	return h.changeFile(func(secrets map[string]string) { delete(secrets, a.key()) })
}

func (h *Helper) secretsFile() string { return h.path("secrets.json") }

// readFile reads the file of secrets, unless others could read it too.
func (h *Helper) readFile() (map[string]string, error) {
	secrets := map[string]string{}
	info, err := os.Stat(h.secretsFile())
	if errors.Is(err, fs.ErrNotExist) {
		return secrets, nil
	}
	if err != nil {
		return nil, err
	}
	if runtime.GOOS != "windows" && info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s can be read by others (mode %o): chmod 600 it, and revoke its devices where somebody may have", h.secretsFile(), info.Mode().Perm())
	}
	raw, err := os.ReadFile(h.secretsFile())
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(raw, &secrets); err != nil {
		return nil, fmt.Errorf("%s: %w", h.secretsFile(), err)
	}
	return secrets, nil
}

func (h *Helper) changeFile(f func(map[string]string)) error {
	if err := os.MkdirAll(h.Dir, 0o700); err != nil {
		return err
	}
	secrets, err := h.readFile()
	if err != nil {
		return err
	}
	f(secrets)
	return writeJSON(h.secretsFile(), secrets)
}
