package web

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"atcr.io/internal/httpx"
)

// back is all that stands behind the pages, in memory.
type back struct {
	mu      sync.Mutex
	decided string
	holds   []string
	revoked []string
	tokens  []TokenRequest
	fail    error
	forgot  bool
	begun   []Start
}

var alice = Visitor{DID: "did:plc:alice", Handle: "alice.test", Browser: "b1", Session: "s1"}

func (b *back) Begin(_ context.Context, s Start) (string, string, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.begun = append(b.begun, s)
	if s.Who != "alice.test" {
		return "", "", &Problem{Status: http.StatusBadRequest, Text: "There is no account <b>" + s.Who}
	}
	return "https://pds.test/oauth/authorize?request_uri=x", "the sign-in cookie", b.fail
}

func (b *back) Finish(_ context.Context, q url.Values, cookie, _, _ string) (string, string, error) {
	if cookie != "the sign-in cookie" || q.Get("code") != "good" {
		return "", "", &Problem{Status: http.StatusBadRequest, Title: "This sign-in is over", Text: "Begin again.", Again: "/login"}
	}
	return "alice's secret", q.Get("back"), nil
}

func (b *back) Visitor(_ context.Context, secret string) (Visitor, error) {
	switch secret {
	case "alice's secret":
		return alice, nil
	case "alice's after a while":
		v := alice
		v.Renew = true
		return v, nil
	}
	return Visitor{}, ErrSignedOut
}

func (b *back) SignOut(context.Context, Visitor) error { return nil }

func (b *back) Machine(_ context.Context, _ Visitor, _, code string) (Machine, error) {
	if code != "BCDF-GHJK" {
		return Machine{}, &Problem{Status: http.StatusNotFound, Text: "There is no such code."}
	}
	return Machine{Name: "<script>alert(1)</script>", Platform: "linux/amd64", Address: "192.0.2.1", Expires: time.Unix(1_800_000_000, 0)}, nil
}

func (b *back) Decide(_ context.Context, _ Visitor, _, code string, approve bool) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.decided += fmt.Sprint(code, approve)
	return nil
}

func (b *back) Current(context.Context, Visitor) (Hold, error) {
	return Hold{DID: "did:web:hold.test", URL: "https://hold.test", Default: true, Chosen: true, MayWrite: true, OthersRead: true}, nil
}

func (b *back) Known(context.Context, Visitor) []Hold {
	return []Hold{{DID: "did:web:hold.test", Default: true, OthersRead: true}, {DID: "did:web:team.test", Role: "crew"}}
}

