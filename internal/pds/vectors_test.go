package pds_test

import (
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/internal/pds"
	"atcr.io/test/vectors"
)

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
		for _, want := range []bool{true, false} {
			for _, value := range vectors.Syntax(t, kind, want) {
				if got := accepts(t, value); got != want {
					t.Errorf("%s, valid %t: %q accepted: %t", kind, want, value, got)
				}
			}
		}
	}
	// The same keys and collections on the way in: what is accepted can be read again.
	for _, want := range []bool{true, false} {
		for _, rkey := range vectors.Syntax(t, "recordkey", want) {
			in, err := json.Marshal(map[string]any{"repo": did, "collection": collection, "rkey": rkey, "record": map[string]any{"n": 1}})
			if err != nil {
				t.Fatal(err)
			}
			a := s.call(t, "putRecord", string(in))
			if (a.status == 200) != want {
				t.Errorf("rkey %q, valid %t: %d %s", rkey, want, a.status, a.body)
			}
			if want {
				if _, err := s.repo.GetRecord(t.Context(), collection, syntax.RecordKey(rkey)); err != nil {
					t.Errorf("%q: %v", rkey, err)
				}
			}
		}
	}
}

// Would catch a CID that is read in a form which the protocol does not have, or one that it has and is refused: of a
// block, of a blob, and of a commit or record that must stand there.
func TestCIDVectors(t *testing.T) {
	t.Parallel()
	s := newSite(t, pds.Config{})
	swap := func(field string) func(string) answer {
		return func(value string) answer {
			in, err := json.Marshal(map[string]any{"repo": did, "collection": collection, "rkey": "a", "record": map[string]any{"n": 1}, field: value})
			if err != nil {
				t.Fatal(err)
			}
			return s.call(t, "putRecord", string(in))
		}
	}
	get := func(path string) func(string) answer {
		return func(value string) answer { return s.do(t, http.MethodGet, path+url.QueryEscape(value), nil) }
	}
	// These have the letters of a CID, and their bytes are none: in a record's text they are taken, as names here not.
	lettersAlone := []string{"mBcDxtdWx0aWhhc2g+", "z7x3CtScH765HvShXT", "7134036155352661643226414134664076"}
	for name, call := range map[string]func(string) answer{
		"block": get("com.atproto.sync.getBlocks?did=" + did.String() + "&cids="), "blob": get("com.atproto.sync.getBlob?did=" + did.String() + "&cid="),
		"commit": swap("swapCommit"), "record": swap("swapRecord"),
	} {
		for _, valid := range []bool{true, false} {
			for _, value := range vectors.Syntax(t, "cid", valid) {
				if a := call(value); (a.errorName() != "InvalidRequest") != (valid && !slices.Contains(lettersAlone, value)) {
					t.Errorf("%s, valid %t: %q: %d %s", name, valid, value, a.status, a.body)
				}
			}
		}
	}
}
