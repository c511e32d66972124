package e2e

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"atcr.io/internal/oci"
	"atcr.io/test/components"
)

// Would catch access that follows anything but the name's owner and the hold's records: a stranger who
// pushes, an anonymous pull from a private hold, a delete that reaches into another repository.
func TestAccess(t *testing.T) {
	t.Parallel()
	n := startNetwork(t, "filesystem")
	crane := components.Path(t, "crane")
	nobody, alice, bob := dockerConfig(t), dockerConfig(t), dockerConfig(t)
	for config, account := range map[string]components.Account{alice: n.alice, bob: n.bob} {
		command(t, []string{config}, crane, "auth", "login", n.registry, "-u", account.Handle, "-p", account.AppPassword)
	}
	image := newImage(t)
	push := func(config, reference string) (string, error) {
		return tryCommand(t, []string{config}, crane, "push", image.layout, n.registry+"/"+reference)
	}
	pull := func(config, reference string) (string, error) {
		return tryCommand(t, []string{config}, crane, "pull", "--format=oci", n.registry+"/"+reference, filepath.Join(t.TempDir(), "out"))
	}
	must := func(out string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	refused := func(what string, out string, err error) {
		t.Helper()
		if err == nil {
			t.Errorf("%s was not refused:\n%s", what, out)
		}
	}

	must(push(alice, "alice.test/one:1.0"))
	must(push(alice, "alice.test/team/two:1.0"))
	must(push(bob, "bob.test/open:1.0"))
	// The hold is told, with tokens that the reference PDS signed: what was pushed is recorded, and bob is a member.
	waitUntil(t, "the hold has alice's layer records", func() bool {
		return n.holdRecords(t, n.public, n.publicDID, "io.atcr.hold.layer", n.alice.DID) == 2*(len(image.blobs)-1)
	})
	waitUntil(t, "bob is a member", func() bool {
		return n.holdRecords(t, n.public, n.publicDID, "io.atcr.hold.crew", n.bob.DID) == 1
	})
	waitUntil(t, "the hold posts about what was pushed", func() bool {
		_, posts := get(t, n.public.url+"/xrpc/com.atproto.repo.listRecords?collection=app.bsky.feed.post&repo="+url.QueryEscape(n.publicDID))
		for _, want := range []string{
			"@alice.test pushed one:1.0", "@alice.test pushed team/two:1.0", "@bob.test pushed open:1.0", "MB · 5 layers · linux/amd64", "http://" + n.registry + "/r/alice.test/team/two", n.bob.DID,
		} {
			if !strings.Contains(posts, want) {
				return false
			}
		}
		return strings.Count(posts, `"app.bsky.feed.post"`) == 3
	})
	out, err := push(bob, "alice.test/one:2.0")
	refused("a stranger's push", out, err)
	out, err = push(nobody, "alice.test/one:2.0")
	refused("an anonymous push", out, err)
	out, err = tryCommand(t, []string{nobody}, crane, "auth", "login", n.registry, "-u", n.alice.Handle, "-p", "wrong-pass-word-here")
	if err == nil { // crane keeps what it is given; the push shows whether it counts
		out, err = push(nobody, "alice.test/one:2.0")
	}
	refused("a wrong password", out, err)

	// The same image in two repositories: the record of one is deleted at the PDS, the other is still pulled.
	deleteManifestRecords(t, n, "one")
	waitUntil(t, "the deleted image is gone", func() bool {
		_, err := pull(dockerConfig(t), "alice.test/one@"+image.digest)
		return err != nil
	})
	must(pull(dockerConfig(t), "alice.test/team/two:1.0"))

	// bob's profile names his own private hold.
	putProfile(t, n, n.bob, n.privateDID)
	tries := 0 // each to a new repository: a client pushes nothing that is there
	waitUntil(t, "bob's push lands in his own hold", func() bool {
		tries++
		repository := fmt.Sprintf("try%d", tries)
		must(push(bob, "bob.test/"+repository+":1.0"))
		return holdOf(t, n, n.bob, repository) == n.privateDID
	})
	must(push(bob, "bob.test/secret:1.0"))
	must(pull(bob, "bob.test/secret:1.0"))
	for config, who := range map[string]string{dockerConfig(t): "an anonymous pull", alice: "a stranger's pull"} {
		out, err := pull(config, "bob.test/secret:1.0")
		refused(who+" from a private hold", out, err)
	}
	config := strings.TrimPrefix(image.blobs[0], "sha256:")
	status, body := get(t, n.private.url+"/xrpc/com.atproto.sync.getBlob?did="+n.bob.DID+"&cid=sha256:"+config)
	if status != http.StatusUnauthorized && status != http.StatusForbidden {
		t.Errorf("the private hold answered nobody with %d %s", status, body)
	}
	missing := oci.FromBytes([]byte("not there"))
	if s, _ := get(t, n.private.url+"/xrpc/com.atproto.sync.getBlob?did="+n.bob.DID+"&cid="+missing.String()); s != status {
		t.Errorf("the private hold tells nobody which blobs it has: %d for one, %d for another", status, s)
	}

	// alice chooses bob's hold, where she is not crew: refused, with what to do.
	putProfile(t, n, n.alice, n.privateDID)
	waitUntil(t, "alice's push to bob's hold is refused", func() bool {
		tries++
		out, err = push(alice, fmt.Sprintf("alice.test/three%d:1.0", tries))
		return err != nil
	})
	if !strings.Contains(out, "crew") {
		t.Errorf("the refusal does not say what to do:\n%s", out)
	}

	// A change of the hold's key changes nothing for those who push and pull; bob makes alice a member from elsewhere.
	if !strings.HasPrefix(n.privateDID, "did:plc:") {
		t.Errorf("the private hold is %s", n.privateDID)
	}
	command(t, n.private.env, binaries.hold, "key", "rotate")
	must(pull(bob, "bob.test/secret:1.0"))
	must(push(bob, "bob.test/secret:2.0"))
	command(t, []string{"APP_PASSWORD=" + n.bob.AppPassword, "HOLD_PLC_URL=" + n.pds.PLCURL, "TEST_MODE=true"},
		binaries.hold, "crew", "add", n.alice.DID, "--hold", n.private.url, "--as", n.bob.DID)
	waitUntil(t, "alice pushes to bob's hold", func() bool {
		tries++
		_, err := push(alice, fmt.Sprintf("alice.test/four%d:1.0", tries))
		return err == nil
	})
}

// Would catch bytes served that were never hashed, and an upload that survives a crash half-written.
func TestBytes(t *testing.T) {
	t.Parallel()
	for _, driver := range []string{"filesystem", "s3"} {
		t.Run(driver, func(t *testing.T) {
			t.Parallel()
			n := startNetwork(t, driver)
			token := registryToken(t, n, n.alice, "repository:alice.test/bytes:pull,push")
			base := "http://" + n.registry + "/v2/alice.test/bytes/blobs/"
			blob := make([]byte, 20<<20)
			_, _ = rand.Read(blob) // never fails
			digest := oci.FromBytes(blob)

			wrong := oci.FromBytes([]byte("something else"))
			location := startUpload(t, base, token)
			do(t, http.MethodPatch, location, token, bytes.NewReader(blob), http.StatusAccepted)
			do(t, http.MethodPut, location+"?digest="+wrong.String(), token, nil, http.StatusBadRequest)
			do(t, http.MethodPut, startUpload(t, base, token)+"?digest="+wrong.String(), token, bytes.NewReader(blob), http.StatusBadRequest)
			for _, d := range []oci.Digest{digest, wrong} {
				if status, _ := get(t, base+d.String(), "Authorization", "Bearer "+token); status != http.StatusNotFound {
					t.Errorf("%s is readable after its upload was refused: %d", d, status)
				}
			}

			// The hold is killed in the middle of an upload.
			location = startUpload(t, base, token)
			ctx, cancel := context.WithCancel(t.Context())
			body, started := newStall(ctx, blob[:10<<20])
			sent := make(chan int, 1)
			go func() { sent <- patch(ctx, location, token, body) }()
			<-started
			n.public.kill(syscall.SIGKILL)
			cancel()
			if status := <-sent; status != 0 && status < 500 {
				t.Errorf("the upload was answered with %d though its hold was killed", status)
			}
			n.public.start(t, "/xrpc/_health")
			for _, d := range []oci.Digest{digest, oci.FromBytes(blob[:10<<20])} {
				if status, _ := get(t, base+d.String(), "Authorization", "Bearer "+token); status != http.StatusNotFound {
					t.Errorf("%s is there after the hold was killed in its upload: %d", d, status)
				}
			}
			location = startUpload(t, base, token)
			do(t, http.MethodPatch, location, token, bytes.NewReader(blob), http.StatusAccepted)
			do(t, http.MethodPut, location+"?digest="+digest.String(), token, nil, http.StatusCreated)
			if status, got := get(t, base+digest.String(), "Authorization", "Bearer "+token); status != http.StatusOK || !digest.Matches([]byte(got)) {
				t.Errorf("after the restart the blob is answered with %d and %d bytes", status, len(got))
			}
			config, crane, image := dockerConfig(t), components.Path(t, "crane"), newImage(t)
			command(t, []string{config}, crane, "auth", "login", n.registry, "-u", n.alice.Handle, "-p", n.alice.AppPassword)
			command(t, []string{config}, crane, "push", image.layout, n.registry+"/alice.test/bytes:1.0")
		})
	}
}

// Would catch a full disk that is answered with a success, that stays full of what was refused, or that ends
// the hold.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	n := startNetwork(t, "full disk")
	token := registryToken(t, n, n.alice, "repository:alice.test/full:pull,push")
	base := "http://" + n.registry + "/v2/alice.test/full/blobs/"
	blob := make([]byte, 20<<20)
	_, _ = rand.Read(blob) // never fails
	digest := oci.FromBytes(blob)
	location := startUpload(t, base, token)
	if status := patch(t.Context(), location, token, bytes.NewReader(blob)); status != http.StatusInsufficientStorage && status != http.StatusServiceUnavailable {
		t.Errorf("a full disk is answered with %d", status)
	}
	do(t, http.MethodDelete, location, token, nil, http.StatusNoContent)
	if status, _ := get(t, base+digest.String(), "Authorization", "Bearer "+token); status != http.StatusNotFound {
		t.Errorf("half a blob is answered with %d", status)
	}
	small := blob[:4<<20]
	do(t, http.MethodPut, startUpload(t, base, token)+"?digest="+oci.FromBytes(small).String(), token, bytes.NewReader(small), http.StatusCreated)
}

