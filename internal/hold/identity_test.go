package hold

import (
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bluesky-social/indigo/atproto/atcrypto"
	"github.com/prometheus/client_golang/prometheus"

	"atcr.io/api/atcr"
	"atcr.io/internal/devnet"
	"atcr.io/internal/plc"
	"atcr.io/internal/xrpc"
)

// directory is a did:plc directory that takes operations, and knows the people as well.
type directory struct {
	*devnet.Network
	people *people
	client *plc.Client
}

func newDirectory(t *testing.T) *directory {
	t.Helper()
	n, err := devnet.Start(t.Context(), devnet.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = n.Close() })
	p := newPeople(t)
	to := func(base string) http.Handler {
		u, err := url.Parse(base)
		if err != nil {
			t.Fatal(err)
		}
		proxy := httputil.NewSingleHostReverseProxy(u)
		proxy.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
		return proxy
	}
	known, rest := to(p.url), to(n.PLCURL)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for did := range p.keys {
			if r.URL.Path == "/"+did.String() {
				known.ServeHTTP(w, r)
				return
			}
		}
		rest.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	p.url = s.URL
	return &directory{n, p, &plc.Client{HTTP: http.DefaultClient, URL: s.URL}}
}

// down has the directory answer nobody until the function that it returns is called.
func (d *directory) down() (up func()) { return d.PLC.Inject(nil, devnet.Down()).Remove }

// config is a did:plc hold's, in new folders.
func (d *directory) config(t *testing.T) Config {
	t.Helper()
	c := filesystemConfig(t)
	c.PublicURL, c.Owner, c.PLCURL, c.DIDMethod, c.plcPatience = "https://hold.example.com", owner.String(), d.people.url, methodPLC, 10*time.Millisecond
	c.DatabaseDir, c.KeyPath = filepath.Join(t.TempDir(), "db"), ""
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	return c
}

// with opens the hold of config for as long as fn takes.
func with(t *testing.T, config Config, fn func(*Hold)) error {
	t.Helper()
	h, err := Open(t.Context(), config, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	if err != nil {
		return err
	}
	if fn != nil {
		fn(h)
	}
	return h.Close()
}

// names is which key and address the directory has for the hold, and how many operations it took.
func (d *directory) names(t *testing.T, h *Hold) (key, address string, operations int) {
	t.Helper()
	last, err := d.client.Last(t.Context(), h.did)
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.Get(d.people.url + "/" + h.did.String() + "/log") //nolint:noctx // a test
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	var log []json.RawMessage
	if err := json.NewDecoder(res.Body).Decode(&log); err != nil {
		t.Fatal(err)
	}
	op := last.Operation
	if pds := op.Services["atproto_pds"]; pds.Type != "AtprotoPersonalDataServer" || pds.Endpoint != op.Services["atcr_hold"].Endpoint || op.Services["atcr_hold"].Type != "AtcrHoldService" {
		t.Errorf("services %v", op.Services)
	}
	return op.VerificationMethods["atproto"], op.Services["atcr_hold"].Endpoint, len(log)
}

// kinds are the events of the hold from behind the first n.
func kinds(t *testing.T, h *Hold, n int) []string {
	t.Helper()
	rows, err := h.db.Reader().QueryContext(t.Context(), `SELECT frame FROM event ORDER BY seq LIMIT -1 OFFSET ?`, n)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = rows.Close() }()
	out := []string{}
	for rows.Next() {
		var frame []byte
		if err := rows.Scan(&frame); err != nil {
			t.Fatal(err)
		}
		kind, _, _ := strings.Cut(string(frame[4:]), "bop")
		out = append(out, kind)
	}
	return out
}

var announcement = []string{"#identity", "#account", "#sync"}

