package hold

import (
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/api/atcr"
	"atcr.io/internal/oci"
	"atcr.io/internal/upload"
)

// clock is time that tests let pass.
type clock struct{ ahead atomic.Int64 }

func (c *clock) now() time.Time           { return time.Now().Add(time.Duration(c.ahead.Load())) }
func (c *clock) advance(by time.Duration) { c.ahead.Add(int64(by)) }
func (c *clock) set(config *Config)       { config.now = c.now }
func open(config *Config)                 { config.Public, config.AllowAllCrew, config.Registrations = true, true, 200 }
func manifestDigest(name string) string   { return oci.FromBytes([]byte(name)).String() }
func blobInfo(d oci.Digest) atcr.HoldNotifyManifestBlobInfo {
	return atcr.HoldNotifyManifestBlobInfo{Digest: d.String(), Size: 1, MediaType: "application/x"} // the size is the hold's to know
}

// message is what an AppView says of a push.
func message(owner syntax.DID, repository, name string, config oci.Digest, layers ...oci.Digest) atcr.HoldNotifyManifestInput {
	c := blobInfo(config)
	in := atcr.HoldNotifyManifestInput{
		Repository: repository, UserDid: owner.String(), ManifestDigest: manifestDigest(name), Tag: "1.0",
		Manifest: atcr.HoldNotifyManifestManifestInfo{MediaType: oci.MediaTypeImageManifest, Config: &c},
	}
	for _, l := range layers {
		in.Manifest.Layers = append(in.Manifest.Layers, blobInfo(l))
	}
	return in
}

func (s *server) notify(t *testing.T, did syntax.DID, in atcr.HoldNotifyManifestInput) answer {
	t.Helper()
	return s.call(t, did, atcr.HoldNotifyManifestNSID, in)
}

// records are those of a collection, by key.
func (s *server) records(t *testing.T, collection syntax.NSID) map[string]string {
	t.Helper()
	page, err := s.repo.ListRecords(t.Context(), collection, 1000, "", true)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, r := range page {
		out[r.Rkey.String()] = string(r.Value)
	}
	return out
}

