package crew_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/internal/crew"
)

const (
	owner    = syntax.DID("did:plc:owner")
	nobody   = syntax.DID("")
	stranger = syntax.DID("did:plc:stranger")
	refused  = syntax.DID("did:plc:refused")
	reader   = syntax.DID("did:plc:reader")
	writer   = syntax.DID("did:plc:writer")
	admin    = syntax.DID("did:plc:admin")
	odd      = syntax.DID("did:plc:odd")
)

func policy(public, allowAll bool) crew.Policy {
	return crew.Policy{Owner: owner, Public: public, AllowAllCrew: allowAll, Members: map[syntax.DID]crew.Member{
		refused: {}, reader: {Permissions: []string{"blob:read"}}, writer: {Permissions: []string{"blob:write"}},
		admin: {Permissions: []string{"crew:admin"}}, odd: {Permissions: []string{"coffee:make"}},
		"": {Permissions: []string{"crew:admin"}}, // no record gives nobody anything
	}}
}

// The contract's table "Who may do what at a hold", cell by cell, for each of the four kinds of hold.
func TestAccess(t *testing.T) {
	t.Parallel()
	type cell struct{ read, write string } // the kinds of hold where it holds: (p)rivate, (o)pen crew, pu(b)lic, (c)ommunity
	kinds := map[string]crew.Policy{"p": policy(false, false), "o": policy(false, true), "b": policy(true, false), "c": policy(true, true)}
	for did, want := range map[syntax.DID]cell{
		nobody:   {"bc", ""},
		stranger: {"obc", "oc"},
		refused:  {"bc", ""},
		reader:   {"pobc", "oc"},
		writer:   {"pobc", "pobc"},
		admin:    {"pobc", "pobc"},
		owner:    {"pobc", "pobc"},
		odd:      {"obc", "oc"},
	} {
		for kind, p := range kinds {
			a := p.Access(did)
			if a.Read != strings.Contains(want.read, kind) || a.Write != strings.Contains(want.write, kind) {
				t.Errorf("%q at %s: %+v, want %+v", did, kind, a, want)
			}
			if a.Admin != (did == admin || did == owner) || a.Owner != (did == owner) || a.Refused != (did == refused) {
				t.Errorf("%q at %s: %+v", did, kind, a)
			}
			if !a.Owner && a.Reason == "" {
				t.Errorf("%q at %s gets no reason", did, kind)
			}
		}
	}
	if a := (crew.Policy{}).Access(stranger); a != (crew.Access{Reason: a.Reason}) {
		t.Errorf("the zero policy lets somebody in: %+v", a)
	}
}

// The column "records" of the same table.
func TestMayWrite(t *testing.T) {
	t.Parallel()
	p := policy(true, true)
	give, take := []string{"blob:read", "crew:admin"}, []string{"blob:read"}
	for name, test := range map[string]struct {
		write crew.Write
		may   []syntax.DID
	}{
		"crew":           {crew.Write{Collection: "io.atcr.hold.crew", Member: stranger, New: take}, []syntax.DID{owner, admin}},
		"crew, delete":   {crew.Write{Collection: "io.atcr.hold.crew", Member: stranger, Old: take, Delete: true}, []syntax.DID{owner, admin}},
		"refusal":        {crew.Write{Collection: "io.atcr.hold.crew", Member: stranger}, []syntax.DID{owner, admin}},
		"gives admin":    {crew.Write{Collection: "io.atcr.hold.crew", Member: stranger, New: give}, []syntax.DID{owner}},
		"takes admin":    {crew.Write{Collection: "io.atcr.hold.crew", Member: admin, Old: give, New: take}, []syntax.DID{owner}},
		"deletes admin":  {crew.Write{Collection: "io.atcr.hold.crew", Member: admin, Old: give, Delete: true}, []syntax.DID{owner}},
		"captain":        {crew.Write{Collection: "io.atcr.hold.captain"}, nil},
		"captain, other": {crew.Write{Collection: "io.atcr.hold.captain", SameCaptain: true}, []syntax.DID{owner}},
		"captain, gone":  {crew.Write{Collection: "io.atcr.hold.captain", SameCaptain: true, Delete: true}, nil},
		"layer":          {crew.Write{Collection: "io.atcr.hold.layer"}, nil},
		"layer, delete":  {crew.Write{Collection: "io.atcr.hold.layer", Delete: true}, []syntax.DID{owner, admin}},
		"stats":          {crew.Write{Collection: "io.atcr.hold.stats"}, nil},
		"stats, delete":  {crew.Write{Collection: "io.atcr.hold.stats", Delete: true}, nil},
		"post":           {crew.Write{Collection: "app.bsky.feed.post"}, []syntax.DID{owner}},
		"post, delete":   {crew.Write{Collection: "app.bsky.feed.post", Delete: true}, []syntax.DID{owner, admin}},
		"profile":        {crew.Write{Collection: "app.bsky.actor.profile"}, []syntax.DID{owner}},
		"anything else":  {crew.Write{Collection: "com.example.thing"}, []syntax.DID{owner}},
	} {
		for _, did := range []syntax.DID{nobody, stranger, refused, reader, writer, admin, owner, odd} {
			want := false
			for _, may := range test.may {
				want = want || may == did
			}
			err := p.Access(did).MayWrite(test.write)
			if (err == nil) != want || (err != nil && !errors.Is(err, crew.ErrDenied)) {
				t.Errorf("%s by %q: %v", name, did, err)
			}
		}
	}
}
