package appview

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"atcr.io/internal/devnet"
	"atcr.io/internal/oci"
	"atcr.io/internal/session"
	"atcr.io/internal/xrpc"
)

// Would catch a PDS's trouble that leaves something half-written, takes memory or time without end, or
// reaches the user as a riddle.
func TestTroubledPDS(t *testing.T) {
	t.Parallel()
	reset := time.Now().Add(time.Minute)
	troubles := map[string]struct {
		fault  devnet.Fault
		status int
	}{
		"down":     {devnet.Down(), 503},
		"garbage":  {devnet.Garbage(), 502},
		"endless":  {devnet.Endless(0), 502},
		"redirect": {devnet.Redirect("http://localhost:1/"), 502},
		"limiting": {devnet.Limited(reset), 429},
		"refusing": {devnet.Refuse(403, "AccountDeactivated", "no"), 502},
		"page":     {page404, 502},
	}
	for what, tt := range troubles {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			n := newNetwork(t)
			alice := n.as(n.alice, "alice.test/app")
			image := newImage("one")
			alice.push("alice.test/app", image)
			before := n.rev(n.alice)
			for _, nsid := range []string{"com.atproto.repo.uploadBlob", applyWritesNSID, "com.atproto.repo.getRecord"} {
				fault := n.PDS.Inject(devnet.Method(nsid), tt.fault)
				got := alice.put("alice.test/app", "1.0", image.manifest)
				fault.Remove()
				if got.status != tt.status || got.code() == "" || !strings.Contains(got.body, "PDS") || fault.Fired() == 0 {
					t.Errorf("%s: %d %s (met %d times)", nsid, got.status, got.body, fault.Fired())
				}
				if tt.status == 429 && got.header.Get("Retry-After") == "" || tt.status == 503 && got.header.Get("Retry-After") == "" {
					t.Errorf("%s: %d without Retry-After", nsid, got.status)
				}
				n.forget()
			}
			if n.rev(n.alice) != before {
				t.Error("something was written")
			}
			alice.must(201, alice.put("alice.test/app", "1.0", image.manifest))
			for _, nsid := range []string{"com.atproto.sync.getBlob", "com.atproto.repo.getRecord"} {
				n.anew() // an AppView that never saw the image
				fault := n.PDS.Inject(devnet.Method(nsid), tt.fault)
				got := n.nobody().manifest("alice.test/app", "1.0")
				fault.Remove()
				if got.status != tt.status || got.code() == "" || !strings.Contains(got.body, n.alice.DID) {
					t.Errorf("pull, %s: %d %s", nsid, got.status, got.body)
				}
				n.forget()
			}
			n.anew() // what began under the fault may end now, and is kept for seconds
			n.nobody().pull("alice.test/app", "1.0", image)
		})
	}
}

// Would catch bytes that are served, or recorded, though they are others than their digest says.
func TestLyingPDS(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	alice := n.as(n.alice, "alice.test/app")
	image := newImage("one")
	alice.push("alice.test/app", image)
	lie := n.PDS.Inject(devnet.Method("com.atproto.repo.uploadBlob"), func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		xrpc.WriteJSON(w, 200, map[string]any{"blob": map[string]any{"$type": "blob", "ref": map[string]string{"$link": cidOf(oci.FromBytes([]byte("other")))}, "mimeType": "x/y", "size": 1}})
	})
	if got := alice.put("alice.test/app", "1.0", image.manifest); got.status != 502 || len(n.records(n.alice, "io.atcr.manifest")) != 0 {
		t.Errorf("another CID: %d %s", got.status, got.body)
	}
	lie.Remove()
	alice.must(201, alice.put("alice.test/app", "1.0", image.manifest))
	n.anew()
	lie = n.PDS.Inject(devnet.Method("com.atproto.sync.getBlob"), func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		_, _ = w.Write([]byte("pretended"))
	})
	if got := n.nobody().manifest("alice.test/app", "1.0"); got.status != 502 || strings.Contains(got.body, "pretended") {
		t.Errorf("other bytes: %d %s", got.status, got.body)
	}
	lie.Remove()
	n.nobody().pull("alice.test/app", "1.0", image)
}

