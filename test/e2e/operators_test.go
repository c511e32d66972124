package e2e

import (
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"atcr.io/test/components"
)

// operator is somebody's AppView and the hold that it pushes to by default, and a person who is signed in there.
type operator struct {
	hold     *daemon
	holdDID  string
	appview  *daemon
	registry string // host:port of the AppView
	handle   string // of the person
	config   string // of the person's client
}

// startOperator starts a hold and an AppView that share nothing with others' but the PDS, whose firehose the AppView
// follows.
func (n *network) startOperator(t *testing.T, a components.Account, crane string) *operator {
	t.Helper()
	o := &operator{handle: a.Handle, config: dockerConfig(t)}
	o.hold, o.holdDID = n.startHold(t, "STORAGE_DRIVER=filesystem", "STORAGE_ROOT_DIR="+t.TempDir(), "HOLD_OWNER="+a.DID, "HOLD_PUBLIC=true", "HOLD_ALLOW_ALL_CREW=true")
	o.appview = (&network{pds: n.pds, publicDID: o.holdDID}).startAppView(t, "ATCR_RELAY_URLS="+n.pds.URL)
	o.registry = strings.TrimPrefix(o.appview.url, "http://")
	command(t, []string{o.config}, crane, "auth", "login", o.registry, "-u", a.Handle, "-p", a.AppPassword)
	waitUntil(t, "an AppView follows the PDS", func() bool { return o.appview.said("live=true") > 0 })
	return o
}

// Would catch anything that an AppView knows of its own images beside what stands in repos and holds: each of two
// operators pushes to a hold that the other one's AppView has never heard of, and neither shares a process, a database
// or a default hold with the other.
func TestTwoOperators(t *testing.T) {
	t.Parallel()
	crane := components.Path(t, "crane")
	n := &network{pds: components.StartReferencePDS(t, "alice.test", "bob.test")}
	n.alice, n.bob = n.pds.Accounts[0], n.pds.Accounts[1]
	one, two := n.startOperator(t, n.alice, crane), n.startOperator(t, n.bob, crane)
	pull := func(at *operator, reference string, want testImage) {
		t.Helper()
		out := filepath.Join(t.TempDir(), "out")
		command(t, []string{dockerConfig(t)}, crane, "pull", "--format=oci", at.registry+"/"+reference, out)
		sameBlobs(t, want, out)
	}
	for _, c := range []struct {
		by, other *operator
		person    components.Account
	}{{one, two, n.alice}, {two, one, n.bob}} {
		app := c.by.handle + "/app"
		first, second, index := newImage(t), newImage(t), newIndex(t)
		push := func(image testImage, tag string) {
			t.Helper()
			command(t, []string{c.by.config}, crane, "push", soleEntry(t, image), c.by.registry+"/"+app+":"+tag, "--index="+boolText(image.image == nil))
		}
		at := func(o *operator, reference string) string { return digestAt(t, o.appview, app+"/manifests/"+reference) }

		push(first, "1.0")
		push(index, "multi")
		for tag, image := range map[string]testImage{"1.0": first, "multi": index} {
			pull(c.other, app+":"+tag, image)
			pull(c.other, app+"@"+image.digest, image)
		}
		records := listManifests(t, n, c.person).Records
		if len(records) != 4 { // the image, and the index with its two
			t.Errorf("%d manifest records of %s", len(records), app)
		}
		for _, r := range records {
			if r.Value.HoldDid != c.by.holdDID {
				t.Errorf("%s is at %s, want %s", r.URI, r.Value.HoldDid, c.by.holdDID)
			}
		}
		blob := "/xrpc/com.atproto.sync.getBlob?did=" + c.person.DID + "&cid=sha256:" + first.blobs[0]
		if status, _ := get(t, c.other.hold.url+blob); status != http.StatusNotFound { // so it came from the hold it was pushed to
			t.Errorf("the other hold answers %d for a blob of %s", status, app)
		}

		// A tag moves, and a new one appears.
		push(second, "1.0")
		push(second, "2.0")
		waitUntil(t, "the tags have moved", func() bool { return at(c.other, "1.0") == second.digest && at(c.other, "2.0") == second.digest })
		pull(c.other, app+":1.0", second)
		if got := strings.Fields(command(t, nil, crane, "ls", c.other.registry+"/"+app)); fmt.Sprint(got) != "[1.0 2.0 multi]" {
			t.Errorf("tags of %s at the other AppView: %q", app, got)
		}

		// A tag is deleted, then what it led to.
		command(t, []string{c.by.config}, crane, "delete", c.by.registry+"/"+app+":2.0")
		waitUntil(t, "a deleted tag is gone", func() bool { return at(c.other, "2.0") == "" })
		if got := at(c.other, "1.0"); got != second.digest {
			t.Errorf("1.0 is %q once 2.0 is deleted", got)
		}
		command(t, []string{c.by.config}, crane, "delete", c.by.registry+"/"+app+"@"+second.digest)
		waitUntil(t, "a deleted manifest is gone", func() bool { return at(c.other, "1.0") == "" && at(c.other, second.digest) == "" })
		pull(c.other, app+":multi", index)

		// The person of the other AppView has no more rights there than here.
		out, err := tryCommand(t, []string{c.other.config}, crane, "delete", c.other.registry+"/"+app+":multi")
		if err == nil || !strings.Contains(out, "DENIED") || at(c.other, "multi") != index.digest {
			t.Errorf("a tag of %s is deleted by %s: %v, %s", app, c.other.handle, err, out)
		}
	}
	for _, o := range []*operator{one, two} {
		if o.appview.said("an event is left out") > 0 {
			t.Errorf("the AppView at %s left out an event of the PDS", o.registry)
		}
	}
}
