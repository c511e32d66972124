package pds_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/bluesky-social/indigo/atproto/repo"
	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/internal/httpx"
	"atcr.io/internal/pds"
	"atcr.io/internal/xrpc"
)

// site is a world that is served.
type site struct {
	*world
	server *httptest.Server
}

func adapter() *httpx.Adapter {
	return &httpx.Adapter{Logger: slog.New(slog.NewTextHandler(io.Discard, nil))}
}

// newSite authorises writes by the header of the same name, and has a clock for those who want it.
func newSite(t testing.TB, config pds.Config) *site {
	t.Helper()
	s := &site{}
	permit := func(r *http.Request) error {
		if r.Header.Get("Authorization") != "Bearer good" {
			return xrpc.Errorf(http.StatusUnauthorized, "InvalidToken", "no")
		}
		return nil
	}
	config.ServerDID, config.Domains = did, []string{".hold.example"}
	config.Logger = adapter().Logger
	config.Authorise = func(_ context.Context, r *http.Request, _ string, _ *pds.Repo, writes []pds.Write) error {
		for _, w := range writes {
			if w.Collection == "com.example.forbidden" {
				return xrpc.Errorf(http.StatusForbidden, "Forbidden", "not this one")
			}
		}
		return permit(r)
	}
	config.AuthoriseBlob = func(_ context.Context, r *http.Request) (*pds.Repo, error) { return s.repo, permit(r) }
	s.world = newWorldWith(t, config)
	s.server = httptest.NewServer(pds.Serve(adapter(), s.host.Routes()))
	t.Cleanup(s.server.Close)
	t.Cleanup(s.host.Close) // first: a subscription would hold the server up
	return s
}

// answer is what came back.
type answer struct {
	status int
	header http.Header
	body   []byte
}

func (a answer) errorName() string {
	var e struct{ Error, Message string }
	if json.Unmarshal(a.body, &e) != nil || a.status < 400 {
		return ""
	}
	return e.Error
}

func (s *site) do(t testing.TB, method, path string, body io.Reader, header ...string) answer {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, s.server.URL+"/xrpc/"+path, body)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := s.server.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{res.StatusCode, res.Header, b}
}

// get decodes a success into out.
func (s *site) get(t testing.TB, path string, out any) {
	t.Helper()
	a := s.do(t, http.MethodGet, path, nil)
	if a.status != 200 {
		t.Fatalf("%s: %d %s", path, a.status, a.body)
	}
	if err := json.Unmarshal(a.body, out); err != nil {
		t.Fatalf("%s: %s: %v", path, a.body, err)
	}
}

func (s *site) fill(t testing.TB, n int) {
	t.Helper()
	writes := make([]pds.Write, n)
	for i := range writes {
		writes[i] = put(fmt.Sprintf("k%03d", i), i)
	}
	if _, err := s.repo.Apply(t.Context(), writes, nil); err != nil {
		t.Fatal(err)
	}
}

// Would catch a description that clients cannot read.
func TestDescribe(t *testing.T) {
	t.Parallel()
	s := newSite(t, pds.Config{})
	s.fill(t, 1)
	var server struct {
		DID                  string
		AvailableUserDomains []string
	}
	if s.get(t, "com.atproto.server.describeServer", &server); server.DID != did.String() || len(server.AvailableUserDomains) != 1 {
		t.Errorf("%+v", server)
	}
	for _, name := range []string{did.String(), "hold.example", "HOLD.example"} {
		var out struct {
			Handle, DID     string
			DIDDoc          map[string]any
			Collections     []string
			HandleIsCorrect bool
		}
		s.get(t, "com.atproto.repo.describeRepo?repo="+url.QueryEscape(name), &out)
		if out.Handle != "hold.example" || out.DID != did.String() || out.DIDDoc["id"] != did.String() || !slices.Equal(out.Collections, []string{collection.String()}) || !out.HandleIsCorrect {
			t.Errorf("%s: %+v", name, out)
		}
	}
	var resolved struct{ DID string }
	if s.get(t, "com.atproto.identity.resolveHandle?handle=Hold.Example", &resolved); resolved.DID != did.String() {
		t.Errorf("%+v", resolved)
	}
	var repos struct {
		Cursor string
		Repos  []struct {
			DID, Head, Rev string
			Active         bool
		}
	}
	if _, err := s.host.AddRepo(t.Context(), "did:web:other.example", s.key, ""); err != nil {
		t.Fatal(err)
	}
	s.get(t, "com.atproto.sync.listRepos?limit=1", &repos)
	if len(repos.Repos) != 1 || repos.Repos[0].DID != did.String() || repos.Cursor != did.String() || !repos.Repos[0].Active {
		t.Errorf("%+v", repos)
	}
	s.get(t, "com.atproto.sync.listRepos?limit=1&cursor="+url.QueryEscape(repos.Cursor), &repos)
	if len(repos.Repos) != 1 || repos.Repos[0].DID != "did:web:other.example" {
		t.Errorf("%+v", repos)
	}
	var latest struct{ CID, Rev string }
	s.get(t, "com.atproto.sync.getLatestCommit?did="+did.String(), &latest)
	var status struct {
		Rev    string
		Active bool
	}
	s.get(t, "com.atproto.sync.getRepoStatus?did="+did.String(), &status)
	head, err := s.repo.Head(t.Context())
	if err != nil || latest.CID != head.CID.String() || latest.Rev != head.Rev || status.Rev != head.Rev || !status.Active {
		t.Errorf("%+v %+v %v", latest, status, err)
	}
}

