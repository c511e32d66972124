package httpx_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
)

// BenchmarkServe is what a connection costs a request, with the client's part: plain GETs of a redirect, answered quickly
// and by net/http.
func BenchmarkServe(b *testing.B) {
	for _, quick := range []bool{false, true} {
		b.Run(fmt.Sprintf("quick=%v", quick), func(b *testing.B) {
			address := serveAnswers(b, quick, http.HandlerFunc(answers))
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				conn, err := net.Dial("tcp", address)
				if err != nil {
					b.Error(err)
					return
				}
				defer func() { _ = conn.Close() }()
				r := bufio.NewReader(conn)
				for pb.Next() {
					if _, err := io.WriteString(conn, plainGET("/v2/redirect")); err != nil {
						b.Error(err)
						return
					}
					for line := []byte("more"); len(line) > 2; {
						if line, err = r.ReadSlice('\n'); err != nil {
							b.Error(err)
							return
						}
					}
				}
			})
		})
	}
}
