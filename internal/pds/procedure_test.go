package pds_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/internal/pds"
)

// call posts in as somebody who may write.
func (s *site) call(t testing.TB, nsid, in string) answer {
	t.Helper()
	return s.do(t, http.MethodPost, "com.atproto.repo."+nsid, strings.NewReader(in), "Authorization", "Bearer good", "Content-Type", "application/json")
}

type wrote struct {
	URI    syntax.ATURI
	CID    string
	Commit struct{ CID, Rev string }
}

func decode[T any](t testing.TB, a answer) (out T) {
	t.Helper()
	if err := json.Unmarshal(a.body, &out); err != nil || a.status != 200 {
		t.Fatalf("%d %s: %v", a.status, a.body, err)
	}
	return out
}

// input is a write's JSON; more are further fields.
func input(rkey, more string) string {
	return fmt.Sprintf(`{"repo":%q,"collection":%q,"rkey":%q%s}`, did, collection, rkey, more)
}

// Would catch a write that answers with another record than it made, and a swap that compares nothing.
func TestWriteRecords(t *testing.T) {
	t.Parallel()
	s := newSite(t, pds.Config{})
	made := decode[wrote](t, s.call(t, "createRecord", fmt.Sprintf(`{"repo":"hold.example","collection":%q,"record":{"n":1}}`, collection)))
	if _, err := syntax.ParseTID(made.URI.RecordKey().String()); err != nil || made.URI.Authority().String() != did.String() {
		t.Errorf("%s: %v", made.URI, err)
	}
	head, err := s.repo.Head(t.Context())
	if err != nil || made.Commit.CID != head.CID.String() || made.Commit.Rev != head.Rev {
		t.Errorf("%+v %v", made, err)
	}
	var got struct {
		URI   syntax.ATURI
		CID   string
		Value map[string]any
	}
	s.get(t, "com.atproto.repo.getRecord?repo="+did.String()+"&collection="+collection.String()+"&rkey="+made.URI.RecordKey().String()+"&cid="+made.CID, &got)
	if got.URI != made.URI || got.CID != made.CID || got.Value["$type"] != collection.String() || got.Value["n"] != 1.0 {
		t.Errorf("%+v", got)
	}
	first := decode[wrote](t, s.call(t, "putRecord", input("a", `,"record":{"n":1},"swapRecord":null`)))
	second := decode[wrote](t, s.call(t, "putRecord", input("a", `,"record":{"n":2},"swapRecord":"`+first.CID+`","swapCommit":"`+first.Commit.CID+`"`)))
	same := decode[wrote](t, s.call(t, "putRecord", input("a", `,"record":{"n":2}`)))
	if second.CID == first.CID || same.CID != second.CID || same.Commit != second.Commit {
		t.Errorf("%+v %+v %+v", first, second, same)
	}
	for _, test := range []struct{ nsid, in, want string }{
		{"putRecord", input("a", `,"record":{"n":3},"swapRecord":null`), "InvalidSwap"},
		{"putRecord", input("a", `,"record":{"n":3},"swapRecord":"`+first.CID+`"`), "InvalidSwap"},
		{"putRecord", input("a", `,"record":{"n":3},"swapCommit":"`+first.Commit.CID+`"`), "InvalidSwap"},
		{"putRecord", input("a", `,"record":{"n":3},"swapRecord":7`), "InvalidRequest"},
		{"putRecord", input("a", `,"record":{"n":3},"swapRecord":"x"`), "InvalidRequest"},
		{"putRecord", input("a", `,"record":{"n":3},"swapCommit":"x"`), "InvalidRequest"},
		{"putRecord", input("", `,"record":{"n":3}`), "InvalidRequest"},
		{"putRecord", input("a", ``), "InvalidRequest"},
		{"putRecord", input("a", `,"record":null`), "InvalidRequest"},
		{"putRecord", input("a", `,"record":[]`), "InvalidRequest"},
		{"putRecord", input("a", `,"record":{"n":0.5}`), "InvalidRequest"},
		{"putRecord", `{`, "InvalidRequest"},
		{"putRecord", `{"collection":"com.example.thing","rkey":"a","record":{}}`, "RepoNotFound"},
		{"putRecord", strings.Replace(input("a", `,"record":{}`), did.String(), "did:web:no", 1), "RepoNotFound"},
		{"putRecord", strings.Replace(input("a", `,"record":{}`), collection.String(), "thing", 1), "InvalidRequest"},
		{"putRecord", strings.Replace(input("a", `,"record":{}`), collection.String(), "com.example.forbidden", 1), "Forbidden"},
		{"createRecord", input("a", `,"record":{"n":3}`), "InvalidRequest"},
		{"deleteRecord", input("a", `,"swapRecord":"`+first.CID+`"`), "InvalidSwap"},
		{"deleteRecord", input("a", `,"swapCommit":"`+first.Commit.CID+`"`), "InvalidSwap"},
		{"deleteRecord", input("..", ``), "InvalidRequest"},
	} {
		if a := s.call(t, test.nsid, test.in); a.errorName() != test.want {
			t.Errorf("%s %s: %d %s, want %s", test.nsid, test.in, a.status, a.body, test.want)
		}
	}
	for _, header := range []string{"", "Bearer bad"} {
		a := s.do(t, http.MethodPost, "com.atproto.repo.deleteRecord", strings.NewReader(input("a", "")), "Authorization", header)
		if a.status != 401 || a.header.Get("WWW-Authenticate") == "" {
			t.Errorf("%q: %d", header, a.status)
		}
	}
	gone := decode[wrote](t, s.call(t, "deleteRecord", input("a", `,"swapRecord":"`+second.CID+`"`)))
	if gone.Commit.Rev <= second.Commit.Rev {
		t.Errorf("%+v", gone)
	}
	if again := decode[wrote](t, s.call(t, "deleteRecord", input("a", ``))); again.Commit.Rev != "" {
		t.Errorf("deleted what is not there: %+v", again)
	}
	if large := s.call(t, "putRecord", input("a", `,"record":{"s":"`+strings.Repeat("x", 5<<20)+`"}`)); large.status != 413 {
		t.Errorf("5 MiB: %d", large.status)
	}
}

