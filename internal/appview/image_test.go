package appview

import (
	"bytes"
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"atcr.io/internal/devnet"
	"atcr.io/internal/oci"
)

// Would catch anything that breaks the true path: push by tag and digest, pull by both, as anybody, under
// the handle and the DID, in nested repositories.
func TestPushAndPull(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	alice := n.as(n.alice, "alice.test/app", "alice.test/team/app/api")
	image := newImage("one")
	alice.push("alice.test/app", image, "1.0")
	alice.push("alice.test/team/app/api", newImage("two"), "latest", newImage("two").digest.String())
	n.nobody().pull("alice.test/app", "1.0", image)
	n.nobody().pull("alice.test/app", image.digest.String(), image)
	alice.pull("alice.test/team/app/api", "latest", newImage("two"))
	name := strings.ReplaceAll(n.alice.DID, ":", "_")
	n.nobody().pull(name+"/app", "1.0", image)
	n.nobody().pull(n.alice.DID+"/app", "1.0", image)
	if got := n.nobody().manifest("ALICE.test/app", "1.0"); got.status != 200 {
		t.Errorf("a handle in capitals: %d %s", got.status, got.body)
	}
	for path, code := range map[string]string{
		"alice.test/app/manifests/2.0":                                     "MANIFEST_UNKNOWN",
		"alice.test/app/manifests/sha256:" + zeros:                         "MANIFEST_UNKNOWN",
		"alice.test/none/manifests/1.0":                                    "MANIFEST_UNKNOWN",
		"carol.test/app/manifests/1.0":                                     "NAME_UNKNOWN",
		"did_plc_aaaaaaaaaaaaaaaaaaaaaaaa/app/manifests/1.0":               "NAME_UNKNOWN",
		"alice.test/app/blobs/sha256:" + zeros:                             "BLOB_UNKNOWN",
		"alice.test/none/tags/list":                                        "NAME_UNKNOWN",
		"alice.test/team/app/blobs/" + oci.FromBytes(image.layer).String(): "BLOB_UNKNOWN", // of another repository
	} {
		if got := n.nobody().do(http.MethodGet, "/v2/"+path, nil); got.status != 404 || got.code() != code {
			t.Errorf("%s: %d %s", path, got.status, got.body)
		}
	}
	if got := n.nobody().do(http.MethodGet, "/v2/alice.test/app/tags/list", nil); got.status != 200 || !strings.Contains(got.body, `["1.0"]`) {
		t.Errorf("tags: %s", got.body)
	}
}

const zeros = "0000000000000000000000000000000000000000000000000000000000000000"

// Would catch records that other programs cannot read: fields, keys, and the bytes as a blob of the repo.
func TestRecords(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	image := newImage("one")
	n.as(n.alice, "alice.test/team/app").push("alice.test/team/app", image, "1.0")
	record := n.records(n.alice, "io.atcr.manifest")[image.digest.Hex()]
	for field, want := range map[string]any{
		"$type": "io.atcr.manifest", "repository": "team/app", "digest": image.digest.String(), "mediaType": oci.MediaTypeImageManifest,
		"holdDid": n.public.did, "schemaVersion": 2.0,
	} {
		if record[field] != want {
			t.Errorf("%s is %v, want %v", field, record[field], want)
		}
	}
	link := record["manifestBlob"].(map[string]any)["ref"].(map[string]any)["$link"]
	if link != cidOf(image.digest) {
		t.Errorf("manifestBlob is %v, want %s", link, cidOf(image.digest))
	}
	tag := n.records(n.alice, "io.atcr.tag")["team~app:1.0"]
	if tag["manifest"] != "at://"+n.alice.DID+"/io.atcr.manifest/"+image.digest.Hex() || tag["manifestDigest"] != image.digest.String() ||
		tag["repository"] != "team/app" || tag["tag"] != "1.0" {
		t.Errorf("tag %v", tag)
	}
	if profile := n.records(n.alice, "io.atcr.sailor.profile")["self"]; profile == nil || profile["defaultHold"] != nil {
		t.Errorf("the profile of a first sign-in: %v", profile)
	}
	blob := request(t, http.MethodGet, n.PDSURL+"/xrpc/com.atproto.sync.getBlob?did="+n.alice.DID+"&cid="+link.(string), nil)
	if blob.body != string(image.manifest) {
		t.Errorf("the blob is %q", blob.body)
	}
}

