// Package atcr has the Go types of ATCR's records and methods, generated from the Lexicons, and the keys
// under which records stand.
//
// It owns the form on the wire, and refuses to own any meaning: who writes what when is decided elsewhere.
package atcr

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
)

//go:generate go run atcr.io/api/internal/lexgen ../../lexicons/io/atcr .

// Blob is a pointer to an atproto blob, as the PDS returned it.
type Blob struct {
	LexiconTypeID string  `json:"$type"`
	Ref           BlobRef `json:"ref"`
	MimeType      string  `json:"mimeType"`
	Size          int64   `json:"size"`
}

// BlobRef is the CID of a blob.
type BlobRef struct {
	Link string `json:"$link"`
}

// unmarshalRecord decodes data into v, a pointer to a struct, and returns the fields that v has no place for.
//
// A field counts under its exact name alone. encoding/json takes "Owner" for "owner" as well, and of the two
// the later: a record with both would mean one thing to who permits it and another to who reads it, since the
// repo keeps fields in an order of its own.
func unmarshalRecord(data []byte, v any) (map[string]json.RawMessage, error) {
	var all map[string]json.RawMessage
	if err := json.Unmarshal(data, &all); err != nil {
		return nil, err
	}
	own := make(map[string]json.RawMessage, len(all))
	t := reflect.TypeOf(v).Elem()
	for i := range t.NumField() {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
		if value, ok := all[name]; ok && name != "-" {
			own[name] = value
			delete(all, name)
		}
	}
	exact, err := json.Marshal(own)
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(exact, v); err != nil {
		return nil, err
	}
	if len(all) == 0 {
		return nil, nil
	}
	return all, nil
}

// marshalRecord encodes v with extra beside its own fields.
func marshalRecord(v any, extra map[string]json.RawMessage) ([]byte, error) {
	raw, err := json.Marshal(v)
	if err != nil || len(extra) == 0 {
		return raw, err
	}
	more, err := json.Marshal(extra)
	if err != nil {
		return nil, fmt.Errorf("unknown fields: %w", err)
	}
	var b bytes.Buffer
	b.Write(raw[:len(raw)-1])
	b.WriteByte(',')
	b.Write(more[1:])
	return b.Bytes(), nil
}
