package hold

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/bluesky-social/indigo/atproto/lexicon"

	"atcr.io/api/atcr"
	"atcr.io/test/vectors"
)

// official holds answers against the Lexicons as their authors publish them, and ours.
type official struct {
	known *lexicon.BaseCatalog
	dir   string // of the published ones
	n     int
}

func newOfficial(t *testing.T) *official {
	t.Helper()
	o := &official{known: lexicon.NewBaseCatalog(), dir: filepath.Join(vectors.Dir(t), "lexicons")}
	for _, dir := range []string{o.dir + "/com/atproto", o.dir + "/app/bsky", "../../lexicons/io"} {
		if err := o.known.LoadDirectory(dir); err != nil {
			t.Fatal(err)
		}
	}
	return o
}

// absolute makes references within a file ones that can be followed from anywhere.
func absolute(v any, nsid string) any {
	switch v := v.(type) {
	case map[string]any:
		for k, item := range v {
			if text, ok := item.(string); ok && k == "ref" && strings.HasPrefix(text, "#") {
				v[k] = nsid + text
				continue
			}
			v[k] = absolute(item, nsid)
		}
	case []any:
		for i, item := range v {
			if text, ok := item.(string); ok && strings.HasPrefix(text, "#") {
				v[i] = nsid + text
				continue
			}
			v[i] = absolute(item, nsid)
		}
	}
	return v
}

type methodFile struct {
	Defs struct {
		Main struct {
			Type   string
			Output struct {
				Encoding string
				Schema   map[string]any
			}
			Errors []struct{ Name string }
		}
	}
}

func (o *official) method(t *testing.T, nsid string) (m methodFile) {
	t.Helper()
	path := strings.ReplaceAll(nsid, ".", "/") + ".json"
	raw, err := os.ReadFile(filepath.Join(o.dir, path))
	if err != nil {
		if raw, err = os.ReadFile(filepath.Join("../../lexicons", path)); err != nil {
			t.Fatal(err)
		}
	}
	if err := json.Unmarshal(raw, &m); err != nil {
		t.Fatal(err)
	}
	return m
}

