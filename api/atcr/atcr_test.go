package atcr_test

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/bluesky-social/indigo/atproto/atdata"
	"github.com/bluesky-social/indigo/atproto/lexicon"

	"atcr.io/api/atcr"
)

const lexicons = "../../lexicons"

func catalog(t *testing.T) *lexicon.BaseCatalog {
	t.Helper()
	c := lexicon.NewBaseCatalog()
	if err := c.LoadDirectory(lexicons); err != nil {
		t.Fatal(err)
	}
	return c
}

// Would catch a Lexicon that others cannot read, and a file that the catalog passes over.
func TestLexicons(t *testing.T) {
	t.Parallel()
	c := catalog(t)
	files := 0
	err := filepath.WalkDir(lexicons, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Ext(path) != ".json" {
			return err
		}
		files++
		rel, err := filepath.Rel(lexicons, path)
		if err != nil {
			return err
		}
		nsid := strings.ReplaceAll(strings.TrimSuffix(filepath.ToSlash(rel), ".json"), "/", ".")
		raw, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		var file lexicon.SchemaFile
		if err := json.Unmarshal(raw, &file); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		if len(file.Defs) == 0 {
			return fmt.Errorf("%s has no definitions", path)
		}
		for name := range file.Defs {
			if _, err := c.Resolve(nsid + "#" + name); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil || files < 22 {
		t.Errorf("%d Lexicons, %v", files, err)
	}
}

const (
	did     = "did:plc:ewvi7nxzyoun6zhxrhs64oiz"
	created = "2026-01-02T03:04:05.000Z"
)

var hex64 = strings.Repeat("ab", 32)

// Would catch records that we write and others must refuse.
func TestRecordsValidate(t *testing.T) {
	t.Parallel()
	c := catalog(t)
	blob := &atcr.Blob{LexiconTypeID: "blob", Ref: atcr.BlobRef{Link: "bafkreibme22gw2h7y2h7tg2fhqotaqjucnbc24deqo72b6mkl2egezxhvy"}, MimeType: "application/json", Size: 3}
	reference := atcr.ManifestBlobReference{MediaType: "application/x", Digest: "sha256:" + hex64, Size: 1, Annotations: map[string]string{"a": "b"}}
	for nsid, record := range map[string]any{
		atcr.ManifestNSID: atcr.Manifest{
			Repository: "app", Digest: "sha256:" + hex64, MediaType: "application/x", SchemaVersion: 2, CreatedAt: created, HoldDid: "did:web:h.example",
			Config: &reference, Layers: []atcr.ManifestBlobReference{reference}, ManifestBlob: blob,
			Manifests: []atcr.ManifestManifestReference{{MediaType: "application/x", Digest: "sha256:" + hex64, Size: 1, Platform: &atcr.ManifestPlatform{Architecture: "amd64", Os: "linux"}}},
		},
		atcr.TagNSID:           atcr.Tag{Repository: "app", Tag: "1.0", Manifest: "at://" + did + "/io.atcr.manifest/" + hex64, ManifestDigest: "sha256:" + hex64, CreatedAt: created},
		atcr.SailorProfileNSID: atcr.SailorProfile{DefaultHold: "did:web:h.example", CreatedAt: created},
		atcr.SailorStarNSID:    atcr.SailorStar{Subject: json.RawMessage(`{"did":"` + did + `","repository":"app"}`), CreatedAt: created},
		atcr.RepoPageNSID:      atcr.RepoPage{Repository: "app", Description: "# App", CreatedAt: created},
		atcr.HoldCaptainNSID:   atcr.HoldCaptain{Owner: did, Public: true, DeployedAt: created},
		atcr.HoldCrewNSID:      atcr.HoldCrew{Member: did, Role: "write", Permissions: []string{"blob:write"}, AddedAt: created},
		atcr.HoldLayerNSID:     atcr.HoldLayer{Digest: "sha256:" + hex64, Size: 1, MediaType: "application/x", Manifest: "at://" + did + "/io.atcr.manifest/" + hex64, UserDid: did, CreatedAt: created},
		atcr.HoldStatsNSID:     atcr.HoldStats{OwnerDid: did, Repository: "app", UpdatedAt: created},
		atcr.HoldScanNSID:      atcr.HoldScan{Manifest: "at://" + did + "/io.atcr.manifest/" + hex64, Repository: "app", UserDid: did, ScannerVersion: "1", ScannedAt: created},
	} {
		raw, err := json.Marshal(record)
		if err != nil {
			t.Fatal(err)
		}
		data, err := atdata.UnmarshalJSON(raw)
		if err != nil {
			t.Fatal(nsid, err)
		}
		if err := lexicon.ValidateRecord(c, data, nsid, 0); err != nil {
			t.Errorf("%s: %v\n%s", nsid, err, raw)
		}
	}
	bad, err := atdata.UnmarshalJSON([]byte(`{"$type":"io.atcr.tag","repository":"app","tag":7,"createdAt":"x"}`))
	if err != nil {
		t.Fatal(err)
	}
	if lexicon.ValidateRecord(c, bad, atcr.TagNSID, 0) == nil {
		t.Error("a bad record is valid")
	}
}

// Would catch a field of a newer version that is lost when an older one writes the record again.
func TestUnknownFieldsAreKept(t *testing.T) {
	t.Parallel()
	in := `{"$type":"io.atcr.tag","repository":"app","tag":"1","createdAt":"` + created + `","newer":{"deep":[1,2]},"another":"x"}`
	var tag atcr.Tag
	if err := json.Unmarshal([]byte(in), &tag); err != nil {
		t.Fatal(err)
	}
	tag.Tag = "2"
	out, err := json.Marshal(tag)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"newer":{"deep":[1,2]}`, `"another":"x"`, `"tag":"2"`, `"$type":"io.atcr.tag"`} {
		if strings.Count(string(out), want) != 1 {
			t.Errorf("%s lacks %s", out, want)
		}
	}
	var again atcr.Tag
	if err := json.Unmarshal(out, &again); err != nil || len(again.Extra) != 2 {
		t.Errorf("%s: %v", out, err)
	}
}

// Would catch two things that share a key.
func TestRkeys(t *testing.T) {
	t.Parallel()
	for got, want := range map[string]string{
		atcr.ManifestRkey("sha256:" + hex64):              hex64,
		atcr.ManifestRkey("sha512:" + hex64 + hex64):      "sha512-" + hex64 + hex64,
		atcr.ManifestRkeyIn("sha256:"+hex64, "team/app"):  hex64 + ":team~app",
		atcr.TagRkey("team/app", "1.0"):                   "team~app:1.0",
		atcr.OldTagRkey("team/app", "1.0"):                "team~app_1.0",
		atcr.RepoPageRkey("a/b"):                          "a~b",
		atcr.CrewRkey("did:plc:ewvi7nxzyoun6zhxrhs64oiz"): "bgpe5klm2ywalirsgmmftuqms4",
	} {
		if got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
	if atcr.TagRkey("a", "b_c") == atcr.TagRkey("a_b", "c") || atcr.LayerRkey("a", "b") == atcr.LayerRkey("ab", "") || len(atcr.StatsRkey(did, "app")) != 26 {
		t.Error("keys meet")
	}
}

// Would catch types that are not what the Lexicons say.
func TestGenerated(t *testing.T) {
	t.Parallel()
	out, err := exec.CommandContext(t.Context(), "go", "run", "atcr.io/api/internal/lexgen", "-check", lexicons+"/io/atcr", ".").CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
