package credhelper

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/docker/docker-credential-helpers/credentials"
	"github.com/zalando/go-keyring"
)

// keychain is one in memory that can be missing, or locked.
type keychain struct {
	mu      sync.Mutex
	secrets map[string]string
	broken  error
	locked  chan struct{} // not nil: every call waits for it
}

func (k *keychain) enter() (func(), error) {
	if k.locked != nil {
		<-k.locked
	}
	k.mu.Lock()
	return k.mu.Unlock, k.broken
}

func (k *keychain) Set(key, secret string) error {
	leave, err := k.enter()
	defer leave()
	if err == nil {
		k.secrets[key] = secret
	}
	return err
}

func (k *keychain) Get(key string) (string, error) {
	leave, err := k.enter()
	defer leave()
	secret, ok := k.secrets[key]
	if err == nil && !ok {
		err = errNoSecret
	}
	return secret, err
}

func (k *keychain) Delete(key string) error {
	leave, err := k.enter()
	defer leave()
	delete(k.secrets, key)
	return err
}

// registry is an AppView's device endpoints, with one answer for each poll.
type registry struct {
	*httptest.Server
	host    string
	mu      sync.Mutex
	polls   []string // errors; "" gives a secret
	revoked []string
	given   int
}

func newRegistry(t *testing.T, polls ...string) *registry {
	t.Helper()
	r := &registry{polls: polls}
	mux := http.NewServeMux()
	answer := func(w http.ResponseWriter, status int, v any) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(v)
	}
	mux.HandleFunc("POST /auth/device/code", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, 200, map[string]any{"device_code": "d", "user_code": "BCDF-GHJK", "verification_uri": r.URL + "/device", "verification_uri_complete": r.URL + "/device?user_code=BCDF-GHJK", "expires_in": 60, "interval": 1})
	})
	mux.HandleFunc("POST /auth/device/token", func(w http.ResponseWriter, _ *http.Request) {
		r.mu.Lock()
		defer r.mu.Unlock()
		said := r.polls[0]
		r.polls = r.polls[1:]
		if said != "" {
			answer(w, 400, map[string]string{"error": said})
			return
		}
		r.given++
		answer(w, 200, map[string]string{"access_token": fmt.Sprint("atcrd_", r.given), "did": "did:plc:alice", "handle": "alice.test"})
	})
	mux.HandleFunc("POST /auth/device/revoke", func(w http.ResponseWriter, req *http.Request) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.revoked = append(r.revoked, strings.TrimPrefix(req.Header.Get("Authorization"), "Bearer "))
		w.WriteHeader(204)
	})
	r.Server = httptest.NewServer(mux)
	t.Cleanup(r.Close)
	r.host = strings.TrimPrefix(r.URL, "http://")
	return r
}

// ended are the secrets that were revoked, in their order.
func (r *registry) ended() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string(nil), r.revoked...)
}

func newHelper(t *testing.T) (*Helper, *keychain, *bytes.Buffer) {
	t.Helper()
	k, stderr := &keychain{secrets: map[string]string{}}, &bytes.Buffer{}
	return &Helper{Dir: t.TempDir(), Keys: k, Patience: 50 * time.Millisecond, Client: http.DefaultClient, Stderr: stderr, Now: time.Now}, k, stderr
}

// ask does what docker does.
func ask(t *testing.T, h *Helper, action, in string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	err := credentials.HandleCommand(h, action, strings.NewReader(in), &out)
	return out.String(), err
}

// Would catch an absence that docker takes for a failure, and one that leaves people without the next step.
func TestAbsence(t *testing.T) {
	t.Parallel()
	h, _, stderr := newHelper(t)
	_, err := ask(t, h, "get", "atcr.test/alice.test/app\n")
	if err == nil || err.Error() != "credentials not found in native keychain" {
		t.Errorf("the error is %q", err)
	}
	if !strings.Contains(stderr.String(), "docker-credential-atcr login atcr.test\n") {
		t.Errorf("standard error has %q", stderr)
	}
	if out, err := ask(t, h, "list", ""); err != nil || out != "{}\n" {
		t.Errorf("list: %q, %v", out, err)
	}
}

