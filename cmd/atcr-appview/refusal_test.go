package main

import (
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
