package plc_test

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/bluesky-social/indigo/atproto/atcrypto"

	"atcr.io/internal/plc"
)

// signed is a genesis operation with a handle.
func signed(t *testing.T, handle string) (*plc.Operation, string) {
	t.Helper()
	key, err := atcrypto.GeneratePrivateKeyK256()
	if err != nil {
		t.Fatal(err)
	}
	public, err := key.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	op := &plc.Operation{
		Type: plc.TypeOperation, RotationKeys: []string{public.DIDKey()}, AlsoKnownAs: []string{"at://" + handle},
		VerificationMethods: map[string]string{"atproto": public.DIDKey()}, Services: map[string]plc.Service{},
	}
	if err := op.Sign(key); err != nil {
		t.Fatal(err)
	}
	name, err := op.CID()
	if err != nil {
		t.Fatal(err)
	}
	return op, name
}

// Would catch an operation taken for the newest that was undone, or that is not what its name says, and an
// outage that is taken for an answer, or an answer for an outage.
func TestClient(t *testing.T) {
	t.Parallel()
	first, firstCID := signed(t, "first.test")
	second, secondCID := signed(t, "second.test")
	entry := func(op *plc.Operation, cid string, nullified bool) map[string]any {
		return map[string]any{"did": "did:plc:x", "operation": op, "cid": cid, "nullified": nullified, "createdAt": "2026-01-01T00:00:00.000Z"}
	}
	log := func(entries ...map[string]any) string {
		raw, err := json.Marshal(entries)
		if err != nil {
			t.Fatal(err)
		}
		return string(raw)
	}
	for name, test := range map[string]struct {
		status int
		body   string
		handle string
		last   error
		submit error
	}{
		"newest":        {200, log(entry(first, firstCID, false), entry(second, secondCID, false)), "at://second.test", nil, nil},
		"undone":        {200, log(entry(first, firstCID, false), entry(second, secondCID, true)), "at://first.test", nil, nil},
		"another name":  {200, log(entry(first, secondCID, false)), "", plc.ErrInvalid, nil},
		"unknown field": {200, strings.Replace(log(entry(first, firstCID, false)), `"type"`, `"more":1,"type"`, 1), "", plc.ErrInvalid, nil},
		"no JSON":       {200, "<html>", "", plc.ErrInvalid, nil},
		"empty":         {200, "[]", "", plc.ErrNotFound, nil},
		"unknown":       {404, `{"message":"DID not registered"}`, "", plc.ErrNotFound, plc.ErrRefused},
		"gone":          {410, "", "", plc.ErrInvalid, plc.ErrRefused},
		"refused":       {400, `{"message":"Invalid\nSignature"}`, "", plc.ErrInvalid, plc.ErrRefused},
		"busy":          {429, "", "", plc.ErrUnavailable, plc.ErrUnavailable},
		"broken":        {502, "", "", plc.ErrUnavailable, plc.ErrUnavailable},
		"endless":       {200, strings.Repeat(" ", 5<<20), "", plc.ErrUnavailable, plc.ErrUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(test.status)
				_, _ = w.Write([]byte(test.body))
			}))
			t.Cleanup(s.Close)
			c := plc.Client{HTTP: s.Client(), URL: s.URL + "/"}
			last, err := c.Last(t.Context(), "did:plc:x")
			if !errors.Is(err, test.last) || err == nil && last.Operation.AlsoKnownAs[0] != test.handle {
				t.Errorf("last: %v %v", last.Operation, err)
			}
			if err := c.Submit(t.Context(), "did:plc:x", first); !errors.Is(err, test.submit) || err != nil && strings.Contains(err.Error(), "\n") {
				t.Errorf("submit: %v", err)
			}
		})
	}
	down := plc.Client{HTTP: http.DefaultClient, URL: "http://127.0.0.1:1"}
	if _, err := down.Last(t.Context(), "did:plc:x"); !errors.Is(err, plc.ErrUnavailable) {
		t.Errorf("%v", err)
	}
	if _, err := down.Last(t.Context(), "../x"); !errors.Is(err, plc.ErrInvalid) {
		t.Errorf("%v", err)
	}
}
