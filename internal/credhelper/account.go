// Package credhelper is the docker credential helper: who is signed in to which registry, where their secrets
// are kept, and the commands that people type.
//
// It owns this machine's side. It refuses to own the registry's: it speaks HTTP with an AppView like anybody
// else (docs/device.md), and links neither a database nor storage.
//
// Source: https://github.com/docker/docker-credential-helpers for the protocol of docker and others.
package credhelper

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/gofrs/flock"
)

// Account is somebody who is signed in to a registry on this machine. Its secret is kept elsewhere.
type Account struct {
	Registry string `json:"registry"` // host, with a port where it has one
	Handle   string `json:"handle"`
	DID      string `json:"did,omitempty"` // unknown of what `docker login` stored
	Device   string `json:"device,omitempty"`
	// Kind is device (approved in a browser) or password (given to `docker login`).
	Kind  string    `json:"kind"`
	Store string    `json:"store"` // keychain or file
	Since time.Time `json:"since"`
}

// Kinds of accounts, and places of secrets.
const (
	kindDevice   = "device"
	kindPassword = "password"
	inKeychain   = "keychain"
	inFile       = "file"
)

// key names the account's secret: one for each registry and person.
func (a Account) key() string {
	if a.DID != "" {
		return a.Registry + " " + a.DID
	}
	return a.Registry + " " + a.Handle
}

// username is what the registry is told.
func (a Account) username() string {
	if a.Handle != "" {
		return a.Handle
	}
	return a.DID
}

// appPassword tells whether secret is one, which the PDS knows and the registry does not.
func (a Account) appPassword(secret string) bool {
	return a.Kind == kindPassword && !strings.HasPrefix(secret, "atcr")
}

// is tells whether owner, the first part of an image's name or what somebody typed, means this account.
func (a Account) is(owner string) bool {
	owner = strings.TrimPrefix(owner, "@")
	return owner != "" && (strings.EqualFold(owner, a.Handle) || owner == a.DID || a.DID != "" && owner == strings.ReplaceAll(a.DID, ":", "_"))
}

// state is accounts.json.
type state struct {
	Accounts []Account `json:"accounts"`
	// Current is the account of each registry that is used where nothing says which: its key.
	Current map[string]string `json:"current"`
	// ToldFile: that secrets are kept in a file was said.
	ToldFile bool `json:"toldFile,omitempty"`
}

// of are the accounts of a registry, the current one first.
func (s *state) of(registry string) []Account {
	var out []Account
	for _, a := range s.Accounts {
		if a.Registry != registry {
			continue
		}
		if a.key() == s.Current[registry] {
			out = append([]Account{a}, out...)
		} else {
			out = append(out, a)
		}
	}
	return out
}

// pick is the account that a request means: that of the image's owner, else the current one.
func (s *state) pick(registry, owner string) (Account, bool) {
	all := s.of(registry)
	if len(all) == 0 {
		return Account{}, false
	}
	for _, a := range all {
		if a.is(owner) {
			return a, true
		}
	}
	return all[0], true
}

func (s *state) add(a Account) {
	s.remove(a)
	s.Accounts = append(s.Accounts, a)
	s.Current[a.Registry] = a.key()
}

func (s *state) remove(a Account) {
	s.Accounts = slices.DeleteFunc(s.Accounts, func(b Account) bool { return a.key() == b.key() })
	if s.Current[a.Registry] == a.key() {
		delete(s.Current, a.Registry)
		if rest := s.of(a.Registry); len(rest) > 0 {
			s.Current[a.Registry] = rest[0].key()
		}
	}
}

// registries are those that somebody is signed in to.
func (s *state) registries() []string {
	var out []string
	for _, a := range s.Accounts {
		out = append(out, a.Registry)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func (h *Helper) path(name string) string { return filepath.Join(h.Dir, name) }

// load reads who is signed in. No file is nobody.
func (h *Helper) load() (*state, error) {
	s := &state{Current: map[string]string{}}
	raw, err := os.ReadFile(h.path("accounts.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err == nil {
		err = json.Unmarshal(raw, s)
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", h.path("accounts.json"), err)
	}
	if s.Current == nil {
		s.Current = map[string]string{}
	}
	return s, nil
}

// change reads, changes and writes who is signed in, while no other process does.
func (h *Helper) change(f func(*state) error) error {
	if err := os.MkdirAll(h.Dir, 0o700); err != nil {
		return err
	}
	lock := flock.New(h.path("lock"))
	if err := lock.Lock(); err != nil {
		return fmt.Errorf("lock %s: %w", h.Dir, err)
	}
	defer func() { _ = lock.Unlock() }()
	s, err := h.load()
	if err != nil {
		return err
	}
	if err := f(s); err != nil {
		return err
	}
	return writeJSON(h.path("accounts.json"), s)
}

// writeJSON replaces a file that its owner alone may read.
func writeJSON(path string, value any) error {
	raw, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		return err
	}
	return replaceFile(path, append(raw, '\n'), 0o600)
}

// replaceFile writes a file whole or not at all.
func replaceFile(path string, content []byte, mode fs.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(f.Name()) }() // after the rename there is none
	if _, err := f.Write(content); err != nil {
		return errors.Join(err, f.Close())
	}
	if err := errors.Join(f.Chmod(mode), f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// splitServer takes what clients ask for apart: HOST, HOST/REPO, or either behind https://.
func splitServer(text string) (registry, owner string) {
	text = strings.TrimSpace(text)
	if u, err := url.Parse(text); err == nil && u.Host != "" && (u.Scheme == "https" || u.Scheme == "http") {
		text = u.Host + u.Path
	}
	registry, path, _ := strings.Cut(text, "/")
	owner, _, more := strings.Cut(path, "/")
	if !more && (owner == "v1" || owner == "v2") {
		owner = ""
	}
	return strings.ToLower(registry), owner
}
