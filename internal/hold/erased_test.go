package hold

import (
	"context"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"atcr.io/api/atcr"
	"atcr.io/internal/pds"
)

// Would catch a deletion of somebody's data that a collection undoes because their own repo still names what was
// theirs, one that takes what they pushed since, and one that takes somebody else's.
func TestDeletedDataStaysDeleted(t *testing.T) {
	t.Parallel()
	p, c, s := collecting(t)
	config, layer, again := s.push(t, writer, []byte("config")), s.push(t, writer, []byte("layer")), s.push(t, writer, []byte("again"))
	shared := s.push(t, writer, []byte("shared"))
	if a := s.notify(t, writer, message(writer, "app", "mine", config, layer, again, shared)); a.status != http.StatusOK {
		t.Fatal(a.body)
	}
	if a := s.notify(t, reader, message(reader, "app", "theirs", shared)); a.status != http.StatusOK {
		t.Fatal(a.body)
	}
	p.repos.publish(writer, atcr.ManifestRkey(manifestDigest("mine")), s.manifestRecord("app", "mine", config, layer, again, shared), false)
	if a := s.call(t, writer, atcr.HoldDeleteUserDataNSID, struct{}{}); a.status != http.StatusOK {
		t.Fatal(a.body)
	}
	var quota atcr.HoldGetQuotaOutput
	s.send(t, http.MethodGet, "/xrpc/"+atcr.HoldGetQuotaNSID+"?userDid="+writer.String(), "", nil).json(t, &quota)
	if quota.UniqueBlobs != 0 || quota.TotalSize != 0 {
		t.Errorf("%+v", quota)
	}
	if !s.has(t, layer) || !s.has(t, config) {
		t.Error("bytes are deleted at once")
	}
	c.advance(2 * time.Hour)
	path := strings.Replace(s.blobPath(again), "did:plc:any", writer.String(), 1)
	if a := s.send(t, http.MethodHead, path, "", nil); a.status != http.StatusOK { // a new push begins, whose message is lost
		t.Fatal(a.status)
	}
	c.advance(49 * time.Hour)
	s.collect(t, CollectOptions{})
	if s.has(t, config) || s.has(t, layer) {
		t.Error("what was deleted is still here")
	}
	if !s.has(t, shared) || !s.has(t, again) {
		t.Errorf("shared: %v, pushed again: %v", s.has(t, shared), s.has(t, again))
	}
}

// Would catch statistics of somebody who was erased while they were on their way into a record.
func TestErasedCountsStayErased(t *testing.T) {
	t.Parallel()
	_, c, s := collecting(t)
	var publishing sync.WaitGroup
	s.repo.OnCommit(func(ops []pds.Op) {
		if op := ops[0]; op.Collection == atcr.HoldLayerNSID && !op.CID.Defined() {
			publishing.Go(func() {
				if err := s.publishStats(context.WithoutCancel(t.Context())); err != nil {
					t.Error(err)
				}
			})
		}
	})
	for round := range 20 {
		layer := s.push(t, writer, []byte("layer"))
		c.advance(time.Hour) // the next push counts
		if a := s.notify(t, writer, message(writer, "app", "mine", layer)); a.status != http.StatusOK {
			t.Fatal(a.body)
		}
		if a := s.call(t, writer, atcr.HoldDeleteUserDataNSID, struct{}{}); a.status != http.StatusOK {
			t.Fatal(a.body)
		}
		publishing.Wait()
		if stats := s.records(t, atcr.HoldStatsNSID)[atcr.StatsRkey(writer.String(), "app")]; stats != "" {
			t.Fatalf("round %d: %s", round, stats)
		}
	}
}