func (b *back) Choose(_ context.Context, _ Visitor, hold string) (Hold, error) {
	if hold == "none" {
		return Hold{}, &Problem{Status: http.StatusForbidden, Text: "It is not a hold."}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.holds = append(b.holds, hold)
	return Hold{}, nil
}

func (b *back) List(context.Context, Visitor) ([]Item, error) {
	at := time.Unix(1_800_000_000, 0)
	return []Item{
		{Kind: KindBrowser, ID: "b1", Name: "Firefox on Linux", Created: at, Used: at, This: true}, {Kind: KindDevice, ID: "d1", Name: "laptop", Detail: "linux/amd64", Created: at},
		{Kind: KindToken, ID: "t1", Name: "CI", Detail: "pull: app", Created: at, Expires: at}, {Kind: KindSession, ID: "s1", Name: "approved", Created: at},
	}, b.fail
}

func (b *back) Revoke(_ context.Context, _ Visitor, kind, id string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.revoked = append(b.revoked, kind+" "+id)
	return nil
}

func (b *back) NewToken(_ context.Context, _ Visitor, r TokenRequest) (string, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.tokens = append(b.tokens, r)
	return "atcrt_SHOWNONCE", nil
}

func (b *back) Export(context.Context, Visitor) (any, error) {
	return map[string]string{"did": "x"}, nil
}

func (b *back) Tags(_ context.Context, owner, repository string) ([]string, error) {
	if owner != "alice.test" {
		return nil, &Problem{Status: http.StatusNotFound, Title: "That did not work", Text: "There is no account " + owner + "."}
	}
	tags := []string{"<script>" + repository}
	for i := range 2 * tagsShown {
		tags = append(tags, fmt.Sprint("1.", i))
	}
	return tags, nil
}

func (b *back) Forget(context.Context, Visitor) error { b.forgot = true; return nil }

type site struct {
	*httptest.Server
	back *back
	t    *testing.T
}

func newSite(t *testing.T, change func(*Config)) *site {
	t.Helper()
	s := &site{back: &back{}, t: t}
	mux := http.NewServeMux()
	s.Server = httptest.NewServer(mux)
	t.Cleanup(s.Close)
	c := Config{
		SignIn: s.back, Devices: s.back, Holds: s.back, Keeping: s.back, Images: s.back, BaseURL: s.URL, Origin: s.URL, Service: "atcr.test", Insecure: true,
		Address: func(*http.Request) string { return "192.0.2.9" }, Caller: func(*http.Request) string { return "192.0.2.9" }, Adapter: &httpx.Adapter{},
	}
	if change != nil {
		change(&c)
	}
	server, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Register(mux); err != nil {
		t.Fatal(err)
	}
	return s
}

type reply struct {
	*http.Response
	body string
}

// do sends a request; header is pairs. signedIn sends alice's cookie.
func (s *site) do(method, path, form string, header ...string) reply {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), method, s.URL+path, strings.NewReader(form))
	if err != nil {
		s.t.Fatal(err)
	}
	if method == http.MethodPost {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	res, err := client.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	raw, err := io.ReadAll(res.Body)
	if err := errors.Join(err, res.Body.Close()); err != nil {
		s.t.Fatal(err)
	}
	return reply{res, string(raw)}
}

var signedInCookie = []string{"Cookie", `atcr=alice's secret`}

// Would catch a page for signed-in people that a stranger sees, and a row that says nothing of whom it is for.
func TestAccess(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	for _, route := range routes {
		method, path, _ := strings.Cut(route.pattern, " ")
		if route.access != everybody && route.access != signedIn && route.access != refusedToo {
			t.Errorf("%s names no access", route.pattern)
		}
		for _, cookie := range []string{"", "atcr=forged", "atcr=", "__Host-atcr=alice's secret", "atcr=" + strings.Repeat("x", 5000)} {
			r := s.do(method, path, "user_code=BCDF-GHJK&decision=approve&kind=device&id=d1&sure=yes", "Cookie", cookie)
			if route.access != everybody && (r.StatusCode != http.StatusSeeOther || !strings.HasPrefix(r.Header.Get("Location"), "/login?back=")) {
				t.Errorf("%s with %.20q: %d %s", route.pattern, cookie, r.StatusCode, r.Header.Get("Location"))
			}
		}
	}
	if s.back.decided != "" || s.back.revoked != nil || s.back.forgot {
		t.Errorf("a stranger did something: %+v", s.back)
	}
}

