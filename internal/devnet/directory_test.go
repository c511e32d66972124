package devnet

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/bluesky-social/indigo/atproto/atcrypto"
	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/internal/httpx"
	"atcr.io/internal/plc"
)

// vector is a did:plc log that the reference library made.
type vector struct {
	DID        syntax.DID        `json:"did"`
	Operations []json.RawMessage `json:"operations"`
}

func loadVector(t *testing.T) *vector {
	t.Helper()
	raw, err := os.ReadFile("testdata/did-plc.json")
	if err != nil {
		t.Fatal(err)
	}
	var v vector
	if err := json.Unmarshal(raw, &v); err != nil {
		t.Fatal(err)
	}
	return &v
}

func startDirectory(t *testing.T) string {
	t.Helper()
	s, err := newState()
	if err != nil {
		t.Fatal(err)
	}
	d := newDirectory(s, time.Now)
	srv := httptest.NewServer(d.handler(&httpx.Adapter{}))
	t.Cleanup(srv.Close)
	return srv.URL
}

func post(t *testing.T, url string, body []byte) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	return do(t, req)
}

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	return do(t, req)
}

func do(t *testing.T, req *http.Request) (int, string) {
	t.Helper()
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(body)
}

// A log of the reference library must pass whole. Catches: CBOR in another key order, null prev left out,
// sig hashed or not hashed in the wrong place, P-256 rotation keys refused, tombstones with empty fields.
func TestReferenceLog(t *testing.T) {
	t.Parallel()
	v, url := loadVector(t), startDirectory(t)
	base := url + "/" + v.DID.String()

	if status, body := get(t, base); status != http.StatusNotFound || !strings.Contains(body, "DID not registered") {
		t.Errorf("unknown DID: %d %s", status, body)
	}
	for i, handle := range []string{"at://vector.test", "at://moved.test"} {
		if status, body := post(t, base, v.Operations[i]); status != http.StatusOK {
			t.Fatalf("operation %d: %d %s", i, status, body)
		}
		status, body := get(t, base)
		if status != http.StatusOK || !strings.Contains(body, `"alsoKnownAs":["`+handle+`"]`) {
			t.Errorf("document after operation %d: %d %s", i, status, body)
		}
	}
	if status, body := get(t, base+"/data"); status != http.StatusOK || !strings.Contains(body, `"endpoint":"https://pds.vector.test"`) {
		t.Errorf("data: %d %s", status, body)
	}
	if status, body := post(t, base, v.Operations[2]); status != http.StatusOK {
		t.Fatalf("tombstone: %d %s", status, body)
	}
	if status, _ := get(t, base); status != http.StatusGone {
		t.Errorf("document after the tombstone: %d, not 410", status)
	}
	if status, body := post(t, base, v.Operations[1]); status != http.StatusBadRequest {
		t.Errorf("operation after the tombstone: %d %s", status, body)
	}

	_, body := get(t, base+"/log")
	var log []map[string]any
	if err := json.Unmarshal([]byte(body), &log); err != nil || len(log) != 3 {
		t.Fatalf("log: %v %s", err, body)
	}
	for i, raw := range v.Operations { // what was taken in comes out, field by field
		var want map[string]any
		if err := json.Unmarshal(raw, &want); err != nil {
			t.Fatal(err)
		}
		if got, _ := json.Marshal(log[i]); string(got) != string(remarshal(t, want)) {
			t.Errorf("operation %d came out as %s", i, got)
		}
	}
	if status, body := get(t, base+"/log/last"); status != http.StatusOK || !strings.Contains(body, "plc_tombstone") {
		t.Errorf("last: %d %s", status, body)
	}
	if status, body := get(t, base+"/log/audit"); status != http.StatusOK || strings.Count(body, `"nullified":false`) != 3 {
		t.Errorf("audit: %d %s", status, body)
	}
}

