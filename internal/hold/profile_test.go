package hold

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ipfs/go-cid"

	"atcr.io/internal/httpx"
)

// Would catch a hold without a face, a picture that keeps it from starting, and one fetched from inside.
func TestProfile(t *testing.T) {
	t.Parallel()
	p := newPeople(t)
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/good.png":
			_, _ = w.Write(append([]byte("\x89PNG\r\n\x1a\n"), "own"...))
		case "/page":
			_, _ = w.Write([]byte("<html>"))
		default:
			for range 100 { // more than is read
				if _, err := w.Write(make([]byte, 1<<20)); err != nil {
					return
				}
			}
		}
	}))
	t.Cleanup(web.Close)
	file := filepath.Join(t.TempDir(), "a.jpg")
	if err := os.WriteFile(file, []byte("\xff\xd8\xff\xe0own"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		source   string
		testMode bool
		own      bool
		mime     string
	}{
		"default":      {"", false, false, "image/png"},
		"file":         {file, false, true, "image/jpeg"},
		"no file":      {"/does/not/exist.png", false, false, "image/png"},
		"URL":          {web.URL + "/good.png", true, true, "image/png"},
		"internal URL": {web.URL + "/good.png", false, false, "image/png"},
		"page":         {web.URL + "/page", true, false, "image/png"},
		"endless":      {web.URL + "/endless", true, false, "image/png"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := startHold(t, p, func(c *Config) { c.ProfileAvatar, c.TestMode = test.source, test.testMode })
			r, err := s.repo.GetRecord(t.Context(), profileNSID, "self")
			if err != nil {
				t.Fatal(err)
			}
			var got profile
			if err := json.Unmarshal(r.Value, &got); err != nil || got.DisplayName == "" || got.Avatar.MimeType != test.mime {
				t.Fatalf("%s %v", r.Value, err)
			}
			blob, err := s.repo.GetBlob(t.Context(), cid.MustParse(got.Avatar.Ref.Link))
			if err != nil || strings.HasSuffix(string(blob.Data), "own") != test.own {
				t.Errorf("%d bytes, %v", len(blob.Data), err)
			}
			a := s.send(t, http.MethodGet, "/xrpc/"+getBlobNSID+"?did="+strings.ReplaceAll(s.did.String(), "%", "%25")+"&cid="+got.Avatar.Ref.Link, "", nil)
			if a.status != 200 || a.header.Get("Content-Type") != test.mime || a.header.Get("X-Content-Type-Options") != "nosniff" {
				t.Errorf("%d %v", a.status, a.header)
			}
		})
	}
}

// Would catch a picture that anybody between could have exchanged.
func TestAvatarNeedsHTTPS(t *testing.T) {
	t.Parallel()
	if _, _, err := (&Hold{}).loadAvatar(t.Context(), "http://example.com/good.png"); !errors.Is(err, httpx.ErrInsecureURL) {
		t.Error(err)
	}
}
