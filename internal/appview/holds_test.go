package appview

import (
	"log/slog"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/api/atcr"
	holdserver "atcr.io/internal/hold"
	"atcr.io/internal/index"
	"atcr.io/internal/oci"
	"atcr.io/internal/xrpc"
)

// Would catch a hold of which somebody is crew and that is not offered to them, though the firehose told of it; and
// what is offered because a stranger says that they are.
func TestKnownHoldsOfCrew(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	alice := n.browser()
	alice.signInAs(n.alice)
	offered := func() string {
		t.Helper()
		return alice.send(http.MethodGet, "/settings").body
	}
	if body := offered(); strings.Contains(body, n.private.did) {
		t.Errorf("before: %s", body)
	}
	n.private.restart(t, func(c *holdserver.Config) {
		err := holdserver.Command(t.Context(), *c, slog.New(slog.DiscardHandler), "crew set",
			map[string]string{"member": n.alice.DID, "permissions": "blob:read,blob:write"}, func(holdserver.Line) {})
		if err != nil {
			t.Fatal(err)
		}
	})
	record := []byte(`{"$type":"io.atcr.hold.crew","member":"` + n.alice.DID + `","role":"write","permissions":["blob:write"],"addedAt":"2026-01-01T00:00:00Z"}`)
	for _, hold := range []string{n.private.did, n.bob.DID, "did:web:nothing.example"} {
		commit := index.Commit{DID: syntax.DID(hold), Changes: []index.Change{{Collection: atcr.HoldCrewNSID, Rkey: "a", CID: "x", Value: record}}}
		if err := n.app.Load().view.index.Write(t.Context(), []index.Commit{commit}, index.Cursor{}); err != nil {
			t.Fatal(err)
		}
	}
	if body := offered(); !strings.Contains(body, n.private.did) || strings.Contains(body, n.bob.DID) || strings.Contains(body, "nothing.example") {
		t.Errorf("after: %s", body)
	}
}

// Would catch a hold that became private and is still asked as nobody, which refuses people who may read there; and
// one that became public of which nobody knows after a minute.
func TestHoldChangesItsMind(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	alice := n.as(n.alice, "alice.test/app")
	image := newImage("one")
	alice.push("alice.test/app", image, "1.0")
	layer := "/v2/alice.test/app/blobs/" + oci.FromBytes(image.layer).String()
	n.nobody().must(200, n.nobody().do(http.MethodHead, layer, nil))
	n.public.restart(t, func(c *holdserver.Config) { c.Public, c.AllowAllCrew = false, false })
	pull := n.withScope(n.alice.Handle+":"+n.alice.AppPassword, "repository:alice.test/app:pull")
	pull.must(200, pull.do(http.MethodHead, layer, nil)) // the owner, at once: the hold refused nobody
	n.nobody().must(401, n.nobody().do(http.MethodHead, layer, nil))
	n.nobody().must(401, n.nobody().manifest("alice.test/app", "1.0"))
	bob := n.as(n.bob, "bob.test/app")
	if got := bob.do(http.MethodPost, "/v2/bob.test/app/blobs/uploads/", nil); got.status != 403 {
		t.Errorf("a push to a hold that takes nobody any more: %d", got.status)
	}
	n.public.restart(t, func(c *holdserver.Config) { c.Public, c.AllowAllCrew = true, true })
	n.ahead.Add(int64(time.Minute))
	n.nobody().pull("alice.test/app", "1.0", image)
}

// Would catch a hold by somebody else that takes members alone, and everybody as a member, at which nobody can push.
func TestMembershipIsAskedFor(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	var joined, refused atomic.Int64
	n.public.misbehave(func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
		switch {
		case strings.HasSuffix(r.URL.Path, atcr.HoldRequestCrewNSID):
			joined.Add(1)
		case strings.HasSuffix(r.URL.Path, atcr.HoldInitiateUploadNSID) && joined.Load() == 0:
			refused.Add(1)
			xrpc.WriteError(w, xrpc.Errorf(403, "NotCrew", "members alone"))
			return true
		}
		return false
	})
	bob := n.as(n.bob, "bob.test/app")
	bob.push("bob.test/app", newImage("one"), "1.0")
	if joined.Load() == 0 || refused.Load() != 1 {
		t.Errorf("asked %d times for membership, refused %d times", joined.Load(), refused.Load())
	}
}