// Would catch a push that fails because somebody else wrote the same record in between, which the reference
// PDS answers with a plain 500; and one that is tried without end.
func TestConflictingWrites(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	alice := n.as(n.alice, "alice.test/app")
	image := newImage("one")
	alice.push("alice.test/app", image, "other")
	var done bool
	conflict := n.PDS.Inject(devnet.Method(applyWritesNSID), func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if done {
			next.ServeHTTP(w, r)
			return
		}
		done = true
		n.putRecord(n.alice, "io.atcr.tag", "app:1.0", map[string]any{"$type": "io.atcr.tag", "repository": "app", "tag": "1.0", "createdAt": "2026-01-01T00:00:00Z"})
		xrpc.WriteError(w, xrpc.Errorf(500, "InternalServerError", "Internal Server Error"))
	})
	alice.must(201, alice.put("alice.test/app", "1.0", image.manifest))
	if tag := n.records(n.alice, "io.atcr.tag")["app:1.0"]; conflict.Fired() != 2 || tag["manifestDigest"] != image.digest.String() || tag["createdAt"] != "2026-01-01T00:00:00Z" {
		t.Errorf("after %d writes: %v", conflict.Fired(), tag)
	}
	conflict.Remove()
	always := n.PDS.Inject(devnet.Method(applyWritesNSID), devnet.Refuse(500, "InternalServerError", "no"))
	if got := alice.put("alice.test/app", "2.0", image.manifest); got.status != 502 || always.Fired() != writeAttempts {
		t.Errorf("%d after %d writes", got.status, always.Fired())
	}
}

// Would catch a manifest whose blobs are not where a pull will look for them.
func TestMissingBlobs(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	alice := n.as(n.alice, "alice.test/app")
	image := newImage("one")
	alice.upload("alice.test/app", image.config)
	got := alice.put("alice.test/app", "1.0", image.manifest)
	if got.status != 400 || got.code() != "MANIFEST_BLOB_UNKNOWN" || !strings.Contains(got.body, oci.FromBytes(image.layer).String()) {
		t.Errorf("%d %s", got.status, got.body)
	}
	alice.upload("alice.test/app", image.layer)
	alice.must(201, alice.put("alice.test/app", "1.0", image.manifest))
	// At another hold they are not.
	n.useHold(n.alice, n.startHold(n.alice.DID).did)
	if got := alice.put("alice.test/app", "1.0", image.manifest); got.code() != "MANIFEST_BLOB_UNKNOWN" {
		t.Errorf("at another hold: %d %s", got.status, got.body)
	}
	// Layers that are elsewhere by intent need not be here.
	foreign := `{"schemaVersion":2,"config":` + text(descriptor("application/x", image.config)) + `,"layers":[{"mediaType":"application/x","digest":"sha256:` + zeros + `","size":1,"urls":["https://x.test/"]}]}`
	n.useHold(n.alice, n.public.did)
	alice.must(201, alice.put("alice.test/app", "foreign", []byte(foreign)))
}