// Would catch a form that another site can send, a frame around a page, and script on one.
func TestCrossSite(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	form := "user_code=BCDF-GHJK&decision=approve"
	for what, header := range map[string][]string{
		"cross-site":   {"Sec-Fetch-Site", "cross-site"},
		"same-site":    {"Sec-Fetch-Site", "same-site"},
		"other origin": {"Origin", "https://evil.test"},
		"null origin":  {"Origin", "null"},
	} {
		for _, path := range []string{"/device", "/settings/hold", "/settings/token", "/settings/revoke", "/settings/delete", "/logout", "/login"} {
			r := s.do(http.MethodPost, path, form, append(header, signedInCookie...)...)
			if r.StatusCode != http.StatusForbidden || !strings.Contains(r.body, "another web site") {
				t.Errorf("%s %s: %d", what, path, r.StatusCode)
			}
		}
	}
	if s.back.decided != "" || s.back.holds != nil || s.back.tokens != nil || s.back.revoked != nil || s.back.forgot || s.back.begun != nil {
		t.Errorf("another site did something: %+v", s.back)
	}
	r := s.do(http.MethodPost, "/device", form, append([]string{"Sec-Fetch-Site", "same-origin"}, signedInCookie...)...)
	if r.StatusCode != http.StatusOK || s.back.decided != "BCDF-GHJKtrue" {
		t.Errorf("our own form: %d %q", r.StatusCode, s.back.decided)
	}
	for _, path := range []string{"/", "/login", "/device", "/settings", "/settings/delete", "/nothing"} {
		r := s.do(http.MethodGet, path, "", signedInCookie...)
		policy := r.Header.Get("Content-Security-Policy")
		if (path == "/nothing") != (r.StatusCode == http.StatusNotFound) || (!strings.Contains(policy, "default-src 'none'") || !strings.Contains(policy, "frame-ancestors 'none'") || strings.Contains(policy, "script") || r.Header.Get("Cache-Control") != "no-store") {
			t.Errorf("%s: %v", path, r.Header)
		}
		if strings.Contains(r.body, "<script") || strings.Contains(r.body, " style=") || strings.Contains(r.body, "onclick") {
			t.Errorf("%s has what the policy forbids", path)
		}
	}
}

// Would catch a device that is approved by looking at a page, and what a machine calls itself run as a page.
func TestDevicePage(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	for _, query := range []string{"?user_code=BCDF-GHJK", "?user_code=BCDF-GHJK&decision=approve", "?user_code=BCDF-GHJK&approve=true"} {
		r := s.do(http.MethodGet, "/device"+query, "", signedInCookie...)
		if r.StatusCode != http.StatusOK || !strings.Contains(r.body, "&lt;script&gt;") || !strings.Contains(r.body, "192.0.2.1") || s.back.decided != "" {
			t.Errorf("%s: %d %q\n%s", query, r.StatusCode, s.back.decided, r.body)
		}
	}
	for form, status := range map[string]int{"user_code=BCDF-GHJK": 400, "user_code=BCDF-GHJK&decision=yes": 400, "user_code=x&decision=approve": 404, "": 400} {
		if r := s.do(http.MethodPost, "/device", form, signedInCookie...); r.StatusCode != status || s.back.decided != "" {
			t.Errorf("%q: %d", form, r.StatusCode)
		}
	}
	if r := s.do(http.MethodPost, "/device?decision=approve", "user_code=BCDF-GHJK&decision=refuse", signedInCookie...); r.StatusCode != 200 || s.back.decided != "BCDF-GHJKfalse" {
		t.Errorf("refused: %d %q", r.StatusCode, s.back.decided)
	}
	if r := s.do(http.MethodGet, "/device?user_code=BCDF-GHJK", ""); r.Header.Get("Location") != "/login?back=%2Fdevice%3Fuser_code%3DBCDF-GHJK" {
		t.Errorf("a stranger is sent to %s", r.Header.Get("Location"))
	}
}

