package hold

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bluesky-social/indigo/atproto/atcrypto"
	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/api/atcr"
	"atcr.io/internal/oci"
	"atcr.io/internal/pds"
	"atcr.io/internal/xrpc"
)

// parametersOf are what each query takes: enough to be answered.
func parametersOf(s *surface) map[string]url.Values {
	did, repo := s.Hold.did.String(), s.Hold.did.String()
	return map[string]url.Values{
		"com.atproto.identity.resolveHandle": {"handle": {"nobody.test"}},
		"com.atproto.repo.describeRepo":      {"repo": {repo}},
		"com.atproto.repo.getRecord":         {"repo": {repo}, "collection": {"com.example.thing"}, "rkey": {"k0"}, "cid": {""}},
		"com.atproto.repo.listRecords":       {"repo": {repo}, "collection": {"com.example.thing"}, "limit": {"5"}, "cursor": {"k0"}, "reverse": {"true"}},
		"com.atproto.sync.getBlob":           {"did": {did}, "cid": {s.blob}},
		"com.atproto.sync.listBlobs":         {"did": {did}, "since": {s.rev}, "limit": {"5"}, "cursor": {"a"}},
		"com.atproto.sync.getRecord":         {"did": {did}, "collection": {"com.example.thing"}, "rkey": {"k0"}},
		"com.atproto.sync.getBlocks":         {"did": {did}, "cids": {s.commit}},
		"com.atproto.sync.getRepo":           {"did": {did}, "since": {s.rev}},
		"com.atproto.sync.getLatestCommit":   {"did": {did}},
		"com.atproto.sync.getRepoStatus":     {"did": {did}},
		"com.atproto.sync.listRepos":         {"limit": {"5"}, "cursor": {"a"}},
		"com.atproto.sync.subscribeRepos":    {"cursor": {"1"}},
		getProfileNSID:                       {"actor": {did}},
		getProfilesNSID:                      {"actors": {did}},
		atcr.HoldGetQuotaNSID:                {"userDid": {writer.String()}},
	}
}

// free are parameters whose every value means something: a cursor is only a place to begin at.
var free = map[string]bool{"com.atproto.repo.listRecords cursor": true, "com.atproto.sync.listBlobs cursor": true, "com.atproto.sync.listRepos cursor": true}

// Would catch a query that breaks, hangs or answers anyhow when its parameters are missing, given twice, huge or
// of another type: every query, every parameter.
func TestHostileParameters(t *testing.T) {
	t.Parallel()
	o := newOfficial(t)
	s := newSurface(t, o)
	known := parametersOf(s)
	none := []string{"com.atproto.server.describeServer", atcr.HoldListTiersNSID, "_health", atcr.HoldExportUserDataNSID}
	for _, route := range s.xrpcRoutes() {
		if route.Method == http.MethodGet && known[route.NSID] == nil && !slices.Contains(none, route.NSID) {
			t.Errorf("%s is not tested", route.NSID)
		}
	}
	huge := strings.Repeat("9", 100_000)
	for nsid, good := range known {
		for name := range good {
			values := map[string][]string{
				"twice": {good.Get(name), good.Get(name)}, "huge": {huge}, "wrong": {"ü \x00 !"}, "negative": {"-1"}, "text": {"x{}"}, "long": {strings.Repeat("a", 3000)},
			}
			if name == "cids" || name == "actors" {
				values["twice"] = make([]string, 300)
			}
			for what, value := range values {
				q := url.Values{}
				for k, v := range good {
					q[k] = v
				}
				q[name] = value
				a := s.send(t, http.MethodGet, "/xrpc/"+nsid+"?"+q.Encode(), "", nil)
				if a.status == http.StatusRequestHeaderFieldsTooLarge && what == "huge" {
					continue
				}
				if free[nsid+" "+name] && what != "twice" {
					if a.status != http.StatusOK {
						t.Errorf("%s, %s %s: %d %.300s", nsid, what, name, a.status, a.body)
					}
					continue
				}
				if name == "rkey" && a.errorName() == "RecordNotFound" || nsid == "com.atproto.sync.getRecord" && name == "rkey" && a.status == http.StatusOK {
					continue // "-1" is a key
				}
				o.checkError(t, nsid, a)
			}
			if optional := map[string]bool{"cid": nsid == "com.atproto.repo.getRecord", "limit": true, "cursor": true, "reverse": true, "since": true}; !optional[name] {
				q := url.Values{}
				for k, v := range good {
					if k != name {
						q[k] = v
					}
				}
				a := s.send(t, http.MethodGet, "/xrpc/"+nsid+"?"+q.Encode(), "", nil)
				if a.errorName() != "InvalidRequest" {
					t.Errorf("%s without %s: %d %s", nsid, name, a.status, a.body)
				}
			}
		}
	}
}

