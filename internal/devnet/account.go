package devnet

import (
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/bluesky-social/indigo/atproto/atcrypto"
	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/internal/plc"
)

var (
	errNoAccount     = errors.New("no such account")
	errWrongPassword = errors.New("wrong password")
	errNameTaken     = errors.New("the name is taken")
)

// appPassword is a second password of an account, which may do less.
type appPassword struct {
	Name      string    `json:"name"`
	Password  string    `json:"password"`
	CreatedAt time.Time `json:"createdAt"`
}

// account is a person with a repo here. Passwords are kept as they are: this network lasts as long as a
// demo, and the demo prints them.
type account struct {
	DID          syntax.DID    `json:"did"`
	Handle       syntax.Handle `json:"handle"`
	Password     string        `json:"password"`
	AppPasswords []appPassword `json:"appPasswords"`
	SigningKey   string        `json:"signingKey"` // multibase
	key          *atcrypto.PrivateKeyK256
}

// refreshGrant is what an unused refresh token stands for.
type refreshGrant struct {
	DID         syntax.DID `json:"did"`
	AppPassword string     `json:"appPassword,omitempty"` // its name; empty for the main password
}

// accounts are the people of the PDS and their sessions. Accounts are never changed in place, so that a
// pointer may be read without the lock.
type accounts struct {
	mu       sync.Mutex
	byDID    map[syntax.DID]*account
	order    []syntax.DID
	sessions map[string]refreshGrant // by the refresh token's id
}

func newAccounts(s *state) *accounts {
	a := &accounts{byDID: map[syntax.DID]*account{}, sessions: maps.Clone(s.Sessions)}
	for _, of := range s.Accounts {
		a.byDID[of.DID], a.order = of, append(a.order, of.DID)
	}
	return a
}

// get is the account of a handle or DID. Errors: errNoAccount.
func (a *accounts) get(identifier string) (*account, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.find(identifier)
}

func (a *accounts) find(identifier string) (*account, error) {
	if found, ok := a.byDID[syntax.DID(identifier)]; ok {
		return found, nil
	}
	for _, found := range a.byDID {
		if strings.EqualFold(found.Handle.String(), identifier) {
			return found, nil
		}
	}
	return nil, errNoAccount
}

// all are the accounts, in the order in which they were made.
func (a *accounts) all() []*account {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := make([]*account, len(a.order))
	for i, did := range a.order {
		out[i] = a.byDID[did]
	}
	return out
}

// add enters a new account. Errors: errNameTaken.
func (a *accounts) add(n *account) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, err := a.find(n.Handle.String()); err == nil {
		return fmt.Errorf("handle %s: %w", n.Handle, errNameTaken)
	}
	a.byDID[n.DID] = n
	a.order = append(a.order, n.DID)
	return nil
}

// login checks a password and tells which app password it was, "" for the main one.
// Errors: errNoAccount, errWrongPassword.
func (a *accounts) login(identifier, password string) (found *account, appPassword string, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if found, err = a.find(identifier); err != nil {
		return nil, "", err
	}
	if equal(found.Password, password) {
		return found, "", nil
	}
	for _, p := range found.AppPasswords {
		if equal(p.Password, password) {
			return found, p.Name, nil
		}
	}
	return nil, "", errWrongPassword
}

func equal(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }

// addAppPassword makes one. Errors: errNoAccount, errNameTaken.
func (a *accounts) addAppPassword(did syntax.DID, name string, now time.Time) (appPassword, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	old, err := a.find(did.String())
	if err != nil {
		return appPassword{}, err
	}
	if slices.ContainsFunc(old.AppPasswords, func(p appPassword) bool { return p.Name == name }) {
		return appPassword{}, fmt.Errorf("app password %q: %w", name, errNameTaken)
	}
	made := appPassword{Name: name, Password: randomAppPassword(), CreatedAt: now}
	changed := *old
	changed.AppPasswords = append(slices.Clone(old.AppPasswords), made)
	a.byDID[did] = &changed
	return made, nil
}

// grant enters a new refresh token and returns its id.
func (a *accounts) grant(g refreshGrant) string {
	a.mu.Lock()
	defer a.mu.Unlock()
	id := rand.Text()
	a.sessions[id] = g
	return id
}

// revoke takes a refresh token out: each opens one new session at most.
func (a *accounts) revoke(id string) (refreshGrant, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	g, ok := a.sessions[id]
	delete(a.sessions, id)
	return g, ok
}

// randomAppPassword has the form of the reference PDS: four groups of four, 80 bits.
func randomAppPassword() string {
	text := strings.ToLower(rand.Text())
	return text[0:4] + "-" + text[4:8] + "-" + text[8:12] + "-" + text[12:16]
}

func newAccount(handle syntax.Handle, password string) (*account, error) {
	key, err := atcrypto.GeneratePrivateKeyK256()
	if err != nil {
		return nil, err
	}
	return &account{Handle: handle, Password: password, SigningKey: key.Multibase(), key: key}, nil
}

// genesis is the operation that makes the account's DID: handle, signing key and PDS.
func (n *account) genesis(pdsURL string, rotation *atcrypto.PrivateKeyK256) (*plc.Operation, error) {
	signing, err := n.key.PublicKey()
	if err != nil {
		return nil, err
	}
	recovery, err := rotation.PublicKey()
	if err != nil {
		return nil, err
	}
	op := &plc.Operation{
		Type:                plc.TypeOperation,
		RotationKeys:        []string{recovery.DIDKey()},
		VerificationMethods: map[string]string{"atproto": signing.DIDKey()},
		AlsoKnownAs:         []string{"at://" + n.Handle.String()},
		Services:            map[string]plc.Service{"atproto_pds": {Type: "AtprotoPersonalDataServer", Endpoint: pdsURL}},
	}
	return op, op.Sign(rotation)
}
