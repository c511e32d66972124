package toolbox

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// checkout makes the working directory one of an empty checkout, with commands that stand for the installers.
func checkout(t *testing.T, commands map[string]string) (cache string) {
	t.Helper()
	root, bin := t.TempDir(), t.TempDir()
	for _, dir := range []string{"toolbox", "devnet"} {
		if err := os.MkdirAll(filepath.Join(root, "test", "components", dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, file := range []string{"package.json", "package-lock.json"} {
		if err := os.WriteFile(filepath.Join(root, "test", "components", "devnet", file), []byte("{}"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, script := range commands {
		if err := os.WriteFile(filepath.Join(bin, name), []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", bin+":/usr/bin:/bin")
	t.Chdir(filepath.Join(root, "test", "components"))
	return filepath.Join(root, ".cache", "components")
}

func install(t *testing.T, names ...string) (said string, err error) {
	t.Helper()
	var out bytes.Buffer
	err = Install(t.Context(), &out, names)
	return out.String(), err
}

// Would catch a failed installation that is taken for a finished one the next time, and one without a reason.
func TestFailedInstall(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct{ script, want string }{
		"the build fails":        {`echo "proxy: 404" >&2; exit 1`, "proxy: 404"},
		"half a file is written": {`echo half > "$GOBIN/crane"`, "crane"},
		"nothing is written":     {`true`, "crane"},
		"another program":        {`cp ` + self + ` "$GOBIN/crane"`, "crane was built from atcr.io"},
	} {
		t.Run(name, func(t *testing.T) {
			cache := checkout(t, map[string]string{"go": test.script})
			if _, err := install(t, "crane"); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("the error is %v, want one with %q", err, test.want)
			}
			if left, err := filepath.Glob(filepath.Join(cache, "crane*")); err != nil || len(left) > 0 {
				t.Errorf("left behind: %v, %v", left, err)
			}
			if _, err := Path("crane"); !errors.Is(err, ErrMissing) {
				t.Errorf("the path of what is not there: %v", err)
			}
		})
	}
}

// Would catch the packages being compiled for another Node, installed twice, or not anew with another lock file.
func TestDevnet(t *testing.T) {
	calls := filepath.Join(t.TempDir(), "calls")
	npm := `echo "$1 $npm_config_nodedir" >> ` + calls + `
if [ "$1" = install ]; then mkdir -p "$6/node_modules/` + nodePackage() + `/bin"; touch "$6/node_modules/` + nodePackage() + `/bin/node"; fi
if [ "$1" = ci ]; then mkdir node_modules; fi`
	cache := checkout(t, nil)
	in := &installer{cache: cache, out: t.Output()}
	fake := filepath.Join(t.TempDir(), "npm")
	if err := os.WriteFile(fake, []byte("#!/bin/sh\n"+npm+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time with another lock file
		dir, err := projectDir(cache, "devnet")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Devnet(); !errors.Is(err, ErrMissing) {
			t.Errorf("before the installation: %v", err)
		}
		if err := in.project(t.Context(), fake, "devnet"); err != nil {
			t.Fatal(err)
		}
		got, err := Devnet()
		if err != nil || got != dir {
			t.Errorf("the packages lie in %s, %v, want %s", got, err, dir)
		}
		if _, err := os.Stat(filepath.Join(got, "node_modules")); err != nil {
			t.Error(err)
		}
		if err := os.WriteFile(filepath.Join(sources(cache, "devnet"), "package-lock.json"), []byte("{ }"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(calls)
	want := "install \nci " + nodeDir(cache) + "\nci " + nodeDir(cache) + "\n"
	if err != nil || string(got) != want {
		t.Errorf("npm was called so:\n%swant:\n%s%v", got, want, err)
	}
}

// Would catch a misspelt name that installs nothing and says nothing.
func TestUnknownName(t *testing.T) {
	checkout(t, nil)
	if _, err := install(t, "cran"); err == nil || !strings.Contains(err.Error(), "cran is no component") {
		t.Errorf("the error is %v", err)
	}
	t.Chdir("/")
	if _, err := Path("crane"); err == nil || errors.Is(err, ErrMissing) {
		t.Errorf("outside of a checkout: %v", err)
	}
}

// Would catch a component that cannot be built without programs that nobody installs.
func TestNeedsAreKnown(t *testing.T) {
	t.Parallel()
	for name, programs := range needs {
		for _, program := range programs {
			if debian[program] == nil {
				t.Errorf("%s needs %s, which no Debian package brings", name, program)
			}
		}
	}
	for _, m := range modules {
		if !strings.HasPrefix(m.sum, "h1:") {
			t.Errorf("%s is not pinned", m.name)
		}
	}
}

// Would catch a program that is built from another folder or go.mod than its own, that is built twice, or not anew
// with another go.sum.
func TestWorkspace(t *testing.T) {
	cache := checkout(t, map[string]string{"go": `[ -e main.go ] && [ -e go.mod ] && cat go.sum main.go > "$3"`})
	source := sources(cache, "registry2")
	if err := os.MkdirAll(source, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, sum := range []string{"one ", "two "} {
		for name, text := range map[string]string{"go.mod": "module", "go.sum": sum, "main.go": "main"} {
			if err := os.WriteFile(filepath.Join(source, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		for _, built := range []bool{true, false} {
			said, err := install(t, "registry2")
			if err != nil || strings.Contains(said, "installed registry2") != built {
				t.Errorf("with %q: %q, %v; want it built: %v", sum, said, err, built)
			}
		}
		path, err := Path("registry2")
		if err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(path); err != nil || string(got) != sum+"main" {
			t.Errorf("the program is %q, %v, want that of %q", got, err, sum)
		}
	}
}

// Would catch a program without the files that its module has for it.
func TestWorkspaceAssets(t *testing.T) {
	module := t.TempDir()
	cache := checkout(t, map[string]string{"go": `if [ "$1" = list ]; then echo ` + module + `; else echo program > "$3"; fi`})
	for _, dir := range append(workspaces["gitea"].assets, "unasked") {
		if err := os.MkdirAll(filepath.Join(module, dir, "below"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(sources(cache, "gitea"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := install(t, "gitea"); err != nil {
		t.Fatal(err)
	}
	path, err := Path("gitea")
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range workspaces["gitea"].assets {
		if _, err := os.Stat(filepath.Join(filepath.Dir(path), dir, "below")); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(filepath.Join(filepath.Dir(path), "unasked")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("more than was asked for: %v", err)
	}
}

// Would catch a server of Debian's that starts with its installation and takes the port of one of the machine, and a
// machine whose own policy is gone, or that starts no servers ever after.
func TestWithoutServices(t *testing.T) {
	t.Parallel()
	policy := filepath.Join(t.TempDir(), "policy-rc.d")
	undo, err := withoutServices(policy)
	if err != nil {
		t.Fatal(err)
	}
	if exit, ok := errors.AsType[*exec.ExitError](exec.CommandContext(t.Context(), policy).Run()); !ok || exit.ExitCode() != 101 {
		t.Errorf("the policy says %v, not 101, action forbidden", exit)
	}
	if err := undo(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(policy); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the policy stays: %v", err)
	}
	if err := os.WriteFile(policy, []byte("own"), 0o600); err != nil {
		t.Fatal(err)
	}
	if undo, err = withoutServices(policy); err != nil {
		t.Fatal(err)
	}
	if err := undo(); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadFile(policy); string(left) != "own" || err != nil {
		t.Errorf("the machine's own policy is now %q, %v", left, err)
	}
}
