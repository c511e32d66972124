package appview

import (
	"bytes"
	"net/http"
	"strings"
	"testing"
	"time"

	holdserver "atcr.io/internal/hold"
	"atcr.io/internal/oci"
)

// Would catch a quota that is used up and of which the pusher is not told in words: in the course of an upload, and
// where a manifest names what others have sent.
func TestQuotaInWords(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	n.public.restart(t, func(c *holdserver.Config) {
		c.OpenQuota = "3000"
		if err := c.Validate(); err != nil {
			t.Fatal(err)
		}
	})
	alice, bob := n.as(n.alice, "alice.test/app"), n.as(n.bob, "bob.test/app")
	shared := newImage("shared")
	shared.layer = bytes.Repeat([]byte("x"), 2500)
	shared.manifest = []byte(`{"schemaVersion":2,"config":` + text(descriptor("application/x", shared.config)) + `,"layers":[` + text(descriptor("application/x", shared.layer)) + `]}`)
	shared.digest = oci.FromBytes(shared.manifest)
	alice.push("alice.test/app", shared, "1.0") // the owner has no limit
	inWords := func(what string, a answer) {
		t.Helper()
		if a.status != 403 || a.code() != "DENIED" || !strings.Contains(a.body, "used up") {
			t.Errorf("%s: %d %s", what, a.status, a.body)
		}
	}
	bob.upload("bob.test/app", bytes.Repeat([]byte("y"), 2000))
	location := bob.must(202, bob.do(http.MethodPost, "/v2/bob.test/app/blobs/uploads/", nil)).header.Get("Location")
	inWords("in its course", bob.do(http.MethodPatch, location, bytes.Repeat([]byte("z"), 2000)))
	bob.must(200, bob.do(http.MethodHead, "/v2/bob.test/app/blobs/"+oci.FromBytes(shared.layer).String(), nil))
	inWords("a manifest of what others sent", bob.put("bob.test/app", "1.0", shared.manifest))
	bob.upload("bob.test/app", []byte("little"))
}

// Would catch a pusher who is not told of a refusal because they sent the blobs once, days ago, and the hold counts them for
// them no longer.
func TestSentLongAgo(t *testing.T) {
	t.Parallel()
	now := time.Now()
	p := newPlaces(collections{}, nil, nil, func() time.Time { return now })
	blob := descriptor("application/x", []byte("x"))
	p.sent("did:web:hold.test", "did:plc:any", blob.Digest)
	if !p.uploadedAll("did:web:hold.test", "did:plc:any", []oci.Descriptor{blob}) {
		t.Error("what was just sent counts as others'")
	}
	now = now.Add(48 * time.Hour)
	if p.uploadedAll("did:web:hold.test", "did:plc:any", []oci.Descriptor{blob}) {
		t.Error("what was sent two days ago counts still")
	}
}
