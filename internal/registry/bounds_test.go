package registry

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"atcr.io/internal/httpx"
	"atcr.io/internal/oci"
)

// Would catch more referrers than a client takes at once, pages that overlap or end early, and links in a ring.
func TestManyReferrers(t *testing.T) {
	t.Parallel()
	m, s := newServer(t)
	subject := oci.FromBytes(image)
	all := map[oci.Digest]bool{}
	for i := range 10_000 {
		kind := "application/even"
		if i%2 == 1 {
			kind = "application/odd"
		}
		d := oci.FromBytes([]byte(strconv.Itoa(i)))
		all[d] = true
		m.subjects[subject] = append(m.subjects[subject], oci.Descriptor{
			MediaType: imageType, Digest: d, Size: 1, ArtifactType: kind, Annotations: map[string]string{"text": strings.Repeat("x", 600)},
		})
	}
	for query, want := range map[string]int{"": 10_000, "?artifactType=application/odd": 5_000, "?artifactType=none": 0} {
		seen, pages := map[oci.Digest]bool{}, 0
		for path := "/v2/alice.test/app/referrers/" + subject.String() + query; path != ""; pages++ {
			res, body := send(t, s, http.MethodGet, path, nil)
			if res.StatusCode != 200 || len(body) > maxReferrersBytes || pages > 10 {
				t.Fatalf("%s: %s, %d bytes, page %d", path, res.Status, len(body), pages)
			}
			var index struct{ Manifests []oci.Descriptor }
			if err := json.Unmarshal([]byte(body), &index); err != nil || index.Manifests == nil {
				t.Fatal(err, index.Manifests == nil)
			}
			for _, d := range index.Manifests {
				if seen[d.Digest] || !all[d.Digest] || query != "" && d.ArtifactType != "application/odd" {
					t.Fatalf("%s is there twice, or should not be", d.Digest)
				}
				seen[d.Digest] = true
			}
			path = ""
			if link := res.Header.Get("Link"); link != "" {
				path = link[1:strings.Index(link, ">")]
			}
		}
		if len(seen) != want {
			t.Errorf("%q: %d of %d", query, len(seen), want)
		}
	}
}

// Would catch numbers and names that are larger than anything, and are taken.
func TestOutOfBounds(t *testing.T) {
	t.Parallel()
	_, s := newServer(t)
	long := strings.Repeat("t", 129)
	for path, want := range map[string]int{
		"/v2/alice.test/app/tags/list?n=99999999999999999999":                      400,
		"/v2/alice.test/app/tags/list?n=-1":                                        400,
		"/v2/alice.test/app/tags/list?n=9223372036854775807":                       200,
		"/v2/alice.test/app/tags/list?n=1000000&last=" + strings.Repeat("z", 4000): 200,
		"/v2/alice.test/app/manifests/" + long:                                     400,
		"/v2/alice.test/app/manifests/" + long[:128]:                               404,
		"/v2/alice.test/app/manifests/sha256:" + strings.Repeat("0", 63):           400,
		"/v2/alice.test/app/blobs/sha512:" + hex64:                                 400,
		"/v2/alice.test/app/referrers/latest":                                      400,
		"/v2/alice.test/" + strings.Repeat("a/", 2000) + "manifests/x":             400,
		"/v2/alice.test/app/manifests/x?" + strings.Repeat("tag=x&", 1000):         404,
		"/v2/" + strings.Repeat("x", 9<<10) + "/app/manifests/x":                   404,
		"/v2/_catalog?n=1000000000":                                                404,
	} {
		if res, body := send(t, s, http.MethodGet, path, nil); res.StatusCode != want || want != 200 && codeOf(body) == "" {
			t.Errorf("%.100s: %s, want %d: %.200s", path, res.Status, want, body)
		}
	}
	for path, want := range map[string]int{
		"/v2/alice.test/app/manifests/" + oci.FromBytes(image).String() + "?tag=" + long:                     400,
		"/v2/alice.test/app/manifests/" + oci.FromBytes(image).String() + "?" + strings.Repeat("tag=x&", 11): 400,
		"/v2/alice.test/app/manifests/" + long:                                                               400,
	} {
		if res, body := send(t, s, http.MethodPut, path, image, "Content-Type", imageType); res.StatusCode != want || codeOf(body) == "" {
			t.Errorf("PUT %.150s: %s %s", path, res.Status, body)
		}
	}
}

