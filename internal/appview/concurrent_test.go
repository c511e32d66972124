package appview

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"atcr.io/api/atcr"
	"atcr.io/internal/devnet"
	"atcr.io/internal/oci"
)

// expect is an error unless the status is one of want.
func expect(what string, a answer, want ...int) error {
	if slices.Contains(want, a.status) {
		return nil
	}
	return fmt.Errorf("%s: %d %s", what, a.status, a.body)
}

// act does one thing that a client may do in a repository.
func (u user) act(name string, random *rand.Rand, images []testImage) error {
	image, tag := images[random.IntN(len(images))], fmt.Sprintf("t%d", random.IntN(3))
	manifests, blobs := "/v2/"+name+"/manifests/", "/v2/"+name+"/blobs/"
	switch random.IntN(8) {
	case 0:
		return expect("delete a tag", u.do(http.MethodDelete, manifests+tag, nil), 202, 404)
	case 1:
		return expect("delete a manifest", u.do(http.MethodDelete, manifests+image.digest.String(), nil), 202, 404)
	case 2:
		return expect("delete a blob", u.do(http.MethodDelete, blobs+oci.FromBytes(image.layer).String(), nil), 202, 404)
	case 3:
		return expect("pull", u.do(http.MethodGet, manifests+tag, nil), 200, 404)
	}
	for _, blob := range [][]byte{image.config, image.layer} {
		d := oci.FromBytes(blob).String()
		head := u.do(http.MethodHead, blobs+d, nil)
		if head.status == 200 {
			continue
		}
		begun := u.do(http.MethodPost, blobs+"uploads/", nil)
		if err := errors.Join(expect("HEAD", head, 404), expect("POST", begun, 202)); err != nil {
			return err
		}
		location := begun.header.Get("Location")
		if random.IntN(2) == 0 {
			begun = u.do(http.MethodPatch, location, blob)
			if err := expect("PATCH", begun, 202); err != nil {
				return err
			}
			location, blob = begun.header.Get("Location"), nil
		}
		if err := expect("PUT", u.do(http.MethodPut, location+"?digest="+d, blob), 201); err != nil {
			return err
		}
	}
	return expect("PUT of a manifest", u.put(name, tag, image.manifest), 201)
}

// Would catch a race among pushes and deletes that leaves a tag without its manifest, a manifest without its blobs, a
// blob with other bytes, or a hold that believes something else than the repos say.
func TestManyClients(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	var images []testImage
	for i := range 6 {
		image := newImage(fmt.Sprintf("%d", i/2)) // two share config and layer
		if i%2 == 1 {
			image.manifest = []byte(strings.Replace(string(image.manifest), `"schemaVersion":2`, `"schemaVersion":2,"annotations":{"n":"1"}`, 1))
			image.digest = oci.FromBytes(image.manifest)
		}
		images = append(images, image)
	}
	people := []struct {
		user
		account devnet.Account
	}{{n.as(n.alice, "alice.test/a", "alice.test/b"), n.alice}, {n.as(n.bob, "bob.test/a", "bob.test/b"), n.bob}}
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			random := rand.New(rand.NewPCG(uint64(i), 1)) //nolint:gosec // the same each time
			who := people[i%2]
			for range 6 {
				name := who.account.Handle + "/" + string('a'+rune(random.IntN(2)))
				if err := who.act(name, random, images); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	want := map[string]string{}
	for _, who := range people {
		maps.Copy(want, n.walk(who.account))
	}
	eventually(t, "the hold's layer records are those of the manifests", func() bool { return maps.Equal(n.layerRecords(n.public), want) })
}

// walk checks all that must hold of an account's images, by the records of its repo and by what is served. It returns
// the layer records that the hold must have.
func (n *network) walk(a devnet.Account) map[string]string {
	n.t.Helper()
	layers, manifests := map[string]string{}, n.records(a, atcr.ManifestNSID)
	for rkey, record := range manifests {
		d, name := oci.Digest(record["digest"].(string)), a.Handle+"/"+record["repository"].(string)
		got := n.nobody().manifest(name, d.String())
		if got.status != 200 || !d.Matches([]byte(got.body)) {
			n.t.Errorf("%s has a record of %s, and serves %d %s", name, d, got.status, got.body)
			continue
		}
		parsed, err := oci.ParseManifest(got.header.Get("Content-Type"), []byte(got.body))
		if err != nil {
			n.t.Error(err)
			continue
		}
		for _, b := range parsed.Blobs() {
			blob := request(n.t, http.MethodGet, n.public.url+"/xrpc/"+getBlobNSID+"?did="+a.DID+"&cid="+b.Digest.String(), nil)
			if blob.status != 200 || !b.Digest.Matches([]byte(blob.body)) {
				n.t.Errorf("%s names %s, which the hold answers with %d", d, b.Digest, blob.status)
			}
			layers[b.Digest.String()+" at://"+a.DID+"/"+atcr.ManifestNSID+"/"+rkey] = a.DID
		}
	}
	tags := map[string][]string{}
	for _, record := range n.records(a, atcr.TagNSID) {
		repository, tag := record["repository"].(string), record["tag"].(string)
		tags[repository] = append(tags[repository], tag)
		uri := record["manifest"].(string)
		if m := manifests[uri[strings.LastIndexByte(uri, '/')+1:]]; m == nil || m["repository"] != repository || m["digest"] != record["manifestDigest"] {
			n.t.Errorf("%s:%s names %s, which there is not", repository, tag, uri)
		}
		if got := n.nobody().manifest(a.Handle+"/"+repository, tag); got.header.Get("Docker-Content-Digest") != record["manifestDigest"] {
			n.t.Errorf("%s:%s is served as %s, its record says %s", repository, tag, got.header.Get("Docker-Content-Digest"), record["manifestDigest"])
		}
	}
	for repository, want := range tags {
		var out struct{ Tags []string }
		got := n.nobody().do(http.MethodGet, "/v2/"+a.Handle+"/"+repository+"/tags/list", nil)
		if err := json.Unmarshal([]byte(got.body), &out); err != nil || !slices.Equal(out.Tags, slices.Sorted(slices.Values(want))) {
			n.t.Errorf("%s lists %s, its records say %v", repository, got.body, want)
		}
	}
	return layers
}

// Would catch a tag that ends as a mix of two pushes, or as neither, and a push that fails because of another.
func TestTwoPushesToOneTag(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	alice := n.as(n.alice, "alice.test/app")
	one, two := newImage("one"), newImage("two")
	for _, image := range []testImage{one, two} {
		alice.upload("alice.test/app", image.config)
		alice.upload("alice.test/app", image.layer)
	}
	for range 5 {
		var wg sync.WaitGroup
		for _, image := range []testImage{one, two, one, two} {
			wg.Go(func() {
				if err := expect("PUT", alice.put("alice.test/app", "latest", image.manifest), 201); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		served := n.nobody().must(200, n.nobody().manifest("alice.test/app", "latest"))
		if served.body != string(one.manifest) && served.body != string(two.manifest) {
			t.Errorf("neither: %s", served.body)
		}
		n.walk(n.alice)
	}
}
