package hold

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/api/atcr"
)

// Would catch a refusal that another record of the same member outranks, and a change of permissions that loses the
// tier or what somebody else wrote into the record.
func TestCrewSetOutranks(t *testing.T) {
	t.Parallel()
	s := startHold(t, newPeople(t), func(c *Config) {
		open(c)
		c.Quotas = `{"tiers":{"free":"1 KB","pro":"2 KB"}}`
	})
	before := crewRecord(writer, "blob:write")
	before["tier"], before["note"], before["addedAt"] = "pro", "met in Ghent", "9999-01-01T00:00:00Z"
	s.make(t, atcr.HoldCrewNSID, "another", before)
	s.make(t, atcr.HoldCrewNSID, "third", crewRecord(writer, "blob:read"))
	rkey := atcr.CrewRkey(writer.String())
	for _, test := range []struct {
		permissions string
		tier        []string // given, or not
		want        string
	}{
		{"none", nil, `"tier":"pro"`}, {"blob:read", []string{"tier", "free"}, `"tier":"free"`},
		{"none", []string{"tier", ""}, `"permissions":[],"role":"member"}`},
	} {
		asked := parameters(append(test.tier, "member", writer.String(), "permissions", test.permissions)...)
		if err := adminCrewSet(t.Context(), s.Hold, asked, func(Line) {}); err != nil {
			t.Fatal(err)
		}
		records := s.records(t, atcr.HoldCrewNSID)
		if len(records) != 2 || !strings.Contains(records[rkey], test.want) || !strings.Contains(records[rkey], "met in Ghent") { // the owner's and this
			t.Errorf("%s: %v", test.permissions, records)
		}
		access, err := s.roster.Access(t.Context(), writer)
		if err != nil || access.Refused != (test.permissions == "none") {
			t.Errorf("%s: %+v %v", test.permissions, access, err)
		}
	}
}

// Would catch a crew admin who prepares records that outrank what the owner writes later.
func TestCrewRecordsAdminMayNotPrepare(t *testing.T) {
	t.Parallel()
	s := startHold(t, newPeople(t), func(c *Config) { c.Public = true })
	s.addCrew(t, owner, admin, "crew:admin")
	s.addCrew(t, owner, writer, "blob:write")
	s.make(t, atcr.HoldCrewNSID, "old", crewRecord(reader, "blob:read"))
	at := func(member syntax.DID, ahead time.Duration) map[string]any {
		r := crewRecord(member, "blob:write")
		r["addedAt"] = timestamp(time.Now().Add(ahead))
		return r
	}
	item := func(rkey string, value any) map[string]any {
		return map[string]any{"$type": "com.atproto.repo.applyWrites#create", "collection": atcr.HoldCrewNSID, "rkey": rkey, "value": value}
	}
	put := func(by syntax.DID, rkey string, value any) answer {
		return s.call(t, by, "com.atproto.repo.putRecord", map[string]any{"repo": s.did, "collection": atcr.HoldCrewNSID, "rkey": rkey, "record": value})
	}
	apply := func(items ...any) answer {
		return s.call(t, admin, "com.atproto.repo.applyWrites", map[string]any{"repo": s.did, "writes": items})
	}
	for _, test := range []struct {
		name   string
		got    answer
		status int
		want   string
	}{
		{"from the future", put(admin, atcr.CrewRkey(writer.String()), at(writer, time.Hour)), 400, "in the future"},
		{"from the future, the owner", put(owner, atcr.CrewRkey(writer.String()), at(writer, time.Hour)), 400, "in the future"},
		{"a clock that is a little fast", put(admin, atcr.CrewRkey(writer.String()), at(writer, time.Minute)), 200, ""},
		{"a second one", put(admin, "another", at(writer, 0)), 400, "under another key"},
		{"in a batch", apply(item("another", at(writer, 0))), 400, "under another key"},
		{"two in one call", apply(item("a", at(stranger, 0)), item("b", at(stranger, 0))), 400, "under another key"},
		{"one under any key", apply(item("a", at(stranger, 0))), 200, ""},
		{"the one that is there", put(admin, "old", at(reader, 0)), 200, ""},
		{"the usual key", put(admin, atcr.CrewRkey(reader.String()), at(reader, 0)), 200, ""},
	} {
		if test.got.status != test.status || !strings.Contains(test.got.body, test.want) {
			t.Errorf("%s: %d %s", test.name, test.got.status, test.got.body)
		}
	}
	if a := s.call(t, admin, "com.atproto.repo.createRecord", map[string]any{"repo": s.did, "collection": atcr.HoldCrewNSID, "record": at(writer, 0)}); a.status != http.StatusOK {
		t.Errorf("without a key: %d %s", a.status, a.body)
	}
}

// Would catch a new owner with two memberships, of which the lesser may count, and one before who still runs the crew.
func TestTransferMembership(t *testing.T) {
	t.Parallel()
	s := startHold(t, newPeople(t), open)
	s.make(t, atcr.HoldCrewNSID, "another", crewRecord(writer, "blob:read"))
	ahead := crewRecord(writer)
	ahead["addedAt"] = "9999-01-01T00:00:00Z"
	s.make(t, atcr.HoldCrewNSID, "third", ahead)
	s.make(t, atcr.HoldCrewNSID, "before", crewRecord(owner, "crew:admin"))
	transfer := func(did syntax.DID) error {
		return adminTransfer(t.Context(), s.Hold, parameters("member", did.String()), func(Line) {})
	}
	if err := s.blocks.add(t.Context(), block{Subject: stranger.String(), Reason: "spam"}); err != nil {
		t.Fatal(err)
	}
	if err := transfer(stranger); err == nil || !strings.Contains(err.Error(), "unblock") {
		t.Errorf("to somebody blocked: %v", err)
	}
	if err := transfer(writer); err != nil {
		t.Fatal(err)
	}
	if err := transfer(writer); err == nil || !strings.Contains(err.Error(), "already") {
		t.Errorf("again: %v", err)
	}
	records := s.records(t, atcr.HoldCrewNSID)
	now, before := records[atcr.CrewRkey(writer.String())], records[atcr.CrewRkey(owner.String())]
	if len(records) != 2 || !strings.Contains(now, `"crew:admin"],"role":"owner"`) || !strings.Contains(before, `"permissions":["blob:read","blob:write"],"role":"member"`) {
		t.Errorf("%v", records)
	}
	if access, err := s.roster.Access(t.Context(), writer); err != nil || !access.Owner || access.Refused {
		t.Errorf("%+v %v", access, err)
	}
	if access, err := s.roster.Access(t.Context(), owner); err != nil || access.Owner || access.Admin || !access.Write {
		t.Errorf("%+v %v", access, err)
	}
}
