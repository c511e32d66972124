package hold

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"

	"atcr.io/api/atcr"
	"atcr.io/internal/oci"
	"atcr.io/test/components"
)

// proxyS3 passes requests on to a real S3 server, as they were signed, once before has returned.
func proxyS3(t *testing.T, target string, before func(*http.Request)) string {
	t.Helper()
	u, err := url.Parse(target)
	if err != nil {
		t.Fatal(err)
	}
	proxy := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.Out.URL.Scheme, r.Out.URL.Host, r.Out.Host = u.Scheme, u.Host, r.In.Host
	}}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		before(r)
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	return s.URL
}

func startS3Hold(t *testing.T, change func(*Config)) (*server, *atomic.Int64) {
	t.Helper()
	var requests atomic.Int64
	s := startHold(t, newPeople(t), onS3(t, func(*http.Request) { requests.Add(1) }, change))
	requests.Store(0)
	return s, &requests
}

// onS3 are the settings of a hold on a real S3 server, behind proxyS3, with what change says.
func onS3(t *testing.T, before func(*http.Request), change func(*Config)) func(*Config) {
	t.Helper()
	storage := components.StartS3(t)
	storage.CreateBucket(t, "blobs")
	endpoint := proxyS3(t, storage.Endpoint, before)
	return func(c *Config) {
		c.StorageDriver, c.S3Bucket, c.S3Endpoint, c.AccessKeyID, c.SecretAccessKey = "s3", "blobs", endpoint, storage.AccessKey, storage.SecretKey
		if change != nil {
			change(c)
		}
	}
}

// Would catch a read or write that asks the storage more than it must: at most two requests for a small
// push, none for HEAD and for GET to its redirect.
func TestS3Requests(t *testing.T) {
	t.Parallel()
	s, requests := startS3Hold(t, nil)
	data := bytes.Repeat([]byte("x"), 1024)
	digest := s.push(t, owner, data)
	if n := requests.Swap(0); n > 2 || n == 0 {
		t.Errorf("a push of 1 KiB took %d requests", n)
	}
	token := s.token(t, owner, getBlobNSID)
	if a := s.send(t, http.MethodHead, s.blobPath(digest), token, nil); a.status != 200 || a.header.Get("Content-Length") != "1024" || requests.Load() != 0 {
		t.Errorf("HEAD: %d, %d requests", a.status, requests.Load())
	}
	get := s.send(t, http.MethodGet, s.blobPath(digest), token, nil)
	if get.status != http.StatusTemporaryRedirect || requests.Load() != 0 {
		t.Fatalf("GET: %d, %d requests", get.status, requests.Load())
	}
	if a := s.send(t, http.MethodGet, get.header.Get("Location"), "", nil); a.status != 200 || a.body != string(data) {
		t.Errorf("behind the redirect: %d, %d bytes", a.status, len(a.body))
	}
	for _, method := range []string{http.MethodGet, http.MethodHead} {
		var link struct{ URL string }
		s.send(t, http.MethodGet, s.blobPath(digest)+"&method="+method, token, nil).json(t, &link)
		if a := s.send(t, method, link.URL, "", nil); a.status != 200 {
			t.Errorf("presigned %s: %d", method, a.status)
		}
	}
	// Pushed again, the blob is not written over.
	requests.Store(0)
	s.push(t, owner, data)
	if n := requests.Load(); n > 1 {
		t.Errorf("the second push of the same took %d requests", n)
	}
}

// Would catch parts sent past the hold that are believed before they were read back.
func TestPresignedParts(t *testing.T) {
	t.Parallel()
	s, _ := startS3Hold(t, func(c *Config) { c.Public, c.AllowAllCrew = true, true })
	upload := func(name string, data []byte, claimed oci.Digest) answer {
		t.Helper()
		id, _ := s.begin(t, owner)
		var target atcr.HoldGetPartUploadUrlOutput
		s.call(t, owner, atcr.HoldGetPartUploadUrlNSID, map[string]any{"uploadId": id, "partNumber": 1}).json(t, &target)
		if !strings.HasPrefix(target.Url, s.config.S3Endpoint) {
			t.Fatalf("%s: %+v", name, target)
		}
		part := s.send(t, http.MethodPut, target.Url, "", bytes.NewReader(data))
		if part.status != 200 {
			t.Fatalf("%d %s", part.status, part.body)
		}
		return s.call(t, owner, atcr.HoldCompleteUploadNSID, atcr.HoldCompleteUploadInput{
			UploadId: id, Digest: claimed.String(), Parts: []atcr.HoldCompleteUploadPart{{PartNumber: 1, Etag: part.header.Get("ETag")}},
		})
	}
	data := []byte("sent past the hold")
	if a := upload("right", data, oci.FromBytes(data)); a.status != 200 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	get := s.send(t, http.MethodGet, s.blobPath(oci.FromBytes(data)), "", nil)
	if a := s.send(t, http.MethodGet, get.header.Get("Location"), "", nil); a.body != string(data) {
		t.Errorf("%d %q", a.status, a.body)
	}
	testPresignedLists(t, s)
	wrong := oci.FromBytes([]byte("claimed"))
	if a := upload("wrong", []byte("other bytes"), wrong); a.errorName() != "InvalidDigest" {
		t.Errorf("%d %s", a.status, a.body)
	}
	for _, did := range []string{"", s.token(t, owner, getBlobNSID)} {
		for _, d := range []oci.Digest{wrong, oci.FromBytes([]byte("other bytes"))} {
			if a := s.send(t, http.MethodGet, s.blobPath(d), did, nil); a.status != 404 {
				t.Errorf("%s is readable: %d", d, a.status)
			}
		}
	}
}