// Would catch an image that is taken and that no client pulls, since its manifest says another size of a blob than it has.
func TestWrongSizes(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	alice := n.as(n.alice, "alice.test/app")
	image := newImage("one")
	image.config = []byte("{}")
	alice.push("alice.test/app", image)
	config, layer := descriptor("application/vnd.oci.empty.v1+json", image.config), descriptor("application/x", image.layer)
	larger, smaller, elsewhere := layer, config, descriptor("application/x", []byte("is not here"))
	larger.Size++
	smaller.Size--
	elsewhere.Size, elsewhere.URLs = 12345, []string{"https://x.test/"}
	put := func(mediaType string, config oci.Descriptor, layers ...oci.Descriptor) answer {
		raw := []byte(text(map[string]any{"schemaVersion": 2, "config": config, "layers": layers}))
		return alice.do(http.MethodPut, "/v2/alice.test/app/manifests/1.0", raw, "Content-Type", mediaType)
	}
	wrong := func(when string, of, has oci.Descriptor, got answer) {
		t.Helper()
		says := fmt.Sprintf("%s has %d bytes, and the hold %s has %d ", of.Digest, of.Size, n.public.did, has.Size)
		if got.status != 400 || got.code() != "MANIFEST_INVALID" || !strings.Contains(got.body, says) {
			t.Errorf("%s: %d %s", when, got.status, got.body)
		}
	}
	check := func(when string) {
		t.Helper()
		wrong(when+", a layer", larger, layer, put(oci.MediaTypeImageManifest, config, layer, larger))
		wrong(when+", a config", smaller, config, put(oci.MediaTypeDockerManifest, smaller, layer))
	}
	before := n.rev(n.alice)
	n.restart() // what was uploaded through it, it does not ask the hold about
	alice = n.as(n.alice, "alice.test/app")
	check("asked for the manifest")
	check("asked before")
	n.restart()
	alice = n.as(n.alice, "alice.test/app")
	for _, d := range []oci.Descriptor{config, layer} {
		alice.must(200, alice.do(http.MethodHead, "/v2/alice.test/app/blobs/"+d.Digest.String(), nil))
	}
	check("asked by HEAD")
	if n.rev(n.alice) != before {
		t.Error("something was written")
	}
	alice.must(201, put(oci.MediaTypeImageManifest, config, layer, config, elsewhere))
	alice.must(201, put("application/vnd.example+json", config, larger)) // where size may mean something else
}

// Would catch an image that is taken although the hold's storage has not made objects of its blobs yet, and could not.
func TestJoiningBlobs(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	alice := n.as(n.alice, "alice.test/app")
	image := newImage("one")
	var joining, asked, status, waits atomic.Int32
	n.public.misbehave(func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
		switch {
		case r.Method == http.MethodPut && joining.Load() == 1:
			w.Header().Set("Atcr-Joining", "true")
		case r.Method == http.MethodHead && waits.Load() > 0:
			asked.Add(1)
			if waits.Add(-1) == 0 {
				status.Store(0)
			}
			w.Header().Set("Atcr-Joining", "true")
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(http.StatusServiceUnavailable)
			return true
		case r.Method == http.MethodHead && status.Load() != 0:
			asked.Add(1)
			w.WriteHeader(int(status.Load()))
			return true
		}
		return false
	})
	push := func(how string, want, wantAsked int, code string) {
		t.Helper()
		asked.Store(0)
		alice.upload("alice.test/app", image.config)
		alice.upload("alice.test/app", image.layer)
		got := alice.put("alice.test/app", "1.0", image.manifest)
		if got.status != want || got.code() != code || (asked.Load() > 0) != (wantAsked > 0) {
			t.Errorf("%s: %d %s, asked %d times", how, got.status, got.body, asked.Load())
		}
	}
	joining.Store(1)
	status.Store(http.StatusServiceUnavailable)
	push("the hold is busy", 503, 1, "UNAVAILABLE")
	status.Store(http.StatusNotFound)
	push("could not be joined", 400, 1, "MANIFEST_BLOB_UNKNOWN")
	waits.Store(3)
	push("joined in the end", 201, 3, "")
	n.restart()
	alice = n.as(n.alice, "alice.test/app")
	joining.Store(0)
	status.Store(http.StatusServiceUnavailable)
	push("there at once", 201, 0, "")
}

// Would catch a manifest that is written though no hold can be told of so many blobs, and would delete them; and one that
// names as many as a hold takes, and is refused here.
func TestManyBlobs(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	alice := n.as(n.alice, "alice.test/app")
	image := newImage("one")
	alice.push("alice.test/app", image)
	manifest := func(layers int) []byte {
		layer := descriptor("application/x", image.layer)
		return []byte(text(map[string]any{"schemaVersion": 2, "config": descriptor("application/x", image.config), "layers": slices.Repeat([]oci.Descriptor{layer}, layers)}))
	}
	before := n.rev(n.alice)
	if got := alice.put("alice.test/app", "1.0", manifest(maxBlobs)); got.status != 400 || got.code() != "MANIFEST_INVALID" || !strings.Contains(got.body, "1001") || n.rev(n.alice) != before {
		t.Errorf("%d %s", got.status, got.body)
	}
	alice.must(201, alice.put("alice.test/app", "1.0", manifest(maxBlobs-1)))
	eventually(t, "the hold takes the message", func() bool { return len(n.layerRecords(n.public)) == 2 })
}

