package hold

import (
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/bluesky-social/indigo/atproto/atcrypto"

	"atcr.io/test/components"
)

// examine runs the doctor, and returns what it said.
func examine(t *testing.T, s *server) (said string, healthy bool) {
	t.Helper()
	err := adminDoctor(t.Context(), s.Hold, parameters(), func(l Line) { said += l.Text + "\n" })
	return said, err == nil
}

// Would catch a doctor who finds a healthy hold ill, or an ill one healthy, and one who does not say what to do.
func TestDoctor(t *testing.T) {
	t.Parallel()
	p := newPeople(t)
	storage := components.StartS3(t)
	storage.CreateBucket(t, "blobs")
	for name, change := range map[string]func(*Config){
		"folder": open,
		"S3": func(c *Config) {
			open(c)
			c.TrustedAppViews = []string{"did:web:appview.example.com"}
			c.StorageDriver, c.S3Bucket, c.S3Endpoint, c.AccessKeyID, c.SecretAccessKey, c.Region = "s3", "blobs", storage.Endpoint, storage.AccessKey, storage.SecretKey, "us-east-1"
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := startHold(t, p, change)
			said, healthy := examine(t, s)
			if !healthy || strings.Contains(said, "BAD") || strings.Count(said, "ok  ") != 14 {
				t.Errorf("%s", said)
			}
			for _, want := range []string{"listed, read and deleted", "a part was sent", "refuses bytes that are not those", "neither hold nor storage is under"} {
				if name == "S3" && !strings.Contains(said, want) {
					t.Errorf("%q is not in\n%s", want, said)
				}
			}
		})
	}
	half := func(h *Hold) string { // a proxy that passes on but one of the two
		web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/.well-known/did.json" {
				h.Handler().ServeHTTP(w, r)
			}
		}))
		t.Cleanup(web.Close)
		return web.URL
	}
	another := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{"id":"did:web:other"}`)) }))
	t.Cleanup(another.Close)
	gone := httptest.NewServer(http.NotFoundHandler())
	gone.Close()
	for name, test := range map[string]struct {
		damage func(t *testing.T, s *server, c *clock)
		want   []string
	}{
		"another server": {func(_ *testing.T, s *server, _ *clock) { s.Hold.config.PublicURL = another.URL }, []string{"BAD public URL: did.json is not this hold's", "BAD firehose", "let the proxy pass WebSockets on"}},
		"no server":      {func(_ *testing.T, s *server, _ *clock) { s.Hold.config.PublicURL = gone.URL }, []string{"BAD public URL", "let " + gone.URL + " lead to"}},
		"wrong clock":    {func(_ *testing.T, _ *server, c *clock) { c.advance(-time.Hour) }, []string{"BAD clock: it is -", "NTP"}},
		"no directory":   {func(_ *testing.T, s *server, _ *clock) { s.Hold.config.PLCURL = gone.URL }, []string{"BAD identities: ", "let the hold reach HOLD_PLC_URL", "ok  clock: there is nothing to compare it with"}},
		"storage taken away": {func(t *testing.T, s *server, _ *clock) {
			t.Helper()
			root := s.Hold.config.StorageRootDir
			if err := os.RemoveAll(root); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(root, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}, []string{"BAD storage", "there must be space"}},
		"a handle that leads nowhere": {func(_ *testing.T, s *server, _ *clock) {
			s.Hold.config.PublicURL = half(s.Hold)
			s.handle = "hold.example.com"
		}, []string{"BAD public URL: the handle hold.example.com does not lead to", "atproto-did"}},
		"under the AppView": {func(_ *testing.T, s *server, _ *clock) {
			s.Hold.config.TrustedAppViews, s.Hold.config.PublicURL = []string{"did:web:example.invalid%3A8443"}, "https://hold.example.invalid"
		}, []string{"BAD host names: HOLD_PUBLIC_URL is hold.example.invalid", "neither the AppView's nor below it"}},
		"commits ahead": {func(t *testing.T, s *server, c *clock) {
			t.Helper()
			c.advance(time.Hour)
			if err := s.repo.Resign(t.Context(), nil); err != nil {
				t.Fatal(err)
			}
			c.advance(-time.Hour)
		}, []string{"BAD revs: the newest commit is 59m", "NTP"}},
		"unknown to the relay": {func(_ *testing.T, s *server, _ *clock) {
			s.Hold.config.PublicURL, s.Hold.config.Relays = "https://hold.invalid", []string{another.URL}
		}, []string{"BAD public URL", "BAD relay", "request-crawl"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := &clock{}
			s := startHold(t, p, func(config *Config) { open(config); c.set(config) })
			test.damage(t, s, c)
			said, healthy := examine(t, s)
			for _, want := range test.want {
				if healthy || !strings.Contains(said, want) {
					t.Errorf("%q is not in\n%s", want, said)
				}
			}
		})
	}
}

// Would catch a doctor who does not see that the directory has another key or address, that nobody has a copy of
// the rotation key, or a certificate that ends.
func TestDoctorIdentity(t *testing.T) {
	t.Parallel()
	d := newDirectory(t)
	config := d.config(t)
	see := func(h *Hold, want ...string) {
		t.Helper()
		said, _ := examine(t, &server{Hold: h})
		for _, w := range want {
			if !strings.Contains(said, w) {
				t.Errorf("%q is not in\n%s", w, said)
			}
		}
	}
	err := with(t, config, func(h *Hold) {
		web := httptest.NewUnstartedServer(h.Handler())
		web.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
		web.StartTLS()
		t.Cleanup(web.Close)
		h.config.PublicURL = web.URL
		see(h, "BAD public URL", "certificate", "BAD did:plc directory: it has another address", "BAD rotation key: there is no copy", "key export-rotation")
		h.config.PublicURL = config.PublicURL
		if err := adminKeyExport(t.Context(), h, parameters(), func(Line) {}); err != nil {
			t.Fatal(err)
		}
		see(h, "ok  did:plc directory: it says what this hold is", "ok  rotation key: it is here")
		if err := os.Remove(h.config.RotationKeyPath); err != nil {
			t.Fatal(err)
		}
		see(h, "ok  rotation key: it was written out and is not on this machine")
		other, err := atcrypto.GeneratePrivateKeyK256()
		if err != nil {
			t.Fatal(err)
		}
		if err := h.setKey(other); err != nil {
			t.Fatal(err)
		}
		see(h, "BAD did:plc directory: it names the signing key", "Recovery")
		up := d.down()
		defer up()
		see(h, "BAD did:plc directory", "let the hold reach HOLD_PLC_URL")
	})
	if err != nil {
		t.Fatal(err)
	}
}
