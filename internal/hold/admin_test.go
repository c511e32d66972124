package hold

import (
	"archive/tar"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"atcr.io/api/atcr"
	"atcr.io/internal/oci"
	"atcr.io/internal/upload"
)

// run is a command on the hold of config, and what it said.
func run(t *testing.T, config Config, name string, parameters map[string]string) (said string, err error) {
	t.Helper()
	err = Command(t.Context(), config, slog.New(slog.DiscardHandler), name, parameters, func(l Line) { said += l.Text + "\n" })
	return said, err
}

// settled is a config that Validate filled.
func settled(t *testing.T, s *server) Config {
	t.Helper()
	c := s.config
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	return c
}

// Would catch commands that work on a running hold behind its back, that differ when it is stopped, or that
// two of them run on one database.
func TestCommands(t *testing.T) {
	t.Parallel()
	p, c := newPeople(t), &clock{}
	dir, err := os.MkdirTemp("", "hold") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	var s *server
	t.Run("running", func(t *testing.T) {
		s = startHold(t, p, func(config *Config) {
			open(config)
			c.set(config)
			config.DatabaseDir, config.KeyPath, config.TestMode = dir, "", true // the writer's repo is asked
		})
		serveAdmin(t, s)
		config := settled(t, s)
		blob := s.push(t, writer, []byte("unnamed"))
		if a := s.notify(t, writer, message(writer, "app", "m", s.push(t, writer, []byte("named")))); a.status != 200 {
			t.Fatal(a.body)
		}
		c.advance(upload.CollectAfter + time.Hour)
		for _, step := range []struct {
			name       string
			parameters map[string]string
			want       string
		}{
			{"crew set", map[string]string{"member": reader.String(), "permissions": "blob:read"}, "blob:read"},
			{"crew set", map[string]string{"member": refused.String(), "permissions": "none"}, "refused"},
			{"crew list", nil, reader.String() + "  blob:read\n" + refused.String() + "  refused"},
			{"crew remove", map[string]string{"member": refused.String()}, "no member any more"},
			{"gc", map[string]string{"dry-run": "true"}, "would delete " + blob.String()},
			{"gc", nil, "deleted 1 blobs"},
			{"gc", nil, "deleted 0 blobs"},
			{"fsck", nil, "the repo is whole"},
			{"repo export", map[string]string{"file": filepath.Join(t.TempDir(), "repo.car")}, "the repo is in"},
			{"repo export", map[string]string{"notes": "true"}, "writing the repo …"},
		} {
			if said, err := run(t, config, step.name, step.parameters); err != nil || !strings.Contains(said, step.want) {
				t.Errorf("%s: %s %v", step.name, said, err)
			}
		}
		if a := s.send(t, "HEAD", s.blobPath(blob), "", nil); a.status != 404 {
			t.Errorf("the running hold still has what was collected: %d", a.status)
		}
		for name, parameters := range map[string]map[string]string{
			"crew set": {"member": "alice"}, "crew remove": {"member": stranger.String()}, "repo export": {"file": "/"}, "nonsense": nil, "captain transfer": nil,
		} {
			if said, err := run(t, config, name, parameters); err == nil {
				t.Errorf("%s %v: %s", name, parameters, said)
			}
		}
		if _, err := Open(t.Context(), config, slog.New(slog.DiscardHandler), nil); err == nil || !strings.Contains(err.Error(), "another atcr-hold") {
			t.Errorf("a second hold on one database: %v", err)
		}
	})
	config := settled(t, s)
	if said, err := run(t, config, "crew list", nil); err != nil || !strings.Contains(said, reader.String()+"  blob:read") {
		t.Errorf("stopped: %s %v", said, err)
	}
	said, err := run(t, config, "captain transfer", map[string]string{"member": writer.String()})
	if err != nil || !strings.Contains(said, "HOLD_OWNER="+writer.String()) {
		t.Errorf("%s %v", said, err)
	}
	if _, err := run(t, config, "crew list", nil); err == nil || !strings.Contains(err.Error(), "HOLD_OWNER") {
		t.Errorf("the setting still names the old owner: %v", err)
	}
	config.Owner = ""
	if said, err := run(t, config, "crew list", nil); err != nil || !strings.HasPrefix(said, writer.String()+"  owner") {
		t.Errorf("%s %v", said, err)
	}
}

// serveAdmin takes commands as Run does.
func serveAdmin(t *testing.T, s *server) {
	t.Helper()
	l := s.listenAdmin(t.Context())
	if l == nil {
		t.Fatal("no socket")
	}
	web := newTestServer(l, s.adminHandler())
	t.Cleanup(web.Close)
}

