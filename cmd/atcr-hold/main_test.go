package main

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bluesky-social/indigo/atproto/atcrypto"
	"github.com/bluesky-social/indigo/atproto/repo"
	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"
	"github.com/prometheus/client_golang/prometheus"

	"atcr.io/internal/envconf"
	"atcr.io/internal/hold"
	"atcr.io/internal/pds/tree"
	"atcr.io/internal/sqldb"
	"atcr.io/test/components"
)

// output collects what a running command prints.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// serve runs the hold with environ alone until the test ends.
func serve(t *testing.T, environ []string) *output {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	out, ended := &output{}, make(chan error, 1)
	go func() { ended <- command.Run(ctx, nil, environ, io.Discard, out) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Errorf("%v\n%s", err, out)
		}
	})
	return out
}

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	for range 200 {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			timer := time.NewTimer(25 * time.Millisecond)
			<-timer.C
			continue
		}
		body, err := io.ReadAll(res.Body)
		if err := errors.Join(err, res.Body.Close()); err != nil {
			t.Fatal(err)
		}
		return res.StatusCode, string(body)
	}
	t.Fatalf("%s does not answer", url)
	return 0, ""
}

// The four kinds of hold start as the README writes them, and their captain record says what they allow.
func TestKinds(t *testing.T) {
	t.Parallel()
	s3 := components.StartS3(t)
	storage := func(bucket string) []string {
		s3.CreateBucket(t, bucket)
		return []string{"S3_ENDPOINT=" + s3.Endpoint, "S3_BUCKET=" + bucket, "AWS_ACCESS_KEY_ID=" + s3.AccessKey, "AWS_SECRET_ACCESS_KEY=" + s3.SecretKey}
	}
	direct := []string{"presigned URLs are on", "clients fetch blobs from " + strings.TrimPrefix(s3.Endpoint, "http://")}
	folder := []string{"STORAGE_DRIVER=filesystem", "STORAGE_ROOT_DIR=" + t.TempDir()}
	for name, test := range map[string]struct {
		environ          []string
		public, allowAll bool
		says             []string
	}{
		"personal":    {append(storage("personal"), "HOLD_PUBLIC=false", "HOLD_ALLOW_ALL_CREW=false"), false, false, direct},
		"team":        {append(storage("team"), "HOLD_PUBLIC=false", "HOLD_ALLOW_ALL_CREW=false"), false, false, direct},
		"community":   {append(storage("community"), "HOLD_PUBLIC=true", "HOLD_ALLOW_ALL_CREW=true"), true, true, direct},
		"development": {append(folder, "HOLD_PUBLIC=true", "HOLD_ALLOW_ALL_CREW=true"), true, true, []string{"presigned URLs are off", "a folder on this machine"}},
		"through it":  {append(storage("through"), "HOLD_PUBLIC=false", "DISABLE_PRESIGNED_URLS=true", "TEST_MODE=true"), false, false, []string{"presigned URLs are off", "level=WARN msg=\"TEST_MODE"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			address := fmt.Sprintf("127.0.0.1:%d", components.FreePort(t))
			out := serve(t, append(test.environ, "HOLD_PUBLIC_URL=http://"+address, "HOLD_SERVER_ADDR="+address, "HOLD_DEBUG_ADDR=127.0.0.1:0",
				"HOLD_OWNER=did:plc:your-test-did", "HOLD_DATABASE_DIR="+t.TempDir(), "PATH=/bin", "HOLD_PORT=tcp://10.0.0.1:80"))
			did := "did:web:" + strings.ReplaceAll(address, ":", "%3A")
			if status, body := get(t, "http://"+address+"/.well-known/did.json"); status != http.StatusOK || !strings.Contains(body, did) {
				t.Fatalf("%d %s", status, body)
			}
			_, body := get(t, "http://"+address+"/xrpc/com.atproto.repo.getRecord?repo="+strings.ReplaceAll(did, "%", "%25")+"&collection=io.atcr.hold.captain&rkey=self")
			var captain struct {
				Value struct {
					Owner                string
					Public, AllowAllCrew bool
				}
			}
			if err := json.Unmarshal([]byte(body), &captain); err != nil || captain.Value.Public != test.public || captain.Value.AllowAllCrew != test.allowAll || captain.Value.Owner != "did:plc:your-test-did" {
				t.Errorf("%s %v", body, err)
			}
			want := http.StatusUnauthorized
			if test.public {
				want = http.StatusNotFound
			}
			if status, body := get(t, "http://"+address+"/xrpc/com.atproto.sync.getBlob?did=did:plc:x&cid=sha256:"+strings.Repeat("0", 64)); status != want {
				t.Errorf("nobody reads: %d %s", status, body)
			}
			for _, says := range test.says {
				if !strings.Contains(out.String(), says) {
					t.Errorf("the log lacks %q:\n%s", says, out)
				}
			}
		})
	}
}

