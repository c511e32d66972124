// Package conformance runs the OCI's own conformance suite, unchanged, against an AppView and its holds.
//
// It owns the combinations of storage and uploads that are tried, and refuses to own what is right: that is
// the suite's.
package conformance

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"atcr.io/internal/appview"
	"atcr.io/internal/devnet"
	"atcr.io/internal/envconf"
	"atcr.io/internal/hold"
	"atcr.io/test/components"
	"atcr.io/test/databases"
)

func TestMain(m *testing.M) { databases.Main(m) }

// people are accounts at a PDS that somebody wrote.
type people struct {
	pds, plc, did, password string // of alice.test
}

// Would catch any departure from the distribution spec, released and in development, in each way that bytes go, on
// each database, and at each PDS. Each two of storage, way and database meet in one of the runs. On PostgreSQL two
// processes are one AppView, and get the requests in turn.
func TestConformance(t *testing.T) {
	t.Parallel()
	s3 := components.StartS3(t)
	for i, c := range []struct{ storage, uploads, database, pds string }{
		{"folder", "always", "SQLite", "ours"}, {"folder", "never", "PostgreSQL", "ours"},
		{"S3 presigned", "always", "PostgreSQL", "ours"}, {"S3 presigned", "never", "SQLite", "ours"},
		{"S3 through the hold", "always", "SQLite", "ours"}, {"S3 through the hold", "never", "PostgreSQL", "ours"},
		{"folder", "auto", "SQLite", "the reference"},
	} {
		t.Run(fmt.Sprintf("%s, direct uploads %s, %s, %s PDS", c.storage, c.uploads, c.database, c.pds), func(t *testing.T) {
			t.Parallel()
			var presigned atomic.Int64
			settings := []string{"STORAGE_DRIVER=filesystem", "STORAGE_ROOT_DIR=" + t.TempDir()}
			if c.storage != "folder" {
				bucket := fmt.Sprintf("bucket%d", i)
				s3.CreateBucket(t, bucket)
				settings = []string{
					"S3_ENDPOINT=" + s3.Endpoint, "S3_PUBLIC_ENDPOINT=" + s3.Front(t, func(*http.Request) { presigned.Add(1) }), "S3_BUCKET=" + bucket, "AWS_ACCESS_KEY_ID=" + s3.AccessKey, "AWS_SECRET_ACCESS_KEY=" + s3.SecretKey,
					"DISABLE_PRESIGNED_URLS=" + strconv.FormatBool(c.storage == "S3 through the hold"),
				}
			}
			url := ""
			if c.database == "PostgreSQL" {
				url = databases.NewPostgres(t)
			}
			alice := startPeople(t, c.pds)
			holdDID := startHold(t, alice, settings)
			registry, direct := startAppView(t, alice, holdDID, c.uploads, url)
			var options []string
			if c.storage == "S3 presigned" { // it sends no header of ours with a blob: docs/divergences.md
				options = append(options, "OCI_API_BLOBS_DIGEST_HEADER=false")
			}
			t.Run("1.1", func(t *testing.T) { suite(t, registry, alice, "1.1") })
			t.Run("dev", func(t *testing.T) { suite(t, registry, alice, "dev", options...) })
			if n := direct.Load(); (n > 0) != (c.uploads == "always") {
				t.Errorf("%d requests went straight to the hold", n)
			}
			if n := presigned.Load(); (n > 0) != (c.storage == "S3 presigned") {
				t.Errorf("%d requests went straight to the storage", n)
			}
		})
	}
}

