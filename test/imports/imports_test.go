package imports

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

type listed struct {
	ImportPath string
	Standard   bool
	Imports    []string
	Deps       []string
	Error      *struct{ Err string }
}

// list is the import graph of everything that is built, without cgo.
func list(t *testing.T) []listed {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-e", "-deps", "-json=ImportPath,Standard,Imports,Deps,Error",
		module+"cmd/...", module+"internal/...", module+"api/...")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.String())
	}
	var packages []listed
	for decoder := json.NewDecoder(bytes.NewReader(out)); ; {
		var p listed
		if err := decoder.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		packages = append(packages, p)
	}
	if !slices.ContainsFunc(packages, func(p listed) bool { return p.ImportPath == module+"internal/oci" }) {
		t.Fatalf("go list does not know internal/oci; it said:\n%s", stderr.String())
	}
	return packages
}

// Would catch an import that makes two parts depend on each other that are to be replaceable.
func TestImports(t *testing.T) {
	t.Parallel()
	for _, p := range list(t) {
		if !strings.HasPrefix(p.ImportPath, module) {
			continue
		}
		for _, imported := range p.Imports {
			if why := violation(p.ImportPath, imported); why != "" {
				t.Errorf("%s imports %s: %s", p.ImportPath, imported, why)
			}
		}
	}
}

// Would catch what arrives in a binary by way of others: the dev network in a daemon, packages of indigo that
// register metrics twice, a database in the credential helper, a database server's driver in a hold.
func TestLinked(t *testing.T) {
	t.Parallel()
	everywhere := []string{indigo + "carstore", indigo + "events", indigo + "repomgr", "mattn/go-sqlite3"}
	unwanted := map[string][]string{
		"cmd/atcr-hold":              {module + "internal/devnet", module + "internal/appview", module + "test/", postgres},
		"cmd/atcr-appview":           {module + "internal/devnet", module + "internal/hold", module + "test/"},
		"cmd/docker-credential-atcr": {module + "internal/devnet", "database/sql", "minio-go", postgres},
	}
	for _, p := range list(t) {
		if !strings.HasPrefix(p.ImportPath, module+"cmd/") {
			continue
		}
		for _, part := range append(unwanted[folder(p.ImportPath)], everywhere...) {
			if i := slices.IndexFunc(p.Deps, func(dep string) bool { return strings.Contains(dep, part) }); i >= 0 {
				t.Errorf("%s links %s", p.ImportPath, p.Deps[i])
			}
		}
	}
}

// Would catch a package that builds only where there is a C compiler.
func TestBuildsWithoutCgo(t *testing.T) {
	t.Parallel()
	for _, p := range list(t) {
		if p.Error != nil && !p.Standard {
			t.Errorf("%s without cgo: %s", p.ImportPath, p.Error.Err)
		}
	}
}

// Would catch rules that forbid nothing.
func TestViolation(t *testing.T) {
	t.Parallel()
	tests := []struct {
		from, to string
		allowed  bool
	}{
		{"internal/oci", module + "internal/httpx", false},
		{"internal/oci", "crypto/sha256", true},
		{"internal/httpx", module + "internal/oci", true},
		{"internal/xrpc", module + "internal/identity", true},
		{"internal/xrpc", module + "internal/pds", false},
		{"internal/httpx", module + "api/atcr", false},
		{"internal/blobstore/s3", module + "internal/blobstore", true},
		{"internal/upload", module + "internal/blobstore/s3", true},
		{"internal/upload", module + "internal/crew", false},
		{"internal/upload", module + "internal/hold", false},
		{"internal/pds", module + "internal/oci", false},
		{"internal/pds/tree", indigo + "atproto/repo/mst", true},
		{"internal/upload", indigo + "atproto/repo", false},
		{"internal/pds", indigo + "carstore", false},
		{"internal/pds", indigo + "mst", false},
		{"internal/registry", indigo + "atproto/syntax", false},
		{"internal/registry", module + "internal/regtoken", false},
		{"internal/session", module + "api/atcr", true},
		{"internal/credential", module + "internal/session", false},
		{"internal/web", module + "internal/session", false},
		{"internal/credhelper", module + "internal/xrpc", true},
		{"internal/hold", module + "internal/upload", true},
		{"internal/hold", module + "internal/appview", false},
		{"internal/appview", module + "internal/hold", false},
		{"internal/hold", module + "internal/devnet", false},
		{"internal/devnet", module + "internal/pds", true},
		{"internal/devnet", module + "internal/hold", false},
		{"internal/hold", module + "test/components", false},
		{"internal/sqldb/postgres", postgres + "/v5", true},
		{"internal/session", postgres + "/v5/pgconn", false},
		{"test/components", postgres + "/v5", true},
		{"internal/stranger", module + "internal/oci", false},
		{"internal/hold", module + "internal/stranger", false},
		{"api/atcr", module + "internal/oci", false},
		{"api/atcr", indigo + "lex/util", true},
		{"cmd/atcr-hold", module + "internal/hold", true},
		{"cmd/atcr-hold", module + "internal/devnet", false},
		{"cmd/atcr-demo", module + "internal/devnet", true},
		{"cmd/atcr-demo", module + "cmd/atcr-hold", false},
		{"test/e2e", module + "internal/pds", true},
	}
	for _, test := range tests {
		if why := violation(module+test.from, test.to); (why == "") != test.allowed {
			t.Errorf("%s imports %s: %q, want allowed = %v", test.from, test.to, why, test.allowed)
		}
	}
}
