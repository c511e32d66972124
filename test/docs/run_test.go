package docs

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"atcr.io/internal/devnet"
	"atcr.io/internal/envconf"
	"atcr.io/internal/hold"
	"atcr.io/test/components"
)

// builtIn is where built put the commands, "" while no test wanted them.
var builtIn string

var built = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "atcr-docs-")
	if err != nil {
		return "", err
	}
	builtIn = dir
	cmd := exec.Command("go", "build", "-o", filepath.Join(dir, "bin")+"/", "./cmd/atcr-hold", "./cmd/atcr-appview", "./cmd/atcr-demo")
	cmd.Dir, cmd.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return dir, fmt.Errorf("%w\n%s", err, out)
	}
	return dir, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if builtIn != "" {
		_ = os.RemoveAll(builtIn) // of no use to anybody, wherever it is left
	}
	os.Exit(code)
}

// build is a folder with the commands, as `make build` puts them into bin/.
func build(t *testing.T) string {
	t.Helper()
	dir, err := built()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, "bin")
}

// checkout is a folder that looks to the README's lines like a built checkout.
func checkout(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Symlink(build(t), filepath.Join(dir, "bin")); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{".env.hold.example", ".env.appview.example"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(read(t, name)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// shell is a bash that reads script as a person would type it, in dir, with the settings besides PATH.
func shell(t *testing.T, dir, script string, settings ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "bash", "-euo", "pipefail", "-c", script)
	cmd.Dir = dir
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "TMPDIR=" + t.TempDir()}, settings...)
	return cmd
}

func run(t *testing.T, dir, script string, settings ...string) string {
	t.Helper()
	out, err := shell(t, dir, script, settings...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s\n%v\n%s", script, err, out)
	}
	return string(out)
}

// start runs a script that does not end by itself, until the test ends and does what Ctrl-C does.
func start(t *testing.T, dir, script string, settings ...string) {
	t.Helper()
	var out bytes.Buffer
	cmd := shell(t, dir, script, settings...)
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGINT) }
	cmd.WaitDelay = 20 * time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // t.Context has ended: the signal is on its way
		err := cmd.Wait()
		if !errors.Is(err, context.Canceled) || !cmd.ProcessState.Success() {
			t.Errorf("it does not end well by Ctrl-C: %v, %s", err, cmd.ProcessState)
		}
		if t.Failed() {
			t.Logf("%v\n%s", err, &out)
		}
	})
}

// get asks until there is an answer.
func get(t *testing.T, address string) (status int, header http.Header, body string) {
	t.Helper()
	for range 400 {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, address, nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			timer := time.NewTimer(25 * time.Millisecond)
			<-timer.C
			continue
		}
		raw, err := io.ReadAll(res.Body)
		if err := errors.Join(err, res.Body.Close()); err != nil {
			t.Fatal(err)
		}
		return res.StatusCode, res.Header, string(raw)
	}
	t.Fatalf("%s does not answer", address)
	return 0, nil, ""
}

// blockWith is the one block of a document's section that has the words.
func blockWith(t *testing.T, path, heading, words string) string {
	t.Helper()
	var found []string
	for _, b := range Blocks(Section(read(t, path), heading)) {
		if strings.Contains(b, words) {
			found = append(found, b)
		}
	}
	if len(found) != 1 {
		t.Fatalf("%s, %q: %d blocks with %q, want one", path, heading, len(found), words)
	}
	return found[0]
}

// What the README says of a hold for development works as it is written; only the ports are others.
func TestDevelopmentHold(t *testing.T) {
	t.Parallel()
	block := blockWith(t, "README.md", "## Run a hold", "HOLD_OWNER=did:plc:your-test-did")
	port := strconv.Itoa(components.FreePort(t))
	start(t, checkout(t), strings.ReplaceAll(block, "8080", port), "HOLD_SERVER_ADDR=:"+port, "HOLD_DEBUG_ADDR=127.0.0.1:0")
	base, did := "http://127.0.0.1:"+port, "did:web:127.0.0.1%3A"+port
	if status, _, body := get(t, base+"/.well-known/did.json"); status != http.StatusOK || !strings.Contains(body, did) {
		t.Errorf("did.json: %d %s", status, body)
	}
	status, _, body := get(t, base+"/xrpc/com.atproto.repo.getRecord?"+url.Values{"repo": {did}, "collection": {"io.atcr.hold.captain"}, "rkey": {"self"}}.Encode())
	if status != http.StatusOK || !strings.Contains(body, "did:plc:your-test-did") {
		t.Errorf("captain: %d %s", status, body)
	}
}

