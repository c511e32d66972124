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

// Would catch a start that fails late, or says nothing of what to do.
func TestRefusals(t *testing.T) {
	t.Parallel()
	base := []string{"ATCR_DEFAULT_HOLD_DID=did:web:hold.example.com", "ATCR_BASE_URL=https://atcr.example.com", "ATCR_DATABASE_DIR=" + t.TempDir()}
	for name, test := range map[string]struct {
		args, environ []string
		want          []string
	}{
		"nothing":          {nil, nil, []string{"ATCR_DEFAULT_HOLD_DID"}},
		"unknown":          {nil, append(base, "ATCR_DEFAULT_HOLD=x"), []string{"did you mean ATCR_DEFAULT_HOLD_DID?"}},
		"all at once":      {nil, append(base, "ATCR_TOKEN_EXPIRATION=soon", "ATCR_DIRECT_UPLOADS=sometimes"), []string{"ATCR_TOKEN_EXPIRATION", "ATCR_DIRECT_UPLOADS"}},
		"test mode, https": {nil, append(base, "TEST_MODE=true"), []string{"TEST_MODE"}},
		"http, public":     {nil, []string{base[0], base[2], "ATCR_BASE_URL=http://atcr.example.com"}, []string{"ATCR_BASE_URL"}},
		"no hold":          {nil, append(base[1:], "ATCR_DEFAULT_HOLD_DID=hold"), []string{"ATCR_DEFAULT_HOLD_DID"}},
		"no command":       {[]string{"frobnicate"}, base, []string{"--help"}},
	} {
		err := command.Run(t.Context(), test.args, test.environ, io.Discard, io.Discard)
		if err == nil {
			t.Errorf("%s: accepted", name)
			continue
		}
		for _, want := range test.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %q lacks %q", name, err, want)
			}
		}
	}
}

// Would catch help that does not teach, and settings that are not shown.
func TestManual(t *testing.T) {
	t.Parallel()
	for args, want := range map[string][]string{
		"--help":               {"Usage:", "ATCR_BASE_URL", "ATCR_SECRET_KEY_FILE", "ATCR_TRUSTED_PROXIES"},
		"config --env-example": {"ATCR_DEFAULT_HOLD_DID=", "#ATCR_HTTP_ADDR=:5000"},
		"config --markdown":    {"| `ATCR_TOKEN_EXPIRATION` |"},
		"config":               {"ATCR_BASE_URL=https://atcr.example.com", "ATCR_TOKEN_EXPIRATION=5m0s", "ATCR_HTTP_ADDR=:5000", "ATCR_DEBUG_ADDR=127.0.0.1:5001"},
	} {
		var out bytes.Buffer
		err := command.Run(t.Context(), strings.Fields(args), []string{
			"ATCR_DEFAULT_HOLD_DID=did:web:hold.example.com", "ATCR_BASE_URL=https://atcr.example.com",
		}, &out, io.Discard)
		if err != nil {
			t.Errorf("%s: %v", args, err)
		}
		for _, w := range want {
			if !strings.Contains(out.String(), w) {
				t.Errorf("%s lacks %q:\n%s", args, w, &out)
			}
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
