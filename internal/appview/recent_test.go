package appview

import (
	"net/http"
	"strconv"
	"testing"

	"atcr.io/internal/devnet"
	"atcr.io/internal/oci"
	"atcr.io/test/databases"
)

// Would catch an uploader who does not find what they have just sent to the hold, because this process has not seen
// it and their client waits to be asked for a token.
func TestSentDirectly(t *testing.T) {
	t.Parallel()
	n := newNetwork(t, "ATCR_DIRECT_UPLOADS=always", "ATCR_DATABASE_URL="+databases.NewPostgres(t))
	other := n.second()
	alice := n.as(n.alice, "alice.test/app")
	reader := n.scoped(n.alice, "pull", "alice.test/app")
	blob := []byte("sent directly")
	d := alice.upload("alice.test/app", blob)
	path := "/v2/alice.test/app/blobs/" + d.String()
	for _, at := range []*network{other, n} {
		if a := at.nobody().must(401, at.nobody().do(http.MethodGet, path, nil)); a.header.Get("WWW-Authenticate") == "" {
			t.Error("no challenge")
		}
		stranger := at.scoped(devnet.Account{}, "pull", "alice.test/app")
		stranger.must(404, stranger.do(http.MethodGet, path, nil))
	}
	mine := reader.through(other)
	if a := mine.must(200, mine.do(http.MethodHead, path, nil)); a.header.Get("Content-Length") != strconv.Itoa(len(blob)) {
		t.Errorf("%v", a.header)
	}
	reader.must(307, reader.do(http.MethodGet, path, nil))
	reader.must(404, reader.do(http.MethodGet, "/v2/alice.test/app/blobs/"+oci.FromBytes([]byte("never")).String(), nil))
	n.nobody().must(404, n.nobody().do(http.MethodGet, "/v2/alice.test/elsewhere/blobs/"+d.String(), nil))
}