// Would catch the wrong account for an image, and answers that clients cannot find.
func TestAccounts(t *testing.T) {
	t.Parallel()
	h, _, _ := newHelper(t)
	for _, who := range []string{"alice.test", "did:plc:bob"} {
		in := fmt.Sprintf(`{"ServerURL":"https://atcr.test","Username":%q,"Secret":"secret of %s"}`, who, who)
		if _, err := ask(t, h, "store", in); err != nil {
			t.Fatal(err)
		}
	}
	for server, want := range map[string]string{
		"atcr.test": "did:plc:bob", "https://atcr.test/v2/": "did:plc:bob", "atcr.test/alice.test/app": "alice.test", "https://atcr.test/Alice.test/app": "alice.test",
		"atcr.test/did_plc_bob/team/app": "did:plc:bob", "atcr.test/carol.test/app": "did:plc:bob", "ATCR.test/alice.test": "alice.test",
	} {
		out, err := ask(t, h, "get", server)
		var got credentials.Credentials
		if err != nil || json.Unmarshal([]byte(out), &got) != nil || got.Username != want || got.Secret != "secret of "+want || got.ServerURL != server {
			t.Errorf("%s: %q, %v", server, out, err)
		}
	}
	if _, err := ask(t, h, "get", "other.test"); !credentials.IsErrCredentialsNotFound(err) {
		t.Errorf("another registry: %v", err)
	}
	if out, _ := ask(t, h, "list", ""); out != `{"atcr.test":"did:plc:bob"}`+"\n" {
		t.Errorf("list: %s", out)
	}
	if _, err := ask(t, h, "erase", "atcr.test"); err != nil {
		t.Fatal(err)
	}
	if out, _ := ask(t, h, "list", ""); out != `{"atcr.test":"alice.test"}`+"\n" {
		t.Errorf("list after erase: %s", out)
	}
}

// Would catch a client that waits for ever on a keychain that asks for its password, and a locked keychain
// that is taken for nobody being signed in.
func TestLockedKeychain(t *testing.T) {
	t.Parallel()
	h, k, stderr := newHelper(t)
	if _, err := ask(t, h, "store", `{"ServerURL":"atcr.test","Username":"alice.test","Secret":"s"}`); err != nil {
		t.Fatal(err)
	}
	k.locked = make(chan struct{})
	t.Cleanup(func() { close(k.locked) })
	if _, err := ask(t, h, "get", "atcr.test"); !errors.Is(err, errLocked) {
		t.Errorf("get: %v", err)
	}
	// What comes now goes into the file, which is said once.
	for _, server := range []string{"third.test", "other.test"} {
		if _, err := ask(t, h, "store", `{"ServerURL":"`+server+`","Username":"alice.test","Secret":"in the file"}`); err != nil {
			t.Fatal(err)
		}
	}
	if said := stderr.String(); strings.Count(said, h.secretsFile()) != 1 || !strings.Contains(said, "is locked") || strings.Contains(said, "no keychain") {
		t.Errorf("it says %q", said)
	}
	if out, err := ask(t, h, "get", "other.test"); err != nil || !strings.Contains(out, "in the file") {
		t.Errorf("%q, %v", out, err)
	}
	info, err := os.Stat(h.secretsFile())
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file of secrets: %v, %v", info.Mode(), err)
	}
	if err := os.Chmod(h.secretsFile(), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := ask(t, h, "get", "other.test"); err == nil {
		t.Error("secrets that everybody could read are used without a word")
	}
}

// Would catch a locked keychain of a desktop whose words tell nobody what to do. Not parallel: the library has one
// keychain for all.
func TestSystemKeychain(t *testing.T) {
	k := SystemKeychain{}
	keyring.MockInitWithError(errors.New("failed to unlock correct collection '/org/freedesktop/secrets/collection/login'"))
	_, err := k.Get("a")
	for what, err := range map[string]error{"get": err, "set": k.Set("a", "b"), "delete": k.Delete("a")} {
		if !errors.Is(err, errLocked) {
			t.Errorf("%s: %v", what, err)
		}
	}
	keyring.MockInit()
	if _, err := k.Get("a"); !errors.Is(err, errNoSecret) {
		t.Errorf("no secret: %v", err)
	}
	if err := errors.Join(k.Delete("a"), k.Set("a", "b")); err != nil {
		t.Error(err)
	}
	if secret, err := k.Get("a"); err != nil || secret != "b" {
		t.Errorf("%q, %v", secret, err)
	}
}