// Would catch a start on a full volume that says nothing of what to do, or that leaves half a hold behind: once
// there is room, the same start makes one.
func TestFullDatabase(t *testing.T) {
	t.Parallel()
	dir := smallDisk(t)
	filler, err := os.Create(filepath.Join(dir, "filler"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = filler.Close() }()
	if _, err := io.Copy(filler, io.LimitReader(rand.Reader, 16<<20)); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("the volume is not full: %v", err)
	}
	port := freePort(t)
	address := fmt.Sprintf("127.0.0.1:%d", port)
	env := []string{
		"HOLD_PUBLIC_URL=http://" + address, "HOLD_SERVER_ADDR=" + address, "HOLD_DEBUG_ADDR=", "HOLD_OWNER=did:plc:owner",
		"STORAGE_DRIVER=filesystem", "STORAGE_ROOT_DIR=" + t.TempDir(), "HOLD_DATABASE_DIR=" + dir,
	}
	if out, err := tryCommand(t, env, binaries.hold); err == nil || !strings.Contains(out, "Make room on the volume of HOLD_DATABASE_DIR") {
		t.Errorf("%v\n%s", err, tail(out))
	}
	if err := filler.Truncate(0); err != nil {
		t.Fatal(err)
	}
	startDaemon(t, binaries.hold, "http://"+address, "/xrpc/_health", env...)
}

