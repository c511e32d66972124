package appview

import (
	"strings"
	"testing"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/api/atcr"
)

// Would catch an at-uri of somebody else's record, or of another collection's, that passes for one of this person's,
// and a key that no record has.
func FuzzATURI(f *testing.F) {
	const did = syntax.DID("did:plc:abc")
	for _, s := range []string{
		"at://did:plc:abc/io.atcr.manifest/0123", "at://did:plc:abc/io.atcr.manifest/", "at://did:plc:abc/io.atcr.manifest/..", "at://did:plc:abcd/io.atcr.manifest/0123",
		"at://did:plc:abc/io.atcr.manifest/a/b", "at://did:plc:abc/io.atcr.manifest/a?b#c", "at://alice.test/io.atcr.manifest/a", "AT://did:plc:abc/io.atcr.manifest/a", "",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, uri string) {
		rkey := rkeyOf(uri, did, atcr.ManifestNSID)
		parsed, err := syntax.ParseATURI(uri)
		good := err == nil && parsed.Authority().String() == did.String() && parsed.Collection() == atcr.ManifestNSID && !strings.ContainsAny(uri, "?#")
		if good && rkey != parsed.RecordKey().String() || !good && rkey != "" {
			t.Fatalf("%q: %q, parsed %v", uri, rkey, err)
		}
	})
}
