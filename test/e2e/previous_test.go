package e2e

import (
	"path/filepath"
	"testing"

	"atcr.io/test/components"
)

// Would catch a sign-in by OAuth, as a public or a confidential client, that only the newest PDS understands.
func TestOAuthAtPreviousPDS(t *testing.T) {
	t.Parallel()
	n := startSignIns(t, components.StartPreviousPDSWith)
	p := n.process(t, 0)
	id := n.signIn(t, p).Session.ID
	n.works(t, p, id)
	n.pushes(t, p)
	n.nonces(t, p, id)
	n.clocks(t, id)
	n.refreshes(t, id)
	n.ends(t, p, id)
	canWrite(t, loopback(t, ""), n.pds, n.bob, "repo:io.atcr.manifest")
}

// Would catch an AppView or a hold that speaks to the newest PDS alone: one of the previous generation signs no
// audience with a fragment, so tokens for a hold are for its bare DID.
func TestPreviousPDS(t *testing.T) {
	t.Parallel()
	n := startNetworkAt(t, components.StartPreviousPDS(t, "alice.test", "bob.test"), "filesystem")
	crane, image := components.Path(t, "crane"), newImage(t)
	alice, bob := dockerConfig(t), dockerConfig(t)
	for config, account := range map[string]components.Account{alice: n.alice, bob: n.bob} {
		command(t, []string{config}, crane, "auth", "login", n.registry, "-u", account.Handle, "-p", account.AppPassword)
	}
	pull := func(config, reference string) {
		t.Helper()
		out := filepath.Join(t.TempDir(), "out")
		command(t, []string{config}, crane, "pull", "--format=oci", n.registry+"/"+reference, out)
		sameBlobs(t, image, out)
	}
	command(t, []string{alice}, crane, "push", image.layout, n.registry+"/alice.test/app:1.0")
	pull(dockerConfig(t), "alice.test/app:1.0") // as nobody
	putProfile(t, n, n.bob, n.privateDID)       // before the AppView has met him
	command(t, []string{bob}, crane, "push", image.layout, n.registry+"/bob.test/app:1.0")
	pull(bob, "bob.test/app:1.0")
	if out, err := tryCommand(t, []string{alice}, crane, "pull", "--format=oci", n.registry+"/bob.test/app:1.0", filepath.Join(t.TempDir(), "out")); err == nil {
		t.Errorf("alice reads bob's hold: %s", out)
	}
	waitUntil(t, "the hold is told, by tokens for its bare DID", func() bool {
		return n.holdRecords(t, n.public, n.publicDID, "io.atcr.hold.layer", n.alice.DID) == len(image.blobs)-1 &&
			n.holdRecords(t, n.public, n.publicDID, "io.atcr.hold.crew", n.alice.DID) == 1
	})
	command(t, []string{alice}, crane, "delete", n.registry+"/alice.test/app:1.0")
	if out, err := tryCommand(t, []string{alice}, crane, "digest", n.registry+"/alice.test/app:1.0"); err == nil {
		t.Errorf("the tag is there after its deletion: %s", out)
	}
}
