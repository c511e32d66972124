package httpx

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

const plainRequest = "GET /v2/ HTTP/1.1\r\nHost: a.test\r\n\r\n"

// quickPipe is a client's end of a connection that h answers quickly. The first answer is on its way.
func quickPipe(h http.HandlerFunc) net.Conn {
	client, server := net.Pipe()
	q := newQuick(&http.Server{Handler: h}, "/v2/", nil) //nolint:gosec // it does not listen
	c := &quickConn{quick: q, conn: server, header: http.Header{}, values: context.Background(), buf: make([]byte, quickBytes)}
	go c.serve(httptest.NewRequest(http.MethodGet, "/v2/", nil))
	return client
}

// Would catch a client that takes half an answer in time, and then finds the next answer in it, where a proxy may have
// asked for somebody else: handlers write without heeding whether that went well.
func TestQuickSendsNothingBehindHalfAnAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		answers := 0
		client := quickPipe(func(w http.ResponseWriter, _ *http.Request) {
			answers++
			w.Header().Set("Content-Length", "200000")
			_, _ = w.Write(make([]byte, 200000))
		})
		defer func() { _ = client.Close() }()
		if _, err := io.ReadFull(client, make([]byte, 1000)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(quickPatience + time.Minute)
		go func() { _, _ = io.WriteString(client, plainRequest) }()
		if rest, err := io.ReadAll(client); len(rest) > 0 || err != nil || answers != 1 {
			t.Errorf("%d answers, %d bytes more, %v", answers, len(rest), err)
		}
	})
}

// Would catch a slow client that is cut off although it takes what it is sent, and one that is because its answer came
// slowly.
func TestQuickIsPatient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := quickPipe(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Range") == "" {
				w.Header().Set("Content-Length", strconv.Itoa(1<<20))
				_, _ = w.Write(make([]byte, 1<<20))
				return
			}
			for range 3 {
				_, _ = w.Write(make([]byte, 5000))
				time.Sleep(2 * quickPatience)
			}
		})
		defer func() { _ = client.Close() }()
		answers := bufio.NewReader(client)
		for i, want := range []int{1 << 20, 15000} {
			if i > 0 {
				if _, err := io.WriteString(client, strings.Replace(plainRequest, "\r\n\r\n", "\r\nRange: bytes=0-\r\n\r\n", 1)); err != nil {
					t.Fatal(err)
				}
			}
			res, err := http.ReadResponse(answers, nil)
			if err != nil {
				t.Fatal(err)
			}
			got := 0
			for buf := make([]byte, 4<<10); err == nil; {
				time.Sleep(time.Second)
				var n int
				n, err = io.ReadFull(res.Body, buf)
				got += n
			}
			if got != want {
				t.Errorf("%d bytes of %d: %v", got, want, err)
			}
		}
	})
}
