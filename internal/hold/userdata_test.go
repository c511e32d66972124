package hold

import (
	"encoding/json"
	"fmt"
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
