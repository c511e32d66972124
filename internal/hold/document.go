package hold

import (
	"net/http"

	"github.com/bluesky-social/indigo/atproto/atcrypto"
	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/internal/xrpc"
)

// didDocument is the hold's did:web document: its signing key, and where its repo and its blobs are.
//
// Source: https://atproto.com/specs/did; contract "Standard endpoints".
func didDocument(did syntax.DID, publicURL, handle string, key atcrypto.PublicKey) map[string]any {
	names := []string{}
	if handle != "" {
		names = append(names, "at://"+handle)
	}
	service := func(id, kind string) map[string]string {
		return map[string]string{"id": id, "type": kind, "serviceEndpoint": publicURL}
	}
	return map[string]any{
		"@context":    []string{"https://www.w3.org/ns/did/v1", "https://w3id.org/security/multikey/v1"},
		"id":          did,
		"alsoKnownAs": names,
		"verificationMethod": []map[string]string{{
			"id": did.String() + "#atproto", "type": "Multikey", "controller": did.String(), "publicKeyMultibase": key.Multibase(),
		}},
		"service": []map[string]string{
			service("#atproto_pds", "AtprotoPersonalDataServer"),
			service("#atcr_hold", "AtcrHoldService"),
		},
	}
}

func (h *Hold) getDIDDocument(w http.ResponseWriter, _ *http.Request) error {
	w.Header().Set("Access-Control-Allow-Origin", "*")
	xrpc.WriteJSON(w, http.StatusOK, h.document)
	return nil
}

func (h *Hold) getAtprotoDID(w http.ResponseWriter, _ *http.Request) error {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Access-Control-Allow-Origin", "*")
	_, err := w.Write([]byte(h.did))
	return err
}