// Would catch a procedure that takes what is no JSON, or of another form, and one that says so before it has
// looked who asks.
func TestHostileBodies(t *testing.T) {
	t.Parallel()
	o := newOfficial(t)
	s := newSurface(t, o)
	bodies := map[string]string{
		"empty": ``, "cut": `{"repo":`, "null": `null`, "array": `[]`, "text": `"x"`, "number": `7`, "binary": "\x00\xff\xfe", "deep": strings.Repeat(`{"a":`, 100_000),
		"many":        `{"writes":[` + strings.Repeat(`{},`, 300_000) + `{}]}`,
		"wrong types": `{"repo":7,"collection":{},"rkey":[],"record":"x","writes":{},"digest":7,"uploadId":{},"partNumber":"x","parts":"x","userDid":1,"repository":[],"permissions":"x"}`,
		"huge":        `{"repo":"` + strings.Repeat("x", 5<<20) + `"}`,
	}
	for _, route := range s.xrpcRoutes() {
		if route.Method == http.MethodGet || route.NSID == uploadBlobNSID {
			continue
		}
		for what, body := range bodies {
			allowed := route.NSID == atcr.HoldRequestCrewNSID && (what == "null") || route.NSID == atcr.HoldDeleteUserDataNSID // takes none, looks at none
			if allowed || what == "huge" && route.NSID == atcr.HoldUploadPartNSID {                                            // which reads nothing of it
				continue
			}
			a := s.send(t, route.Method, "/xrpc/"+route.NSID, s.token(t, owner, route.NSID), strings.NewReader(body), "X-Upload-Id", "none", "X-Part-Number", "x")
			o.checkError(t, route.NSID, a, "RepoNotFound")
			if what == "huge" {
				continue
			}
			if a := s.send(t, route.Method, "/xrpc/"+route.NSID, "", strings.NewReader(body)); a.status != http.StatusUnauthorized && !early[a.errorName()] {
				t.Errorf("%s, %s, by nobody: %d %.300s", route.NSID, what, a.status, a.body)
			}
		}
	}
	for _, verb := range []string{http.MethodPut, http.MethodDelete, http.MethodPatch, http.MethodGet} {
		if a := s.send(t, verb, "/xrpc/com.atproto.repo.createRecord", "", nil); a.status != http.StatusMethodNotAllowed || a.header.Get("Allow") != http.MethodPost {
			t.Errorf("%s: %d %v", verb, a.status, a.header)
		}
	}
	if a := s.send(t, http.MethodOptions, "/xrpc/com.atproto.repo.createRecord", "", nil, "Origin", "https://x.example", "Access-Control-Request-Method", "POST"); a.status != http.StatusNoContent || !strings.Contains(a.header.Get("Access-Control-Allow-Headers"), "Authorization") {
		t.Errorf("%d %v", a.status, a.header)
	}
}

// early are errors that need no caller: the body is read to know whose repo is meant.
var early = map[string]bool{"InvalidRequest": true, "RepoNotFound": true, "PayloadTooLarge": true}

