package pds

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"unicode/utf8"

	"github.com/bluesky-social/indigo/atproto/atdata"
	"github.com/bluesky-social/indigo/atproto/syntax"
	"github.com/ipfs/go-cid"

	"atcr.io/internal/pds/tree"
)

// Limits of a commit. What is over them is refused, or goes into the next commit.
const (
	MaxRecordBytes = 1_000_000 // the spec's; indigo allows 1 MiB
	MaxCommitOps   = 200
	MaxCommitBytes = 2_000_000
	maxJSONDepth   = 32
)

// Action is what a write does.
type Action int

// The actions. Put is a create or an update, and nothing where the record is equal already.
const (
	Create Action = iota + 1
	Update
	Put
	Delete
)

// Write is a change that is asked for.
type Write struct {
	Action     Action
	Collection syntax.NSID
	Rkey       syntax.RecordKey // "": a new TID, for Create
	Value      json.RawMessage  // the record as JSON; without $type the collection's is set
	// SwapRecord, where not nil, is what must stand there: cid.Undef for nothing.
	SwapRecord *cid.Cid
	Validation Validation
}

// Validation is how a record is held against its Lexicon.
type Validation int

const (
	// Unchecked is for what this program writes itself.
	Unchecked Validation = iota
	// WhereKnown refuses what breaks a known Lexicon.
	WhereKnown
	// Always refuses what no known Lexicon allows.
	Always
)

// encoded is a write whose record was checked.
type encoded struct {
	Write
	cid    cid.Cid
	value  []byte
	blobs  []atdata.Blob
	status string // "valid", "unknown" or, where it was not asked for, ""
}

func (w *encoded) path() string { return w.Collection.String() + "/" + w.Rkey.String() }

// encode checks a write as far as that is possible without the repo. Errors: ErrInvalidRecord.
func (h *Host) encode(w Write) (encoded, error) {
	e := encoded{Write: w}
	if _, err := syntax.ParseNSID(w.Collection.String()); err != nil {
		return e, fmt.Errorf("%w: collection: %w", ErrInvalidRecord, err)
	}
	if w.Rkey != "" || w.Action != Create {
		if _, err := syntax.ParseRecordKey(w.Rkey.String()); err != nil {
			return e, fmt.Errorf("%w: record key: %w", ErrInvalidRecord, err)
		}
	}
	if w.Action == Delete {
		return e, nil
	}
	if err := checkJSON(w.Value); err != nil {
		return e, err
	}
	if !bytes.HasPrefix(bytes.TrimLeft(w.Value, " \t\r\n"), []byte("{")) {
		return e, fmt.Errorf("%w: a record is a JSON object", ErrInvalidRecord) // the decoder takes null for an empty one
	}
	data, err := atdata.UnmarshalJSON(w.Value)
	if err != nil {
		return e, fmt.Errorf("%w: %w", ErrInvalidRecord, err)
	}
	switch kind, present := data["$type"]; {
	case !present:
		data["$type"] = w.Collection.String()
	case kind != w.Collection.String():
		return e, fmt.Errorf("%w: $type is %q, the collection %s", ErrInvalidRecord, kind, w.Collection)
	}
	if e.status, err = h.validate(w, data); err != nil {
		return e, err
	}
	if e.value, err = atdata.MarshalCBOR(data); err != nil {
		return e, fmt.Errorf("%w: %w", ErrInvalidRecord, err)
	}
	if len(e.value) > MaxRecordBytes {
		return e, fmt.Errorf("%w: the record has %d bytes, at most %d are allowed", ErrInvalidRecord, len(e.value), MaxRecordBytes)
	}
	e.cid, e.blobs = cborCID(e.value), atdata.ExtractBlobs(data)
	for _, b := range e.blobs {
		if b.Size < 0 {
			return e, fmt.Errorf("%w: the reference to the blob %s has no size: its old form is read, not written", ErrInvalidRecord, b.Ref)
		}
	}
	return e, nil
}

// validate holds a record against its Lexicon, as the write asks for it. Errors: ErrInvalidRecord.
func (h *Host) validate(w Write, data map[string]any) (status string, err error) {
	if w.Validation == Unchecked {
		return "", nil
	}
	known := false
	if h.config.Validate != nil {
		known, err = h.config.Validate(w.Collection, w.Rkey, data)
	}
	switch {
	case err != nil:
		return "", fmt.Errorf("%w: not what %s allows: %w", ErrInvalidRecord, w.Collection, err)
	case known:
		return "valid", nil
	case w.Validation == Always:
		return "", fmt.Errorf("%w: the Lexicon %s is not known here; without \"validate\": true the record is taken as it is", ErrInvalidRecord, w.Collection)
	}
	return "unknown", nil
}

