package appview

import (
	"bytes"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"

	"atcr.io/internal/devnet"
	"atcr.io/internal/oci"
	"atcr.io/test/databases"
)

// second is another process of the same AppView, on the same database, reached at a door of its own.
func (n *network) second() *network {
	n.t.Helper()
	other := &network{Network: n.Network, t: n.t, public: n.public, private: n.private, config: n.config, alice: n.alice, bob: n.bob}
	l, port := listenLocal(n.t)
	other.base = "http://127.0.0.1:" + strconv.Itoa(port) // a proxy's place: its Locations are paths
	other.serveAppView(l)
	return other
}

// through is the same person with the same token, at another process.
func (u user) through(n *network) user { return user{n, u.authorization} }

// Would catch whatever one process knows and another does not: a proxy in front of them sends each request
// where it likes.
func TestTwoProcesses(t *testing.T) {
	t.Parallel()
	one := newNetwork(t, "ATCR_DATABASE_URL="+databases.NewPostgres(t))
	two := one.second()
	alice := one.as(one.alice, "alice.test/app", "alice.test/other")
	image, next := newImage("first"), newImage("second")

	// A tag and its moves, a delete, and a list are seen at once, whoever asked before.
	two.nobody().must(404, two.nobody().manifest("alice.test/app", "latest"))
	alice.push("alice.test/app", image, "latest")
	two.nobody().pull("alice.test/app", "latest", image)
	alice.through(two).push("alice.test/app", next, "latest", "2.0")
	one.nobody().pull("alice.test/app", "latest", next)
	two.nobody().pull("alice.test/app", "latest", next)
	tags := func(n *network) string {
		return n.nobody().must(200, n.nobody().do(http.MethodGet, "/v2/alice.test/app/tags/list", nil)).body
	}
	if got := tags(one) + tags(two); strings.Count(got, `"2.0"`) != 2 {
		t.Errorf("tags: %s", got)
	}
	alice.must(202, alice.do(http.MethodDelete, "/v2/alice.test/app/manifests/2.0", nil))
	two.nobody().must(404, two.nobody().manifest("alice.test/app", "2.0"))
	if got := tags(one) + tags(two); strings.Contains(got, `"2.0"`) {
		t.Errorf("tags afterwards: %s", got)
	}
}

// Would catch a blob that is gone in the process that deleted it alone.
func TestDeleteInTwoProcesses(t *testing.T) {
	t.Parallel()
	one := newNetwork(t, "ATCR_DATABASE_URL="+databases.NewPostgres(t))
	two := one.second()
	alice := one.as(one.alice, "alice.test/app")
	image := newImage("deleted")
	alice.push("alice.test/app", image, "latest")
	layer := "/v2/alice.test/app/blobs/" + oci.FromBytes(image.layer).String()
	two.nobody().must(200, two.nobody().do(http.MethodHead, layer, nil))
	alice.must(202, alice.do(http.MethodDelete, layer, nil))
	alice.through(two).must(404, alice.through(two).do(http.MethodHead, layer, nil))
	alice.through(two).upload("alice.test/app", image.layer)
	one.nobody().must(200, one.nobody().do(http.MethodHead, layer, nil))
}

