package hold

import (
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

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
	storage := components.StartVersityGW(t)
	storage.CreateBucket(t, "blobs")
	for name, change := range map[string]func(*Config){
		"folder": open,
		"S3": func(c *Config) {
			open(c)
			c.StorageDriver, c.S3Bucket, c.S3Endpoint, c.AccessKeyID, c.SecretAccessKey, c.Region = "s3", "blobs", storage.Endpoint, storage.AccessKey, storage.SecretKey, "us-east-1"
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := startHold(t, p, change)
			if said, healthy := examine(t, s); !healthy || strings.Contains(said, "BAD") || strings.Count(said, "ok  ") != 7 {
				t.Errorf("%s", said)
			}
		})
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
		"no directory":   {func(_ *testing.T, s *server, _ *clock) { s.Hold.config.PLCURL = gone.URL }, []string{"BAD clock", "HOLD_PLC_URL"}},
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
