package hold

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bluesky-social/indigo/atproto/atcrypto"
	"github.com/bluesky-social/indigo/atproto/syntax"
	"github.com/prometheus/client_golang/prometheus"

	"atcr.io/api/atcr"
	"atcr.io/internal/oci"
	"atcr.io/internal/xrpc"
	"atcr.io/test/components"
)

// people are accounts with keys, and the did:plc directory that knows them.
type people struct {
	url   string
	keys  map[syntax.DID]*atcrypto.PrivateKeyK256
	repos *repos // at their PDS, which a hold in TEST_MODE reaches and which resolves their handles

	mu     sync.Mutex
	looked map[string]int // paths that the directory was asked for
}

// asked is how often the directory was asked for a path.
func (p *people) asked(path string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.looked[path]
}

// handleOf is a person's handle.
func handleOf(did syntax.DID) string { return strings.TrimPrefix(did.String(), "did:plc:") + ".test" }

const (
	owner    = syntax.DID("did:plc:owner")
	nobody   = syntax.DID("")
	stranger = syntax.DID("did:plc:stranger")
	refused  = syntax.DID("did:plc:refused")
	reader   = syntax.DID("did:plc:reader")
	writer   = syntax.DID("did:plc:writer")
	admin    = syntax.DID("did:plc:admin")
)

