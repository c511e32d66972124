// Package crew decides who may read, write and administer a hold.
//
// It owns the permission table, and refuses to own how a caller proves who they are, and where the records
// are kept.
//
// Source: contract, "Who may do what at a hold"; records io.atcr.hold.captain and io.atcr.hold.crew.
package crew

import (
	"slices"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"
)

// The permissions that a crew record may give. Others are kept and mean nothing.
const (
	BlobRead  = "blob:read"
	BlobWrite = "blob:write"
	CrewAdmin = "crew:admin"
)

// Member is what a crew record says.
type Member struct {
	Permissions []string // empty: a refusal
	AddedAt     time.Time
	Tier        string // of quotas; "": the default
}

// Policy is what the hold's records say, all of it. The zero value lets nobody in.
type Policy struct {
	Owner        syntax.DID
	Public       bool // anybody may read
	AllowAllCrew bool // everybody signed in may read and write
	Members      map[syntax.DID]Member
}

// Access is what a caller may do.
type Access struct {
	Owner bool // the captain's owner
	Admin bool
	Write bool
	Read  bool
	// Refused: a crew record with empty permissions outranks AllowAllCrew.
	Refused bool
	// Reason says in words why something is denied, and what to do.
	Reason string
}

// Access decides for did, "" for nobody.
func (p Policy) Access(did syntax.DID) Access {
	if did == "" {
		return Access{Read: p.Public, Reason: "sign in first"}
	}
	if did == p.Owner {
		return Access{Owner: true, Admin: true, Write: true, Read: true}
	}
	member, isCrew := p.Members[did]
	if isCrew && len(member.Permissions) == 0 {
		return Access{Read: p.Public, Refused: true, Reason: "its owner has refused this account"}
	}
	admin := slices.Contains(member.Permissions, CrewAdmin)
	write := admin || p.AllowAllCrew || slices.Contains(member.Permissions, BlobWrite)
	return Access{
		Admin: admin, Write: write,
		Read:   write || p.Public || slices.Contains(member.Permissions, BlobRead),
		Reason: "ask its owner for crew membership with that permission, or choose another hold",
	}
}
