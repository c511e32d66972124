package web

import (
	"io"
	"net/http"
	"strings"
	"testing"
)

// Would catch a link in a post that leads nowhere, names of others that become markup, pages without end, and a
// stranger who has other servers asked without end.
func TestImage(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	get := func(path string) (int, string) {
		t.Helper()
		res, err := http.Get(s.URL + path) //nolint:noctx // loopback
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
		return res.StatusCode, string(body)
	}
	status, body := get("/r/alice.test/team/app")
	for _, want := range []string{"docker pull atcr.test/alice.test/team/app:", "&lt;script&gt;team/app", "And others."} {
		if status != http.StatusOK || !strings.Contains(body, want) {
			t.Errorf("%d lacks %q:\n%s", status, want, body)
		}
	}
	if strings.Contains(body, "<script>") || strings.Count(body, "<li>") > tagsShown {
		t.Errorf("markup of others, or %d tags", strings.Count(body, "<li>"))
	}
	if status, body := get("/r/nobody.test/app"); status != http.StatusNotFound || !strings.Contains(body, "no account") {
		t.Errorf("%d %s", status, body)
	}
	for range looksPerAddress {
		status, _ = get("/r/alice.test/app")
	}
	if status != http.StatusTooManyRequests {
		t.Errorf("after many: %d", status)
	}
}