// Would catch an upload that is bound to the process that began it: by chunks that come now here, now
// there.
func TestUploadThroughTwoProcesses(t *testing.T) {
	t.Parallel()
	one := newNetwork(t, "ATCR_DATABASE_URL="+databases.NewPostgres(t))
	two := one.second()
	alice := [2]user{one.as(one.alice, "alice.test/app")}
	alice[1] = alice[0].through(two)
	chunks := []string{"one ", "upload ", "through ", "two ", "processes"}
	location := alice[0].must(202, alice[0].do(http.MethodPost, "/v2/alice.test/app/blobs/uploads/", nil)).header.Get("Location")
	sent := 0
	for i, chunk := range chunks {
		at := alice[(i+1)%2]
		a := at.must(202, at.do(http.MethodPatch, location, []byte(chunk), "Content-Range", fmt.Sprintf("%d-%d", sent, sent+len(chunk)-1)))
		location, sent = a.header.Get("Location"), sent+len(chunk)
		other := alice[i%2]
		if got := other.must(204, other.do(http.MethodGet, location, nil)).header.Get("Range"); got != fmt.Sprintf("0-%d", sent-1) {
			t.Errorf("after %d chunks: %s", i+1, got)
		}
	}
	d := oci.FromBytes([]byte(strings.Join(chunks, "")))
	alice[1].must(201, alice[1].do(http.MethodPut, location+"?digest="+d.String(), nil))
	for _, who := range append(alice[:], one.nobody(), two.nobody()) { // before a manifest names it
		who.must(307, who.do(http.MethodGet, "/v2/alice.test/app/blobs/"+d.String(), nil))
	}
}

// Would catch an upload by parts that only the process knows which began it, and one that is lost with it.
func TestPartsThroughTwoProcesses(t *testing.T) {
	t.Parallel()
	one := newNetwork(t, "ATCR_DATABASE_URL="+databases.NewPostgres(t))
	strangeHold(one.public) // it knows parts alone
	two := one.second()
	alice := one.as(one.alice, "alice.test/app")
	blob := bytes.Repeat([]byte("0123456789abcdef"), (2*partBytes+4096)/16)
	location := alice.must(202, alice.do(http.MethodPost, "/v2/alice.test/app/blobs/uploads/", nil)).header.Get("Location")
	for i, end := range []int{100, partBytes + 200, 2*partBytes - 1} {
		at, begin := alice.through([]*network{two, one}[i%2]), []int{0, 100, partBytes + 200}[i]
		a := at.must(202, at.do(http.MethodPatch, location, blob[begin:end], "Content-Range", fmt.Sprintf("%d-%d", begin, end-1)))
		if got := a.header.Get("Range"); got != fmt.Sprintf("0-%d", end-1) {
			t.Errorf("after %d bytes: %s", end, got)
		}
		location = a.header.Get("Location")
	}
	one.restart()
	d := oci.FromBytes(blob)
	alice.must(201, alice.do(http.MethodPut, location+"?digest="+d.String(), blob[2*partBytes-1:]))
	head := alice.through(two).must(200, alice.through(two).do(http.MethodHead, "/v2/alice.test/app/blobs/"+d.String(), nil))
	if head.header.Get("Content-Length") != strconv.Itoa(len(blob)) {
		t.Errorf("%v", head.header)
	}
}

// Would catch two processes that refresh one session twice, after which it is dead: a person is signed out in
// the middle of a push.
func TestSessionOfTwoProcesses(t *testing.T) {
	t.Parallel()
	one := newNetwork(t, "ATCR_DATABASE_URL="+databases.NewPostgres(t))
	two := one.second()
	alice := one.as(one.alice, "alice.test/app")
	refreshed := one.PDS.Inject(devnet.Method("com.atproto.server.refreshSession"), func(w http.ResponseWriter, r *http.Request, next http.Handler) { next.ServeHTTP(w, r) })
	var mu sync.Mutex
	spent := false
	one.PDS.Inject(func(r *http.Request) bool { // the access token has ended: every call says so until it is renewed
		mu.Lock()
		defer mu.Unlock()
		spent = spent || refreshed.Fired() > 0
		return !spent && strings.Contains(r.URL.Path, "getServiceAuth")
	}, devnet.Refuse(400, "ExpiredToken", "Token has expired"))
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			who := alice.through([]*network{one, two}[i%2])
			if a := who.do(http.MethodPost, "/v2/alice.test/app/blobs/uploads/", nil); a.status != 202 {
				t.Errorf("%d: %d %s", i, a.status, a.body)
			}
		})
	}
	wg.Wait()
	if refreshed.Fired() != 1 {
		t.Errorf("%d refreshes", refreshed.Fired())
	}
	alice.through(two).push("alice.test/app", newImage("afterwards"), "latest")
}
