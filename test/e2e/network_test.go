package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"atcr.io/test/components"
)

// binaries are the daemons as users run them, built once with the race detector.
var binaries struct{ hold, appview, helper string }

func TestMain(m *testing.M) {
	code, err := runTests(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		code = 1
	}
	os.Exit(code)
}

func runTests(m *testing.M) (int, error) {
	dir := os.Getenv(programsEnv)
	built := dir != ""
	race, err := raceFlags()
	if err != nil {
		return 1, err
	}
	if !built {
		if dir, err = os.MkdirTemp("", "atcr-e2e-"); err != nil {
			return 1, err
		}
		defer func() { _ = os.RemoveAll(dir) }()
	}
	for name, path := range map[string]*string{"atcr-hold": &binaries.hold, "atcr-appview": &binaries.appview, "docker-credential-atcr": &binaries.helper} {
		*path = filepath.Join(dir, name)
		if built {
			continue
		}
		args := append(append([]string{"build"}, race...), "-o", *path, "atcr.io/cmd/"+name)
		out, err := exec.Command("go", args...).CombinedOutput()
		if err != nil {
			return 1, fmt.Errorf("build %s: %w\n%s", name, err, out)
		}
	}
	return m.Run(), nil
}

// raceFlags are those of the Makefile, which says why.
func raceFlags() ([]string, error) {
	out, err := exec.Command("make", "--silent", "--no-print-directory", "--directory", "../..", "race").Output()
	if err != nil {
		return nil, fmt.Errorf("make race: %w", err)
	}
	return strings.Fields(string(out)), nil
}

