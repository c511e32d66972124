package main

import (
	"bytes"
	"io"
	"strings"
	"testing"
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
		err := run(t.Context(), test.args, test.environ, io.Discard, io.Discard)
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
		err := run(t.Context(), strings.Fields(args), []string{
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
