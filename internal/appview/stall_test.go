package appview

import (
	"bytes"
	"errors"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"atcr.io/internal/oci"
	"atcr.io/internal/registry"
)

// Would catch an upload that hangs for ever at a hold that stops reading.
func TestStalledHold(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // loopback
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	accepted := make(chan net.Conn, 1)
	go func() {
		if conn, err := l.Accept(); err == nil {
			accepted <- conn // never read from
		}
	}()
	r := &relay{client: &http.Client{}, testMode: true, patience: 100 * time.Millisecond}
	_, err = r.patch(t.Context(), &ticket{Hold: "did:web:hold.test", URL: "http://" + l.Addr().String() + "/u/secret"}, registry.Chunk{
		Body: bytes.NewReader(make([]byte, 64<<20)), Size: 64 << 20,
	})
	_ = (<-accepted).Close()
	e, ok := errors.AsType[*oci.Error](err)
	if !ok || e.Status != http.StatusGatewayTimeout || !strings.Contains(e.Message, "did:web:hold.test") || strings.Contains(e.Message, "secret") {
		t.Errorf("%v", err)
	}
}
