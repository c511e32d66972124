package docs

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const root = "../.."

func read(t *testing.T, path string) string {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(root, path))
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// hidden are the names with a dot that are the project's; others are an editor's, or a person's settings.
var hidden = []string{".ci", ".golangci.yml", ".gitignore", ".env.hold.example", ".env.appview.example"}

// files are those of the project, relative to its root: nothing that is hidden, built or installed.
func files(t *testing.T) (found []string) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := d.Name()
		private := path != root && strings.HasPrefix(name, ".") && !slices.Contains(hidden, name)
		if d.IsDir() && (private || name == "bin" || name == "node_modules") {
			return filepath.SkipDir
		}
		if d.Type().IsRegular() && !private {
			relative, err := filepath.Rel(root, path)
			if err != nil {
				return err
			}
			found = append(found, relative)
		}
		return nil
	})
	if err != nil || !slices.Contains(found, "README.md") {
		t.Fatalf("the project's files: %v, %v", found, err)
	}
	return found
}

// documents are the Markdown files of the project and their texts.
func documents(t *testing.T) map[string]string {
	t.Helper()
	found := map[string]string{}
	for _, path := range files(t) {
		if strings.HasSuffix(path, ".md") {
			found[path] = read(t, path)
		}
	}
	return found
}

// Would catch a link to a file that was renamed or never written.
func TestLinks(t *testing.T) {
	t.Parallel()
	count := 0
	for path, text := range documents(t) {
		for _, target := range links(text) {
			target, _, _ = strings.Cut(target, "#")
			if target == "" || strings.Contains(target, "://") {
				continue
			}
			count++
			if _, err := os.Stat(filepath.Join(root, filepath.Dir(path), target)); err != nil {
				t.Errorf("%s links to %s: %v", path, target, err)
			}
		}
	}
	if count == 0 {
		t.Error("no document has a link: this test reads them wrong")
	}
}

var (
	inCode     = regexp.MustCompile("`[^`\n]+`")
	makeTarget = regexp.MustCompile(`\bmake ([a-z]+)\b`)
	setting    = regexp.MustCompile(`\b(?:HOLD|ATCR|AWS|S3|STORAGE)_[A-Z0-9_]*[A-Z0-9]\b|\bTEST_MODE\b|\bDISABLE_[A-Z_]*[A-Z]\b`)
)

// Would catch a document that tells people to run a target that make does not have.
func TestMakeTargets(t *testing.T) {
	t.Parallel()
	makefile, count := "\n"+read(t, "Makefile"), 0
	for path, text := range documents(t) {
		code := strings.Join(append(inCode.FindAllString(text, -1), Blocks(text)...), "\n")
		for _, m := range makeTarget.FindAllStringSubmatch(code, -1) {
			count++
			if !strings.Contains(makefile, "\n"+m[1]+":") {
				t.Errorf("%s says %q: the Makefile has no such target", path, m[0])
			}
		}
	}
	if count == 0 {
		t.Error("no document names a target: this test reads them wrong")
	}
}

// local are names that documents set in the reader's own shell, not settings.
var local = []string{"HOLD_DID"}

// Would catch a document that names a setting which was renamed: the hold would refuse to start with it.
func TestSettings(t *testing.T) {
	t.Parallel()
	manual, count := read(t, "docs/config.md"), 0
	for path, text := range documents(t) {
		for _, name := range setting.FindAllString(text, -1) {
			count++
			if !slices.Contains(local, name) && !strings.Contains(manual, "| `"+name+"` |") {
				t.Errorf("%s names %s, which docs/config.md does not have", path, name)
			}
		}
	}
	if count == 0 {
		t.Error("no document names a setting: this test reads them wrong")
	}
}

var (
	required = regexp.MustCompile(`^\s*(?:require )?([a-z0-9.-]+\.[a-z]+/\S+|[a-z]+\.[a-z]+/\S+) v\S+$`)
	listed   = regexp.MustCompile("(?m)^\\| `([^`]+)` \\| *([^|\\s][^|]*)\\|$")
)

// Would catch a dependency that nobody gave a reason for, and a reason for one that is gone.
func TestDependencies(t *testing.T) {
	t.Parallel()
	var want, got []string
	for line := range strings.Lines(read(t, "go.mod")) {
		if m := required.FindStringSubmatch(strings.TrimRight(line, "\n")); m != nil {
			want = append(want, m[1])
		}
	}
	for _, m := range listed.FindAllStringSubmatch(read(t, "docs/dependencies.md"), -1) {
		got = append(got, m[1])
	}
	slices.Sort(want)
	slices.Sort(got)
	if len(want) == 0 || !slices.Equal(got, want) {
		t.Errorf("docs/dependencies.md lists\n%s\ngo.mod requires\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// Would catch a folder that ARCHITECTURE.md names and that does not exist, and one that it forgot.
func TestFolders(t *testing.T) {
	t.Parallel()
	text := Section(read(t, "ARCHITECTURE.md"), "## Where things are")
	for _, m := range regexp.MustCompile("`((?:cmd|internal|api|lexicons|test)/[a-z0-9/]*)`").FindAllStringSubmatch(text, -1) {
		if info, err := os.Stat(filepath.Join(root, m[1])); err != nil || !info.IsDir() {
			t.Errorf("ARCHITECTURE.md names the folder %s: %v", m[1], err)
		}
	}
	entries, err := os.ReadDir(filepath.Join(root, "internal"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.IsDir() && !strings.Contains(text, "`internal/"+e.Name()+"`") {
			t.Errorf("ARCHITECTURE.md does not say what internal/%s owns", e.Name())
		}
	}
}

// A clone must make sense without the place where it was written. Would catch a path of one developer's
// machine, a number of a tracker that readers do not have, and a version file that names a private mirror.
func TestSelfContained(t *testing.T) {
	t.Parallel()
	foreign := regexp.MustCompile(`(?:^|[\s"'(=` + "`" + `])(?:/wo` + `rk|/ho` + `me|/Us` + `ers|/tmp/scr` + `atch)/[a-zA-Z._]|(?i:\biss` + `ue #?[0-9]+\b)`)
	resolved := regexp.MustCompile(`"resolved": "(https?://[^/"]+)`)
	for _, path := range files(t) {
		text := []byte(read(t, path))
		if bytes.IndexByte(text[:min(len(text), 8000)], 0) >= 0 {
			continue // a picture
		}
		if found := foreign.Find(text); found != nil {
			t.Errorf("%s has %q", path, found)
		}
		for _, m := range resolved.FindAllSubmatch(text, -1) {
			if string(m[1]) != "https://registry.npmjs.org" {
				t.Errorf("%s takes a package from %s", path, m[1])
			}
		}
	}
}

// Would catch a generated manual that is not what the command prints.
func TestManual(t *testing.T) {
	t.Parallel()
	bin := build(t)
	manual := read(t, "docs/config.md")
	for _, name := range []string{"hold", "appview"} {
		for arg, want := range map[string]string{"--markdown": manual, "--env-example": read(t, ".env."+name+".example")} {
			out, err := exec.CommandContext(t.Context(), filepath.Join(bin, "atcr-"+name), "config", arg).Output()
			if err != nil || len(out) == 0 || !strings.Contains(want, string(out)) {
				t.Errorf("atcr-%s config %s: run make generate (%v)", name, arg, err)
			}
		}
	}
}