// check holds a success against the method's output.
func (o *official) check(t *testing.T, nsid string, a answer) {
	t.Helper()
	m := o.method(t, nsid)
	kind := a.header.Get("Content-Type")
	if want := m.Defs.Main.Output.Encoding; want != "*/*" && !strings.HasPrefix(kind, want) {
		t.Errorf("%s: Content-Type %q, want %q", nsid, kind, want)
	}
	schema := m.Defs.Main.Output.Schema
	if schema == nil {
		return
	}
	// indigo validates records alone: the answer becomes a field of one.
	o.n++
	id := fmt.Sprintf("com.example.answer%d", o.n)
	raw, err := json.Marshal(map[string]any{"lexicon": 1, "id": id, "defs": map[string]any{"main": map[string]any{
		"type": "record", "key": "any", "record": map[string]any{"type": "object", "required": []string{"answer"}, "properties": map[string]any{"answer": absolute(schema, nsid)}},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	var file lexicon.SchemaFile
	if err := json.Unmarshal(raw, &file); err != nil {
		t.Fatal(err)
	}
	if err := o.known.AddSchemaFile(file); err != nil {
		t.Fatalf("%s: %v", nsid, err)
	}
	record := decoded(t, []byte(`{"$type":"`+id+`","answer":`+a.body+`}`))
	if err := lexicon.ValidateRecord(o.known, record, id, 0); err != nil {
		t.Errorf("%s: %s: %v", nsid, a.body, err)
	}
}

// general are the errors that any method may have.
var general = map[string]bool{
	"InvalidRequest": true, "AuthRequired": true, "InvalidToken": true, "Forbidden": true, "RateLimitExceeded": true, "PayloadTooLarge": true,
	"BadJwtLexiconMethod": true, "BadJwtAudience": true, "BadJwtSignature": true, "ExpiredToken": true, "UpstreamFailure": true,
}

// checkError holds an error against the form of errors and the names that the method has.
func (o *official) checkError(t *testing.T, nsid string, a answer, also ...string) {
	t.Helper()
	var e struct{ Error, Message *string }
	if err := json.Unmarshal([]byte(a.body), &e); err != nil || e.Error == nil || e.Message == nil || *e.Message == "" || a.status < 400 || a.status > 499 {
		t.Errorf("%s: %d %.300s", nsid, a.status, a.body)
		return
	}
	allowed := general[*e.Error]
	for _, known := range o.method(t, nsid).Defs.Main.Errors {
		allowed = allowed || known.Name == *e.Error
	}
	for _, name := range also {
		allowed = allowed || name == *e.Error
	}
	if !allowed {
		t.Errorf("%s: the Lexicon has no error %s", nsid, *e.Error)
	}
}

// surface is a hold with some of everything.
type surface struct {
	*server
	blob   string // CID of a picture
	rkey   string // of a post
	commit string // CID
	rev    string
	did    string // escaped
}

func newSurface(t *testing.T, o *official) *surface {
	t.Helper()
	p, c := newPeople(t), &clock{}
	s := &surface{server: startHold(t, p, func(config *Config) {
		posting(p, c)(config)
		config.Quotas = `{"tiers":{"free":"5GB","pro":"1TB"},"default":"free"}`
	})}
	s.did = url.QueryEscape(s.Hold.did.String())
	in := message(writer, "app", "m", s.push(t, writer, []byte("{}")), s.push(t, writer, []byte("layer")))
	p.repos.keep(manifestURI(in), s.recordOf(in))
	pushed := s.notify(t, writer, in)
	o.check(t, atcr.HoldNotifyManifestNSID, pushed)
	a := s.send(t, http.MethodPost, "/xrpc/"+uploadBlobNSID, s.token(t, owner, uploadBlobNSID), bytes.NewReader(defaultAvatar), "Content-Type", "image/png")
	o.check(t, uploadBlobNSID, a)
	var blob struct{ Blob json.RawMessage }
	a.json(t, &blob)
	do := func(nsid string, in map[string]any) {
		t.Helper()
		in["repo"] = s.Hold.did
		a := s.call(t, owner, nsid, in)
		if a.status != http.StatusOK {
			t.Fatalf("%s: %d %s", nsid, a.status, a.body)
		}
		o.check(t, nsid, a)
	}
	do("com.atproto.repo.putRecord", map[string]any{"collection": profileNSID, "rkey": "self", "record": map[string]any{
		"displayName": "a hold", "description": "ours", "avatar": blob.Blob, "banner": blob.Blob, "createdAt": "2026-01-01T00:00:00Z",
	}})
	for i := range 3 {
		do("com.atproto.repo.createRecord", map[string]any{"collection": "com.example.thing", "rkey": fmt.Sprint("k", i), "record": map[string]any{"n": i, "list": []any{nil, true}}})
	}
	do("com.atproto.repo.deleteRecord", map[string]any{"collection": "com.example.thing", "rkey": "k2"})
	do("com.atproto.repo.deleteRecord", map[string]any{"collection": "com.example.thing", "rkey": "absent"})
	item := func(kind, rkey string, value any) map[string]any {
		return map[string]any{"$type": "com.atproto.repo.applyWrites#" + kind, "collection": "com.example.thing", "rkey": rkey, "value": value}
	}
	do("com.atproto.repo.applyWrites", map[string]any{"writes": []any{
		item("create", "k3", map[string]any{}), item("update", "k0", map[string]any{"n": 7}), map[string]any{"$type": "com.atproto.repo.applyWrites#delete", "collection": "com.example.thing", "rkey": "k1"},
	}})
	var latest struct{ CID, Rev string }
	s.send(t, http.MethodGet, "/xrpc/com.atproto.sync.getLatestCommit?did="+s.did, "", nil).json(t, &latest)
	s.commit, s.rev = latest.CID, latest.Rev
	var listed struct{ CIDs []string }
	s.send(t, http.MethodGet, "/xrpc/com.atproto.sync.listBlobs?did="+s.did, "", nil).json(t, &listed)
	for rkey := range s.records(t, postNSID) {
		s.rkey = rkey
	}
	if len(listed.CIDs) != 1 || s.rkey == "" {
		t.Fatalf("%v %q", listed, s.rkey)
	}
	s.blob = listed.CIDs[0]
	return s
}

// Would catch an answer that the protocol's own Lexicons do not allow: the surface, call by call, and what each
// must say.
func TestSurface(t *testing.T) {
	t.Parallel()
	o := newOfficial(t)
	s := newSurface(t, o)
	repo, sync := "repo="+s.did, "did="+s.did
	for _, test := range []struct{ nsid, query, want string }{
		{"com.atproto.server.describeServer", "", `"did":"` + s.Hold.did.String() + `"`},
		{"com.atproto.repo.describeRepo", repo, `"io.atcr.hold.captain"`},
		{"com.atproto.repo.getRecord", repo + "&collection=" + atcr.HoldCaptainNSID + "&rkey=self", `"owner":"` + owner.String()},
		{"com.atproto.repo.getRecord", repo + "&collection=" + postNSID + "&rkey=" + s.rkey, `pushed app:1.0`},
		{"com.atproto.repo.listRecords", repo + "&collection=com.example.thing", `"n":7`},
		{"com.atproto.repo.listRecords", repo + "&collection=com.example.thing&limit=1&reverse=true", `"cursor":"k0"`},
		{"com.atproto.repo.listRecords", repo + "&collection=com.example.thing&limit=1&reverse=true&cursor=k0", `/k3"`},
		{"com.atproto.repo.listRecords", repo + "&collection=com.example.nothing", `"records":[]`},
		{"com.atproto.sync.getLatestCommit", sync, s.commit},
		{"com.atproto.sync.getRepoStatus", sync, `"active":true`},
		{"com.atproto.sync.listRepos", "", s.commit},
		{"com.atproto.sync.listRepos", "limit=1000&cursor=zzz", `"repos":[]`},
		{"com.atproto.sync.listBlobs", sync, s.blob},
		{"com.atproto.sync.listBlobs", sync + "&since=" + s.rev, `"cids":[]`},
		{"com.atproto.sync.getBlob", sync + "&cid=" + s.blob, "PNG"},
		{"com.atproto.sync.getRepo", sync, ""},
		{"com.atproto.sync.getRepo", sync + "&since=" + s.rev, ""},
		{"com.atproto.sync.getRecord", sync + "&collection=" + atcr.HoldCaptainNSID + "&rkey=self", "captain"},
		{"com.atproto.sync.getRecord", sync + "&collection=" + atcr.HoldCaptainNSID + "&rkey=other", ""},
		{"com.atproto.sync.getBlocks", sync + "&cids=" + s.commit, ""},
		{getProfileNSID, "actor=" + s.did, `"displayName":"a hold"`},
		{getProfilesNSID, "actors=did:plc:nobody&actors=" + s.did + "&actors=" + s.did, `"banner":"http`},
		{getProfilesNSID, "actors=did:plc:nobody", `"profiles":[]`},
		{atcr.HoldGetQuotaNSID, "userDid=" + writer.String(), `"tier":"free"`},
		{atcr.HoldListTiersNSID, "", `"quotaFormatted":"5 GB","scanOnPush":false`},
	} {
		a := s.send(t, http.MethodGet, "/xrpc/"+test.nsid+"?"+test.query, "", nil)
		if a.status != http.StatusOK || !strings.Contains(a.body, test.want) {
			t.Errorf("%s?%s: %d %.500s, want %s", test.nsid, test.query, a.status, a.body, test.want)
			continue
		}
		if a.header.Get("Access-Control-Allow-Origin") != "*" || a.header.Get("Access-Control-Expose-Headers") != "*" {
			t.Errorf("%s: no CORS", test.nsid)
		}
		o.check(t, test.nsid, a)
	}
	for nsid, did := range map[string]string{atcr.HoldExportUserDataNSID: writer.String(), atcr.HoldRequestCrewNSID: "created", atcr.HoldDeleteUserDataNSID: `"success":true`} {
		a := s.call(t, writer, nsid, struct{}{})
		if nsid == atcr.HoldExportUserDataNSID {
			a = s.send(t, http.MethodGet, "/xrpc/"+nsid, s.token(t, writer, nsid), nil)
		}
		if a.status != http.StatusOK || !strings.Contains(a.body, did) {
			t.Errorf("%s: %d %s", nsid, a.status, a.body)
			continue
		}
		o.check(t, nsid, a)
	}
	for path, want := range map[string]string{
		"/":                         "ATCR hold",
		"/robots.txt":               "User-agent",
		"/.well-known/did.json":     "AtcrHoldService",
		"/.well-known/atproto-did":  s.Hold.did.String(),
		"/xrpc/_health":             "version",
		"/xrpc/com.example.unknown": "MethodNotImplemented",
	} {
		if a := s.send(t, http.MethodGet, path, "", nil); !strings.Contains(a.body, want) || strings.HasPrefix(path, "/xrpc/com.") != (a.status == http.StatusNotImplemented) {
			t.Errorf("%s: %d %s", path, a.status, a.body)
		}
	}
	_, path, _ := strings.Cut(s.send(t, http.MethodGet, "/", "", nil).body, "read and write: ")
	if a := s.send(t, http.MethodGet, strings.TrimSpace(path), "", nil); a.status != http.StatusOK {
		t.Errorf("the banner leads to %q: %d %s", path, a.status, a.body)
	}
}

// Would catch errors whose names no client knows.
func TestSurfaceErrors(t *testing.T) {
	t.Parallel()
	o := newOfficial(t)
	s := newSurface(t, o)
	repo, sync := "repo="+s.did, "did="+s.did
	for _, test := range []struct{ nsid, query, want string }{
		{"com.atproto.repo.getRecord", repo + "&collection=com.example.thing&rkey=absent", "RecordNotFound"},
		{"com.atproto.repo.getRecord", repo + "&collection=com.example.thing&rkey=k0&cid=" + s.commit, "RecordNotFound"},
		{"com.atproto.sync.getBlob", sync + "&cid=bafkreifzjut3te7nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e", "BlobNotFound"},
		{"com.atproto.sync.getBlocks", sync + "&cids=bafkreifzjut3te7nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e", "BlockNotFound"},
		{"com.atproto.sync.getRepo", "did=did:plc:nobody", "RepoNotFound"},
		{"com.atproto.sync.getRepoStatus", "did=did:plc:nobody", "RepoNotFound"},
		{"com.atproto.sync.getLatestCommit", "did=did:plc:nobody", "RepoNotFound"},
		{"com.atproto.sync.listBlobs", "did=did:plc:nobody", "RepoNotFound"},
		{"com.atproto.sync.getRecord", "did=did:plc:nobody&collection=com.example.thing&rkey=a", "RepoNotFound"},
		{"com.atproto.identity.resolveHandle", "handle=nobody.test", "HandleNotFound"},
		{getProfileNSID, "actor=nobody.test", "InvalidRequest"},
		{atcr.HoldGetQuotaNSID, "userDid=alice.test", "InvalidUserDid"},
	} {
		a := s.send(t, http.MethodGet, "/xrpc/"+test.nsid+"?"+test.query, "", nil)
		if a.errorName() != test.want {
			t.Errorf("%s?%s: %d %s, want %s", test.nsid, test.query, a.status, a.body, test.want)
		}
		o.checkError(t, test.nsid, a)
	}
}
