package hold

import (
	"database/sql"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"

	"atcr.io/api/atcr"
	"atcr.io/internal/oci"
)

// largestWrite is an answer that remembers the most that came at once.
type largestWrite struct {
	*httptest.ResponseRecorder
	most int
}

func (l *largestWrite) Write(p []byte) (int, error) {
	l.most = max(l.most, len(p))
	return l.ResponseRecorder.Write(p)
}

// Would catch an export that is whole in memory before it is sent, one that leaves out what a page does not have,
// and one that somebody may ask for without end.
func TestExportIsStreamed(t *testing.T) {
	t.Parallel()
	s := startHold(t, newPeople(t), open)
	const manifests, layers = 3, 250 // more than a page of the ledger
	var named []oci.Digest
	for i := range layers {
		named = append(named, s.push(t, writer, fmt.Appendf(nil, "layer %d", i)))
	}
	for i := range manifests {
		if a := s.notify(t, writer, message(writer, "app", fmt.Sprint("m", i), named[0], named...)); a.status != http.StatusOK {
			t.Fatal(a.body)
		}
	}
	for i := range exportsPerHour + 1 {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, s.config.PublicURL+"/xrpc/"+atcr.HoldExportUserDataNSID, nil)
		r.Header.Set("Authorization", "Bearer "+s.token(t, writer, atcr.HoldExportUserDataNSID))
		w := &largestWrite{ResponseRecorder: httptest.NewRecorder()}
		s.handler.ServeHTTP(w, r)
		if i == exportsPerHour {
			if w.Code != http.StatusTooManyRequests || w.Header().Get("Retry-After") == "" {
				t.Errorf("the next one: %d %s", w.Code, w.Body)
			}
			break
		}
		var out atcr.HoldExportUserDataOutput
		if err := json.Unmarshal(w.Body.Bytes(), &out); err != nil || w.Code != http.StatusOK {
			t.Fatalf("%d %v", w.Code, err)
		}
		seen := map[string]bool{}
		for _, l := range out.LayerRecords {
			seen[string(l)] = true
		}
		if len(out.LayerRecords) != manifests*layers || len(seen) != manifests*layers {
			t.Fatalf("%d records, %d different", len(out.LayerRecords), len(seen))
		}
		if w.most > 64<<10 {
			t.Fatalf("%d of %d bytes at once", w.most, w.Body.Len())
		}
	}
}

// Would catch an export that ends in the middle, as if it were whole.
func TestExportIsCutShort(t *testing.T) {
	t.Parallel()
	s := startHold(t, newPeople(t), open)
	var named []oci.Digest
	for i := range 400 { // more than one write's 64 KiB of records
		named = append(named, s.push(t, writer, fmt.Appendf(nil, "layer %d", i)))
	}
	if a := s.notify(t, writer, message(writer, "app", "m", named[0], named...)); a.status != http.StatusOK {
		t.Fatal(a.body)
	}
	get := func() (*http.Response, []byte, error) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.config.PublicURL+"/xrpc/"+atcr.HoldExportUserDataNSID, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+s.token(t, writer, atcr.HoldExportUserDataNSID))
		res, err := s.client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		raw, err := io.ReadAll(res.Body)
		_ = res.Body.Close()
		return res, raw, err
	}
	_, whole, err := get()
	if err != nil {
		t.Fatal(err)
	}
	damage := func(from string) {
		err := s.db.Write(t.Context(), func(tx *sql.Tx) error {
			_, err := tx.ExecContext(t.Context(), `UPDATE record SET value = x'ff' WHERE collection = ?1 AND rkey >= (SELECT `+from+`(rkey) FROM record WHERE collection = ?1)`, atcr.HoldLayerNSID)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	damage("max")
	res, part, err := get()
	if res.StatusCode != http.StatusOK || err == nil || len(part) < 32<<10 || len(part) >= len(whole) {
		t.Errorf("%d, %d bytes of %d, %v", res.StatusCode, len(part), len(whole), err)
	}
	damage("min")
	if res, part, err = get(); res.StatusCode != http.StatusInternalServerError || err != nil || !json.Valid(part) {
		t.Errorf("before the first byte: %d %.200s %v", res.StatusCode, part, err)
	}
}
