package hold

import (
	"bytes"
	"database/sql"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"atcr.io/api/atcr"
	"atcr.io/internal/pds"
	"atcr.io/internal/sqldb"
)

// importCAR imports, and returns what was said.
func importCAR(t *testing.T, config Config, car []byte, key string) (said string, err error) {
	t.Helper()
	err = Import(t.Context(), config, slog.New(slog.DiscardHandler), bytes.NewReader(car), key, func(l Line) { said += l.Text + "\n" })
	return said, err
}

// folders gives config new ones, and the storage that it had.
func folders(t *testing.T, config Config) Config {
	t.Helper()
	config.DatabaseDir, config.KeyPath, config.RotationKeyPath = filepath.Join(t.TempDir(), "new"), "", ""
	if err := config.Validate(); err != nil {
		t.Fatal(err)
	}
	return config
}

// layer is a record that the ledger follows.
func layer(rkey string) record {
	return record{atcr.HoldLayerNSID, rkey, atcr.HoldLayer{
		Digest: manifestDigest(rkey), Size: 7, MediaType: "application/x", Manifest: "at://" + writer.String() + "/io.atcr.manifest/" + rkey,
		UserDid: writer.String(), CreatedAt: "2026-01-01T00:00:00.000Z",
	}}
}

// Would catch an import that is another repo's, that nobody signed, that leaves the ledger as it was, or that a
// running hold does not notice; and a hold that is lost although its repo is not.
func TestImport(t *testing.T) {
	t.Parallel()
	d := newDirectory(t)
	for method, say := range map[string]string{methodWeb: "with --key", methodPLC: ""} {
		t.Run(method, func(t *testing.T) {
			t.Parallel()
			config := d.config(t)
			config.DIDMethod = method
			var car bytes.Buffer
			var did, key, head string
			err := with(t, config, func(h *Hold) {
				if err := h.put(t.Context(), layer("a"), layer("b")); err != nil {
					t.Fatal(err)
				}
				if err := h.repo.Export(t.Context(), &car); err != nil {
					t.Fatal(err)
				}
				did, key = h.did.String(), h.keyDID()
				if err := h.put(t.Context(), layer("c")); err != nil {
					t.Fatal(err)
				}
				now, err := h.repo.Head(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				head = now.Rev
				if said, err := importCAR(t, config, car.Bytes(), ""); err == nil || !strings.Contains(err.Error(), "stop it first") {
					t.Errorf("into a running hold: %s %v", said, err)
				}
			})
			if err != nil {
				t.Fatal(err)
			}
			check := func(config Config) {
				t.Helper()
				if err := with(t, config, func(h *Hold) {
					if _, bytes, err := h.ledger.Usage(t.Context(), writer); err != nil || bytes != 14 || h.did.String() != did {
						t.Errorf("%s uses %d bytes: %v", h.did, bytes, err)
					}
					now, err := h.repo.Head(t.Context())
					if err != nil || now.Rev <= head {
						t.Errorf("rev %s after %s: %v", now.Rev, head, err)
					}
					if config.DIDMethod == methodPLC {
						if key, _, _ := d.names(t, h); key != h.keyDID() {
							t.Errorf("the directory names %s", key)
						}
					}
				}); err != nil {
					t.Error(err)
				}
			}
			if said, err := importCAR(t, config, car.Bytes(), ""); err != nil || !strings.Contains(said, "the repo is whole") {
				t.Fatalf("%s %v", said, err)
			}
			check(config)
			// The folder is gone; the rotation key of a did:plc was kept elsewhere.
			fresh := folders(t, config)
			if method == methodPLC {
				if said, err := importCAR(t, folders(t, config), car.Bytes(), ""); err == nil || !strings.Contains(err.Error(), "rotation key") {
					t.Errorf("without the rotation key: %s %v", said, err)
				}
				fresh.RotationKeyPath = config.RotationKeyPath
			}
			said, err := importCAR(t, fresh, car.Bytes(), "")
			if say != "" {
				if err == nil || !strings.Contains(err.Error(), say) {
					t.Errorf("signed with a key that nobody knows: %s %v", said, err)
				}
				said, err = importCAR(t, fresh, car.Bytes(), key)
			}
			if err != nil || !strings.Contains(said, "a blob is missing") {
				t.Fatalf("%s %v", said, err)
			}
			check(fresh)
		})
	}
	other := d.config(t)
	var car bytes.Buffer
	if err := with(t, other, func(h *Hold) { _ = h.repo.Export(t.Context(), &car) }); err != nil {
		t.Fatal(err)
	}
	mine := d.config(t)
	if err := with(t, mine, nil); err != nil {
		t.Fatal(err)
	}
	if said, err := importCAR(t, mine, car.Bytes(), ""); err == nil || !strings.Contains(err.Error(), "is the repo of") {
		t.Errorf("another hold's repo: %s %v", said, err)
	}
	if said, err := importCAR(t, mine, car.Bytes()[:200], ""); !errors.Is(err, pds.ErrInvalidArchive) {
		t.Errorf("cut: %s %v", said, err)
	}
	if err := with(t, mine, nil); err != nil {
		t.Errorf("after imports that were refused: %v", err)
	}
}

// Would catch a damaged hold that starts, one whose refusal does not say what to do, and a repair after which
// the ledger counts what is gone.
func TestRebuild(t *testing.T) {
	t.Parallel()
	d := newDirectory(t)
	config := d.config(t)
	err := with(t, config, func(h *Hold) {
		if err := h.put(t.Context(), layer("a"), layer("b"), layer("c")); err != nil {
			t.Fatal(err)
		}
		if err := h.db.Write(t.Context(), func(tx *sql.Tx) error {
			_, err := tx.ExecContext(t.Context(), `UPDATE record SET cid = x'00' WHERE rkey = 'b'`)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		if err := adminRebuild(t.Context(), h, parameters(), func(Line) {}); err == nil {
			t.Error("a running hold was rebuilt")
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := with(t, config, nil); !errors.Is(err, pds.ErrCorrupt) || !strings.Contains(err.Error(), "atcr-hold repo rebuild") {
		t.Fatalf("%v", err)
	}
	said, err := run(t, config, "repo rebuild", nil)
	if err != nil || !strings.Contains(said, "no more: "+atcr.HoldLayerNSID+"/b") || !strings.Contains(said, "the repo is whole") {
		t.Fatalf("%s %v", said, err)
	}
	used := func() (bytes int64) {
		t.Helper()
		if err := with(t, config, func(h *Hold) {
			var err error
			if _, bytes, err = h.ledger.Usage(t.Context(), writer); err != nil {
				t.Error(err)
			}
			if kinds := kinds(t, h, 0); !slices.Contains(kinds, "#sync") {
				t.Errorf("%v", kinds)
			}
		}); err != nil {
			t.Fatal(err)
		}
		return bytes
	}
	if n := used(); n != 14 {
		t.Errorf("the ledger counts %d bytes", n)
	}
	// The key is lost.
	if err := os.Remove(config.KeyPath); err != nil {
		t.Fatal(err)
	}
	if err := with(t, config, nil); !errors.Is(err, errNoKey) {
		t.Errorf("%v", err)
	}
	if said, err := run(t, config, "repo rebuild", nil); !errors.Is(err, errNoKey) {
		t.Errorf("a key was made unasked: %s %v", said, err)
	}
	if said, err := run(t, config, "repo rebuild", map[string]string{"new-key": "true"}); err != nil {
		t.Fatalf("%s %v", said, err)
	}
	if n := used(); n != 14 {
		t.Errorf("the ledger counts %d bytes", n)
	}
	// The key is another's.
	if err := os.Remove(config.KeyPath); err != nil {
		t.Fatal(err)
	}
	if _, err := makeKey(config.KeyPath); err != nil {
		t.Fatal(err)
	}
	if err := with(t, config, nil); !errors.Is(err, pds.ErrOtherKey) || !strings.Contains(err.Error(), "HOLD_KEY_PATH") {
		t.Errorf("%v", err)
	}
}

// Would catch a start on a database that was cut or is no database, and a refusal that does not say what to do.
func TestBrokenDatabase(t *testing.T) {
	t.Parallel()
	d := newDirectory(t)
	config := d.config(t)
	config.DIDMethod = methodWeb
	if err := with(t, config, nil); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(config.DatabaseDir, "db.sqlite3")
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	middle := bytes.Clone(whole)
	for i := 5000; i < len(middle)-5000; i++ {
		middle[i] = 0xa5
	}
	for name, raw := range map[string][]byte{"half": whole[:len(whole)/2], "one page": whole[:4096], "ten bytes": whole[:10], "text": bytes.Repeat([]byte("text "), 4000), "overwritten": middle} {
		if err := os.WriteFile(path, raw, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := with(t, config, nil); !errors.Is(err, sqldb.ErrCorrupt) || !strings.Contains(err.Error(), "atcr-hold restore") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := os.WriteFile(path, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := with(t, config, nil); err != nil {
		t.Errorf("whole again: %v", err)
	}
	for err, want := range map[error]string{sqldb.ErrLocked: "End that program", sqldb.ErrFull: "Make room"} {
		if said := explain(err); !errors.Is(said, err) || !strings.Contains(said.Error(), want) {
			t.Errorf("%v", said)
		}
	}
}

// Would catch a start that waits for ever for a database which another program has, or does not say so.
func TestLockedDatabase(t *testing.T) {
	t.Parallel()
	d := newDirectory(t)
	config := d.config(t)
	config.DIDMethod = methodWeb
	if err := with(t, config, nil); err != nil {
		t.Fatal(err)
	}
	other, err := sql.Open("sqlite", "file:"+filepath.Join(config.DatabaseDir, "db.sqlite3")+"?_txlock=immediate")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Close() }()
	tx, err := other.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := with(t, config, nil); !errors.Is(err, sqldb.ErrLocked) || !strings.Contains(err.Error(), "End that program") {
		t.Errorf("%v", err)
	}
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	if err := with(t, config, nil); err != nil {
		t.Errorf("let go: %v", err)
	}
}
