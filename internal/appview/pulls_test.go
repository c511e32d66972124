package appview

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"atcr.io/api/atcr"
	holdserver "atcr.io/internal/hold"
	"atcr.io/internal/oci"
)

// told are the notices of pulls that a hold got, and what it answers them with.
type told struct {
	messages, pulls atomic.Int64
	down            atomic.Int64 // the status that a proxy answers with
}

func (c *told) listen(t *testing.T, h *testHold) {
	h.misbehave(func(w http.ResponseWriter, r *http.Request, next http.Handler) bool {
		if !strings.HasSuffix(r.URL.Path, atcr.HoldNotifyManifestNSID) {
			return false
		}
		raw, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		r.Body = io.NopCloser(bytes.NewReader(raw))
		var in atcr.HoldNotifyManifestInput
		if err := json.Unmarshal(raw, &in); err != nil || in.Operation != "pull" {
			return false
		}
		if status := c.down.Load(); status != 0 {
			http.Error(w, "{}", int(status))
			return true
		}
		rec := &recorder{header: http.Header{}}
		next.ServeHTTP(rec, r)
		if rec.status == 200 && in.Count != nil {
			c.messages.Add(1)
			c.pulls.Add(*in.Count)
		}
		w.WriteHeader(rec.status)
		_, _ = w.Write(rec.body.Bytes())
		return true
	})
}

// Would catch pulls that are told one by one, under a name that the hold cannot check, lost over a restart or while
// the hold is down, or counted where nothing was pulled.
func TestPullsAreTold(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	self := "did:web:" + strings.ReplaceAll(strings.TrimPrefix(n.base, "http://"), ":", "%3A")
	var document struct {
		ID                 string
		VerificationMethod []struct{ ID, Type, PublicKeyMultibase string }
	}
	got := request(t, http.MethodGet, n.base+"/.well-known/did.json", nil)
	if err := json.Unmarshal([]byte(got.body), &document); err != nil || document.ID != self || len(document.VerificationMethod) != 1 ||
		document.VerificationMethod[0].ID != self+"#atproto" || strings.Contains(got.body, "atproto_pds") {
		t.Fatalf("%d %s, %v", got.status, got.body, err)
	}
	n.public.restart(t, func(c *holdserver.Config) { c.TrustedAppViews, c.TestMode = []string{self}, true })
	var c told
	c.listen(t, n.public)
	alice := n.as(n.alice, "alice.test/app")
	image := newImage("pulled")
	alice.push("alice.test/app", image, "1.0")
	index := []byte(`{"schemaVersion":2,"mediaType":"` + oci.MediaTypeImageIndex + `","manifests":[]}`)
	alice.must(201, alice.do(http.MethodPut, "/v2/alice.test/app/manifests/index", index, "Content-Type", oci.MediaTypeImageIndex))
	eventually(t, "the push is recorded", func() bool { return len(n.layerRecords(n.public)) == 2 })

	nobody := n.nobody()
	for range 7 {
		nobody.must(200, nobody.manifest("alice.test/app", "1.0"))
		nobody.must(200, nobody.manifest("alice.test/app", "index"))
		nobody.must(200, nobody.do(http.MethodHead, "/v2/alice.test/app/manifests/1.0", nil))
		nobody.must(304, nobody.do(http.MethodGet, "/v2/alice.test/app/manifests/1.0", nil, "If-None-Match", `"`+image.digest.String()+`"`))
	}
	c.down.Store(http.StatusServiceUnavailable)
	n.restart()
	for range 5 {
		nobody.must(200, nobody.manifest("alice.test/app", image.digest.String()))
	}
	n.restart()
	n.forget()
	rows := func() (pulls, attempts int) {
		err := n.app.Load().db.Reader().QueryRowContext(t.Context(), `SELECT coalesce(sum(pulls),0), coalesce(max(attempts),0) FROM pull_count`).Scan(&pulls, &attempts)
		if err != nil {
			t.Fatal(err)
		}
		return pulls, attempts
	}
	eventually(t, "the hold is down", func() bool { _, attempts := rows(); return attempts == 1 })
	if pulls, _ := rows(); pulls != 12 || c.messages.Load() != 0 {
		t.Errorf("%d wait, %d messages", pulls, c.messages.Load())
	}
	c.down.Store(http.StatusNotFound)
	n.forget()
	eventually(t, "the hold is gone", func() bool { _, attempts := rows(); return attempts != 1 })
	if pulls, attempts := rows(); pulls != 12 || attempts != 2 {
		t.Errorf("%d wait, %d attempts", pulls, attempts)
	}
	c.down.Store(0)
	n.forget()
	eventually(t, "the hold is told", func() bool { return c.messages.Load() == 1 })
	if c.pulls.Load() != 12 {
		t.Errorf("told of %d pulls", c.pulls.Load())
	}
	eventually(t, "nothing waits", func() bool { pulls, _ := rows(); return pulls == 0 })
}

// Would catch a hold that is asked again and again to count what it does not want to.
func TestHoldThatWantsNoCounts(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	n.private.restart(t, func(c *holdserver.Config) { c.TestMode = true }) // which lets it find out who asks
	n.useHold(n.bob, n.private.did)
	bob := n.as(n.bob, "bob.test/app")
	bob.push("bob.test/app", newImage("pulled"), "1.0")
	asked := func() int { // of the private hold, which does not know this AppView
		var waiting int
		if err := n.app.Load().db.Reader().QueryRowContext(t.Context(), `SELECT count(*) FROM pull_count`).Scan(&waiting); err != nil {
			t.Fatal(err)
		}
		return waiting
	}
	bob.must(200, bob.manifest("bob.test/app", "1.0"))
	eventually(t, "it is counted", func() bool { return asked() == 1 })
	n.forget()
	eventually(t, "it is given up", func() bool { return asked() == 0 })
	bob.must(200, bob.manifest("bob.test/app", "1.0"))
	p := n.app.Load().pulls
	if err := p.keep(t.Context()); err != nil || asked() != 0 {
		t.Errorf("%d wait, %v", asked(), err)
	}
}
