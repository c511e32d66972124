package crew

import (
	"errors"
	"fmt"
	"slices"

	"github.com/bluesky-social/indigo/atproto/syntax"
)

// The collections of a hold's repo, as far as who may write them goes.
const (
	captainCollection = "io.atcr.hold.captain"
	crewCollection    = "io.atcr.hold.crew"
	layerCollection   = "io.atcr.hold.layer"
	statsCollection   = "io.atcr.hold.stats"
	postCollection    = "app.bsky.feed.post"
)

// ErrDenied says that a caller may not write a record. What wraps it names the permission that is missing.
var ErrDenied = errors.New("not permitted")

// Write is one change to a record, as far as permission goes.
type Write struct {
	Collection syntax.NSID
	Delete     bool
	// Old and New are the permissions that a crew record gave and would give; nil for other collections.
	// Member is whom it is about.
	Old, New []string
	Member   syntax.DID
	// SameCaptain: a captain record whose owner and booleans stay as they are.
	SameCaptain bool
}

// MayWrite is nil where the caller with that access may make the change. Errors: ErrDenied.
func (a Access) MayWrite(w Write) error {
	switch w.Collection {
	case statsCollection:
		return fmt.Errorf("%w: statistics are written by the hold alone", ErrDenied)
	case layerCollection:
		if !w.Delete {
			return fmt.Errorf("%w: layer records are written by the hold alone", ErrDenied)
		}
		return a.needAdmin()
	case postCollection:
		if !w.Delete {
			return a.needOwner()
		}
		return a.needAdmin()
	case captainCollection:
		if w.Delete {
			return fmt.Errorf("%w: the captain record stays as long as the hold", ErrDenied)
		}
		if !w.SameCaptain {
			return fmt.Errorf("%w: the owner is changed by a command, the booleans by the hold's settings", ErrDenied)
		}
		return a.needOwner()
	case crewCollection:
		return a.mayWriteCrew(w)
	}
	return a.needOwner()
}

func (a Access) mayWriteCrew(w Write) error {
	if err := a.needAdmin(); err != nil {
		return err
	}
	if !a.Owner && (slices.Contains(w.Old, CrewAdmin) || slices.Contains(w.New, CrewAdmin)) {
		return fmt.Errorf("%w: only the owner gives or takes %s", ErrDenied, CrewAdmin)
	}
	return nil
}

func (a Access) needAdmin() error {
	if a.Admin {
		return nil
	}
	return fmt.Errorf("%w: %s is needed; ask the hold's owner", ErrDenied, CrewAdmin)
}

func (a Access) needOwner() error {
	if a.Owner {
		return nil
	}
	return fmt.Errorf("%w: only the hold's owner may write this record", ErrDenied)
}