// Would catch a sign-in that ends on somebody else's site, a cookie that others can read or set, and one that is
// good without the browser that began.
func TestSignIn(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	for text, want := range map[string]string{
		"/device?user_code=X": "/device?user_code=X", "//evil.test": "/settings", "https://evil.test/": "/settings", `/\evil.test`: "/settings", "/\t/evil.test": "/settings",
		"javascript:alert(1)": "/settings", "": "/settings", "evil.test": "/settings", "/%2f/evil.test": "/%2f/evil.test", "http:/x": "/settings", "/x\r\nSet-Cookie: a=b": "/settings",
	} {
		r := s.do(http.MethodPost, "/login", url.Values{"who": {"alice.test"}, "back": {text}}.Encode())
		if r.StatusCode != http.StatusSeeOther || r.Header.Get("Location") != "https://pds.test/oauth/authorize?request_uri=x" || s.back.begun[len(s.back.begun)-1].Back != want {
			t.Errorf("back to %q: %d, %+v", text, r.StatusCode, s.back.begun[len(s.back.begun)-1])
		}
		r = s.do(http.MethodGet, "/oauth/callback?"+url.Values{"code": {"good"}, "back": {text}}.Encode(), "", "Cookie", "atcr-signin=the sign-in cookie")
		if r.Header.Get("Location") != want || len(r.Cookies()) != 1 {
			t.Errorf("after signing in with %q: %d %s", text, r.StatusCode, r.Header.Get("Location"))
		}
	}
	for what, r := range map[string]reply{
		"without the cookie": s.do(http.MethodGet, "/oauth/callback?code=good", ""),
		"a forged one":       s.do(http.MethodGet, "/oauth/callback?code=good", "", "Cookie", "atcr-signin=x"),
		"a wrong code":       s.do(http.MethodGet, "/oauth/callback?code=bad", "", "Cookie", "atcr-signin=the sign-in cookie"),
	} {
		if r.StatusCode != http.StatusBadRequest || len(r.Cookies()) > 0 {
			t.Errorf("%s: %d %v", what, r.StatusCode, r.Cookies())
		}
	}
	r := s.do(http.MethodPost, "/login", "who=%3Cb%3Ebob")
	if r.StatusCode != http.StatusBadRequest || !strings.Contains(r.body, `role="alert"`) || strings.Contains(r.body, "<b>") {
		t.Errorf("a wrong handle: %d\n%s", r.StatusCode, r.body)
	}
	secure := newSite(t, func(c *Config) { c.Insecure = false })
	r = secure.do(http.MethodGet, "/oauth/callback?code=good", "", "Cookie", "__Host-atcr-signin=the sign-in cookie")
	if got := r.Header.Get("Set-Cookie"); !strings.HasPrefix(got, `__Host-atcr=`) || !strings.Contains(got, "; Path=/;") || !strings.Contains(got, "HttpOnly; Secure; SameSite=Lax") || strings.Contains(got, "Domain") {
		t.Errorf("the cookie is %q", got)
	}
	if r := secure.do(http.MethodGet, "/settings", "", "Cookie", "atcr=alice's secret"); r.StatusCode != http.StatusSeeOther {
		t.Errorf("a cookie without the prefix, which any subdomain can set, signs in: %d", r.StatusCode)
	}
	refused := 0
	for range 2 * signInsPerAddress {
		if s.do(http.MethodPost, "/login", "who=alice.test").StatusCode == http.StatusTooManyRequests {
			refused++
		}
	}
	if refused < signInsPerAddress {
		t.Errorf("of %d sign-ins %d were refused", 2*signInsPerAddress, refused)
	}
}

// Would catch a browser that is signed out although it was used, and one that is not although it was to be.
func TestCookieSlides(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	if r := s.do(http.MethodGet, "/", "", signedInCookie...); len(r.Cookies()) > 0 {
		t.Errorf("set again at once: %v", r.Cookies())
	}
	later := []string{"Cookie", "atcr=alice's after a while"}
	for path, status := range map[string]int{"/": http.StatusOK, "/settings": http.StatusOK, "/nothing": http.StatusNotFound} {
		r := s.do(http.MethodGet, path, "", later...)
		if set := r.Header.Values("Set-Cookie"); r.StatusCode != status || len(set) != 1 || !strings.HasPrefix(set[0], "atcr=\"alice's after a while\"; Path=/; Max-Age=2592000; HttpOnly") {
			t.Errorf("%s: %d %q", path, r.StatusCode, set)
		}
	}
	for _, path := range []string{"/logout", "/settings/delete"} {
		r := s.do(http.MethodPost, path, "sure=yes", later...)
		if set := r.Header.Values("Set-Cookie"); len(set) != 1 || !strings.HasPrefix(set[0], "atcr=; Path=/; Max-Age=0;") {
			t.Errorf("%s: %d %q", path, r.StatusCode, set)
		}
	}
}

