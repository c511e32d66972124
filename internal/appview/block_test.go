package appview

import (
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"atcr.io/internal/devnet"
	"atcr.io/internal/oci"
)

// blocking is the command's view of the running AppView's list.
func (n *network) blocking() *Blocking {
	n.t.Helper()
	b, err := OpenBlocking(n.t.Context(), n.config, slog.New(slog.DiscardHandler))
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() {
		if err := b.Close(); err != nil {
			n.t.Error(err)
		}
	})
	return b
}

// Would catch a block that the running AppView does not follow, that hits others, that does not say why, or that
// cannot be taken back.
func TestBlocks(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	alice, bob := n.as(n.alice, "alice.test/app", "alice.test/other", "bob.test/app"), n.as(n.bob, "bob.test/app", "alice.test/app")
	image := newImage("blocked")
	alice.push("alice.test/app", image, "1.0")
	alice.push("alice.test/other", image, "1.0")
	bob.push("bob.test/app", newImage("bob's"), "1.0")
	n.config.blocksFresh = 50 * time.Millisecond
	n.restart()
	list := n.blocking()
	layer := oci.FromBytes(image.layer).String()
	const why = "a court says so"
	refused := func(a answer, status int) bool {
		return a.status == status && a.code() == "DENIED" && strings.Contains(a.body, why)
	}
	get := func(u user, path string) func() answer {
		return func() answer { return u.do(http.MethodGet, path, nil) }
	}
	for subject, tt := range map[string]struct {
		status         int
		refused, other func() answer
	}{
		"alice.test/app":               {451, get(n.nobody(), "/v2/alice.test/app/manifests/1.0"), get(n.nobody(), "/v2/alice.test/other/manifests/1.0")},
		n.alice.DID + "/app":           {451, get(n.nobody(), "/v2/alice.test/app/tags/list"), get(n.nobody(), "/v2/bob.test/app/tags/list")},
		"alice.test":                   {451, get(bob, "/v2/alice.test/app/manifests/1.0"), get(bob, "/v2/bob.test/app/manifests/1.0")},
		n.alice.DID:                    {403, get(alice, "/v2/bob.test/app/manifests/1.0"), get(bob, "/v2/bob.test/app/manifests/1.0")},
		image.digest.String():          {451, get(n.nobody(), "/v2/alice.test/app/manifests/1.0"), get(n.nobody(), "/v2/bob.test/app/manifests/1.0")},
		layer:                          {451, get(n.nobody(), "/v2/alice.test/other/blobs/"+layer), get(n.nobody(), "/v2/alice.test/other/manifests/1.0")},
		"did:plc:z72i7hdynmk6r22z27h6": {0, nil, get(n.nobody(), "/v2/alice.test/app/manifests/1.0")},
	} {
		if _, err := list.Add(t.Context(), subject, why); err != nil {
			t.Fatalf("%s: %v", subject, err)
		}
		if tt.refused != nil {
			eventually(t, subject+" is refused", func() bool { return refused(tt.refused(), tt.status) })
		}
		if got := tt.other(); got.status != 200 {
			t.Errorf("%s is blocked, and another gets %d %s", subject, got.status, got.body)
		}
		if _, err := list.Remove(t.Context(), subject); err != nil {
			t.Fatalf("%s: %v", subject, err)
		}
		if tt.refused != nil {
			eventually(t, subject+" is served again", func() bool { a := tt.refused(); return a.status == 200 || a.status == 307 })
		}
	}
	if left := list.List(); len(left) != 0 {
		t.Errorf("%v", left)
	}
}

