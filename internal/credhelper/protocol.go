package credhelper

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/docker/docker-credential-helpers/credentials"
)

// Helper is this machine's accounts.
type Helper struct {
	// Dir is the folder of accounts.json and, without a keychain, of secrets.json.
	Dir  string
	Keys Keychain
	// OnlyFile keeps new secrets in the file though there may be a keychain.
	OnlyFile bool
	// Patience is how long the keychain may take to answer a client.
	Patience time.Duration
	Client   *http.Client
	Stderr   io.Writer
	Now      func() time.Time
}

const (
	// keychainPatience is for clients, which wait; interactivePatience for people, who may have to unlock.
	keychainPatience    = 5 * time.Second
	interactivePatience = time.Minute
	// eraseTimeout bounds what `docker logout` waits for the registry.
	eraseTimeout = 5 * time.Second
)

func (h *Helper) say(format string, args ...any) {
	sayTo(h.Stderr, format+"\n", args...)
}

// Get answers a client. It opens no browser, asks nobody, and calls nobody.
//
// server is HOST or HOST/REPOSITORY; where it names an owner who is signed in here, they are the answer.
func (h *Helper) Get(server string) (username, secret string, err error) {
	registry, owner := splitServer(server)
	s, err := h.load()
	if err != nil {
		return "", "", err
	}
	a, ok := s.pick(registry, owner)
	if !ok {
		h.say("nobody is signed in to %s; to sign in, type: docker-credential-atcr login %s", registry, registry)
		return "", "", credentials.NewErrCredentialsNotFound()
	}
	secret, err = h.secret(a)
	if errors.Is(err, errNoSecret) {
		h.say("the secret of %s at %s is not there any more; to sign in again, type: docker-credential-atcr login %s", a.username(), registry, registry)
		return "", "", credentials.NewErrCredentialsNotFound()
	}
	if err != nil {
		return "", "", err
	}
	return a.username(), secret, nil
}

// Add keeps what `docker login` was given: an app password, an access token, or a device's secret.
func (h *Helper) Add(c *credentials.Credentials) error {
	registry, _ := splitServer(c.ServerURL)
	a := Account{Registry: registry, Handle: c.Username, Kind: kindPassword, Since: h.Now().UTC()}
	if strings.HasPrefix(c.Username, "did:") {
		a.Handle, a.DID = "", c.Username
	}
	note := ""
	err := h.change(func(s *state) (err error) {
		// docker stores again what Get gave it: that stays what it was.
		for _, known := range s.of(registry) {
			if known.is(c.Username) {
				if old, err := h.secret(known); err == nil && old == c.Secret {
					s.Current[registry] = known.key()
					return nil
				}
			}
		}
		if note, err = h.keep(s, &a, c.Secret, h.Patience); err != nil {
			return err
		}
		s.add(a)
		return nil
	})
	if err == nil && note != "" {
		h.say("%s", note)
	}
	return err
}

// Delete signs the current account of a registry out: `docker logout`.
func (h *Helper) Delete(server string) error {
	registry, owner := splitServer(server)
	s, err := h.load()
	if err != nil {
		return err
	}
	a, ok := s.pick(registry, owner)
	if !ok {
		return credentials.NewErrCredentialsNotFound()
	}
	ctx, cancel := context.WithTimeout(context.Background(), eraseTimeout)
	defer cancel()
	revoked, err := h.signOut(ctx, a)
	if err == nil && !revoked && a.Kind == kindDevice {
		h.say("%s could not be told: revoke this device at %s/settings", registry, baseURL(registry))
	}
	return err
}

// List is HOST → the account that is used where nothing says which.
func (h *Helper) List() (map[string]string, error) {
	s, err := h.load()
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	for _, registry := range s.registries() {
		if a, ok := s.pick(registry, ""); ok {
			out[registry] = a.username()
		}
	}
	return out, nil
}

// signOut removes an account here, and revokes its device at the registry where that can be reached.
func (h *Helper) signOut(ctx context.Context, a Account) (revoked bool, err error) {
	if a.Kind == kindDevice {
		if secret, err := h.secret(a); err == nil {
			err = h.revoke(ctx, a.Registry, secret)
			revoked = err == nil || errors.Is(err, errSignedOut)
		}
	}
	return revoked, h.change(func(s *state) error {
		s.remove(a)
		return h.forget(a)
	})
}

var _ credentials.Helper = (*Helper)(nil)
