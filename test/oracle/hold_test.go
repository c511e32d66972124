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
	"strconv"
	"testing"
	"time"

	"github.com/bluesky-social/indigo/atproto/atcrypto"
	"github.com/bluesky-social/indigo/atproto/identity"
	"github.com/bluesky-social/indigo/atproto/syntax"
	"github.com/prometheus/client_golang/prometheus"

	"atcr.io/internal/envconf"
	"atcr.io/internal/hold"
	"atcr.io/internal/xrpc"
)

const owner = syntax.DID("did:plc:owner")

// holdServer is a hold on a port of its own, whose owner's key is known.
type holdServer struct {
	*hold.Hold
	config hold.Config
	url    string
	did    syntax.DID
	key    *atcrypto.PrivateKeyK256 // the owner's
	web    *httptest.Server
}

// startHold starts a hold whose owner is in a directory of their own.
func startHold(t *testing.T) *holdServer {
	t.Helper()
	key, err := atcrypto.GeneratePrivateKeyK256()
	if err != nil {
		t.Fatal(err)
	}
	public, err := key.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	document := identity.DIDDocument{DID: owner, VerificationMethod: []identity.DocVerificationMethod{{
		ID: owner.String() + "#atproto", Type: "Multikey", Controller: owner.String(), PublicKeyMultibase: public.Multibase(),
	}}}
	directory := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if err := json.NewEncoder(w).Encode(document); err != nil {
			t.Error(err)
		}
	}))
	t.Cleanup(directory.Close)
	l := listen(t, "127.0.0.1:0")
	port := strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
	// The relay takes DIDs in lower case alone, so that the hold's must not have the port's %3A.
	h := &holdServer{url: "http://localhost:" + port, did: "did:web:hold.test", key: key}
	err = envconf.Load([]string{
		"HOLD_PUBLIC_URL=http://hold.test", "TEST_MODE=true", "HOLD_OWNER=" + owner.String(), "HOLD_PLC_URL=" + directory.URL, "HOLD_PUBLIC=true", "HOLD_ALLOW_ALL_CREW=true",
		"STORAGE_DRIVER=filesystem", "STORAGE_ROOT_DIR=" + t.TempDir(), "HOLD_DATABASE_DIR=" + t.TempDir(), "HOLD_DEBUG_ADDR=",
	}, hold.Prefix, &h.config)
	if err != nil {
		t.Fatal(err)
	}
	h.serve(t, l)
	t.Cleanup(func() { h.stop(t) })
	return h
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
	var err error
	if h.Hold, err = hold.Open(t.Context(), h.config, slog.New(slog.DiscardHandler), prometheus.NewRegistry()); err != nil {
		t.Fatal(err)
	}
	h.web = &httptest.Server{Listener: l, Config: &http.Server{Handler: h.Handler(), ReadHeaderTimeout: 10 * time.Second}}
	h.web.Start()
}

func (h *holdServer) stop(t *testing.T) {
	t.Helper()
	_ = h.web.Listener.Close() // nobody comes any more; streams end with the hold
	if err := h.Close(); err != nil {
		t.Error(err)
	}
	h.web.Close()
}

// restart ends the hold and starts it anew at its address.
func (h *holdServer) restart(t *testing.T) {
	t.Helper()
	address := h.web.Listener.Addr().String()
	h.stop(t)
	h.serve(t, listen(t, address))
}

// call is a method that writes, called by the owner.
func (h *holdServer) call(t *testing.T, nsid string, in any) {
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
}

func (h *holdServer) record(rkey, text string) map[string]any {
	return map[string]any{
		"repo": h.did, "collection": "com.example.note", "rkey": rkey,
		"record": map[string]any{"$type": "com.example.note", "text": text, "createdAt": "2026-01-01T00:00:00Z"},
	}
}

// document is the hold's own DID document.
func (h *holdServer) document(ctx context.Context, t *testing.T) identity.DIDDocument {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, h.url+"/.well-known/did.json", nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	var document identity.DIDDocument
	if err := json.NewDecoder(res.Body).Decode(&document); err != nil {
		t.Fatal(err)
	}
	return document
}
