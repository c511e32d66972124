package appview

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"atcr.io/internal/devnet"
)

// Would catch blobs that go after 48 hours although a manifest names them: the PDS wrote the manifest, its answer
// was lost, and so the hold was never told.
func TestLostAnswer(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	alice := n.as(n.alice, "alice.test/app")
	image := newImage("lost")
	alice.upload("alice.test/app", image.config)
	alice.upload("alice.test/app", image.layer)
	lost := n.PDS.Inject(devnet.Method(applyWritesNSID), func(_ http.ResponseWriter, r *http.Request, next http.Handler) {
		next.ServeHTTP(httptest.NewRecorder(), r)
		panic(http.ErrAbortHandler)
	})
	if got := alice.put("alice.test/app", "1.0", image.manifest); got.status < 500 || lost.Fired() == 0 {
		t.Fatalf("%d %s", got.status, got.body)
	}
	lost.Remove()
	if len(n.records(n.alice, "io.atcr.manifest")) != 1 {
		t.Fatal("the PDS did not write it")
	}
	n.forget() // the minute for which a message is held back is over
	eventually(t, "the hold is told", func() bool { return len(n.layerRecords(n.public)) == 2 })
	// What was certainly refused is not told of.
	no := n.PDS.Inject(devnet.Method(applyWritesNSID), devnet.Refuse(400, "InvalidRequest", "no"))
	other := newImage("refused")
	alice.upload("alice.test/app", other.config)
	alice.upload("alice.test/app", other.layer)
	alice.put("alice.test/app", "2.0", other.manifest)
	no.Remove()
	var waiting int
	if err := n.app.Load().db.Reader().QueryRowContext(t.Context(), `SELECT count(*) FROM outbox`).Scan(&waiting); err != nil || waiting != 0 {
		t.Errorf("%d messages wait (%v)", waiting, err)
	}
}
