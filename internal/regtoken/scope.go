package regtoken

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// The actions that are known.
const (
	Pull   = "pull"
	Push   = "push"
	Delete = "delete"
)

const (
	// MaxScopes bounds what one token may be for. A push that mounts from other repositories asks for each.
	MaxScopes     = 32
	maxScopeBytes = 8 << 10
	maxNameBytes  = 255
)

// ErrScope says that the scopes asked for are not in the form `repository:<name>:<actions>`.
var ErrScope = errors.New("a scope has the form repository:<name>:pull,push")

// Access is one entry of a token's access claim.
type Access struct {
	Type    string   `json:"type"` // always "repository"
	Name    string   `json:"name"`
	Actions []string `json:"actions"`
}

func (a Access) allows(action string) bool { return slices.Contains(a.Actions, action) }

// ParseScopes reads the values of `scope` parameters, each of them one or more scopes separated by spaces.
// Several of one name are joined. What is for another type of resource (such as registry:catalog:*) and
// unknown actions are left out, as the protocol wants it; `*` stands for every action.
//
// Errors: ErrScope.
func ParseScopes(values []string) ([]Access, error) {
	var out []Access
	total := 0
	for _, value := range values {
		if total += len(value); total > maxScopeBytes {
			return nil, fmt.Errorf("%w: too long", ErrScope)
		}
		for scope := range strings.FieldsSeq(value) {
			a, ok, err := parseScope(scope)
			if err != nil {
				return nil, err
			}
			if ok {
				out = join(out, a)
			}
			if len(out) > MaxScopes {
				return nil, fmt.Errorf("%w: more than %d of them", ErrScope, MaxScopes)
			}
		}
	}
	return out, nil
}

// parseScope cuts at the first and the last colon: a name may have colons of its own.
func parseScope(scope string) (a Access, ok bool, err error) {
	kind, rest, found := strings.Cut(scope, ":")
	end := strings.LastIndexByte(rest, ':')
	if !found || end < 0 {
		return Access{}, false, fmt.Errorf("%w, not %q", ErrScope, clip(scope))
	}
	kind, _, _ = strings.Cut(kind, "(") // a class, as in repository(plugin)
	if kind != "repository" {
		return Access{}, false, nil
	}
	name, actions := rest[:end], rest[end+1:]
	if name == "" || len(name) > maxNameBytes {
		return Access{}, false, fmt.Errorf("%w, not %q", ErrScope, clip(scope))
	}
	a = Access{Type: kind, Name: name}
	for action := range strings.SplitSeq(actions, ",") {
		switch action {
		case Pull, Push, Delete:
			a.add(action)
		case "*":
			a.add(Pull, Push, Delete)
		}
	}
	return a, true, nil
}

func (a *Access) add(actions ...string) {
	for _, action := range actions {
		if !a.allows(action) {
			a.Actions = append(a.Actions, action)
		}
	}
}

func join(list []Access, a Access) []Access {
	for i := range list {
		if list[i].Name == a.Name {
			list[i].add(a.Actions...)
			return list
		}
	}
	return append(list, a)
}

func clip(s string) string {
	if len(s) > 64 {
		return strings.ToValidUTF8(s[:64], "?") + "…"
	}
	return s
}