// Would catch writes and sign-ins that a block lets through.
func TestBlockedWrites(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	alice := n.as(n.alice, "alice.test/app")
	image := newImage("blocked")
	alice.push("alice.test/app", image, "1.0")
	list := n.blocking()
	block := func(subject string) {
		t.Helper()
		if _, err := list.Add(t.Context(), subject, "why"); err != nil {
			t.Fatal(err)
		}
		n.restart() // which reads the list at once
	}
	layer := oci.FromBytes(image.layer)
	block(layer.String())
	location := alice.must(202, alice.do(http.MethodPost, startPath, nil)).header.Get("Location")
	for what, got := range map[string]answer{
		"POST":     alice.do(http.MethodPost, startPath+"?digest="+layer.String(), image.layer),
		"mount":    alice.do(http.MethodPost, startPath+"?mount="+layer.String()+"&from=alice.test/app", nil),
		"PUT":      alice.do(http.MethodPut, location+"?digest="+layer.String(), image.layer),
		"HEAD":     alice.do(http.MethodHead, "/v2/alice.test/app/blobs/"+layer.String(), nil),
		"manifest": alice.put("alice.test/app", "2.0", image.manifest),
	} {
		if got.status != 451 {
			t.Errorf("%s of a blocked blob: %d %s", what, got.status, got.body)
		}
	}
	block("alice.test/app")
	if got := alice.do(http.MethodPost, startPath, nil); got.status != 451 || !strings.Contains(got.body, "why") {
		t.Errorf("a push to a blocked repository: %d %s", got.status, got.body)
	}
	alice.must(202, alice.do(http.MethodDelete, "/v2/alice.test/app/manifests/1.0", nil)) // its owner may clear up
	block(n.alice.DID)
	if got := alice.do(http.MethodGet, "/v2/", nil); got.status != 403 || !strings.Contains(got.body, "why") {
		t.Errorf("a token of before: %d %s", got.status, got.body)
	}
	got := request(t, http.MethodGet, n.base+"/auth/token", nil, "Authorization", basic(n.alice.Handle, n.alice.AppPassword))
	if got.status != 403 || got.code() != "DENIED" || !strings.Contains(got.body, "why") {
		t.Errorf("a sign-in: %d %s", got.status, got.body)
	}
}

// Would catch a person who is blocked before they ever came, and for whom a profile is made all the same.
func TestBlockedFirstSignIn(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	for _, who := range []string{n.alice.DID, n.bob.DID} {
		if _, err := n.blocking().Add(t.Context(), who, "spam"); err != nil {
			t.Fatal(err)
		}
	}
	n.restart() // which reads the list at once
	b := n.browser()
	b.signInAs(n.alice)
	if got := b.send(http.MethodGet, "/settings"); got.status != 403 || !strings.Contains(got.body, "spam") {
		t.Errorf("the settings: %d %s", got.status, got.body)
	}
	got := request(t, http.MethodGet, n.base+"/auth/token", nil, "Authorization", basic(n.bob.Handle, n.bob.AppPassword))
	if got.status != 403 || !strings.Contains(got.body, "spam") {
		t.Errorf("an app password: %d %s", got.status, got.body)
	}
	for _, who := range []devnet.Account{n.alice, n.bob} {
		if profiles := n.records(who, "io.atcr.sailor.profile"); len(profiles) != 0 {
			t.Errorf("%s has %v", who.Handle, profiles)
		}
	}
}