// Would catch a start that fails late, or says nothing of what to do.
func TestRefusals(t *testing.T) {
	t.Parallel()
	s3 := components.StartS3(t)
	base := []string{"HOLD_PUBLIC_URL=http://127.0.0.1:1", "HOLD_SERVER_ADDR=127.0.0.1:0", "HOLD_OWNER=did:plc:x", "HOLD_DATABASE_DIR=" + t.TempDir()}
	for name, test := range map[string]struct {
		args    []string
		environ []string
		want    string
	}{
		"nothing":        {nil, nil, "HOLD_PUBLIC_URL is required"},
		"unknown":        {nil, append(base, "HOLD_ALOW_ALL_CREW=true"), "did you mean HOLD_ALLOW_ALL_CREW?"},
		"no bucket":      {nil, append(base, "S3_ENDPOINT="+s3.Endpoint, "S3_BUCKET=absent-bucket", "AWS_ACCESS_KEY_ID="+s3.AccessKey, "AWS_SECRET_ACCESS_KEY="+s3.SecretKey), "no bucket absent-bucket"},
		"no command":     {[]string{"frobnicate"}, base, "--help"},
		"no argument":    {[]string{"serve", "now"}, base, "--help"},
		"folder no root": {nil, append(base, "STORAGE_DRIVER=filesystem", "STORAGE_ROOT_DIR=/dev/null/x"), "STORAGE_ROOT_DIR"},
	} {
		err := command.Run(t.Context(), test.args, test.environ, io.Discard, io.Discard)
		if err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), s3.SecretKey+" ") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Would catch a secret that is shown, and help that does not teach.
func TestManual(t *testing.T) {
	t.Parallel()
	for args, want := range map[string][]string{
		"--help":               {"Usage:", "HOLD_PUBLIC_URL", "HOLD_DATABASE_DIR"},
		"config --env-example": {"HOLD_PUBLIC_URL=", "#HOLD_SERVER_ADDR=:8080"},
		"config --markdown":    {"| `HOLD_PUBLIC` |"},
		"config":               {"HOLD_PUBLIC_URL=https://hold.example.com", "AWS_SECRET_ACCESS_KEY=(hidden)", "HOLD_KEY_PATH=/var/lib/atcr-hold/signing.key", "HOLD_SERVER_ADDR=:8080"},
	} {
		var out bytes.Buffer
		err := command.Run(t.Context(), strings.Fields(args), []string{
			"HOLD_PUBLIC_URL=https://hold.example.com", "S3_BUCKET=b", "AWS_ACCESS_KEY_ID=k", "AWS_SECRET_ACCESS_KEY=secretword",
		}, &out, io.Discard)
		if err != nil {
			t.Errorf("%s: %v", args, err)
		}
		for _, w := range want {
			if !strings.Contains(out.String(), w) {
				t.Errorf("%s lacks %q:\n%s", args, w, &out)
			}
		}
		if strings.Contains(out.String(), "secretword") {
			t.Errorf("%s shows a secret", args)
		}
	}
}

