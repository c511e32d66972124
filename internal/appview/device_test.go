package appview

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/internal/credential"
	"atcr.io/internal/devnet"
	"atcr.io/internal/session"
)

// form posts a form and decodes the answer.
func (n *network) form(path, secret string, values ...string) (answer, map[string]any) {
	n.t.Helper()
	v := url.Values{}
	for i := 0; i+1 < len(values); i += 2 {
		v.Set(values[i], values[i+1])
	}
	header := []string{"Content-Type", "application/x-www-form-urlencoded"}
	if secret != "" {
		header = append(header, "Authorization", "Bearer "+secret)
	}
	a := request(n.t, http.MethodPost, n.base+path, []byte(v.Encode()), header...)
	out := map[string]any{}
	if a.body != "" {
		if err := json.Unmarshal([]byte(a.body), &out); err != nil {
			n.t.Fatalf("%s: %d %q", path, a.status, a.body)
		}
	}
	return a, out
}

// device is the secret of a device that the account approved.
func (n *network) device(a devnet.Account) string {
	n.t.Helper()
	_, code := n.form("/auth/device/code", "", "client_id", "test", "device_name", "laptop", "platform", "linux/amd64")
	userCode, _ := code["user_code"].(string)
	if err := n.app.Load().credentials.Decide(n.t.Context(), syntax.DID(a.DID), "192.0.2.1", userCode, true); err != nil {
		n.t.Fatal(err)
	}
	deviceCode, _ := code["device_code"].(string)
	_, out := n.form("/auth/device/token", "", "grant_type", grantDeviceCode, "device_code", deviceCode)
	secret, _ := out["access_token"].(string)
	if secret == "" || out["handle"] != a.Handle || out["did"] != a.DID {
		n.t.Fatalf("the device is given %v", out)
	}
	return secret
}

// shown asks for a registry token with a user name and a secret.
func (n *network) shown(user, secret, scope string) answer {
	n.t.Helper()
	basic := base64.StdEncoding.EncodeToString([]byte(user + ":" + secret))
	return request(n.t, http.MethodGet, n.base+"/auth/token?"+url.Values{"scope": {scope}}.Encode(), nil, "Authorization", "Basic "+basic)
}

// scopeOf is what a token was given for.
func scopeOf(t *testing.T, a answer) string {
	t.Helper()
	var out struct{ Scope string }
	if err := json.Unmarshal([]byte(a.body), &out); err != nil || a.status != http.StatusOK {
		t.Fatalf("%d %s", a.status, a.body)
	}
	return out.Scope
}

// Would catch a device that cannot push, one that can after it was revoked, and one that is good for another.
func TestDeviceTokens(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	secret := n.device(n.alice)
	if a := n.shown("alice.test", secret, "repository:alice.test/app:pull,push"); a.status != http.StatusUnauthorized || !strings.Contains(a.body, "/settings") {
		t.Errorf("without a sign-in at the PDS: %d %s", a.status, a.body)
	}
	n.signIn(n.alice)
	for _, user := range []string{"alice.test", n.alice.DID, "a-handle-that-is-gone.test", "x"} {
		if got := scopeOf(t, n.shown(user, secret, "repository:alice.test/app:pull,push,delete")); got != "repository:alice.test/app:pull,push,delete" {
			t.Errorf("as %s: %q", user, got)
		}
	}
	if got := scopeOf(t, n.shown("alice.test", secret, "repository:bob.test/app:pull,push")); got != "repository:bob.test/app:pull" {
		t.Errorf("in another's name: %q", got)
	}
	for what, a := range map[string]answer{
		"another's name":   n.shown("bob.test", secret, ""),
		"a changed secret": n.shown("alice.test", secret+"A", ""),
		"a made-up one":    n.shown("alice.test", credential.TokenPrefix+"AAAA", ""),
	} {
		if a.status != http.StatusUnauthorized || a.header.Get("WWW-Authenticate") == "" {
			t.Errorf("%s: %d %s", what, a.status, a.body)
		}
	}
	u := n.withScope("alice.test:"+secret, "repository:alice.test/app:pull,push")
	u.push("alice.test/app", newImage("device"), "1.0")
	n.nobody().pull("alice.test/app", "1.0", newImage("device"))

	who := request(t, http.MethodGet, n.base+"/auth/whoami", nil, "Authorization", "Bearer "+secret)
	var said whoAmI
	if err := json.Unmarshal([]byte(who.body), &said); err != nil || said.Handle != "alice.test" || !said.SignedIn || said.Name != "laptop" {
		t.Errorf("whoami: %s", who.body)
	}
	if a, _ := n.form("/auth/device/revoke", secret); a.status != http.StatusNoContent {
		t.Errorf("revoke: %d %s", a.status, a.body)
	}
	if a := n.shown("alice.test", secret, ""); a.status != http.StatusUnauthorized {
		t.Errorf("a revoked device: %d %s", a.status, a.body)
	}
	if a := request(t, http.MethodGet, n.base+"/auth/whoami", nil, "Authorization", "Bearer "+secret); a.status != http.StatusUnauthorized {
		t.Errorf("whoami of a revoked device: %d %s", a.status, a.body)
	}
}