// Would catch results in another order or kind than the writes, and a batch of which a part is made.
func TestApplyWrites(t *testing.T) {
	t.Parallel()
	s := newSite(t, pds.Config{})
	s.fill(t, 2)
	item := func(kind, rkey, more string) string {
		return fmt.Sprintf(`{"$type":"com.atproto.repo.applyWrites#%s","collection":%q,"rkey":%q%s}`, kind, collection, rkey, more)
	}
	batch := func(items ...string) string {
		return fmt.Sprintf(`{"repo":%q,"writes":[%s]}`, did, strings.Join(items, ","))
	}
	auto := fmt.Sprintf(`{"$type":"com.atproto.repo.applyWrites#create","collection":%q,"value":{"n":9}}`, collection)
	done := decode[struct {
		Commit  struct{ CID, Rev string }
		Results []struct {
			Type string `json:"$type"`
			URI  syntax.ATURI
			CID  string
		}
	}](t, s.call(t, "applyWrites", batch(item("update", "k001", `,"value":{"n":5}`), auto, auto, item("delete", "k000", ""), item("create", "b", `,"value":{"n":6}`))))
	kinds := []string{"update", "create", "create", "delete", "create"}
	if len(done.Results) != len(kinds) || done.Results[1].URI == done.Results[2].URI {
		t.Fatalf("%+v", done)
	}
	for i, r := range done.Results {
		if r.Type != "com.atproto.repo.applyWrites#"+kinds[i]+"Result" || (r.CID == "") != (kinds[i] == "delete") {
			t.Errorf("%d: %+v", i, r)
		}
	}
	before, err := s.repo.Head(t.Context())
	if err != nil || before.CID.String() != done.Commit.CID {
		t.Fatalf("%v %v", done, err)
	}
	many := make([]string, pds.MaxCommitOps+1)
	for i := range many {
		many[i] = item("create", fmt.Sprintf("m%d", i), `,"value":{}`)
	}
	for name, test := range map[string]struct{ in, want string }{
		"one is there":  {batch(item("create", "c", `,"value":{}`), item("create", "b", `,"value":{}`)), "InvalidRequest"},
		"one is not":    {batch(item("create", "c", `,"value":{}`), item("delete", "none", "")), "RecordNotFound"},
		"one forbidden": {strings.Replace(batch(item("create", "c", `,"value":{}`), item("create", "d", `,"value":{}`)), collection.String(), "com.example.forbidden", 1), "Forbidden"},
		"one twice":     {batch(item("create", "c", `,"value":{}`), item("update", "c", `,"value":{}`)), "InvalidRequest"},
		"no kind":       {batch(`{"collection":"com.example.thing","rkey":"c","value":{}}`), "InvalidRequest"},
		"strange kind":  {batch(item("put", "c", `,"value":{}`)), "InvalidRequest"},
		"too many":      {batch(many...), "InvalidRequest"},
		"swap":          {strings.Replace(batch(item("create", "c", `,"value":{}`)), "{", `{"swapCommit":"`+noBlob+`",`, 1), "InvalidSwap"},
	} {
		if a := s.call(t, "applyWrites", test.in); a.errorName() != test.want {
			t.Errorf("%s: %d %.300s, want %s", name, a.status, a.body, test.want)
		}
	}
	if after, err := s.repo.Head(t.Context()); err != nil || after.CID != before.CID {
		t.Errorf("a refused batch made a commit: %v", err)
	}
	if a := s.call(t, "applyWrites", batch()); a.status != 200 {
		t.Errorf("nothing to do: %d %s", a.status, a.body)
	}
}

