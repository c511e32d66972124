package appview

import (
	"net/http"
	"testing"

	"atcr.io/internal/oci"
)

// discard is a response that goes nowhere.
type discard struct {
	header http.Header
	status int
}

func (d *discard) Header() http.Header { return d.header }

func (d *discard) Write(p []byte) (int, error) { return len(p), nil }

func (d *discard) WriteHeader(status int) { d.status = status }

// BenchmarkReads is what a pull costs here, without HTTP's own share.
func BenchmarkReads(b *testing.B) {
	n := newNetwork(b)
	alice := n.as(n.alice, "alice.test/app")
	image := newImage("one")
	alice.push("alice.test/app", image, "1.0")
	handler := n.app.Load().Handler()
	for name, tt := range map[string]struct {
		path   string
		status int
	}{
		"blob":   {"/v2/alice.test/app/blobs/" + oci.FromBytes(image.layer).String(), 307},
		"digest": {"/v2/alice.test/app/manifests/" + image.digest.String(), 200},
		"tag":    {"/v2/alice.test/app/manifests/1.0", 200},
	} {
		b.Run(name, func(b *testing.B) {
			req, err := http.NewRequestWithContext(b.Context(), http.MethodGet, n.base+tt.path, nil)
			if err != nil {
				b.Fatal(err)
			}
			req.RemoteAddr = "127.0.0.1:12345"
			b.ReportAllocs()
			for b.Loop() {
				w := &discard{header: http.Header{}}
				handler.ServeHTTP(w, req)
				if w.status != tt.status {
					b.Fatal(w.status)
				}
			}
		})
	}
}
