package oci_test

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"time"

	"atcr.io/internal/oci"
)

var hex64 = strings.Repeat("0123456789abcdef", 4)

// Would catch a digest that reaches the storage with a path, an upper-case twin, or an unknown algorithm in it.
func TestParseDigest(t *testing.T) {
	t.Parallel()
	for digest, ok := range map[string]bool{
		"sha256:" + hex64: true, "sha512:" + hex64 + hex64: true,
		"": false, "sha256": false, "sha256:": false, ":" + hex64: false, hex64: false,
		"sha256:" + hex64[1:]: false, "sha256:" + hex64 + "0": false, "sha512:" + hex64: false,
		"sha256:" + strings.ToUpper(hex64): false, "SHA256:" + hex64: false, "sha1:" + hex64[:40]: false, "md5:" + hex64[:32]: false,
		"sha256:" + hex64[:63] + "g": false, "sha256:../" + hex64[3:]: false, "sha256:" + hex64[:63] + "/": false, "sha256:" + hex64[:63] + "\x00": false,
		"sha256+b64:" + hex64: false, "sha256:sha256:" + hex64[7:]: false,
	} {
		d, err := oci.ParseDigest(digest)
		if (err == nil) != ok || (ok && d.String() != digest) {
			t.Errorf("%q: %v", digest, err)
		}
		if e, is := errors.AsType[*oci.Error](err); err != nil && (!is || e.Code != oci.CodeDigestInvalid) {
			t.Errorf("%q: %v is no DIGEST_INVALID", digest, err)
		}
	}
}

// Would catch a digest computed with another algorithm than it says.
func TestDigest(t *testing.T) {
	t.Parallel()
	empty := oci.FromBytes(nil)
	if empty != "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855" {
		t.Error(empty)
	}
	if !empty.Matches(nil) || empty.Matches([]byte{0}) || len(empty.Bytes()) != 32 || empty.Algorithm() != "sha256" || len(empty.Hex()) != 64 {
		t.Error("parts of a digest")
	}
	h, err := oci.NewHash("sha512")
	if err != nil {
		t.Fatal(err)
	}
	h.Write([]byte("abc"))
	d := oci.DigestOf("sha512", h)
	if !d.Matches([]byte("abc")) || len(d.Bytes()) != 64 {
		t.Error(d)
	}
	if _, err := oci.NewHash("md5"); err == nil {
		t.Error("md5 is served")
	}
}

// Would catch names that walk out of their folder, meet another repository, or lose their owner.
func TestParseName(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]oci.Name{
		"alice.test/app":                      {Owner: "alice.test", Repository: "app"},
		"alice.test/team/app/api":             {Owner: "alice.test", Repository: "team/app/api"},
		"Alice.Test/app":                      {Owner: "Alice.Test", Repository: "app"},
		"did_plc_abc234/a-b_c.d__e--f":        {Owner: "did_plc_abc234", Repository: "a-b_c.d__e--f"},
		"did:plc:abc234/app":                  {Owner: "did:plc:abc234", Repository: "app"},
		"did:web:localhost%3A8080/app":        {Owner: "did:web:localhost%3A8080", Repository: "app"},
		"did_web_example.com/app":             {Owner: "did_web_example.com", Repository: "app"},
		"a/" + strings.Repeat("b/", 50) + "c": {Owner: "a", Repository: strings.Repeat("b/", 50) + "c"},
	} {
		if got, err := oci.ParseName(name); err != nil || got != want || got.String() != name {
			t.Errorf("%q: %+v %v", name, got, err)
		}
	}
	for _, name := range []string{
		"", "app", "/", "/app", "alice.test/", "alice.test//app", "alice.test/app/", "alice.test/../bob.test/app", "../app", "./app", "alice.test/.",
		"alice.test/App", "alice.test/app name", "alice.test/app%2fother", "alice.test/a..b", "alice.test/a___b", "alice.test/-a", "alice.test/a-",
		"alice.test/äpp", "alice.test/a\x00", "alice.test/a~b", "alice.test/a:b", "alice.test\\app/x", "a/" + strings.Repeat("b", 255), "?/a", "a b/c",
	} {
		if got, err := oci.ParseName(name); err == nil {
			t.Errorf("%q is taken as %+v", name, got)
		}
	}
}

