package pds

import (
	"encoding/json"
	"errors"
	"testing"

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