// Would catch an error that shows what only the log may have, or that nobody finds in the log.
func TestProblems(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	s.back.fail = errors.New("poison: sql: password=hunter2")
	for _, path := range []string{"/settings"} {
		r := s.do(http.MethodGet, path, "", signedInCookie...)
		if r.StatusCode != http.StatusInternalServerError || strings.Contains(r.body, "poison") || !strings.Contains(r.body, r.Header.Get("X-Request-Id")) || r.Header.Get("X-Request-Id") == "" {
			t.Errorf("%s: %d\n%s", path, r.StatusCode, r.body)
		}
	}
	s.back.fail = &Problem{Status: 502, Title: "Elsewhere", Text: "Your PDS is down.", Err: errors.New("poison")}
	if r := s.do(http.MethodGet, "/settings", "", signedInCookie...); r.StatusCode != 502 || strings.Contains(r.body, "poison") || !strings.Contains(r.body, "Your PDS is down.") {
		t.Errorf("%d\n%s", r.StatusCode, r.body)
	}
	if r := s.do(http.MethodPost, "/settings/hold", "hold="+strings.Repeat("x", maxFormBytes), signedInCookie...); r.StatusCode != http.StatusBadRequest && r.StatusCode != http.StatusRequestEntityTooLarge {
		t.Errorf("a large form: %d", r.StatusCode)
	}
}

// Would catch a setting that does something other than it says.
func TestSettings(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	r := s.do(http.MethodGet, "/settings?done=%3Cb%3E", "", signedInCookie...)
	for _, part := range []string{"did:web:hold.test", "did:web:team.test", "laptop", "Firefox on Linux", "this browser", "pull: app", "did:plc:alice"} {
		if !strings.Contains(r.body, part) {
			t.Errorf("the settings do not show %s", part)
		}
	}
	if strings.Contains(r.body, "<b>") {
		t.Error("the URL brings text into the page")
	}
	if r := s.do(http.MethodPost, "/settings/hold", "hold=+did%3Aweb%3Ateam.test+", signedInCookie...); r.StatusCode != 303 || s.back.holds[0] != "did:web:team.test" {
		t.Errorf("a hold: %d %q", r.StatusCode, s.back.holds)
	}
	if r := s.do(http.MethodPost, "/settings/hold", "hold=none", signedInCookie...); r.StatusCode != 403 || !strings.Contains(r.body, "It is not a hold.") {
		t.Errorf("no hold: %d", r.StatusCode)
	}
	r = s.do(http.MethodPost, "/settings/token", "name=CI&repositories=alice.test/app,+team/*&action=pull&action=push&days=30", signedInCookie...)
	if got := fmt.Sprintf("%+v", s.back.tokens); !strings.Contains(r.body, "atcrt_SHOWNONCE") || got != "[{Name:CI Repositories:[app team/*] Actions:[pull push] Lifetime:720h0m0s}]" {
		t.Errorf("a token: %d %s", r.StatusCode, got)
	}
	for _, form := range []string{"name=CI&action=pull&days=3650", "name=CI&action=pull&days=0", "name=CI&action=pull", "action=pull&days=30"} {
		if r := s.do(http.MethodPost, "/settings/token", form, signedInCookie...); r.StatusCode != 400 || len(s.back.tokens) != 1 {
			t.Errorf("%s: %d", form, r.StatusCode)
		}
	}
	if r := s.do(http.MethodPost, "/settings/revoke", "kind=device&id=d1", signedInCookie...); r.StatusCode != 303 || s.back.revoked[0] != "device d1" {
		t.Errorf("revoke: %d %q", r.StatusCode, s.back.revoked)
	}
	if r := s.do(http.MethodGet, "/settings/export", "", signedInCookie...); r.Header.Get("Content-Type") != "application/json" || !strings.Contains(r.body, `"did"`) {
		t.Errorf("export: %s", r.body)
	}
	if r := s.do(http.MethodPost, "/settings/delete", "", signedInCookie...); r.StatusCode != 400 || s.back.forgot {
		t.Errorf("delete without being sure: %d", r.StatusCode)
	}
	r = s.do(http.MethodPost, "/settings/delete", "sure=yes", signedInCookie...)
	if r.StatusCode != 200 || !s.back.forgot || !strings.Contains(r.Header.Get("Set-Cookie"), "Max-Age=0") {
		t.Errorf("delete: %d %v", r.StatusCode, r.Header)
	}
}

