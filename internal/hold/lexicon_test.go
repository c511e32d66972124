package hold

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/bluesky-social/indigo/atproto/atdata"
	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/api/atcr"
)

// decoded is JSON as the repo host sees it.
func decoded(t *testing.T, raw []byte) map[string]any {
	t.Helper()
	data, err := atdata.UnmarshalJSON(raw)
	if err != nil {
		t.Fatalf("%s: %v", raw, err)
	}
	return data
}

// Would catch records that readers refuse, and a hold whose own records break its own Lexicons.
func TestValidation(t *testing.T) {
	t.Parallel()
	p := newPeople(t)
	s := startHold(t, p, open)
	s.notified(t, writer, message(writer, "app", "m", s.push(t, writer, []byte("{}"))))
	if err := s.publishStats(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, collection := range []string{atcr.HoldCaptainNSID, atcr.HoldCrewNSID, atcr.HoldLayerNSID, atcr.HoldStatsNSID, profileNSID} {
		records := s.records(t, syntax.NSID(collection))
		if len(records) == 0 {
			t.Errorf("no record of %s", collection)
		}
		for rkey, raw := range records {
			if known, err := s.catalog.validate(syntax.NSID(collection), syntax.RecordKey(rkey), decoded(t, []byte(raw))); !known || err != nil {
				t.Errorf("%s/%s %s: %v", collection, rkey, raw, err)
			}
		}
	}
	put := func(collection, rkey, record, more string) answer {
		return s.send(t, http.MethodPost, "/xrpc/com.atproto.repo.putRecord", s.token(t, owner, "com.atproto.repo.putRecord"),
			strings.NewReader(fmt.Sprintf(`{"repo":%q,"collection":%q,"rkey":%q,"record":%s%s}`, s.did, collection, rkey, record, more)))
	}
	const tid = "3k2aaaaaaaa22"
	member := `{"member":"did:plc:new","role":"member","permissions":["blob:read"],"addedAt":"2026-01-01T00:00:00Z"}`
	profile := `{"displayName":"x","avatar":{"$type":"blob","ref":{"$link":"bafkreifzjut3te7nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e"},"mimeType":"text/html","size":5}}`
	for name, test := range map[string]struct {
		got  answer
		want string
	}{
		"crew":                {put(atcr.HoldCrewNSID, "x", member, ""), `"validationStatus":"valid"`},
		"crew without a date": {put(atcr.HoldCrewNSID, "x", `{"member":"did:plc:new","role":"member","permissions":[]}`, ""), "InvalidRequest"},
		"crew, a wrong date":  {put(atcr.HoldCrewNSID, "x", strings.Replace(member, "2026-01-01T00:00:00Z", "yesterday", 1), ""), "InvalidRequest"},
		"crew, a long role":   {put(atcr.HoldCrewNSID, "x", strings.Replace(member, `"role":"member"`, `"role":"`+strings.Repeat("r", 33)+`"`, 1), ""), "InvalidRequest"},
		"post":                {put(postNSID, tid, `{"text":"hello","createdAt":"2026-01-01T00:00:00Z"}`, `,"validate":true`), `"validationStatus":"valid"`},
		"post, too long":      {put(postNSID, tid, `{"text":"`+strings.Repeat("x", 301)+`","createdAt":"2026-01-01T00:00:00Z"}`, ""), "InvalidRequest"},
		"post, graphemes":     {put(postNSID, tid, `{"text":"`+strings.Repeat("👩‍👩‍👧", 100)+`","createdAt":"2026-01-01T00:00:00Z"}`, ""), `"valid"`},
		"post, its key":       {put(postNSID, "hello", `{"text":"hello","createdAt":"2026-01-01T00:00:00Z"}`, ""), "InvalidRequest"},
		"post, facet":         {put(postNSID, tid, `{"text":"a","createdAt":"2026-01-01T00:00:00Z","facets":[{"index":{"byteStart":-1,"byteEnd":1},"features":[]}]}`, ""), "InvalidRequest"},
		"post, unknown embed": {put(postNSID, tid, `{"text":"a","createdAt":"2026-01-01T00:00:00Z","embed":{"$type":"com.example.embed"}}`, ""), `"valid"`},
		"profile, its key":    {put(profileNSID, "other", `{"displayName":"x"}`, ""), "InvalidRequest"},
		"profile, wrong kind": {put(profileNSID, "self", profile, ""), "InvalidRequest"},
		"another $type":       {put(profileNSID, "self", `{"$type":"com.example.thing"}`, ""), "InvalidRequest"},
		"not checked":         {put(postNSID, tid, `{"text":7}`, `,"validate":false`), `"uri"`},
		"unknown, must be":    {put("com.example.thing", "x", `{}`, `,"validate":true`), "InvalidRequest"},
		"unknown":             {put("com.example.thing", "x", `{}`, ""), `"validationStatus":"unknown"`},
		"a method, no record": {put("io.atcr.hold.getQuota", "x", `{}`, ""), "InvalidRequest"},
		"a float":             {put("com.example.thing", "x", `{"a":0.5}`, ""), "InvalidRequest"},
		"too large":           {put("com.example.thing", "x", `{"a":"`+strings.Repeat("x", 1_000_001)+`"}`, ""), "InvalidRequest"},
		"too deep":            {put("com.example.thing", "x", `{"a":`+strings.Repeat("[", 10_000)+strings.Repeat("]", 10_000)+`}`, ""), "InvalidRequest"},
		"a wrong link":        {put("com.example.thing", "x", `{"a":{"$link":"x"}}`, ""), "InvalidRequest"},
		"a picture not there": {put("com.example.thing", "x", strings.Replace(profile, "displayName", "name", 1), ""), "BlobNotFound"},
		"no record key":       {put(atcr.HoldCrewNSID, "a b", member, ""), "InvalidRequest"},
	} {
		if !strings.Contains(test.got.body, test.want) {
			t.Errorf("%s: %d %s, want %s", name, test.got.status, test.got.body, test.want)
		}
	}
}
