package oracle

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/bluesky-social/indigo/atproto/atcrypto"
	"github.com/bluesky-social/indigo/atproto/identity"
	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/internal/envconf"
	"atcr.io/internal/hold"
	"atcr.io/internal/xrpc"
)

const owner = syntax.DID("did:plc:owner")

// holdServer is a hold on a port of its own, as its program runs it, whose owner's key is known.
type holdServer struct {
	*hold.Hold
	config  hold.Config
	url     string
	address string
	did     syntax.DID
	key     *atcrypto.PrivateKeyK256 // the owner's
	end     func() error
}

// startHold starts a did:web hold whose owner is in a directory of their own.
func startHold(t *testing.T) *holdServer {
	t.Helper()
	// The relay takes DIDs in lower case alone, so that the hold's must not have the port's %3A.
	return startHoldWith(t, "", func(string) []string { return []string{"HOLD_PUBLIC_URL=http://hold.test"} })
}

// startPLCHold starts a did:plc hold that is registered at the directory at plcURL.
func startPLCHold(t *testing.T, plcURL string) *holdServer {
	t.Helper()
	return startHoldWith(t, plcURL, func(url string) []string { return []string{"HOLD_PUBLIC_URL=" + url, "HOLD_DID_METHOD=plc"} })
}

func startHoldWith(t *testing.T, plcURL string, settings func(url string) []string) *holdServer {
	t.Helper()
	key, err := atcrypto.GeneratePrivateKeyK256()
	if err != nil {
		t.Fatal(err)
	}
	l := listen(t, "127.0.0.1:0")
	port := strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
	h := &holdServer{url: "http://localhost:" + port, address: l.Addr().String(), key: key}
	dir, err := os.MkdirTemp("", "hold") // the path of the socket in it must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	err = envconf.Load(append(settings(h.url),
		"TEST_MODE=true", "HOLD_OWNER="+owner.String(), "HOLD_PLC_URL="+ownersDirectory(t, key, plcURL), "HOLD_PUBLIC=true", "HOLD_ALLOW_ALL_CREW=true",
		"STORAGE_DRIVER=filesystem", "STORAGE_ROOT_DIR="+t.TempDir(), "HOLD_DATABASE_DIR="+dir, "HOLD_DEBUG_ADDR=", "HOLD_SHUTDOWN_GRACE=1s",
	), hold.Prefix, &h.config)
	if err != nil {
		t.Fatal(err)
	}
	h.serve(t, l)
	t.Cleanup(func() { h.stop(t) })
	return h
}

// ownersDirectory knows the owner, and of all others what the directory at plcURL does, if there is one.
func ownersDirectory(t *testing.T, key *atcrypto.PrivateKeyK256, plcURL string) string {
	t.Helper()
	public, err := key.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	document := identity.DIDDocument{DID: owner, VerificationMethod: []identity.DocVerificationMethod{{
		ID: owner.String() + "#atproto", Type: "Multikey", Controller: owner.String(), PublicKeyMultibase: public.Multibase(),
	}}}
	target, err := url.Parse(plcURL)
	if err != nil {
		t.Fatal(err)
	}
	others := httputil.NewSingleHostReverseProxy(target)
	directory := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if plcURL != "" && r.URL.Path != "/"+owner.String() {
			others.ServeHTTP(w, r)
			return
		}
		if err := json.NewEncoder(w).Encode(document); err != nil {
			t.Error(err)
		}
	}))
	t.Cleanup(directory.Close)
	return directory.URL
}

func listen(t *testing.T, address string) net.Listener {
	t.Helper()
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func (h *holdServer) serve(t *testing.T, l net.Listener) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ready, ended := make(chan *hold.Hold, 1), make(chan error, 1)
	go func() {
		ended <- hold.Run(ctx, h.config, hold.Options{Logger: slog.New(slog.DiscardHandler), Listener: l, Ready: func(open *hold.Hold) { ready <- open }})
	}()
	h.end = func() error { cancel(); return <-ended }
	select {
	case h.Hold = <-ready:
		h.did = h.DID()
	case err := <-ended:
		t.Fatal(err)
	}
}

// try is a start that is refused, and why.
func (h *holdServer) try(t *testing.T) error {
	t.Helper()
	l := listen(t, h.address)
	defer func() { _ = l.Close() }() // it never came so far that it had it
	return hold.Run(t.Context(), h.config, hold.Options{Logger: slog.New(slog.DiscardHandler), Listener: l})
}

func (h *holdServer) stop(t *testing.T) {
	t.Helper()
	if err := h.end(); err != nil {
		t.Error(err)
	}
	h.end = func() error { return nil }
}

// command is one of `atcr-hold`'s, on the running hold.
func (h *holdServer) command(t *testing.T, name string) {
	t.Helper()
	if err := hold.Command(t.Context(), h.config, slog.New(slog.DiscardHandler), name, nil, func(hold.Line) {}); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}

// restart ends the hold and starts it anew at its address.
func (h *holdServer) restart(t *testing.T) {
	t.Helper()
	h.stop(t)
	h.serve(t, listen(t, h.address))
}

// call is a method that writes, called by the owner, and its answer.
func (h *holdServer) call(t *testing.T, nsid string, in any) []byte {
	t.Helper()
	raw, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	token, err := xrpc.SignServiceToken(h.key, owner, h.did.String(), nsid, time.Now(), 4*time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, h.url+"/xrpc/"+nsid, bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(res.Body)
	_ = res.Body.Close()
	if err != nil || res.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s %s %v", nsid, res.Status, body, err)
	}
	return body
}

func (h *holdServer) record(rkey, text string) map[string]any {
	return map[string]any{
		"repo": h.did, "collection": "com.example.note", "rkey": rkey,
		"record": map[string]any{"$type": "com.example.note", "text": text, "createdAt": "2026-01-01T00:00:00Z"},
	}
}

// ask is a method that reads, and its answer in out.
func (h *holdServer) ask(t *testing.T, nsid string, params url.Values, out any) {
	t.Helper()
	h.read(t.Context(), t, "/xrpc/"+nsid+"?"+params.Encode(), out)
}

// read is the JSON at a path of the hold, in out.
func (h *holdServer) read(ctx context.Context, t *testing.T, path string, out any) {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, h.url+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	if err := json.NewDecoder(res.Body).Decode(out); err != nil || res.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s: %v", path, res.Status, err)
	}
}

// records are the paths of all that the hold says it has.
func (h *holdServer) records(t *testing.T) map[string]bool {
	t.Helper()
	var repo struct{ Collections []string }
	h.ask(t, "com.atproto.repo.describeRepo", url.Values{"repo": {h.did.String()}}, &repo)
	out := map[string]bool{}
	for _, collection := range repo.Collections {
		for cursor := ""; ; {
			var page struct {
				Cursor  string
				Records []struct{ URI syntax.ATURI }
			}
			h.ask(t, "com.atproto.repo.listRecords", url.Values{"repo": {h.did.String()}, "collection": {collection}, "limit": {"100"}, "cursor": {cursor}}, &page)
			for _, r := range page.Records {
				out[r.URI.Path()] = true
			}
			if cursor = page.Cursor; cursor == "" {
				break
			}
		}
	}
	return out
}

// document is the hold's own DID document.
func (h *holdServer) document(ctx context.Context, t *testing.T) identity.DIDDocument {
	t.Helper()
	var document identity.DIDDocument
	h.read(ctx, t, "/.well-known/did.json", &document)
	return document
}
