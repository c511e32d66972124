package appview

import (
	"net/http"
	"testing"

	"atcr.io/test/databases"
)

// Would catch a process of an AppView that answers from its own memory what another one has just changed.
func TestSharedIndex(t *testing.T) {
	t.Parallel()
	for what, settings := range map[string]func(*network) []string{
		"without a firehose": func(*network) []string { return nil },
		"with a firehose":    func(n *network) []string { return []string{"ATCR_RELAY_URLS=" + n.PDSURL} },
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			n := newNetwork(t)
			secret := "ATCR_SECRET_KEY_FILE=" + n.config.SecretKeyFile
			database := "ATCR_DATABASE_URL=" + databases.NewPostgres(t)
			one := n.another(n.public, append(settings(n), secret, database)...)
			two := n.another(n.public, append(settings(n), secret, database)...)
			alice := one.as(n.alice, "alice.test/app")
			first, second := newImage("first"), newImage("second")
			alice.push("alice.test/app", first, "1.0")
			if what == "with a firehose" {
				one.covered(n.alice)
				two.covered(n.alice)
			}
			two.nobody().pull("alice.test/app", "1.0", first)
			for range 5 {
				alice.push("alice.test/app", second, "1.0") // no clock is turned, nothing is waited for
				two.nobody().pull("alice.test/app", "1.0", second)
				alice.push("alice.test/app", first, "1.0", "2.0")
				two.nobody().pull("alice.test/app", "1.0", first)
				two.nobody().pull("alice.test/app", "2.0", first)
				alice.must(202, alice.do(http.MethodDelete, "/v2/alice.test/app/manifests/2.0", nil))
				if got := two.nobody().manifest("alice.test/app", "2.0"); got.status != 404 {
					t.Fatalf("a deleted tag: %d", got.status)
				}
			}
		})
	}
}