// Would catch a tag that is taken for a digest, and the other way round.
func TestParseReference(t *testing.T) {
	t.Parallel()
	for reference, ok := range map[string]bool{
		"latest": true, "1.0": true, "_x": true, "V1-rc.2_3": true, strings.Repeat("a", 128): true, "sha256:" + hex64: true, hex64: true,
		"": false, ".a": false, "-a": false, "a/b": false, "a b": false, strings.Repeat("a", 129): false, "sha256:abc": false, "a:b": false, "ä": false, "..": false, "a%2fb": false,
	} {
		r, err := oci.ParseReference(reference)
		if (err == nil) != ok || (ok && (r.String() != reference || (r.Tag == "") != strings.Contains(reference, ":"))) {
			t.Errorf("%q: %+v %v", reference, r, err)
		}
	}
}

// Would catch a pushed page that a browser would run, and a type with parameters that lead elsewhere.
func TestParseMediaType(t *testing.T) {
	t.Parallel()
	for contentType, want := range map[string]string{
		oci.MediaTypeImageManifest:                  oci.MediaTypeImageManifest,
		oci.MediaTypeImageIndex + "; charset=utf-8": oci.MediaTypeImageIndex,
		"Application/Vnd.Example.V1+JSON":           "application/vnd.example.v1+json",
		"text/html":                                 "", "image/svg+xml": "", "": "", "application/": "", "application": "", "multipart/form-data; boundary=x": "",
		"application/x; a=\"": "", "application/x y": "", "application/" + strings.Repeat("a", 200): "", "*/*": "", "application/x\r\nX: y": "",
	} {
		if got, err := oci.ParseMediaType(contentType); got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q %v", contentType, got, err)
		}
	}
}

func descriptor(digest string, size int) string {
	raw, err := json.Marshal(map[string]any{"mediaType": "application/octet-stream", "digest": digest, "size": size})
	if err != nil {
		panic(err)
	}
	return string(raw)
}

