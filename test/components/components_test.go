package components

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/minio/minio-go/v7"

	"atcr.io/test/components/toolbox"
)

// Would catch a component that is on the list but was not installed, or not for this machine.
func TestPrograms(t *testing.T) {
	t.Parallel()
	for name, version := range map[string]string{
		"crane": "version", "regctl": "version", "versitygw": "--version", "registry": "--version", "postgres": "--version", "initdb": "--version",
		"skopeo": "--version", "docker": "--version", "dockerd": "--version", "strace": "--version", "node": "--version", "gcc": "--version",
		"nginx": "-v", "haproxy": "-v", "caddy": "version", "ip": "-V",
	} {
		out, err := exec.CommandContext(t.Context(), Path(t, name), version).CombinedOutput()
		if err != nil || len(bytes.TrimSpace(out)) == 0 {
			t.Errorf("%s %s: %v: %s", name, version, err, out)
		}
	}
	if _, err := toolbox.Path("no-such-program"); err == nil {
		t.Error("an unknown name has a path")
	}
}

// Would catch an S3 server without buckets, or one that lets anybody in.
func TestS3(t *testing.T) {
	t.Parallel()
	s3 := StartS3(t)
	s3.CreateBucket(t, "bucket")
	client, want := s3.Client(t), []byte("some bytes")
	if _, err := client.PutObject(t.Context(), "bucket", "a/key", bytes.NewReader(want), int64(len(want)), minio.PutObjectOptions{}); err != nil {
		t.Fatal(err)
	}
	object, err := client.GetObject(t.Context(), "bucket", "a/key", minio.GetObjectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(object); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the bucket answers %q, %v", got, err)
	}
	if status, _ := get(t, s3.Endpoint+"/bucket/a/key"); status != http.StatusForbidden {
		t.Errorf("an unsigned request is answered with %d", status)
	}
}

// Would catch a database server without databases, or whose databases are one.
func TestPostgres(t *testing.T) {
	t.Parallel()
	server := StartPostgres(t)
	for range 2 {
		c, err := pgx.Connect(t.Context(), server.CreateDatabase(t))
		if err != nil {
			t.Fatal(err)
		}
		var bigger bool
		_, err = c.Exec(t.Context(), "CREATE TABLE t (a TEXT)")
		if err := errors.Join(err, c.QueryRow(t.Context(), "SELECT 'B' > 'a'").Scan(&bigger), c.Close(t.Context())); err != nil || !bigger {
			t.Errorf("text in a language's order: %v, %v", bigger, err)
		}
	}
}

// Would catch a PDS without the accounts, or with passwords that are not the two kinds that they should be.
func TestReferencePDS(t *testing.T) {
	t.Parallel()
	pds := StartReferencePDS(t, "alice.test", "bob.test")
	status, body := get(t, pds.URL+"/xrpc/com.atproto.server.describeServer")
	if status != http.StatusOK || !strings.Contains(body, pds.DID) {
		t.Errorf("describeServer: %d %s", status, body)
	}
	for i, handle := range []string{"alice.test", "bob.test"} {
		account := pds.Accounts[i]
		if account.Handle != handle {
			t.Errorf("account %d is %s, want %s", i, account.Handle, handle)
		}
		if status, body := get(t, pds.PLCURL+"/"+account.DID); status != http.StatusOK || !strings.Contains(body, "at://"+handle) {
			t.Errorf("the directory says of %s: %d %s", handle, status, body)
		}
		for password, scope := range map[string]string{account.Password: "com.atproto.access", account.AppPassword: "com.atproto.appPass"} {
			if got := sessionScope(t, pds, handle, password); got != scope {
				t.Errorf("%s: a session has the scope %q, want %q", handle, got, scope)
			}
		}
	}
}

