package pds

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/bluesky-social/indigo/atproto/atdata"
	"github.com/bluesky-social/indigo/atproto/syntax"
)

// Would catch a record whose bytes or CID are not those that all other implementations make, and JSON that
// is stored as something else.
func TestEncode(t *testing.T) {
	t.Parallel()
	const kind = syntax.NSID("com.example.thing")
	for in, want := range map[string]string{ // "": refused
		`{}`:                                 `{"$type":"com.example.thing"}`,
		` {"a":1}`:                           `{"$type":"com.example.thing","a":1}`,
		`{"$type":"com.example.thing"}`:      `{"$type":"com.example.thing"}`,
		`{"$type":"com.example.other"}`:      ``,
		`{"$type":7}`:                        ``,
		`{"$type":""}`:                       ``,
		`{"b":{"$bytes":"AQI"}}`:             `{"$type":"com.example.thing","b":{"$bytes":"AQI"}}`,
		`{"b":{"$bytes":"AQI="}}`:            ``, // indigo takes it without padding alone
		`{"n":null,"t":true,"l":[1,"x",[]]}`: `{"$type":"com.example.thing","l":[1,"x",[]],"n":null,"t":true}`,
		`null`:                               ``,
		``:                                   ``,
		`"x"`:                                ``,
		`{"a":1}{"b":2}`:                     ``,
		`{"a":0.5}`:                          ``,
		`{"b":{"$link":"nope"}}`:             ``,
		`{"b":{"$bytes":"***"}}`:             ``,
		strings.Repeat(`{"a":`, 31) + "1" + strings.Repeat("}", 31): "ok",
		strings.Repeat(`{"a":`, 33) + "1" + strings.Repeat("}", 33): ``,
	} {
		e, err := encode(Write{Action: Put, Collection: kind, Rkey: "a", Value: json.RawMessage(in)})
		if want == "" {
			if !errors.Is(err, ErrInvalidRecord) {
				t.Errorf("%.60s: %v", in, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%.60s: %v", in, err)
			continue
		}
		got, err := recordJSON(e.value)
		if err != nil || want != "ok" && string(got) != want {
			t.Errorf("%.60s: %s %v, want %s", in, got, err, want)
		}
	}
	// The CID of {"$type":"com.example.thing"}, computed by hand from its DRISL-CBOR.
	e, err := encode(Write{Action: Put, Collection: kind, Rkey: "a", Value: json.RawMessage(`{}`)})
	raw := append([]byte{0xa1, 0x65}, "$type\x71com.example.thing"...)
	if err != nil || !bytes.Equal(e.value, raw) || e.cid != cborCID(raw) {
		t.Errorf("%x %s %v", e.value, e.cid, err)
	}
}

// Would catch a record that is accepted and cannot be read again, or is another one when it is written back
// as it was read.
func FuzzEncode(f *testing.F) {
	for _, s := range []string{
		`{}`, `null`, `{"a":1,"a":2}`, `{"n":9007199254740993}`, `{"n":-9223372036854775808}`, `{"n":1e3}`, `{"s":"\ud800"}`, "{\"s\":\"\xff\"}",
		`{"b":{"$bytes":"AQI"}}`, `{"l":{"$link":"` + "bafkreibme22gw2h7y2h7tg2fhqotaqjucnbc24deqo72b6mkl2egezxhvy" + `"}}`,
		`{"b":{"$type":"blob","ref":{"$link":"bafkreibme22gw2h7y2h7tg2fhqotaqjucnbc24deqo72b6mkl2egezxhvy"},"mimeType":"text/plain","size":1}}`,
		`{"b":{"cid":"bafkreibme22gw2h7y2h7tg2fhqotaqjucnbc24deqo72b6mkl2egezxhvy","mimeType":"text/plain"}}`,
		`{"$type":"com.example.thing","x":{"$type":""}}`, `{"a":[[[[]]]]}`, `{"$bytes":"AQI"}`, `{"\u0000":0}`, `{"":0}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		write := Write{Action: Put, Collection: "com.example.thing", Rkey: "a", Value: raw}
		e, err := encode(write)
		if err != nil {
			if !errors.Is(err, ErrInvalidRecord) {
				t.Errorf("%q: %v", raw, err)
			}
			return
		}
		if _, err := atdata.UnmarshalCBOR(e.value); err != nil {
			t.Fatalf("%q: %x cannot be read: %v", raw, e.value, err)
		}
		text, err := recordJSON(e.value)
		if err != nil {
			t.Fatalf("%q: %v", raw, err)
		}
		write.Value = text
		again, err := encode(write)
		if err != nil || again.cid != e.cid {
			t.Errorf("%q is read as %s: %s, then %s %v", raw, text, e.cid, again.cid, err)
		}
	})
}
