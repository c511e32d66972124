package main

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"atcr.io/internal/appview"
	"atcr.io/internal/envconf"
)

// Would catch a manual that does not name a setting, a secret that is printed, and a command that starts with
// settings that are wrong.
func TestCommands(t *testing.T) {
	t.Parallel()
	good := []string{"ATCR_DEFAULT_HOLD_DID=did:web:hold.example.com", "ATCR_DATABASE_DIR=" + t.TempDir()}
	for _, tt := range []struct {
		args    []string
		environ []string
		out     string // part of what is printed
		err     string // part of the error
	}{
		{[]string{"--help"}, nil, "ATCR_DEFAULT_HOLD_DID (required)", ""},
		{[]string{"config", "--env-example"}, nil, "\nATCR_DEFAULT_HOLD_DID=did:web:hold.example.com\n", ""},
		{[]string{"config", "--markdown"}, nil, "| `ATCR_TOKEN_EXPIRATION` | `300s` |", ""},
		{[]string{"config"}, good, "ATCR_BASE_URL=http://127.0.0.1:5000\n", ""},
		{[]string{"config"}, nil, "", "ATCR_DEFAULT_HOLD_DID is required"},
		{[]string{"serve"}, append(good, "ATCR_BASE_ULR=x"), "", "did you mean ATCR_BASE_URL"},
		{[]string{"frob"}, good, "", "unknown command"},
		{[]string{"config", "--frob"}, good, "", "unknown argument"},
		{nil, append(good, "ATCR_HTTP_ADDR=256.0.0.1:0", "ATCR_DEBUG_ADDR="), "", "ATCR_HTTP_ADDR"},
	} {
		var out bytes.Buffer
		err := run(t.Context(), tt.args, tt.environ, &out, io.Discard)
		if (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) || !strings.Contains(out.String(), tt.out) {
			t.Errorf("%q: %v\n%s", tt.args, err, out.String())
		}
	}
}

// Would catch a daemon that does not serve with the settings that its example file has, or does not end.
func TestServe(t *testing.T) {
	t.Parallel()
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	var config appview.Config
	if err := envconf.Load([]string{
		"ATCR_DEFAULT_HOLD_DID=did:web:hold.example.com", "ATCR_DATABASE_DIR=" + t.TempDir(), "ATCR_HTTP_ADDR=" + address, "ATCR_DEBUG_ADDR=127.0.0.1:0",
	}, appview.Prefix, &config); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- appview.Run(ctx, config, appview.Options{Listener: l, Ready: func(*appview.AppView) { close(ready) }})
	}()
	<-ready
	for path, want := range map[string]int{"/": 200, "/healthz": 200, "/v2/": 401, "/auth/token": 200, "/nothing": 404} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+address+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
		if res.StatusCode != want || res.Header.Get("X-Content-Type-Options") != "nosniff" || res.Header.Get("Content-Security-Policy") == "" {
			t.Errorf("%s: %s %v", path, res.Status, res.Header)
		}
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
