package daemon_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"atcr.io/internal/daemon"
)

type config struct {
	Name  string `env:"TEST_NAME" required:"true" doc:"A name."`
	Level string `env:"TEST_LOG_LEVEL" default:"info" doc:"A level."`
	Key   string `env:"TEST_KEY" secret:"true" doc:"A secret."`
}

// Would catch a command that serves when it was asked something else, and one that starts with bad settings.
func TestCommand(t *testing.T) {
	t.Parallel()
	served := errors.New("served")
	c := daemon.Command[config]{
		Name: "test", About: "A test.", Prefix: "TEST_", Try: "Try it.", LogLevel: func(c config) string { return c.Level },
		Serve: func(_ context.Context, c config, _ *slog.Logger) error {
			if c.Name != "n" {
				t.Errorf("served with %+v", c)
			}
			return served
		},
	}
	good := []string{"TEST_NAME=n", "TEST_KEY=secretword"}
	for _, test := range []struct {
		args    string
		environ []string
		out     string // in what is printed
		err     string // in the error
	}{
		{"", good, "", "served"},
		{"serve", good, "", "served"},
		{"serve", nil, "", "TEST_NAME is required"},
		{"serve", append(good, "TEST_NAM=x"), "", "did you mean TEST_NAME?"},
		{"serve", append(good, "TEST_LOG_LEVEL=loud"), "", "loud"},
		{"serve now", good, "", "--help"},
		{"frobnicate", good, "", "--help"},
		{"config", good, "TEST_KEY=(hidden)", ""},
		{"config --env-example", nil, "TEST_NAME=", ""},
		{"config --markdown", nil, "| `TEST_NAME` |", ""},
		{"config --what", good, "", "--help"},
		{"--help", nil, "test config --env-example", ""},
		{"help", nil, "Try it.", ""},
		{"-h", nil, "TEST_KEY", ""},
	} {
		var out bytes.Buffer
		err := c.Run(t.Context(), strings.Fields(test.args), test.environ, &out, io.Discard)
		if (err == nil) != (test.err == "") || err != nil && !strings.Contains(err.Error(), test.err) || !strings.Contains(out.String(), test.out) {
			t.Errorf("%q: %q %v", test.args, &out, err)
		}
		if strings.Contains(out.String(), "secretword") {
			t.Errorf("%q shows a secret", test.args)
		}
	}
}

// Would catch a daemon that others reach and that tests' freedoms are on for.
func TestPublicURL(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		url      string
		testMode bool
		want     string // "": refused
	}{
		{"https://Example.com/", false, "https://example.com"}, {"https://example.com:8443", false, "https://example.com:8443"},
		{"http://127.0.0.1:8080", false, "http://127.0.0.1:8080"}, {"http://localhost:1", false, "http://localhost:1"},
		{"http://example.com", false, ""}, {"http://10.0.0.1", false, ""}, {"http://10.0.0.1", true, "http://10.0.0.1"}, {"http://registry:5000", true, "http://registry:5000"},
		{"https://localhost", true, ""}, {"http://example.com", true, ""}, {"https://u:secretword@example.com", false, ""}, {"example.com", false, ""}, {"", false, ""},
		{"https://example.com/path", false, ""}, {"https://example.com?q", false, ""}, {"ftp://example.com", false, ""}, {"https://", false, ""},
	} {
		u, err := daemon.PublicURL("X_URL", test.url, test.testMode)
		if (err == nil) != (test.want != "") || err == nil && u.String() != test.want {
			t.Errorf("%+v: %v %v", test, u, err)
		}
		if err != nil && (strings.Contains(err.Error(), "secretword") || !strings.Contains(err.Error(), "X_URL")) {
			t.Errorf("%v", err)
		}
	}
}

// Would catch settings that are wrong and found only when they are used.
func TestChecks(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		err error
		ok  bool
	}{
		"folder":         {daemon.CheckDatabaseDir(t.TempDir()), true},
		"new folder":     {daemon.CheckDatabaseDir(filepath.Join(t.TempDir(), "new")), true},
		"file":           {daemon.CheckDatabaseDir(file), false},
		"file's name":    {daemon.CheckDatabaseDir("/x/db.sqlite3"), false},
		"empty":          {daemon.CheckDatabaseDir(""), false},
		"address":        {daemon.CheckAddress("A", ":80", false), true},
		"no port":        {daemon.CheckAddress("A", "host", false), false},
		"no address":     {daemon.CheckAddress("A", "", false), false},
		"none":           {daemon.CheckAddress("A", "", true), true},
		"level":          {daemon.CheckLogLevel("L", "warn"), true},
		"no level":       {daemon.CheckLogLevel("L", "loud"), false},
		"one of":         {daemon.CheckOneOf("O", "a", "a", "b"), true},
		"none of":        {daemon.CheckOneOf("O", "c", "a", "b"), false},
		"private, local": {boolError(daemon.PrivateHost("minio") && daemon.PrivateHost("x.local") && daemon.PrivateHost("192.168.0.1") && daemon.PrivateHost("::1")), true},
		"public":         {boolError(daemon.PrivateHost("example.com") || daemon.PrivateHost("1.1.1.1")), false},
	} {
		if (test.err == nil) != test.ok {
			t.Errorf("%s: %v", name, test.err)
		}
	}
}

func boolError(ok bool) error {
	if ok {
		return nil
	}
	return errors.New("no")
}

// Would catch a daemon that does not end, or says another address than it listens on.
func TestServe(t *testing.T) {
	t.Parallel()
	ctx, stop := context.WithCancel(t.Context())
	s := daemon.Server{
		Handler: http.NotFoundHandler(), Address: "127.0.0.1:0", DebugAddress: "127.0.0.1:0", Registry: daemon.NewRegistry(),
		Logger: slog.New(slog.DiscardHandler), Grace: time.Minute,
		Ready: func(address string) {
			if res, err := http.Get("http://" + address); err == nil { //nolint:noctx // loopback; it waits in the listener's queue
				_ = res.Body.Close()
			}
			stop()
		},
	}
	ended := make(chan error, 1)
	ready := s.Ready
	s.Ready = func(address string) { go ready(address) }
	go func() { ended <- s.Serve(ctx) }()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	for _, bad := range []daemon.Server{{Address: "127.0.0.1:nope", AddressSetting: "A_ADDR"}, {Address: "127.0.0.1:0", DebugAddress: "nope", DebugSetting: "A_DEBUG"}} {
		bad.Logger = s.Logger
		if err := bad.Serve(t.Context()); err == nil || !strings.Contains(err.Error(), "A_") {
			t.Errorf("%v", err)
		}
	}
}