// Would catch a blocked person who approves devices and makes access tokens, and one who cannot leave.
func TestBlockedPages(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	b := n.browser()
	b.signInAs(n.alice)
	secret := n.device(n.alice)
	if _, err := n.blocking().Add(t.Context(), n.alice.DID, "spam"); err != nil {
		t.Fatal(err)
	}
	n.restart() // which reads the list at once
	_, code := n.form("/auth/device/code", "", "client_id", "test", "device_name", "laptop", "platform", "linux/amd64")
	userCode, _ := code["user_code"].(string)
	for what, got := range map[string]answer{
		"/device":         b.send(http.MethodPost, "/device", "user_code", userCode, "decision", "approve"),
		"/settings":       b.send(http.MethodGet, "/settings"),
		"/settings/token": b.send(http.MethodPost, "/settings/token", "name", "CI", "action", "pull", "days", "30"),
		"/settings/hold":  b.send(http.MethodPost, "/settings/hold", "hold", ""),
	} {
		if got.status != 403 || !strings.Contains(got.body, "spam") || strings.Contains(got.body, "atcrt_") {
			t.Errorf("%s: %d %s", what, got.status, got.body)
		}
	}
	deviceCode, _ := code["device_code"].(string)
	if _, out := n.form("/auth/device/token", "", "grant_type", grantDeviceCode, "device_code", deviceCode); out["error"] != "authorization_pending" {
		t.Errorf("the device: %v", out)
	}
	for _, path := range []string{"/auth/whoami", "/auth/hold", "/auth/holds"} {
		got := request(t, http.MethodGet, n.base+path, nil, "Authorization", "Bearer "+secret)
		if got.status != 403 || !strings.Contains(got.body, `"denied"`) || !strings.Contains(got.body, "spam") {
			t.Errorf("%s: %d %s", path, got.status, got.body)
		}
	}
	if got, _ := n.form("/auth/hold", secret, "hold", ""); got.status != 403 {
		t.Errorf("a choice of hold: %d %s", got.status, got.body)
	}
	if got, _ := n.form("/auth/device/revoke", secret); got.status != 204 {
		t.Errorf("revoke: %d %s", got.status, got.body)
	}
	if got := b.send(http.MethodGet, "/settings/export"); got.status != 200 || !strings.Contains(got.body, n.alice.DID) {
		t.Errorf("export: %d %s", got.status, got.body)
	}
	if got := b.send(http.MethodGet, "/settings/delete"); got.status != 200 {
		t.Errorf("delete: %d %s", got.status, got.body)
	}
	if got := b.send(http.MethodPost, "/logout"); got.status != 303 {
		t.Errorf("sign out: %d %s", got.status, got.body)
	}
	b.signInAs(n.alice)
	if got := b.send(http.MethodPost, "/settings/delete", "sure", "yes"); got.status != 200 || !strings.Contains(got.body, "keeps nothing of you") {
		t.Errorf("delete: %d %s", got.status, got.body)
	}
}

// Would catch a mount that brings what is blocked into another repository; the bytes themselves may be uploaded.
func TestMountOfBlocked(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	bob := n.as(n.bob, "bob.test/app")
	image := newImage("blocked")
	n.as(n.alice, "alice.test/app").push("alice.test/app", image, "1.0")
	list := n.blocking()
	mount := func() int {
		return bob.do(http.MethodPost, "/v2/bob.test/app/blobs/uploads/?mount="+oci.FromBytes(image.layer).String()+"&from=alice.test/app", nil).status
	}
	for _, subject := range []string{n.alice.DID, "alice.test/app"} {
		if _, err := list.Add(t.Context(), subject, "why"); err != nil {
			t.Fatal(err)
		}
		n.restart() // which reads the list at once
		if got := mount(); got != 202 {
			t.Errorf("%s is blocked: %d", subject, got)
		}
		if _, err := list.Remove(t.Context(), subject); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := list.Add(t.Context(), "alice.test/other", "why"); err != nil {
		t.Fatal(err)
	}
	n.restart()
	if got := mount(); got != 201 {
		t.Errorf("another repository is blocked: %d", got)
	}
}

// Would catch a list with what can never be met, and reasons that nobody can read.
func TestBlockSubjects(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	list := n.blocking()
	for _, subject := range []string{"", "nobody", "carol.test", "alice.test/", "alice.test/UPPER", "sha256:abc", "did:plc", "/app", "alice.test/../x"} {
		if one, err := list.Add(t.Context(), subject, "x"); err == nil {
			t.Errorf("%q is blocked as %+v", subject, one)
		}
	}
	for _, reason := range []string{"", " ", "two\nlines", strings.Repeat("x", 501)} {
		if _, err := list.Add(t.Context(), "alice.test", reason); err == nil {
			t.Errorf("reason %q", reason)
		}
	}
	if one, err := list.Add(t.Context(), "Alice.test/team/app", " x "); err != nil || one.Subject != n.alice.DID+"/team/app" || one.Reason != "x" {
		t.Errorf("%+v, %v", one, err)
	}
	_, again := list.Add(t.Context(), n.alice.DID+"/team/app", "y")
	_, unknown := list.Remove(t.Context(), "bob.test")
	if all := list.List(); again != nil || unknown == nil || len(all) != 1 || all[0].Reason != "y" {
		t.Errorf("%v, %v, %v", all, again, unknown)
	}
	if _, err := list.Remove(t.Context(), "alice.test/team/app"); err != nil || len(list.List()) != 0 {
		t.Error(errors.Join(err, errors.New("still blocked")))
	}
}
