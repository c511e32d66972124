package devnet

import (
	"bytes"
	"crypto/sha256"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/bluesky-social/indigo/atproto/atclient"
	"github.com/bluesky-social/indigo/atproto/repo"
	"github.com/bluesky-social/indigo/atproto/syntax"
	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"
)

const profile = "io.atcr.sailor.profile"

// putProfile writes to a repo, as client.
func putProfile(t *testing.T, client *atclient.APIClient, repo, hold string) (cid string, err error) {
	t.Helper()
	var out struct{ CID string }
	err = client.Post(t.Context(), "com.atproto.repo.putRecord", map[string]any{
		"repo": repo, "collection": profile, "rkey": "self",
		"record": map[string]any{"$type": profile, "defaultHold": hold, "createdAt": time.Now().UTC().Format(time.RFC3339)},
	}, &out)
	return out.CID, err
}

// fetchRepo reads a repo as a stranger would: the CAR, and the key from the directory.
func fetchRepo(t *testing.T, n *Network, did string) *repo.Repo {
	t.Helper()
	status, body := get(t, n.PDSURL+"/xrpc/com.atproto.sync.getRepo?did="+did)
	if status != http.StatusOK {
		t.Fatalf("getRepo: %d", status)
	}
	commit, r, err := repo.LoadRepoFromCAR(t.Context(), strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	id, err := resolver(n).LookupDID(t.Context(), syntax.DID(did))
	if err != nil {
		t.Fatal(err)
	}
	key, err := id.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	if err := commit.VerifySignature(key); err != nil {
		t.Errorf("the commit of %s is not signed by the key in its document: %v", did, err)
	}
	if commit.DID != did {
		t.Errorf("the commit is %s's, not %s's", commit.DID, did)
	}
	return r
}

// Catches repos signed with another key than the one in the document, and repos that forget across a restart.
func TestRepos(t *testing.T) {
	t.Parallel()
	c := Config{Dir: t.TempDir(), Accounts: []string{"alice.test", "bob.test"}}
	n, err := Start(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	alice := n.Accounts[0]
	want, err := putProfile(t, login(t, n, alice.Handle, alice.AppPassword), alice.Handle, "did:web:hold.test")
	if err != nil {
		t.Fatal(err)
	}
	check := func() {
		for _, a := range n.Accounts {
			r := fetchRepo(t, n, a.DID)
			got, err := r.GetRecordCID(t.Context(), profile, "self")
			if a == alice && (err != nil || got.String() != want) {
				t.Errorf("alice's record is %v (%v), not %s", got, err, want)
			}
			if a != alice && err == nil {
				t.Errorf("%s has a record that was not written", a.Handle)
			}
		}
	}
	check()
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	if n, err = Start(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = n.Close() }()
	check()
	var described struct {
		Handle string
		DIDDoc map[string]any `json:"didDoc"`
	}
	if err := atclient.NewAPIClient(n.PDSURL).Get(t.Context(), "com.atproto.repo.describeRepo", map[string]any{"repo": alice.DID}, &described); err != nil {
		t.Fatal(err)
	}
	if described.Handle != alice.Handle || described.DIDDoc["id"] != alice.DID {
		t.Errorf("describeRepo: %+v", described)
	}
}

// Catches a PDS on which anybody writes anywhere.
func TestWritesNeedTheOwner(t *testing.T) {
	t.Parallel()
	n := startNetwork(t, nil)
	alice, bob := n.Accounts[0], n.Accounts[1]
	asBob := login(t, n, bob.Handle, bob.AppPassword)
	_, refresh := asBob.Auth.(*atclient.PasswordAuth).GetTokens()
	var service struct{ Token string }
	err := asBob.Get(t.Context(), "com.atproto.server.getServiceAuth", map[string]any{"aud": n.PDSDID, "lxm": "com.atproto.repo.putRecord"}, &service)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		client *atclient.APIClient
		repo   string
		status int
		error  string
	}{
		"another's repo": {asBob, alice.DID, http.StatusUnauthorized, "AuthenticationRequired"},
		"nobody":         {atclient.NewAPIClient(n.PDSURL), bob.DID, http.StatusUnauthorized, "AuthMissing"},
		"refresh token":  {bearer(n, refresh), bob.DID, http.StatusBadRequest, "InvalidToken"},
		"service token":  {bearer(n, service.Token), bob.DID, http.StatusBadRequest, "InvalidToken"},
	} {
		t.Log(name)
		_, err := putProfile(t, c.client, c.repo, "did:web:evil.test")
		apiError(t, err, c.status, c.error)
		res, err := c.client.Do(t.Context(), uploadRequest([]byte(name)))
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
		if c.client != asBob && res.StatusCode != c.status {
			t.Errorf("uploadBlob: %d, want %d", res.StatusCode, c.status)
		}
	}
	for _, main := range []string{bob.Password, bob.AppPassword} {
		if _, err := putProfile(t, login(t, n, bob.DID, main), bob.DID, "did:web:hold.test"); err != nil {
			t.Errorf("bob may not write to his own repo: %v", err)
		}
	}
}

func uploadRequest(data []byte) *atclient.APIRequest {
	r := atclient.NewAPIRequest(http.MethodPost, "com.atproto.repo.uploadBlob", bytes.NewReader(data))
	r.Headers = http.Header{"Content-Type": {"application/octet-stream"}}
	return r
}

// The bytes of a manifest must come out as they went in, under the CID of their sha256.
func TestBlobs(t *testing.T) {
	t.Parallel()
	n := startNetwork(t, nil)
	alice := n.Accounts[0]
	client := login(t, n, alice.Handle, alice.AppPassword)
	data := []byte(`{"schemaVersion": 2}`)
	res, err := client.Do(t.Context(), uploadRequest(data))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	if answer, _ := io.ReadAll(res.Body); res.StatusCode != http.StatusOK || !bytes.Contains(answer, []byte(blobCID(t, data))) {
		t.Fatalf("uploadBlob: %d %s, want CID %s", res.StatusCode, answer, blobCID(t, data))
	}
	var made struct{ URI string }
	err = client.Post(t.Context(), "com.atproto.repo.createRecord", map[string]any{
		"repo": alice.DID, "collection": "io.atcr.manifest",
		"record": map[string]any{"$type": "io.atcr.manifest", "manifestBlob": map[string]any{
			"$type": "blob", "mimeType": "application/octet-stream", "size": len(data), "ref": map[string]string{"$link": blobCID(t, data)},
		}},
	}, &made)
	if err != nil {
		t.Fatal(err)
	}
	status, body := get(t, n.PDSURL+"/xrpc/com.atproto.sync.getBlob?did="+alice.DID+"&cid="+blobCID(t, data))
	if status != http.StatusOK || body != string(data) {
		t.Errorf("getBlob: %d %q", status, body)
	}
}

func blobCID(t *testing.T, data []byte) string {
	t.Helper()
	sum := sha256.Sum256(data)
	hash, err := multihash.Encode(sum[:], multihash.SHA2_256)
	if err != nil {
		t.Fatal(err)
	}
	return cid.NewCidV1(cid.Raw, hash).String()
}