// patch sends body to an upload and returns the status, 0 where there was no answer.
func patch(ctx context.Context, location, token string, body io.Reader) int {
	req, err := http.NewRequestWithContext(ctx, http.MethodPatch, location, body)
	if err != nil {
		return 0
	}
	req.Header.Set("Authorization", "Bearer "+token)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0
	}
	_ = res.Body.Close()
	return res.StatusCode
}

// stall is a body that gives its bytes, says so, and then waits for the end of ctx.
type stall struct {
	ctx     context.Context
	rest    []byte
	started chan struct{}
}

func newStall(ctx context.Context, b []byte) (io.Reader, <-chan struct{}) {
	s := &stall{ctx: ctx, rest: b, started: make(chan struct{})}
	return s, s.started
}

func (s *stall) Read(p []byte) (int, error) {
	if len(s.rest) == 0 {
		close(s.started)
		<-s.ctx.Done()
		return 0, s.ctx.Err()
	}
	n := copy(p, s.rest)
	s.rest = s.rest[n:]
	return n, nil
}

func dockerConfig(t *testing.T) string { return "DOCKER_CONFIG=" + t.TempDir() }

func registryToken(t *testing.T, n *network, a components.Account, scope string) string {
	t.Helper()
	return tokenAt(t, "http://"+n.registry, a, scope)
}

// tokenAt is a token of the AppView at base, of nobody where the account has no handle.
func tokenAt(t *testing.T, base string, a components.Account, scope string) string {
	t.Helper()
	_, service, _ := strings.Cut(base, "://")
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, base+"/auth/token?service="+service+"&scope="+scope, nil)
	if err != nil {
		t.Fatal(err)
	}
	if a.Handle != "" {
		req.SetBasicAuth(a.Handle, a.AppPassword)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	var answer struct{ Token string }
	err = json.NewDecoder(res.Body).Decode(&answer)
	if err := errors.Join(err, res.Body.Close()); err != nil || answer.Token == "" {
		t.Fatalf("no token: %s, %v", res.Status, err)
	}
	return answer.Token
}