// Would catch a did:plc hold that is not registered as one, that answers to another name, and that registers,
// or announces, anew at each start.
func TestPLC(t *testing.T) {
	t.Parallel()
	d := newDirectory(t)
	var s *server
	dir := t.TempDir() // longer there than the first start
	t.Run("first start", func(t *testing.T) {
		s = startHold(t, d.people, func(c *Config) { open(c); c.DIDMethod, c.DatabaseDir, c.StorageRootDir = methodPLC, dir, dir })
		if s.did.Method() != "plc" {
			t.Fatalf("the hold is %s", s.did)
		}
		if key, address, n := d.names(t, s.Hold); key != s.keyDID() || address != s.Hold.config.PublicURL || n != 1 {
			t.Errorf("%s %s after %d operations", key, address, n)
		}
		for _, path := range []string{s.Hold.config.KeyPath, s.Hold.config.RotationKeyPath} {
			if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("%s: %v %v", path, info, err)
			}
		}
		for path, want := range map[string]string{
			"/.well-known/did.json":    `"id":"` + s.did.String() + `"`,
			"/.well-known/atproto-did": s.did.String(),
			"/xrpc/com.atproto.repo.getRecord?collection=io.atcr.hold.captain&rkey=self&repo=" + s.did.String(): owner.String(),
			"/xrpc/com.atproto.repo.describeRepo?repo=" + s.did.String():                                        "AtcrHoldService",
			"/xrpc/com.atproto.server.describeServer":                                                           s.did.String(),
			"/xrpc/com.atproto.sync.listRepos":                                                                  s.did.String(),
			"/xrpc/com.atproto.sync.getRepoStatus?did=" + s.did.String():                                        `"active":true`,
			"/xrpc/com.atproto.sync.getLatestCommit?did=" + s.did.String():                                      `"rev"`,
			"/xrpc/com.atproto.sync.getRepo?did=" + s.did.String():                                              "roots",
			"/xrpc/com.atproto.sync.listBlobs?did=" + s.did.String():                                            avatarCID(t, s),
			"/xrpc/com.atproto.sync.getBlob?did=" + s.did.String() + "&cid=" + avatarCID(t, s):                  "PNG",
			"/xrpc/app.bsky.actor.getProfile?actor=" + s.did.String():                                           s.did.String(),
		} {
			if a := s.send(t, "GET", path, "", nil); a.status != 200 || !strings.Contains(a.body, want) {
				t.Errorf("%s: %d %s", path, a.status, a.body)
			}
		}
		wrong, err := xrpc.SignServiceToken(d.people.keys[owner], owner, s.config.WebDID().String(), atcr.HoldExportUserDataNSID, time.Now(), time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		if a := s.send(t, "GET", "/xrpc/"+atcr.HoldExportUserDataNSID, wrong, nil); a.status != 401 {
			t.Errorf("a token for the did:web of the host: %d %s", a.status, a.body)
		}
		if a := s.send(t, "GET", "/xrpc/"+atcr.HoldExportUserDataNSID, s.token(t, owner, atcr.HoldExportUserDataNSID), nil); a.status != 200 || !strings.Contains(a.body, s.did.String()) {
			t.Errorf("%d %s", a.status, a.body)
		}
		blob := s.push(t, writer, []byte("content")) // with tokens for the did:plc
		if a := s.notify(t, writer, message(writer, "app", "m", blob)); a.status != 200 || len(s.records(t, atcr.HoldLayerNSID)) != 1 {
			t.Errorf("%d %s", a.status, a.body)
		}
	})
	config := settled(t, s)
	var before int
	if err := with(t, config, func(h *Hold) {
		before = len(kinds(t, h, 0))
		if _, _, n := d.names(t, h); h.did != s.did || n != 1 {
			t.Errorf("the second start made %s, operation %d", h.did, n)
		}
	}); err != nil {
		t.Fatal(err)
	}
	config.PublicURL = "https://elsewhere.example.com"
	if err := with(t, config, func(h *Hold) {
		if _, address, n := d.names(t, h); h.did != s.did || address != config.PublicURL || n != 2 {
			t.Errorf("after a move: %s at %s, operation %d", h.did, address, n)
		}
		if got := kinds(t, h, before); !slices.Equal(got, announcement) {
			t.Errorf("a move was announced with %v", got)
		}
	}); err != nil {
		t.Fatal(err)
	}
	config.DIDMethod = methodWeb
	if err := with(t, config, nil); err == nil || !strings.Contains(err.Error(), "set HOLD_DID_METHOD=plc") {
		t.Errorf("another method: %v", err)
	}
}

// avatarCID is the blob that the hold's profile names.
func avatarCID(t *testing.T, s *server) string {
	t.Helper()
	r, err := s.repo.GetRecord(t.Context(), profileNSID, atcr.SelfRkey)
	var p profile
	if err == nil {
		err = json.Unmarshal(r.Value, &p)
	}
	if err != nil {
		t.Fatal(err)
	}
	return p.Avatar.Ref.Link
}