// daemon is a running atcr-hold or atcr-appview. A data race in it fails the test.
type daemon struct {
	name, url string
	env       []string
	binary    string
	cmd       *exec.Cmd
	output    *lockedBuffer
	exited    chan struct{}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// startDaemon runs a binary with env alone and waits until url+ready answers 200 or 401.
func startDaemon(t *testing.T, binary, url, ready string, env ...string) *daemon {
	t.Helper()
	d := &daemon{name: filepath.Base(binary), url: url, env: env, binary: binary, output: &lockedBuffer{}}
	d.start(t, ready)
	t.Cleanup(func() {
		d.kill(syscall.SIGTERM)
		if i := strings.Index(d.output.String(), "DATA RACE"); i >= 0 {
			t.Errorf("%s has a data race:\n%.6000s", d.name, d.output.String()[i:])
		}
		if t.Failed() {
			t.Logf("%s at %s said:\n%s", d.name, url, tail(d.output.String()))
		}
	})
	return d
}

func tail(s string) string {
	if len(s) > 6000 {
		return "…" + s[len(s)-6000:]
	}
	return s
}

func (d *daemon) start(t *testing.T, ready string) {
	t.Helper()
	d.cmd = exec.Command(d.binary)
	d.cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "GORACE=halt_on_error=0"}, d.env...)
	d.cmd.Stdout, d.cmd.Stderr = d.output, d.output
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	d.exited = make(chan struct{})
	go func(cmd *exec.Cmd, exited chan struct{}) { _ = cmd.Wait(); close(exited) }(d.cmd, d.exited)
	deadline := time.After(3 * time.Minute)
	for {
		res, err := http.Get(d.url + ready) //nolint:noctx // loopback
		if err == nil {
			_ = res.Body.Close()
			if res.StatusCode < 500 {
				return
			}
		}
		select {
		case <-d.exited:
			t.Fatalf("%s ended at start:\n%s", d.name, tail(d.output.String()))
		case <-deadline:
			t.Fatalf("%s does not answer:\n%s", d.name, tail(d.output.String()))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// kill sends a signal and waits until the process is gone.
func (d *daemon) kill(signal syscall.Signal) {
	_ = d.cmd.Process.Signal(signal) // it may be gone
	select {
	case <-d.exited:
	case <-time.After(40 * time.Second):
		_ = d.cmd.Process.Kill()
		<-d.exited
	}
}

// network is the reference PDS with alice and bob, a public hold that everybody may push to, a private did:plc
// one that is bob's alone, and an AppView.
type network struct {
	pds        *components.PDS
	alice, bob components.Account
	public     *daemon
	private    *daemon
	appview    *daemon
	registry   string // host:port of the AppView
	publicDID  string
	privateDID string
}

func startNetwork(t *testing.T, driver string) *network {
	t.Helper()
	return startNetworkAt(t, components.StartReferencePDS(t, "alice.test", "bob.test"), driver)
}

// startNetworkAt is startNetwork with the PDS of alice and bob.
func startNetworkAt(t *testing.T, pds *components.PDS, driver string) *network {
	t.Helper()
	n := &network{pds: pds}
	n.alice, n.bob = n.pds.Accounts[0], n.pds.Accounts[1]
	publicStorage := []string{"STORAGE_DRIVER=filesystem", "STORAGE_ROOT_DIR=" + t.TempDir()}
	switch driver {
	case "full disk":
		publicStorage[1] = "STORAGE_ROOT_DIR=" + smallDisk(t)
	case "s3":
		s3 := components.StartS3(t)
		s3.CreateBucket(t, "blobs")
		publicStorage = []string{
			"STORAGE_DRIVER=s3", "S3_ENDPOINT=" + s3.Endpoint, "S3_BUCKET=blobs",
			"AWS_ACCESS_KEY_ID=" + s3.AccessKey, "AWS_SECRET_ACCESS_KEY=" + s3.SecretKey,
		}
	}
	port := freePort(t)
	n.registry = fmt.Sprintf("127.0.0.1:%d", port)
	n.public, n.publicDID = n.startHold(t, append(publicStorage, "HOLD_OWNER="+n.alice.DID, "HOLD_PUBLIC=true", "HOLD_ALLOW_ALL_CREW=true",
		"TEST_MODE=true", "HOLD_BLUESKY_POSTS_ENABLED=true", "HOLD_APPVIEW_URL=http://"+n.registry, "HOLD_HANDLE_RESOLVER_URL="+n.pds.URL)...)
	n.private, n.privateDID = n.startHold(t, "STORAGE_DRIVER=filesystem", "STORAGE_ROOT_DIR="+t.TempDir(), "HOLD_OWNER="+n.bob.DID, "HOLD_DID_METHOD=plc")
	n.appview = startDaemon(t, binaries.appview, "http://"+n.registry, "/v2/",
		"ATCR_HTTP_ADDR="+n.registry, "ATCR_DEBUG_ADDR=", "ATCR_BASE_URL=http://"+n.registry, "ATCR_DEFAULT_HOLD_DID="+n.publicDID,
		"ATCR_DATABASE_DIR="+t.TempDir(), "ATCR_PLC_URL="+n.pds.PLCURL, "ATCR_HANDLE_RESOLVER_URL="+n.pds.URL, "ATCR_LOG_LEVEL=debug", "TEST_MODE=true")
	return n
}

// smallDisk is a file system of 8 MiB.
func smallDisk(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=8m"); err != nil {
		t.Fatalf("mount a small file system (root is needed): %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// startHold starts a hold on localhost (whose did:web the reference PDS signs tokens for), and tells its DID.
func (n *network) startHold(t *testing.T, env ...string) (*daemon, string) {
	t.Helper()
	port := freePort(t)
	url := fmt.Sprintf("http://localhost:%d", port)
	env = append(env, "HOLD_PUBLIC_URL="+url, fmt.Sprintf("HOLD_SERVER_ADDR=127.0.0.1:%d", port), "HOLD_DEBUG_ADDR=",
		"HOLD_DATABASE_DIR="+t.TempDir(), "HOLD_PLC_URL="+n.pds.PLCURL, "HOLD_LOG_LEVEL=debug")
	d := startDaemon(t, binaries.hold, url, "/xrpc/_health", env...)
	status, did := get(t, url+"/.well-known/atproto-did")
	if status != http.StatusOK {
		t.Fatalf("the hold at %s does not know who it is: %d", url, status)
	}
	return d, did
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().(*net.TCPAddr).Port
}

// command runs a client and returns what it printed; it must succeed.
func command(t *testing.T, env []string, argv ...string) string {
	t.Helper()
	out, err := tryCommand(t, env, argv...)
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(argv, " "), err, tail(out))
	}
	return out
}

// tryCommand is command for one that may fail.
func tryCommand(t *testing.T, env []string, argv ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), env...)
	cmd.WaitDelay = 5 * time.Second
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// get is a GET whose status and body are what matters.
func get(t *testing.T, url string, header ...string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(res.Body)
	if err := errors.Join(err, res.Body.Close()); err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(body)
}

// pause is the step of a loop that waits for other processes.
func pause(t *testing.T) {
	t.Helper()
	timer := time.NewTimer(500 * time.Millisecond)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-t.Context().Done():
	}
}