// Would catch layer records that are missing, doubled by a second push, of a size that the client claimed, or
// left behind by a delete; and statistics that are not published, or twice.
func TestNotifyManifest(t *testing.T) {
	t.Parallel()
	p, c := newPeople(t), &clock{}
	s := startHold(t, p, func(config *Config) { open(config); c.set(config) })
	config, layer := s.push(t, writer, []byte("config")), s.push(t, writer, []byte("a layer"))
	in := message(writer, "team/app", "m", config, layer, layer)
	head, err := s.repo.Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var out atcr.HoldNotifyManifestOutput
	a := s.notify(t, writer, in)
	if a.json(t, &out); a.status != 200 || !out.Success || out.Operation != "push" || *out.LayersCreated != 2 || !*out.StatsUpdated {
		t.Fatalf("%d %s", a.status, a.body)
	}
	uri := "at://" + writer.String() + "/io.atcr.manifest/" + strings.TrimPrefix(in.ManifestDigest, "sha256:")
	layers := s.records(t, atcr.HoldLayerNSID)
	record := layers[atcr.LayerRkey(uri, layer.String())]
	if len(layers) != 2 || !strings.Contains(record, `"size":7`) || !strings.Contains(record, uri) || !strings.Contains(record, `"userDid":"`+writer.String()) {
		t.Fatalf("%v", layers)
	}
	after, err := s.repo.Head(t.Context())
	if err != nil || after.Rev == head.Rev {
		t.Fatal("no commit", err)
	}
	a = s.notify(t, writer, in)
	if a.json(t, &out); *out.LayersCreated != 0 || *out.StatsUpdated {
		t.Errorf("a repeated push: %s", a.body)
	}
	if again, err := s.repo.Head(t.Context()); err != nil || again.Rev != after.Rev {
		t.Error("a repeated push wrote something", err)
	}
	// The same image in another repository has layer records of its own.
	in.Repository = "other"
	if a := s.notify(t, writer, in); a.status != 200 || len(s.records(t, atcr.HoldLayerNSID)) != 4 {
		t.Fatalf("%d %s %v", a.status, a.body, s.records(t, atcr.HoldLayerNSID))
	}
	var quota atcr.HoldGetQuotaOutput
	s.send(t, http.MethodGet, "/xrpc/io.atcr.hold.getQuota?userDid="+writer.String(), "", nil).json(t, &quota)
	if quota.UniqueBlobs != 2 || quota.TotalSize != 13 || quota.Limit != nil {
		t.Errorf("%+v", quota)
	}
	for range 2 {
		if err := s.publishStats(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	stats := s.records(t, atcr.HoldStatsNSID)
	if r := stats[atcr.StatsRkey(writer.String(), "team/app")]; len(stats) != 2 || !strings.Contains(r, `"pushCount":1`) || !strings.Contains(r, `"lastPush"`) {
		t.Errorf("%v", stats)
	}
	in.Operation = "delete"
	if a := s.notify(t, writer, in); a.status != 200 || len(s.records(t, atcr.HoldLayerNSID)) != 2 {
		t.Errorf("delete: %d %s", a.status, a.body)
	}
	if a := s.notify(t, writer, in); a.status != 200 {
		t.Errorf("delete again: %d %s", a.status, a.body)
	}
	if layers := s.records(t, atcr.HoldLayerNSID); layers[atcr.LayerRkey(uri, layer.String())] == "" {
		t.Errorf("the first repository's records are gone: %v", layers)
	}
}

// Would catch somebody who names another's image, blobs that are not here, or more of them than fit.
func TestNotifyRefusals(t *testing.T) {
	t.Parallel()
	p := newPeople(t)
	s := startHold(t, p, func(c *Config) { c.Public = true })
	for member, permissions := range map[syntax.DID][]string{writer: {"blob:write"}, reader: {"blob:read"}} {
		if a := s.addCrew(t, owner, member, permissions...); a.status != 200 {
			t.Fatal(a.body)
		}
	}
	blob := s.push(t, writer, []byte("content"))
	good := message(writer, "app", "m", blob, blob)
	change := func(fn func(*atcr.HoldNotifyManifestInput)) atcr.HoldNotifyManifestInput {
		in := good
		fn(&in)
		return in
	}
	many := make([]oci.Digest, 1001)
	for i := range many {
		many[i] = oci.FromBytes(fmt.Append(nil, i))
	}
	huge := int64(1 << 40)
	for name, test := range map[string]struct {
		by     syntax.DID
		in     atcr.HoldNotifyManifestInput
		status int
		error  string
	}{
		"nobody":            {nobody, good, 401, "AuthRequired"},
		"another's image":   {owner, good, 403, "UserMismatch"},
		"another's delete":  {owner, change(func(in *atcr.HoldNotifyManifestInput) { in.Operation = "delete" }), 403, "UserMismatch"},
		"may only read":     {reader, message(reader, "app", "m", blob), 403, "Forbidden"},
		"no such operation": {writer, change(func(in *atcr.HoldNotifyManifestInput) { in.Operation = "scan" }), 400, "InvalidOperation"},
		"no such blob":      {writer, message(writer, "app", "m", oci.FromBytes([]byte("absent"))), 400, "BlobNotFound"},
		"too many":          {writer, message(writer, "app", "m", blob, many...), 400, "InvalidRequest"},
		"no digest":         {writer, change(func(in *atcr.HoldNotifyManifestInput) { in.ManifestDigest = "sha256:x" }), 400, "InvalidRequest"},
		"no repository":     {writer, change(func(in *atcr.HoldNotifyManifestInput) { in.Repository = "../x" }), 400, "InvalidRequest"},
		"no DID":            {writer, change(func(in *atcr.HoldNotifyManifestInput) { in.UserDid = "alice" }), 400, "InvalidRequest"},
	} {
		if a := s.notify(t, test.by, test.in); a.status != test.status || a.errorName() != test.error {
			t.Errorf("%s: %d %s", name, a.status, a.body)
		}
	}
	if n := len(s.records(t, atcr.HoldLayerNSID)); n != 0 {
		t.Errorf("%d records were made", n)
	}
	// Counts of pulls are for what is here, and only a trusted AppView may say more than one.
	if a := s.notify(t, writer, good); a.status != 200 {
		t.Fatal(a.body)
	}
	pull := change(func(in *atcr.HoldNotifyManifestInput) { in.Operation, in.Count = "pull", &huge })
	for name, in := range map[string]atcr.HoldNotifyManifestInput{"here": pull, "not here": message(writer, "none", "m", blob)} {
		in.Operation = "pull"
		var out atcr.HoldNotifyManifestOutput
		a := s.notify(t, reader, in)
		if a.json(t, &out); a.status != 200 || *out.StatsUpdated != (name == "here") {
			t.Errorf("pull of what is %s: %d %s", name, a.status, a.body)
		}
	}
	if err := s.publishStats(t.Context()); err != nil {
		t.Fatal(err)
	}
	if r := s.records(t, atcr.HoldStatsNSID)[atcr.StatsRkey(writer.String(), "app")]; !strings.Contains(r, `"pullCount":1,`) {
		t.Errorf("%s", r)
	}
}

// Would catch a trusted AppView whose counts are not taken, and config blobs handed out that count each time.
func TestPullCounts(t *testing.T) {
	t.Parallel()
	p := newPeople(t)
	s := startHold(t, p, func(c *Config) { open(c); c.TrustedAppViews = []string{admin.String()} })
	config := s.push(t, writer, []byte("config"))
	if a := s.notify(t, writer, message(writer, "app", "m", config)); a.status != 200 {
		t.Fatal(a.body)
	}
	in, count := message(writer, "app", "m", config), int64(41)
	in.Operation, in.Count = "pull", &count
	for i := range 3 {
		if i == 2 { // from then on its word stands for what the hold sees itself
			if a := s.notify(t, admin, in); a.status != 200 {
				t.Fatal(a.body)
			}
		}
		if a := s.send(t, http.MethodGet, s.blobPath(config), "", nil); a.status != 200 {
			t.Fatal(a.body)
		}
	}
	if err := s.publishStats(t.Context()); err != nil {
		t.Fatal(err)
	}
	if r := s.records(t, atcr.HoldStatsNSID)[atcr.StatsRkey(writer.String(), "app")]; !strings.Contains(r, `"pullCount":42,`) {
		t.Errorf("%s", r)
	}
}

// Would catch a private hold that counts for nobody but its members, or for an AppView that it does not trust.
func TestPullCountsAtAPrivateHold(t *testing.T) {
	t.Parallel()
	p := newPeople(t)
	s := startHold(t, p, func(c *Config) { c.TrustedAppViews = []string{stranger.String()} })
	config := s.push(t, owner, []byte("config"))
	if a := s.notify(t, owner, message(owner, "app", "m", config)); a.status != 200 {
		t.Fatal(a.body)
	}
	in, count := message(owner, "app", "m", config), int64(7)
	in.Operation, in.Count = "pull", &count
	if a := s.notify(t, stranger, in); a.status != 200 {
		t.Errorf("a trusted AppView, which is no member: %d %s", a.status, a.body)
	}
	if a := s.notify(t, refused, in); a.status != 403 {
		t.Errorf("another: %d %s", a.status, a.body)
	}
	if err := s.publishStats(t.Context()); err != nil {
		t.Fatal(err)
	}
	if r := s.records(t, atcr.HoldStatsNSID)[atcr.StatsRkey(owner.String(), "app")]; !strings.Contains(r, `"pullCount":7,`) {
		t.Errorf("%s", r)
	}
}

// Would catch a blob in use that is deleted, one that nobody names and that stays, or one that was asked for
// lately and goes.
func TestCollect(t *testing.T) {
	t.Parallel()
	p, c := newPeople(t), &clock{}
	s := startHold(t, p, func(config *Config) { open(config); c.set(config); config.TestMode = true })
	named, unnamed, asked := s.push(t, writer, []byte("named")), s.push(t, writer, []byte("unnamed")), s.push(t, writer, []byte("asked for"))
	c.advance(upload.CollectAfter - time.Hour)
	if a := s.send(t, http.MethodHead, s.blobPath(asked), "", nil); a.status != 200 {
		t.Fatal(a.status)
	}
	c.advance(2 * time.Hour)
	if _, err := s.Collect(t.Context(), CollectOptions{}); err == nil {
		t.Fatal("a hold that nobody told of any manifest collects")
	}
	if a := s.notify(t, writer, message(writer, "app", "m", named)); a.status != 200 {
		t.Fatal(a.body)
	}
	young := s.push(t, writer, []byte("young"))
	for _, dryRun := range []bool{true, false, false} {
		var seen []upload.Unnamed
		got, err := s.Collect(t.Context(), CollectOptions{DryRun: dryRun, Report: func(b upload.Unnamed) { seen = append(seen, b) }})
		if err != nil {
			t.Fatal(err)
		}
		there := s.has(t, unnamed)
		if dryRun && (got.Blobs != 1 || got.Bytes != 7 || seen[0].Digest != unnamed || seen[0].Owner != writer || !there) || !dryRun && there {
			t.Errorf("dry run %v: %+v %+v, there: %v", dryRun, got, seen, there)
		}
	}
	for _, d := range []oci.Digest{named, young, asked} {
		if a := s.send(t, http.MethodGet, s.blobPath(d), "", nil); a.status != 200 {
			t.Errorf("%s: %d", d, a.status)
		}
	}
	if again := s.push(t, writer, []byte("unnamed")); again != unnamed {
		t.Error("it cannot be pushed again")
	}
	if a := s.send(t, http.MethodGet, s.blobPath(unnamed), "", nil); a.status != 200 || a.body != "unnamed" {
		t.Errorf("pushed again: %d %s", a.status, a.body)
	}
}