// Would catch manifests that name things which nobody checks, and JSON that costs more than it should.
func TestParseManifest(t *testing.T) {
	t.Parallel()
	d := descriptor("sha256:"+hex64, 3)
	m, err := oci.ParseManifest(oci.MediaTypeImageManifest, []byte(`{"schemaVersion":2,"config":`+d+`,"layers":[`+d+`,{"mediaType":"application/x","digest":"sha256:`+hex64+`","size":1,"urls":["https://example.com"]}]}`))
	if err != nil || len(m.Blobs()) != 2 || m.MediaType != oci.MediaTypeImageManifest {
		t.Fatalf("%+v %v", m, err)
	}
	index := `{"schemaVersion":2,"mediaType":"` + oci.MediaTypeImageIndex + `","manifests":[` + d + `],"subject":` + d + `}`
	if m, err := oci.ParseManifest(oci.MediaTypeImageIndex, []byte(index)); err != nil || len(m.Blobs()) != 0 || m.Subject == nil {
		t.Fatalf("%+v %v", m, err)
	}
	fine := `{"schemaVersion":2,"config":` + d[:len(d)-1] + `,"annotations":{"Digest":"a","digest":"b"},"data":"e30="},"layers":null,"subject":null,"annotations":{"layers":"a","Layers":"b"},"x":1,"X":{"config":1}}`
	if _, err := oci.ParseManifest(oci.MediaTypeImageManifest, []byte(fine)); err != nil {
		t.Errorf("names that are nobody's: %v", err)
	}
	if m, err := oci.ParseManifest("application/vnd.example.opaque", []byte{0xff, 0x00}); err != nil || m.Blobs() != nil {
		t.Errorf("an unknown type: %+v %v", m, err)
	}
	for _, text := range []string{`{"layers":5}`, `{"config":"sha256"}`, `{"schemaVersion":"three"}`, `{"annotations":{"a":{"b":[1,2]}}}`} {
		if m, err := oci.ParseManifest("application/vnd.example+json", []byte(text)); err != nil || m.Blobs() != nil {
			t.Errorf("an unknown type whose fields mean something else: %s: %+v %v", text, m, err)
		}
	}
	large := strings.TrimSuffix(strings.Repeat(`{"mediaType":"application/x","digest":"sha256:`+hex64+`","size":3,"platform":{"os":"linux","architecture":"arm64","variant":"v8"},"annotations":{"a":"b","c":"d,{["}},`, oci.MaxDescriptors), ",")
	if m, err := oci.ParseManifest(oci.MediaTypeImageIndex, []byte(`{"schemaVersion":2,"manifests":[`+large+`]}`)); err != nil || len(m.Manifests) != oci.MaxDescriptors {
		t.Errorf("the largest index: %v", err)
	}
	many := strings.TrimSuffix(strings.Repeat(d+",", oci.MaxDescriptors+1), ",")
	for name, test := range map[string][2]string{
		"not JSON":         {oci.MediaTypeImageManifest, "hello"},
		"truncated":        {oci.MediaTypeImageManifest, `{"schemaVersion":2,"config":{`},
		"two values":       {oci.MediaTypeImageManifest, `{"schemaVersion":2,"config":` + d + `}{}`},
		"an array":         {oci.MediaTypeImageManifest, `[]`},
		"empty":            {oci.MediaTypeImageManifest, ``},
		"version 1":        {oci.MediaTypeImageManifest, `{"schemaVersion":1,"config":` + d + `}`},
		"no config":        {oci.MediaTypeImageManifest, `{"schemaVersion":2,"layers":[]}`},
		"other type":       {oci.MediaTypeImageManifest, index},
		"image as index":   {oci.MediaTypeImageIndex, `{"schemaVersion":2,"config":` + d + `,"layers":[]}`},
		"index as image":   {oci.MediaTypeImageManifest, `{"schemaVersion":2,"config":` + d + `,"manifests":[]}`},
		"bad digest":       {oci.MediaTypeImageManifest, `{"schemaVersion":2,"config":` + descriptor("sha256:abc", 1) + `}`},
		"no digest":        {oci.MediaTypeImageManifest, `{"schemaVersion":2,"config":{}}`},
		"negative size":    {oci.MediaTypeImageManifest, `{"schemaVersion":2,"config":` + descriptor("sha256:"+hex64, -1) + `}`},
		"huge size":        {oci.MediaTypeImageManifest, `{"schemaVersion":2,"config":{"digest":"sha256:` + hex64 + `","size":1e99}}`},
		"not UTF-8":        {oci.MediaTypeImageManifest, "{\"schemaVersion\":2,\"config\":" + d + ",\"x\":\"\xff\"}"},
		"deep":             {oci.MediaTypeImageManifest, strings.Repeat("[", 100_000)},
		"deep in unknown":  {"application/vnd.example+json", strings.Repeat(`{"a":`, 1000)},
		"many values":      {oci.MediaTypeImageManifest, `{"schemaVersion":2,"config":` + d + `,"layers":[` + strings.Repeat("{},", 2_500_000) + `{}]}`},
		"many strings":     {"application/vnd.example+json", `{"a":[` + strings.Repeat(`"",`, 2_500_000) + `""]}`},
		"unknown, array":   {"application/vnd.example+json", "[]"},
		"unknown, cut off": {"application/vnd.example+json", `{"layers":5`},
		"many layers":      {oci.MediaTypeImageManifest, `{"schemaVersion":2,"config":` + d + `,"layers":[` + many + `]}`},
		"many in an index": {oci.MediaTypeImageIndex, `{"schemaVersion":2,"manifests":[` + many + `]}`},
		"unknown, no JSON": {"application/vnd.example+json", "hello"},
		// Readers do not agree on which of two counts, nor on whether "Layers" is one of them: encoding/json says that it is.
		"config twice":         {oci.MediaTypeImageManifest, `{"schemaVersion":2,"config":` + d + `,"config":` + d + `}`},
		"layers twice":         {oci.MediaTypeImageManifest, `{"schemaVersion":2,"config":` + d + `,"layers":[` + d + `],"layers":[]}`},
		"Layers too":           {oci.MediaTypeImageManifest, `{"schemaVersion":2,"config":` + d + `,"layers":[` + d + `],"Layers":[]}`},
		"Layers alone":         {oci.MediaTypeImageManifest, `{"schemaVersion":2,"config":` + d + `,"Layers":[` + d + `]}`},
		"an escaped name":      {oci.MediaTypeImageManifest, `{"schemaVersion":2,"config":` + d + `,"config\u0000":1,"\u0063onfig":` + d + `}`},
		"a letter like s":      {oci.MediaTypeImageManifest, `{"schemaVersion":2,"config":` + d + `,"layers":[` + d + `],"layerſ":[]}`},
		"digest twice":         {oci.MediaTypeImageManifest, `{"schemaVersion":2,"config":` + d[:len(d)-1] + `,"Digest":"sha256:` + hex64 + `"}}`},
		"urls of a layer":      {oci.MediaTypeImageManifest, `{"schemaVersion":2,"config":` + d + `,"layers":[` + d[:len(d)-1] + `,"URLs":["https://x.test"]}]}`},
		"subject, in an index": {oci.MediaTypeImageIndex, `{"schemaVersion":2,"manifests":[` + d + `],"subject":` + d + `,"Subject":null}`},
		"size of a child":      {oci.MediaTypeImageIndex, `{"schemaVersion":2,"manifests":[` + d[:len(d)-1] + `,"size":4}]}`},
	} {
		_, err := oci.ParseManifest(test[0], []byte(test[1]))
		if e, ok := errors.AsType[*oci.Error](err); !ok || e.Code != oci.CodeManifestInvalid {
			t.Errorf("%s: %v", name, err)
		}
		// Decoding the first took over 1 GB before the number of its layers was looked at.
		if strings.HasPrefix(name, "many values") && !strings.Contains(err.Error(), "values") {
			t.Errorf("%s: refused late: %v", name, err)
		}
	}
	_, err = oci.ParseManifest("application/x", make([]byte, oci.MaxManifestBytes+1))
	if e := oci.AsError(err); e.Code != oci.CodeSizeInvalid || e.HTTPStatus() != http.StatusRequestEntityTooLarge {
		t.Errorf("oversized: %v", err)
	}
}

