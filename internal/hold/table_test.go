package hold

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/api/atcr"
	"atcr.io/internal/pds"
)

// Would catch a cell of the contract's table "Who may write which record" that is wrong: every caller, every kind of
// record, create, update and delete, by each of the calls that write.
func TestRecordTable(t *testing.T) {
	t.Parallel()
	p := newPeople(t)
	s := startHold(t, p, func(c *Config) { open(c); c.RecordsPerHour = 0 })
	for did, permissions := range map[syntax.DID][]string{refused: nil, reader: {"blob:read"}, writer: {"blob:write"}, admin: {"blob:read", "crew:admin"}} {
		if a := s.addCrew(t, owner, did, permissions...); a.status != http.StatusOK {
			t.Fatalf("%d %s", a.status, a.body)
		}
	}
	const (
		tid  = "3k2aaaaaaaa22"
		date = "2026-01-01T00:00:00Z"
	)
	captain := func(change string, value any) map[string]any {
		r := map[string]any{"owner": owner, "public": true, "allowAllCrew": true, "enableBlueskyPosts": false, "deployedAt": date, "region": "here"}
		if change != "" {
			r[change] = value
		}
		return r
	}
	uri := "at://" + writer.String() + "/" + atcr.ManifestNSID + "/x"
	layer := map[string]any{"digest": manifestDigest("x"), "size": 1, "mediaType": "x", "manifest": uri, "userDid": writer, "createdAt": date}
	stats := map[string]any{"ownerDid": writer, "repository": "app", "pullCount": 1, "pushCount": 1, "updatedAt": date}
	scan := map[string]any{
		"manifest": uri, "repository": "app", "userDid": writer, "critical": 0, "high": 0, "medium": 0, "low": 0, "total": 0, "scannerVersion": "1", "scannedAt": date,
	}
	post := map[string]any{"text": "hello", "createdAt": date}
	const fresh = syntax.DID("did:plc:fresh")
	admins, owners, none := []syntax.DID{owner, admin}, []syntax.DID{owner}, []syntax.DID(nil)
	for _, test := range []struct {
		name, collection, rkey string
		value                  map[string]any // nil: a delete
		before                 map[string]any // what stands there; nil: nothing
		may                    []syntax.DID
	}{
		{"crew, create", atcr.HoldCrewNSID, atcr.CrewRkey(fresh.String()), crewRecord(fresh, "blob:read"), nil, admins},
		{"crew, refuse", atcr.HoldCrewNSID, atcr.CrewRkey(fresh.String()), crewRecord(fresh), nil, admins},
		{"crew, update", atcr.HoldCrewNSID, atcr.CrewRkey(fresh.String()), crewRecord(fresh, "blob:write"), crewRecord(fresh, "blob:read"), admins},
		{"crew, delete", atcr.HoldCrewNSID, atcr.CrewRkey(fresh.String()), nil, crewRecord(fresh, "blob:read"), admins},
		{"crew, give crew:admin", atcr.HoldCrewNSID, atcr.CrewRkey(fresh.String()), crewRecord(fresh, "crew:admin"), nil, owners},
		{"crew, take crew:admin", atcr.HoldCrewNSID, atcr.CrewRkey(fresh.String()), crewRecord(fresh, "blob:read"), crewRecord(fresh, "crew:admin"), owners},
		{"crew, delete an admin", atcr.HoldCrewNSID, atcr.CrewRkey(fresh.String()), nil, crewRecord(fresh, "crew:admin"), owners},
		{"crew, an admin under another key", atcr.HoldCrewNSID, "other", crewRecord(admin), nil, owners},
		{"captain, region", atcr.HoldCaptainNSID, "self", captain("region", "there"), captain("", nil), owners},
		{"captain, owner", atcr.HoldCaptainNSID, "self", captain("owner", stranger), captain("", nil), none},
		{"captain, public", atcr.HoldCaptainNSID, "self", captain("public", false), captain("", nil), none},
		{"captain, allowAllCrew", atcr.HoldCaptainNSID, "self", captain("allowAllCrew", false), captain("", nil), none},
		{"captain, enableBlueskyPosts", atcr.HoldCaptainNSID, "self", captain("enableBlueskyPosts", true), captain("", nil), none},
		{"captain, delete", atcr.HoldCaptainNSID, "self", nil, captain("", nil), none},
		{"layer, create", atcr.HoldLayerNSID, "x", layer, nil, none},
		{"layer, update", atcr.HoldLayerNSID, "x", layer, map[string]any{"digest": manifestDigest("y"), "size": 2, "mediaType": "x", "manifest": uri, "userDid": writer, "createdAt": date}, none},
		{"layer, delete", atcr.HoldLayerNSID, "x", nil, layer, admins},
		{"statistics, create", atcr.HoldStatsNSID, "x", stats, nil, none},
		{"statistics, delete", atcr.HoldStatsNSID, "x", nil, stats, none},
		{"scan, create", atcr.HoldScanNSID, "x", scan, nil, owners},
		{"scan, delete", atcr.HoldScanNSID, "x", nil, scan, owners},
		{"post, create", postNSID, tid, post, nil, owners},
		{"post, delete", postNSID, tid, nil, post, admins},
		{"profile, update", profileNSID, "self", map[string]any{"displayName": "x"}, map[string]any{"displayName": "y"}, owners},
		{"profile, delete", profileNSID, "self", nil, map[string]any{"displayName": "y"}, owners},
		{"another, create", "com.example.thing", "x", map[string]any{}, nil, owners},
		{"another, delete", "com.example.thing", "x", nil, map[string]any{}, owners},
	} {
		for _, did := range []syntax.DID{nobody, stranger, refused, reader, writer, admin, owner} {
			for _, call := range waysToWrite(test.value == nil, test.before == nil) {
				s.make(t, test.collection, test.rkey, test.before)
				was := s.records(t, syntax.NSID(test.collection))[test.rkey]
				a := s.writeBy(t, did, call, test.collection, test.rkey, test.value)
				want := http.StatusForbidden
				switch {
				case slices.Contains(test.may, did):
					want = http.StatusOK
				case did == nobody:
					want = http.StatusUnauthorized
				}
				if a.status != want {
					t.Errorf("%s by %q, %s: %d %s, want %d", test.name, did, call, a.status, a.body, want)
				}
				if now := s.records(t, syntax.NSID(test.collection))[test.rkey]; want != http.StatusOK && now != was {
					t.Errorf("%s by %q, %s: it was refused and made: %s", test.name, did, call, now)
				}
				s.make(t, test.collection, test.rkey, nil)
			}
		}
		if test.collection == atcr.HoldCaptainNSID {
			s.make(t, test.collection, test.rkey, captain("", nil))
		}
	}
}

