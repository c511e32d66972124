// Package vectors finds the protocol's published test vectors, which the indigo module carries.
package vectors

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Read is a file of the module, like atproto/repo/testdata/commit-proof-fixtures.json.
func Read(t *testing.T, path string) []byte {
	t.Helper()
	dir, err := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Dir}}", "github.com/bluesky-social/indigo").Output()
	if err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(dir)), path))
	if err != nil {
		t.Fatal(err)
	}
	return raw
}