func startPeople(t *testing.T, pds string) people {
	t.Helper()
	if pds != "ours" {
		p := components.StartReferencePDS(t, "alice.test")
		return people{p.URL, p.PLCURL, p.Accounts[0].DID, p.Accounts[0].AppPassword}
	}
	network, err := devnet.Start(t.Context(), devnet.Config{Accounts: []string{"alice.test"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := network.Close(); err != nil {
			t.Error(err)
		}
	})
	return people{network.PDSURL, network.PLCURL, network.Accounts[0].DID, network.Accounts[0].AppPassword}
}

// suite runs it, and fails with what it says of each failure, or where it tried less than it has.
func suite(t *testing.T, registry string, alice people, version string, options ...string) {
	t.Helper()
	results := t.TempDir()
	cmd := exec.CommandContext(t.Context(), components.Path(t, "conformance"))
	cmd.Dir = results
	of := strings.ReplaceAll(version, ".", "-") // a repository of its own
	cmd.Env = append(options,
		"OCI_REGISTRY="+registry, "OCI_TLS=disabled", "OCI_REPO1=alice.test/repo1-"+of, "OCI_REPO2=alice.test/nested/repo2-"+of, "OCI_USERNAME=alice.test",
		"OCI_PASSWORD="+alice.password, "OCI_VERSION="+version, "OCI_RESULTS_DIR="+results, "HOME="+results,
	)
	out, err := cmd.CombinedOutput()
	if err != nil {
		var failed []string
		for line := range strings.Lines(string(out)) {
			if strings.Contains(line, "FAIL") || strings.Contains(line, "level=") {
				failed = append(failed, line)
			}
		}
		t.Fatalf("%v\n%s\n%s", err, strings.Join(failed[:min(len(failed), 60)], ""), tail(out))
	}
	count := func(status string) int {
		t.Helper()
		line := regexp.MustCompile(`(?m)^ +` + status + `\.+: +([0-9]+)$`).FindSubmatch(out)
		if line == nil {
			t.Fatalf("it does not say how many: %s\n%s", status, tail(out))
		}
		n, err := strconv.Atoi(string(line[1]))
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	least, disabled := 860, 2 // the cancelling of uploads, which is not in 1.1
	if version == "dev" {
		least, disabled = 986, 0
	}
	if count("FAIL") > 0 || count("Error") > 0 || count("Pass") < least || count("Skip") > 0 || count("Disabled") != disabled {
		t.Errorf("want none skipped and %d disabled:\n%s", disabled, tail(out))
	}
	t.Logf("%d passed", count("Pass"))
}

func tail(out []byte) []byte { return out[max(0, len(out)-3000):] }

// startHold returns the hold's DID.
func startHold(t *testing.T, alice people, settings []string) string {
	t.Helper()
	l, port := components.Listen(t)
	var config hold.Config
	err := envconf.Load(append(settings,
		"HOLD_PUBLIC_URL=http://localhost:"+port, "HOLD_OWNER="+alice.did, "HOLD_PLC_URL="+alice.plc, "HOLD_PUBLIC=true",
		"HOLD_ALLOW_ALL_CREW=true", "HOLD_DATABASE_DIR="+t.TempDir(), "HOLD_DEBUG_ADDR=",
	), hold.Prefix, &config)
	if err != nil {
		t.Fatal(err)
	}
	h, err := hold.Open(t.Context(), config, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	components.Serve(t, l, h.Handler(), h)
	return h.DID().String()
}

// startAppView returns its host and port, and how many requests of uploads went past it.
func startAppView(t *testing.T, alice people, holdDID, uploads, databaseURL string) (registry string, direct *atomic.Int64) {
	t.Helper()
	l, port := components.Listen(t)
	var config appview.Config
	err := envconf.Load([]string{
		"ATCR_BASE_URL=http://127.0.0.1:" + port, "ATCR_DEFAULT_HOLD_DID=" + holdDID, "ATCR_DATABASE_DIR=" + t.TempDir(), "ATCR_PLC_URL=" + alice.plc, "ATCR_DATABASE_URL=" + databaseURL,
		"ATCR_HANDLE_RESOLVER_URL=" + alice.pds, "ATCR_DIRECT_UPLOADS=" + uploads, "ATCR_DEBUG_ADDR=", "TEST_MODE=true",
	}, appview.Prefix, &config)
	if err != nil {
		t.Fatal(err)
	}
	all := &inTurn{}
	processes := 1
	if databaseURL != "" {
		processes = 2
	}
	for range processes {
		a, err := appview.Open(t.Context(), config, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
		if err != nil {
			t.Fatal(err)
		}
		all.processes = append(all.processes, a)
	}
	front := &follower{appview: all, hold: "http://" + strings.ReplaceAll(strings.TrimPrefix(holdDID, "did:web:"), "%3A", ":")}
	components.Serve(t, l, front, all)
	return "127.0.0.1:" + port, &front.direct
}

// inTurn is what stands in front of the processes of one AppView, and sends no client to the same one twice.
type inTurn struct {
	processes []*appview.AppView
	turn      atomic.Uint64
}

func (i *inTurn) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	i.processes[i.turn.Add(1)%uint64(len(i.processes))].Handler().ServeHTTP(w, r)
}

// Close closes all.
func (i *inTurn) Close() (err error) {
	for _, a := range i.processes {
		err = errors.Join(err, a.Close())
	}
	return err
}
