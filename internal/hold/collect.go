package hold

import (
	"context"
	"errors"
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"atcr.io/internal/oci"
	"atcr.io/internal/upload"
)

// Collection is what a round of collection did, or would do.
type Collection struct {
	Blobs int64 `json:"blobs"`
	Bytes int64 `json:"bytes"`
	Kept  int64 `json:"kept"` // blobs that no manifest here names, and that stay
}

// CollectOptions say what a round of collection may do, and who follows it.
type CollectOptions struct {
	// DryRun only reports.
	DryRun bool
	// Unclaimed deletes those as well of which nobody knows who uploaded them: nobody can be asked of them.
	Unclaimed bool
	// Report is called with each blob that no manifest here names; nil: nobody is told.
	Report func(upload.Unnamed)
	// Progress is called with how many blobs were looked at so far; nil: nobody is told.
	Progress func(looked int64)
}

type collectMetrics struct {
	blobs, bytes, kept prometheus.Counter
	rounds             *prometheus.CounterVec
	last               prometheus.Gauge
}

func newCollectMetrics(registry prometheus.Registerer) *collectMetrics {
	f := promauto.With(registry)
	return &collectMetrics{
		blobs:  f.NewCounter(prometheus.CounterOpts{Name: "atcr_hold_collected_blobs_total", Help: "Blobs deleted because no manifest named them."}),
		bytes:  f.NewCounter(prometheus.CounterOpts{Name: "atcr_hold_collected_bytes_total", Help: "Their bytes."}),
		kept:   f.NewCounter(prometheus.CounterOpts{Name: "atcr_hold_collect_kept_blobs_total", Help: "Blobs that no manifest here named and that a round kept: a repo elsewhere names them, or could not be asked."}),
		rounds: f.NewCounterVec(prometheus.CounterOpts{Name: "atcr_hold_collect_rounds_total", Help: "Rounds of collection, by outcome: done, failed."}, []string{"outcome"}),
		last:   f.NewGauge(prometheus.GaugeOpts{Name: "atcr_hold_collect_last_success_timestamp_seconds", Help: "When the last round ended well, in seconds since 1970."}),
	}
}

// Collect deletes blobs that no layer record has named for upload.CollectAfter, and that no manifest in the repo
// of anybody whom they concern names either; one found there gets its layer records. A repo that cannot be asked
// keeps everything that concerns its owner. A hold that nobody ever told of a manifest does not know what is in
// use, and deletes nothing.
func (h *Hold) Collect(ctx context.Context, o CollectOptions) (c Collection, err error) {
	h.collecting.Lock()
	defer h.collecting.Unlock()
	told, err := h.ledger.Told(ctx)
	if err != nil {
		return c, err
	}
	if !told {
		return c, errNothingNamed
	}
	w := h.newWitness()
	err = h.uploads.Collect(ctx, upload.CollectOptions{
		Named: func(ctx context.Context, q upload.Queryer, d oci.Digest) (bool, error) {
			return h.ledger.Named(ctx, q, d)
		},
		Keep:   func(ctx context.Context, b upload.Unnamed) (string, error) { return h.keep(ctx, w, b, o) },
		DryRun: o.DryRun, Progress: o.Progress,
		Report: func(b upload.Unnamed) {
			h.countCollected(&c, b, o.DryRun)
			if o.Report != nil {
				o.Report(b)
			}
		},
	})
	outcome := "done"
	if err != nil {
		outcome = "failed"
	}
	if !o.DryRun {
		h.collected.rounds.WithLabelValues(outcome).Inc()
		if err == nil {
			h.collected.last.Set(float64(h.now().Unix()))
		}
	}
	return c, err
}

func (h *Hold) countCollected(c *Collection, b upload.Unnamed, dryRun bool) {
	if b.Kept != "" {
		if c.Kept++; !dryRun {
			h.collected.kept.Inc()
		}
		return
	}
	c.Blobs, c.Bytes = c.Blobs+1, c.Bytes+b.Size
	if !dryRun {
		h.collected.blobs.Inc()
		h.collected.bytes.Add(float64(b.Size))
	}
}

// keep says why a blob that no layer record names stays.
func (h *Hold) keep(ctx context.Context, w *witness, b upload.Unnamed, o CollectOptions) (reason string, err error) {
	if len(b.Concerned) == 0 && !o.Unclaimed {
		return "it was found in the storage, and nobody knows who uploaded it (--unclaimed deletes those)", nil
	}
	for _, did := range b.Concerned {
		if did == "" { // of somebody who had their data deleted here, whatever their own repo says
			continue
		}
		i := w.ask(ctx, did)
		rkey, named := i.find(b.Digest)
		switch {
		case named && o.DryRun:
			return fmt.Sprintf("the manifest %s of %s names it", rkey, did), nil
		case named:
			if err := h.adopt(ctx, w, did, i, rkey); err != nil {
				return fmt.Sprintf("the manifest %s of %s names it, and cannot be entered here yet: %v", rkey, did, err), nil
			}
			return fmt.Sprintf("the manifest %s of %s names it", rkey, did), nil
		case ctx.Err() != nil:
			return "", ctx.Err()
		case i.err != nil:
			return fmt.Sprintf("the repo of %s cannot be asked: %v", did, i.err), nil
		}
	}
	return "", nil
}

var errNothingNamed = errors.New("no manifest was ever announced to this hold (io.atcr.hold.notifyManifest), so it cannot know which blobs are in use: nothing is collected")

// collectUnnamed is a scheduled round.
func (h *Hold) collectUnnamed(ctx context.Context) error {
	c, err := h.Collect(ctx, CollectOptions{Report: func(b upload.Unnamed) {
		if b.Kept != "" {
			h.log.Debug("a blob that no manifest here names is kept", "digest", b.Digest.String(), "why", b.Kept)
		}
	}})
	if err == errNothingNamed { //nolint:errorlint // our own, unwrapped
		h.log.Debug("collect blobs", "why_not", err)
		return nil
	}
	if c.Blobs > 0 || c.Kept > 0 {
		h.log.Info("blobs that no manifest names were collected", "deleted", c.Blobs, "bytes", c.Bytes, "kept", c.Kept)
	}
	return err
}