// Would catch a page that skips or repeats a record at its border, in either direction, and an end that is none.
func TestListRecords(t *testing.T) {
	t.Parallel()
	s := newSite(t, pds.Config{})
	s.fill(t, 23)
	other := pds.Write{Action: pds.Put, Collection: "com.example.things", Rkey: "k", Value: json.RawMessage(`{}`)}
	if _, err := s.repo.Apply(t.Context(), []pds.Write{other}, nil); err != nil {
		t.Fatal(err)
	}
	for _, reverse := range []bool{false, true} {
		for _, limit := range []int{1, 7, 23, 100} {
			cursor, seen := "", []string{}
			for page := 0; ; page++ {
				var out struct {
					Cursor  string
					Records []struct {
						URI   syntax.ATURI
						CID   string
						Value struct{ N int }
					}
				}
				s.get(t, fmt.Sprintf("com.atproto.repo.listRecords?repo=%s&collection=%s&limit=%d&reverse=%t&cursor=%s", did, collection, limit, reverse, cursor), &out)
				for _, r := range out.Records {
					if want := fmt.Sprintf("k%03d", r.Value.N); r.URI.RecordKey().String() != want || r.CID == "" {
						t.Errorf("%+v", r)
					}
					seen = append(seen, r.URI.RecordKey().String())
				}
				if cursor = out.Cursor; cursor == "" {
					break
				}
				if page > 30 {
					t.Fatal("no end")
				}
			}
			want := make([]string, 23)
			for i := range want {
				want[i] = fmt.Sprintf("k%03d", i)
			}
			if !reverse {
				slices.Reverse(want)
			}
			if !slices.Equal(seen, want) {
				t.Errorf("limit %d, reverse %t: %v", limit, reverse, seen)
			}
		}
	}
	a := s.do(t, http.MethodGet, "com.atproto.repo.listRecords?collection=com.example.none&repo="+did.String(), nil)
	if string(a.body) != `{"records":[]}` {
		t.Errorf("an empty collection: %s", a.body)
	}
}

