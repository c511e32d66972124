// Package toolbox owns the one list of servers and clients, written by others, that the tests run against:
// which version, how it is installed, and where it lies. It refuses to know how any of them is started.
//
// What can be is kept under .cache/components, each in a folder with its version in the name; container
// clients that exist only as Debian packages stay where Debian puts them. It uses the standard library alone,
// so that installing starts before the project's own modules are there.
package toolbox

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
)

// module is a program that `go install` builds. The sum is that of its module's zip, whose go.mod fixes the
// versions of everything that it is built from.
type module struct {
	name, path, pkg, version, sum string
}

var modules = []module{
	{"crane", "github.com/google/go-containerregistry", "/cmd/crane", "v0.22.1", "h1:RZuuSYhTvlDvtsK+NkutoCZ//C0X2ebLK8X8l3ULs84="},
	{"regctl", "github.com/regclient/regclient", "/cmd/regctl", "v0.11.7", "h1:Jsjlnd0ZQ2Blh0vaJtxJ0pU549VajvZ6BTL/4R7noMo="},
	{"versitygw", "github.com/versity/versitygw", "/cmd/versitygw", "v1.8.0", "h1:au+wI+aybno/STsQiSm35Uu6Q6iK5MWReQxgO6SEMFc="},
	{"minio", "github.com/minio/minio", "", "v0.0.0-20260212201848-7aac2a2c5b7c", "h1:/qdoYujxF5MBLDMVLeiYJ/7fBa1HikX39Dvzb9Ji8pA="},
	{"registry", "github.com/distribution/distribution/v3", "/cmd/registry", "v3.1.2", "h1:/Bv2YIqqSR00HiO49FT93hovy6r9IlrzwUDsJjCN5qg="},
	{"conformance", "github.com/opencontainers/distribution-spec/conformance", "", "v0.0.0-20260831232431-97274622c111", "h1:ppZPU0CrEPzyJhVggYwUIZrqh0w2lIT0esw+9ABNPA4="},
	{"oras", "oras.land/oras", "/cmd/oras", "v1.3.6", "h1:Lhsfr2tQLjsu/+CJZp6vYatwKT+62fbIUTlp4lUrfOA="},
	{"helm", "helm.sh/helm/v3", "/cmd/helm", "v3.22.0", "h1:n1if5iQgHYsujPAcO5oonH/KiSNUmqmUF0iGVjSF3AU="},
	{"cosign", "github.com/sigstore/cosign/v2", "/cmd/cosign", "v2.6.5", "h1:D7kFSWS2HzfD+LpEuBO89D1KfOAODlkWuuhzXS8yzi0="},
	{"tap", "github.com/bluesky-social/indigo", "/cmd/tap", "v0.0.0-20260605210604-af2fec94f34c", "h1:Jr82+1HUmwwZzDpt/eeU4sieya27iXjuPMdXZkOXoBc="},
	{"golangci-lint", "github.com/golangci/golangci-lint/v2", "/cmd/golangci-lint", "v2.15.0", "h1:w94zf8HAYI7hm3164kwKsvZRuqXvY+YxeFoTbu1OLg8="},
}

// workspace is a folder beside this one with a go.mod of its own, whose go.sum pins everything that a program is built
// from. Its package is its own, "." with a main.go, or one of a module whose folders assets the program reads.
type workspace struct {
	pkg    string
	assets []string
}

var workspaces = map[string]workspace{
	"gitea":     {"code.gitea.io/gitea", []string{"options", "public", "templates"}}, // its go.mod replaces modules
	"registry2": {".", nil},                                                          // the previous generation of registry
}

// cgo are those modules that have SQLite in C.
var cgo = map[string]bool{"tap": true}

// debian names the packages that bring a program. C and C++ compilers are for the race detector and for the
// one npm package that is compiled (better-sqlite3).
var debian = map[string][]string{
	"buildah":    {"buildah"},
	"caddy":      {"caddy"},
	"chromium":   {"chromium"},
	"containerd": {"containerd"},
	"ctr":        {"containerd"},
	"curl":       {"curl"},
	"docker":     {"docker.io"},
	"dockerd":    {"docker.io"},
	"g++":        {"g++", "libc6-dev"},
	"gcc":        {"gcc", "libc6-dev"},
	"git":        {"git"},
	"haproxy":    {"haproxy"},
	"ip":         {"iproute2"},
	"iptables":   {"iptables"},
	"make":       {"make"},
	"initdb":     {"postgresql"},
	"nginx":      {"nginx"},
	"npm":        {"nodejs", "npm"},
	"postgres":   {"postgresql"},
	"podman":     {"podman"},
	"python3":    {"python3"},
	"runc":       {"runc"},
	"skopeo":     {"skopeo"},
	"strace":     {"strace"},
}

// needs are the programs that another component is built or run with.
var needs = map[string][]string{
	"buildah":   {"runc"},
	"ctr":       {"containerd", "runc"},
	"devnet":    {"npm", "gcc", "g++", "make", "python3"},
	"dockerd":   {"docker", "containerd", "runc", "iptables"},
	"gitea":     {"git"},
	"podman":    {"runc"},
	"postgres":  {"initdb"},
	"previous":  {"npm", "gcc", "g++", "make", "python3"},
	"reference": {"npm"},
}

