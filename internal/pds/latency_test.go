package pds_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/coder/websocket"

	"atcr.io/internal/pds"
)

// BenchmarkCommitToFrame is the time from a write to its frame at a subscriber, on a host that does nothing
// else: the commit's wait for the disk is in it.
func BenchmarkCommitToFrame(b *testing.B) {
	s := newSite(b, pds.Config{Budget: pds.RelayBudget})
	conn, _, err := websocket.Dial(b.Context(), s.server.URL+"/xrpc/com.atproto.sync.subscribeRepos?cursor=0", nil) //nolint:bodyclose // a WebSocket has none
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = conn.CloseNow() }()
	for range 3 { // what announced the repo: from here on the subscription stands
		if _, _, err := conn.Read(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
	var took []time.Duration
	for i := range min(b.N, 500) { // more in an hour are gathered, as relays ask
		start := time.Now()
		if _, err := s.repo.Apply(b.Context(), []pds.Write{put(fmt.Sprintf("r%d", i), i)}, nil); err != nil {
			b.Fatal(err)
		}
		if _, _, err := conn.Read(b.Context()); err != nil {
			b.Fatal(err)
		}
		took = append(took, time.Since(start))
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "ms-median")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "ms-p99")
}
