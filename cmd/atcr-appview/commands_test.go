package main

import (
	"bytes"
	"io"
	"strings"
	"testing"
)

// Would catch commands that do nothing, do not say what they did, or take what they do not know.
func TestBlockCommands(t *testing.T) {
	t.Parallel()
	environ := []string{"ATCR_DEFAULT_HOLD_DID=did:web:hold.example.com", "ATCR_BASE_URL=https://atcr.example.com", "ATCR_DATABASE_DIR=" + t.TempDir()}
	const did = "did:plc:z72i7hdynmk6r22z27h6tvur"
	digest := "sha256:" + strings.Repeat("0", 64)
	for _, tt := range []struct {
		args []string
		want string // in what is printed; "" for a refusal
	}{
		{[]string{"block", did, "--reason", "spam"}, did + " is blocked: spam"},
		{[]string{"block", "--reason", "a court says so", digest}, "is blocked: a court"},
		{[]string{"block", did + "/app", "--reason", "x", "--json"}, `"subject":"` + did + `/app"`},
		{[]string{"block", did}, ""},
		{[]string{"block", "--reason", "x"}, ""},
		{[]string{"block", did, digest, "--reason", "x"}, ""},
		{[]string{"block", "list"}, "  spam\n"},
		{[]string{"block", "list", "--json"}, `"reason":"a court says so"`},
		{[]string{"block", "list", did}, ""},
		{[]string{"unblock", did + "/app"}, "is served again"},
		{[]string{"unblock", did + "/app"}, ""},
		{[]string{"unblock", did, "--reason", "x"}, ""},
		{[]string{"block", "--help"}, "-reason"},
	} {
		var out bytes.Buffer
		err := command.Run(t.Context(), tt.args, environ, &out, io.Discard)
		if (err == nil) != (tt.want != "") || !strings.Contains(out.String(), tt.want) {
			t.Errorf("%q: %v, printed %q", tt.args, err, &out)
		}
	}
}
