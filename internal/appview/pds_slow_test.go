package appview

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"atcr.io/internal/devnet"
	"atcr.io/internal/oci"
)

// Would catch a PDS that is slow and holds up a client without end, or leaves something half-written.
func TestSlowPDS(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	alice := n.as(n.alice, "alice.test/app")
	image := newImage("one")
	alice.push("alice.test/app", image)
	n.config.patience = 2 * time.Second
	n.restart()
	before := n.rev(n.alice)
	slow := func(nsid string, do func() answer) {
		t.Helper()
		fault := n.PDS.Inject(devnet.Method(nsid), devnet.Slow(time.Hour))
		got := do()
		fault.Remove()
		if got.status != http.StatusGatewayTimeout || got.code() == "" || !strings.Contains(got.body, "PDS") || fault.Fired() == 0 {
			t.Errorf("%s: %d %s (met %d times)", nsid, got.status, got.body, fault.Fired())
		}
		n.forget()
	}
	for _, nsid := range []string{"com.atproto.repo.uploadBlob", applyWritesNSID, "com.atproto.repo.getRecord"} {
		slow(nsid, func() answer { return alice.put("alice.test/app", "1.0", image.manifest) })
	}
	if n.rev(n.alice) != before {
		t.Error("something was written")
	}
	alice.must(201, alice.put("alice.test/app", "1.0", image.manifest))
	n.restart()
	alice = n.as(n.alice, "alice.test/app")
	slow("com.atproto.server.getServiceAuth", func() answer { return alice.do(http.MethodPost, "/v2/alice.test/app/blobs/uploads/", nil) })
	for _, read := range [][2]string{
		{"com.atproto.sync.getBlob", "/manifests/1.0"}, {"com.atproto.repo.listRecords", "/tags/list"},
		{"com.atproto.repo.listRecords", "/referrers/" + image.digest.String()},
		{"com.atproto.repo.listRecords", "/blobs/" + oci.FromBytes(image.config).String()},
	} {
		n.anew() // one that saw the image before answers from its index
		slow(read[0], func() answer { return n.nobody().do(http.MethodGet, "/v2/alice.test/app"+read[1], nil) })
	}
	n.restart()
	n.nobody().pull("alice.test/app", "1.0", image)
}
