package appview

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"atcr.io/api/atcr"
	"atcr.io/internal/oci"
)

// layerRecords are the layer records of a hold, by digest.
func (n *network) layerRecords(h *testHold) map[string]string {
	n.t.Helper()
	var out struct {
		Records []struct {
			Value atcr.HoldLayer `json:"value"`
		} `json:"records"`
	}
	res := request(n.t, http.MethodGet, h.url+"/xrpc/com.atproto.repo.listRecords?limit=100&collection="+atcr.HoldLayerNSID+"&repo="+url.QueryEscape(h.did), nil)
	if err := json.Unmarshal([]byte(res.body), &out); err != nil {
		n.t.Fatalf("%s: %v", res.body, err)
	}
	found := map[string]string{}
	for _, r := range out.Records {
		found[r.Value.Digest+" "+r.Value.Manifest] = r.Value.UserDid
	}
	return found
}

// eventually waits until done.
func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(2 * time.Minute); !done(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

// Would catch a hold that does not know which blobs are in use, an AppView that loses what it had to tell
// while the hold was down or while it was itself stopped, and a member who is never made one.
func TestHoldIsTold(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	alice := n.as(n.alice, "alice.test/app")
	var refused, joined atomic.Int64
	n.public.misbehave(func(w http.ResponseWriter, r *http.Request, next http.Handler) bool {
		if strings.HasSuffix(r.URL.Path, atcr.HoldRequestCrewNSID) {
			joined.Add(1)
		}
		if !strings.HasSuffix(r.URL.Path, atcr.HoldNotifyManifestNSID) {
			return false
		}
		refused.Add(1)
		http.Error(w, `{"error":"InternalServerError"}`, http.StatusInternalServerError)
		return true
	})
	image := newImage("told")
	alice.push("alice.test/app", image, "1.0")
	eventually(t, "the hold is asked", func() bool { return refused.Load() > 0 })
	if got := n.layerRecords(n.public); len(got) != 0 {
		t.Fatalf("%v", got)
	}
	n.public.behave()
	n.restart()
	n.forget() // the pause before the next attempt
	eventually(t, "config and layer are recorded", func() bool { return len(n.layerRecords(n.public)) == 2 })
	uri := "at://" + n.alice.DID + "/" + atcr.ManifestNSID + "/" + image.digest.Hex()
	if who := n.layerRecords(n.public)[oci.FromBytes(image.layer).String()+" "+uri]; who != n.alice.DID {
		t.Errorf("%v", n.layerRecords(n.public))
	}
	if joined.Load() != 1 {
		t.Errorf("asked %d times to be a member", joined.Load())
	}
	alice.must(202, alice.do(http.MethodDelete, "/v2/alice.test/app/manifests/"+image.digest.String(), nil))
	eventually(t, "the records of a deleted manifest are gone", func() bool { return len(n.layerRecords(n.public)) == 0 })
}

// Would catch a message that a hold will never take and that is sent for ever, and one whose push failed.
func TestHoldThatRefusesToBeTold(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	alice := n.as(n.alice, "alice.test/app")
	var told atomic.Int64
	n.public.misbehave(func(w http.ResponseWriter, r *http.Request, next http.Handler) bool {
		if strings.HasSuffix(r.URL.Path, atcr.HoldRequestCrewNSID) { // must not hold up what comes behind it
			http.Error(w, `{"error":"RateLimitExceeded"}`, http.StatusTooManyRequests)
			return true
		}
		if !strings.HasSuffix(r.URL.Path, atcr.HoldNotifyManifestNSID) {
			return false
		}
		told.Add(1)
		w.WriteHeader(http.StatusNotImplemented)
		_, _ = io.Copy(w, bytes.NewReader([]byte(`{"error":"MethodNotImplemented","message":"no"}`)))
		return true
	})
	alice.push("alice.test/app", newImage("refused"), "1.0")
	eventually(t, "it is given up", func() bool { return told.Load() == 1 && n.waiting(n.alice) == 0 })
	alice.must(400, alice.do(http.MethodPut, "/v2/alice.test/app/manifests/2.0", []byte(`{`), "Content-Type", oci.MediaTypeImageManifest))
	if n.waiting(n.alice) != 0 || told.Load() != 1 {
		t.Errorf("%d wait, told %d times", n.waiting(n.alice), told.Load())
	}
}

// Would catch a hold that never learns of a push because a proxy said, while the hold was being started, that there is
// nothing.
func TestHoldBehindProxy(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	alice := n.as(n.alice, "alice.test/app")
	var told atomic.Int64
	n.public.misbehave(func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
		if !strings.HasSuffix(r.URL.Path, atcr.HoldNotifyManifestNSID) {
			return false
		}
		told.Add(1)
		page404(w, r, nil)
		return true
	})
	alice.push("alice.test/app", newImage("proxied"), "1.0")
	eventually(t, "the hold is asked", func() bool { return told.Load() > 0 })
	n.public.behave()
	n.restart()
	n.forget() // the pause before the next attempt
	eventually(t, "config and layer are recorded", func() bool { return len(n.layerRecords(n.public)) == 2 })
}
