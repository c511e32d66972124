package e2e

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"atcr.io/internal/sqldb/postgres"
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

// startTwo starts two processes of an AppView on one database, behind a front that takes turns.
func startTwo(t *testing.T, n *network, database string) (front *httptest.Server, both []*daemon) {
	t.Helper()
	secret := filepath.Join(t.TempDir(), "secret.key")
	addresses := []string{fmt.Sprintf("127.0.0.1:%d", freePort(t)), fmt.Sprintf("127.0.0.1:%d", freePort(t))}
	front = turns(t, "http://"+addresses[0], "http://"+addresses[1])
	for _, address := range addresses {
		both = append(both, startDaemon(t, binaries.appview, "http://"+address, "/v2/",
			"ATCR_HTTP_ADDR="+address, "ATCR_DEBUG_ADDR=", "ATCR_BASE_URL="+front.URL, "ATCR_DEFAULT_HOLD_DID="+n.publicDID,
			"ATCR_DATABASE_URL="+database, "ATCR_DATABASE_DIR="+t.TempDir(), "ATCR_SECRET_KEY_FILE="+secret, "ATCR_PLC_URL="+n.pds.PLCURL,
			"ATCR_HANDLE_RESOLVER_URL="+n.pds.URL, "ATCR_LOG_LEVEL=debug", "TEST_MODE=true"))
	}
	return front, both
}

// Would catch two processes that both use one refresh token, which ends the session at the PDS: 20 requests at once
// over a session whose access has run out, in two processes that know nothing of each other but the database.
func TestRefreshInTwoProcesses(t *testing.T) {
	t.Parallel()
	n := startNetwork(t, "filesystem") // its own AppView is another operator's
	database := components.StartPostgres(t).CreateDatabase(t)
	front, both := startTwo(t, n, database)
	device := n.approvedDevice(t, front.URL)
	db, err := postgres.Open(t.Context(), database)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	session := func() (id string, tokens []byte, expires int64) {
		t.Helper()
		row := db.Reader().QueryRowContext(t.Context(), `SELECT id, tokens, expires_at FROM session WHERE did = ? AND issuer <> ''`, n.alice.DID)
		if err := row.Scan(&id, &tokens, &expires); err != nil {
			t.Fatal(err)
		}
		return id, tokens, expires
	}
	id, tokens, _ := session()
	for round := range 3 {
		for _, d := range both { // what they have in memory goes
			d.kill(syscall.SIGTERM)
		}
		err := db.Write(t.Context(), func(tx *sql.Tx) error {
			_, err := tx.ExecContext(t.Context(), `UPDATE session SET expires_at = 1 WHERE id = ?`, id)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range both {
			d.start(t, "/v2/")
		}
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Go(func() { // each asks the hold in alice's name
				if status, body := get(t, both[i%2].url+"/auth/hold", "Authorization", "Bearer "+device); status != http.StatusOK || !strings.Contains(body, `"mayWrite":true`) {
					t.Errorf("round %d: %d %s", round, status, body)
				}
			})
		}
		wg.Wait()
		now, renewed, expires := session()
		if now != id || bytes.Equal(renewed, tokens) || time.Unix(expires, 0).Before(time.Now()) {
			t.Errorf("round %d: the session %s, which was %s, is good until %d; renewed: %v", round, now, id, expires, !bytes.Equal(renewed, tokens))
		}
		tokens = renewed
	}
}

// approvedDevice signs alice in at an AppView, as a browser does, approves a device there, and returns its secret.
func (n *network) approvedDevice(t *testing.T, at string) string {
	t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Jar: jar, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	post := func(path string, form url.Values) (*http.Response, []byte) {
		t.Helper()
		res, err := client.PostForm(at+path, form) //nolint:noctx // loopback
		if err != nil {
			t.Fatal(err)
		}
		raw, err := io.ReadAll(res.Body)
		if err := errors.Join(err, res.Body.Close()); err != nil {
			t.Fatal(err)
		}
		return res, raw
	}
	res, _ := post("/login", url.Values{"who": {n.alice.Handle}})
	callback, err := n.pds.Authorize(t.Context(), res.Header.Get("Location"), components.Decision{Account: n.alice})
	if err != nil {
		t.Fatal(err)
	}
	if res, err = client.Get(callback); err != nil || res.StatusCode != http.StatusSeeOther { //nolint:noctx // loopback
		t.Fatalf("the callback: %v, %v", res, err)
	}
	_ = res.Body.Close()
	_, raw := post("/auth/device/code", url.Values{"client_id": {"e2e"}, "device_name": {"laptop"}})
	var code struct {
		Device string `json:"device_code"`
		User   string `json:"user_code"`
	}
	if err := json.Unmarshal(raw, &code); err != nil {
		t.Fatal(err)
	}
	post("/device", url.Values{"user_code": {code.User}, "decision": {"approve"}})
	_, raw = post("/auth/device/token", url.Values{"grant_type": {"urn:ietf:params:oauth:grant-type:device_code"}, "device_code": {code.Device}})
	var token struct {
		Secret string `json:"access_token"`
	}
	if err := json.Unmarshal(raw, &token); err != nil || token.Secret == "" {
		t.Fatalf("the device: %s, %v", raw, err)
	}
	return token.Secret
}

// Would catch what one process of an AppView knows and the other does not: signed in here, an upload begun there, a
// tag moved through one and pulled through the other at once.
func TestTwoProcesses(t *testing.T) {
	t.Parallel()
	n := startNetwork(t, "filesystem") // its own AppView is another operator's
	crane, database := components.Path(t, "crane"), components.StartPostgres(t).CreateDatabase(t)
	front, both := startTwo(t, n, database)
	addresses := []string{strings.TrimPrefix(both[0].url, "http://"), strings.TrimPrefix(both[1].url, "http://")}
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
