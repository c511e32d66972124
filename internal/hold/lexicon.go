package hold

import (
	"fmt"
	"strings"

	"github.com/bluesky-social/indigo/atproto/lexicon"
	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/lexicons"
)

// catalog holds records against the Lexicons in the binary.
type catalog struct{ known *lexicon.BaseCatalog }

func newCatalog() (catalog, error) {
	known := lexicon.NewBaseCatalog()
	if err := known.LoadEmbedFS(lexicons.FS); err != nil {
		return catalog{}, fmt.Errorf("the Lexicons in this program: %w", err)
	}
	return catalog{known}, nil
}

// validate is asked by the repo host for each record that comes over HTTP. rkey is "" where the host makes it.
func (c catalog) validate(collection syntax.NSID, rkey syntax.RecordKey, record map[string]any) (known bool, err error) {
	schema, err := c.known.Resolve(collection.String())
	if err != nil {
		return false, nil //nolint:nilerr // a Lexicon that is not in the binary
	}
	definition, ok := schema.Def.(lexicon.SchemaRecord)
	if !ok {
		return true, fmt.Errorf("%s is no kind of record", collection)
	}
	if err := checkKey(definition.Key, rkey); err != nil {
		return true, err
	}
	return true, lexicon.ValidateRecord(c.known, record, collection.String(), 0)
}

// checkKey tells whether a record may stand under rkey. What the host makes is a TID.
//
// Source: https://atproto.com/specs/record-key, "Record Key Types".
func checkKey(kind string, rkey syntax.RecordKey) (err error) {
	literal, isLiteral := strings.CutPrefix(kind, "literal:")
	switch {
	case isLiteral && rkey.String() != literal:
		return fmt.Errorf("its key must be %s", literal)
	case kind == "tid" && rkey != "":
		_, err = syntax.ParseTID(rkey.String())
	case kind == "nsid":
		_, err = syntax.ParseNSID(rkey.String())
	}
	if err != nil {
		return fmt.Errorf("its key: %w", err)
	}
	return nil
}