func remarshal(t *testing.T, v any) []byte {
	t.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// Catches a directory that believes: each of these would let somebody take over a name or poison a document.
func TestRefusedOperations(t *testing.T) {
	t.Parallel()
	v := loadVector(t)
	stranger, err := atcrypto.GeneratePrivateKeyK256()
	if err != nil {
		t.Fatal(err)
	}
	genesis, update := string(v.Operations[0]), string(v.Operations[1])
	forge := func(raw string, change func(*plc.Operation)) string {
		op, err := plc.Parse([]byte(raw))
		if err != nil {
			t.Fatal(err)
		}
		change(op)
		if err := op.Sign(stranger); err != nil {
			t.Fatal(err)
		}
		return string(remarshal(t, op))
	}
	for name, c := range map[string]struct {
		did    syntax.DID
		before []string // taken in first
		op     string
		want   string
	}{
		"another DID":       {did: "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa", op: genesis, want: "hash makes"},
		"changed after":     {op: strings.Replace(genesis, "vector.test", "evil.test", 1), want: "hash makes"},
		"unsigned field":    {op: strings.Replace(genesis, `"prev"`, `"extra": 1, "prev"`, 1), want: "unknown field"},
		"two values":        {op: genesis + "{}", want: "more than one"},
		"update first":      {op: update, want: "prev null"},
		"tombstone first":   {op: string(v.Operations[2]), want: "prev null"},
		"genesis twice":     {before: []string{genesis}, op: genesis, want: "prev is not"},
		"stranger's update": {before: []string{genesis}, op: forge(update, func(*plc.Operation) {}), want: "no rotation key"},
		"stranger adds himself": {before: []string{genesis}, op: forge(update, func(op *plc.Operation) {
			key, _ := stranger.PublicKey()
			op.RotationKeys = []string{key.DIDKey()}
		}), want: "no rotation key"},
		"old prev":            {before: []string{genesis, update}, op: update, want: "prev is not"},
		"padded signature":    {before: []string{genesis}, op: strings.Replace(update, `KEEw"`, `KEEw=="`, 1), want: "base64url"},
		"no rotation keys":    {op: `{"type":"plc_operation","rotationKeys":[],"prev":null,"sig":""}`, want: "rotationKeys"},
		"no fields":           {op: `{"type":"plc_operation","rotationKeys":["did:key:zQ3shjyJXUaRJC2GC43mX8aPrUhoTdoiongXhZjsdTzPKYZUM"]}`, want: "required"},
		"bad rotation key":    {op: `{"type":"plc_operation","rotationKeys":["did:key:z1"],"verificationMethods":{},"alsoKnownAs":[],"services":{}}`, want: "rotation key"},
		"bad method":          {op: `{"type":"plc_operation","rotationKeys":["did:key:zQ3shjyJXUaRJC2GC43mX8aPrUhoTdoiongXhZjsdTzPKYZUM"],"verificationMethods":{"a":"b"},"alsoKnownAs":[],"services":{}}`, want: "did:key"},
		"tombstone with keys": {op: `{"type":"plc_tombstone","prev":"x","sig":"","rotationKeys":[]}`, want: "alone"},
		"legacy type":         {op: `{"type":"create","sig":""}`, want: "not known"},
		"not JSON":            {op: "\x00", want: "not an operation"},
		"too large":           {op: strings.Repeat("x", plc.MaxOperationBytes+1), want: "large"},
		"far too large":       {op: strings.Repeat("x", 1<<20), want: "large"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := startDirectory(t)
			for _, op := range c.before {
				if status, body := post(t, url+"/"+v.DID.String(), []byte(op)); status != http.StatusOK {
					t.Fatalf("before: %d %s", status, body)
				}
			}
			did := c.did
			if did == "" {
				did = v.DID
			}
			status, body := post(t, url+"/"+did.String(), []byte(c.op))
			if status != http.StatusBadRequest || !strings.Contains(body, c.want) {
				t.Errorf("%d %s, want 400 with %q", status, body, c.want)
			}
		})
	}
}

// Catches panics on outside bytes, and operations whose encoding changes on the way through.
func FuzzParseOperation(f *testing.F) {
	raw, err := os.ReadFile("testdata/did-plc.json")
	if err != nil {
		f.Fatal(err)
	}
	var v vector
	if err := json.Unmarshal(raw, &v); err != nil {
		f.Fatal(err)
	}
	for _, op := range v.Operations {
		f.Add([]byte(op))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		op, err := plc.Parse(raw)
		if err != nil {
			return
		}
		first, err := op.CID()
		if err != nil {
			return // text that is not UTF-8 cannot be encoded
		}
		again, err := plc.Parse(remarshal(t, op))
		if err != nil {
			if len(remarshal(t, op)) > plc.MaxOperationBytes {
				return // escapes made it longer
			}
			t.Fatalf("its own JSON is refused: %v", err)
		}
		if second, err := again.CID(); err != nil || first != second {
			t.Errorf("CID %s became %s (%v)", first, second, err)
		}
	})
}
