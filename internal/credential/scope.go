package credential

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"atcr.io/internal/oci"
)

// ErrScope says that what an access token is asked to allow makes no sense.
var ErrScope = errors.New("an access token needs at least one of pull, push, delete, and names like app, team/api or team/*")

// actions are those that a scope can name.
var actions = []string{"pull", "push", "delete"}

const maxPatterns = 50

// Scope is what a credential allows of what its person may do. The zero value allows all of it.
type Scope struct {
	// Repositories are names without their owner, or beginnings of such ("team/*"). Empty: any repository,
	// those of other people included.
	Repositories []string `json:"repositories,omitempty"`
	// Actions are among pull, push, delete. Empty: all.
	Actions []string `json:"actions,omitempty"`
}

// Allows tells whether the scope has action on a repository of the person's own; own is its name without the
// owner, and "" for other people's.
func (s Scope) Allows(own, action string) bool {
	if len(s.Actions) > 0 && !slices.Contains(s.Actions, action) {
		return false
	}
	if len(s.Repositories) == 0 {
		return true
	}
	return own != "" && slices.ContainsFunc(s.Repositories, func(pattern string) bool {
		if start, ok := strings.CutSuffix(pattern, "*"); ok {
			return strings.HasPrefix(own, start)
		}
		return own == pattern
	})
}

// validate is for the scopes of access tokens, which name their actions.
func (s Scope) validate() error {
	if len(s.Actions) == 0 || len(s.Repositories) > maxPatterns {
		return ErrScope
	}
	for _, action := range s.Actions {
		if !slices.Contains(actions, action) {
			return fmt.Errorf("%w: %q is no action", ErrScope, action)
		}
	}
	for _, pattern := range s.Repositories {
		if _, err := oci.ParseName("owner.example/" + strings.TrimSuffix(pattern, "/*")); err != nil {
			return fmt.Errorf("%w: %.100q", ErrScope, pattern)
		}
	}
	return nil
}