// waysToWrite are the calls that come to the same.
func waysToWrite(deletes, creates bool) []string {
	switch {
	case deletes:
		return []string{"deleteRecord", "#delete"}
	case creates:
		return []string{"createRecord", "putRecord", "#create"}
	}
	return []string{"putRecord", "#update"}
}

// writeBy writes as did.
func (s *server) writeBy(t *testing.T, did syntax.DID, call, collection, rkey string, value map[string]any) answer {
	t.Helper()
	if strings.HasPrefix(call, "#") {
		item := map[string]any{"$type": "com.atproto.repo.applyWrites" + call, "collection": collection, "rkey": rkey}
		if value != nil {
			item["value"] = value
		}
		return s.call(t, did, "com.atproto.repo.applyWrites", map[string]any{"repo": s.did, "writes": []any{item}})
	}
	in := map[string]any{"repo": s.did, "collection": collection, "rkey": rkey}
	if value != nil {
		in["record"] = value
	}
	return s.call(t, did, "com.atproto.repo."+call, in)
}

// make puts a record there, or nothing, as the hold itself does. The captain stays.
func (s *server) make(t *testing.T, collection, rkey string, value map[string]any) {
	t.Helper()
	if value != nil {
		if err := s.put(t.Context(), record{collection, rkey, value}); err != nil {
			t.Fatal(err)
		}
		return
	}
	if _, err := s.repo.GetRecord(t.Context(), syntax.NSID(collection), syntax.RecordKey(rkey)); err != nil || collection == atcr.HoldCaptainNSID {
		return
	}
	if err := s.deleteAll(t.Context(), []pds.Write{{Action: pds.Delete, Collection: syntax.NSID(collection), Rkey: syntax.RecordKey(rkey)}}); err != nil {
		t.Fatal(err)
	}
}

// Would catch a manifest whose records are spread over more commits than they need, and one that is recorded in part.
func TestManyLayers(t *testing.T) {
	t.Parallel()
	s := startHold(t, newPeople(t), open)
	config := s.push(t, writer, []byte("{}"))
	in := message(writer, "app", "m", config)
	const layers = pds.MaxCommitOps + 20
	for i := range layers {
		in.Manifest.Layers = append(in.Manifest.Layers, blobInfo(s.push(t, writer, fmt.Append(nil, "layer", i))))
	}
	commits := 0
	s.repo.OnCommit(func([]pds.Op) { commits++ })
	if out := s.notified(t, writer, in); *out.LayersCreated != layers+1 || commits != 2 {
		t.Errorf("%d records in %d commits", *out.LayersCreated, commits)
	}
	if out := s.notified(t, writer, in); *out.LayersCreated != 0 || commits != 2 {
		t.Errorf("again: %d records in %d commits", *out.LayersCreated, commits)
	}
	small := message(writer, "app", "small", config)
	small.Manifest.Layers = in.Manifest.Layers[:50]
	if out := s.notified(t, writer, small); *out.LayersCreated != 51 || commits != 3 {
		t.Errorf("%d records in %d commits", *out.LayersCreated, commits-2)
	}
}
