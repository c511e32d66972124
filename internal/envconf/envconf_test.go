package envconf_test

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"atcr.io/internal/envconf"
)

type config struct {
	URL    string        `env:"TEST_URL" required:"true" example:"https://x.example" doc:"Where it is."`
	Dir    string        `env:"TEST_DIR" default:"/var/lib/x" doc:"A folder."`
	Public bool          `env:"TEST_PUBLIC" default:"false" doc:"Whether."`
	Count  int           `env:"TEST_COUNT" default:"3" doc:"How many."`
	Wait   time.Duration `env:"TEST_WAIT" default:"300" doc:"How long."`
	List   []string      `env:"TEST_LIST" doc:"Which."`
	Key    string        `env:"OTHER_KEY" secret:"true" doc:"A secret."`
}

var errInvalid = errors.New("TEST_DIR is invalid")

func (c *config) Validate() error {
	if c.Dir == "bad" {
		return errInvalid
	}
	return nil
}

func load(t *testing.T, environ ...string) (config, error) {
	t.Helper()
	var c config
	err := envconf.Load(environ, "TEST_", &c)
	return c, err
}

// Would catch a setting that is dropped, or read in another unit than its manual says.
func TestLoad(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(file, []byte("from file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		environ []string
		want    config
	}{
		"defaults": {nil, config{Dir: "/var/lib/x", Count: 3, Wait: 300 * time.Second}},
		"all": {
			[]string{"TEST_DIR=/d", "TEST_PUBLIC=TRUE", "TEST_COUNT=-7", "TEST_WAIT=1m30s", "TEST_LIST=a, b,,c", "OTHER_KEY=k"},
			config{Dir: "/d", Public: true, Count: -7, Wait: 90 * time.Second, List: []string{"a", "b", "c"}, Key: "k"},
		},
		"file":     {[]string{"OTHER_KEY_FILE=" + file}, config{Dir: "/var/lib/x", Count: 3, Wait: 300 * time.Second, Key: "from file"}},
		"empty":    {[]string{"TEST_DIR=", "TEST_PUBLIC=", "TEST_COUNT="}, config{Dir: "", Count: 3, Wait: 300 * time.Second}},
		"injected": {[]string{"TEST_SERVICE_HOST=1", "TEST_X_SERVICE_PORT_HTTP=2", "TEST_PORT=tcp://1", "TEST_PORT_80_TCP=3", "TEST_Y_PORT=1", "PATH=/"}, config{Dir: "/var/lib/x", Count: 3, Wait: 300 * time.Second}},
	} {
		test.want.URL = "https://x"
		got, err := load(t, append(test.environ, "TEST_URL=https://x")...)
		if err != nil || !reflect.DeepEqual(got, test.want) {
			t.Errorf("%s: %+v, want %+v (%v)", name, got, test.want, err)
		}
	}
}

// Would catch a misspelt setting that is silently ignored, and problems told one at a time.
func TestProblems(t *testing.T) {
	t.Parallel()
	big := filepath.Join(t.TempDir(), "big")
	if err := os.WriteFile(big, make([]byte, 1<<17), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := load(t, "TEST_PUBLICK=true", "TEST_COUNT=many", "TEST_PUBLIC=maybe", "TEST_WAIT=-3s", "TEST_DIR=bad", "OTHER_KEY=secretword", "OTHER_KEY_FILE=/none")
	if err == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{"TEST_URL is required", "TEST_PUBLICK is no setting: did you mean TEST_PUBLIC?", "TEST_COUNT", "TEST_PUBLIC:", "TEST_WAIT", "OTHER_KEY and OTHER_KEY_FILE", errInvalid.Error()} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q lacks %q", err, want)
		}
	}
	if strings.Contains(err.Error(), "secretword") || !errors.Is(err, errInvalid) {
		t.Errorf("%v", err)
	}
	for _, file := range []string{"/does/not/exist", big, "/dev/zero"} {
		if _, err := load(t, "TEST_URL=x", "OTHER_KEY_FILE="+file); err == nil {
			t.Errorf("%s was read", file)
		}
	}
}

// Would catch a manual that shows a secret, or an example that cannot be sourced and loaded.
func TestManual(t *testing.T) {
	t.Parallel()
	c, err := load(t, "TEST_URL=https://x", "OTHER_KEY=secretword", "TEST_LIST=a,b")
	if err != nil {
		t.Fatal(err)
	}
	effective := envconf.Effective(c)
	for _, want := range []string{"TEST_URL=https://x\n", "OTHER_KEY=(hidden)\n", "TEST_LIST=a,b\n", "TEST_WAIT=5m0s\n"} {
		if !strings.Contains(effective, want) {
			t.Errorf("%q lacks %q", effective, want)
		}
	}
	if strings.Contains(effective, "secretword") {
		t.Error("a secret is shown")
	}
	var environ []string
	for line := range strings.Lines(envconf.Example(config{})) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			environ = append(environ, line)
		}
	}
	if got, err := load(t, environ...); err != nil || got.URL != "https://x.example" {
		t.Errorf("the example: %+v %v", got, err)
	}
	for _, text := range []string{envconf.Usage(config{}), envconf.Markdown(config{}), envconf.Example(config{})} {
		for _, want := range []string{"TEST_URL", "TEST_DIR", "/var/lib/x", "A folder.", "OTHER_KEY"} {
			if !strings.Contains(text, want) {
				t.Errorf("%q lacks %q", text, want)
			}
		}
	}
}