func text(v any) string {
	raw, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(raw)
}

// Would catch a hold that is down, or lies, and leaves the user without its name.
func TestTroubledHold(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	alice := n.as(n.alice, "alice.test/app")
	image := newImage("one")
	alice.push("alice.test/app", image, "1.0")
	down := func(http.ResponseWriter, *http.Request, http.Handler) bool { panic(http.ErrAbortHandler) }
	garbage := func(w http.ResponseWriter, _ *http.Request, _ http.Handler) bool {
		_, _ = w.Write([]byte("<html>"))
		return true
	}
	redirect := func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
		http.Redirect(w, r, "http://localhost:1/", http.StatusTemporaryRedirect)
		return true
	}
	for what, tt := range map[string]struct {
		fault  fault
		status int
	}{"down": {down, 503}, "garbage": {garbage, 502}, "redirect": {redirect, 502}} {
		n.public.misbehave(tt.fault)
		for _, fresh := range []bool{false, true} { // with what is known of the hold, and without
			if fresh {
				n.forget()
			}
			got := alice.do(http.MethodPost, "/v2/alice.test/app/blobs/uploads/", nil)
			if got.status != tt.status || got.code() == "" || !strings.Contains(got.body, n.public.did) {
				t.Errorf("%s (%v): POST: %d %s", what, fresh, got.status, got.body)
			}
		}
		n.public.behave()
		n.forget()
	}
	location := alice.must(202, alice.do(http.MethodPost, "/v2/alice.test/app/blobs/uploads/", nil)).header.Get("Location")
	n.public.misbehave(down)
	if got := alice.do(http.MethodPatch, location, []byte("bytes")); got.status != 503 || !strings.Contains(got.body, n.public.did) || strings.Contains(got.body, "/u/") {
		t.Errorf("PATCH: %d %s", got.status, got.body)
	}
	n.public.misbehave(garbage)
	// A page with 200 is some proxy's, and no yes: neither to the calls of an upload, nor to what is built on it.
	for _, method := range []string{http.MethodGet, http.MethodPatch, http.MethodDelete, http.MethodPut} {
		target := location
		if method == http.MethodPut {
			target += "?digest=" + oci.FromBytes([]byte("bytes")).String()
		}
		if got := alice.do(method, target, nil); got.status != 502 || !strings.Contains(got.body, n.public.did) {
			t.Errorf("%s: %d %s", method, got.status, got.body)
		}
	}
	n.public.behave()
	never := newImage("never stored")
	never.manifest = []byte(strings.ReplaceAll(string(never.manifest), oci.FromBytes(never.layer).String(), oci.FromBytes([]byte("bytes")).String()))
	alice.upload("alice.test/app", never.config)
	if got := alice.put("alice.test/app", "2.0", never.manifest); got.code() != "MANIFEST_BLOB_UNKNOWN" {
		t.Errorf("a manifest of what the hold never took: %d %s", got.status, got.body)
	}
	n.nobody().pull("alice.test/app", "1.0", image)
}

