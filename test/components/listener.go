package components

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"time"
)

// Listen opens a free port of 127.0.0.1 for a server in the test's own process, whose settings name the port before it
// can answer.
func Listen(tb TB) (l net.Listener, port string) {
	tb.Helper()
	var config net.ListenConfig
	l, err := config.Listen(tb.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatalf("components: %v", err)
	}
	return l, strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
}

// Serve answers at l with h until the end of the test, and then closes what is behind h, which must not fail.
func Serve(tb TB, l net.Listener, h http.Handler, behind io.Closer) {
	tb.Helper()
	s := &httptest.Server{Listener: l, Config: &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second}}
	s.Start()
	tb.Cleanup(func() {
		s.Close()
		if err := behind.Close(); err != nil {
			tb.Fatalf("components: %v", err)
		}
	})
}
