package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"

	"atcr.io/test/components"
)

// startAppView starts a further AppView, by another operator, with a database of its own.
func (n *network) startAppView(t *testing.T, env ...string) *daemon {
	t.Helper()
	registry := fmt.Sprintf("127.0.0.1:%d", freePort(t))
	return startDaemon(t, binaries.appview, "http://"+registry, "/v2/", append(env,
		"ATCR_HTTP_ADDR="+registry, "ATCR_DEBUG_ADDR=", "ATCR_BASE_URL=http://"+registry, "ATCR_DEFAULT_HOLD_DID="+n.publicDID,
		"ATCR_DATABASE_DIR="+t.TempDir(), "ATCR_PLC_URL="+n.pds.PLCURL, "ATCR_HANDLE_RESOLVER_URL="+n.pds.URL, "ATCR_LOG_LEVEL=debug", "TEST_MODE=true")...)
}

// digestAt is what a tag leads to, "" where there is none.
func digestAt(t *testing.T, d *daemon, reference string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodHead, d.url+"/v2/"+reference, nil)
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

// said is how often a daemon logged a line with a text.
func (d *daemon) said(text string) int { return strings.Count(d.output.String(), text) }

// Would catch an AppView that cannot read the reference PDS's firehose or repos, or misses what happens there.
func TestReferenceFirehose(t *testing.T) {
	n := startNetwork(t, "filesystem")
	client := layoutClients(t)[0]
	client.login(t, n, n.alice)
	first, second := newImage(t), newImage(t)
	client.push(t, n, first, "alice.test/app:1.0")
	other := n.startAppView(t, "ATCR_RELAY_URLS="+n.pds.URL)
	for other.said("live=true") == 0 {
		pause(t)
	}
	if got := digestAt(t, other, "alice.test/app/manifests/1.0"); got != first.digest {
		t.Fatalf("1.0 is %q at another AppView", got)
	}
	client.push(t, n, second, "alice.test/app:1.0")
	client.push(t, n, second, "alice.test/app:2.0")
	for digestAt(t, other, "alice.test/app/manifests/2.0") != second.digest || digestAt(t, other, "alice.test/app/manifests/1.0") != second.digest {
		pause(t)
	}
	if other.said("an event is left out") > 0 {
		t.Errorf("an event of the reference PDS is left out")
	}
	reindexed := reindex(t, other)
	if !strings.Contains(reindexed, "lists 1 repos") || !strings.Contains(reindexed, "1 repositories, 2 manifests and 2 tags") {
		t.Errorf("%s", reindexed)
	}

	// The account is taken down by its owner, and comes back.
	session := pdsSession(t, n, n.alice)
	pdsCall(t, n, "com.atproto.server.deactivateAccount", session, map[string]any{})
	for digestAt(t, other, "alice.test/app/manifests/1.0") != "" {
		pause(t)
	}
	pdsCall(t, n, "com.atproto.server.activateAccount", session, nil)
	for digestAt(t, other, "alice.test/app/manifests/1.0") != second.digest {
		pause(t)
	}
}

// reindex runs the command beside the daemon, with its settings.
func reindex(t *testing.T, d *daemon) string {
	t.Helper()
	return command(t, append(os.Environ(), d.env...), d.binary, "reindex")
}

func pdsSession(t *testing.T, n *network, a components.Account) string {
	t.Helper()
	var out struct{ AccessJwt string }
	body := pdsCall(t, n, "com.atproto.server.createSession", "", map[string]any{"identifier": a.DID, "password": a.Password})
	if err := json.Unmarshal(body, &out); err != nil || out.AccessJwt == "" {
		t.Fatalf("no session: %v", err)
	}
	return out.AccessJwt
}

func pdsCall(t *testing.T, n *network, nsid, token string, in any) []byte {
	t.Helper()
	var body bytes.Buffer
	if in != nil {
		if err := json.NewEncoder(&body).Encode(in); err != nil {
			t.Fatal(err)
		}
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, n.pds.URL+"/xrpc/"+nsid, &body)
	if err != nil {
		t.Fatal(err)
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	var out bytes.Buffer
	if _, err := out.ReadFrom(res.Body); err != nil || res.StatusCode != 200 {
		t.Fatalf("%s: %s %s %v", nsid, res.Status, out.String(), err)
	}
	return out.Bytes()
}
