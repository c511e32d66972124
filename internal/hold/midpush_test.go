package hold

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/api/atcr"
	"atcr.io/internal/oci"
	"atcr.io/internal/upload"
)

// countedTrue compares the counters of what people keep with the records that they are made of.
func (s *server) countedTrue(t *testing.T, people ...syntax.DID) {
	t.Helper()
	type kept map[string]int64
	named := map[syntax.DID]kept{}
	for _, raw := range s.records(t, atcr.HoldLayerNSID) {
		var layer atcr.HoldLayer
		if err := json.Unmarshal([]byte(raw), &layer); err != nil {
			t.Fatal(err)
		}
		did := syntax.DID(layer.UserDid)
		if named[did] == nil {
			named[did] = kept{}
		}
		named[did][layer.Digest] = layer.Size
	}
	for _, did := range people {
		var want int64
		for _, size := range named[did] {
			want += size
		}
		blobs, bytes, err := s.ledger.Usage(t.Context(), did)
		if err != nil || int(blobs) != len(named[did]) || bytes != want {
			t.Errorf("%s: the counter says %d blobs of %d bytes, the records %d of %d: %v", did, blobs, bytes, len(named[did]), want, err)
		}
		var extra int64
		rows, err := s.db.Reader().QueryContext(t.Context(), `SELECT p.digest, b.size FROM blob_uploader p JOIN blob b ON b.digest = p.digest AND b.verified = 1 WHERE p.uploader = ?`, did.String())
		if err != nil {
			t.Fatal(err)
		}
		for rows.Next() {
			var digest string
			var size int64
			if err := rows.Scan(&digest, &size); err != nil {
				t.Fatal(err)
			}
			if _, ok := named[did][digest]; !ok {
				extra += size
			}
		}
		if err := rows.Err(); err != nil {
			t.Fatal(err)
		}
		_ = rows.Close()
		if _, got, err := s.uploads.Usage(t.Context(), did); err != nil || got != extra {
			t.Errorf("%s: %d bytes beside, counted %d: %v", did, extra, got, err)
		}
	}
}

// Would catch a deletion of somebody's data that leaves counters and records apart when a push goes on beside it,
// an answer that is the server's failure, and data that is there after the last word was to delete it.
func TestDeleteUserDataDuringPush(t *testing.T) {
	t.Parallel()
	p, c := newPeople(t), &clock{}
	s := startHold(t, p, func(config *Config) { open(config); c.set(config); config.TestMode = true })
	shared := s.push(t, owner, []byte("of the owner too"))
	if a := s.notify(t, owner, message(owner, "base", "base", shared)); a.status != http.StatusOK {
		t.Fatal(a.body)
	}
	var wg sync.WaitGroup
	for w := range 2 {
		wg.Go(func() {
			for i := range 12 {
				config, layer := s.push(t, writer, fmt.Appendf(nil, "config %d %d", w, i)), s.push(t, writer, fmt.Appendf(nil, "layer %d", i))
				if a := s.notify(t, writer, message(writer, "app", fmt.Sprintf("m%d.%d", w, i), config, layer, shared)); a.status != http.StatusOK {
					t.Errorf("notify: %d %s", a.status, a.body)
				}
			}
		})
	}
	wg.Go(func() {
		for range 8 {
			if a := s.call(t, writer, atcr.HoldDeleteUserDataNSID, map[string]any{}); a.status != http.StatusOK {
				t.Errorf("delete: %d %s", a.status, a.body)
			}
		}
	})
	_, half := s.begin(t, writer)
	if a := s.send(t, http.MethodPatch, half, "", strings.NewReader("half of a blob, ")); a.status != http.StatusAccepted {
		t.Fatal(a.status)
	}
	wg.Wait()
	s.countedTrue(t, writer, owner)
	if a := s.call(t, writer, atcr.HoldDeleteUserDataNSID, map[string]any{}); a.status != http.StatusOK {
		t.Fatal(a.body)
	}
	for rkey, layer := range s.records(t, atcr.HoldLayerNSID) {
		if atcr.LayerRkey("at://"+owner.String()+"/io.atcr.manifest/"+atcr.ManifestRkey(manifestDigest("base")), shared.String()) != rkey {
			t.Errorf("left: %s", layer)
		}
	}
	s.countedTrue(t, writer, owner)
	// The upload that was open goes on or is refused, and is no failure of the hold's.
	digest := oci.FromBytes([]byte("half of a blob, and the rest"))
	s.send(t, http.MethodPatch, half, "", strings.NewReader("and the rest"))
	if a := s.send(t, http.MethodPut, half+"?digest="+digest.String(), "", nil); a.status >= 500 {
		t.Errorf("the open upload: %d %s", a.status, a.body)
	}
	s.countedTrue(t, writer, owner)
	c.advance(upload.CollectAfter + 2*time.Hour)
	s.collect(t, CollectOptions{})
	if blobs, bytes, err := s.used(t.Context(), writer); err != nil || blobs != 0 || bytes != 0 {
		t.Errorf("two days later %d blobs of %d bytes are left: %v", blobs, bytes, err)
	}
	if !s.has(t, shared) {
		t.Error("the owner's blob went with the other's data")
	}
}