// limited takes so many requests.
type limited struct {
	left  int
	costs []int
}

func (l *limited) Take(_ *http.Request, _ Caller, cost int) (Allowance, bool) {
	l.costs = append(l.costs, cost)
	a := Allowance{Limit: 3, Window: time.Minute, Remaining: max(l.left-1, 0)}
	if l.left == 0 {
		a.Wait = 1500 * time.Millisecond
	} else {
		l.left--
	}
	return a, true
}

// Would catch a limit that is not said, or that refuses without saying for how long.
func TestLimits(t *testing.T) {
	t.Parallel()
	m, l := newMemory(), &limited{left: 2}
	s := httptest.NewServer(New(Config{
		Authorizer: m, Manifests: m, Blobs: m, Uploads: m, Limiter: l, Adapter: &httpx.Adapter{Logger: slog.New(slog.DiscardHandler)},
	}))
	t.Cleanup(s.Close)
	res, _ := send(t, s, http.MethodGet, "/v2/alice.test/app/manifests/x", nil)
	if res.StatusCode != 404 || res.Header.Get("RateLimit-Limit") != "3;w=60" || res.Header.Get("RateLimit-Remaining") != "1;w=60" {
		t.Errorf("%s %v", res.Status, res.Header)
	}
	m.fault = oci.Errorf(oci.CodeNameUnknown, "nobody")
	send(t, s, http.MethodGet, "/v2/alice.test/app/tags/list", nil, "Cache-Control", "no-cache")
	res, body := send(t, s, http.MethodGet, "/v2/alice.test/app/tags/list", nil)
	if res.StatusCode != 429 || codeOf(body) != "TOOMANYREQUESTS" || res.Header.Get("Retry-After") != "2" || res.Header.Get("RateLimit-Remaining") != "0;w=60" {
		t.Errorf("%s %v %s", res.Status, res.Header, body)
	}
	if fmt.Sprint(l.costs) != fmt.Sprint([]int{usualCost, freshCost, unknownCost, usualCost}) {
		t.Errorf("%v", l.costs)
	}
}

// Would catch bytes that pass through here and are taken for whole although the hold broke off, headers of the hold's
// that reach the client, and ranges that get lost.
func TestBlobPassesThrough(t *testing.T) {
	t.Parallel()
	m, s := newServer(t)
	d := oci.FromBytes([]byte("blob"))
	m.blobs[d] = []byte("blob")
	answer := func(status int, body, length string) func(http.Header) (*http.Response, error) {
		return func(header http.Header) (*http.Response, error) {
			h := http.Header{
				"Content-Length": {length}, "Content-Type": {"text/html"}, "Set-Cookie": {"a=b"}, "Www-Authenticate": {"Basic"}, "Content-Range": {header.Get("Range")},
			}
			return &http.Response{StatusCode: status, Header: h, Body: io.NopCloser(strings.NewReader(body))}, nil
		}
	}
	path := "/v2/alice.test/app/blobs/" + d.String()
	m.through = answer(200, "blob", "4")
	res, body := send(t, s, http.MethodGet, path, nil)
	if res.StatusCode != 200 || body != "blob" || res.Header.Get("Content-Type") != "application/octet-stream" || res.Header.Get("Set-Cookie") != "" ||
		res.Header.Get("WWW-Authenticate") != "" || res.Header.Get("Docker-Content-Digest") != d.String() || res.Header.Get("Location") != "" {
		t.Errorf("%s %v %q", res.Status, res.Header, body)
	}
	m.through = answer(206, "lo", "2")
	if res, body = send(t, s, http.MethodGet, path, nil, "Range", "bytes 1-2/4"); res.StatusCode != 206 || body != "lo" || res.Header.Get("Content-Range") != "bytes 1-2/4" {
		t.Errorf("%s %v %q", res.Status, res.Header, body)
	}
	m.through = answer(200, "bl", "4")
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.URL+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer pull")
	short, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = short.Body.Close() }()
	if got, err := io.ReadAll(short.Body); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("half a blob: %q, %v", got, err)
	}
	m.through = func(http.Header) (*http.Response, error) {
		return nil, oci.Unavailable(502, errors.New("poison"), "no")
	}
	if res, body = send(t, s, http.MethodGet, path, nil); res.StatusCode != 502 || strings.Contains(body, "poison") {
		t.Errorf("%s %s", res.Status, body)
	}
}