// sessionScope opens a session and reads the scope in its access token.
func sessionScope(t *testing.T, pds *PDS, handle, password string) string {
	t.Helper()
	raw, err := json.Marshal(map[string]string{"identifier": handle, "password": password})
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, pds.URL+"/xrpc/com.atproto.server.createSession", bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	var session struct{ AccessJwt string }
	if err := errors.Join(json.NewDecoder(res.Body).Decode(&session), res.Body.Close()); err != nil {
		t.Fatal(err)
	}
	parts := strings.Split(session.AccessJwt, ".")
	if len(parts) != 3 {
		t.Fatalf("no session for %s: %s", handle, res.Status)
	}
	var claims struct{ Scope string }
	decode(t, parts[1], &claims)
	return claims.Scope
}

// Would catch a daemon that cannot keep images, and two that share what they keep.
func TestDockerd(t *testing.T) {
	t.Parallel()
	one, two := StartDockerd(t), StartDockerd(t)
	for _, d := range []*Dockerd{one, two} {
		if version := d.Run(t, "version", "--format", "{{.Server.Version}}"); strings.TrimSpace(version) == "" {
			t.Error("no version")
		}
	}
	archive := filepath.Join(t.TempDir(), "root.tar")
	if out, err := exec.CommandContext(t.Context(), "tar", "-cf", archive, "-C", t.TempDir(), ".").CombinedOutput(); err != nil {
		t.Fatalf("tar: %v: %s", err, out)
	}
	registry := StartDistribution(t, nil, "")
	reference := registry.Host + "/some/image:1.0"
	one.Run(t, "import", archive, reference)
	one.Run(t, "push", reference)
	if images := two.Run(t, "images", "-q"); images != "" {
		t.Errorf("the second daemon has the first one's images: %s", images)
	}
	two.Run(t, "pull", reference)
	if out, err := two.Command(t.Context(), "pull", registry.Host+"/no/image:1.0").CombinedOutput(); err == nil {
		t.Errorf("an image that is nowhere was pulled: %s", out)
	}
}

// Would catch a configuration that the registry does not accept, on S3 or on a folder.
func TestDistribution(t *testing.T) {
	t.Parallel()
	s3 := StartS3(t)
	s3.CreateBucket(t, "registry")
	for name, registry := range map[string]*Distribution{"filesystem": StartDistribution(t, nil, ""), "s3": StartDistribution(t, s3, "registry")} {
		image := filepath.Join(t.TempDir(), "layer.tar")
		if err := os.WriteFile(image, make([]byte, 10240), 0o600); err != nil { // an empty archive
			t.Fatal(err)
		}
		out, err := exec.CommandContext(t.Context(), Path(t, "crane"), "append", "--insecure", "-f", image, "-t", registry.Host+"/some/image:1.0").CombinedOutput()
		if err != nil {
			t.Errorf("%s: crane append: %v\n%s", name, err, out)
		}
	}
}

// Would catch servers that outlive the program which started them, and a failure that the program does not see.
func TestProgram(t *testing.T) {
	t.Parallel()
	var pid int
	var dir string
	err := Program(t.Context(), func(tb TB) {
		pid = StartDistribution(tb, nil, "").PID
		dir = tb.TempDir()
		tb.Fatalf("the %s", "end")
	})
	if err == nil || err.Error() != "the end" {
		t.Errorf("the program's error is %v", err)
	}
	if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("the registry still runs: %v", err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the folder is still there: %v", err)
	}
	if err := Program(t.Context(), func(TB) {}); err != nil {
		t.Errorf("nothing happened, and yet %v", err)
	}
}

// Would catch a test that waits for its whole time for a server that ended at once.
func TestEndedServer(t *testing.T) {
	t.Parallel()
	err := Program(t.Context(), func(tb TB) {
		start(tb, "the server", exec.Command("sh", "-c", "echo out of luck >&2; exit 3")).
			ready(tb, func(context.Context) error { return errors.New("not yet") })
	})
	if err == nil || !strings.Contains(err.Error(), "the server ended at start:\nout of luck") {
		t.Errorf("the error is %v", err)
	}
}
