package pds_test

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/internal/pds"
)

// Would catch a record that breaks its Lexicon, one of a Lexicon that nobody knows where it must be known, and
// a status that says more than was looked at.
func TestValidate(t *testing.T) {
	t.Parallel()
	s := newSite(t, pds.Config{Validate: func(c syntax.NSID, _ syntax.RecordKey, record map[string]any) (bool, error) {
		if c != collection {
			return false, nil
		}
		if _, ok := record["n"].(int64); !ok {
			return true, errors.New("n must be a number")
		}
		return true, nil
	}})
	for _, test := range []struct{ collection, record, validate, want string }{
		{"com.example.thing", `{"n":1}`, ``, "valid"},
		{"com.example.thing", `{"n":2}`, `,"validate":true`, "valid"},
		{"com.example.thing", `{"n":3}`, `,"validate":false`, ""},
		{"com.example.thing", `{"n":4}`, `,"validate":null`, "valid"},
		{"com.example.thing", `{"n":"x"}`, ``, "InvalidRequest"},
		{"com.example.thing", `{"n":"x"}`, `,"validate":true`, "InvalidRequest"},
		{"com.example.thing", `{"n":"x"}`, `,"validate":false`, ""},
		{"com.example.thing", `{"n":1}`, `,"validate":"yes"`, "InvalidRequest"},
		{"com.example.other", `{"n":"x"}`, ``, "unknown"},
		{"com.example.other", `{"n":"x"}`, `,"validate":true`, "InvalidRequest"},
		{"com.example.other", `{"n":"x"}`, `,"validate":false`, ""},
	} {
		in := fmt.Sprintf(`{"repo":%q,"collection":%q,"rkey":"a","record":%s%s}`, did, test.collection, test.record, test.validate)
		batch := fmt.Sprintf(`{"repo":%q,"writes":[{"$type":"com.atproto.repo.applyWrites#create","collection":%q,"value":%s}]%s}`,
			did, test.collection, test.record, test.validate)
		for nsid, in := range map[string]string{"putRecord": in, "applyWrites": batch} {
			a := s.call(t, nsid, in)
			if test.want == "InvalidRequest" {
				if a.errorName() != test.want {
					t.Errorf("%s %s: %d %s", nsid, in, a.status, a.body)
				}
				continue
			}
			status := `"validationStatus":"` + test.want + `"`
			if test.want == "" {
				status = `"uri"`
			}
			if a.status != 200 || !strings.Contains(string(a.body), status) || test.want == "" && strings.Contains(string(a.body), "validationStatus") {
				t.Errorf("%s %s: %d %s, want %q", nsid, in, a.status, a.body, test.want)
			}
		}
	}
}

// Would catch a record that says of a picture what it is not, and an upload that changes what a record said.
func TestBlobsAreWhatRecordsSay(t *testing.T) {
	t.Parallel()
	s := newSite(t, pds.Config{})
	upload := func(kind, data string) (string, answer) {
		t.Helper()
		a := s.do(t, http.MethodPost, "com.atproto.repo.uploadBlob", strings.NewReader(data), "Authorization", "Bearer good", "Content-Type", kind)
		if a.status != 200 {
			return "", a
		}
		return decode[struct {
			Blob struct {
				Ref      map[string]string
				MimeType string
			}
		}](t, a).Blob.Ref["$link"], a
	}
	c, _ := upload("text/plain", "a picture")
	if _, a := upload("image/png", "a picture"); !strings.Contains(string(a.body), `"mimeType":"image/png"`) {
		t.Errorf("nothing names it yet: %s", a.body)
	}
	record := func(kind string, size int) string {
		return input("p", fmt.Sprintf(`,"record":{"n":1,"picture":{"$type":"blob","ref":{"$link":%q},"mimeType":%q,"size":%d}}`, c, kind, size))
	}
	for _, wrong := range []string{record("text/plain", 9), record("image/png", 8), record("image/png", -1), record("image/png", 1<<40)} {
		if a := s.call(t, "putRecord", wrong); a.errorName() != "InvalidRequest" {
			t.Errorf("%s: %d %s", wrong, a.status, a.body)
		}
	}
	if a := s.call(t, "putRecord", record("image/png", 9)); a.status != 200 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	if _, a := upload("text/html", "a picture"); !strings.Contains(string(a.body), `"mimeType":"image/png"`) {
		t.Errorf("a record names it: %s", a.body)
	}
	if _, a := upload("image/png", ""); a.errorName() != "InvalidRequest" {
		t.Errorf("empty: %d %s", a.status, a.body)
	}
}