// Would catch parameters that are let through, or refused in words that no client knows.
func TestBadParams(t *testing.T) {
	t.Parallel()
	s := newSite(t, pds.Config{})
	s.fill(t, 1)
	record := "com.atproto.repo.getRecord?repo=" + did.String() + "&collection=" + collection.String()
	list := "com.atproto.repo.listRecords?repo=" + did.String() + "&collection=" + collection.String()
	huge := strings.Repeat("x", 100_000)
	for path, want := range map[string]string{
		record + "&rkey=k000":                                                     "",
		record + "&rkey=k001":                                                     "RecordNotFound",
		record + "&rkey=k000&cid=bafyreibogus":                                    "RecordNotFound",
		record:                                                                    "InvalidRequest",
		record + "&rkey=":                                                         "InvalidRequest",
		record + "&rkey=..":                                                       "InvalidRequest",
		record + "&rkey=a%2Fb":                                                    "InvalidRequest",
		record + "&rkey=k000&rkey=k000":                                           "InvalidRequest",
		record + "&rkey=" + huge:                                                  "InvalidRequest",
		record + "&rkey=k000&repo=" + did.String():                                "InvalidRequest",
		list + "&limit=0":                                                         "InvalidRequest",
		list + "&limit=101":                                                       "InvalidRequest",
		list + "&limit=ten":                                                       "InvalidRequest",
		list + "&limit=1&limit=2":                                                 "InvalidRequest",
		list + "&reverse=yes":                                                     "InvalidRequest",
		list + "&cursor=a&cursor=b":                                               "InvalidRequest",
		list + "&cursor=%27%3B--":                                                 "",
		"com.atproto.repo.listRecords":                                            "InvalidRequest",
		"com.atproto.repo.listRecords?repo=" + huge:                               "InvalidRequest",
		"com.atproto.repo.describeRepo":                                           "InvalidRequest",
		"com.atproto.repo.describeRepo?repo=x":                                    "InvalidRequest",
		"com.atproto.repo.describeRepo?repo=did:web:no":                           "RepoNotFound",
		"com.atproto.sync.getRepo?did=did:web:no":                                 "RepoNotFound",
		"com.atproto.sync.getRepo":                                                "InvalidRequest",
		"com.atproto.sync.getLatestCommit?did=did:plc:x":                          "RepoNotFound",
		"com.atproto.sync.listRepos?limit=1001":                                   "InvalidRequest",
		"com.atproto.sync.getBlob?did=" + did.String():                            "InvalidRequest",
		"com.atproto.sync.getBlob?cid=x&did=" + did.String():                      "InvalidRequest",
		"com.atproto.sync.getBlob?did=" + did.String() + "&cid=" + noBlob:         "BlobNotFound",
		"com.atproto.identity.resolveHandle?handle=other.example":                 "HandleNotFound",
		"com.atproto.identity.resolveHandle?handle=a":                             "InvalidRequest",
		"com.atproto.repo.listRecords?collection=a&repo=" + did.String():          "InvalidRequest",
		"com.atproto.sync.subscribeRepos?cursor=-1":                               "InvalidRequest",
		"com.atproto.sync.subscribeRepos?cursor=now":                              "InvalidRequest",
		"com.atproto.sync.subscribeRepos?cursor=1&cursor=2":                       "InvalidRequest",
		"com.atproto.sync.subscribeRepos?cursor=99999999999999999999999":          "InvalidRequest",
		"com.atproto.sync.getRepo?since=a&since=b&did=" + did.String():            "InvalidRequest",
		"com.atproto.repo.describeRepo?repo=" + url.QueryEscape("did:web:a\x00b"): "InvalidRequest",
	} {
		a := s.do(t, http.MethodGet, path, nil)
		if got := a.errorName(); got != want || want != "" && a.status != 400 {
			t.Errorf("%.120s: %d %.200s, want %s", path, a.status, a.body, want)
		}
	}
}

const noBlob = "bafkreibme22gw2h7y2h7tg2fhqotaqjucnbc24deqo72b6mkl2egezxhvy"

// Would catch an export that others' code does not read, or that changes while it is sent.
func TestGetRepo(t *testing.T) {
	t.Parallel()
	s := newSite(t, pds.Config{})
	s.fill(t, 150)
	a := s.do(t, http.MethodGet, "com.atproto.sync.getRepo?did="+did.String(), nil)
	commit, exported, err := repo.LoadRepoFromCAR(t.Context(), bytes.NewReader(a.body))
	if err != nil {
		t.Fatal(err)
	}
	head, err := s.repo.Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if commit.Rev != head.Rev || commit.Data != head.Data || commit.DID != did.String() {
		t.Errorf("%+v", commit)
	}
	for i := range 150 {
		if raw, _, err := exported.GetRecordBytes(t.Context(), collection, syntax.RecordKey(fmt.Sprintf("k%03d", i))); err != nil || len(raw) == 0 {
			t.Fatalf("%d: %v", i, err)
		}
	}
	if a.header.Get("Content-Type") != "application/vnd.ipld.car" {
		t.Errorf("%v", a.header)
	}
	h := s.do(t, http.MethodHead, "com.atproto.sync.getRepo?did="+did.String(), nil)
	if h.status != 200 || len(h.body) != 0 || h.header.Get("Content-Type") != "application/vnd.ipld.car" {
		t.Errorf("HEAD: %d %v", h.status, h.header)
	}
	// A damaged repo is an error, not half a file.
	if _, err := s.db.Reader().ExecContext(t.Context(), `DELETE FROM record`); err == nil {
		t.Fatal("the reader wrote")
	}
	exec(t, s.db, `DELETE FROM record WHERE rkey = 'k077'`)
	if a := s.do(t, http.MethodGet, "com.atproto.sync.getRepo?did="+did.String(), nil); a.status != 500 || a.errorName() != "InternalServerError" || strings.Contains(string(a.body), "tree") {
		t.Errorf("damaged: %d %s", a.status, a.body)
	}
}