// Would catch a push that writes where nothing changed, a tag that does not move, and one commit too many.
func TestPushAgain(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	alice := n.as(n.alice, "alice.test/app")
	alice.push("alice.test/app", newImage("one"), "1.0")
	before := n.rev(n.alice)
	alice.must(201, alice.put("alice.test/app", "1.0", newImage("one").manifest))
	if n.rev(n.alice) != before {
		t.Error("the same push again made a commit")
	}
	writes := n.PDS.Inject(devnet.Method(applyWritesNSID), func(w http.ResponseWriter, r *http.Request, next http.Handler) { next.ServeHTTP(w, r) })
	alice.push("alice.test/app", newImage("two"), "1.0")
	if writes.Fired() != 1 {
		t.Errorf("%d writes for one push", writes.Fired())
	}
	n.nobody().pull("alice.test/app", "1.0", newImage("two"))
	n.nobody().pull("alice.test/app", newImage("one").digest.String(), newImage("one"))
	tag := n.records(n.alice, "io.atcr.tag")["app:1.0"]
	if tag["updatedAt"] == nil || tag["manifestDigest"] != newImage("two").digest.String() {
		t.Errorf("tag %v", tag)
	}
}

// Would catch one repository's push or delete that reaches into another with the same bytes.
func TestSameImageInTwoRepositories(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	alice := n.as(n.alice, "alice.test/one", "alice.test/team/two", "alice.test/three")
	image := newImage("same")
	for _, name := range []string{"alice.test/one", "alice.test/team/two", "alice.test/three"} {
		alice.push(name, image, "1.0")
	}
	hex := image.digest.Hex()
	for rkey, repository := range map[string]string{hex: "one", hex + ":team~two": "team/two", hex + ":three": "three"} {
		if got := n.records(n.alice, "io.atcr.manifest")[rkey]; got == nil || got["repository"] != repository {
			t.Errorf("%s is %v", rkey, got)
		}
	}
	alice.must(202, alice.do(http.MethodDelete, "/v2/alice.test/one/manifests/"+image.digest.String(), nil))
	if got := n.nobody().manifest("alice.test/one", "1.0"); got.status != 404 {
		t.Errorf("deleted, but %d", got.status)
	}
	if n.records(n.alice, "io.atcr.tag")["one:1.0"] != nil {
		t.Error("the tag of a deleted manifest is there still")
	}
	n.nobody().pull("alice.test/team/two", "1.0", image)
	n.deleteRecord(n.alice, "io.atcr.manifest", hex+":three") // by somebody else's program
	n.forget()
	if got := n.nobody().manifest("alice.test/three", "1.0"); got.status != 404 {
		t.Errorf("deleted at the PDS, but %d", got.status)
	}
	n.nobody().pull("alice.test/team/two", "1.0", image)
	alice.push("alice.test/one", image, "2.0") // takes the free key again
	n.nobody().pull("alice.test/one", "2.0", image)
	n.nobody().pull("alice.test/team/two", "1.0", image)
	alice.must(202, alice.do(http.MethodDelete, "/v2/alice.test/one/manifests/2.0", nil))
	n.nobody().pull("alice.test/one", image.digest.String(), image)
	if got := n.nobody().manifest("alice.test/one", "2.0"); got.status != 404 {
		t.Errorf("a deleted tag: %d", got.status)
	}
	if got := alice.do(http.MethodDelete, "/v2/alice.test/one/manifests/2.0", nil); got.status != 404 {
		t.Errorf("deleted twice: %d", got.status)
	}
}

