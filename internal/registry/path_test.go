package registry

import (
	"strings"
	"testing"

	"atcr.io/internal/oci"
)

const hex64 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

// Would catch a path that is read from the wrong end, and spellings that a proxy would read as another path.
func TestParsePath(t *testing.T) {
	t.Parallel()
	const bad = -1
	for _, tt := range []struct {
		path             string
		kind             Kind
		name, references string
	}{
		{"/v2", Base, "", ""},
		{"/v2/", Base, "", ""},
		{"/v2/alice.test/app/manifests/1.0", ManifestReference, "alice.test/app", "1.0"},
		{"/v2/alice.test/app/manifests/sha256:" + hex64, ManifestReference, "alice.test/app", "sha256:" + hex64},
		{"/v2/alice.test/app/manifests/sha256%3A" + hex64, ManifestReference, "alice.test/app", "sha256:" + hex64},
		{"/v2/alice.test/a/b/c/manifests/x", ManifestReference, "alice.test/a/b/c", "x"},
		{"/v2/did_plc_abc/app/blobs/sha256:" + hex64, Blob, "did_plc_abc/app", "sha256:" + hex64},
		{"/v2/did:plc:abc/app/tags/list", TagList, "did:plc:abc/app", "list"},
		{"/v2/did%3Aplc%3aabc/app/tags/list", TagList, "did:plc:abc/app", "list"},
		{"/v2/alice.test/app/blobs/uploads/", UploadStart, "alice.test/app", ""},
		{"/v2/alice.test/app/blobs/uploads", UploadStart, "alice.test/app", ""},
		{"/v2/alice.test/app/blobs/uploads/abc-_DEF", UploadSession, "alice.test/app", "abc-_DEF"},
		{"/v2/alice.test/app/referrers/sha256:" + hex64, Referrers, "alice.test/app", "sha256:" + hex64},
		// Words of the API within names.
		{"/v2/alice.test/manifests/manifests/manifests", ManifestReference, "alice.test/manifests", "manifests"},
		{"/v2/alice.test/blobs/uploads/manifests/latest", ManifestReference, "alice.test/blobs/uploads", "latest"},
		{"/v2/alice.test/tags/list/tags/list", TagList, "alice.test/tags/list", "list"},
		{"/v2/alice.test/blobs/uploads/blobs/uploads/", UploadStart, "alice.test/blobs/uploads", ""},

		{"/v2/_catalog", bad, "", ""},
		{"/v3/alice.test/app/manifests/x", bad, "", ""},
		{"/v2x/alice.test/app/manifests/x", bad, "", ""},
		{"/v2/alice.test/app", bad, "", ""},
		{"/v2/alice.test/app/frobs/x", bad, "", ""},
		{"/v2/alice.test/manifests/x", bad, "", ""}, // a name has two parts at least
		{"/v2/manifests/x", bad, "", ""},
		{"/v2//alice.test/app/manifests/x", bad, "", ""},
		{"/v2/alice.test//app/manifests/x", bad, "", ""},
		{"/v2/alice.test/app//manifests/x", bad, "", ""},
		{"/v2/alice.test/app/manifests//x", bad, "", ""},
		{"/v2/alice.test/app/manifests/", bad, "", ""},
		{"/v2/alice.test/app/blobs//uploads/", bad, "", ""},
		{"/v2/alice.test/app/blobs/uploads//", bad, "", ""},
		{"/v2/alice.test/../app/manifests/x", bad, "", ""},
		{"/v2/alice.test/./app/manifests/x", bad, "", ""},
		{"/v2/alice.test/app/manifests/..", bad, "", ""},
		{"/v2/../etc/passwd", bad, "", ""},
		{"/v2/alice..test/app/manifests/x", bad, "", ""},
		{"/v2/alice.test%2fapp/manifests/x", bad, "", ""},
		{"/v2/alice.test%2Fapp/manifests/x", bad, "", ""},
		{"/v2/alice.test/app/manifests/%2e%2e", bad, "", ""},
		{"/v2/alice.test/app/manifests/%00", bad, "", ""},
		{"/v2/alice.test/app/manifests/%253A", bad, "", ""},
		{"/v2/alice.test/App/manifests/x", bad, "", ""},
		{"/v2/" + strings.Repeat("a", maxPathBytes) + "/b/manifests/x", bad, "", ""},
		{"/v2/alice.test/" + strings.Repeat("a", oci.MaxNameBytes) + "/manifests/x", bad, "", ""},
	} {
		p, err := ParsePath(tt.path)
		if tt.kind == bad {
			if err == nil {
				t.Errorf("%.80s: %+v", tt.path, p)
			} else if s := oci.AsError(err).HTTPStatus(); s != 400 && s != 404 {
				t.Errorf("%.80s: status %d", tt.path, s)
			}
			continue
		}
		name := p.Name.String()
		if p.Kind == Base {
			name = ""
		}
		if p.Kind == TagList {
			p.Reference = "list"
		}
		if err != nil || p.Kind != tt.kind || name != tt.name || p.Reference != tt.references {
			t.Errorf("%.80s: %+v, %v", tt.path, p, err)
		}
	}
}

func FuzzParsePath(f *testing.F) {
	for _, s := range []string{"/v2/", "/v2/alice.test/a/b/manifests/x", "/v2/a/b/blobs/uploads/", "/v2/a/b/blobs/uploads/id", "/v2/a%3Ab/c/tags/list", "/v2//"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := ParsePath(s)
		if err != nil || p.Kind == Base {
			return
		}
		if again, err := oci.ParseName(p.Name.String()); err != nil || again != p.Name {
			t.Errorf("%q: the name %q is none", s, p.Name)
		}
		if strings.Contains(p.Reference, "/") || strings.Contains(p.Name.String(), "//") || strings.Contains(p.Name.String(), "..") {
			t.Errorf("%q: %+v", s, p)
		}
	})
}
