package pds

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"testing"

	comatproto "github.com/bluesky-social/indigo/api/atproto"
	"github.com/bluesky-social/indigo/atproto/atdata"

	"atcr.io/test/vectors"
)

// Would catch records that are no data of the protocol and are taken, and those that are and are refused.
func TestDataModelVectors(t *testing.T) {
	t.Parallel()
	for file, valid := range map[string]bool{"data-model-valid.json": true, "data-model-invalid.json": false} {
		var cases []struct {
			Note string
			JSON json.RawMessage
		}
		if err := json.Unmarshal(vectors.Read(t, "atproto/atdata/testdata/"+file), &cases); err != nil || len(cases) == 0 {
			t.Fatal(file, len(cases), err)
		}
		for _, c := range cases {
			_, err := encode(Write{Action: Put, Collection: "com.example.thing", Rkey: "a", Value: c.JSON})
			if valid && err != nil || !valid && !errors.Is(err, ErrInvalidRecord) {
				t.Errorf("%s: %s: %v", file, c.Note, err)
			}
		}
	}
}

// Would catch a record whose bytes or CID others do not make of the same JSON, or whose JSON others do not make of the
// same bytes.
func TestDataModelFixtures(t *testing.T) {
	t.Parallel()
	var fixtures []struct {
		JSON       json.RawMessage
		CBORBase64 string `json:"cbor_base64"`
		CID        string
	}
	if err := json.Unmarshal(vectors.Read(t, "atproto/atdata/testdata/data-model-fixtures.json"), &fixtures); err != nil || len(fixtures) == 0 {
		t.Fatal(len(fixtures), err)
	}
	for _, f := range fixtures {
		raw, err := base64.RawStdEncoding.DecodeString(f.CBORBase64)
		if err != nil {
			t.Fatal(err)
		}
		c := cborCID(raw)
		if c.String() != f.CID || checkRecord("com.example.thing/a", c, raw) != nil {
			t.Errorf("%s: CID %s, want %s; %v", f.JSON, c, f.CID, checkRecord("com.example.thing/a", c, raw))
		}
		e, err := encode(Write{Action: Put, Collection: "com.example.thing", Rkey: "a", Value: f.JSON})
		if err != nil {
			t.Errorf("%s: %v", f.JSON, err)
			continue
		}
		data, err := decodeRecord(e.value)
		if err != nil {
			t.Fatal(err)
		}
		delete(data, "$type") // which a record has, and these have not
		if made, err := atdata.MarshalCBOR(data); err != nil || !bytes.Equal(made, raw) {
			t.Errorf("%s: %x, want %x: %v", f.JSON, made, raw, err)
		}
		text, err := recordJSON(raw)
		if err != nil {
			t.Fatal(err)
		}
		again, err := encode(Write{Action: Put, Collection: "com.example.thing", Rkey: "a", Value: text})
		if err != nil || again.cid != e.cid {
			t.Errorf("%s is read as %s: %v", f.JSON, text, err)
		}
	}
}

// Would catch a check of commits that refuses what the network has: these are events of its firehose.
func TestPublishedCommit(t *testing.T) {
	t.Parallel()
	var m comatproto.SyncSubscribeRepos_Commit
	if err := json.Unmarshal(vectors.Read(t, "atproto/repo/testdata/firehose_commit_4623075231.json"), &m); err != nil {
		t.Fatal(err)
	}
	if err := verify(t.Context(), &m); err != nil {
		t.Error(err)
	}
}
