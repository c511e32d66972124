package appview

import (
	"encoding/hex"
	"net/http"
	"os"
	"strings"
	"testing"

	"atcr.io/internal/devnet"
	"atcr.io/internal/oci"
)

func firstSecret(path string) ([]byte, error) {
	all, err := loadSecrets(path)
	if err != nil {
		return nil, err
	}
	return all[0], nil
}

// Would catch a change of the secret that ends tokens, uploads or sign-ins under way; and an old secret that is
// still good after it was taken away.
func TestSecretIsReplaced(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	path := n.config.SecretKeyFile
	old, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	next := strings.Repeat("5a", secretBytes) + "\n"
	write := func(lines ...string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(strings.Join(lines, "")), 0o600); err != nil {
			t.Fatal(err)
		}
		n.restart()
	}
	sessions := n.PDS.Inject(devnet.Method("com.atproto.server.createSession"), func(w http.ResponseWriter, r *http.Request, next http.Handler) { next.ServeHTTP(w, r) })
	before := n.as(n.alice, "alice.test/app")
	location := before.must(202, before.do(http.MethodPost, startPath, nil)).header.Get("Location")
	location = before.must(202, before.do(http.MethodPatch, location, []byte("before "))).header.Get("Location")

	write(string(old), next) // known to every process, used by none
	before.must(204, before.do(http.MethodGet, location, nil))
	write(next, string(old)) // used
	location = before.must(202, before.do(http.MethodPatch, location, []byte("after"))).header.Get("Location")
	after := n.as(n.alice, "alice.test/app")
	after.must(201, after.do(http.MethodPut, location+"?digest="+oci.FromBytes([]byte("before after")).String(), nil))
	before.push("alice.test/app", newImage("with a token and a session of before"), "1.0")
	if sessions.Fired() > 2 {
		t.Errorf("%d sign-ins", sessions.Fired())
	}
	write(next) // the old one is gone
	if got := before.do(http.MethodGet, "/v2/", nil); got.status != 401 {
		t.Errorf("a token of the old secret: %d", got.status)
	}
	after.push("alice.test/app", newImage("with what the new one made"), "2.0")
	for what, text := range map[string]string{"none": "", "a short one": "abcd", "no hex": strings.Repeat("xy", 32), "five": strings.Repeat(hex.EncodeToString(make([]byte, 32))+"\n", 5)} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := loadSecrets(path); err == nil {
			t.Errorf("%s is taken", what)
		}
	}
}

// Would catch a lost secret that takes more with it than what it made: people sign in again, and what was under way
// begins anew, each told so.
func TestSecretIsLost(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	b, another := n.browser(), n.browser()
	b.signInAs(n.alice)
	device := n.device(n.alice)
	_, code := n.form("/auth/device/code", "", "client_id", "test", "device_name", "laptop", "platform", "linux/amd64")
	callback := another.callback(n.alice.Handle, "/settings", decision(n.alice))
	pushed := n.as(n.alice, "alice.test/app")
	pushed.push("alice.test/app", newImage("before"), "1.0")
	if err := os.Remove(n.config.SecretKeyFile); err != nil {
		t.Fatal(err)
	}
	n.restart() // with a new one

	if got := b.send(http.MethodGet, "/settings"); got.status != http.StatusSeeOther || got.header.Get("Location") != "/login?back=%2Fsettings" {
		t.Errorf("the browser: %d %s", got.status, got.body)
	}
	if got := another.send(http.MethodGet, callback); got.status != http.StatusBadRequest || !strings.Contains(got.body, "Begin again") {
		t.Errorf("the sign-in under way: %d %s", got.status, got.body)
	}
	deviceCode, _ := code["device_code"].(string)
	if got, out := n.form("/auth/device/token", "", "grant_type", grantDeviceCode, "device_code", deviceCode); got.status != http.StatusBadRequest || out["error"] != "invalid_grant" {
		t.Errorf("the device under way: %d %v", got.status, out)
	}
	if got := n.shown("alice.test", device, ""); got.status != http.StatusUnauthorized || !strings.Contains(got.body, "sign in again") {
		t.Errorf("the device: %d %s", got.status, got.body)
	}
	if got := pushed.do(http.MethodGet, "/v2/", nil); got.status != http.StatusUnauthorized {
		t.Errorf("a registry token: %d", got.status)
	}
	b.signInAs(n.alice)
	n.as(n.alice, "alice.test/app").push("alice.test/app", newImage("after"), "2.0")
	if got := n.shown("alice.test", n.device(n.alice), ""); got.status != http.StatusOK {
		t.Errorf("a new device: %d %s", got.status, got.body)
	}
	if got := b.send(http.MethodGet, "/settings"); got.status != http.StatusOK {
		t.Errorf("the settings: %d %s", got.status, got.body)
	}
}
