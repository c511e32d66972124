package registry

import (
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"

	"atcr.io/internal/oci"
)

// Would catch a row that anybody may call: every one but the base names its access.
func TestRoutesNameTheirAccess(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for _, row := range New(Config{}).table() {
		if seen[row.pattern()] {
			t.Errorf("%s twice", row.pattern())
		}
		seen[row.pattern()] = true
		if row.kind != Base && row.action == "" {
			t.Errorf("%s names no access", row.pattern())
		}
		write := row.method != http.MethodGet && row.method != http.MethodHead
		if write && row.action == Pull || !write && row.action == Delete {
			t.Errorf("%s: %s", row.pattern(), row.action)
		}
	}
}

// Would catch a request that is served without its access, and a 401 without a challenge.
func TestAccess(t *testing.T) {
	t.Parallel()
	_, s := newServer(t)
	d := oci.FromBytes(image).String()
	for _, tt := range []struct {
		method, path, needs string
	}{
		{http.MethodGet, "/v2/", ""},
		{http.MethodGet, "/v2/alice.test/app/manifests/x", "pull"},
		{http.MethodHead, "/v2/alice.test/app/blobs/" + d, "pull"},
		{http.MethodGet, "/v2/alice.test/app/tags/list", "pull"},
		{http.MethodGet, "/v2/alice.test/app/referrers/" + d, "pull"},
		{http.MethodPut, "/v2/alice.test/app/manifests/x", "push"},
		{http.MethodPost, "/v2/alice.test/app/blobs/uploads/", "push"},
		{http.MethodPatch, "/v2/alice.test/app/blobs/uploads/u0", "push"},
		{http.MethodPut, "/v2/alice.test/app/blobs/uploads/u0?digest=" + d, "push"},
		{http.MethodDelete, "/v2/alice.test/app/manifests/x", "delete"},
		{http.MethodDelete, "/v2/alice.test/app/blobs/" + d, "delete"},
	} {
		others := slices.DeleteFunc([]string{"pull", "push", "delete"}, func(a string) bool { return a == tt.needs })
		header := "Bearer " + strings.Join(others, ",")
		if tt.needs == "" {
			header = ""
		}
		res, _ := send(t, s, tt.method, tt.path, nil, "Authorization", header)
		if res.StatusCode != http.StatusUnauthorized || !strings.HasPrefix(res.Header.Get("WWW-Authenticate"), "Bearer ") ||
			!strings.HasSuffix(res.Header.Get("WWW-Authenticate"), ":"+tt.needs+`"`) {
			t.Errorf("%s %s with %q: %s %q", tt.method, tt.path, header, res.Status, res.Header.Get("WWW-Authenticate"))
		}
	}
	if res, _ := send(t, s, http.MethodGet, "/v2/", nil); res.StatusCode != http.StatusOK {
		t.Errorf("/v2/: %s", res.Status)
	}
}

// Would catch an answer below /v2/ that a browser would run, whatever goes wrong.
func TestHeadersEverywhere(t *testing.T) {
	t.Parallel()
	_, s := newServer(t)
	for _, path := range []string{
		"/v2/", "/v2/alice.test/app/manifests/x", "/v2/alice.test/app/blobs/sha256:zz", "/v2//x", "/v2/a%2fb/c/manifests/x", "/v2/_catalog",
	} {
		for _, method := range []string{http.MethodGet, http.MethodPost, http.MethodDelete, "FROB"} {
			res, body := send(t, s, method, path, nil)
			h := res.Header
			if h.Get("X-Content-Type-Options") != "nosniff" || h.Get("Content-Security-Policy") != "default-src 'none'; sandbox" ||
				h.Get("Docker-Distribution-Api-Version") != "registry/2.0" {
				t.Errorf("%s %s: %v", method, path, h)
			}
			if res.StatusCode/100 == 3 {
				t.Errorf("%s %s redirects to %s", method, path, h.Get("Location"))
			}
			if res.StatusCode >= 400 && codeOf(body) == "" {
				t.Errorf("%s %s: %s %q is not in the spec's form", method, path, res.Status, body)
			}
			if res.StatusCode == http.StatusMethodNotAllowed && h.Get("Allow") == "" {
				t.Errorf("%s %s: 405 without Allow", method, path)
			}
		}
	}
	if res, body := send(t, s, http.MethodDelete, "/v2/alice.test/app/tags/list", nil); res.StatusCode != 405 || codeOf(body) != "UNSUPPORTED" {
		t.Errorf("DELETE of tags: %s %s", res.Status, body)
	}
}

