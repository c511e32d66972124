package pds_test

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/internal/pds"
)

// Would catch parameters, cursors above all, that a public read answers with an error of the server's own, or with
// what is no JSON error.
func FuzzQueries(f *testing.F) {
	s := newSite(f, pds.Config{})
	s.fill(f, 5)
	var routes []pds.Route
	for _, r := range s.host.Routes() {
		if r.Method == http.MethodGet {
			routes = append(routes, r)
		}
	}
	handler := pds.Serve(adapter(), routes)
	for i := range routes {
		for _, query := range []string{
			"", "did=" + did.String(), "repo=" + did.String() + "&collection=" + collection.String() + "&cursor=k001&limit=2&reverse=true",
			"did=" + did.String() + "&collection=" + collection.String() + "&rkey=k001&cid=x", "cursor=-1", "cursor=9223372036854775808", "limit=1e3",
			"did=" + did.String() + "&since=3kdx&cursor=%00", "did=did:web:a%20b", "handle=HOLD.example", "did=" + did.String() + "&cids=bafkreibme22gw2h7y2h7tg2fhqotaqjucnbc24deqo72b6mkl2egezxhvy",
			"repo=a&repo=b", "did=" + did.String() + "&cid=bafkreibme22gw2h7y2h7tg2fhqotaqjucnbc24deqo72b6mkl2egezxhvy",
		} {
			f.Add(uint8(i), query)
		}
	}
	f.Fuzz(func(t *testing.T, which uint8, query string) {
		route := routes[int(which)%len(routes)]
		req := httptest.NewRequest(http.MethodGet, "/xrpc/"+route.NSID, nil)
		req.URL = &url.URL{Path: "/xrpc/" + route.NSID, RawQuery: query}
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, req)
		if name := (answer{w.Code, w.Header(), w.Body.Bytes()}).errorName(); w.Code >= 500 || (w.Code >= 400) != (name != "") {
			t.Fatalf("%s?%s: %d %s", route.NSID, query, w.Code, w.Body)
		}
	})
}

// Would catch a page that comes twice, or is left out, whatever key stands in the cursor.
func FuzzListCursor(f *testing.F) {
	s := newSite(f, pds.Config{})
	s.fill(f, 9)
	for _, c := range []string{"", "k004", "k0041", "~", "K", "\x00", "k\xff", "0"} {
		f.Add(c, false)
		f.Add(c, true)
	}
	f.Fuzz(func(t *testing.T, cursor string, reverse bool) {
		records, err := s.repo.ListRecords(t.Context(), collection, 100, cursor, reverse)
		if err != nil {
			t.Fatal(err)
		}
		seen := map[syntax.RecordKey]bool{}
		for _, r := range records {
			seen[r.Rkey] = true
		}
		for i := range 9 {
			key := "k00" + string(rune('0'+i))
			want := cursor == "" || (strings.Compare(key, cursor) > 0) == reverse && key != cursor
			if seen[syntax.RecordKey(key)] != want {
				t.Fatalf("cursor %q, reverse %v: %s is there: %v", cursor, reverse, key, !want)
			}
		}
	})
}