// Would catch a did:web hold that can be made a did:plc one by a setting, and one whose address changes silently.
func TestWebIdentity(t *testing.T) {
	t.Parallel()
	d := newDirectory(t)
	config := d.config(t)
	config.DIDMethod = methodWeb
	var before int
	if err := with(t, config, func(h *Hold) { before = len(kinds(t, h, 0)) }); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		change func(*Config)
		want   string
	}{
		{func(c *Config) { c.DIDMethod = methodPLC }, "set HOLD_DID_METHOD=web"},
		{func(c *Config) { c.PublicURL = "https://other.example.com" }, "set HOLD_PUBLIC_URL to what it was"},
	} {
		other := config
		c.change(&other)
		if err := with(t, other, nil); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v", err)
		}
	}
	config.PublicURL = "http://hold.example.com" // the same name, reached in another way
	for range 2 {
		if err := with(t, config, func(h *Hold) {
			if got := kinds(t, h, before); !slices.Equal(got, announcement) {
				t.Errorf("announced with %v", got)
			}
		}); err != nil {
			t.Fatal(err)
		}
	}
}

// Would catch a first start that makes a second identity after it was cut short, and one that says nothing of
// what it waits for; and an outage of the directory that keeps a hold down, or loses a change.
func TestDirectoryOutage(t *testing.T) {
	t.Parallel()
	d := newDirectory(t)
	config := d.config(t)
	up := d.down()
	err := with(t, config, nil)
	if !errors.Is(err, plc.ErrUnavailable) || !strings.Contains(err.Error(), "HOLD_PLC_URL") {
		t.Fatalf("%v", err)
	}
	key, err := os.ReadFile(config.RotationKeyPath)
	if err != nil {
		t.Fatal(err)
	}
	up()
	var did string
	if err := with(t, config, func(h *Hold) { did = h.did.String() }); err != nil {
		t.Fatal(err)
	}
	if again, err := os.ReadFile(config.RotationKeyPath); err != nil || string(again) != string(key) {
		t.Errorf("another rotation key was made: %v", err)
	}
	other := config
	other.PLCURL = newDirectory(t).people.url
	if err := with(t, other, nil); !errors.Is(err, plc.ErrNotFound) || !strings.Contains(err.Error(), "Is HOLD_PLC_URL the directory") {
		t.Errorf("another directory: %v", err)
	}
	config.PublicURL = "https://elsewhere.example.com"
	up = d.down()
	err = with(t, config, func(h *Hold) {
		before := len(kinds(t, h, 0))
		if err := h.settleIdentity(t.Context()); err != nil || h.settled || h.did.String() != did {
			t.Errorf("settled %v: %v", h.settled, err)
		}
		if err := h.rotateKey(t.Context()); !errors.Is(err, plc.ErrUnavailable) || h.repo.DID() != h.did {
			t.Errorf("rotated: %v", err)
		}
		up()
		if err := h.rotateKey(t.Context()); err != nil {
			t.Fatal(err)
		}
		if key, address, n := d.names(t, h); key != h.keyDID() || address != config.PublicURL || n != 2 {
			t.Errorf("%s %s %d", key, address, n)
		}
		if got := kinds(t, h, before); !slices.Equal(got, announcement) {
			t.Errorf("announced with %v", got)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
}

// Would catch an absent or a wrong rotation key that keeps a hold down which needs none, or that lets a change
// pass in silence.
func TestRotationKey(t *testing.T) {
	t.Parallel()
	d := newDirectory(t)
	config := d.config(t)
	if err := with(t, config, nil); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"absent": "does not exist", "wrong": "none of this hold's rotation keys"} {
		config := config
		config.RotationKeyPath = filepath.Join(t.TempDir(), name)
		if name == "wrong" {
			if _, err := makeKey(config.RotationKeyPath); err != nil {
				t.Fatal(err)
			}
		}
		err := with(t, config, func(h *Hold) {
			before := h.keyDID()
			if err := h.rotateKey(t.Context()); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: rotated: %v", name, err)
			}
			if _, err := os.Stat(h.nextKeyPath()); !errors.Is(err, os.ErrNotExist) || h.keyDID() != before {
				t.Errorf("%s: something of a refused rotation stays: %v", name, err)
			}
		})
		if err != nil {
			t.Errorf("%s: nothing has to be changed: %v", name, err)
		}
		config.PublicURL = "https://elsewhere.example.com"
		if err := with(t, config, nil); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "HOLD_ROTATION_KEY_PATH") {
			t.Errorf("%s: moved: %v", name, err)
		}
	}
	recovery, err := atcrypto.GeneratePrivateKeyK256()
	if err != nil {
		t.Fatal(err)
	}
	for name, fresh := range map[string]Config{"new": d.config(t), "added": config} {
		if fresh.RecoveryKey, err = didKey(recovery); err != nil {
			t.Fatal(err)
		}
		if err := with(t, fresh, func(h *Hold) {
			last, err := d.client.Last(t.Context(), h.did)
			if err != nil || len(last.Operation.RotationKeys) != 2 || last.Operation.RotationKeys[0] != fresh.RecoveryKey {
				t.Errorf("%s: %v %v", name, last.Operation.RotationKeys, err)
			}
		}); err != nil {
			t.Fatal(err)
		}
	}
	// The identity is given up: nothing can be done here, and nothing may look as if it went on.
	if err := with(t, config, func(h *Hold) {
		last, err := d.client.Last(t.Context(), h.did)
		if err != nil {
			t.Fatal(err)
		}
		end := &plc.Operation{Type: plc.TypeTombstone, Prev: &last.CID}
		if err := end.Sign(recovery); err != nil {
			t.Fatal(err)
		}
		if err := d.client.Submit(t.Context(), h.did, end); err != nil {
			t.Fatal(err)
		}
	}); err != nil {
		t.Fatal(err)
	}
	if err := with(t, config, nil); err == nil || !strings.Contains(err.Error(), "was given up") {
		t.Errorf("%v", err)
	}
}