// Would catch a hold that sends clients to a storage they cannot reach, or bytes that it changes on the way.
func TestS3ThroughTheHold(t *testing.T) {
	t.Parallel()
	s, _ := startS3Hold(t, func(c *Config) { c.DisablePresigned = true })
	data := bytes.Repeat([]byte("0123456789abcdef"), 20<<20/16)
	digest := s.push(t, owner, data)
	token := s.token(t, owner, getBlobNSID)
	if a := s.send(t, http.MethodGet, s.blobPath(digest), token, nil); a.status != 200 || !digest.Matches([]byte(a.body)) {
		t.Errorf("%d, %d bytes", a.status, len(a.body))
	}
	if a := s.send(t, http.MethodGet, s.blobPath(digest), token, nil, "Range", "bytes=16-31"); a.status != 206 || a.body != "0123456789abcdef" {
		t.Errorf("range: %d %q", a.status, a.body)
	}
	// Known digest first: the bytes come with the PUT.
	other := append([]byte("known first"), data...)
	_, target := s.begin(t, owner)
	known := oci.FromBytes(other)
	if a := s.send(t, http.MethodPut, target+"?digest="+known.String(), "", bytes.NewReader(other)); a.status != 201 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	if a := s.send(t, http.MethodGet, s.blobPath(known), token, nil); !known.Matches([]byte(a.body)) {
		t.Errorf("%d, %d bytes", a.status, len(a.body))
	}
}

// testPresignedLists names parts that were not sent, twice, with another etag, after the end, and too small ones.
func testPresignedLists(t *testing.T, s *server) {
	t.Helper()
	id, _ := s.begin(t, owner)
	part := func(number int, data []byte) atcr.HoldCompleteUploadPart {
		t.Helper()
		var target atcr.HoldGetPartUploadUrlOutput
		s.call(t, owner, atcr.HoldGetPartUploadUrlNSID, map[string]any{"uploadId": id, "partNumber": number}).json(t, &target)
		a := s.send(t, http.MethodPut, target.Url, "", bytes.NewReader(data))
		if a.status != 200 {
			t.Fatalf("part %d: %d %s", number, a.status, a.body)
		}
		return atcr.HoldCompleteUploadPart{PartNumber: int64(number), Etag: a.header.Get("ETag")}
	}
	complete := func(d oci.Digest, parts ...atcr.HoldCompleteUploadPart) answer {
		return s.call(t, owner, atcr.HoldCompleteUploadNSID, atcr.HoldCompleteUploadInput{UploadId: id, Digest: d.String(), Parts: parts})
	}
	first, last := bytes.Repeat([]byte("f"), 5<<20), []byte("last")
	d := oci.FromBytes(append(bytes.Clone(first), last...))
	one, two := part(1, first), part(2, last)
	another := one
	another.Etag = `"00000000000000000000000000000000"`
	for name, test := range map[string]struct {
		parts []atcr.HoldCompleteUploadPart
		want  string
	}{
		"none":         {nil, "MissingParts"},
		"never sent":   {[]atcr.HoldCompleteUploadPart{one, {PartNumber: 3, Etag: two.Etag}}, "MissingParts"},
		"named twice":  {[]atcr.HoldCompleteUploadPart{one, one, two}, "MissingParts"},
		"another etag": {[]atcr.HoldCompleteUploadPart{another, two}, "MissingParts"},
	} {
		if a := complete(d, test.parts...); a.errorName() != test.want || a.status != http.StatusBadRequest {
			t.Errorf("%s: %d %s", name, a.status, a.body)
		}
	}
	for range 2 { // idempotent, and the refusals above ended nothing
		if a := complete(d, two, one); a.status != 200 {
			t.Errorf("%d %s", a.status, a.body)
		}
	}
	if a := s.call(t, owner, atcr.HoldGetPartUploadUrlNSID, map[string]any{"uploadId": id, "partNumber": 3}); a.errorName() != "InvalidUploadId" {
		t.Errorf("after the end: %d %s", a.status, a.body)
	}
	id, _ = s.begin(t, owner)
	small := []atcr.HoldCompleteUploadPart{part(1, []byte("small")), part(2, []byte("too"))}
	if a := complete(oci.FromBytes([]byte("smalltoo")), small...); a.errorName() != "CompletionFailed" || a.status != http.StatusBadRequest || !strings.Contains(a.body, "5 MiB") {
		t.Errorf("parts too small: %d %s", a.status, a.body)
	}
}
