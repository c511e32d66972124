package devnet

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"

	"github.com/bluesky-social/indigo/atproto/atcrypto"
	"github.com/bluesky-social/indigo/atproto/syntax"
)

const stateFile = "network.json"

// state is what a network is made of beside the repos: it is written after each change, so that a network
// started again in the same folder is the same network, at the same addresses.
type state struct {
	PDSAddress  string                    `json:"pdsAddress"`
	PLCAddress  string                    `json:"plcAddress"`
	TokenKey    []byte                    `json:"tokenKey"`
	RotationKey string                    `json:"rotationKey"` // multibase
	Accounts    []*account                `json:"accounts"`
	Sessions    map[string]refreshGrant   `json:"sessions"`
	Operations  map[syntax.DID][]logEntry `json:"operations"`
}

// loadState reads the folder's state, or makes a new one.
func loadState(dir string) (*state, error) {
	raw, err := os.ReadFile(filepath.Join(dir, stateFile))
	if errors.Is(err, fs.ErrNotExist) {
		return newState()
	}
	if err != nil {
		return nil, err
	}
	var s state
	if err := json.Unmarshal(raw, &s); err != nil {
		return nil, fmt.Errorf("%s is damaged: %w", filepath.Join(dir, stateFile), err)
	}
	for _, a := range s.Accounts {
		key, err := atcrypto.ParsePrivateMultibase(a.SigningKey)
		if err != nil {
			return nil, fmt.Errorf("%s is damaged: signing key of %s: %w", filepath.Join(dir, stateFile), a.Handle, err)
		}
		k256, ok := key.(*atcrypto.PrivateKeyK256)
		if !ok {
			return nil, fmt.Errorf("%s is damaged: signing key of %s is not a secp256k1 one", filepath.Join(dir, stateFile), a.Handle)
		}
		a.key = k256
	}
	return &s, nil
}

func newState() (*state, error) {
	rotation, err := atcrypto.GeneratePrivateKeyK256()
	if err != nil {
		return nil, err
	}
	return &state{
		TokenKey: []byte(rand.Text() + rand.Text()), RotationKey: rotation.Multibase(),
		Sessions: map[string]refreshGrant{}, Operations: map[syntax.DID][]logEntry{},
	}, nil
}

func (s *state) rotation() (*atcrypto.PrivateKeyK256, error) {
	key, err := atcrypto.ParsePrivateMultibase(s.RotationKey)
	if err != nil {
		return nil, fmt.Errorf("rotation key: %w", err)
	}
	k256, ok := key.(*atcrypto.PrivateKeyK256)
	if !ok {
		return nil, errors.New("rotation key: not a secp256k1 one")
	}
	return k256, nil
}

// write replaces the folder's state in one step.
func (s *state) write(dir string) error {
	raw, err := json.Marshal(s)
	if err != nil {
		return err
	}
	tmp := filepath.Join(dir, stateFile+".new")
	if err := os.WriteFile(tmp, raw, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(dir, stateFile))
}

// save writes everything that the running network knows.
func (n *Network) save() error {
	n.saving.Lock()
	defer n.saving.Unlock()
	s := *n.state
	n.accounts.copyInto(&s)
	n.directory.copyInto(&s)
	return s.write(n.dir)
}

func (a *accounts) copyInto(s *state) {
	s.Accounts = a.all()
	a.mu.Lock()
	defer a.mu.Unlock()
	s.Sessions = maps.Clone(a.sessions)
}

func (d *directory) copyInto(s *state) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	s.Operations = maps.Clone(d.logs)
}
