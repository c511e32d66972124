package appview

import (
	"io"
	"net/http"
	"sync"
	"testing"

	"atcr.io/internal/oci"
)

// Would catch people who wait because others send slowly, and senders whose bytes are lost because they paused.
func TestSlowSenders(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	alice, bob := n.as(n.alice, "alice.test/app"), n.as(n.bob, "bob.test/app")
	const senders = 20
	var wg sync.WaitGroup
	var writers [senders]*io.PipeWriter
	answers := make([]*http.Response, senders)
	for i := range senders {
		location := alice.must(202, alice.do(http.MethodPost, startPath, nil)).header.Get("Location")
		r, w := io.Pipe()
		writers[i] = w
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPatch, n.base+location, r)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", alice.authorization)
		wg.Go(func() {
			res, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Error(err)
				return
			}
			_ = res.Body.Close()
			answers[i] = res
		})
		if _, err := w.Write([]byte("slow ")); err != nil {
			t.Fatal(err)
		}
	}
	image := newImage("quick")
	bob.push("bob.test/app", image, "1.0") // while all of them are in the middle
	n.nobody().pull("bob.test/app", "1.0", image)
	for _, w := range writers {
		if _, err := w.Write([]byte("sender")); err != nil {
			t.Error(err)
		}
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	}
	wg.Wait()
	for i, res := range answers {
		if res == nil || res.StatusCode != 202 {
			t.Fatalf("sender %d: %v", i, res)
		}
	}
	alice.must(201, alice.do(http.MethodPut, answers[7].Header.Get("Location")+"?digest="+oci.FromBytes([]byte("slow sender")).String(), nil))
}

// Would catch a hold that a push began at and that is another's by the time of its manifest.
func TestDefaultHoldChangesInAPush(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	other := n.startHold(n.alice.DID, "HOLD_PUBLIC=true", "HOLD_ALLOW_ALL_CREW=true")
	alice := n.as(n.alice, "alice.test/app")
	image := newImage("one")
	alice.upload("alice.test/app", image.layer)
	layer := "/v2/alice.test/app/blobs/" + oci.FromBytes(image.layer).String()
	alice.must(200, alice.do(http.MethodHead, layer, nil))
	location := alice.must(202, alice.do(http.MethodPost, startPath, nil)).header.Get("Location")
	n.useHold(n.alice, other.did)
	alice.must(404, alice.do(http.MethodHead, layer, nil)) // answered for the hold that the push goes to now
	alice.must(201, alice.do(http.MethodPut, location+"?digest="+oci.FromBytes(image.config).String(), image.config))
	if got := alice.put("alice.test/app", "1.0", image.manifest); got.status != 400 || got.code() != "MANIFEST_BLOB_UNKNOWN" {
		t.Errorf("a manifest whose blobs are at the hold of before: %d %s", got.status, got.body)
	}
	alice.push("alice.test/app", image, "1.0")
	n.nobody().pull("alice.test/app", "1.0", image)
	if got := n.records(n.alice, "io.atcr.manifest")[image.digest.Hex()]["holdDid"]; got != other.did {
		t.Errorf("the record names %v", got)
	}
}

// Would catch a walk over records that never ends, or that stops at the first strange one: a hostile repo may name a
// manifest in itself.
func TestManifestThatNamesItself(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	alice := n.as(n.alice, "alice.test/app")
	image := newImage("one")
	alice.push("alice.test/app", image, "1.0")
	record := n.records(n.alice, "io.atcr.manifest")[image.digest.Hex()]
	own := map[string]any{"mediaType": oci.MediaTypeImageManifest, "digest": image.digest.String(), "size": len(image.manifest)}
	record["subject"], record["manifests"] = own, []any{own}
	n.putRecord(n.alice, "io.atcr.manifest", image.digest.Hex(), record)
	n.forget()
	got := n.nobody().must(200, n.nobody().do(http.MethodGet, "/v2/alice.test/app/referrers/"+image.digest.String(), nil))
	if len(got.body) > 2000 {
		t.Errorf("%d bytes", len(got.body))
	}
	n.nobody().pull("alice.test/app", "1.0", image)
	alice.must(202, alice.do(http.MethodDelete, "/v2/alice.test/app/manifests/"+image.digest.String(), nil))
}
