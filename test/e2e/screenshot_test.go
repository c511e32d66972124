package e2e

import (
	"encoding/json"
	"flag"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"testing"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"

	"atcr.io/test/components"
)

var screenshots = flag.String("screenshots", "", "folder that TestPages writes a picture of each page to, in each look")

// looks are how people see a page.
var looks = []struct {
	name, scheme string
	width        int64
}{{"desktop-light", "light", 1280}, {"desktop-dark", "dark", 1280}, {"phone-light", "light", 375}, {"phone-dark", "dark", 375}}

// look sees the page that is open in each way: nothing is wider than the screen.
func (b *browser) look(name string) {
	b.t.Helper()
	for _, l := range looks {
		_, err := chromedp.Call(b.ctx, emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{Width: l.width, Height: 800, DeviceScaleFactor: 1, Mobile: l.width < 500})
		if err == nil {
			_, err = chromedp.Call(b.ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: l.scheme}}})
		}
		if err != nil {
			b.t.Fatal(err)
		}
		if wide := run(b, "measure "+name, chromedp.Evaluate[int64](`document.documentElement.scrollWidth`)); wide > l.width {
			b.t.Errorf("%s, %s: %d pixels wide", name, l.name, wide)
		}
		if *screenshots != "" {
			picture := run(b, "picture "+name, chromedp.FullScreenshot(100))
			if err := os.WriteFile(filepath.Join(*screenshots, name+"-"+l.name+".png"), picture, 0o600); err != nil {
				b.t.Fatal(err)
			}
		}
	}
}

// Would catch a page that does not fit a phone. With -screenshots it shows every page to whoever changes one.
func TestPages(t *testing.T) {
	t.Parallel()
	n := startNetwork(t, "filesystem")
	config, crane := dockerConfig(t), components.Path(t, "crane")
	command(t, []string{config}, crane, "auth", "login", n.registry, "-u", n.alice.Handle, "-p", n.alice.AppPassword)
	for _, tag := range []string{"1.0", "1.1", "latest"} {
		command(t, []string{config}, crane, "push", newImage(t).layout, n.registry+"/alice.test/team/app:"+tag)
	}
	at := "http://" + n.registry
	b := newBrowser(t)
	open := func(name, path string) {
		t.Helper()
		b.open(at + path)
		b.look(name)
	}
	open("home", "/")
	open("image", "/r/alice.test/team/app")
	open("nothing", "/nothing")
	open("login", "/login")
	b.fill("#who", "nobody.test")
	b.press("Go on at my server")
	b.shows("nobody.test")
	b.look("login-wrong")
	b.open(at + "/login")
	b.fill("#who", n.alice.Handle)
	b.press("Go on at my server")
	b.signInAtPDS(n.alice.Password)
	b.shows("Where your images are stored")
	b.look("settings-first")

	res, err := http.PostForm(at+"/auth/device/code", url.Values{"client_id": {"e2e"}, "device_name": {"alice's laptop with a rather long name of its own"}, "platform": {"linux/amd64"}}) //nolint:noctx // loopback
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	var code struct {
		Code string `json:"device_code"`
		Page string `json:"verification_uri_complete"`
	}
	if err := json.NewDecoder(res.Body).Decode(&code); err != nil {
		t.Fatal(err)
	}
	open("device", "/device")
	open("device-wrong", "/device?user_code=BCDF-GHJK")
	b.open(code.Page)
	b.look("device-asks")
	b.press("Approve")
	b.shows("is signed in as alice.test")
	b.look("device-approved")
	redeemed, err := http.PostForm(at+"/auth/device/token", url.Values{"grant_type": {"urn:ietf:params:oauth:grant-type:device_code"}, "device_code": {code.Code}}) //nolint:noctx // loopback
	if err != nil || redeemed.StatusCode != http.StatusOK {
		t.Fatal(redeemed, err)
	}
	_ = redeemed.Body.Close()

	b.open(at + "/settings")
	b.fill("#name", "CI of app")
	b.fill("#repositories", "team/app")
	b.press("Make the token")
	b.shows("shown this once")
	b.look("settings-token")
	b.open(at + "/settings")
	b.fill("#holdfield", "did:web:nothing.example")
	b.press("Use this hold")
	b.shows("Your hold was not changed")
	b.look("settings-wrong")
	open("delete", "/settings/delete")
	b.click(`[name="sure"]`)
	b.press("Delete")
	b.shows("keeps nothing of you")
	b.look("deleted")
}
