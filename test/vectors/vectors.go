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
	raw, err := os.ReadFile(filepath.Join(Dir(t), path))
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// Dir is where the module lies: the protocol's Lexicons are below lexicons/.
func Dir(t *testing.T) string {
	t.Helper()
	dir, err := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Dir}}", "github.com/bluesky-social/indigo").Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(dir))
}