// Would catch help that ends with an error, or that does not know a setting.
func TestHelp(t *testing.T) {
	t.Parallel()
	dir := checkout(t)
	for command, want := range map[string]string{
		"bin/atcr-hold --help": "HOLD_PUBLIC_URL", "bin/atcr-appview --help": "ATCR_BASE_URL", "bin/atcr-demo --help": "--once",
	} {
		if !strings.Contains(read(t, "README.md"), command) && command != "bin/atcr-appview --help" {
			t.Errorf("the README does not name %s", command)
		}
		if out := run(t, dir, command); !strings.Contains(out, want) {
			t.Errorf("%s:\n%s", command, out)
		}
	}
}

// uncomment makes settings of the lines that show defaults.
func uncomment(example string) string {
	var out strings.Builder
	for line := range strings.Lines(example) {
		if rest, ok := strings.CutPrefix(line, "#"); ok && !strings.HasPrefix(rest, " ") {
			line = rest
		}
		out.WriteString(line)
	}
	return out.String()
}

// The example files can be edited and sourced as the README says, and the daemons start with them. Would catch
// a value that the shell reads otherwise than the daemon, and a setting that does not reach it.
func TestExamples(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		heading, path, want string
		status              int
		edit                func(port, dir string) string
	}{
		"hold": {
			"## Run a hold", "/.well-known/atproto-did", "did:web:127.0.0.1", http.StatusOK,
			func(port, dir string) string {
				return "HOLD_PUBLIC_URL=http://127.0.0.1:" + port + "\nHOLD_SERVER_ADDR=:" + port + "\nHOLD_DEBUG_ADDR=127.0.0.1:0\nHOLD_OWNER=did:plc:your-test-did\n" +
					"STORAGE_DRIVER=filesystem\nSTORAGE_ROOT_DIR=" + dir + "/blobs\nHOLD_DATABASE_DIR=" + dir + "/database\n" +
					"HOLD_RECOVERY_KEY=\n" // its example is no key
			},
		},
		"appview": {
			"## Run an AppView", "/v2/", "UNAUTHORIZED", http.StatusUnauthorized,
			func(port, dir string) string {
				return "ATCR_BASE_URL=http://127.0.0.1:" + port + "\nATCR_HTTP_ADDR=:" + port + "\nATCR_DEBUG_ADDR=127.0.0.1:0\nATCR_DATABASE_DIR=" + dir + "/appview\n" +
					"ATCR_DATABASE_URL=\nATCR_RELAY_URLS=\nATCR_JETSTREAM_URLS=\n" // servers that are not there
			},
		},
	} {
		for _, all := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, all lines %t", name, all), func(t *testing.T) {
				t.Parallel()
				dir, port := checkout(t), strconv.Itoa(components.FreePort(t))
				block := blockWith(t, "README.md", test.heading, "set -a")
				copying, rest, _ := strings.Cut(block, "\n")
				run(t, dir, copying)
				path := filepath.Join(dir, ".env."+name)
				raw, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				text := string(raw)
				if all {
					text = uncomment(text)
				}
				text += "\n" + test.edit(port, t.TempDir())
				if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
				daemon := "bin/atcr-" + name
				if !strings.HasSuffix(strings.TrimSpace(rest), daemon) {
					t.Fatalf("the last line is not %s:\n%s", daemon, rest)
				}
				if out := run(t, dir, strings.TrimSpace(rest)+" config"); !strings.Contains(out, port) {
					t.Errorf("config does not show the port:\n%s", out)
				}
				start(t, dir, rest)
				status, header, body := get(t, "http://127.0.0.1:"+port+test.path)
				if status != test.status || !strings.Contains(body, test.want) {
					t.Errorf("%s: %d %s", test.path, status, body)
				}
				if name == "appview" && !strings.Contains(header.Get("WWW-Authenticate"), "/auth/token") {
					t.Errorf("challenge: %v", header)
				}
			})
		}
	}
}

