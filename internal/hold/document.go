package hold

import (
	"net/http"

	"github.com/bluesky-social/indigo/atproto/atcrypto"
	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/internal/xrpc"
)

// didDocument is the hold's DID document: its signing key, and where its repo and its blobs are. A did:web's is
// this one; a did:plc's is made by the directory, of the same.
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

// document is the DID document with the key that signs now.
func (h *Hold) document() map[string]any {
	return didDocument(h.did, h.config.PublicURL, h.handle, *h.public.Load())
}

// keyDID is the key that signs now, as a did:key.
func (h *Hold) keyDID() string { return (*h.public.Load()).DIDKey() }

// setKey makes key the one that is shown, and that links are signed by.
func (h *Hold) setKey(key atcrypto.PrivateKeyExportable) error {
	public, err := key.PublicKey()
	if err != nil {
		return err
	}
	links, err := newLinker(key.Bytes())
	if err != nil {
		return err
	}
	h.public.Store(&public)
	h.links.Store(links)
	return nil
}

func (h *Hold) getDIDDocument(w http.ResponseWriter, _ *http.Request) error {
	w.Header().Set("Access-Control-Allow-Origin", "*")
	xrpc.WriteJSON(w, http.StatusOK, h.document())
	return nil
}

func (h *Hold) getAtprotoDID(w http.ResponseWriter, _ *http.Request) error {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Access-Control-Allow-Origin", "*")
	_, err := w.Write([]byte(h.did))
	return err
}