// Would catch a server without permission rules that lets everybody write.
func TestNoAuthorise(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	open := &site{world: w}
	for _, r := range w.host.Routes() {
		if r.Method != http.MethodPost {
			continue
		}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "/xrpc/"+r.NSID, strings.NewReader(input("a", `,"record":{}`)))
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Handler(nil, req); err == nil || !strings.Contains(err.Error(), "Forbidden") {
			t.Errorf("%s: %v", r.NSID, err)
		}
	}
	open.check(t, map[string]int{})
}

// Would catch a blob that comes back changed, as a page of this host, or without an owner.
func TestBlob(t *testing.T) {
	t.Parallel()
	s := newSite(t, pds.Config{})
	page := []byte("<script>alert(1)</script>")
	upload := func(kind string, body io.Reader, token string) answer {
		return s.do(t, http.MethodPost, "com.atproto.repo.uploadBlob", body, "Authorization", token, "Content-Type", kind)
	}
	up := decode[struct {
		Blob struct {
			Type string `json:"$type"`
			Ref  struct {
				Link string `json:"$link"`
			}
			MimeType string
			Size     int
		}
	}](t, upload("text/html; charset=utf-8", bytes.NewReader(page), "Bearer good"))
	if up.Blob.Type != "blob" || up.Blob.MimeType != "text/html" || up.Blob.Size != len(page) {
		t.Errorf("%+v", up)
	}
	path := "com.atproto.sync.getBlob?did=" + did.String() + "&cid=" + up.Blob.Ref.Link
	for _, method := range []string{http.MethodGet, http.MethodHead} {
		a := s.do(t, method, path, nil)
		if a.status != 200 || method == http.MethodGet && !bytes.Equal(a.body, page) {
			t.Errorf("%s: %d %s", method, a.status, a.body)
		}
		for name, want := range map[string]string{
			"Content-Security-Policy": "default-src 'none'; sandbox", "X-Content-Type-Options": "nosniff", "Content-Length": fmt.Sprint(len(page)),
			"Content-Type": "text/html", "Content-Disposition": `attachment; filename="` + up.Blob.Ref.Link + `"`,
		} {
			if got := a.header.Get(name); got != want {
				t.Errorf("%s %s: %q", method, name, got)
			}
		}
	}
	record := fmt.Sprintf(`,"record":{"b":{"$type":"blob","ref":{"$link":%q},"mimeType":"text/html","size":%d}}`, up.Blob.Ref.Link, len(page))
	if a := s.call(t, "putRecord", input("a", record)); a.status != 200 {
		t.Errorf("a record that names it: %s", a.body)
	}
	if a := s.call(t, "putRecord", input("b", strings.ReplaceAll(record, up.Blob.Ref.Link, noBlob))); a.errorName() != "BlobNotFound" {
		t.Errorf("a record that names another: %d %s", a.status, a.body)
	}
	if a := upload("text/plain", strings.NewReader("x"), ""); a.status != 401 {
		t.Errorf("a stranger's: %d", a.status)
	}
	if a := upload("text/plain", strings.NewReader(strings.Repeat("x", pds.MaxBlobBytes+1)), "Bearer good"); a.errorName() != "PayloadTooLarge" {
		t.Errorf("too large: %d %s", a.status, a.body)
	}
	if a := upload("no type at all\x80", strings.NewReader("y"), "Bearer good"); !strings.Contains(string(a.body), "application/octet-stream") {
		t.Errorf("no type: %d %s", a.status, a.body)
	}
}

// Would catch one caller's missing blob that fails the others of the same commit, and keys of the host's
// choice that keep callers from sharing one.
func TestSharedCommit(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	bad := json.RawMessage(`{"b":{"$type":"blob","ref":{"$link":"` + noBlob + `"},"mimeType":"text/plain","size":1}}`)
	release := make(chan struct{})
	entered := make(chan struct{}, 100)
	w.repo.OnCommit(func([]pds.Op) { entered <- struct{}{}; <-release })
	var wg sync.WaitGroup
	wg.Go(func() { // the first commit, in whose hook the others gather
		if _, err := w.repo.Apply(t.Context(), []pds.Write{put("first", 0)}, nil); err != nil {
			t.Error(err)
		}
	})
	<-entered
	for i := range 21 {
		wg.Go(func() {
			write := pds.Write{Action: pds.Create, Collection: collection, Value: value(i)}
			if i%3 == 0 {
				write.Value = bad
			}
			_, err := w.repo.Apply(t.Context(), []pds.Write{write}, nil)
			if (i%3 == 0) != errors.Is(err, pds.ErrBlobNotFound) || i%3 != 0 && err != nil {
				t.Errorf("%d: %v", i, err)
			}
		})
	}
	close(release)
	wg.Wait()
	page, err := w.repo.ListRecords(t.Context(), collection, 100, "", false)
	if err != nil || len(page) != 15 {
		t.Errorf("%d records: %v", len(page), err)
	}
}
