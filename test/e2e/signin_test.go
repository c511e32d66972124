package e2e

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/creack/pty"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"atcr.io/test/components"
)

// machine is a machine of alice's: the helper on its PATH, docker's configuration, and a browser command that
// writes down what it is told to open.
type machine struct {
	t      *testing.T
	dir    string
	env    []string
	opened string // file
}

func newMachine(t *testing.T) *machine {
	t.Helper()
	dir := t.TempDir()
	m := &machine{t: t, dir: dir, opened: filepath.Join(dir, "opened")}
	bin := filepath.Join(dir, "bin")
	if err := os.Mkdir(bin, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(binaries.helper, filepath.Join(bin, "docker-credential-atcr")); err != nil {
		t.Fatal(err)
	}
	script := "#!/bin/sh\necho \"$1\" >> " + m.opened + "\n"
	if err := os.WriteFile(filepath.Join(bin, "xdg-open"), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	m.env = []string{
		"PATH=" + bin + ":" + os.Getenv("PATH"), "HOME=" + dir, "DOCKER_CONFIG=" + filepath.Join(dir, "docker"),
		"DOCKER_CREDENTIAL_ATCR_DIR=" + filepath.Join(dir, "atcr"), "DBUS_SESSION_BUS_ADDRESS=unix:path=" + filepath.Join(dir, "no-bus"), "TERM=xterm",
	}
	return m
}

// terminal runs the helper in a pseudo-terminal.
type terminal struct {
	cmd    *exec.Cmd
	tty    *os.File
	output *lockedBuffer
	ended  chan error
}

func (m *machine) terminal(args ...string) *terminal {
	m.t.Helper()
	x := &terminal{cmd: exec.Command(binaries.helper, args...), output: &lockedBuffer{}, ended: make(chan error, 1)}
	x.cmd.Env = append(os.Environ(), m.env...)
	var err error
	if x.tty, err = pty.Start(x.cmd); err != nil {
		m.t.Fatal(err)
	}
	go func() {
		_, _ = io.Copy(x.output, x.tty) // ends with an error when the other side is closed
		x.ended <- x.cmd.Wait()
	}()
	m.t.Cleanup(func() {
		_ = x.cmd.Process.Kill() // usually it has ended
		_ = x.tty.Close()
		if m.t.Failed() {
			m.t.Logf("the terminal of %v shows:\n%s", args, x.output)
		}
	})
	return x
}

// says waits for a text and returns what pattern found.
func (x *terminal) says(t *testing.T, pattern string) string {
	t.Helper()
	re := regexp.MustCompile(pattern)
	for range 240 {
		if found := re.FindString(x.output.String()); found != "" {
			return found
		}
		pause(t)
	}
	t.Fatalf("the terminal does not say %s:\n%s", pattern, x.output)
	return ""
}

// wait is how it ended.
func (x *terminal) wait(t *testing.T, want int) {
	t.Helper()
	<-x.ended //nolint:errcheck // the exit code is what is looked at
	if got := x.cmd.ProcessState.ExitCode(); got != want {
		t.Fatalf("the exit code is %d, want %d:\n%s", got, want, x.output)
	}
}

// run runs the helper without a terminal.
func (m *machine) run(stdin string, args ...string) (stdout, stderr string, err error) {
	m.t.Helper()
	cmd := exec.CommandContext(m.t.Context(), binaries.helper, args...)
	cmd.Env = append(os.Environ(), m.env...)
	cmd.Stdin = strings.NewReader(stdin)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	return out.String(), errs.String(), err
}

// must is run for what must work.
func (m *machine) must(args ...string) string {
	m.t.Helper()
	out, errs, err := m.run("", args...)
	if err != nil {
		m.t.Fatalf("%v: %v\n%s%s", args, err, out, errs)
	}
	return out
}

// signInAtPDS does what the PDS's own pages ask for, up to the AppView's page.
func (b *browser) signInAtPDS(password string) {
	b.t.Helper()
	b.fill(`input[type="password"]`, password)
	b.press("Sign in", "Next")
	b.press("Authorize", "Accept", "Allow")
}

// testRefusedSignIns are sign-ins that come to nothing, on the PDS's own pages, each in a browser of its own. That
// nonces change under way and that a code expires is between servers; that somebody else than asked for signs in the
// page does not allow: TestOAuth. Nor does it let people take out permissions, but that of the e-mail address, which is
// not asked for: what it sends is altered.
func testRefusedSignIns(t *testing.T, n *network) {
	t.Helper()
	begin := func() *browser {
		t.Helper()
		b := newBrowser(t)
		b.open("http://" + n.registry + "/login")
		b.fill("#who", n.alice.Handle)
		b.press("Go on at my server")
		return b
	}
	ends := func(b *browser, shown string) {
		t.Helper()
		b.shows(shown)
		b.open("http://" + n.registry + "/settings")
		b.shows("Your handle")
	}

	b := begin()
	b.fill(`input[type="password"]`, n.alice.Password)
	b.press("Sign in")
	b.press("Deny access")
	ends(b, "You said no")

	b = begin()
	b.alterRequests("repo:io.atcr.tag ", "")
	b.signInAtPDS(n.alice.Password)
	ends(b, "nothing can be pushed here: repo:io.atcr.tag.")

	// Approved, and used twice.
	b = begin()
	asked := b.asksFor("/oauth/callback?")
	b.signInAtPDS(n.alice.Password)
	b.shows("Where your images are stored")
	callback := asked()
	b.open(callback)
	b.shows("This sign-in is over")
	other := newBrowser(t)
	other.open(callback)
	ends(other, "This sign-in is over")
	b.open("http://" + n.registry + "/settings")
	b.press("Sign out") // it was signed out by nothing of this
}

// Would catch anything between a person's prompt and their image that only our own code can talk to: the PDS with
// its own pages, the browser, docker and crane are unmodified, and no password is on the machine.
func TestSignIn(t *testing.T) {
	t.Parallel()
	n := startNetwork(t, "filesystem")
	m, b := newMachine(t), newBrowser(t)
	crane := components.Path(t, "crane")
	d := components.StartDockerd(t)
	d.Config = filepath.Join(m.dir, "docker")
	docker := func(args ...string) (string, error) {
		cmd := d.Command(t.Context(), args...)
		cmd.Env = append(cmd.Env, m.env...)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}

	// Nobody is signed in.
	out, errs, err := m.run(n.registry, "get")
	if err == nil || out != "credentials not found in native keychain\n" || !strings.Contains(errs, "docker-credential-atcr login "+n.registry) {
		t.Errorf("get: %q %q %v", out, errs, err)
	}

	// Ctrl-C while it waits.
	x := m.terminal("login", n.registry)
	x.says(t, `Waiting for your approval`)
	if _, err := x.tty.Write([]byte{3}); err != nil {
		t.Fatal(err)
	}
	x.wait(t, 130)
	if !strings.Contains(x.output.String(), "nothing was changed") {
		t.Errorf("Ctrl-C: %s", x.output)
	}

	// Refused, by a browser that has to sign in first.
	x = m.terminal("login", n.registry, "--name", "alice's laptop")
	page := x.says(t, `http://\S+/device\?user_code=[A-Z-]+`)
	b.open(page)
	b.fill("#who", n.alice.Handle)
	b.press("Go on at my server")
	b.signInAtPDS(n.alice.Password)
	b.shows("alice's laptop")
	for _, part := range []string{"alice.test", "linux/", "127.0.0.1", page[strings.LastIndex(page, "=")+1:]} {
		if !strings.Contains(b.text(), part) {
			t.Errorf("the page does not show %s:\n%s", part, b.text())
		}
	}
	b.press("Refuse")
	b.shows("was not signed in")
	x.wait(t, 1)

	// Approved.
	x = m.terminal("login", n.registry, "--name", "alice's laptop")
	page = x.says(t, `http://\S+/device\?user_code=[A-Z-]+`)
	x.says(t, "▀")
	b.open(page)
	b.press("Approve")
	b.shows("is signed in as alice.test")
	x.says(t, "There is no keychain here")
	x.says(t, "Signed in to "+regexp.QuoteMeta(n.registry)+" as alice.test")
	x.wait(t, 0)
	if opened, err := os.ReadFile(m.opened); err != nil || strings.Count(string(opened), "\n") != 3 || !strings.Contains(string(opened), page) {
		t.Errorf("opened in the browser: %q, %v", opened, err)
	}
	if out := m.must("configure-docker", "--yes"); !strings.Contains(out, `"`+n.registry+`": "atcr"`) {
		t.Errorf("configure-docker: %s", out)
	}
	if out := m.must("status"); !strings.Contains(out, "alice.test") || !strings.Contains(out, "valid") {
		t.Errorf("status: %s", out)
	}

	// Pushes, by docker and by crane.
	image := newImage(t)
	reference := n.registry + "/alice.test/signed/docker:1.0"
	tag, err := name.NewTag(reference, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	archive := filepath.Join(t.TempDir(), "image.tar")
	if err := tarball.WriteToFile(archive, tag, image.image); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"load", "-i", archive}, {"push", reference}} {
		if out, err := docker(args...); err != nil {
			t.Fatalf("docker %v: %v\n%s", args, err, out)
		}
	}
	command(t, m.env, crane, "push", image.layout, n.registry+"/alice.test/signed/crane:1.0")
	doctor := []string{"doctor", n.registry + "/alice.test/signed/crane:1.0", "--plc", n.pds.PLCURL, "--handles", n.pds.URL}
	if out := m.must(doctor...); strings.Contains(out, "FAIL") || strings.Count(out, "ok ") != 8 {
		t.Errorf("doctor:\n%s", out)
	}
	if out, _, err := m.run("", "doctor", n.registry+"/alice.test/signed/none:1.0", "--plc", n.pds.PLCURL, "--handles", n.pds.URL); err == nil || !strings.Contains(out, "FAIL  tag record") || !strings.Contains(out, "the owner of alice.test") {
		t.Errorf("doctor of what is not there: %v\n%s", err, out)
	}

	testRefusedSignIns(t, n)
	other := testChosenHold(t, n, m, b, image, crane)
	testBuildKit(t, n, m, d)
	testEndedSession(t, n, m, b)
	noSecrets(t, n, testRevoked(t, n, m, b), other)
}

// testChosenHold adds alice to bob's hold, chooses it in the settings, and pushes.
func testChosenHold(t *testing.T, n *network, m *machine, b *browser, image testImage, crane string) *daemon {
	t.Helper()
	other, did := n.startHold(t, "STORAGE_DRIVER=filesystem", "STORAGE_ROOT_DIR="+t.TempDir(), "HOLD_OWNER="+n.alice.DID)
	for _, refused := range []string{n.privateDID, n.alice.DID, "http://localhost:1"} {
		b.open("http://" + n.registry + "/settings")
		b.fill("#holdfield", refused)
		b.press("Use this hold")
		b.shows("Your hold was not changed")
	}
	b.open("http://" + n.registry + "/settings")
	b.fill("#holdfield", other.url)
	b.press("Use this hold")
	b.shows("Your pushes go to that hold from now on")
	b.shows(did)
	if out := m.must("hold", "show", "--json"); !strings.Contains(out, did) {
		t.Errorf("hold show: %s", out)
	}
	command(t, m.env, crane, "push", image.layout, n.registry+"/alice.test/signed/elsewhere:1.0")
	status, body := get(t, n.pds.URL+"/xrpc/com.atproto.repo.listRecords?"+url.Values{"repo": {n.alice.DID}, "collection": {"io.atcr.manifest"}}.Encode())
	var list struct {
		Records []struct {
			Value struct{ Repository, HoldDid string }
		}
	}
	if err := json.Unmarshal([]byte(body), &list); err != nil || status != http.StatusOK {
		t.Fatal(status, err)
	}
	holds := map[string]string{}
	for _, r := range list.Records {
		holds[r.Value.Repository] = r.Value.HoldDid
	}
	if holds["signed/elsewhere"] != did || holds["signed/crane"] != n.publicDID {
		t.Errorf("the images are in %v", holds)
	}
	if out := m.must("hold", "use", "default"); !strings.Contains(out, n.publicDID) {
		t.Errorf("hold use default: %s", out)
	}
	return other
}

// testBuildKit builds on an image that alice's hold gives to her alone, and pushes what was built: BuildKit, which is
// what buildx drives, asks the client for the helper's answer.
func testBuildKit(t *testing.T, n *network, m *machine, d *components.Dockerd) {
	t.Helper()
	dir, built := t.TempDir(), n.registry+"/alice.test/signed/built:1.0"
	dockerfile := "FROM " + n.registry + "/alice.test/signed/elsewhere:1.0\nCOPY Dockerfile /\n"
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(dockerfile), 0o600); err != nil {
		t.Fatal(err)
	}
	docker := func(config string, args ...string) (string, error) {
		// Debian's client has BuildKit built in; a newer one before it on the PATH would need buildx.
		cmd := exec.CommandContext(t.Context(), "/usr/bin/docker", args...)
		cmd.Env = append(os.Environ(), m.env...)
		cmd.Env = append(cmd.Env, "DOCKER_HOST="+d.Host, "DOCKER_CONFIG="+config, "DOCKER_BUILDKIT=1")
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	if out, err := docker(t.TempDir(), "build", "--pull", dir); err == nil || !strings.Contains(out, "elsewhere") {
		t.Errorf("nobody builds on it: %v\n%s", err, out)
	}
	for _, args := range [][]string{{"build", "--pull", "-t", built, dir}, {"push", built}} {
		if out, err := docker(d.Config, args...); err != nil || args[0] == "build" && !strings.Contains(out, "exporting layers") {
			t.Fatalf("docker %v: %v\n%s", args, err, out)
		}
	}
}

// testPipeline does what docs/ci.md says for a machine with neither keychain nor browser: with an access token,
// and with an app password.
func testPipeline(t *testing.T, n *network, token string) {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("..", "..", "docs", "ci.md"))
	if err != nil {
		t.Fatal(err)
	}
	login := regexp.MustCompile(`(?m)^ {4}(echo .*docker login.*)$`).FindSubmatch(raw)
	if login == nil {
		t.Fatal("docs/ci.md has no login")
	}
	line := strings.NewReplacer("atcr.example", n.registry, "alice.com", "alice.test", "docker login", "crane auth login").Replace(string(login[1]))
	crane := components.Path(t, "crane")
	for _, password := range []string{token, n.alice.AppPassword} {
		env := []string{"DOCKER_CONFIG=" + t.TempDir(), "REGISTRY_TOKEN=" + password, "PATH=" + filepath.Dir(crane) + ":" + os.Getenv("PATH")}
		command(t, env, "sh", "-c", line)
		command(t, env, crane, "pull", "--format=oci", n.registry+"/alice.test/signed/crane:1.0", filepath.Join(t.TempDir(), "out"))
	}
}

