package pds_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/internal/pds"
	"atcr.io/test/vectors"
)

// lines are the cases of a syntax vector: one a line, without comments. A byte for byte copy: spaces count.
func lines(t *testing.T, kind, validity string) (out []string) {
	t.Helper()
	s := bufio.NewScanner(bytes.NewReader(vectors.Read(t, "atproto/syntax/testdata/"+kind+"_syntax_"+validity+".txt")))
	for s.Scan() {
		if line := s.Text(); line != "" && !strings.HasPrefix(line, "#") {
			out = append(out, line)
		}
	}
	if len(out) < 3 {
		t.Fatalf("%s: %d cases", kind, len(out))
	}
	return out
}

// Would catch a parameter that takes what the protocol's published vectors call invalid, or refuses what they
// call valid: each kind where it comes in over the wire.
func TestSyntaxVectors(t *testing.T) {
	t.Parallel()
	s := newSite(t, pds.Config{})
	query := func(path string) func(*testing.T, string) bool {
		return func(t *testing.T, value string) bool { // whether its form was accepted
			t.Helper()
			a := s.do(t, http.MethodGet, strings.Replace(path, "VALUE", url.QueryEscape(value), 1), nil)
			return a.errorName() != "InvalidRequest"
		}
	}
	own := "did=" + did.String()
	for kind, accepts := range map[string]func(*testing.T, string) bool{
		"did":          query("com.atproto.sync.getLatestCommit?did=VALUE"),
		"handle":       query("com.atproto.identity.resolveHandle?handle=VALUE"),
		"atidentifier": query("com.atproto.repo.describeRepo?repo=VALUE"),
		"nsid":         query("com.atproto.sync.getRecord?" + own + "&rkey=a&collection=VALUE"),
		"recordkey":    query("com.atproto.sync.getRecord?" + own + "&collection=com.example.thing&rkey=VALUE"),
		"tid":          query("com.atproto.sync.getRepo?" + own + "&since=VALUE"),
	} {
		for validity, want := range map[string]bool{"valid": true, "invalid": false} {
			for _, value := range lines(t, kind, validity) {
				if got := accepts(t, value); got != want {
					t.Errorf("%s, %s: %q accepted: %t", kind, validity, value, got)
				}
			}
		}
	}
	// The same keys and collections on the way in: what is accepted can be read again.
	for validity, want := range map[string]bool{"valid": true, "invalid": false} {
		for _, rkey := range lines(t, "recordkey", validity) {
			in, err := json.Marshal(map[string]any{"repo": did, "collection": collection, "rkey": rkey, "record": map[string]any{"n": 1}})
			if err != nil {
				t.Fatal(err)
			}
			a := s.call(t, "putRecord", string(in))
			if (a.status == 200) != want {
				t.Errorf("rkey %q, %s: %d %s", rkey, validity, a.status, a.body)
			}
			if want {
				if _, err := s.repo.GetRecord(t.Context(), collection, syntax.RecordKey(rkey)); err != nil {
					t.Errorf("%q: %v", rkey, err)
				}
			}
		}
	}
}