// Would catch records of others that are overwritten, doubled or not found: unknown fields, the key that
// older programs give a tag, the older name of the hold.
func TestRecordsOfOthers(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	alice := n.as(n.alice, "alice.test/app")
	one, two := newImage("one"), newImage("two")
	alice.push("alice.test/app", one, "1.0")
	manifest := n.records(n.alice, "io.atcr.manifest")[one.digest.Hex()]
	delete(manifest, "holdDid")
	manifest["holdEndpoint"], manifest["later"] = n.public.url, "kept"
	n.putRecord(n.alice, "io.atcr.manifest", one.digest.Hex(), manifest)
	tag := n.records(n.alice, "io.atcr.tag")["app:1.0"]
	delete(tag, "manifest")
	tag["tag"], tag["later"] = "old", map[string]any{"a": 1.0}
	n.putRecord(n.alice, "io.atcr.tag", "app_old", tag)
	n.forget()
	n.nobody().pull("alice.test/app", "old", one)

	before := n.rev(n.alice)
	alice.must(201, alice.put("alice.test/app", one.digest.String(), one.manifest))
	if n.rev(n.alice) != before {
		t.Error("a record that names the same hold by its URL was written again")
	}
	alice.push("alice.test/app", two, "old")
	tags := n.records(n.alice, "io.atcr.tag")
	if len(tags) != 2 || tags["app_old"]["manifestDigest"] != two.digest.String() || tags["app_old"]["later"].(map[string]any)["a"] != 1.0 {
		t.Errorf("tags %v", tags)
	}
	// Another hold: the record is changed, and what we do not know stays.
	n.useHold(n.alice, n.startHold(n.alice.DID, "HOLD_PUBLIC=true").did)
	alice.push("alice.test/app", one, "1.0")
	manifest = n.records(n.alice, "io.atcr.manifest")[one.digest.Hex()]
	if manifest["later"] != "kept" || manifest["holdEndpoint"] != nil || manifest["holdDid"] == n.public.did {
		t.Errorf("manifest %v", manifest)
	}
	n.nobody().pull("alice.test/app", "1.0", one)
	n.nobody().pull("alice.test/app", "old", two) // at the first hold still
}

// Would catch a record that is believed although its blob is another, or its type a page; and an old one
// without bytes that fails without a reason.
func TestInvalidRecords(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	alice := n.as(n.alice, "alice.test/app")
	one, two := newImage("one"), newImage("two")
	alice.push("alice.test/app", one, "1.0")
	alice.push("alice.test/app", two, "2.0")
	records := n.records(n.alice, "io.atcr.manifest")
	good := records[one.digest.Hex()]
	for what, change := range map[string]func(map[string]any){
		"another blob":   func(m map[string]any) { m["manifestBlob"] = records[two.digest.Hex()]["manifestBlob"] },
		"a page":         func(m map[string]any) { m["mediaType"] = "text/html" },
		"another digest": func(m map[string]any) { m["digest"] = two.digest.String() },
		"no digest":      func(m map[string]any) { m["digest"] = "sha256:abc" },
		"not a record":   func(m map[string]any) { m["layers"] = "layers" },
	} {
		changed := map[string]any{}
		for k, v := range good {
			changed[k] = v
		}
		change(changed)
		n.putRecord(n.alice, "io.atcr.manifest", one.digest.Hex(), changed)
		n.forget()
		if got := n.nobody().manifest("alice.test/app", one.digest.String()); got.status != 404 || got.code() != "MANIFEST_UNKNOWN" {
			t.Errorf("%s: %d %s", what, got.status, got.body)
		}
	}
	// The owner pushes again: the record is sound again.
	alice.push("alice.test/app", one, "1.0")
	n.nobody().pull("alice.test/app", "1.0", one)

	old := map[string]any{}
	for k, v := range good {
		old[k] = v
	}
	delete(old, "manifestBlob")
	old["digest"] = "sha256:" + zeros
	n.putRecord(n.alice, "io.atcr.manifest", zeros, old)
	if got := n.nobody().manifest("alice.test/app", "sha256:"+zeros); got.status != 404 || !strings.Contains(got.body, "push the image again") {
		t.Errorf("an old record: %d %s", got.status, got.body)
	}
}

