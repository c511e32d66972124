// Package conformance runs the OCI's own conformance suite, unchanged, against an AppView and its holds.
//
// It owns the combinations of storage and uploads that are tried, and refuses to own what is right: that is
// the suite's.
package conformance

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"regexp"
	"strconv"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"atcr.io/internal/appview"
	"atcr.io/internal/devnet"
	"atcr.io/internal/envconf"
	"atcr.io/internal/hold"
	"atcr.io/test/components"
)

// Would catch any departure from the distribution spec, released and in development, in each way that bytes
// go.
func TestConformance(t *testing.T) {
	t.Parallel()
	s3 := components.StartVersityGW(t)
	for _, c := range []struct{ storage, uploads, version string }{
		{"folder", "never", "1.1"}, {"folder", "auto", "dev"}, {"S3 presigned", "never", "1.1"}, {"S3 presigned", "auto", "1.1"},
		{"S3 through the hold", "auto", "1.1"}, {"S3 through the hold", "never", "dev"},
	} {
		t.Run(fmt.Sprintf("%s, direct uploads %s, %s", c.storage, c.uploads, c.version), func(t *testing.T) {
			t.Parallel()
			settings := []string{"STORAGE_DRIVER=filesystem", "STORAGE_ROOT_DIR=" + t.TempDir()}
			if c.storage != "folder" {
				bucket := "b" + regexp.MustCompile(`[^a-z0-9]`).ReplaceAllString(c.uploads+c.version, "") + strconv.Itoa(len(c.storage))
				s3.CreateBucket(t, bucket)
				settings = []string{
					"S3_ENDPOINT=" + s3.Endpoint, "S3_BUCKET=" + bucket, "AWS_ACCESS_KEY_ID=" + s3.AccessKey, "AWS_SECRET_ACCESS_KEY=" + s3.SecretKey,
					"DISABLE_PRESIGNED_URLS=" + strconv.FormatBool(c.storage == "S3 through the hold"),
				}
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
			registry := startAppView(t, network, startHold(t, network, settings), c.uploads)
			suite(t, registry, network.Accounts[0], c.version)
		})
	}
}

// suite runs it, and fails with what it says of each failure.
func suite(t *testing.T, registry string, alice devnet.Account, version string) {
	t.Helper()
	results := t.TempDir()
	cmd := exec.CommandContext(t.Context(), components.Path(t, "conformance"))
	cmd.Dir = results
	cmd.Env = []string{
		"OCI_REGISTRY=" + registry, "OCI_TLS=disabled", "OCI_REPO1=alice.test/repo1", "OCI_REPO2=alice.test/nested/repo2", "OCI_USERNAME=alice.test",
		"OCI_PASSWORD=" + alice.AppPassword, "OCI_VERSION=" + version, "OCI_RESULTS_DIR=" + results, "HOME=" + results,
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, tail(out))
	}
	passed := regexp.MustCompile(`(?i)pass\w*[^0-9\n]*([0-9]+)`).FindSubmatch(out)
	if passed == nil {
		t.Fatalf("it does not say how much passed:\n%s", tail(out))
	}
	n, err := strconv.Atoi(string(passed[1]))
	if err != nil || n < 500 {
		t.Errorf("only %d passed: %v\n%s", n, err, tail(out))
	}
	t.Logf("%d passed", n)
}

func tail(out []byte) []byte { return out[max(0, len(out)-8000):] }

func listen(t *testing.T) (net.Listener, string) {
	t.Helper()
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l, strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
}

func serve(t *testing.T, l net.Listener, h http.Handler, closer io.Closer) {
	t.Helper()
	s := &httptest.Server{Listener: l, Config: &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second}}
	s.Start()
	t.Cleanup(func() {
		s.Close()
		if err := closer.Close(); err != nil {
			t.Error(err)
		}
	})
}

// startHold returns the hold's DID.
func startHold(t *testing.T, network *devnet.Network, settings []string) string {
	t.Helper()
	l, port := listen(t)
	var config hold.Config
	err := envconf.Load(append(settings,
		"HOLD_PUBLIC_URL=http://localhost:"+port, "HOLD_OWNER="+network.Accounts[0].DID, "HOLD_PLC_URL="+network.PLCURL, "HOLD_PUBLIC=true",
		"HOLD_ALLOW_ALL_CREW=true", "HOLD_DATABASE_DIR="+t.TempDir(), "HOLD_DEBUG_ADDR=",
	), hold.Prefix, &config)
	if err != nil {
		t.Fatal(err)
	}
	h, err := hold.Open(t.Context(), config, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	serve(t, l, h.Handler(), h)
	return h.DID().String()
}

// startAppView returns its host and port.
func startAppView(t *testing.T, network *devnet.Network, holdDID, uploads string) string {
	t.Helper()
	l, port := listen(t)
	var config appview.Config
	err := envconf.Load([]string{
		"ATCR_BASE_URL=http://127.0.0.1:" + port, "ATCR_DEFAULT_HOLD_DID=" + holdDID, "ATCR_DATABASE_DIR=" + t.TempDir(), "ATCR_PLC_URL=" + network.PLCURL,
		"ATCR_HANDLE_RESOLVER_URL=" + network.PDSURL, "ATCR_DIRECT_UPLOADS=" + uploads, "ATCR_DEBUG_ADDR=", "TEST_MODE=true",
	}, appview.Prefix, &config)
	if err != nil {
		t.Fatal(err)
	}
	var problems bytes.Buffer
	a, err := appview.Open(t.Context(), config, slog.New(slog.NewTextHandler(&problems, &slog.HandlerOptions{Level: slog.LevelError})), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	serve(t, l, a.Handler(), a)
	return "127.0.0.1:" + port
}