// maxInteger is the greatest that every JSON reader keeps: 2^53-1.
const maxInteger = 1<<53 - 1

// maxNumberBytes is the sign and the sixteen digits of maxInteger: what is written longer has a fraction that
// rounding may hide.
const maxNumberBytes = 17

// checkJSON refuses nesting that would cost a decoder its stack, and what the decoder would change without a
// word: integers that a float64 does not hold, and text that is not UTF-8.
//
// Source: https://atproto.com/specs/data-model, "Data Types".
func checkJSON(raw []byte) error {
	if !utf8.Valid(raw) {
		return fmt.Errorf("%w: not valid UTF-8", ErrInvalidRecord)
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	for depth := 0; ; {
		token, err := d.Token()
		if err != nil {
			return nil //nolint:nilerr // what is no JSON is said by the decoder that follows
		}
		if n, ok := token.(json.Number); ok {
			// 1.0 and 1e3 mean integers, but one whose digits a float64 does not keep must not pass for one.
			f, err := n.Float64()
			if err != nil || f > maxInteger || f < -maxInteger || len(n) > maxNumberBytes {
				return fmt.Errorf("%w: the number %.40s is out of range, or no integer", ErrInvalidRecord, n)
			}
		}
		switch token {
		case json.Delim('{'), json.Delim('['):
			if depth++; depth > maxJSONDepth {
				return fmt.Errorf("%w: nested deeper than %d levels", ErrInvalidRecord, maxJSONDepth)
			}
		case json.Delim('}'), json.Delim(']'):
			depth--
		}
	}
}

// decodeRecord reads a record that comes as CBOR. Text that is not UTF-8, which the library lets pass, is no record's:
// as JSON it would be another one.
func decodeRecord(value []byte) (map[string]any, error) {
	data, err := atdata.UnmarshalCBOR(value)
	if err == nil && !validText(data) {
		err = errors.New("its text is not valid UTF-8")
	}
	return data, err
}

// validText tells whether all text in v, which was decoded, is UTF-8.
func validText(v any) bool {
	switch v := v.(type) {
	case string:
		return utf8.ValidString(v)
	case atdata.Blob:
		return utf8.ValidString(v.MimeType)
	case []any:
		for _, e := range v {
			if !validText(e) {
				return false
			}
		}
	case map[string]any:
		for k, e := range v {
			if !utf8.ValidString(k) || !validText(e) {
				return false
			}
		}
	}
	return true
}

// recordJSON is a stored record as JSON.
func recordJSON(value []byte) (json.RawMessage, error) {
	data, err := decodeRecord(value)
	if err != nil {
		return nil, err
	}
	return json.Marshal(data)
}

// plan turns writes into ops on top of pending, which is on top of the tree. It changes neither.
func plan(t *tree.Tree, pending map[string]cid.Cid, writes []encoded) ([]Op, error) {
	ops := make([]Op, 0, len(writes))
	mine := make(map[string]bool, len(writes))
	for i := range writes {
		w := &writes[i]
		path := w.path()
		if mine[path] {
			return nil, fmt.Errorf("%w: %s is written twice in one batch", ErrInvalidRecord, path)
		}
		mine[path] = true
		prev, ok := pending[path]
		if !ok {
			var err error
			if prev, err = t.Get(path); err != nil {
				return nil, fmt.Errorf("%w: %w", ErrInvalidRecord, err)
			}
		}
		if w.SwapRecord != nil && *w.SwapRecord != prev {
			return nil, fmt.Errorf("%w: %s", ErrInvalidSwap, path)
		}
		switch {
		case w.Action == Create && prev.Defined():
			return nil, fmt.Errorf("%w: %s", ErrRecordExists, path)
		case (w.Action == Update || w.Action == Delete) && !prev.Defined():
			return nil, fmt.Errorf("%w: %s", ErrRecordNotFound, path)
		case w.cid == prev:
			continue // nothing changes, so no op: a relay refuses an update to the same
		}
		ops = append(ops, Op{Collection: w.Collection, Rkey: w.Rkey, CID: w.cid, Prev: prev, Value: w.value})
	}
	return ops, nil
}
