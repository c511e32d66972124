package hold

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"atcr.io/internal/xrpc"
)

// Would catch a hold that no relay hears of, one that asks all the time, and a test hold that asks at all.
func TestRelays(t *testing.T) {
	t.Parallel()
	p, c := newPeople(t), &clock{}
	var asked atomic.Int64
	relay := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var in struct{ Hostname string }
		if err := json.NewDecoder(r.Body).Decode(&in); err != nil || in.Hostname == "" || r.URL.Path != "/xrpc/"+requestCrawlNSID || r.Method != http.MethodPost {
			t.Errorf("%s %s: %+v %v", r.Method, r.URL.Path, in, err)
		}
		if asked.Add(1) == 2 {
			xrpc.WriteError(w, xrpc.Errorf(http.StatusBadRequest, "HostBanned", "this host is banned"))
		}
	}))
	t.Cleanup(relay.Close)
	s := startHold(t, p, func(config *Config) { open(config); c.set(config); config.Relays = []string{relay.URL} })
	follow := func(want int64, fails bool) {
		t.Helper()
		if err := s.followRelays(t.Context()); (err != nil) != fails || asked.Load() != want {
			t.Errorf("asked %d times, want %d: %v", asked.Load(), want, err)
		}
	}
	follow(0, false) // nobody on the internet could reach it
	s.Hold.config.PublicURL = "https://hold.example.com"
	follow(1, false)
	c.advance(2 * time.Hour)
	follow(1, false) // nothing is new
	if a := s.addCrew(t, owner, reader, "blob:read"); a.status != 200 {
		t.Fatal(a.body)
	}
	follow(2, true) // refused, and not asked again at once
	if a := s.addCrew(t, owner, writer, "blob:write"); a.status != 200 {
		t.Fatal(a.body)
	}
	follow(2, false)
	c.advance(crawlPause)
	follow(3, false)
}
