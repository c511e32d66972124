package appview

import (
	"net/http"
	"testing"

	"atcr.io/api/atcr"
	"atcr.io/internal/oci"
)

// Would catch a deleted blob that is still there, also after a restart; one that is gone for others who have it
// too, or for good; and a stranger who deletes.
func TestDeleteBlob(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	alice := n.as(n.alice, "alice.test/app", "alice.test/other")
	bob := n.as(n.bob, "alice.test/app")
	image := newImage("deleted")
	alice.push("alice.test/app", image, "1.0")
	alice.push("alice.test/other", image, "1.0")
	path := func(repository string) string {
		return "/v2/alice.test/" + repository + "/blobs/" + oci.FromBytes(image.layer).String()
	}
	if a := bob.do(http.MethodDelete, path("app"), nil); a.status/100 != 4 {
		t.Fatalf("a stranger: %d %s", a.status, a.body)
	}
	if a := alice.must(202, alice.do(http.MethodDelete, path("app"), nil)); a.body != "" {
		t.Errorf("%s", a.body)
	}
	gone := func() {
		t.Helper()
		for _, who := range []user{alice, n.nobody()} {
			for _, method := range []string{http.MethodHead, http.MethodGet} {
				who.must(404, who.do(method, path("app"), nil))
			}
		}
		alice.pull("alice.test/other", "1.0", image)
	}
	gone()
	n.restart()
	gone()
	if a := alice.must(404, alice.do(http.MethodDelete, path("app"), nil)); a.code() != "BLOB_UNKNOWN" {
		t.Errorf("deleted twice: %s", a.body)
	}
	alice.must(202, alice.do(http.MethodPost, "/v2/alice.test/app/blobs/uploads/?mount="+oci.FromBytes(image.layer).String()+"&from=alice.test/app", nil))
	alice.upload("alice.test/app", image.layer)
	alice.pull("alice.test/app", "1.0", image)
	alice.must(202, alice.do(http.MethodDelete, path("app"), nil))
	alice.must(201, alice.do(http.MethodPost, "/v2/alice.test/app/blobs/uploads/?mount="+oci.FromBytes(image.layer).String()+"&from=alice.test/other", nil))
	alice.pull("alice.test/app", "1.0", image)
	alice.must(202, alice.do(http.MethodDelete, path("app"), nil))
	alice.must(201, alice.put("alice.test/app", "2.0", image.manifest)) // which names it: it is part of the repository again
	alice.pull("alice.test/app", "2.0", image)
}

// Would catch a deleted blob that stays hidden though its owner pushed it again through another AppView, and one that is
// there again because an old manifest, which names it too, was read or written again.
func TestDeletedBlobPushedElsewhere(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	alice := n.as(n.alice, "alice.test/app")
	old, again := newImage("deleted"), newImage("deleted")
	again.manifest = append(again.manifest, '\n')
	again.digest = oci.FromBytes(again.manifest)
	alice.push("alice.test/app", old, "1.0")
	path := "/v2/alice.test/app/blobs/" + oci.FromBytes(old.layer).String()
	alice.must(202, alice.do(http.MethodDelete, path, nil))
	record := n.records(n.alice, atcr.ManifestNSID)[old.digest.Hex()]
	n.putRecord(n.alice, atcr.ManifestNSID, old.digest.Hex(), record)
	record["layers"].([]any)[0].(map[string]any)["annotations"] = map[string]any{"a": "b"} //nolint:errcheck,forcetypeassert // else it panics
	n.putRecord(n.alice, atcr.ManifestNSID, old.digest.Hex(), record)                      // another one, as old
	n.forget()
	alice.must(200, alice.do(http.MethodGet, "/v2/alice.test/app/manifests/1.0", nil, "Cache-Control", "no-cache"))
	alice.must(404, alice.do(http.MethodGet, path, nil))

	second := n.another(n.public)
	second.ahead.Store(n.ahead.Load())
	second.as(n.alice, "alice.test/app").push("alice.test/app", again, "2.0")
	alice.must(200, alice.do(http.MethodGet, "/v2/alice.test/app/manifests/2.0", nil))
	for _, who := range []user{alice, n.nobody()} {
		who.must(200, who.do(http.MethodHead, path, nil))
	}
	alice.pull("alice.test/app", "2.0", again)
	n.restart()
	alice.pull("alice.test/app", "2.0", again)
	alice.upload("alice.test/app", old.layer)
	alice.must(202, alice.do(http.MethodDelete, "/v2/alice.test/app/manifests/"+again.digest.String(), nil))
	alice.pull("alice.test/app", "1.0", old) // since it was uploaded here, whatever names it
	n.forget()
	alice.must(202, alice.do(http.MethodDelete, path, nil))
	alice.must(404, alice.do(http.MethodGet, path, nil))
}
