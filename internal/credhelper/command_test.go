package credhelper

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// person types commands on a machine without a keychain.
type person struct {
	t   *testing.T
	dir string
}

func newPerson(t *testing.T) *person {
	t.Helper()
	p := &person{t, t.TempDir()}
	t.Setenv(EnvDir, filepath.Join(p.dir, "atcr"))
	t.Setenv(EnvFile, "1")
	t.Setenv("DOCKER_CONFIG", p.dir)
	return p
}

// types is a command; stdin is what is typed while it runs.
func (p *person) types(stdin string, args ...string) (stdout, stderr string, code int) {
	p.t.Helper()
	var out, errs bytes.Buffer
	program := Program{Stdin: strings.NewReader(stdin), Stdout: &out, Stderr: &errs, Version: "v1.2.3"}
	code = program.Run(p.t.Context(), args)
	return out.String(), errs.String(), code
}

// must is types for what must work.
func (p *person) must(args ...string) string {
	p.t.Helper()
	out, errs, code := p.types("", args...)
	if code != 0 {
		p.t.Fatalf("%v: %d\n%s%s", args, code, out, errs)
	}
	return out
}

// Would catch a command that does not do what its help says, and one that says nothing where it cannot.
func TestCommands(t *testing.T) {
	p := newPerson(t)
	r := newRegistry(t, "")
	for _, args := range [][]string{{"login"}, {"login", "not a host"}, {"logout"}, {"logout", r.host}, {"switch", "alice.test"}, {"hold", "show"}, {"configure-docker"}, {"nonsense"}, {"hold", "nonsense"}, {"doctor", "app"}, {"doctor", "alice.test/app"}, {"doctor", "h/UPPER!/x"}} {
		if out, errs, code := p.types("", args...); code == 0 || errs == "" || out != "" {
			t.Errorf("%v: %d %q %q", args, code, out, errs)
		}
	}
	if out := p.must("status"); !strings.Contains(out, "Nobody is signed in") {
		t.Errorf("status: %s", out)
	}
	if out := p.must("login", r.host, "--json", "--name", "laptop"); !strings.Contains(out, `"device": "laptop"`) || strings.Contains(out, "atcrd_") {
		t.Errorf("login: %s", out)
	}
	if out, _, code := p.types(`{"ServerURL":"`+r.host+`","Username":"bob.test","Secret":"app-password"}`, "store"); code != 0 {
		t.Fatalf("store: %d %s", code, out)
	}
	if out, errs, code := p.types("", "hold", "show"); code == 0 || out != "" || !strings.Contains(errs, "an app password") || !strings.Contains(errs, "login "+r.host) {
		t.Errorf("hold show with an app password: %d %q %q", code, out, errs)
	}
	var all []accountStatus
	if err := json.Unmarshal([]byte(p.must("status", "--offline", "--json")), &all); err != nil || len(all) != 2 || all[0].Handle != "bob.test" || !all[0].Current {
		t.Errorf("status: %+v, %v", all, err)
	}
	p.must("switch", "alice.test")
	if out, _, _ := p.types(r.host, "get"); !strings.Contains(out, "atcrd_1") {
		t.Errorf("after a switch: %s", out)
	}
	if out, errs, code := p.types("", "switch", "carol.test"); code == 0 || out != "" || !strings.Contains(errs, "carol.test") {
		t.Errorf("switch to nobody: %d %q %q", code, out, errs)
	}
	if out := p.must(); !strings.Contains(out, "configure-docker") {
		t.Errorf("without a command: %q", out)
	}
	if out := p.must("version"); out != "docker-credential-atcr (atcr.io) v1.2.3\n" {
		t.Errorf("version: %q", out)
	}
	if out := p.must("completion", "bash"); !strings.Contains(out, "docker-credential-atcr") {
		t.Errorf("completion: %.100q", out)
	}
	p.must("logout", "--account", "bob.test")
	if out := p.must("logout"); !strings.Contains(out, "as alice.test") || strings.Join(r.ended(), " ") != "atcrd_1" {
		t.Errorf("logout: %q, revoked %v", out, r.ended())
	}
	if raw, err := os.ReadFile(filepath.Join(p.dir, "atcr", "secrets.json")); err != nil || strings.Contains(string(raw), "atcrd_") || strings.Contains(string(raw), "app-password") {
		t.Errorf("secrets stay: %s, %v", raw, err)
	}
}

// Would catch a file that is changed though nobody said yes.
func TestConfigureDocker(t *testing.T) {
	p := newPerson(t)
	path := filepath.Join(p.dir, "config.json")
	read := func() string {
		t.Helper()
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(raw)
	}
	const before = "{\n\t\"auths\": {},\n\t\"psFormat\": \"table\"\n}\n"
	if err := os.WriteFile(path, []byte(before), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, typed := range []string{"", "n\n", "\n", "maybe\n"} {
		if out, _, code := p.types(typed, "configure-docker", "https://atcr.test/"); code != 0 || !strings.Contains(out, `+ 		"atcr.test": "atcr"`) || read() != before {
			t.Errorf("%q: %d %s\n%s", typed, code, out, read())
		}
	}
	for _, no := range []string{"", "not a host", "user@atcr.test", "https://"} {
		if _, errs, code := p.types("", "configure-docker", "--yes", no); code == 0 || !strings.Contains(errs, "not the host of a registry") || read() != before {
			t.Errorf("%q: %d %s\n%s", no, code, errs, read())
		}
	}
	if _, _, code := p.types("y\n", "configure-docker", "atcr.test"); code != 0 || !strings.Contains(read(), `"atcr.test": "atcr"`) {
		t.Errorf("yes: %s", read())
	}
	if out := p.must("configure-docker", "atcr.test"); !strings.Contains(out, "needs no change") {
		t.Errorf("again: %s", out)
	}
	if p.must("configure-docker", "--undo", "--yes"); read() != before {
		t.Errorf("undone: %s", read())
	}
	if err := os.WriteFile(path, []byte("{broken"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, errs, code := p.types("y\n", "configure-docker", "--yes", "atcr.test"); code == 0 || !strings.Contains(errs, "left as it is") || read() != "{broken" {
		t.Errorf("broken: %d %s\n%s", code, errs, read())
	}
}
