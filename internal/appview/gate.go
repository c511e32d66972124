package appview

import (
	"context"
	"errors"
	"net/http"
	"strings"

	"atcr.io/internal/oci"
	"atcr.io/internal/registry"
	"atcr.io/internal/regtoken"
)

// gate is registry.Authorizer by registry tokens.
type gate struct {
	tokens  *regtoken.Issuer
	owners  owners
	baseURL string
	service string
}

// errInvalidToken and errInsufficient say what was wrong with a token, in the challenge.
var (
	errInvalidToken = errors.New("invalid_token")
	errInsufficient = errors.New("insufficient_scope")
)

// Authorize reads the token. Who shows none is nobody, and may pull: the hold says from where.
func (g *gate) Authorize(r *http.Request, name oci.Name, action registry.Action) (registry.Caller, error) {
	header := r.Header.Get("Authorization")
	if header == "" {
		if action == registry.Pull {
			return registry.Caller{}, nil
		}
		return registry.Caller{}, unauthorized(nil, "log in: docker login %s", g.service)
	}
	scheme, token, _ := strings.Cut(header, " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return registry.Caller{}, unauthorized(errInvalidToken, "this registry takes bearer tokens: fetch one from %s/auth/token", g.baseURL)
	}
	claims, err := g.tokens.Verify(strings.TrimSpace(token))
	if err != nil {
		return registry.Caller{}, unauthorized(errors.Join(errInvalidToken, err), "the token is not valid, or no longer: fetch a new one")
	}
	c := registry.Caller{Subject: claims.Subject, Session: claims.Session}
	if action == "" {
		return c, nil
	}
	c.Push = claims.Allows(name.String(), string(registry.Push))
	if claims.Allows(name.String(), string(action)) {
		return c, nil
	}
	return registry.Caller{}, g.insufficient(r.Context(), c, name, action)
}

// insufficient tells those whom another token would help from those who may not push there with any.
func (g *gate) insufficient(ctx context.Context, c registry.Caller, name oci.Name, action registry.Action) error {
	if c.Subject != "" && action != registry.Pull {
		if _, err := g.owners.own(ctx, c, name); err != nil {
			return err
		}
	}
	return unauthorized(errInsufficient, "the token is not for this: %s of %s", action, name)
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