// signIn opens the session that the account's devices act with, as its person does in a browser.
func (n *network) signIn(a devnet.Account) session.SignInDone {
	n.t.Helper()
	sessions := n.app.Load().sessions
	started, err := sessions.BeginSignIn(n.t.Context(), session.BeginSignIn{
		Account: session.Account{DID: syntax.DID(a.DID), PDS: n.PDSURL, Handle: syntax.Handle(a.Handle)}, Caller: "192.0.2.1",
	})
	if err != nil {
		n.t.Fatal(err)
	}
	callback, err := n.Authorize(n.t.Context(), started.URL, devnet.Decision{Handle: a.Handle, Password: a.Password})
	if err != nil {
		n.t.Fatal(err)
	}
	u, err := url.Parse(callback)
	if err != nil {
		n.t.Fatal(err)
	}
	done, err := sessions.FinishSignIn(n.t.Context(), u.Query(), started.Browser)
	if err != nil {
		n.t.Fatal(err)
	}
	return done
}

// Would catch an access token that may more than it says, or that keeps its bearer from what everybody may.
func TestAccessTokens(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	n.signIn(n.alice)
	token := func(scope credential.Scope) string {
		t.Helper()
		secret, _, err := n.app.Load().credentials.NewToken(t.Context(), syntax.DID(n.alice.DID), "CI", scope, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		return secret
	}
	pull, team := token(credential.Scope{Actions: []string{"pull"}}), token(credential.Scope{Repositories: []string{"team/*"}, Actions: []string{"pull", "push"}})
	for _, test := range []struct{ secret, ask, want string }{
		{pull, "repository:alice.test/app:pull,push", "repository:alice.test/app:pull"},
		{pull, "repository:bob.test/app:pull,push", "repository:bob.test/app:pull"},
		{team, "repository:alice.test/team/app:pull,push,delete", "repository:alice.test/team/app:pull,push"},
		{team, "repository:alice.test/app:push,delete", ""},
		{team, "repository:bob.test/app:pull,push", "repository:bob.test/app:pull"}, // as nobody
		{team, "repository:alice.test/team/app:push repository:bob.test/app:pull", "repository:alice.test/team/app:push"},
	} {
		if got := scopeOf(t, n.shown("alice.test", test.secret, test.ask)); got != test.want {
			t.Errorf("%s gives %q, want %q", test.ask, got, test.want)
		}
	}
	u := n.withScope("alice.test:"+team, "repository:alice.test/team/app:pull,push")
	u.push("alice.test/team/app", newImage("ci"), "1.0")
	if a := u.put("alice.test/other", "1.0", newImage("ci").manifest); a.status != http.StatusUnauthorized {
		t.Errorf("a push elsewhere: %d %s", a.status, a.body)
	}
	if a, out := n.form("/auth/hold", team, "hold", n.private.did); a.status != http.StatusForbidden || out["error"] != "insufficient_scope" {
		t.Errorf("an access token chooses a hold: %d %v", a.status, out)
	}
	n.ahead.Add(int64(time.Hour))
	if a := n.shown("alice.test", team, ""); a.status != http.StatusUnauthorized {
		t.Errorf("after its time: %d %s", a.status, a.body)
	}
}

// Would catch a hold that is chosen though it is none, or though pushes to it would fail, and a choice that
// loses what else is in the profile.
func TestChooseHold(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	n.putRecord(n.alice, "io.atcr.sailor.profile", "self", map[string]any{"$type": "io.atcr.sailor.profile", "createdAt": "2026-01-01T00:00:00Z", "unknown": "kept"})
	n.signIn(n.alice)
	n.signIn(n.bob)
	alice, bob := n.device(n.alice), n.device(n.bob)
	read := func(secret string) holdReport {
		t.Helper()
		var r holdReport
		a := request(t, http.MethodGet, n.base+"/auth/hold", nil, "Authorization", "Bearer "+secret)
		if err := json.Unmarshal([]byte(a.body), &r); err != nil || a.status != 200 {
			t.Fatalf("%d %s", a.status, a.body)
		}
		return r
	}
	if r := read(alice); string(r.DID) != n.public.did || !r.Default || !r.MayWrite || !r.OthersRead || r.Role != "owner" {
		t.Errorf("alice begins with %+v", r)
	}
	for hold, want := range map[string]string{
		n.private.did: "does not accept", n.alice.DID: "not a hold", "did:web:localhost%3A1": "", "not a name": "DID", "https://user:pw@x": "", "did:plc:none": "", n.PDSURL: "",
	} {
		a, out := n.form("/auth/hold", alice, "hold", hold)
		said, _ := out["error_description"].(string)
		if a.status < 400 || !strings.Contains(said, want) {
			t.Errorf("%s is chosen: %d %s", hold, a.status, a.body)
		}
	}
	if r := read(alice); string(r.DID) != n.public.did {
		t.Errorf("after refusals: %+v", r)
	}
	if a, _ := n.form("/auth/hold", bob, "hold", n.private.url); a.status != 200 {
		t.Fatalf("bob's own hold by its URL: %d %s", a.status, a.body)
	}
	if r := read(bob); string(r.DID) != n.private.did || r.Default || r.OthersRead || r.Role != "owner" || !r.MayWrite {
		t.Errorf("bob chose %+v", r)
	}
	list := request(t, http.MethodGet, n.base+"/auth/holds", nil, "Authorization", "Bearer "+bob)
	if !strings.Contains(list.body, n.private.did) || !strings.Contains(list.body, n.public.did) {
		t.Errorf("bob's holds: %s", list.body)
	}
	list = request(t, http.MethodGet, n.base+"/auth/holds", nil, "Authorization", "Bearer "+alice)
	if strings.Contains(list.body, n.private.did) || !strings.Contains(list.body, n.public.did) {
		t.Errorf("alice's holds: %s", list.body)
	}
	if a, _ := n.form("/auth/hold", alice, "hold", n.public.did); a.status != 200 {
		t.Fatalf("alice: %d %s", a.status, a.body)
	}
	profile := n.records(n.alice, "io.atcr.sailor.profile")["self"]
	if profile["unknown"] != "kept" || profile["defaultHold"] != n.public.did || profile["createdAt"] != "2026-01-01T00:00:00Z" {
		t.Errorf("the profile is %v", profile)
	}
	if a, _ := n.form("/auth/hold", alice, "hold", ""); a.status != 200 || n.records(n.alice, "io.atcr.sailor.profile")["self"]["defaultHold"] != nil {
		t.Errorf("back to the default: %d %s", a.status, a.body)
	}
}

// Would catch endpoints that answer what is no form, or somebody without a secret.
func TestDeviceRequests(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	_, code := n.form("/auth/device/code", "", "client_id", "test")
	if code["verification_uri"] != n.base+"/device" || code["expires_in"] != 600.0 || len(code["user_code"].(string)) != 9 {
		t.Errorf("the code: %v", code)
	}
	device, _ := code["device_code"].(string)
	for _, test := range []struct {
		path   string
		form   []string
		status int
		code   string
	}{
		{"/auth/device/code", nil, 400, "invalid_request"},
		{"/auth/device/token", []string{"grant_type", "password"}, 400, "unsupported_grant_type"},
		{"/auth/device/token", []string{"grant_type", grantDeviceCode, "device_code", "x"}, 400, "invalid_grant"},
		{"/auth/device/token", []string{"grant_type", grantDeviceCode, "device_code", device}, 400, "authorization_pending"},
		{"/auth/device/token", []string{"grant_type", grantDeviceCode, "device_code", device}, 400, "slow_down"},
		{"/auth/hold", []string{"hold", "x"}, 401, "invalid_request"},
		{"/auth/device/revoke", nil, 401, "invalid_request"},
	} {
		a, out := n.form(test.path, "", test.form...)
		if a.status != test.status || out["error"] != test.code || a.header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s %v: %d %v", test.path, test.form, a.status, out)
		}
	}
	if a := request(t, http.MethodPost, n.base+"/auth/device/code", []byte(`{}`), "Content-Type", "application/json"); a.status != http.StatusUnsupportedMediaType {
		t.Errorf("JSON: %d", a.status)
	}
	if a := request(t, http.MethodPost, n.base+"/auth/device/code", []byte(strings.Repeat("a", maxFormBytes+1)), "Content-Type", "application/x-www-form-urlencoded"); a.status != http.StatusRequestEntityTooLarge {
		t.Errorf("too much: %d", a.status)
	}
}