// startHold runs a team's hold of owner on the network, and returns its URL and DID.
func startHold(t *testing.T, n *devnet.Network, owner string) (address, did string) {
	t.Helper()
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
	address = "http://localhost:" + port
	var config hold.Config
	if err := envconf.Load([]string{
		"HOLD_PUBLIC_URL=" + address, "HOLD_OWNER=" + owner, "HOLD_PLC_URL=" + n.PLCURL, "HOLD_PUBLIC=false", "HOLD_ALLOW_ALL_CREW=false",
		"STORAGE_DRIVER=filesystem", "STORAGE_ROOT_DIR=" + t.TempDir(), "HOLD_DATABASE_DIR=" + t.TempDir(), "HOLD_DEBUG_ADDR=",
	}, hold.Prefix, &config); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ended <- hold.Run(ctx, config, hold.Options{Logger: slog.New(slog.DiscardHandler), Listener: l})
	}()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return address, "did:web:localhost%3A" + port
}

// call sends JSON, or a GET where body is nil, and returns what came.
func call(t *testing.T, address, token string, body any) (int, map[string]any) {
	t.Helper()
	method, reader := http.MethodGet, io.Reader(nil)
	if body != nil {
		raw, err := json.Marshal(body)
		if err != nil {
			t.Fatal(err)
		}
		method, reader = http.MethodPost, bytes.NewReader(raw)
	}
	req, err := http.NewRequestWithContext(t.Context(), method, address, reader)
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
	var out map[string]any
	err = json.NewDecoder(res.Body).Decode(&out)
	if err := errors.Join(err, res.Body.Close()); err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, out
}

// mayPush begins an upload as the account, and returns the status.
func mayPush(t *testing.T, n *devnet.Network, a devnet.Account, holdURL, holdDID string) int {
	t.Helper()
	const method = "io.atcr.hold.initiateUpload"
	_, s := call(t, n.PDSURL+"/xrpc/com.atproto.server.createSession", "", map[string]string{"identifier": a.Handle, "password": a.AppPassword})
	session, _ := s["accessJwt"].(string)
	_, auth := call(t, n.PDSURL+"/xrpc/com.atproto.server.getServiceAuth?"+url.Values{"aud": {holdDID}, "lxm": {method}}.Encode(), session, nil)
	token, _ := auth["token"].(string)
	if token == "" {
		t.Fatalf("no service token: %v %v", s["error"], auth)
	}
	status, _ := call(t, holdURL+"/xrpc/"+method, token, map[string]string{"digest": "sha256:" + strings.Repeat("0", 64)})
	return status
}

// docs/hold.md's lines make a member who may push, and take one out again.
func TestAddingAMember(t *testing.T) {
	t.Parallel()
	curl := filepath.Dir(components.Path(t, "curl"))
	n, err := devnet.Start(t.Context(), devnet.Config{Accounts: []string{"alice.test", "bob.test"}, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	alice, bob := n.Accounts[0], n.Accounts[1]
	holdURL, holdDID := startHold(t, n, alice.DID)
	if status := mayPush(t, n, bob, holdURL, holdDID); status != http.StatusForbidden {
		t.Fatalf("before: %d", status)
	}
	add := blockWith(t, "docs/hold.md", "## Adding a member", "createRecord")
	remove := blockWith(t, "docs/hold.md", "## Adding a member", "deleteRecord")
	settings := []string{
		"PATH=" + curl + ":" + os.Getenv("PATH"), "PDS=" + n.PDSURL, "HOLD=" + holdURL, "HOLD_DID=" + holdDID,
		"HANDLE=" + alice.Handle, "APP_PASSWORD=" + alice.AppPassword, "MEMBER=" + bob.DID,
	}
	if out := run(t, t.TempDir(), add, settings...); !strings.Contains(out, "at://"+holdDID+"/io.atcr.hold.crew/") {
		t.Errorf("the record's address is not shown:\n%s", out)
	}
	if status := mayPush(t, n, bob, holdURL, holdDID); status != http.StatusOK {
		t.Errorf("a member: %d", status)
	}
	out := run(t, t.TempDir(), add+remove, settings...)
	if status := mayPush(t, n, bob, holdURL, holdDID); status != http.StatusForbidden {
		t.Errorf("after: %d\n%s", status, out)
	}
}