// Would catch a hold whose trouble is another's, or that has no name in what people are told.
func TestOneHoldIsDown(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	n.useHold(n.bob, n.private.did)
	alice, bob := n.as(n.alice, "alice.test/app"), n.as(n.bob, "bob.test/app")
	image := newImage("one")
	alice.push("alice.test/app", image, "1.0")
	bob.push("bob.test/app", image, "1.0")
	n.private.misbehave(func(http.ResponseWriter, *http.Request, http.Handler) bool { panic(http.ErrAbortHandler) })
	n.forget()
	layer := "/blobs/" + oci.FromBytes(image.layer).String()
	for what, got := range map[string]answer{
		"a pull": bob.do(http.MethodGet, "/v2/bob.test/app"+layer, nil),
		"a push": bob.do(http.MethodPost, "/v2/bob.test/app/blobs/uploads/", nil),
	} {
		if got.status != 503 || !strings.Contains(got.body, n.private.did) || got.header.Get("Retry-After") == "" {
			t.Errorf("%s: %d %s %v", what, got.status, got.body, got.header)
		}
	}
	n.nobody().pull("alice.test/app", "1.0", image)
	alice.push("alice.test/app", newImage("two"), "2.0")
}

// Would catch a chain of holds that is followed for ever, or not as far as it may be.
func TestSuccessors(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	alice := n.as(n.alice, "alice.test/app")
	image := newImage("one")
	alice.push("alice.test/app", image, "1.0")
	chain := []*testHold{n.public}
	for range successorSteps + 1 {
		chain = append(chain, n.startHold(n.alice.DID, "HOLD_PUBLIC=true", "HOLD_ALLOW_ALL_CREW=true"))
	}
	for i, h := range chain {
		next := chain[(i+1)%len(chain)].did // the last one names the first
		h.misbehave(func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
			if strings.HasSuffix(r.URL.Path, "getRecord") {
				xrpc.WriteJSON(w, 200, map[string]any{"uri": "x", "cid": "x", "value": map[string]any{"public": true, "allowAllCrew": true, "successor": next}})
				return true
			}
			if strings.HasSuffix(r.URL.Path, "getBlob") && h == n.public {
				xrpc.WriteError(w, xrpc.Errorf(404, "BlobNotFound", "gone"))
				return true
			}
			return false
		})
	}
	n.useHold(n.alice, chain[successorSteps].did)
	alice.upload("alice.test/app", image.layer)
	n.restart()
	n.ahead.Add(int64(recentFor)) // what came where is no longer remembered: the record says it
	n.useHold(n.alice, n.public.did)
	layer := "/v2/alice.test/app/blobs/" + oci.FromBytes(image.layer).String()
	got := n.nobody().do(http.MethodGet, layer, nil)
	if got.status != 307 || !strings.HasPrefix(got.header.Get("Location"), chain[successorSteps].url) {
		t.Errorf("five steps away: %d %q", got.status, got.header.Get("Location"))
	}
	before := n.public.asked.Load()
	if got := n.nobody().do(http.MethodGet, "/v2/alice.test/app/blobs/"+oci.FromBytes(image.config).String(), nil); got.status != 404 {
		t.Errorf("nowhere in a ring of holds: %d", got.status)
	}
	if asked := n.public.asked.Load() - before; asked > 2 {
		t.Errorf("the first hold was asked %d times", asked)
	}
}