// Would catch an index whose children must exist, sha512 that is stored under a sha256 key, and manifests of
// types that nobody knows.
func TestOtherManifests(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	alice := n.as(n.alice, "alice.test/app")
	image := newImage("one")
	alice.push("alice.test/app", image, image.digest.String())
	index := []byte(`{"schemaVersion":2,"mediaType":"` + oci.MediaTypeImageIndex + `","manifests":[{"mediaType":"` + oci.MediaTypeImageManifest +
		`","digest":"` + image.digest.String() + `","size":1,"platform":{"architecture":"amd64","os":"linux"}},{"mediaType":"` + oci.MediaTypeImageManifest + `","digest":"sha256:` + zeros + `","size":1}]}`)
	alice.must(201, alice.do(http.MethodPut, "/v2/alice.test/app/manifests/multi", index, "Content-Type", oci.MediaTypeImageIndex))
	if got := n.nobody().manifest("alice.test/app", "multi"); got.body != string(index) || got.header.Get("Content-Type") != oci.MediaTypeImageIndex {
		t.Errorf("index: %d %s", got.status, got.body)
	}
	n.nobody().pull("alice.test/app", image.digest.String(), image)

	h, err := oci.NewHash(oci.SHA512)
	if err != nil {
		t.Fatal(err)
	}
	h.Write(image.manifest)
	d := oci.DigestOf(oci.SHA512, h)
	alice.must(201, alice.put("alice.test/app", d.String(), image.manifest))
	if n.records(n.alice, "io.atcr.manifest")["sha512-"+d.Hex()] == nil {
		t.Error("no record under the sha512 key")
	}
	n.restart()
	if got := n.nobody().manifest("alice.test/app", d.String()); got.body != string(image.manifest) {
		t.Errorf("sha512: %d %s", got.status, got.body)
	}
	other := []byte(`{"anything":true}`)
	alice.must(201, alice.do(http.MethodPut, "/v2/alice.test/app/manifests/x", other, "Content-Type", "application/vnd.example.thing+json"))
	if got := n.nobody().manifest("alice.test/app", "x"); got.body != string(other) || got.header.Get("Content-Type") != "application/vnd.example.thing+json" {
		t.Errorf("other: %d %q %s", got.status, got.header.Get("Content-Type"), got.body)
	}
}

// Would catch referrers that need the AppView's memory: they come from the owner's repo.
func TestReferrersAndTags(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	alice := n.as(n.alice, "alice.test/app")
	image := newImage("one")
	alice.push("alice.test/app", image, "b", "a", "c")
	sbom, err := json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": oci.MediaTypeImageManifest, "artifactType": "application/spdx+json",
		"config": descriptor("application/vnd.oci.image.config.v1+json", image.config), "layers": []any{},
		"subject": descriptor(oci.MediaTypeImageManifest, image.manifest), "annotations": map[string]string{"k": "v"},
	})
	if err != nil {
		t.Fatal(err)
	}
	put := alice.must(201, alice.put("alice.test/app", oci.FromBytes(sbom).String(), sbom))
	if put.header.Get("OCI-Subject") != image.digest.String() {
		t.Errorf("OCI-Subject %q", put.header.Get("OCI-Subject"))
	}
	var index struct{ Manifests []oci.Descriptor }
	got := n.nobody().do(http.MethodGet, "/v2/alice.test/app/referrers/"+image.digest.String(), nil)
	if err := json.Unmarshal([]byte(got.body), &index); err != nil || len(index.Manifests) != 1 {
		t.Fatalf("%s, %v", got.body, err)
	}
	if d := index.Manifests[0]; d.Digest != oci.FromBytes(sbom) || d.Size != int64(len(sbom)) || d.ArtifactType != "application/spdx+json" || d.Annotations["k"] != "v" {
		t.Errorf("%+v", d)
	}
	if got := n.nobody().do(http.MethodGet, "/v2/alice.test/app/tags/list?n=2", nil); !strings.Contains(got.body, `["a","b"]`) || got.header.Get("Link") == "" {
		t.Errorf("%s %q", got.body, got.header.Get("Link"))
	}
}

// Would catch a record that the PDS refuses for its size: the bytes are the truth, the summary is shortened.
func TestLargeManifest(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	alice := n.as(n.alice, "alice.test/app")
	image := newImage("one")
	alice.push("alice.test/app", image)
	raw, err := json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": oci.MediaTypeImageManifest,
		"config": descriptor("application/vnd.oci.image.config.v1+json", image.config), "layers": []any{descriptor("application/x", image.layer)},
		"annotations": map[string]string{"big": strings.Repeat("x", 3_900_000)},
	})
	if err != nil {
		t.Fatal(err)
	}
	alice.must(201, alice.put("alice.test/app", "big", raw))
	n.restart()
	if got := n.nobody().manifest("alice.test/app", "big"); !bytes.Equal([]byte(got.body), raw) {
		t.Errorf("%d, %d bytes", got.status, len(got.body))
	}
	record := n.records(n.alice, "io.atcr.manifest")[oci.FromBytes(raw).Hex()]
	if record["annotations"] != nil || record["layers"] == nil {
		t.Errorf("%v", record)
	}
}
