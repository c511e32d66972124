package appview

import (
	"crypto/hkdf"
	"crypto/sha256"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/bluesky-social/indigo/atproto/atcrypto"
	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/api/atcr"
	"atcr.io/internal/xrpc"
)

// self is the AppView as an identity of its own, did:web of its base URL: by it, holds that trust it take its word on
// pulls. It has no repo and no PDS.
//
// Source: contract, "notifyManifest".
type self struct {
	did syntax.DID
	key *atcrypto.PrivateKeyK256
	url string
}

// newSelf derives the key from the secret that all processes of this AppView share.
func newSelf(secret []byte, baseURL string) (*self, error) {
	u, err := url.Parse(baseURL)
	if err != nil {
		return nil, err
	}
	did, err := syntax.ParseDID("did:web:" + strings.ReplaceAll(u.Host, ":", "%3A"))
	if err != nil {
		return nil, fmt.Errorf("ATCR_BASE_URL: %s has no host that a did:web could have", baseURL)
	}
	raw, err := hkdf.Key(sha256.New, secret, nil, "atcr appview identity, secp256k1", 32)
	if err != nil {
		return nil, fmt.Errorf("derive key: %w", err)
	}
	key, err := atcrypto.ParsePrivateBytesK256(raw) // all but 2^-127 of the numbers of 32 bytes are keys
	if err != nil {
		return nil, fmt.Errorf("derive key: %w", err)
	}
	return &self{did: did, key: key, url: baseURL}, nil
}

// selfLifetime is how long a token of ours is good: it is made for one call.
const selfLifetime = 2 * time.Minute

// token is a service token of the AppView's own for a hold.
func (s *self) token(audience syntax.DID, lxm string) (string, error) {
	return xrpc.SignServiceToken(s.key, s.did, audience.String(), lxm, time.Now(), selfLifetime)
}

// getDocument serves /.well-known/did.json.
//
// Source: https://w3c-ccg.github.io/did-method-web/, https://atproto.com/specs/did
func (s *self) getDocument(w http.ResponseWriter, _ *http.Request) error {
	public, err := s.key.PublicKey()
	if err != nil {
		return err
	}
	w.Header().Set("Access-Control-Allow-Origin", "*")
	w.Header().Set("Cache-Control", "public, max-age=300")
	xrpc.WriteJSON(w, http.StatusOK, map[string]any{
		"@context": []string{"https://www.w3.org/ns/did/v1", "https://w3id.org/security/multikey/v1"},
		"id":       s.did,
		"verificationMethod": []map[string]string{{
			"id": s.did.String() + "#atproto", "type": "Multikey", "controller": s.did.String(), "publicKeyMultibase": public.Multibase(),
		}},
		"service": []map[string]string{{"id": "#atcr_appview", "type": "AtcrAppView", "serviceEndpoint": s.url}},
	})
	return nil
}

// pulled is the message of a number of pulls.
func pulled(key pullKey, p pull, count int64) atcr.HoldNotifyManifestInput {
	return atcr.HoldNotifyManifestInput{
		Operation: "pull", Repository: key.repository, UserDid: key.owner.String(), ManifestDigest: p.digest,
		Manifest: atcr.HoldNotifyManifestManifestInfo{MediaType: p.mediaType}, Count: &count,
	}
}
