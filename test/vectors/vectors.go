// Package vectors finds the protocol's published test vectors, which the indigo module carries.
package vectors

import (
	"bufio"
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Read is a file of the module, like atproto/repo/testdata/commit-proof-fixtures.json.
func Read(t testing.TB, path string) []byte {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(Dir(t), path))
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// Dir is where the module lies: the protocol's Lexicons are below lexicons/.
func Dir(t testing.TB) string {
	t.Helper()
	dir, err := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Dir}}", "github.com/bluesky-social/indigo").Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(dir))
}

// Syntax is the cases of a kind of text, like did: valid, or invalid. Each is a line, byte for byte: spaces count.
func Syntax(t *testing.T, kind string, valid bool) []string {
	t.Helper()
	return Lines(t, "atproto/syntax/testdata/"+kind+map[bool]string{true: "_syntax_valid.txt", false: "_syntax_invalid.txt"}[valid])
}

// Lines is the lines of a file of the module, without comments and empty ones.
func Lines(t *testing.T, path string) (out []string) {
	t.Helper()
	s := bufio.NewScanner(bytes.NewReader(Read(t, path)))
	for s.Scan() {
		if line := s.Text(); line != "" && !strings.HasPrefix(line, "#") {
			out = append(out, line)
		}
	}
	if s.Err() != nil || len(out) < 3 {
		t.Fatalf("%s: %d cases: %v", path, len(out), s.Err())
	}
	return out
}