// Would catch uploads that docker, containerd, oras or regctl do in another order.
func TestUpload(t *testing.T) {
	t.Parallel()
	m, s := newServer(t)
	blob := []byte("hello blob")
	d := oci.FromBytes(blob)
	begin := func(query string) string {
		t.Helper()
		res, body := send(t, s, http.MethodPost, "/v2/alice.test/app/blobs/uploads/"+query, nil)
		if res.StatusCode != http.StatusAccepted || res.Header.Get("Range") != "0-0" || res.Header.Get("Docker-Upload-UUID") == "" {
			t.Fatalf("POST: %s %v %s", res.Status, res.Header, body)
		}
		return res.Header.Get("Location")
	}
	created := func(res *http.Response, body string) {
		t.Helper()
		if res.StatusCode != http.StatusCreated || res.Header.Get("Docker-Content-Digest") != d.String() ||
			res.Header.Get("Location") != "/v2/alice.test/app/blobs/"+d.String() {
			t.Fatalf("%s %v %s", res.Status, res.Header, body)
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		if string(m.blobs[d]) != string(blob) {
			t.Fatalf("kept %q", m.blobs[d])
		}
		delete(m.blobs, d)
	}
	location := begin("")
	if res, _ := send(t, s, http.MethodPatch, location, blob); res.StatusCode != http.StatusAccepted || res.Header.Get("Range") != "0-9" {
		t.Fatalf("PATCH: %s %v", res.Status, res.Header)
	}
	if res, _ := send(t, s, http.MethodGet, location, nil); res.StatusCode != http.StatusNoContent || res.Header.Get("Range") != "0-9" {
		t.Fatalf("GET: %s %v", res.Status, res.Header)
	}
	created(send(t, s, http.MethodPut, location+"?digest="+d.String(), nil))
	created(send(t, s, http.MethodPut, begin("")+"?digest="+d.String(), blob))
	created(send(t, s, http.MethodPost, "/v2/alice.test/app/blobs/uploads/?digest="+d.String(), blob))

	begin("?mount=" + d.String() + "&from=ubuntu") // a name, but of no repository here
	location = begin("?mount=" + d.String() + "&from=bob.test/app")
	for _, tt := range []struct {
		at     string
		status int
	}{{"0-4", 202}, {"3-9", 416}, {"6-9", 416}, {"5-9", 202}} {
		res, body := send(t, s, http.MethodPatch, location, blob[:5], "Content-Range", tt.at)
		if res.StatusCode != tt.status || tt.status == 416 && (res.Header.Get("Range") != "0-4" || res.Header.Get("Location") == "" || codeOf(body) != "BLOB_UPLOAD_INVALID") {
			t.Errorf("Content-Range %s: %s %v", tt.at, res.Status, res.Header)
		}
	}
	if res, _ := send(t, s, http.MethodDelete, location, nil); res.StatusCode != http.StatusNoContent {
		t.Errorf("DELETE: %s", res.Status)
	}
	m.mu.Lock()
	m.blobs[d] = blob
	m.mu.Unlock()
	created(send(t, s, http.MethodPost, "/v2/alice.test/app/blobs/uploads/?mount="+d.String()+"&from=bob.test/app", nil))

	for _, tt := range []struct{ method, path, code string }{
		{http.MethodPut, begin(""), "DIGEST_INVALID"},
		{http.MethodPut, begin("") + "?digest=sha256:abc", "DIGEST_INVALID"},
		{http.MethodPut, begin("") + "?digest=sha256:" + hex64[1:] + "0", "DIGEST_INVALID"},
		{http.MethodPost, "/v2/alice.test/app/blobs/uploads/?digest=md5:abc", "DIGEST_INVALID"},
		{http.MethodPost, "/v2/alice.test/app/blobs/uploads/?digest-algorithm=md5", "DIGEST_INVALID"},
		{http.MethodPost, "/v2/alice.test/app/blobs/uploads/?mount=sha256:abc", "DIGEST_INVALID"},
	} {
		if res, body := send(t, s, tt.method, tt.path, nil); res.StatusCode != 400 || codeOf(body) != tt.code {
			t.Errorf("%s %s: %s %s", tt.method, tt.path, res.Status, body)
		}
	}
}

// Would catch a blob's HEAD without its size, a GET that is not a redirect, and one of a Range that no storage refuses.
func TestBlob(t *testing.T) {
	t.Parallel()
	m, s := newServer(t)
	d := oci.FromBytes([]byte("blob"))
	m.blobs[d] = []byte("blob")
	res, _ := send(t, s, http.MethodHead, "/v2/alice.test/app/blobs/"+d.String(), nil)
	if res.StatusCode != 200 || res.ContentLength != 4 || res.Header.Get("Docker-Content-Digest") != d.String() {
		t.Errorf("HEAD: %s %v", res.Status, res.Header)
	}
	res, _ = send(t, s, http.MethodGet, "/v2/alice.test/app/blobs/"+d.String(), nil)
	if res.StatusCode != 307 || res.Header.Get("Location") != "https://hold.test/"+d.Hex() || res.Header.Get("Cache-Control") != "no-store" {
		t.Errorf("GET: %s %v", res.Status, res.Header)
	}
	for text, want := range map[string]int{
		"bytes=500-0": 416, "bytes=1-0": 416, "bytes=0-0": 307, "bytes=2-": 307, "bytes=-2": 307, "bytes=900-901": 307,
		"bytes=3-0,1-2": 307, "items=3-0": 307, "bytes=x-0": 307, "bytes=99999999999999999999-0": 307, "bytes": 307,
	} {
		if res, body := send(t, s, http.MethodGet, "/v2/alice.test/app/blobs/"+d.String(), nil, "Range", text); res.StatusCode != want || want == 416 && codeOf(body) == "" {
			t.Errorf("%s: %s %s", text, res.Status, body)
		}
	}
	if res, body := send(t, s, http.MethodGet, "/v2/alice.test/app/blobs/sha256:"+hex64, nil, "Range", "bytes=5-0"); res.StatusCode != 404 || codeOf(body) != "BLOB_UNKNOWN" {
		t.Errorf("%s %s", res.Status, body)
	}
}

// Would catch pages of tags that overlap or end early, and a link that is missing or one too many.
func TestTags(t *testing.T) {
	t.Parallel()
	_, s := newServer(t)
	for _, tt := range []struct {
		query, link string
		want        []string
	}{
		{"", "", []string{"a", "b", "c", "d"}},
		{"?n=2", `</v2/alice.test/app/tags/list?last=b&n=2>; rel="next"`, []string{"a", "b"}},
		{"?n=2&last=b", "", []string{"c", "d"}},
		{"?n=9", "", []string{"a", "b", "c", "d"}},
		{"?n=0", "", []string{}},
		{"?last=bb", "", []string{"c", "d"}},
		{"?last=z", "", []string{}},
	} {
		res, body := send(t, s, http.MethodGet, "/v2/alice.test/app/tags/list"+tt.query, nil)
		var got struct {
			Name string
			Tags []string
		}
		if err := json.Unmarshal([]byte(body), &got); err != nil || got.Tags == nil || !slices.Equal(got.Tags, tt.want) || got.Name != "alice.test/app" || res.Header.Get("Link") != tt.link {
			t.Errorf("%q: %s %q", tt.query, body, res.Header.Get("Link"))
		}
	}
	if res, _ := send(t, s, http.MethodGet, "/v2/alice.test/app/tags/list?n=x", nil); res.StatusCode != 400 {
		t.Errorf("n=x: %s", res.Status)
	}
}

// Would catch referrers that are not an index, and a filter that is not said to be applied.
func TestReferrers(t *testing.T) {
	t.Parallel()
	_, s := newServer(t)
	subject := oci.FromBytes(image)
	for _, kind := range []string{"application/one", "application/two"} {
		raw := []byte(`{"schemaVersion":2,"artifactType":"` + kind + `","subject":{"mediaType":"` + imageType + `","digest":"` + subject.String() +
			`","size":1},"config":{"mediaType":"application/x","digest":"sha256:` + hex64 + `","size":0}}`)
		res, body := send(t, s, http.MethodPut, "/v2/alice.test/app/manifests/"+oci.FromBytes(raw).String(), raw, "Content-Type", imageType)
		if res.StatusCode != 201 || res.Header.Get("OCI-Subject") != subject.String() {
			t.Fatalf("%s %v %s", res.Status, res.Header, body)
		}
	}
	for query, want := range map[string]int{"": 2, "?artifactType=application/one": 1, "?artifactType=x": 0} {
		res, body := send(t, s, http.MethodGet, "/v2/alice.test/app/referrers/"+subject.String()+query, nil)
		var index struct{ Manifests []oci.Descriptor }
		if err := json.Unmarshal([]byte(body), &index); err != nil || len(index.Manifests) != want || res.Header.Get("Content-Type") != oci.MediaTypeImageIndex {
			t.Errorf("%q: %s %s", query, res.Header.Get("Content-Type"), body)
		}
		if applied := res.Header.Get("OCI-Filters-Applied"); (applied == "artifactType") != (query != "") {
			t.Errorf("%q: filters %q", query, applied)
		}
	}
}

// Would catch internal text in an answer.
func TestPoisonedError(t *testing.T) {
	t.Parallel()
	m, s := newServer(t)
	d := oci.FromBytes(image).String()
	for _, fault := range []error{
		errors.New("poison"), &oci.Error{Code: oci.CodeDenied, Message: "no", Err: errors.New("poison")},
		oci.Unavailable(503, errors.New("poison"), "the hold is down"),
	} {
		m.mu.Lock()
		m.fault = fault
		m.mu.Unlock()
		for _, c := range []struct{ method, path string }{
			{http.MethodGet, "/v2/alice.test/app/manifests/x"},
			{http.MethodPut, "/v2/alice.test/app/manifests/x"},
			{http.MethodGet, "/v2/alice.test/app/blobs/" + d},
			{http.MethodPost, "/v2/alice.test/app/blobs/uploads/"},
			{http.MethodGet, "/v2/alice.test/app/tags/list"},
		} {
			res, body := send(t, s, c.method, c.path, image, "Content-Type", imageType)
			if res.StatusCode < 400 || strings.Contains(body, "poison") || codeOf(body) == "" {
				t.Errorf("%s %s: %s %s", c.method, c.path, res.Status, body)
			}
		}
	}
}