// Would catch a rotation after which the newest commit is not the new key's, one that is lost when it is cut
// short at any step, and an old copy of a hold that puts back an old key.
func TestKeyRotation(t *testing.T) {
	t.Parallel()
	d := newDirectory(t)
	for name, web := range map[string]bool{"web": true, "plc": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			config := d.config(t)
			if web {
				config.DIDMethod = methodWeb
			}
			var first, second string
			var rev string
			err := with(t, config, func(h *Hold) {
				first = h.keyDID()
				head, err := h.repo.Head(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				events := len(kinds(t, h, 0))
				if err := adminKeyRotate(t.Context(), h, parameters(), func(Line) {}); err != nil {
					t.Fatal(err)
				}
				second = h.keyDID()
				if got := kinds(t, h, events); !slices.Equal(got, announcement) {
					t.Errorf("announced with %v", got)
				}
				after, err := h.repo.Head(t.Context())
				if err != nil || after.Rev <= head.Rev || after.Data != head.Data {
					t.Errorf("head %v, before %v: %v", after, head, err)
				}
				if err := h.put(t.Context(), record{"com.example.note", "a", map[string]any{"text": "after"}}); err != nil {
					t.Error(err)
				}
				if _, err := h.repo.Verify(t.Context()); err != nil {
					t.Error(err)
				}
				if after, err = h.repo.Head(t.Context()); err != nil {
					t.Fatal(err)
				}
				rev = after.Rev
			})
			if err != nil || first == second {
				t.Fatalf("%s, then %s: %v", first, second, err)
			}
			if info, err := os.Stat(config.KeyPath); err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("%v %v", info, err)
			}
			// Cut short once the next key is there, once the directory knows, and once the repo is signed.
			for step, cut := range map[string]func(*Hold){
				"key made": func(h *Hold) {
					if _, err := makeKey(h.nextKeyPath()); err != nil {
						t.Fatal(err)
					}
				},
				"directory told": func(h *Hold) {
					next, err := makeKey(h.nextKeyPath())
					if err != nil {
						t.Fatal(err)
					}
					did, err := didKey(next)
					if err != nil {
						t.Fatal(err)
					}
					if !web {
						err = h.updateDirectory(t.Context(), did, true)
					}
					if err != nil {
						t.Fatal(err)
					}
				},
				"signed": func(h *Hold) {
					old, err := os.ReadFile(h.config.KeyPath)
					if err != nil {
						t.Fatal(err)
					}
					if err := h.rotateKey(t.Context()); err != nil {
						t.Fatal(err)
					}
					if err := os.Rename(h.config.KeyPath, h.nextKeyPath()); err != nil {
						t.Fatal(err)
					}
					if err := os.WriteFile(h.config.KeyPath, old, 0o600); err != nil {
						t.Fatal(err)
					}
				},
			} {
				var before string
				if err := with(t, config, func(h *Hold) { before = h.keyDID(); cut(h) }); err != nil {
					t.Fatal(err)
				}
				err := with(t, config, func(h *Hold) {
					if _, err := os.Stat(h.nextKeyPath()); h.keyDID() == before || !errors.Is(err, os.ErrNotExist) {
						t.Errorf("%s: the rotation did not go on: %v", step, err)
					}
					if !web {
						if key, _, _ := d.names(t, h); key != h.keyDID() {
							t.Errorf("%s: the directory has %s", step, key)
						}
					}
					head, err := h.repo.Head(t.Context())
					if _, verr := h.repo.Verify(t.Context()); err != nil || verr != nil || head.Rev <= rev {
						t.Errorf("%s: %v %v", step, err, verr)
					}
					rev = head.Rev
				})
				if err != nil {
					t.Fatalf("%s: %v", step, err)
				}
			}
		})
	}
	t.Run("old copy", func(t *testing.T) {
		t.Parallel()
		config := d.config(t)
		file := filepath.Join(t.TempDir(), "backup.tar")
		if err := with(t, config, func(h *Hold) {
			if err := adminBackup(t.Context(), h, parameters("file", file, "with-rotation-key", "true"), func(Line) {}); err != nil {
				t.Fatal(err)
			}
			if err := h.rotateKey(t.Context()); err != nil {
				t.Fatal(err)
			}
		}); err != nil {
			t.Fatal(err)
		}
		config.DatabaseDir, config.KeyPath, config.RotationKeyPath = filepath.Join(t.TempDir(), "new"), "", ""
		if err := errors.Join(config.Validate(), Restore(config, file)); err != nil {
			t.Fatal(err)
		}
		if err := with(t, config, nil); !errors.Is(err, errDirectoryKey) || !strings.Contains(err.Error(), "atcr-hold key rotate") {
			t.Errorf("an old key was taken for good: %v", err)
		}
		if said, err := run(t, config, "key rotate", nil); err != nil {
			t.Fatalf("%s %v", said, err)
		}
		if err := with(t, config, func(h *Hold) {
			if key, _, _ := d.names(t, h); key != h.keyDID() {
				t.Errorf("the directory has %s", key)
			}
		}); err != nil {
			t.Error(err)
		}
	})
}

