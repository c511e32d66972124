package upload

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	bytes    prometheus.Counter
	finished *prometheus.CounterVec
	verified *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer, open, joining func() float64) *metrics {
	m := &metrics{
		bytes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "atcr_hold_upload_bytes_total", Help: "Bytes of blobs that arrived through the hold.",
		}),
		finished: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "atcr_hold_uploads_finished_total", Help: "Uploads that ended, by outcome.",
		}, []string{"outcome"}),
		verified: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "atcr_hold_upload_verifications_total", Help: "Presigned uploads that were read back, by outcome.",
		}, []string{"outcome"}),
	}
	if reg != nil {
		reg.MustRegister(m.bytes, m.finished, m.verified, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "atcr_hold_uploads_open", Help: "Uploads that are unfinished.",
		}, open), prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "atcr_hold_uploads_joining", Help: "Uploads that were acknowledged, and of which the storage has yet to make an object.",
		}, joining))
	}
	return m
}
