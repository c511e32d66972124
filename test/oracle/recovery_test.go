package oracle

import (
	"net/http"
	"strings"
	"testing"

	"github.com/bluesky-social/indigo/atproto/atcrypto"

	"atcr.io/internal/plc"
	"atcr.io/test/components"
)

// Would catch a HOLD_RECOVERY_KEY that recovers nothing: with it, what a stolen rotation key did is undone at the
// real directory, and the hold sees that its own key is no more the one that counts.
func TestRecovery(t *testing.T) {
	t.Parallel()
	network := components.StartReferencePDS(t)
	recovery, err := atcrypto.GeneratePrivateKeyK256()
	if err != nil {
		t.Fatal(err)
	}
	public, err := recovery.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	h := startHoldWith(t, network.PLCURL, func(url string) []string {
		return []string{"HOLD_PUBLIC_URL=" + url, "HOLD_DID_METHOD=plc", "HOLD_RECOVERY_KEY=" + public.DIDKey()}
	})
	directory := plc.Client{HTTP: http.DefaultClient, URL: network.PLCURL}
	last := func() plc.Entry {
		t.Helper()
		entry, err := directory.Last(t.Context(), h.did)
		if err != nil {
			t.Fatal(err)
		}
		return entry
	}
	genesis := last()
	h.command(t, "key rotate")
	stolen := last()
	if stolen.Operation.VerificationMethods["atproto"] != keyOf(t, h) || stolen.CID == genesis.CID {
		t.Fatalf("%+v", stolen.Operation)
	}
	undo := *genesis.Operation
	undo.Prev = &genesis.CID
	if err := undo.Sign(recovery); err != nil {
		t.Fatal(err)
	}
	if err := directory.Submit(t.Context(), h.did, &undo); err != nil {
		t.Fatal(err)
	}
	if now := last(); now.Operation.VerificationMethods["atproto"] != genesis.Operation.VerificationMethods["atproto"] {
		t.Errorf("the directory has %+v", now.Operation)
	}
	h.stop(t)
	if err := h.try(t); err == nil || !strings.Contains(err.Error(), "atcr-hold key rotate") {
		t.Errorf("the hold goes on with a key that does not count: %v", err)
	}
	h.command(t, "key rotate")
	h.serve(t, listen(t, h.address))
	if now := last(); now.Operation.VerificationMethods["atproto"] != keyOf(t, h) || now.Operation.RotationKeys[0] != public.DIDKey() {
		t.Errorf("the directory has %+v", now.Operation)
	}
}
