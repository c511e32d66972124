package hold

import (
	"context"
	"errors"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"atcr.io/internal/upload"
)

// Collection is what a round of collection did, or would do.
type Collection struct {
	Blobs int64 `json:"blobs"`
	Bytes int64 `json:"bytes"`
}

type collectMetrics struct{ blobs, bytes prometheus.Counter }

func newCollectMetrics(registry prometheus.Registerer) *collectMetrics {
	f := promauto.With(registry)
	return &collectMetrics{
		f.NewCounter(prometheus.CounterOpts{Name: "atcr_hold_collected_blobs_total", Help: "Blobs deleted because no manifest named them."}),
		f.NewCounter(prometheus.CounterOpts{Name: "atcr_hold_collected_bytes_total", Help: "Their bytes."}),
	}
}

// Collect deletes blobs that no layer record has named for upload.CollectAfter, and reports each. A hold that
// nobody ever told of a manifest does not know what is in use, and deletes nothing.
func (h *Hold) Collect(ctx context.Context, dryRun bool, report func(upload.Unnamed)) (c Collection, err error) {
	h.collecting.Lock()
	defer h.collecting.Unlock()
	told, err := h.ledger.Told(ctx)
	if err != nil {
		return c, err
	}
	if !told {
		return c, errNothingNamed
	}
	err = h.uploads.Collect(ctx, upload.CollectOptions{Named: h.ledger.Named, DryRun: dryRun, Report: func(b upload.Unnamed) {
		c.Blobs, c.Bytes = c.Blobs+1, c.Bytes+b.Size
		if !dryRun {
			h.collected.blobs.Inc()
			h.collected.bytes.Add(float64(b.Size))
		}
		if report != nil {
			report(b)
		}
	}})
	return c, err
}

var errNothingNamed = errors.New("no manifest was ever announced to this hold (io.atcr.hold.notifyManifest), so it cannot know which blobs are in use: nothing is collected")

// collectUnnamed is a scheduled round.
func (h *Hold) collectUnnamed(ctx context.Context) error {
	c, err := h.Collect(ctx, false, nil)
	if err == errNothingNamed { //nolint:errorlint // our own, unwrapped
		h.log.Debug("collect blobs", "why_not", err)
		return nil
	}
	if c.Blobs > 0 {
		h.log.Info("blobs that no manifest names were deleted", "blobs", c.Blobs, "bytes", c.Bytes)
	}
	return err
}