// Would catch a backup that lacks something, that others may read, or that overwrites; and a restored hold
// that is another one, or behind what relays have seen.
func TestBackup(t *testing.T) {
	t.Parallel()
	p := newPeople(t)
	var s *server
	file := filepath.Join(t.TempDir(), "backup.tar")
	var rev string
	var late oci.Digest // pushed after the backup was made
	var seq int64
	t.Run("running", func(t *testing.T) {
		s = startHold(t, p, func(config *Config) {
			open(config)
			config.DatabaseDir, config.StorageRootDir = filepath.Join(filepath.Dir(file), "db"), filepath.Join(filepath.Dir(file), "blobs")
			config.KeyPath = ""
		})
		blob := s.push(t, writer, []byte("content"))
		if a := s.notify(t, writer, message(writer, "app", "m", blob)); a.status != 200 {
			t.Fatal(a.body)
		}
		head, err := s.repo.Head(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		rev = head.Rev
		if err := adminBackup(t.Context(), s.Hold, parameters("file", file), func(Line) {}); err != nil {
			t.Fatal(err)
		}
		if err := adminBackup(t.Context(), s.Hold, parameters("file", file), func(Line) {}); !errors.Is(err, os.ErrExist) {
			t.Errorf("a backup was overwritten: %v", err)
		}
		late = s.push(t, writer, []byte("late"))
		if a := s.notify(t, writer, message(writer, "app", "late", late)); a.status != 200 {
			t.Fatal(a.body)
		}
		if head, err = s.repo.Head(t.Context()); err != nil {
			t.Fatal(err)
		}
		rev, seq = head.Rev, lastSeq(t, s.Hold) // what relays have seen
	})
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info, err)
	}
	config := settled(t, s)
	if err := Restore(config, file); err == nil {
		t.Error("restored over a hold")
	}
	config.DatabaseDir, config.KeyPath = filepath.Join(t.TempDir(), "new"), ""
	if err := config.Validate(); err != nil {
		t.Fatal(err)
	}
	for name, fill := range map[string]func(*tar.Writer) error{
		"empty": func(w *tar.Writer) error { return w.Close() },
		"cut": func(w *tar.Writer) error {
			return w.WriteHeader(&tar.Header{Name: backupDatabase, Size: 100, Mode: 0o600})
		},
	} {
		bad := filepath.Join(t.TempDir(), name)
		if err := create(bad, func(f *os.File) error { return fill(tar.NewWriter(f)) }); err != nil {
			t.Fatal(err)
		}
		if err := Restore(config, bad); err == nil {
			t.Errorf("%s: restored", name)
		}
		if left, err := filepath.Glob(filepath.Join(config.DatabaseDir, "*")); err != nil || len(left) > 0 {
			t.Errorf("%s left %v %v", name, left, err)
		}
	}
	if err := Restore(config, file); err != nil {
		t.Fatal(err)
	}
	said, err := run(t, config, "announce", nil)
	if err != nil || !strings.Contains(said, "restored") || !strings.HasPrefix(said, "comparing") || !strings.Contains(said, "1 blobs that were in the storage alone") {
		t.Fatalf("%s %v", said, err)
	}
	restored := &server{people: p, config: config}
	restored.serve(t, listen(t, strings.TrimPrefix(config.PublicURL, "http://")))
	head, err := restored.repo.Head(t.Context())
	if err != nil || head.Rev <= rev || lastSeq(t, restored.Hold) <= seq || len(restored.records(t, atcr.HoldLayerNSID)) != 1 {
		t.Errorf("rev %s is not behind %s, or seq %d not behind %d: %v", head.Rev, rev, lastSeq(t, restored.Hold), seq, err)
	}
	if kinds := kinds(t, restored.Hold, 0); !slices.Equal(kinds[len(kinds)-3:], announcement) {
		t.Errorf("a restored hold announces %v", kinds)
	}
	if a := restored.notify(t, writer, message(writer, "app", "late", restored.push(t, writer, []byte("late")))); a.status != 200 || len(restored.records(t, atcr.HoldLayerNSID)) != 2 {
		t.Errorf("what was lost is pushed again: %d %s", a.status, a.body)
	}
	if a := restored.notify(t, writer, message(writer, "other", "m", restored.push(t, writer, []byte("more")))); a.status != 200 {
		t.Errorf("%d %s", a.status, a.body)
	}
	if a := restored.send(t, "GET", "/xrpc/com.atproto.sync.getRepoStatus?did="+strings.ReplaceAll(restored.did.String(), "%", "%25"), "", nil); a.status != 200 {
		t.Errorf("%d %s", a.status, a.body)
	}
}

// lastSeq is the newest event's.
func lastSeq(t *testing.T, h *Hold) (seq int64) {
	t.Helper()
	if err := h.db.Reader().QueryRowContext(t.Context(), `SELECT max(seq) FROM event`).Scan(&seq); err != nil {
		t.Fatal(err)
	}
	return seq
}

// parameters is a command's request.
func parameters(pairs ...string) *http.Request {
	q := url.Values{}
	for i := 0; i < len(pairs); i += 2 {
		q.Set(pairs[i], pairs[i+1])
	}
	return &http.Request{URL: &url.URL{RawQuery: q.Encode()}}
}

func newTestServer(l net.Listener, h http.Handler) *httptest.Server {
	s := &httptest.Server{Listener: l, Config: &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second}}
	s.Start()
	return s
}

func listen(t *testing.T, address string) net.Listener {
	t.Helper()
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	return l
}