// The spec's table, "Error Codes", as it is written there, with the status that its text or the code's name
// asks for. Would catch a misspelt code and a status that clients read otherwise.
func TestCodes(t *testing.T) {
	t.Parallel()
	for code, want := range map[oci.Code]struct {
		name   string
		status int
	}{
		oci.CodeBlobUnknown: {"BLOB_UNKNOWN", 404}, oci.CodeBlobUploadInvalid: {"BLOB_UPLOAD_INVALID", 400}, oci.CodeBlobUploadUnknown: {"BLOB_UPLOAD_UNKNOWN", 404},
		oci.CodeDigestInvalid: {"DIGEST_INVALID", 400}, oci.CodeManifestBlobUnknown: {"MANIFEST_BLOB_UNKNOWN", 400}, oci.CodeManifestInvalid: {"MANIFEST_INVALID", 400},
		oci.CodeManifestUnknown: {"MANIFEST_UNKNOWN", 404}, oci.CodeNameInvalid: {"NAME_INVALID", 400}, oci.CodeNameUnknown: {"NAME_UNKNOWN", 404},
		oci.CodeSizeInvalid: {"SIZE_INVALID", 400}, oci.CodeUnauthorized: {"UNAUTHORIZED", 401}, oci.CodeDenied: {"DENIED", 403},
		oci.CodeUnsupported: {"UNSUPPORTED", 405}, oci.CodeTooManyRequests: {"TOOMANYREQUESTS", 429},
		"NO_CODE_OF_OURS": {"NO_CODE_OF_OURS", 500}, // net/http panics at status 0
	} {
		w := httptest.NewRecorder()
		status, name := oci.WriteError(w, &oci.Error{Code: code, Message: "m", RetryAfter: 1500 * time.Millisecond})
		if got, want := w.Body.String(), `{"errors":[{"code":"`+want.name+`","message":"m"}]}`; got != want {
			t.Errorf("%s: %s", code, got)
		}
		if w.Code != want.status || status != want.status || name != want.name {
			t.Errorf("%s: %d %d %s", code, w.Code, status, name)
		}
		for header, want := range map[string]string{"Retry-After": "2", "Content-Type": "application/json", "X-Content-Type-Options": "nosniff"} {
			if got := w.Header().Get(header); got != want {
				t.Errorf("%s: %s: %q", code, header, got)
			}
		}
	}
	w := httptest.NewRecorder()
	if status, _ := oci.WriteError(w, &oci.Error{Code: oci.CodeDenied, Status: 404, Message: "m", Detail: map[string]int{"n": 1}}); status != 404 || !strings.Contains(w.Body.String(), `"detail":{"n":1}`) {
		t.Errorf("%d %s", status, w.Body)
	}
}