// Would catch a wrong verb that is answered as unknown, a page of another origin that may not read, and a
// route without its access.
func TestServe(t *testing.T) {
	t.Parallel()
	s := newSite(t, pds.Config{})
	for _, test := range []struct {
		method, path string
		status       int
		name, allow  string
	}{
		{"GET", "com.example.none", 501, "MethodNotImplemented", ""},
		{"POST", "com.example.none", 501, "MethodNotImplemented", ""},
		{"GET", "", 501, "MethodNotImplemented", ""},
		{"GET", "com.atproto.server.describeServer/", 501, "MethodNotImplemented", ""},
		{"POST", "com.atproto.server.describeServer", 405, "InvalidRequest", "GET"},
		{"PUT", "com.atproto.repo.putRecord", 405, "InvalidRequest", "POST"},
		{"GET", "com.atproto.repo.putRecord", 405, "InvalidRequest", "POST"},
		{"HEAD", "com.atproto.server.describeServer", 200, "", ""},
		{"OPTIONS", "com.atproto.repo.putRecord", 204, "", ""},
	} {
		a := s.do(t, test.method, test.path, nil, "Origin", "https://else.example")
		if a.status != test.status || a.errorName() != test.name || a.header.Get("Allow") != test.allow || a.header.Get("Access-Control-Allow-Origin") != "*" {
			t.Errorf("%s %s: %d %v %s", test.method, test.path, a.status, a.header, a.body)
		}
		if test.method == "OPTIONS" && !strings.Contains(a.header.Get("Access-Control-Allow-Headers"), "Authorization") {
			t.Errorf("a browser may not send a token: %v", a.header)
		}
	}
	seen := map[string]bool{}
	for _, r := range s.host.Routes() {
		if r.Access != "public" && r.Access != "authorised" || r.Method != "GET" && r.Method != "POST" || r.Handler == nil || seen[r.NSID] {
			t.Errorf("%+v", r)
		}
		if seen[r.NSID] = true; r.Method == "POST" != (r.Access == "authorised") {
			t.Errorf("%s is %s", r.NSID, r.Access)
		}
	}
}

// Would catch an export that is cut or changed by compression, or sent in a coding that nobody asked for.
func TestGetRepoGzip(t *testing.T) {
	t.Parallel()
	s := newSite(t, pds.Config{})
	s.fill(t, 50)
	path := s.server.URL + "/xrpc/com.atproto.sync.getRepo?did=" + did.String()
	var plain []byte
	for _, test := range []struct{ accept, coding string }{
		{"identity", ""}, {"gzip", "gzip"}, {"br, GZIP;q=0.5", "gzip"}, {"gzip;q=0", ""}, {"gzip; q=0.0, br", ""}, {"br", ""},
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Accept-Encoding", test.accept)
		res, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(res.Body)
		_ = res.Body.Close()
		if err != nil || res.StatusCode != 200 || res.Header.Get("Content-Encoding") != test.coding || !strings.Contains(res.Header.Get("Vary"), "Accept-Encoding") {
			t.Errorf("%s: %s %v %v", test.accept, res.Status, res.Header, err)
		}
		if test.coding == "" && res.Header.Get("Content-Length") != fmt.Sprint(len(body)) {
			t.Errorf("%s: %v", test.accept, res.Header)
		}
		if test.coding == "gzip" {
			unzip, err := gzip.NewReader(bytes.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			if body, err = io.ReadAll(unzip); err != nil {
				t.Fatal(err)
			}
		}
		if plain == nil {
			plain = body
		}
		if len(body) == 0 || !bytes.Equal(body, plain) {
			t.Errorf("%s: %d bytes, want %d", test.accept, len(body), len(plain))
		}
	}
}
