package ingest

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	events     *prometheus.CounterVec
	dropped    *prometheus.CounterVec
	repos      *prometheus.CounterVec
	reconnects prometheus.Counter
}

// Reasons for which an event is left out.
const (
	dropMalformed = "malformed" // no frame, no event, no CAR
	dropOrder     = "order"     // came again, or out of order
	dropSignature = "signature" // not signed by whose repo it is
	dropProof     = "proof"     // signed, but it does not say what the event says
	dropFuture    = "future"    // its rev is ahead of time
	dropIdentity  = "identity"  // whose it is cannot be found out
	dropHint      = "hint"      // the owner's PDS does not confirm it
)

func (m *metrics) open(reg prometheus.Registerer, i *Ingester) error {
	m.events = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "atcr_appview_ingest_events_total", Help: "Events of firehoses that concern this AppView, by kind."}, []string{"kind"})
	m.dropped = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "atcr_appview_ingest_dropped_total", Help: "Events of firehoses that were left out, by reason."}, []string{"reason"})
	m.repos = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "atcr_appview_ingest_repos_total", Help: "Repos that were read whole, by outcome: done, confirmed, failed."}, []string{"outcome"})
	m.reconnects = prometheus.NewCounter(prometheus.CounterOpts{Name: "atcr_appview_ingest_reconnects_total", Help: "Times that a firehose broke off."})
	if reg == nil {
		return nil
	}
	live := prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "atcr_appview_ingest_live", Help: "Firehoses that are connected and up to date."}, func() float64 {
		i.mu.Lock()
		defer i.mu.Unlock()
		n := 0.0
		for _, live := range i.live {
			if live {
				n++
			}
		}
		return n
	})
	return errors.Join(reg.Register(m.events), reg.Register(m.dropped), reg.Register(m.repos), reg.Register(m.reconnects), reg.Register(live))
}

func (i *Ingester) drop(reason string, args ...any) {
	i.metrics.dropped.WithLabelValues(reason).Inc()
	i.log.Debug("an event is left out", append([]any{"reason", reason}, args...)...)
}