// Would catch a client that is sent where a lying hold wants it.
func TestLyingHold(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	n.useHold(n.bob, n.private.did)
	bob := n.as(n.bob, "bob.test/app")
	image := newImage("one")
	bob.push("bob.test/app", image, "1.0")
	for _, target := range []string{"javascript:alert(1)", "http://user:pass@localhost/x", "ftp://localhost/x", "//x", "", "http://"} {
		n.private.misbehave(func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
			if r.URL.Query().Get("method") == "" {
				return false
			}
			xrpc.WriteJSON(w, 200, map[string]string{"url": target})
			return true
		})
		if got := bob.do(http.MethodGet, "/v2/bob.test/app/blobs/"+oci.FromBytes(image.layer).String(), nil); got.status != 502 {
			t.Errorf("%q: %d %q", target, got.status, got.header.Get("Location"))
		}
	}
	for _, target := range []string{"http://user@localhost/u/x", "ftp://localhost/u/x", "/u/x"} {
		n.private.misbehave(func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
			if !strings.HasSuffix(r.URL.Path, "initiateUpload") {
				return false
			}
			xrpc.WriteJSON(w, 200, map[string]string{"uploadId": "x", "uploadUrl": target})
			return true
		})
		if got := bob.do(http.MethodPost, "/v2/bob.test/app/blobs/uploads/", nil); got.status != 502 {
			t.Errorf("%q: %d %q", target, got.status, got.header.Get("Location"))
		}
	}
	n.private.behave()
	n.useHold(n.bob, "did:plc:z72i7hdynmk6r22z27h6tvur")
	if got := bob.do(http.MethodPost, "/v2/bob.test/app/blobs/uploads/", nil); got.status < 400 || !strings.Contains(got.body, "did:plc:z72i7hdynmk6r22z27h6tvur") {
		t.Errorf("no such hold: %d %s", got.status, got.body)
	}
	// Somebody's PDS is no hold, and gets no token.
	asked := n.PDS.Inject(devnet.Method("com.atproto.server.getServiceAuth"), func(w http.ResponseWriter, r *http.Request, next http.Handler) { next.ServeHTTP(w, r) })
	n.useHold(n.bob, n.alice.DID)
	if got := bob.do(http.MethodPost, "/v2/bob.test/app/blobs/uploads/", nil); got.status != 403 || !strings.Contains(got.body, "not a hold") || asked.Fired() != 0 {
		t.Errorf("a person as hold: %d %s", got.status, got.body)
	}
}

// Would catch a hold whose image is lost because another replaced it.
func TestSuccessor(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	alice := n.as(n.alice, "alice.test/app")
	image := newImage("one")
	alice.push("alice.test/app", image, "1.0")
	next := n.startHold(n.alice.DID, "HOLD_PUBLIC=true", "HOLD_ALLOW_ALL_CREW=true")
	n.useHold(n.alice, next.did)
	alice.upload("alice.test/app", image.layer)
	n.restart() // or the AppView knows that it is there
	n.public.misbehave(func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
		switch {
		case strings.HasSuffix(r.URL.Path, "getRecord"):
			xrpc.WriteJSON(w, 200, map[string]any{"uri": "x", "cid": "x", "value": map[string]any{"public": true, "successor": next.did}})
		case strings.HasSuffix(r.URL.Path, "getBlob"):
			xrpc.WriteError(w, xrpc.Errorf(404, "BlobNotFound", "gone"))
		default:
			return false
		}
		return true
	})
	n.forget()
	got := n.nobody().do(http.MethodGet, "/v2/alice.test/app/blobs/"+oci.FromBytes(image.layer).String(), nil)
	if got.status != 307 || !strings.HasPrefix(got.header.Get("Location"), next.url) {
		t.Errorf("%d %q %s", got.status, got.header.Get("Location"), got.body)
	}
	if got := n.nobody().do(http.MethodHead, "/v2/alice.test/app/blobs/"+oci.FromBytes(image.config).String(), nil); got.status != 404 {
		t.Errorf("at neither: %d", got.status)
	}
}