func startUpload(t *testing.T, base, token string) string {
	t.Helper()
	return do(t, http.MethodPost, base+"uploads/", token, nil, http.StatusAccepted)
}

// do sends a request that must be answered with want, and returns the answer's Location, whole.
func do(t *testing.T, method, url, token string, body io.Reader, want int) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(res.Body)
	if err := errors.Join(err, res.Body.Close()); err != nil {
		t.Fatal(err)
	}
	if res.StatusCode != want {
		t.Fatalf("%s %s: %s, want %d: %s", method, req.URL.Path, res.Status, want, text)
	}
	location, err := req.URL.Parse(res.Header.Get("Location"))
	if err != nil {
		t.Fatal(err)
	}
	return location.String()
}

// xrpcAs calls the PDS with an account's main password, as a person's own client would.
func xrpcAs(t *testing.T, n *network, a components.Account, nsid string, in, out any) {
	t.Helper()
	var session struct{ AccessJwt string }
	call(t, n.pds.URL+"/xrpc/com.atproto.server.createSession", "", map[string]string{"identifier": a.Handle, "password": a.Password}, &session)
	call(t, n.pds.URL+"/xrpc/"+nsid, session.AccessJwt, in, out)
}

func call(t *testing.T, url, token string, in, out any) {
	t.Helper()
	raw, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(res.Body)
	if err := errors.Join(err, res.Body.Close()); err != nil {
		t.Fatal(err)
	}
	if res.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s: %s", url, res.Status, text)
	}
	if out != nil {
		if err := json.Unmarshal(text, out); err != nil {
			t.Fatal(err)
		}
	}
}

type manifestRecords struct {
	Records []struct {
		URI   string
		Value struct{ Repository, HoldDid string }
	}
}

func listManifests(t *testing.T, n *network, a components.Account) manifestRecords {
	t.Helper()
	var list manifestRecords
	status, body := get(t, n.pds.URL+"/xrpc/com.atproto.repo.listRecords?collection=io.atcr.manifest&repo="+a.DID)
	if status != http.StatusOK {
		t.Fatalf("listRecords: %d %s", status, body)
	}
	if err := json.Unmarshal([]byte(body), &list); err != nil {
		t.Fatal(err)
	}
	return list
}

func deleteManifestRecords(t *testing.T, n *network, repository string) {
	t.Helper()
	deleted := 0
	for _, r := range listManifests(t, n, n.alice).Records {
		if r.Value.Repository == repository {
			xrpcAs(t, n, n.alice, "com.atproto.repo.deleteRecord", map[string]string{
				"repo": n.alice.DID, "collection": "io.atcr.manifest", "rkey": r.URI[strings.LastIndex(r.URI, "/")+1:],
			}, nil)
			deleted++
		}
	}
	if deleted != 1 {
		t.Fatalf("%d manifest records of %s", deleted, repository)
	}
}

func holdOf(t *testing.T, n *network, a components.Account, repository string) string {
	t.Helper()
	for _, r := range listManifests(t, n, a).Records {
		if r.Value.Repository == repository {
			return r.Value.HoldDid
		}
	}
	t.Fatalf("no manifest record of %s", repository)
	return ""
}

func putProfile(t *testing.T, n *network, a components.Account, holdDID string) {
	t.Helper()
	xrpcAs(t, n, a, "com.atproto.repo.putRecord", map[string]any{
		"repo": a.DID, "collection": "io.atcr.sailor.profile", "rkey": "self", "record": map[string]any{
			"$type": "io.atcr.sailor.profile", "defaultHold": holdDID, "createdAt": "2026-01-01T00:00:00Z", "updatedAt": "2026-01-01T00:00:00Z",
		},
	}, nil)
}

// waitUntil waits for what a cache of a few seconds may delay.
// holdRecords is how many records of a collection at a hold name did.
func (n *network) holdRecords(t *testing.T, at *daemon, holdDID, collection, did string) int {
	t.Helper()
	status, body := get(t, at.url+"/xrpc/com.atproto.repo.listRecords?limit=100&collection="+collection+"&repo="+url.QueryEscape(holdDID))
	if status != http.StatusOK {
		t.Fatalf("%d %s", status, body)
	}
	var out struct {
		Records []struct {
			Value struct{ UserDid, Member string }
		}
	}
	if err := json.Unmarshal([]byte(body), &out); err != nil {
		t.Fatal(err)
	}
	count := 0
	for _, r := range out.Records {
		if r.Value.UserDid == did || r.Value.Member == did {
			count++
		}
	}
	return count
}

func waitUntil(t *testing.T, what string, done func() bool) {
	t.Helper()
	for range 60 {
		if done() {
			return
		}
		pause(t)
	}
	t.Fatalf("in vain: %s", what)
}