// Would catch an exported key that is not the one, a file that others can read, and a reminder that does not end.
func TestKeyCommands(t *testing.T) {
	t.Parallel()
	d := newDirectory(t)
	config := d.config(t)
	err := with(t, config, func(h *Hold) {
		var said []Line
		tell := func(l Line) { said = append(said, l) }
		file := filepath.Join(t.TempDir(), "rotation")
		for _, err := range []error{
			adminKeyShow(t.Context(), h, parameters(), tell),
			adminKeyExport(t.Context(), h, parameters("file", file), tell),
			adminKeyExport(t.Context(), h, parameters(), tell),
		} {
			if err != nil {
				t.Fatal(err)
			}
		}
		key, err := atcrypto.ParsePrivateMultibase(said[2].Text)
		if err != nil {
			t.Fatal(err)
		}
		did, err := didKey(key)
		if err != nil || !strings.Contains(said[0].Text, did) || !strings.Contains(said[0].Text, h.keyDID()) || strings.Contains(said[0].Text+said[1].Text, said[2].Text) {
			t.Errorf("%s %v %v", did, said, err)
		}
		if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%v %v", info, err)
		}
		if again, _, err := loadExported(file); err != nil || again != did {
			t.Errorf("the file has %s, %v", again, err)
		}
		if exported, err := h.state.get(t.Context(), stateExported); err != nil || exported != did {
			t.Errorf("%s %v", exported, err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	config = d.config(t)
	config.DIDMethod = methodWeb
	if err := with(t, config, func(h *Hold) {
		if err := adminKeyExport(t.Context(), h, parameters(), func(Line) {}); err == nil {
			t.Error("a did:web has no rotation key")
		}
	}); err != nil {
		t.Fatal(err)
	}
}

// loadExported reads a key as HOLD_ROTATION_KEY_PATH would.
func loadExported(path string) (did string, key *atcrypto.PrivateKeyK256, err error) {
	if key, err = loadKey(path); err != nil {
		return "", nil, err
	}
	did, err = didKey(key)
	return did, key, err
}