// Clients is what `make test-clients` needs beside Default.
func Clients() []string { return []string{"oras", "helm", "cosign", "podman", "buildah", "ctr"} }

// Version is the version of a program that `go install` builds, "" for others.
func Version(name string) string {
	if i := slices.IndexFunc(modules, func(m module) bool { return m.name == name }); i >= 0 {
		return modules[i].version
	}
	return ""
}

// Bench is what `make bench` needs.
func Bench() []string {
	return []string{"registry", "registry2", "gitea", "postgres", "crane", "versitygw", "minio", "devnet"}
}

// Default is what `make test` needs: everything but the linter, Clients, and what only Bench has.
func Default() []string {
	return []string{"gcc", "curl", "skopeo", "dockerd", "strace", "chromium", "nginx", "haproxy", "caddy", "ip", "devnet", "reference", "previous", "postgres", "crane", "regctl", "versitygw", "registry", "conformance", "tap"}
}

const nodeVersion = "22.23.3"

// ErrMissing is a component that is not installed.
var ErrMissing = errors.New("not installed: run `make components`")

// Path is where a component's program lies: a name of the lists but the npm projects, or "node". A
// program's assets lie beside it.
// Errors: ErrMissing.
func Path(name string) (string, error) {
	cache, err := cacheDir()
	if err != nil {
		return "", err
	}
	path := ""
	switch i := slices.IndexFunc(modules, func(m module) bool { return m.name == name }); {
	case i >= 0:
		path = filepath.Join(modules[i].dir(cache), name)
	case workspaces[name].pkg != "":
		dir, err := workspaceDir(cache, name)
		if err != nil {
			return "", err
		}
		path = filepath.Join(dir, name)
	case name == "node":
		path = filepath.Join(nodeDir(cache), "bin", "node")
	case debian[name] != nil:
		// Debian's own first: another docker on the PATH may be of another version than the daemon.
		dirs := []string{"/usr/bin", "/usr/sbin"}
		if server, err := filepath.Glob("/usr/lib/postgresql/*/bin"); err == nil { // where its package keeps it
			dirs = append(dirs, server...)
		}
		for _, dir := range append(dirs, filepath.SplitList(os.Getenv("PATH"))...) {
			if _, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
				return filepath.Join(dir, name), nil
			}
		}
	default:
		return "", fmt.Errorf("%s is no component", name)
	}
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("%s: %w", name, ErrMissing)
	}
	return path, nil
}

// projects are folders beside this one with a package.json and its lock file.
var projects = map[string]string{
	"devnet":    "the reference PDS",
	"previous":  "the reference PDS of the previous generation",
	"reference": "the reference libraries",
}

// Devnet is the folder from which Node finds the packages of devnet/package.json. Errors: ErrMissing.
func Devnet() (string, error) { return Packages("devnet") }

// Packages is the folder from which Node finds the packages of a folder beside this one: devnet or reference.
// Errors: ErrMissing.
func Packages(project string) (string, error) {
	cache, err := cacheDir()
	if err != nil {
		return "", err
	}
	dir, err := projectDir(cache, project)
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(dir); err != nil {
		return "", fmt.Errorf("%s: %w", project, ErrMissing)
	}
	return dir, nil
}

func (m module) dir(cache string) string { return filepath.Join(cache, m.name+"@"+m.version) }

func nodePackage() string {
	arch := map[string]string{"amd64": "x64"}[runtime.GOARCH]
	if arch == "" {
		arch = runtime.GOARCH
	}
	return "node-" + runtime.GOOS + "-" + arch
}

func nodeDir(cache string) string {
	return filepath.Join(cache, "node@"+nodeVersion, "node_modules", nodePackage())
}

// sources is the project's folder with package.json and package-lock.json.
func sources(cache, project string) string {
	return filepath.Join(cache, "..", "..", "test", "components", project)
}

// projectDir is named after the lock file, so that a changed one is installed anew.
func projectDir(cache, project string) (string, error) {
	lock, err := os.ReadFile(filepath.Join(sources(cache, project), "package-lock.json"))
	if err != nil {
		return "", err
	}
	return filepath.Join(cache, fmt.Sprintf("%s@%.6x", project, sha256.Sum256(append(lock, nodeVersion...)))), nil
}

// workspaceDir is named after the workspace's files, so that a changed one is built anew.
func workspaceDir(cache, name string) (string, error) {
	h := sha256.New()
	files, err := filepath.Glob(filepath.Join(sources(cache, name), "*"))
	if err != nil {
		return "", err
	}
	for _, file := range files { // sorted
		raw, err := os.ReadFile(file)
		if err != nil {
			return "", err
		}
		_, _ = h.Write(raw) // never fails
	}
	return filepath.Join(cache, fmt.Sprintf("%s@%.6x", name, h.Sum(nil))), nil
}

// cacheDir is .cache/components of the checkout that holds the working directory.
func cacheDir() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "test", "components", "toolbox")); err == nil {
			return filepath.Join(dir, ".cache", "components"), nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", errors.New("the working directory is not inside a checkout of the project")
		}
		dir = parent
	}
}
