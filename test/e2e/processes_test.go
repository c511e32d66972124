package e2e

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"atcr.io/test/components"
)

// turns is a proxy in front of two processes of an AppView that sends each request to the other one than the last.
func turns(t *testing.T, targets ...string) *httptest.Server {
	t.Helper()
	var proxies []*httputil.ReverseProxy
	for _, target := range targets {
		u, err := url.Parse(target)
		if err != nil {
			t.Fatal(err)
		}
		proxies = append(proxies, &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(u) }})
	}
	var turn atomic.Uint64
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		proxies[turn.Add(1)%uint64(len(proxies))].ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	return s
}

// Would catch what one process of an AppView knows and the other does not: signed in here, an upload begun there, a
// tag moved through one and pulled through the other at once.
func TestTwoProcesses(t *testing.T) {
	t.Parallel()
	n := startNetwork(t, "filesystem") // its own AppView is another operator's
	crane, database := components.Path(t, "crane"), components.StartPostgres(t).CreateDatabase(t)
	secret := filepath.Join(t.TempDir(), "secret.key")
	addresses := []string{fmt.Sprintf("127.0.0.1:%d", freePort(t)), fmt.Sprintf("127.0.0.1:%d", freePort(t))}
	front := turns(t, "http://"+addresses[0], "http://"+addresses[1])
	for _, address := range addresses {
		startDaemon(t, binaries.appview, "http://"+address, "/v2/",
			"ATCR_HTTP_ADDR="+address, "ATCR_DEBUG_ADDR=", "ATCR_BASE_URL="+front.URL, "ATCR_DEFAULT_HOLD_DID="+n.publicDID,
			"ATCR_DATABASE_URL="+database, "ATCR_DATABASE_DIR="+t.TempDir(), "ATCR_SECRET_KEY_FILE="+secret, "ATCR_PLC_URL="+n.pds.PLCURL,
			"ATCR_HANDLE_RESOLVER_URL="+n.pds.URL, "ATCR_LOG_LEVEL=debug", "TEST_MODE=true")
	}
	registry := strings.TrimPrefix(front.URL, "http://")
	config := dockerConfig(t)
	command(t, []string{config}, crane, "auth", "login", registry, "-u", n.alice.Handle, "-p", n.alice.AppPassword)
	digestAt := func(address, reference string) string {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodHead, "http://"+address+"/v2/"+reference, nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
		return res.Header.Get("Docker-Content-Digest")
	}
	for i := range 4 {
		image := newImage(t)
		command(t, []string{config}, crane, "push", image.layout, registry+"/alice.test/app:latest")
		for _, address := range addresses {
			if got := digestAt(address, "alice.test/app/manifests/latest"); got != image.digest {
				t.Errorf("push %d: %s has %s, want %s", i, address, got, image.digest)
			}
		}
		out := filepath.Join(t.TempDir(), "out")
		command(t, []string{config}, crane, "pull", "--format=oci", registry+"/alice.test/app:latest", out)
		sameBlobs(t, image, out)
	}

	// Several at once, whichever process each of their requests meets.
	images := []testImage{newImage(t), newImage(t), newImage(t)}
	var wg sync.WaitGroup
	for i, image := range images {
		wg.Go(func() {
			if out, err := tryCommand(t, []string{config}, crane, "push", image.layout, fmt.Sprintf("%s/alice.test/at-once:%d", registry, i)); err != nil {
				t.Errorf("%v\n%s", err, tail(out))
			}
		})
	}
	wg.Wait()
	for i, image := range images {
		for _, address := range addresses {
			if got := digestAt(address, fmt.Sprintf("alice.test/at-once/manifests/%d", i)); got != image.digest {
				t.Errorf("%d at %s is %s", i, address, got)
			}
		}
	}
	if got := strings.Fields(command(t, []string{config}, crane, "ls", registry+"/alice.test/at-once")); len(got) != len(images) {
		t.Errorf("tags: %q", got)
	}

	// A third process with a secret of its own would read nothing of theirs: it says so, and ends.
	stranger := filepath.Join(t.TempDir(), "secret.key")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, binaries.appview)
	cmd.Env = []string{"ATCR_HTTP_ADDR=127.0.0.1:0", "ATCR_DEBUG_ADDR=", "ATCR_BASE_URL=" + front.URL, "ATCR_DEFAULT_HOLD_DID=" + n.publicDID,
		"ATCR_DATABASE_URL=" + database, "ATCR_DATABASE_DIR=" + t.TempDir(), "ATCR_SECRET_KEY_FILE=" + stranger, "ATCR_PLC_URL=" + n.pds.PLCURL, "TEST_MODE=true"}
	if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "ATCR_SECRET_KEY_FILE") {
		t.Errorf("%v: %s", err, out)
	}
}
