package hold

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	osexec "os/exec"
	"strings"
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
	follow(2, false)
	c.advance(crawlRetry)
	follow(3, false)
}

// Would catch a relay that fails and holds up the others, and one whose yes ends the asking of one that failed.
func TestRelaysApart(t *testing.T) {
	t.Parallel()
	p, c := newPeople(t), &clock{}
	var good, bad atomic.Int64
	answer := func(asked *atomic.Int64, status int) string {
		relay := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			asked.Add(1)
			w.WriteHeader(status)
		}))
		t.Cleanup(relay.Close)
		return relay.URL
	}
	relays := []string{answer(&bad, http.StatusBadGateway), answer(&good, http.StatusOK)}
	s := startHold(t, p, func(config *Config) { open(config); c.set(config); config.Relays = relays })
	s.Hold.config.PublicURL = "https://hold.example.com"
	for i, step := range []struct {
		after time.Duration
		tries int64 // of the one that fails
	}{
		{0, 1}, {crawlRetry - time.Second, 1}, {time.Second, 2}, {crawlRetry, 2}, {crawlRetry, 3}, {24 * time.Hour, 4},
	} {
		c.advance(step.after)
		_ = s.followRelays(t.Context())
		if bad.Load() != step.tries || good.Load() != 1 {
			t.Errorf("step %d: asked %d times, want %d; the other %d times, want once", i, bad.Load(), step.tries, good.Load())
		}
	}
	for failures, want := range map[int]time.Duration{1: crawlRetry, 3: 4 * crawlRetry, 7: crawlPause, 1000: crawlPause} {
		now := time.Now()
		state := relayState{asked: now, failures: failures}
		if state.due(now.Add(want-time.Second), "", false) || !state.due(now.Add(want), "", true) {
			t.Errorf("after %d failures: not due after %s", failures, want)
		}
	}
}

// Would catch a script that asks nobody, asks for something else, or hides that it was refused.
func TestRequestCrawlScript(t *testing.T) {
	t.Parallel()
	relay := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var in struct{ Hostname string }
		if err := json.NewDecoder(r.Body).Decode(&in); err != nil || r.URL.Path != "/xrpc/"+requestCrawlNSID || r.Method != http.MethodPost || r.Header.Get("Content-Type") != "application/json" {
			t.Errorf("%s %s: %v", r.Method, r.URL.Path, err)
		}
		if in.Hostname != "hold.example.com" {
			xrpc.WriteError(w, xrpc.Errorf(http.StatusBadRequest, "HostBanned", "this host is banned"))
		}
	}))
	t.Cleanup(relay.Close)
	for _, test := range []struct {
		args, want string
		fails      bool
	}{
		{"hold.example.com " + relay.URL, relay.URL + " will read hold.example.com", false},
		{"https://hold.example.com/ " + relay.URL + "/", "will read hold.example.com", false},
		{"other.example.com " + relay.URL, "this host is banned", true},
		{"hold.example.com http://127.0.0.1:1 " + relay.URL, relay.URL + " will read", true},
		{`x"y ` + relay.URL, "not a host name", true},
		{"--help", "usage:", false},
		{"", "usage:", true},
	} {
		out, err := osexec.CommandContext(t.Context(), "../../deploy/request-crawl.sh", strings.Fields(test.args)...).CombinedOutput()
		if (err != nil) != test.fails || !strings.Contains(string(out), test.want) {
			t.Errorf("%s: %v %s", test.args, err, out)
		}
	}
}
