package appview

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"regexp"
	"strings"
	"testing"

	"atcr.io/internal/devnet"
)

// browser is one with cookies, which follows no redirect by itself.
type browser struct {
	*network
	client *http.Client
}

func (n *network) browser() *browser {
	n.t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		n.t.Fatal(err)
	}
	return &browser{n, &http.Client{Jar: jar, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}}
}

// send is a GET, or a POST of form's pairs.
func (b *browser) send(method, target string, form ...string) answer {
	b.t.Helper()
	if strings.HasPrefix(target, "/") {
		target = b.base + target
	}
	values := url.Values{}
	for i := 0; i+1 < len(form); i += 2 {
		values.Add(form[i], form[i+1])
	}
	req, err := http.NewRequestWithContext(b.t.Context(), method, target, strings.NewReader(values.Encode()))
	if err != nil {
		b.t.Fatal(err)
	}
	if method == http.MethodPost {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		req.Header.Set("Sec-Fetch-Site", "same-origin")
	}
	res, err := b.client.Do(req)
	if err != nil {
		b.t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	raw, err := io.ReadAll(res.Body)
	if err != nil {
		b.t.Fatal(err)
	}
	return answer{res.StatusCode, res.Header, string(raw)}
}

// callback goes through the sign-in up to the URL that leads back.
func (b *browser) callback(who, back string, d devnet.Decision) string {
	b.t.Helper()
	at := b.send(http.MethodPost, "/login", "who", who, "back", back)
	if at.status != http.StatusSeeOther {
		b.t.Fatalf("sign in as %s: %d %s", who, at.status, at.body)
	}
	callback, err := b.Authorize(b.t.Context(), at.header.Get("Location"), d)
	if err != nil {
		b.t.Fatal(err)
	}
	return callback
}

func decision(a devnet.Account) devnet.Decision {
	return devnet.Decision{Handle: a.Handle, Password: a.Password}
}

func (b *browser) signInAs(a devnet.Account) {
	b.t.Helper()
	at := b.send(http.MethodGet, b.callback(a.Handle, "/settings", decision(a)))
	if at.status != http.StatusSeeOther || at.header.Get("Location") != "/settings" {
		b.t.Fatalf("the callback: %d %s", at.status, at.body)
	}
}

// Would catch a sign-in that ends well for the wrong person, twice, elsewhere, or without what is needed.
func TestPagesSignIn(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	b := n.browser()
	if at := b.send(http.MethodGet, "/settings"); at.status != http.StatusSeeOther || at.header.Get("Location") != "/login?back=%2Fsettings" {
		t.Errorf("a stranger: %d %s", at.status, at.header.Get("Location"))
	}
	for who, status := range map[string]int{"nobody.test": 404, "": 400, "not a handle": 400, "<script>": 400} {
		if at := b.send(http.MethodPost, "/login", "who", who); at.status != status || !strings.Contains(at.body, `role="alert"`) || strings.Contains(at.body, "<script") {
			t.Errorf("%q: %d", who, at.status)
		}
	}
	denied := decision(n.alice)
	denied.Deny = true
	less := decision(n.alice)
	less.Without = []string{"repo:io.atcr.tag"}
	good := b.callback("alice.test", "/device", decision(n.alice))
	for what, test := range map[string]struct {
		at   answer
		want string
	}{
		"refused":         {n.browser().send(http.MethodGet, good), "This sign-in is over"}, // another browser
		"without a state": {b.send(http.MethodGet, "/oauth/callback"), "This sign-in is over"},
		"denied":          {func() answer { b := n.browser(); return b.send(http.MethodGet, b.callback("alice.test", "/", denied)) }(), "You said no"},
		"too little":      {func() answer { b := n.browser(); return b.send(http.MethodGet, b.callback("alice.test", "/", less)) }(), "repo:io.atcr.tag"},
		"somebody else": {func() answer {
			b := n.browser()
			return b.send(http.MethodGet, b.callback("alice.test", "/", decision(n.bob)))
		}(), "Another account"},
	} {
		if test.at.status < 400 || test.at.status >= 500 || !strings.Contains(test.at.body, test.want) || len(test.at.header.Values("Set-Cookie")) > 0 {
			t.Errorf("%s: %d %s", what, test.at.status, test.at.body)
		}
	}
	if at := b.send(http.MethodGet, good); at.status != http.StatusSeeOther || at.header.Get("Location") != "/device" {
		t.Errorf("the callback: %d %s", at.status, at.body)
	}
	if at := b.send(http.MethodGet, good); at.status != http.StatusBadRequest {
		t.Errorf("the callback again: %d", at.status)
	}
	if at := b.send(http.MethodGet, "/settings"); at.status != http.StatusOK || !strings.Contains(at.body, "alice.test") || !strings.Contains(at.body, n.public.did) {
		t.Errorf("the settings: %d %s", at.status, at.body)
	}
	if at := b.send(http.MethodPost, "/logout"); at.status != http.StatusSeeOther || b.send(http.MethodGet, "/settings").status != http.StatusSeeOther {
		t.Errorf("signed out: %d", at.status)
	}
}

// Would catch a browser that stays signed in by a cookie that another has replaced, and one that a sign-in
// signs out which did not end well.
func TestPagesSignInAgain(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	b := n.browser()
	b.signInAs(n.alice)
	at, err := url.Parse(n.base)
	if err != nil {
		t.Fatal(err)
	}
	first := n.browser()
	first.client.Jar.SetCookies(at, b.client.Jar.Cookies(at))
	denied := decision(n.bob)
	denied.Deny = true
	b.send(http.MethodGet, b.callback(n.bob.Handle, "/settings", denied))
	if got := first.send(http.MethodGet, "/settings"); got.status != http.StatusOK {
		t.Errorf("after a sign-in that was refused: %d", got.status)
	}
	b.signInAs(n.bob)
	if got := first.send(http.MethodGet, "/settings"); got.status != http.StatusSeeOther {
		t.Errorf("the cookie of before: %d", got.status)
	}
	b.signInAs(n.bob)
	if got := b.send(http.MethodGet, "/settings"); got.status != http.StatusOK || strings.Count(got.body, "signed in from") != 1 {
		t.Errorf("the new cookie: %d %s", got.status, got.body)
	}
}

// Would catch a page that does something other than what stands behind it.
func TestPages(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	b := n.browser()
	b.signInAs(n.bob)

	// A device, approved on the page.
	_, code := n.form("/auth/device/code", "", "client_id", "test", "device_name", "bob's laptop", "platform", "linux/amd64")
	page := strings.TrimPrefix(code["verification_uri_complete"].(string), n.base)
	if at := b.send(http.MethodGet, page); !strings.Contains(at.body, "bob&#39;s laptop") || !strings.Contains(at.body, "127.0.0.1") {
		t.Errorf("the device's page: %s", at.body)
	}
	poll := func() (answer, map[string]any) {
		return n.form("/auth/device/token", "", "grant_type", grantDeviceCode, "device_code", code["device_code"].(string))
	}
	if _, out := poll(); out["error"] != "authorization_pending" {
		t.Errorf("looking at the page approved: %v", out)
	}
	if at := b.send(http.MethodPost, "/device", "user_code", code["user_code"].(string), "decision", "approve"); at.status != 200 || !strings.Contains(at.body, "is signed in as bob.test") {
		t.Errorf("approve: %d %s", at.status, at.body)
	}
	_, out := poll()
	device, _ := out["access_token"].(string)
	if got := scopeOf(t, n.shown("bob.test", device, "repository:bob.test/app:push")); got != "repository:bob.test/app:push" {
		t.Errorf("the device is good for %q", got)
	}
	if at := b.send(http.MethodGet, "/device?user_code=BCDF-GHJK"); at.status != http.StatusNotFound || !strings.Contains(at.body, "no such code") {
		t.Errorf("a wrong code: %d", at.status)
	}

	// A hold.
	if at := b.send(http.MethodPost, "/settings/hold", "hold", n.alice.DID); at.status != http.StatusForbidden || !strings.Contains(at.body, "is not a hold") {
		t.Errorf("no hold: %d", at.status)
	}
	if at := b.send(http.MethodPost, "/settings/hold", "hold", n.private.did); at.status != http.StatusSeeOther {
		t.Errorf("a hold: %d %s", at.status, at.body)
	}
	u := n.withScope("bob.test:"+device, "repository:bob.test/app:pull,push")
	u.push("bob.test/app", newImage("pages"), "1.0")
	for _, r := range n.records(n.bob, "io.atcr.manifest") {
		if r["holdDid"] != n.private.did {
			t.Errorf("the push went to %v", r["holdDid"])
		}
	}

	// An access token, shown once.
	at := b.send(http.MethodPost, "/settings/token", "name", "CI", "repositories", "bob.test/app", "action", "pull", "days", "7")
	token := regexp.MustCompile(`atcrt_[A-Z2-7]+`).FindString(at.body)
	if got := scopeOf(t, n.shown("bob.test", token, "repository:bob.test/app:pull,push")); got != "repository:bob.test/app:pull" {
		t.Errorf("the token is good for %q", got)
	}
	if at := b.send(http.MethodPost, "/settings/token", "name", "CI", "repositories", "../x", "action", "pull", "days", "7"); at.status != http.StatusBadRequest {
		t.Errorf("a token for no repository: %d", at.status)
	}
	settings := b.send(http.MethodGet, "/settings").body
	if strings.Contains(settings, token) || strings.Contains(settings, device) || !strings.Contains(settings, "pull: app") {
		t.Errorf("the settings: %s", settings)
	}
	exported := b.send(http.MethodGet, "/settings/export").body
	var all export
	if err := json.Unmarshal([]byte(exported), &all); err != nil || len(all.Browsers) != 1 || len(all.Devices) != 1 || len(all.Tokens) != 1 || len(all.Sessions) != 1 || strings.Contains(exported, "atcr") && strings.Contains(exported, token) {
		t.Errorf("the export: %v %s", err, exported)
	}

	// Revoked: by somebody else, and by bob.
	other := n.browser()
	other.signInAs(n.alice)
	for _, kind := range []string{"device", "token", "browser", "session"} {
		entries := map[string][]exportEntry{"device": all.Devices, "token": all.Tokens, "browser": all.Browsers, "session": all.Sessions}[kind]
		if at := other.send(http.MethodPost, "/settings/revoke", "kind", kind, "id", entries[0].ID); at.status != http.StatusNotFound {
			t.Errorf("alice revokes bob's %s: %d", kind, at.status)
		}
	}
	if at := b.send(http.MethodPost, "/settings/revoke", "kind", "device", "id", all.Devices[0].ID); at.status != http.StatusSeeOther || n.shown("bob.test", device, "").status != http.StatusUnauthorized {
		t.Errorf("a revoked device: %d", at.status)
	}
	second := n.browser()
	second.signInAs(n.bob)
	if at := b.send(http.MethodPost, "/settings/delete", "sure", "yes"); at.status != 200 {
		t.Errorf("delete: %d %s", at.status, at.body)
	}
	if n.shown("bob.test", token, "").status != http.StatusUnauthorized || second.send(http.MethodGet, "/settings").status != http.StatusSeeOther {
		t.Error("something of bob's goes on after all was deleted")
	}
	if other.send(http.MethodGet, "/settings").status != http.StatusOK {
		t.Error("alice was signed out by bob")
	}
}

// Would catch a session that is ended in the settings while devices still act with it.
func TestPagesEndSession(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	b := n.browser()
	b.signInAs(n.alice)
	secret := n.device(n.alice)
	var all export
	if err := json.Unmarshal([]byte(b.send(http.MethodGet, "/settings/export").body), &all); err != nil || len(all.Sessions) != 1 {
		t.Fatal(err)
	}
	if at := b.send(http.MethodPost, "/settings/revoke", "kind", "session", "id", all.Sessions[0].ID); at.status != http.StatusSeeOther {
		t.Fatalf("end: %d %s", at.status, at.body)
	}
	if at := n.shown("alice.test", secret, ""); at.status != http.StatusUnauthorized || !strings.Contains(at.body, "/settings") {
		t.Errorf("a device without a session: %d %s", at.status, at.body)
	}
	if at := b.send(http.MethodGet, "/settings"); at.status != http.StatusSeeOther {
		t.Errorf("its browser: %d", at.status)
	}
	b.signInAs(n.alice)
	if at := n.shown("alice.test", secret, ""); at.status != http.StatusOK {
		t.Errorf("the device, after signing in again: %d %s", at.status, at.body)
	}
}

// Would catch an image page that shows what is not there, or is blocked.
func TestImagePage(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	n.as(n.alice, "alice.test/team/app").push("alice.test/team/app", newImage("one"), "1.0")
	page := func() answer { return request(t, http.MethodGet, n.base+"/r/alice.test/team/app", nil) }
	if got := page(); got.status != http.StatusOK || !strings.Contains(got.body, "/alice.test/team/app:1.0") {
		t.Errorf("%d %s", got.status, got.body)
	}
	for _, path := range []string{"/r/alice.test/none", "/r/nobody.test/app", "/r/alice.test/UPPER"} {
		if got := request(t, http.MethodGet, n.base+path, nil); got.status != http.StatusNotFound && got.status != http.StatusBadRequest {
			t.Errorf("%s: %d %s", path, got.status, got.body)
		}
	}
	if _, err := n.blocking().Add(t.Context(), "alice.test/team/app", "a court says so"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is blocked here too, and says why", func() bool {
		n.forget()
		got := page()
		return got.status == http.StatusUnavailableForLegalReasons && strings.Contains(strings.ToLower(got.body), "a court says so")
	})
}