// Would catch commands whose arguments are lost, misread, or not told about.
func TestCommandLine(t *testing.T) {
	t.Parallel()
	settings := []string{
		"HOLD_PUBLIC_URL=http://127.0.0.1:8080", "HOLD_OWNER=did:plc:owner", "STORAGE_DRIVER=filesystem", "STORAGE_ROOT_DIR=" + t.TempDir(),
		"HOLD_DATABASE_DIR=" + t.TempDir(), `HOLD_QUOTAS={"tiers":{"pro":"5GB"}}`,
	}
	run := func(args ...string) (string, error) {
		t.Helper()
		out := &output{}
		err := command.Run(t.Context(), args, settings, out, io.Discard)
		return out.String(), err
	}
	if out, err := run("crew", "list"); err == nil || !strings.Contains(err.Error(), "there is no hold in") {
		t.Fatalf("a command made a hold: %s %v", out, err)
	}
	makeHold(t, settings)
	file := filepath.Join(t.TempDir(), "backup")
	for _, step := range []struct {
		args  string
		want  string
		fails bool
	}{
		{"crew add did:plc:a --permissions blob:read --tier pro", "did:plc:a  blob:read", false},
		{"crew add --permissions crew:admin did:plc:b", "did:plc:b  crew:admin", false},
		{"crew list --json", `"permissions":["blob:read"],"tier":"pro"}`, false},
		{"crew set did:plc:a", "tier pro", false},
		{"crew set did:plc:a --tier=", "did:plc:a  blob:read\n", false},
		{"crew set did:plc:b --tier pro", "did:plc:b  crew:admin  tier pro", false},
		{"crew set did:plc:new", "did:plc:new  blob:read, blob:write", false},
		{"crew set did:plc:a --tier gold", `no tier "gold"`, true},
		{"crew set did:plc:a --permissions blob:wirte", `no permission "blob:wirte"`, true},
		{"crew set", "usage: atcr-hold crew set DID", true},
		{"crew remove did:plc:a extra", `unknown argument "extra"`, true},
		{"crew remove did:plc:a", "no member any more", false},
		{"crew", `unknown command "crew"`, true},
		{"fsck --json", `{"added":0,"removed":0}`, false},
		{"gc --dry-run", "nothing is collected", true},
		{"gc --help", "only say what would be deleted", false},
		{"repo verify", "the repo is whole", false},
		{"repo verify --json", `"records":`, false},
		{"repo rebuild", "0 were damaged", false},
		{"repo import " + file + ".absent", "no such file", true},
		{"repo import", "usage: atcr-hold repo import FILE", true},
		{"repo import --help", "a did:key that the CAR may have been signed with", false},
		{"key show", "signs with did:key:z", false},
		{"key show --json", `"signingKey":"did:key:z`, false},
		{"key rotate", "make a new one", false},
		{"key export-rotation", "has no rotation key", true},
		{"doctor --help", "-appview", false},
		{"crew add --help", "your app password", false},
		{"crew add did:plc:c --hold 127.0.0.1:1", "--hold 127.0.0.1:1", true},
		{"crew add did:plc:c --hold 127.0.0.1:1 --password-file " + file + ".absent", "no such file", true},
		{"backup --with-rotation-key " + file, "has no rotation key", true},
		{"backup " + file, "keep it secret", false},
		{"backup " + file, "exists", true},
		{"restore " + file, "restore into empty folders", true},
		{"restore", "usage: atcr-hold restore FILE", true},
	} {
		out, err := run(strings.Fields(step.args)...)
		if err != nil {
			out += err.Error()
		}
		if (err != nil) != step.fails || !strings.Contains(out, step.want) {
			t.Errorf("%s: %s", step.args, out)
		}
	}
	// The repo goes out by standard output, and comes back.
	car, err := run("repo", "export")
	if err != nil || !strings.Contains(car[:min(len(car), 20)], "roots") {
		t.Fatalf("%d bytes: %v", len(car), err)
	}
	if err := os.WriteFile(file+".car", []byte(car), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := run("repo", "import", file+".car"); err != nil || !strings.Contains(out, "the repo is whole") {
		t.Errorf("%s %v", out, err)
	}
	if err := command.Run(t.Context(), []string{"repo", "export"}, settings, full{}, io.Discard); err == nil || !strings.Contains(err.Error(), "no space") {
		t.Errorf("a repo that was cut off passes for whole: %v", err)
	}
}

// Would catch a "repo verify" that lets text pass which is not UTF-8, or does not say in which record it is, also where the
// hold itself needs that one.
func TestVerifyNamesText(t *testing.T) {
	t.Parallel()
	for n := range 3 { // captain, crew and profile
		dir := t.TempDir()
		settings := []string{
			"HOLD_PUBLIC_URL=http://127.0.0.1:8080", "HOLD_OWNER=did:plc:owner", "STORAGE_DRIVER=filesystem", "STORAGE_ROOT_DIR=" + t.TempDir(),
			"HOLD_DATABASE_DIR=" + dir,
		}
		makeHold(t, settings)
		path := badText(t, dir, n)
		for _, args := range [][]string{{"repo", "verify"}, {"repo", "verify", "--json"}} {
			out := &output{}
			err := command.Run(t.Context(), args, settings, out, io.Discard)
			if path == "" || err == nil || !strings.Contains(err.Error(), path+": its text is not valid UTF-8") {
				t.Errorf("%s: %s: %s %v", path, args, out, err)
			}
		}
	}
}

// makeHold leaves a hold behind that was started once.
func makeHold(t *testing.T, settings []string) {
	t.Helper()
	var config hold.Config
	if err := envconf.Load(settings, hold.Prefix, &config); err != nil {
		t.Fatal(err)
	}
	h, err := hold.Open(t.Context(), config, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
}

// badText puts text that is not UTF-8 into the nth record of the hold in dir, which is stopped, and signs its repo as it
// is then.
func badText(t *testing.T, dir string, n int) (path string) {
	t.Helper()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	raw, err := os.ReadFile(filepath.Join(dir, "signing.key"))
	check(err)
	key, err := atcrypto.ParsePrivateBytesK256(raw)
	check(err)
	db, err := sqldb.Open(t.Context(), filepath.Join(dir, "db.sqlite3"))
	check(err)
	defer func() { check(db.Close()) }()
	name := func(block []byte) cid.Cid {
		c, err := cid.V1Builder{Codec: cid.DagCBOR, MhType: multihash.SHA2_256}.Sum(block)
		check(err)
		return c
	}
	check(db.Write(t.Context(), func(tx *sql.Tx) error {
		bad := []byte("\xa1\x61a\x61\xff")
		paths := tree.New()
		rows, err := tx.QueryContext(t.Context(), `SELECT collection || '/' || rkey, cid FROM record ORDER BY collection, rkey`)
		check(err)
		defer func() { _ = rows.Close() }()
		for i := 0; rows.Next(); i++ {
			var at string
			var own []byte
			check(rows.Scan(&at, &own))
			c, err := cid.Cast(own)
			check(err)
			if i == n {
				path, c = at, name(bad)
			}
			check(paths.Set(at, c))
		}
		check(rows.Err())
		_, err = tx.ExecContext(t.Context(), `UPDATE record SET value = ?, cid = ? WHERE collection || '/' || rkey = ?`, bad, name(bad).Bytes(), path)
		check(err)
		root, err := paths.Root()
		check(err)
		var block bytes.Buffer
		var head []byte
		check(tx.QueryRowContext(t.Context(), `SELECT head_block FROM repo`).Scan(&head))
		var commit repo.Commit
		check(commit.UnmarshalCBOR(bytes.NewReader(head)))
		commit.Data = root
		check(commit.Sign(key))
		check(commit.MarshalCBOR(&block))
		_, err = tx.ExecContext(t.Context(), `UPDATE repo SET head = ?, head_block = ?, data = ?`, name(block.Bytes()).Bytes(), block.Bytes(), root.Bytes())
		return err
	}))
	return path
}

// full is a place where nothing can be written.
type full struct{}

func (full) Write([]byte) (int, error) { return 0, errors.New("no space") }