// Would catch an index whose manifests may be missing although the operator does not want that, and one that is
// refused although they are there.
func TestSparseIndexesCanBeRefused(t *testing.T) {
	t.Parallel()
	n := newNetwork(t, "ATCR_SPARSE_INDEXES=false")
	alice := n.as(n.alice, "alice.test/app", "alice.test/other")
	image := newImage("one")
	alice.push("alice.test/app", image, image.digest.String())
	alice.push("alice.test/other", newImage("two"), "2.0")
	index := func(digests ...oci.Digest) []byte {
		children := []string{}
		for _, d := range digests {
			children = append(children, `{"mediaType":"`+oci.MediaTypeImageManifest+`","digest":"`+d.String()+`","size":1}`)
		}
		return []byte(`{"schemaVersion":2,"mediaType":"` + oci.MediaTypeImageIndex + `","manifests":[` + strings.Join(children, ",") + `]}`)
	}
	put := func(raw []byte) answer {
		return alice.do(http.MethodPut, "/v2/alice.test/app/manifests/multi", raw, "Content-Type", oci.MediaTypeImageIndex)
	}
	alice.must(201, put(index()))
	alice.must(201, put(index(image.digest)))
	alice.must(201, alice.do(http.MethodPut, "/v2/alice.test/app/manifests/nested", index(oci.FromBytes(index(image.digest))), "Content-Type", oci.MediaTypeImageIndex))
	for _, raw := range [][]byte{index(image.digest, "sha256:"+zeros), index(newImage("two").digest)} {
		if got := put(raw); got.status != 400 || got.code() != "MANIFEST_BLOB_UNKNOWN" {
			t.Errorf("%d %s", got.status, got.body)
		}
	}
}

// Would catch a blob that is looked for where it was learnt last, and is no longer, although the manifest that is pulled
// names another hold, which has it.
func TestBlobAtTwoHolds(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	alice := n.scoped(n.alice, "pull,push,delete", "alice.test/app")
	one, two := newImage("one"), newImage("two")
	two.layer = one.layer
	two.manifest = []byte(`{"schemaVersion":2,"config":` + text(descriptor("application/x", two.config)) + `,"layers":[` + text(descriptor("application/x", two.layer)) + `]}`)
	two.digest = oci.FromBytes(two.manifest)
	alice.push("alice.test/app", one, "1")
	second := n.startHold(n.alice.DID, "HOLD_PUBLIC=true", "HOLD_ALLOW_ALL_CREW=true")
	n.useHold(n.alice, second.did)
	n.forget()
	alice.push("alice.test/app", two, "2")
	n.nobody().pull("alice.test/app", "1", one)
	n.nobody().pull("alice.test/app", "2", two)
	alice.must(202, alice.do(http.MethodDelete, "/v2/alice.test/app/manifests/"+two.digest.String(), nil))
	second.misbehave(func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
		if !strings.HasSuffix(r.URL.Path, "getBlob") {
			return false
		}
		xrpc.WriteError(w, xrpc.Errorf(404, "BlobNotFound", "collected"))
		return true
	})
	n.forget()
	n.nobody().pull("alice.test/app", "1", one)
}

// Would catch a token that was signed with a key that is its person's no longer, and has a hold refuse them for the rest of
// its half hour.
func TestOldTokenIsRefused(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	n.app.Load().sessions.RefuseFragment(syntax.DID(n.public.did)) // a hold that takes the bare DID alone
	alice := n.as(n.alice, "alice.test/app")
	var first atomic.Pointer[string]
	n.public.misbehave(func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
		shown := r.Header.Get("Authorization")
		if !strings.HasSuffix(r.URL.Path, atcr.HoldInitiateUploadNSID) || first.CompareAndSwap(nil, &shown) || shown != *first.Load() {
			return false
		}
		xrpc.WriteError(w, xrpc.Errorf(401, "InvalidToken", "signed by nobody"))
		return true
	})
	alice.must(202, alice.do(http.MethodPost, "/v2/alice.test/app/blobs/uploads/", nil))
	n.ahead.Add(int64(20 * time.Second))
	alice.must(202, alice.do(http.MethodPost, "/v2/alice.test/app/blobs/uploads/", nil))
}
