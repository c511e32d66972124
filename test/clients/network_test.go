package clients

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"atcr.io/internal/appview"
	"atcr.io/internal/devnet"
	"atcr.io/internal/envconf"
	"atcr.io/internal/hold"
	"atcr.io/test/components"
)

// network is an AppView, a public hold and alice's PDS in this process, and another registry.
type network struct {
	alice    devnet.Account
	registry string // host:port of the AppView
	other    string // host:port of the other registry
	appview  *cutter
	hold     *cutter
	witness  *witness
}

// startNetwork starts them, with blobs in a folder or in a bucket. Settings, of the hold or the AppView, go before those here.
func startNetwork(t *testing.T, bucket bool, settings ...string) *network {
	t.Helper()
	local, err := devnet.Start(t.Context(), devnet.Config{Accounts: []string{"alice.test"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := local.Close(); err != nil {
			t.Error(err)
		}
	})
	n := &network{alice: local.Accounts[0], other: components.StartDistribution(t, nil, "").Host, witness: newWitness()}
	quiet := slog.New(slog.DiscardHandler)

	storage := []string{"STORAGE_DRIVER=filesystem", "STORAGE_ROOT_DIR=" + t.TempDir()}
	if bucket {
		storage = n.startStorage(t)
	}
	l, port := components.Listen(t)
	n.hold = &cutter{Listener: l}
	var holdConfig hold.Config
	load(t, hold.Prefix, &holdConfig, slices.Concat(storage, []string{
		"HOLD_PUBLIC_URL=http://localhost:" + port, "HOLD_OWNER=" + n.alice.DID, "HOLD_PLC_URL=" + local.PLCURL, "HOLD_PUBLIC=true", "HOLD_ALLOW_ALL_CREW=true",
		"HOLD_DATABASE_DIR=" + t.TempDir(), "HOLD_DEBUG_ADDR=",
	}, settings)...)
	h, err := hold.Open(t.Context(), holdConfig, quiet, prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	components.Serve(t, n.hold, n.witness.at("hold", h.Handler(), h.DID().String()), h)

	l, port = components.Listen(t)
	n.appview = &cutter{Listener: l}
	n.registry = "127.0.0.1:" + port
	var config appview.Config
	load(t, appview.Prefix, &config, slices.Concat([]string{
		"ATCR_BASE_URL=http://" + n.registry, "ATCR_DEFAULT_HOLD_DID=" + h.DID().String(), "ATCR_DATABASE_DIR=" + t.TempDir(), "ATCR_PLC_URL=" + local.PLCURL,
		"ATCR_HANDLE_RESOLVER_URL=" + local.PDSURL, "ATCR_DEBUG_ADDR=", "TEST_MODE=true",
	}, settings)...)
	a, err := appview.Open(t.Context(), config, quiet, prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	components.Serve(t, n.appview, n.witness.atAppView(a.Handler()), a)
	return n
}

// startStorage starts an S3 server whose presigned URLs lead past the witness, and returns the settings of a hold for it.
func (n *network) startStorage(t *testing.T) []string {
	t.Helper()
	s3 := components.StartS3(t)
	s3.CreateBucket(t, "blobs")
	front := s3.Front(t, func(r *http.Request) { n.witness.look("storage", r, "") })
	return []string{
		"STORAGE_DRIVER=s3", "S3_ENDPOINT=" + s3.Endpoint, "S3_PUBLIC_ENDPOINT=" + front, "S3_BUCKET=blobs",
		"AWS_ACCESS_KEY_ID=" + s3.AccessKey, "AWS_SECRET_ACCESS_KEY=" + s3.SecretKey,
	}
}

func load(t *testing.T, prefix string, config any, environ ...string) {
	t.Helper()
	var err error
	switch c := config.(type) {
	case *hold.Config:
		err = envconf.Load(environ, prefix, c)
	case *appview.Config:
		err = envconf.Load(environ, prefix, c)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// cutter is a listener that can cut one connection once so many bytes have come in, or gone out.
type cutter struct {
	net.Listener
	in, out atomic.Int64 // bytes until the cut; 0: none
	cuts    atomic.Int64
}

func (c *cutter) Accept() (net.Conn, error) {
	conn, err := c.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &cutConn{Conn: conn, cutter: c}, nil
}

type cutConn struct {
	net.Conn
	cutter  *cutter
	in, out atomic.Int64
}

var errCut = errors.New("the connection was cut")

// reached cuts where this connection is the first that has moved so much.
func (c *cutConn) reached(n int, moved, limit *atomic.Int64) bool {
	most := limit.Load()
	if most == 0 || moved.Add(int64(n)) < most || !limit.CompareAndSwap(most, 0) {
		return false
	}
	c.cutter.cuts.Add(1)
	_ = c.Close() // which is what is wanted
	return true
}

func (c *cutConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if c.reached(n, &c.in, &c.cutter.in) {
		return 0, errCut
	}
	return n, err
}

func (c *cutConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	if c.reached(n, &c.out, &c.cutter.out) {
		return n, errCut
	}
	return n, err
}

// tool runs a program with an environment of its own on top of the process's.
type tool struct {
	path string
	env  []string
	args []string // before those of each call
}

// run returns what the program printed.
func (p tool) run(ctx context.Context, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, p.path, append(append([]string{}, p.args...), args...)...)
	cmd.Env = append(os.Environ(), p.env...)
	cmd.WaitDelay = 5 * time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		return string(out), errors.New(p.path[strings.LastIndexByte(p.path, '/')+1:] + " " + strings.Join(args, " ") + ": " + err.Error() + "\n" + tail(string(out)))
	}
	return string(out), nil
}

func tail(s string) string { return s[max(0, len(s)-4000):] }
