package pds_test

import (
	"fmt"
	"testing"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/internal/pds"
)

// BenchmarkStart takes up a repo of a hundred thousand records: rows are read, the tree is built and compared with
// the head.
func BenchmarkStart(b *testing.B) {
	w := newWorld(b)
	const n = 100_000
	for at := 0; at < n; at += pds.MaxCommitOps {
		writes := make([]pds.Write, pds.MaxCommitOps)
		for i := range writes {
			writes[i] = put(fmt.Sprintf("r%07d", at+i), at+i)
			writes[i].Value = fmt.Appendf(nil, `{"n":%d,"text":"%0300d"}`, at+i, 0)
		}
		if _, err := w.repo.Apply(b.Context(), writes, nil); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		h, err := pds.Open(b.Context(), pds.Config{DB: w.db})
		if err != nil {
			b.Fatal(err)
		}
		if _, err := h.AddRepo(b.Context(), syntax.DID(did), w.key, ""); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(n*b.N)/b.Elapsed().Seconds(), "records/s")
}