func newPeople(t *testing.T) *people {
	t.Helper()
	p := &people{keys: map[syntax.DID]*atcrypto.PrivateKeyK256{}, repos: newRepos(), looked: map[string]int{}}
	documents := map[string][]byte{}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/xrpc/") {
			p.repos.ServeHTTP(w, r)
			return
		}
		p.mu.Lock()
		p.looked[r.URL.Path]++
		p.mu.Unlock()
		document, ok := documents[r.URL.Path]
		if !ok {
			http.NotFound(w, r)
			return
		}
		_, _ = w.Write(document)
	}))
	t.Cleanup(s.Close)
	p.url = s.URL
	for _, did := range []syntax.DID{owner, stranger, refused, reader, writer, admin} {
		key, err := atcrypto.GeneratePrivateKeyK256()
		if err != nil {
			t.Fatal(err)
		}
		public, err := key.PublicKey()
		if err != nil {
			t.Fatal(err)
		}
		p.keys[did] = key
		if documents["/"+did.String()], err = json.Marshal(didDocument(did, p.url, handleOf(did), public)); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

// server is a hold with its settings, served on a free port.
type server struct {
	*Hold
	people *people
	config Config
	client *http.Client
}

// startHold opens a hold of the people's, on a folder, with what change says.
func startHold(t *testing.T, p *people, change func(*Config)) *server {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := filesystemConfig(t)
	c.PublicURL, c.Owner, c.PLCURL = "http://"+l.Addr().String(), owner.String(), p.url
	if change != nil {
		change(&c)
	}
	s := &server{people: p, config: c}
	s.serve(t, l)
	return s
}

func (s *server) serve(t *testing.T, l net.Listener) {
	t.Helper()
	if err := s.config.Validate(); err != nil {
		t.Fatal(err)
	}
	var err error
	if s.Hold, err = Open(t.Context(), s.config, slog.New(slog.DiscardHandler), prometheus.NewRegistry()); err != nil {
		t.Fatal(err)
	}
	web := httptest.NewUnstartedServer(s.Handler())
	if err := web.Listener.Close(); err != nil {
		t.Fatal(err)
	}
	web.Listener = l
	web.Start()
	s.client = &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	t.Cleanup(func() {
		web.Close()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}

// token is did's service token for a call.
func (s *server) token(t *testing.T, did syntax.DID, lxm string) string {
	t.Helper()
	if did == nobody {
		return ""
	}
	token, err := xrpc.SignServiceToken(s.people.keys[did], did, s.did.String(), lxm, time.Now(), 4*time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

type answer struct {
	status int
	header http.Header
	body   string
}

func (a answer) json(t *testing.T, v any) {
	t.Helper()
	if err := json.Unmarshal([]byte(a.body), v); err != nil {
		t.Fatalf("%s: %v", a.body, err)
	}
}

// errorName is the XRPC error of an answer.
func (a answer) errorName() string {
	var e struct{ Error string }
	if json.Unmarshal([]byte(a.body), &e) != nil {
		return ""
	}
	return e.Error
}

func (s *server) send(t *testing.T, method, url, token string, body io.Reader, header ...string) answer {
	t.Helper()
	if strings.HasPrefix(url, "/") {
		url = s.config.PublicURL + url
	}
	req, err := http.NewRequestWithContext(t.Context(), method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := s.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(res.Body)
	if err := errors.Join(err, res.Body.Close()); err != nil {
		t.Fatal(err)
	}
	return answer{res.StatusCode, res.Header, string(text)}
}

// call is an XRPC procedure as did.
func (s *server) call(t *testing.T, did syntax.DID, nsid string, in any) answer {
	t.Helper()
	raw, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	return s.send(t, http.MethodPost, "/xrpc/"+nsid, s.token(t, did, nsid), bytes.NewReader(raw))
}

// begin is an upload of did's, and its uploadUrl.
func (s *server) begin(t *testing.T, did syntax.DID) (id, url string) {
	t.Helper()
	a := s.call(t, did, atcr.HoldInitiateUploadNSID, atcr.HoldInitiateUploadInput{Digest: oci.FromBytes(nil).String(), Location: "https://appview.example/v2/x/blobs/"})
	var out atcr.HoldInitiateUploadOutput
	a.json(t, &out)
	if a.status != http.StatusOK || out.UploadId == "" || len(out.UploadId) > 256 || !strings.HasPrefix(out.UploadUrl, s.config.PublicURL+"/u/") {
		t.Fatalf("%d %s", a.status, a.body)
	}
	return out.UploadId, out.UploadUrl
}

// push uploads data by uploadUrl as docker does.
func (s *server) push(t *testing.T, did syntax.DID, data []byte) oci.Digest {
	t.Helper()
	_, url := s.begin(t, did)
	if a := s.send(t, http.MethodPatch, url, "", bytes.NewReader(data)); a.status != http.StatusAccepted || a.header.Get("Location") != url {
		t.Fatalf("PATCH: %d %s", a.status, a.body)
	}
	digest := oci.FromBytes(data)
	a := s.send(t, http.MethodPut, url+"?digest="+digest.String(), "", nil)
	if a.status != http.StatusCreated || a.header.Get("Docker-Content-Digest") != digest.String() || a.header.Get("Location") != "https://appview.example/v2/x/blobs/"+digest.String() {
		t.Fatalf("PUT: %d %v %s", a.status, a.header, a.body)
	}
	return digest
}

func (s *server) blobPath(d oci.Digest) string {
	return "/xrpc/com.atproto.sync.getBlob?did=did:plc:any&cid=" + d.String()
}

func crewRecord(member syntax.DID, permissions ...string) map[string]any {
	if permissions == nil {
		permissions = []string{}
	}
	return map[string]any{"$type": atcr.HoldCrewNSID, "member": member, "role": "member", "permissions": permissions, "addedAt": "2026-01-01T00:00:00Z"}
}

func (s *server) addCrew(t *testing.T, by, member syntax.DID, permissions ...string) answer {
	t.Helper()
	return s.call(t, by, "com.atproto.repo.createRecord", map[string]any{"repo": s.did, "collection": atcr.HoldCrewNSID, "record": crewRecord(member, permissions...)})
}

// The contract's table on the wire, for the four kinds of hold: who reads, who writes, each cell.
func TestPermissions(t *testing.T) {
	t.Parallel()
	p := newPeople(t)
	type cell struct{ read, write string } // kinds where it is allowed
	table := map[syntax.DID]cell{
		nobody: {"bc", ""}, stranger: {"obc", "oc"}, refused: {"bc", ""}, reader: {"pobc", "oc"}, writer: {"pobc", "pobc"}, admin: {"pobc", "pobc"}, owner: {"pobc", "pobc"},
	}
	storage := components.StartS3(t)
	storage.CreateBucket(t, "blobs")
	for name, set := range map[string][2]bool{
		"p": {false, false}, "o": {false, true}, "b": {true, false}, "c": {true, true}, // a folder
		"p, S3": {false, false}, "c, S3": {true, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			kind := name[:1]
			s := startHold(t, p, func(c *Config) {
				c.Public, c.AllowAllCrew = set[0], set[1]
				if strings.HasSuffix(name, "S3") {
					c.StorageDriver, c.S3Bucket, c.S3Endpoint, c.AccessKeyID, c.SecretAccessKey = "s3", "blobs", storage.Endpoint, storage.AccessKey, storage.SecretKey
				}
			})
			for member, permissions := range map[syntax.DID][]string{refused: nil, reader: {"blob:read"}, writer: {"blob:write"}, admin: {"crew:admin"}} {
				if a := s.addCrew(t, owner, member, permissions...); a.status != http.StatusOK {
					t.Fatalf("%s: %d %s", member, a.status, a.body)
				}
			}
			digest, missing := s.push(t, owner, []byte("content")), oci.FromBytes([]byte("missing"))
			for did, want := range table {
				token := s.token(t, did, getBlobNSID)
				got := s.send(t, http.MethodGet, s.blobPath(digest), token, nil)
				if got.status == http.StatusTemporaryRedirect {
					got = s.send(t, http.MethodGet, got.header.Get("Location"), "", nil)
				}
				absent := s.send(t, http.MethodGet, s.blobPath(missing), token, nil)
				denied := http.StatusForbidden
				if did == nobody {
					denied = http.StatusUnauthorized
				}
				if strings.Contains(want.read, kind) {
					if got.status != http.StatusOK || got.body != "content" || absent.status != http.StatusNotFound {
						t.Errorf("%q reads: %d %s, absent %d", did, got.status, got.body, absent.status)
					}
				} else if got.status != denied || absent.status != denied || got.body != absent.body || !strings.Contains(got.body, "blob:read") {
					t.Errorf("%q must not read: %d %s, absent %d %s", did, got.status, got.body, absent.status, absent.body)
				}
				up := s.call(t, did, atcr.HoldInitiateUploadNSID, map[string]string{"digest": digest.String()})
				if strings.Contains(want.write, kind) != (up.status == http.StatusOK) || up.status != http.StatusOK && (up.status != denied || !strings.Contains(up.body, "blob:write")) {
					t.Errorf("%q writes: %d %s", did, up.status, up.body)
				}
				rec := s.addCrew(t, did, "did:plc:new", "blob:read")
				if (did == owner || did == admin) != (rec.status == http.StatusOK) {
					t.Errorf("%q adds crew: %d %s", did, rec.status, rec.body)
				}
			}
		})
	}
}

// The column "records" on the wire: what each may write, and tokens that are good for one call alone.
func TestRecords(t *testing.T) {
	t.Parallel()
	p := newPeople(t)
	s := startHold(t, p, func(c *Config) { c.Public, c.AllowAllCrew = true, true })
	s.addCrew(t, owner, admin, "crew:admin")
	s.addCrew(t, owner, writer, "blob:write")
	captain := func(change map[string]any) map[string]any {
		r := map[string]any{"$type": atcr.HoldCaptainNSID, "owner": owner, "public": true, "allowAllCrew": true, "enableBlueskyPosts": false, "deployedAt": "2026-01-01T00:00:00Z"}
		for k, v := range change {
			r[k] = v
		}
		return r
	}
	put := func(by syntax.DID, collection, rkey string, value any) int {
		return s.call(t, by, "com.atproto.repo.putRecord", map[string]any{"repo": s.did, "collection": collection, "rkey": rkey, "record": value}).status
	}
	remove := func(by syntax.DID, collection, rkey string) int {
		return s.call(t, by, "com.atproto.repo.deleteRecord", map[string]any{"repo": s.did, "collection": collection, "rkey": rkey}).status
	}
	for name, test := range map[string]struct{ got, want int }{
		"admin gives admin":      {s.addCrew(t, admin, writer, "crew:admin").status, 403},
		"admin takes from admin": {put(admin, atcr.HoldCrewNSID, atcr.CrewRkey(admin.String()), crewRecord(admin, "blob:read")), 403},
		"admin takes from owner": {s.addCrew(t, admin, owner).status, 403},
		"admin under other key":  {put(admin, atcr.HoldCrewNSID, "another", crewRecord(owner)), 403},
		"admin writes captain":   {put(admin, atcr.HoldCaptainNSID, "self", captain(map[string]any{"region": "x"})), 403},
		"owner sets a region":    {put(owner, atcr.HoldCaptainNSID, "self", captain(map[string]any{"region": "x"})), 200},
		"owner changes owner":    {put(owner, atcr.HoldCaptainNSID, "self", captain(map[string]any{"owner": stranger})), 403},
		"owner changes public":   {put(owner, atcr.HoldCaptainNSID, "self", captain(map[string]any{"public": false})), 403},
		// A field in another spelling is another field: what is judged must be what is read later.
		"admin, two spellings": {put(admin, atcr.HoldCrewNSID, atcr.CrewRkey("did:plc:two"), map[string]any{
			"member": "did:plc:two", "permissions": []string{"crew:admin"}, "Permissions": []string{"blob:read"}, "role": "x", "addedAt": "2026-01-01T00:00:00Z",
		}), 403},
		"another admin's rights, two spellings": {put(admin, atcr.HoldCrewNSID, atcr.CrewRkey(admin.String()), map[string]any{
			"member": admin, "Member": "did:plc:two", "permissions": []string{}, "role": "x", "addedAt": "2026-01-01T00:00:00Z",
		}), 403},
		"owner, two spellings":   {put(owner, atcr.HoldCaptainNSID, "self", captain(map[string]any{"owner": stranger, "Owner": owner})), 403},
		"admin deletes captain":  {remove(admin, atcr.HoldCaptainNSID, "self"), 403},
		"owner deletes captain":  {remove(owner, atcr.HoldCaptainNSID, "self"), 403},
		"owner deletes stats":    {remove(owner, atcr.HoldStatsNSID, "x"), 403},
		"admin deletes a scan":   {remove(admin, atcr.HoldScanNSID, "x"), 403},
		"admin deletes a layer":  {remove(admin, atcr.HoldLayerNSID, "absent"), 200},
		"admin deletes a post":   {remove(admin, "app.bsky.feed.post", "absent"), 200},
		"admin writes a post":    {put(admin, "app.bsky.feed.post", "x", map[string]any{}), 403},
		"writer deletes a layer": {remove(writer, atcr.HoldLayerNSID, "absent"), 403},
		"admin removes an admin": {remove(admin, atcr.HoldCrewNSID, atcr.CrewRkey(admin.String())), 403},
		"owner writes stats":     {put(owner, atcr.HoldStatsNSID, "x", map[string]any{}), 403},
		"owner writes layers":    {put(owner, atcr.HoldLayerNSID, "x", map[string]any{}), 403},
		"owner writes another":   {put(owner, "com.example.thing", "x", map[string]any{}), 200},
		"writer writes another":  {put(writer, "com.example.thing", "x", map[string]any{}), 403},
		"stranger adds himself":  {s.addCrew(t, stranger, stranger, "blob:write").status, 403},
		"nobody":                 {s.addCrew(t, nobody, stranger, "blob:write").status, 401},
		"no DID":                 {s.addCrew(t, owner, "alice.test", "blob:read").status, 400},
	} {
		if test.got != test.want {
			t.Errorf("%s: %d, want %d", name, test.got, test.want)
		}
	}
	// A token is for one call, with its method in it.
	raw, err := json.Marshal(map[string]any{"repo": s.did, "collection": "com.example.thing", "record": map[string]any{}})
	if err != nil {
		t.Fatal(err)
	}
	once := s.token(t, owner, "com.atproto.repo.createRecord")
	for i, want := range []int{200, 401} {
		if a := s.send(t, http.MethodPost, "/xrpc/com.atproto.repo.createRecord", once, bytes.NewReader(raw)); a.status != want {
			t.Errorf("use %d of a token: %d %s", i+1, a.status, a.body)
		}
	}
	for _, lxm := range []string{"", "com.atproto.repo.putRecord"} {
		if a := s.send(t, http.MethodPost, "/xrpc/com.atproto.repo.createRecord", s.token(t, owner, lxm), bytes.NewReader(raw)); a.status != 401 {
			t.Errorf("lxm %q: %d %s", lxm, a.status, a.body)
		}
	}
}

// Would catch a token that is good for more than it says: another hold's, an old one, a forged one, another
// method's; and HOLD_REQUIRE_LXM without effect.
func TestTokens(t *testing.T) {
	t.Parallel()
	p := newPeople(t)
	for _, testMode := range []bool{false, true} { // which relaxes nothing of this
		t.Run(fmt.Sprintf("TEST_MODE=%v", testMode), func(t *testing.T) {
			t.Parallel()
			testTokens(t, p, testMode)
		})
	}
}

func testTokens(t *testing.T, p *people, testMode bool) {
	s := startHold(t, p, func(c *Config) { c.TestMode = testMode })
	strict := startHold(t, p, func(c *Config) { c.RequireLxm, c.TestMode = true, testMode })
	begin := func(s *server, token string) answer {
		return s.send(t, http.MethodPost, "/xrpc/"+atcr.HoldInitiateUploadNSID, token, strings.NewReader(`{"digest":"`+oci.FromBytes(nil).String()+`"}`))
	}
	sign := func(key syntax.DID, aud, lxm string, issued time.Time, lifetime time.Duration) string {
		t.Helper()
		token, err := xrpc.SignServiceToken(p.keys[key], owner, aud, lxm, issued, lifetime)
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	now, aud := time.Now(), s.did.String()
	for name, test := range map[string]struct {
		answer answer
		want   int
	}{
		"good":            {begin(s, sign(owner, aud, atcr.HoldInitiateUploadNSID, now, time.Minute)), 200},
		"fragment":        {begin(s, sign(owner, aud+"#atcr_hold", atcr.HoldInitiateUploadNSID, now, time.Minute)), 200},
		"another of five": {begin(s, sign(owner, aud, atcr.HoldUploadPartNSID, now, time.Hour)), 200},
		"no lxm":          {begin(s, sign(owner, aud, "", now, time.Minute)), 200},
		"no lxm, strict":  {begin(strict, sign(owner, strict.did.String(), "", now, time.Minute)), 401},
		"lxm, strict":     {begin(strict, sign(owner, strict.did.String(), atcr.HoldInitiateUploadNSID, now, time.Minute)), 200},
		"another hold's":  {begin(s, sign(owner, strict.did.String(), atcr.HoldInitiateUploadNSID, now, time.Minute)), 401},
		"another method":  {begin(s, sign(owner, aud, getBlobNSID, now, time.Minute)), 401},
		"expired":         {begin(s, sign(owner, aud, atcr.HoldInitiateUploadNSID, now.Add(-time.Hour), time.Minute)), 401},
		"too long":        {begin(s, sign(owner, aud, atcr.HoldInitiateUploadNSID, now, 2*time.Hour)), 401},
		"another's key":   {begin(s, sign(stranger, aud, atcr.HoldInitiateUploadNSID, now, time.Minute)), 401},
		"garbage":         {begin(s, "eyJhbGciOiJub25lIn0.e30."), 401},
		"none":            {begin(s, ""), 401},
	} {
		if test.answer.status != test.want {
			t.Errorf("%s: %d %s, want %d", name, test.answer.status, test.answer.body, test.want)
		}
	}
}

// Would catch bytes served as a page, a range or HEAD that is wrong, and a link that opens more than its blob.
func TestGetBlob(t *testing.T) {
	t.Parallel()
	s := startHold(t, newPeople(t), nil)
	digest := s.push(t, owner, []byte("0123456789"))
	token := s.token(t, owner, getBlobNSID)
	get := s.send(t, http.MethodGet, s.blobPath(digest), token, nil)
	for header, want := range map[string]string{
		"Content-Type": "application/octet-stream", "Content-Length": "10", "X-Content-Type-Options": "nosniff", "Docker-Content-Digest": digest.String(),
		"Content-Security-Policy": "default-src 'none'; sandbox", "ETag": `"` + digest.String() + `"`,
	} {
		if get.header.Get(header) != want {
			t.Errorf("%s: %q", header, get.header.Get(header))
		}
	}
	if a := s.send(t, http.MethodHead, s.blobPath(digest), token, nil); a.status != 200 || a.header.Get("Content-Length") != "10" || a.body != "" {
		t.Errorf("HEAD: %d %v", a.status, a.header)
	}
	if a := s.send(t, http.MethodGet, s.blobPath(digest), token, nil, "Range", "bytes=2-4"); a.status != 206 || a.body != "234" {
		t.Errorf("Range: %d %q", a.status, a.body)
	}
	if a := s.send(t, http.MethodGet, s.blobPath(digest), token, nil, "If-None-Match", `"`+digest.String()+`"`); a.status != 304 {
		t.Errorf("If-None-Match: %d", a.status)
	}
	var link struct{ URL string }
	a := s.send(t, http.MethodGet, s.blobPath(digest)+"&method=GET", token, nil)
	a.json(t, &link)
	if !strings.HasPrefix(link.URL, s.config.PublicURL+"/d/") || a.header.Get("Cache-Control") != "no-store" {
		t.Fatalf("method=GET: %s", a.body)
	}
	if a := s.send(t, http.MethodGet, link.URL, "", nil, "Range", "bytes=8-"); a.status != 206 || a.body != "89" {
		t.Errorf("the link: %d %q", a.status, a.body)
	}
	if a := s.send(t, http.MethodGet, link.URL, "not a service token", nil); a.status != 200 {
		t.Errorf("the link with a token: %d", a.status)
	}
	if a := s.send(t, http.MethodGet, strings.Replace(link.URL, "/d/", "/d/A", 1), "", nil); a.status != 403 {
		t.Errorf("another link: %d", a.status)
	}
	for query, want := range map[string]int{
		"did=x&cid=sha256:zz": 400, "did=x": 400, "did=x&cid=" + digest.String() + "&method=PUT": 400, "did=x&cid=a&cid=b": 400,
		"did=did:plc:x&cid=bafkreibme22gw2h7y2h7tg2fhqotaqjucnbc24deqo72b6mkl2egezxhvy": 400,
	} {
		if a := s.send(t, http.MethodGet, "/xrpc/"+getBlobNSID+"?"+query, token, nil); a.status != want {
			t.Errorf("%s: %d %s", query, a.status, a.body)
		}
	}
	public := startHold(t, s.people, func(c *Config) { c.Public = true })
	if a := public.send(t, http.MethodGet, public.blobPath(digest), "a registry token, by mistake", nil); a.status != 404 {
		t.Errorf("a public hold and a token that it does not know: %d %s", a.status, a.body)
	}
}

// Would catch an upload that others can touch, and parts that are taken wrong, twice, or after the end.
func TestParts(t *testing.T) {
	t.Parallel()
	s := startHold(t, newPeople(t), func(c *Config) { c.AllowAllCrew = true })
	part := func(did syntax.DID, id, number string, data string) answer {
		return s.send(t, http.MethodPut, "/xrpc/"+atcr.HoldUploadPartNSID, s.token(t, did, atcr.HoldUploadPartNSID), strings.NewReader(data), "X-Upload-Id", id, "X-Part-Number", number)
	}
	etag := func(a answer) string {
		t.Helper()
		var out atcr.HoldUploadPartOutput
		a.json(t, &out)
		if a.status != 200 || out.Etag == "" {
			t.Fatalf("%d %s", a.status, a.body)
		}
		return out.Etag
	}
	complete := func(did syntax.DID, id string, digest oci.Digest, etags ...string) answer {
		in := atcr.HoldCompleteUploadInput{UploadId: id, Digest: digest.String(), Parts: []atcr.HoldCompleteUploadPart{}}
		for i, e := range etags {
			in.Parts = append(in.Parts, atcr.HoldCompleteUploadPart{PartNumber: int64(i + 1), Etag: e})
		}
		return s.call(t, did, atcr.HoldCompleteUploadNSID, in)
	}
	id, _ := s.begin(t, owner)
	digest := oci.FromBytes([]byte("onetwothree"))
	one := etag(part(owner, id, "1", "one"))
	three := etag(part(owner, id, "3", "three"))
	for name, test := range map[string]struct {
		got  answer
		want string
	}{
		"someone else's":  {part(stranger, id, "2", "two"), "InvalidUploadId"},
		"no such upload":  {part(owner, "none", "1", "x"), "InvalidUploadId"},
		"part 0":          {part(owner, id, "0", "x"), "InvalidPartNumber"},
		"no number":       {part(owner, id, "one", "x"), "InvalidPartNumber"},
		"part 100000":     {part(owner, id, "100000", "x"), "InvalidPartNumber"},
		"other bytes":     {part(owner, id, "1", "uno"), "UploadFailed"},
		"missing parts":   {complete(owner, id, digest, one), "MissingParts"},
		"not the owner":   {complete(stranger, id, digest, one), "InvalidUploadId"},
		"bad digest":      {s.call(t, owner, atcr.HoldCompleteUploadNSID, map[string]any{"uploadId": id, "digest": "sha256:x"}), "InvalidDigest"},
		"bad initiate":    {s.call(t, owner, atcr.HoldInitiateUploadNSID, map[string]any{"digest": "md5:x"}), "InvalidDigest"},
		"initiate, array": {s.call(t, owner, atcr.HoldInitiateUploadNSID, []int{1}), "InvalidRequest"},
		"location":        {s.call(t, owner, atcr.HoldInitiateUploadNSID, map[string]any{"digest": digest, "location": "javascript:alert(1)"}), "InvalidRequest"},
		"URL, stranger":   {s.call(t, stranger, atcr.HoldGetPartUploadUrlNSID, map[string]any{"uploadId": id, "partNumber": 2}), "InvalidUploadId"},
		"URL of part 0":   {s.call(t, owner, atcr.HoldGetPartUploadUrlNSID, map[string]any{"uploadId": id, "partNumber": 0}), "InvalidPartNumber"},
		"URL of 100000":   {s.call(t, owner, atcr.HoldGetPartUploadUrlNSID, map[string]any{"uploadId": id, "partNumber": 100000}), "InvalidPartNumber"},
		"abort, stranger": {s.call(t, stranger, atcr.HoldAbortUploadNSID, map[string]any{"uploadId": id}), "InvalidUploadId"},
	} {
		if test.got.errorName() != test.want || test.got.status < 400 || test.got.status > 499 {
			t.Errorf("%s: %d %s, want %s", name, test.got.status, test.got.body, test.want)
		}
	}
	if again := etag(part(owner, id, "1", "one")); again != one {
		t.Error("the same part has another etag")
	}
	post := s.send(t, http.MethodPost, "/xrpc/"+atcr.HoldUploadPartNSID, s.token(t, owner, atcr.HoldUploadPartNSID), strings.NewReader("one"), "X-Upload-Id", id, "X-Part-Number", "1")
	if etag(post) != one {
		t.Error("POST is another part than PUT")
	}
	two := etag(part(owner, id, "2", "two"))
	for range 2 { // idempotent
		if a := complete(owner, id, digest, one, two, three); a.status != 200 || !strings.Contains(a.body, `"completed"`) {
			t.Fatalf("%d %s", a.status, a.body)
		}
	}
	if a := part(owner, id, "4", "late"); a.errorName() != "InvalidUploadId" {
		t.Errorf("after the end: %d %s", a.status, a.body)
	}
	if a := s.send(t, http.MethodGet, s.blobPath(digest), s.token(t, owner, getBlobNSID), nil); a.body != "onetwothree" {
		t.Errorf("%d %s", a.status, a.body)
	}
	// A digest that the bytes do not have.
	id, _ = s.begin(t, owner)
	e := etag(part(owner, id, "1", "liar"))
	if a := complete(owner, id, digest, e); a.errorName() != "InvalidDigest" {
		t.Errorf("another digest: %d %s", a.status, a.body)
	}
	if a := s.send(t, http.MethodGet, s.blobPath(oci.FromBytes([]byte("liar"))), s.token(t, owner, getBlobNSID), nil); a.status != 404 {
		t.Errorf("bytes that were refused are readable: %d", a.status)
	}
	// Begun as a stream, it is not finished in parts.
	id, url := s.begin(t, owner)
	s.send(t, http.MethodPatch, url, "", strings.NewReader("streamed"))
	if a := complete(owner, id, oci.FromBytes([]byte("streamed")), e); a.errorName() != "CompletionFailed" || a.status != http.StatusConflict {
		t.Errorf("a stream completed as parts: %d %s", a.status, a.body)
	}
	var target atcr.HoldGetPartUploadUrlOutput
	id, _ = s.begin(t, owner)
	s.call(t, owner, atcr.HoldGetPartUploadUrlNSID, map[string]any{"uploadId": id, "partNumber": 1}).json(t, &target)
	if target.Url != s.config.PublicURL+"/xrpc/"+atcr.HoldUploadPartNSID || target.Method != "PUT" || target.Headers["X-Upload-Id"] != id {
		t.Errorf("%+v", target)
	}
	if a := s.call(t, owner, atcr.HoldAbortUploadNSID, map[string]any{"uploadId": id}); a.status != 200 {
		t.Errorf("abort: %d %s", a.status, a.body)
	}
}

// Would catch a start that changes who owns a hold, makes a new identity for an old repo, or does not follow
// its settings.
func TestStarts(t *testing.T) {
	t.Parallel()
	p := newPeople(t)
	s := startHold(t, p, nil)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	open := func(change func(*Config)) error {
		c := s.config
		change(&c)
		h, err := Open(t.Context(), c, slog.New(slog.DiscardHandler), nil)
		if err != nil {
			return err
		}
		defer func() { _ = h.Close() }()
		captain, _, err := h.captain(t.Context())
		if err == nil && (captain.Public != c.Public || captain.AllowAllCrew != c.AllowAllCrew || captain.EnableBlueskyPosts != c.BlueskyPosts || captain.Owner != owner.String()) {
			err = fmt.Errorf("the captain record is %+v", captain)
		}
		return err
	}
	for name, test := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"again":             {func(*Config) {}, ""},
		"no owner set":      {func(c *Config) { c.Owner = "" }, ""},
		"booleans changed":  {func(c *Config) { c.Public, c.AllowAllCrew, c.BlueskyPosts = true, true, true }, ""},
		"owner changed":     {func(c *Config) { c.Owner = stranger.String() }, "captain transfer"},
		"URL changed":       {func(c *Config) { c.PublicURL = "http://127.0.0.1:1" }, "HOLD_PUBLIC_URL"},
		"key gone":          {func(c *Config) { c.KeyPath += ".gone" }, "HOLD_KEY_PATH"},
		"no owner, no repo": {func(c *Config) { c.Owner, c.DatabaseDir, c.KeyPath = "", t.TempDir(), t.TempDir()+"/k" }, "HOLD_OWNER"},
	} {
		err := open(test.change)
		if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	fresh := s.config
	fresh.Owner, fresh.DatabaseDir, fresh.KeyPath = "", t.TempDir(), filepath.Join(t.TempDir(), "key")
	if _, err := Open(t.Context(), fresh, slog.New(slog.DiscardHandler), nil); !errors.Is(err, errNoOwner) {
		t.Errorf("no owner: %v", err)
	}
	if _, err := os.Stat(fresh.KeyPath); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a start that was refused left a key: %v", err)
	}
}