// Would catch a browser that is signed in under one name of this machine and not under another.
func TestOrigin(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	port := s.URL[strings.LastIndex(s.URL, ":"):]
	for host, want := range map[string]string{"localhost" + port: s.URL + "/login?back=x", "evil.test" + port: "", "localhost:1": ""} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.URL+"/login?back=x", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = host
		res, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
		if got := res.Header.Get("Location"); got != want {
			t.Errorf("%s is sent to %q, want %q", host, got, want)
		}
	}
}

// Would catch an installer that installs what was changed on the way, and one that installs nothing.
func TestInstall(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	name := "docker-credential-atcr_" + runtime.GOOS + "_" + runtime.GOARCH
	program := []byte("#!/bin/sh\necho it works\n")
	sum := sha256.Sum256(program)
	write := func(name string, content []byte) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(name, program)
	write("SHA256SUMS", []byte(hex.EncodeToString(sum[:])+"  "+name+"\n"))
	write("private.key", []byte("x"))
	s := newSite(t, func(c *Config) { c.Downloads = dir })
	for _, path := range []string{"private.key", "..%2f..%2fetc%2fpasswd", "docker-credential-atcr_plan9_amd64", "docker-credential-atcr_linux_arm64"} {
		if r := s.do(http.MethodGet, "/downloads/"+path, ""); r.StatusCode != http.StatusNotFound {
			t.Errorf("%s: %d", path, r.StatusCode)
		}
	}
	script := s.do(http.MethodGet, "/install.sh", "")
	powershell := s.do(http.MethodGet, "/install.ps1", "")
	if !strings.Contains(powershell.body, "$url = '"+s.URL+"/downloads'") || strings.Contains(powershell.body, "{{{") {
		t.Errorf("install.ps1:\n%s", powershell.body)
	}
	install := func() (string, error) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "sh", "-c", script.body)
		cmd.Env = append(os.Environ(), "INSTALL_DIR="+filepath.Join(dir, "bin"))
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	out, err := install()
	if err != nil || !strings.Contains(out, "docker-credential-atcr login atcr.test") {
		t.Fatalf("%v\n%s", err, out)
	}
	if got, err := exec.CommandContext(t.Context(), filepath.Join(dir, "bin", "docker-credential-atcr")).Output(); err != nil || string(got) != "it works\n" {
		t.Errorf("what was installed says %q, %v", got, err)
	}
	write(name, append(program, "rm -rf /\n"...))
	if out, err := install(); err == nil || !strings.Contains(out, "nothing was installed") {
		t.Errorf("a changed program: %v\n%s", err, out)
	}
	for what, c := range map[string]func(*Config){"none": func(c *Config) { c.Downloads = "" }, "a quote": func(c *Config) { c.Downloads = "https://x/'; rm -rf ~; '" }} {
		if r := newSite(t, c).do(http.MethodGet, "/install.sh", ""); r.StatusCode != http.StatusNotFound {
			t.Errorf("%s: %d\n%s", what, r.StatusCode, r.body)
		}
	}
}

// Would catch a path that a browser takes for another site.
func FuzzLocalPath(f *testing.F) {
	for _, text := range []string{"/device?user_code=X", "//evil.test", `/\evil.test`, "/a/../..//evil.test", "https://evil.test", "/%2f%2fevil.test", "/;//x", "/?//x#//y"} {
		f.Add(text)
	}
	base := &url.URL{Scheme: "https", Host: "atcr.test", Path: "/login"}
	f.Fuzz(func(t *testing.T, text string) {
		got := localPath(text, "/settings")
		u, err := base.Parse(got)
		if err != nil || u.Host != "atcr.test" || u.Scheme != "https" || u.User != nil {
			t.Fatalf("%q leads to %v, %v", text, u, err)
		}
		if got[0] != '/' || len(got) > 1 && (got[1] == '/' || got[1] == '\\') || strings.ContainsAny(got, "\r\n\t\\") {
			t.Errorf("%q leads to %q", text, got)
		}
	})
}