// Would catch internal text in an answer, and statuses that blame the wrong server.
func TestUpstreamErrors(t *testing.T) {
	t.Parallel()
	poison := errors.New("poison")
	for _, tt := range []struct {
		err    error
		status int
	}{
		{&xrpc.UpstreamError{Host: "pds.test", Err: poison}, 503},
		{&xrpc.UpstreamError{Host: "pds.test", Timeout: true, Err: poison}, 504},
		{&xrpc.UpstreamError{Host: "pds.test", Invalid: true, Status: 200, Err: poison}, 502},
		{&xrpc.UpstreamError{Host: "pds.test", Status: 500, Name: "poison", Message: "poison"}, 502},
		{&xrpc.UpstreamError{Host: "pds.test", Status: 503, Err: poison}, 503},
		{&xrpc.UpstreamError{Host: "pds.test", Status: 429, Err: poison}, 429},
		{&xrpc.UpstreamError{Host: "pds.test", Status: 400, Name: "InvalidRequest", Message: "too long", Err: poison}, 502},
		{fmt.Errorf("%w: %w", session.ErrGone, poison), 401},
		{poison, 500},
	} {
		e := oci.AsError(upstreamError("your PDS", tt.err))
		if e.HTTPStatus() != tt.status || strings.Contains(e.Message, "poison") || tt.status != 500 && tt.status != 401 && !strings.Contains(e.Message, "pds.test") {
			t.Errorf("%v: %d %q", tt.err, e.HTTPStatus(), e.Message)
		}
		if retry := e.RetryAfter > 0; (tt.status == 429 || tt.status == 503) != retry {
			t.Errorf("%v: retry after %s", tt.err, e.RetryAfter)
		}
	}
	if upstreamError("x", nil) != nil {
		t.Error("nil became an error")
	}
}

// Would catch an AppView that asks the hold for what it can write down itself, or the PDS for what it knows.
func TestCalls(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	alice := n.as(n.alice, "alice.test/app")
	image := newImage("one")
	alice.push("alice.test/app", image, "1.0")
	n.nobody().pull("alice.test/app", "1.0", image)
	pds := n.PDS.Inject(nil, func(w http.ResponseWriter, r *http.Request, next http.Handler) { next.ServeHTTP(w, r) })
	n.public.asked.Store(0)
	for range 20 {
		n.nobody().must(200, n.nobody().manifest("alice.test/app", image.digest.String()))
		got := n.nobody().must(307, n.nobody().do(http.MethodGet, "/v2/alice.test/app/blobs/"+oci.FromBytes(image.layer).String(), nil))
		if want := n.public.url + "/xrpc/com.atproto.sync.getBlob?did=" + strings.ReplaceAll(n.alice.DID, ":", "%3A") + "&cid=" + oci.FromBytes(image.layer).String(); got.header.Get("Location") != want {
			t.Errorf("Location %q, want %q", got.header.Get("Location"), want)
		}
	}
	if calls := strconv.Itoa(pds.Fired()) + " " + strconv.Itoa(int(n.public.asked.Load())); calls != "0 0" && pds.Fired() > 2 {
		t.Errorf("calls at PDS and hold: %s", calls)
	}
	// After a restart a blob is found by the owner's records.
	n.restart()
	n.nobody().must(307, n.nobody().do(http.MethodGet, "/v2/alice.test/app/blobs/"+oci.FromBytes(image.config).String(), nil))
}

// Would catch a record that counts as absent, and is forgotten, because something else was wrong; and one that is absent
// as the reference PDS says it, and counts as trouble.
func TestMissing(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		err  *xrpc.UpstreamError
		want bool
	}{
		{&xrpc.UpstreamError{Status: 400, Name: "RecordNotFound"}, true},
		{&xrpc.UpstreamError{Status: 404, Name: "BlobNotFound"}, true},
		{&xrpc.UpstreamError{Status: 400, Name: "InvalidRequest", Message: "Could not locate record: at://did:plc:x/a.b.c/d"}, true},
		{&xrpc.UpstreamError{Status: 400, Name: "InvalidRequest", Message: "Blob not found"}, true},
		{&xrpc.UpstreamError{Status: 400, Name: "InvalidRequest", Message: "Params must have the property \"cid\""}, false},
		{&xrpc.UpstreamError{Status: 400, Name: "RepoNotFound"}, false},
		{&xrpc.UpstreamError{Status: 400, Name: "RepoDeactivated"}, false},
		{&xrpc.UpstreamError{Status: 500, Name: "RecordNotFound"}, false},
		{&xrpc.UpstreamError{Status: 404}, false},
		{&xrpc.UpstreamError{Status: 400}, false},
	} {
		if got := missing(fmt.Errorf("read: %w", tt.err)); got != tt.want {
			t.Errorf("%+v: %v", tt.err, got)
		}
	}
}