// exchange shows a secret of alice's for a registry token.
func (n *network) exchange(t *testing.T, secret, scope string) (int, string) {
	t.Helper()
	basic := base64.StdEncoding.EncodeToString([]byte("alice.test:" + secret))
	return get(t, "http://"+n.registry+"/auth/token?scope="+url.QueryEscape(scope), "Authorization", "Basic "+basic)
}

// device is the secret of the machine.
func (m *machine) device(n *network) string {
	m.t.Helper()
	out, _, err := m.run(n.registry, "get")
	var device struct{ Secret string }
	if err != nil || json.Unmarshal([]byte(out), &device) != nil || !strings.HasPrefix(device.Secret, "atcrd_") {
		m.t.Fatalf("get: %v %q", err, out)
	}
	return device.Secret
}

// testEndedSession ends the sign-in at the PDS in the settings, by which the device acts, and signs in again.
func testEndedSession(t *testing.T, n *network, m *machine, b *browser) {
	t.Helper()
	const scope = "repository:alice.test/signed/ended:pull,push"
	device := m.device(n)
	upload := func(registryToken string) int {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+n.registry+"/v2/alice.test/signed/ended/blobs/uploads/", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+registryToken)
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
		return res.StatusCode
	}
	var before struct{ Token string }
	if _, body := n.exchange(t, device, scope); json.Unmarshal([]byte(body), &before) != nil || upload(before.Token) != http.StatusAccepted {
		t.Fatalf("before: %s", body)
	}
	b.open("http://" + n.registry + "/settings")
	b.click(`[aria-label="Revoke approved in a browser"]`)
	b.shows("Your handle") // the browser is signed out with it
	if status, body := n.exchange(t, device, scope); status != http.StatusUnauthorized || !strings.Contains(body, "/settings") {
		t.Errorf("the device, without the sign-in that it acts with: %d %s", status, body)
	}
	if status := upload(before.Token); status != http.StatusUnauthorized {
		t.Errorf("a registry token of before: %d", status)
	}
	if out := m.must("status"); !strings.Contains(out, "NOT VALID (your sign-in at your PDS has ended") {
		t.Errorf("status: %s", out)
	}
	b.fill("#who", n.alice.Handle)
	b.press("Go on at my server")
	b.signInAtPDS(n.alice.Password)
	b.shows("Where your images are stored")
	if status, body := n.exchange(t, device, scope); status != http.StatusOK || !strings.Contains(body, scope) {
		t.Errorf("the device, after signing in again: %d %s", status, body)
	}
}

