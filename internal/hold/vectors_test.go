package hold

import (
	"encoding/json"
	"testing"

	"github.com/bluesky-social/indigo/atproto/lexicon"
	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/test/vectors"
)

// published is the catalog with the Lexicon that the protocol's vectors are of.
func published(t *testing.T) catalog {
	t.Helper()
	c, err := newCatalog()
	if err != nil {
		t.Fatal(err)
	}
	var file lexicon.SchemaFile
	if err := json.Unmarshal(vectors.Read(t, "atproto/lexicon/testdata/catalog/record.json"), &file); err != nil {
		t.Fatal(err)
	}
	if err := c.known.AddSchemaFile(file); err != nil {
		t.Fatal(err)
	}
	return c
}

// Would catch a record that breaks its Lexicon and is taken, and one that keeps to it and is refused.
func TestLexiconVectors(t *testing.T) {
	t.Parallel()
	c := published(t)
	for file, valid := range map[string]bool{"record-data-valid.json": true, "record-data-invalid.json": false} {
		var cases []struct {
			Name string
			Rkey syntax.RecordKey
			Data json.RawMessage
		}
		if err := json.Unmarshal(vectors.Read(t, "atproto/lexicon/testdata/"+file), &cases); err != nil || len(cases) < 2 {
			t.Fatal(file, len(cases), err)
		}
		for _, test := range cases {
			known, err := c.validate("example.lexicon.record", test.Rkey, decoded(t, test.Data))
			if !known || (err == nil) != valid {
				t.Errorf("%s: %s: known %t, %v", file, test.Name, known, err)
			}
		}
	}
}

// Would catch a field of a record that takes what the protocol's published vectors call invalid, or refuses what they
// call valid: of each format that Lexicons have.
func TestFormatVectors(t *testing.T) {
	t.Parallel()
	c := published(t)
	accepts := func(field, value string) bool {
		t.Helper()
		record := map[string]any{"$type": "example.lexicon.record", "integer": int64(1), "formats": map[string]any{field: value}}
		known, err := c.validate("example.lexicon.record", "demo", record)
		if !known {
			t.Fatal("the Lexicon is not known")
		}
		return err == nil
	}
	for _, kind := range []string{"did", "handle", "atidentifier", "nsid", "aturi", "cid", "datetime", "language", "uri", "tid", "recordkey"} {
		for _, valid := range []bool{true, false} {
			for _, value := range vectors.Syntax(t, kind, valid) {
				if accepts(kind, value) != valid {
					t.Errorf("%s, valid %t: %q", kind, valid, value)
				}
			}
		}
	}
	for _, value := range vectors.Lines(t, "atproto/syntax/testdata/datetime_parse_invalid.txt") {
		if accepts("datetime", value) {
			t.Errorf("datetime: %q is no time", value)
		}
	}
	for _, kind := range []string{"tid", "nsid"} { // where it is the key
		for _, valid := range []bool{true, false} {
			for _, value := range vectors.Syntax(t, kind, valid) {
				if err := checkKey(kind, syntax.RecordKey(value)); (err == nil) != valid {
					t.Errorf("a key that is a %s, valid %t: %q: %v", kind, valid, value, err)
				}
			}
		}
	}
}