// Would catch notifications that make a hold write down what it does not have, or what is not true.
func TestForgedNotifications(t *testing.T) {
	t.Parallel()
	p := newPeople(t)
	s := startHold(t, p, open)
	config, layer := s.push(t, writer, []byte("{}")), s.push(t, writer, []byte("layer"))
	absent := oci.FromBytes([]byte("absent"))
	many := message(writer, "app", "many", config)
	for i := range 100_000 {
		many.Manifest.Layers = append(many.Manifest.Layers, blobInfo(oci.FromBytes(fmt.Append(nil, i))))
	}
	thousand := message(writer, "app", "thousand", config)
	for range maxManifestLayers {
		thousand.Manifest.Layers = append(thousand.Manifest.Layers, blobInfo(layer))
	}
	edit := func(change func(*atcr.HoldNotifyManifestInput)) atcr.HoldNotifyManifestInput {
		in := message(writer, "app", "m", config, layer)
		change(&in)
		return in
	}
	for name, test := range map[string]struct {
		in   atcr.HoldNotifyManifestInput
		by   syntax.DID
		want string
	}{
		"a layer that is not here":  {message(writer, "app", "m", config, absent), writer, "BlobNotFound"},
		"a config that is not here": {message(writer, "app", "m", absent), writer, "BlobNotFound"},
		"100,000 layers":            {many, writer, "PayloadTooLarge"},
		"1,001 blobs":               {thousand, writer, "InvalidRequest"},
		"somebody else's":           {message(writer, "app", "m", config), stranger, "UserMismatch"},
		"nobody":                    {message(writer, "app", "m", config), nobody, "AuthRequired"},
		"no DID":                    {edit(func(in *atcr.HoldNotifyManifestInput) { in.UserDid = "alice.test" }), writer, "InvalidRequest"},
		"no digest":                 {edit(func(in *atcr.HoldNotifyManifestInput) { in.ManifestDigest = "sha256:x" }), writer, "InvalidRequest"},
		"a wrong layer":             {edit(func(in *atcr.HoldNotifyManifestInput) { in.Manifest.Layers[0].Digest = "../../etc" }), writer, "InvalidRequest"},
		"a wrong repository":        {edit(func(in *atcr.HoldNotifyManifestInput) { in.Repository = "../x" }), writer, "InvalidRequest"},
		"a long repository":         {edit(func(in *atcr.HoldNotifyManifestInput) { in.Repository = strings.Repeat("a", 300) }), writer, "InvalidRequest"},
		"a wrong tag":               {edit(func(in *atcr.HoldNotifyManifestInput) { in.Tag = "a b" }), writer, "InvalidRequest"},
		"a long tag":                {edit(func(in *atcr.HoldNotifyManifestInput) { in.Tag = strings.Repeat("a", 129) }), writer, "InvalidRequest"},
		"another operation":         {edit(func(in *atcr.HoldNotifyManifestInput) { in.Operation = "burn" }), writer, "InvalidOperation"},
	} {
		if a := s.notify(t, test.by, test.in); a.errorName() != test.want {
			t.Errorf("%s: %d %.300s, want %s", name, a.status, a.body, test.want)
		}
	}
	if layers := s.records(t, atcr.HoldLayerNSID); len(layers) != 0 {
		t.Errorf("%v", layers)
	}
	lie := message(writer, "app", "m", config, layer)
	lie.Manifest.Layers[0].Size, lie.Manifest.Config.Size = 1<<50, -7
	lie.Manifest.Layers[0].MediaType = strings.Repeat("x", 200) + "\xff"
	if a := s.notify(t, writer, lie); a.status != http.StatusOK {
		t.Fatalf("%d %s", a.status, a.body)
	}
	for rkey, raw := range s.records(t, atcr.HoldLayerNSID) {
		if _, err := s.catalog.validate(atcr.HoldLayerNSID, syntax.RecordKey(rkey), decoded(t, []byte(raw))); err != nil || !strings.Contains(raw, `"size":5`) && !strings.Contains(raw, `"size":2`) {
			t.Errorf("%s: %v", raw, err)
		}
	}
}