// Would catch internal text that reaches a client.
func TestPoisonedError(t *testing.T) {
	t.Parallel()
	poison := errors.New("POISON /var/lib/secret")
	for _, err := range []error{poison, &oci.Error{Code: oci.CodeDenied, Message: "no", Err: poison}, oci.Unavailable(503, poison, "down")} {
		w := httptest.NewRecorder()
		oci.WriteError(w, err)
		if strings.Contains(w.Body.String(), "POISON") || w.Code < 400 {
			t.Errorf("%d %s", w.Code, w.Body)
		}
	}
}

// The spec's own words for a path component and a tag, which the parsers spell out by hand.
var (
	componentWords = regexp.MustCompile(`^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*$`)
	tagWords       = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`)
)

func FuzzParse(f *testing.F) {
	for _, s := range []string{"alice.test/app", "sha256:" + hex64, "latest", "application/json", "../x", "did:plc:x/y", "a__b", "a___b", "a-", "a--b", "a.b", "_a", "a_"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if _, err := oci.ParseName("a/" + s); !strings.Contains(s, "/") && len(s) < 250 && (err == nil) != componentWords.MatchString(s) {
			t.Errorf("component %q: %v", s, err)
		}
		if _, err := oci.ParseReference(s); !strings.Contains(s, ":") && (err == nil) != tagWords.MatchString(s) {
			t.Errorf("tag %q: %v", s, err)
		}
		if n, err := oci.ParseName(s); err == nil && (n.String() != s || strings.Contains(s, "..") && strings.Contains(n.Repository, "..")) {
			t.Errorf("name %q became %q", s, n)
		}
		if d, err := oci.ParseDigest(s); err == nil && (len(d.Bytes()) < 32 || strings.ContainsAny(s, "/\\.")) {
			t.Errorf("digest %q", s)
		}
		if r, err := oci.ParseReference(s); err == nil && (r.String() != s || strings.ContainsAny(s, "/\\")) {
			t.Errorf("reference %q", s)
		}
		if mt, err := oci.ParseMediaType(s); err == nil && !strings.HasPrefix(mt, "application/") {
			t.Errorf("media type %q", mt)
		}
	})
}

func FuzzParseManifest(f *testing.F) {
	f.Add(oci.MediaTypeImageManifest, []byte(`{"schemaVersion":2,"config":`+descriptor("sha256:"+hex64, 1)+`}`))
	f.Add(oci.MediaTypeImageIndex, []byte(`{"schemaVersion":2,"manifests":[]}`))
	f.Fuzz(func(t *testing.T, mediaType string, raw []byte) {
		m, err := oci.ParseManifest(mediaType, raw)
		if err != nil {
			return
		}
		for _, d := range m.Blobs() {
			if _, err := oci.ParseDigest(string(d.Digest)); err != nil || d.Size < 0 {
				t.Errorf("descriptor %+v", d)
			}
		}
	})
}
