package appview

import (
	"context"
	"errors"
	"net/http"
	"strings"

	"atcr.io/internal/httpx"
	"atcr.io/internal/oci"
	"atcr.io/internal/registry"
	"atcr.io/internal/regtoken"
)

// gate is registry.Authorizer by registry tokens.
type gate struct {
	tokens  *regtoken.Issuer
	owners  owners
	blocks  *blocks
	caller  func(*http.Request) string // who it is without a token
	baseURL string
	service string
}

// errInvalidToken and errInsufficient say what was wrong with a token, in the challenge.
var (
	errInvalidToken = errors.New("invalid_token")
	errInsufficient = errors.New("insufficient_scope")
)

// Authorize is the one place that says who may do what in a repository: by the token, by whose the name is, and
// by what is blocked. Who may read which hold is the holds' to say.
func (g *gate) Authorize(r *http.Request, name oci.Name, action registry.Action) (registry.Caller, error) {
	claims, err := g.shown(r)
	if err != nil {
		return registry.Caller{}, err
	}
	event := httpx.EventFrom(r.Context())
	if event.Caller = claims.Subject; event.Caller == "" {
		event.Caller = g.caller(r)
	}
	c := registry.Caller{Subject: claims.Subject, Session: claims.Session, Token: claims != nobody}
	granted := action == ""
	switch {
	case claims != nobody:
		full := name.String()
		granted = granted || claims.Allows(full, string(action))
		c.Push = action != "" && claims.Allows(full, string(registry.Push))
	case action != registry.Pull:
		return registry.Caller{}, unauthorized(nil, "log in: docker login %s", g.service)
	default:
		granted = true // the hold says from where
	}
	if err := g.blocks.person(c.Subject); err != nil {
		return registry.Caller{}, err
	}
	if action == "" {
		return c, nil
	}
	if err := g.inRepository(r.Context(), c, name, action); err != nil {
		return registry.Caller{}, err
	}
	if !granted {
		return registry.Caller{}, unauthorized(errInsufficient, "the token is not for this: %s of %s", action, name)
	}
	return c, nil
}

// inRepository refuses what no token would allow: writes under another's name, and what is blocked. Its owner may
// delete what is.
func (g *gate) inRepository(ctx context.Context, c registry.Caller, name oci.Name, action registry.Action) error {
	if action == registry.Pull {
		if g.blocks.none() {
			return nil
		}
		of, err := g.owners.find(ctx, name.Owner)
		if err != nil {
			return err
		}
		return g.blocks.repository(of.DID, name.Repository)
	}
	if c.Subject == "" {
		return nil // who logs in may be the owner
	}
	of, err := g.owners.own(ctx, c, name)
	if err != nil || action == registry.Delete {
		return err
	}
	return g.blocks.repository(of.DID, name.Repository)
}

// nobody is what a request without a token says.
var nobody = &regtoken.Claims{}

// shown reads the token. Errors: *oci.Error 401.
func (g *gate) shown(r *http.Request) (*regtoken.Claims, error) {
	header := r.Header.Get("Authorization")
	if header == "" {
		return nobody, nil
	}
	scheme, token, _ := strings.Cut(header, " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return nil, unauthorized(errInvalidToken, "this registry takes bearer tokens: fetch one from %s/auth/token", g.baseURL)
	}
	claims, err := g.tokens.Verify(strings.TrimSpace(token))
	if err != nil {
		return nil, unauthorized(errors.Join(errInvalidToken, err), "the token is not valid, or no longer: fetch a new one")
	}
	return claims, nil
}

func unauthorized(cause error, format string, args ...any) error {
	e := oci.Errorf(oci.CodeUnauthorized, format, args...)
	e.Err = cause
	return e
}

// Challenge sends a client to /auth/token.
//
// Source: https://distribution.github.io/distribution/spec/auth/token/
func (g *gate) Challenge(name oci.Name, action registry.Action, err error) string {
	var b strings.Builder
	b.WriteString(`Bearer realm="` + g.baseURL + `/auth/token",service="` + g.service + `"`)
	if action != "" {
		actions := map[registry.Action]string{registry.Pull: "pull", registry.Push: "pull,push", registry.Delete: "pull,push,delete"}[action]
		b.WriteString(`,scope="repository:` + name.String() + `:` + actions + `"`)
	}
	for _, known := range []error{errInvalidToken, errInsufficient} {
		if errors.Is(err, known) {
			b.WriteString(`,error="` + known.Error() + `"`)
		}
	}
	return b.String()
}