// Would catch a sign-in that forgets to wait, that keeps an old device alive, or that says nothing of the file.
func TestLogin(t *testing.T) {
	t.Parallel()
	h, k, _ := newHelper(t)
	k.broken = errors.New("nobody at the bus")
	r := newRegistry(t, "authorization_pending", "", "", "access_denied", "expired_token")
	var out bytes.Buffer
	opened := ""
	o := loginOptions{Name: "laptop", QR: true, Browser: func(url string) error { opened = url; return nil }}
	a, err := h.login(t.Context(), r.host, o, &out)
	if err != nil || a.Handle != "alice.test" || a.Store != inFile {
		t.Fatalf("%+v, %v", a, err)
	}
	if !strings.Contains(out.String(), "BCDF-GHJK") || !strings.Contains(out.String(), "▀") || !strings.HasSuffix(opened, "/device?user_code=BCDF-GHJK") ||
		strings.Count(out.String(), "There is no keychain here that works (nobody at the bus): secrets are kept in "+h.secretsFile()) != 1 {
		t.Errorf("opened %q, said\n%s", opened, &out)
	}
	if got, err := ask(t, h, "get", r.host); err != nil || !strings.Contains(got, "atcrd_1") {
		t.Errorf("%q, %v", got, err)
	}
	out.Reset()
	if _, err := h.login(t.Context(), r.host, loginOptions{Name: "laptop"}, &out); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(out.String(), "keychain") || strings.Join(r.ended(), " ") != "atcrd_1" {
		t.Errorf("the second time: revoked %v, said\n%s", r.ended(), &out)
	}
	if _, err := h.login(t.Context(), r.host, o, &out); !errors.Is(err, errRefused) {
		t.Errorf("refused: %v", err)
	}
	if _, err := h.login(t.Context(), r.host, o, &out); err == nil || !strings.Contains(err.Error(), "in time") {
		t.Errorf("expired: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	o.Browser = func(string) error { cancel(); return nil }
	if _, err := h.login(ctx, r.host, o, &out); !errors.Is(err, context.Canceled) {
		t.Errorf("Ctrl-C: %v", err)
	}
	if _, err := ask(t, h, "erase", r.host); err != nil || strings.Join(r.ended(), " ") != "atcrd_1 atcrd_2" {
		t.Errorf("erase: revoked %v, %v", r.ended(), err)
	}
}

// Would catch a server that makes the helper open what is no web page.
func TestAddresses(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]bool{"https://a/device": true, "http://127.0.0.1:1/d": true, "javascript:alert(1)": false, "file:///etc/passwd": false, "-x": false, "": false, "https://u:p@a/": false} {
		if isWeb(text) != want {
			t.Errorf("%q is a web page: %v", text, !want)
		}
	}
	for registry, want := range map[string]string{"atcr.test": "https://atcr.test", "localhost:5000": "http://localhost:5000", "127.0.0.1:5000": "http://127.0.0.1:5000", "[::1]:5000": "http://[::1]:5000", "10.0.0.1": "https://10.0.0.1"} {
		if got := baseURL(registry); got != want {
			t.Errorf("%s is at %s", registry, got)
		}
	}
}

// Would catch somebody who is asked to approve what this machine then cannot keep.
func TestLoginBesideBrokenFile(t *testing.T) {
	t.Parallel()
	h, _, _ := newHelper(t)
	r := newRegistry(t, "")
	if err := os.WriteFile(h.path("accounts.json"), []byte("{broken"), 0o600); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	_, err := h.login(t.Context(), r.host, loginOptions{Name: "laptop"}, &out)
	if err == nil || !strings.Contains(err.Error(), "accounts.json") || out.Len() > 0 {
		t.Errorf("%v, and it says %q", err, &out)
	}
}