// Would catch a flood that fills the memory, or shuts out those who have nothing to do with it: once-only tokens
// of one person, and issuers that do not exist.
func TestFloods(t *testing.T) {
	t.Parallel()
	p := newPeople(t)
	s := startHold(t, p, open)
	refusals := 0
	for range 1100 {
		a := s.call(t, owner, "com.atproto.repo.deleteRecord", map[string]any{"repo": s.did, "collection": "com.example.thing", "rkey": "absent"})
		if a.status == http.StatusTooManyRequests && a.header.Get("Retry-After") != "" {
			refusals++
		} else if a.status != http.StatusOK {
			t.Fatalf("%d %s", a.status, a.body)
		}
	}
	if refusals != 100 {
		t.Errorf("%d calls of 1,100 were refused", refusals)
	}
	if a := s.call(t, writer, atcr.HoldRequestCrewNSID, struct{}{}); a.status != http.StatusOK {
		t.Errorf("somebody else: %d %s", a.status, a.body)
	}
	key, err := atcrypto.GeneratePrivateKeyK256()
	if err != nil {
		t.Fatal(err)
	}
	for i := range 200 {
		token, err := xrpc.SignServiceToken(key, syntax.DID(fmt.Sprintf("did:plc:nobody%d", i)), s.did.String(), atcr.HoldInitiateUploadNSID, time.Now(), time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		if a := s.send(t, http.MethodPost, "/xrpc/"+atcr.HoldInitiateUploadNSID, token, strings.NewReader("{}")); a.status != http.StatusUnauthorized && a.status != http.StatusServiceUnavailable {
			t.Fatalf("%d %s", a.status, a.body)
		}
	}
	if asked := p.asked("/did:plc:nobody1"); asked != 1 {
		t.Errorf("the directory was asked %d times for one who does not exist", asked)
	}
	s.begin(t, writer)
}

// Would catch a batch that passes for 200 writes, or that is made in part.
func TestHostileBatches(t *testing.T) {
	t.Parallel()
	s := startHold(t, newPeople(t), open)
	item := func(kind, collection, rkey string) map[string]any {
		return map[string]any{"$type": "com.atproto.repo.applyWrites#" + kind, "collection": collection, "rkey": rkey, "value": map[string]any{"n": 1}}
	}
	var many []any
	for i := range pds.MaxCommitOps + 1 {
		many = append(many, item("create", "com.example.thing", fmt.Sprint("k", i)))
	}
	for name, test := range map[string]struct {
		writes any
		by     syntax.DID
		status int
	}{
		"201":                   {many, owner, 400},
		"twice":                 {[]any{many[0], many[0]}, owner, 400},
		"unknown kind":          {[]any{item("burn", "com.example.thing", "a")}, owner, 400},
		"one that is not there": {[]any{many[0], item("update", "com.example.thing", "absent")}, owner, 400},
		"one that may not be":   {[]any{many[0], item("create", atcr.HoldStatsNSID, "x")}, owner, 403},
		"captain":               {[]any{many[0], item("delete", atcr.HoldCaptainNSID, "self")}, owner, 403},
		"by a stranger":         {[]any{many[0]}, stranger, 403},
		"no writes' form":       {"x", owner, 400},
	} {
		a := s.call(t, test.by, "com.atproto.repo.applyWrites", map[string]any{"repo": s.did, "writes": test.writes})
		if a.status != test.status {
			t.Errorf("%s: %d %s, want %d", name, a.status, a.body, test.status)
		}
	}
	if left := s.records(t, "com.example.thing"); len(left) != 0 {
		t.Errorf("%v", left)
	}
	if a := s.call(t, owner, "com.atproto.repo.applyWrites", map[string]any{"repo": s.did, "writes": many[:pds.MaxCommitOps]}); a.status != http.StatusOK || len(s.records(t, "com.example.thing")) != pds.MaxCommitOps {
		t.Errorf("200: %d %s", a.status, a.body)
	}
}