// testRevoked revokes a device and a token in the settings, and signs the browser out. It returns their secrets.
func testRevoked(t *testing.T, n *network, m *machine, b *browser) []string {
	t.Helper()
	// An access token that may pull from one repository.
	b.open("http://" + n.registry + "/settings")
	b.fill("#name", "CI")
	b.fill("#repositories", "signed/crane")
	b.press("Make the token")
	b.shows("shown this once")
	token := regexp.MustCompile(`atcrt_[A-Z2-7]+`).FindString(b.text())
	testPipeline(t, n, token)
	if status, body := n.exchange(t, token, "repository:alice.test/signed/crane:pull,push"); status != http.StatusOK || !strings.Contains(body, `"scope":"repository:alice.test/signed/crane:pull"`) {
		t.Errorf("the access token: %d %s", status, body)
	}
	// Signed in once more, the machine has another secret; the first one is revoked by that.
	replaced := m.device(n)
	x := m.terminal("login", n.registry, "--name", "alice's laptop")
	b.open(x.says(t, `http://\S+/device\?user_code=[A-Z-]+`))
	b.press("Approve")
	x.wait(t, 0)
	secrets := []string{token, m.device(n), replaced}
	if status, _ := n.exchange(t, replaced, ""); status != http.StatusUnauthorized || secrets[1] == replaced {
		t.Errorf("the secret that was replaced is answered with %d", status)
	}
	for _, label := range []string{"Revoke CI", "Revoke alice's laptop"} {
		b.open("http://" + n.registry + "/settings")
		b.click(`[aria-label="` + label + `"]`)
		b.shows("It is revoked")
	}
	for _, secret := range secrets {
		if status, _ := n.exchange(t, secret, ""); status != http.StatusUnauthorized {
			t.Errorf("a revoked secret is answered with %d", status)
		}
	}
	if out := m.must("status"); !strings.Contains(out, "NOT VALID") {
		t.Errorf("status of a revoked device: %s", out)
	}
	b.press("Sign out")
	b.until("the first page", `location.pathname === "/" && document.readyState === "complete"`)
	b.open("http://" + n.registry + "/settings")
	b.shows("Your handle")
	return secrets
}

// noSecrets searches all that the daemons logged.
func noSecrets(t *testing.T, n *network, secrets []string, other *daemon) {
	t.Helper()
	secrets = append(secrets, n.alice.Password, n.alice.AppPassword, n.bob.Password, n.bob.AppPassword)
	for _, d := range []*daemon{n.appview, n.public, n.private, other} {
		log := d.output.String()
		if len(log) == 0 {
			t.Errorf("%s logs nothing", d.name)
		}
		for _, secret := range secrets {
			if secret == "" || strings.Contains(log, secret) {
				t.Errorf("%s logs a secret", d.name)
			}
		}
		if found := regexp.MustCompile(`atcr[dt]_[A-Z2-7]{8}|Bearer ey|[?&](code|state|user_code)=|eyJ[A-Za-z0-9_-]{20}`).FindString(log); found != "" {
			t.Errorf("%s logs what looks like a secret: %s", d.name, found)
		}
	}
}
