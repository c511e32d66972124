package credhelper

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Would catch an edit that loses, changes or reorders anything of somebody's configuration.
func TestEditConfig(t *testing.T) {
	t.Parallel()
	const ours = "{\n\t\"credHelpers\": {\n\t\t\"atcr.test\": \"atcr\"\n\t}\n}\n"
	for name, test := range map[string]struct{ in, want string }{
		"no file":     {"", ours},
		"empty":       {"{}", "{\n\t\"credHelpers\": {\n\t\t\"atcr.test\": \"atcr\"\n\t}\n}"},
		"null":        {"{\"credHelpers\":null}\n", ours},
		"another's":   {"{\n  \"z\": 1e400,\n  \"credHelpers\": {\"gcr.io\": \"gcloud\"},\n  \"a<b\": [1, {\"x\": 12345678901234567890}]\n}\n", "{\n  \"z\": 1e400,\n  \"credHelpers\": {\n    \"gcr.io\": \"gcloud\",\n    \"atcr.test\": \"atcr\"\n  },\n  \"a<b\": [\n    1,\n    {\n      \"x\": 12345678901234567890\n    }\n  ]\n}\n"},
		"was other's": {"{\n\t\"credHelpers\": {\n\t\t\"atcr.test\": \"pass\"\n\t}\n}\n", ours},
		"is done":     {ours, ours},
	} {
		got, err := editConfig([]byte(test.in), []string{"atcr.test"}, false)
		if err != nil || string(got) != test.want {
			t.Errorf("%s: %v\n%s\nwant\n%s", name, err, got, test.want)
		}
		undone, err := editConfig(got, []string{"atcr.test"}, true)
		if err != nil || strings.Contains(string(undone), "atcr") {
			t.Errorf("%s, undone: %v\n%s", name, err, undone)
		}
	}
	for _, bad := range []string{"{", "[]", "auths", `{"credHelpers": []}`, `{"a": 1} {"b": 2}`, `{"a": 01}`, "\x00", `{"credHelpers": "x"}`} {
		if got, err := editConfig([]byte(bad), []string{"atcr.test"}, false); err == nil {
			t.Errorf("%q became %s", bad, got)
		}
	}
}

func FuzzEditConfig(f *testing.F) {
	f.Add(`{"auths":{"a":{"auth":"eA=="}},"credHelpers":{"b":"c"},"x":[1,2.50]}`)
	f.Add(`{"credHelpers":{"h":"atcr"}}`)
	f.Fuzz(func(t *testing.T, in string) {
		got, err := editConfig([]byte(in), []string{"h"}, false)
		if err != nil {
			return
		}
		var before, after map[string]json.RawMessage
		if json.Unmarshal([]byte(in), &before) != nil && strings.TrimSpace(in) != "" || json.Unmarshal(got, &after) != nil {
			t.Fatalf("%q became %q", in, got)
		}
		delete(before, "credHelpers")
		delete(after, "credHelpers")
		for key, value := range before {
			var a, b bytes.Buffer
			if json.Compact(&a, value) != nil || json.Compact(&b, after[key]) != nil || a.String() != b.String() {
				t.Errorf("%q: %s became %s", key, value, after[key])
			}
		}
		if len(before) != len(after) {
			t.Errorf("%q became %q", in, got)
		}
	})
}

// Would catch a secret on the screen that stands before another, in a file of one line.
func TestHideAuth(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		`{"auths":{"x":{"identitytoken":"secret","auth":"secret"}}}`:    `{"auths":{"x":{"identitytoken": "…"`,
		`{"auths":{"x":{"auth":"secret","registrytoken":"secret"}}}`:    `{"auths":{"x":{"auth": "…"`,
		`{"auths":{"x":{"password":"secret","identitytoken":"secret"}}`: `{"auths":{"x":{"password": "…"`,
		`"credHelpers": {`: `"credHelpers": {`,
	} {
		if got := hideAuth(in); got != want {
			t.Errorf("%s is shown as %s", in, got)
		}
	}
}

// Would catch a broken file that is overwritten, a link that becomes a file, a changed mode, passwords on the
// screen, and a change that was made meanwhile and is lost.
func TestConfigFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	real, link := filepath.Join(dir, "real.json"), filepath.Join(dir, "config.json")
	if err := os.Symlink(real, link); err != nil {
		t.Fatal(err)
	}
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(real, []byte(text), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	broken := "{ \"auths\": ,}"
	write(broken)
	if _, err := planConfig(link, []string{"atcr.test"}, false); err == nil || !strings.Contains(err.Error(), "left as it is") {
		t.Errorf("a file that is no JSON: %v", err)
	}
	if got, err := os.ReadFile(real); err != nil || string(got) != broken {
		t.Errorf("a broken file became %q, %v", got, err)
	}
	write("{\n\t\"auths\": {\n\t\t\"x\": {\n\t\t\t\"auth\": \"c2VjcmV0\"\n\t\t}\n\t}\n}")
	change, err := planConfig(link, []string{"atcr.test"}, false)
	if err != nil || change.none() {
		t.Fatal(err)
	}
	if shown := change.diff(); strings.Contains(shown, "c2VjcmV0") || !strings.Contains(shown, `+ 		"atcr.test": "atcr"`) {
		t.Errorf("the change is shown as\n%s", shown)
	}
	if err := change.apply(); err != nil {
		t.Fatal(err)
	}
	info, err := os.Lstat(link)
	if err != nil || info.Mode()&os.ModeSymlink == 0 {
		t.Errorf("the link is gone: %v, %v", info, err)
	}
	if info, err = os.Stat(link); err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("the mode is %v, %v", info.Mode(), err)
	}
	got, err := os.ReadFile(link)
	if err != nil || !bytes.Contains(got, []byte("c2VjcmV0")) || len(helperRegistries(got)) != 1 {
		t.Errorf("%s, %v", got, err)
	}
	change, err = planConfig(link, nil, true)
	if err != nil || change.none() {
		t.Fatal(err)
	}
	write(`{"changed": true}`)
	if err := change.apply(); err == nil {
		t.Error("what somebody else wrote meanwhile is lost")
	}
}
