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

// quickPipe is a client's end of a connection that h answers quickly. The first answer is on its way, and what came early
// was read already.
func quickPipe(early string, h http.HandlerFunc) net.Conn {
	client, server := net.Pipe()
	q := newQuick(&http.Server{Handler: h}, []string{"/v2/"}, nil) //nolint:gosec // it does not listen
	c := &quickConn{quick: q, conn: server, values: context.Background(), buf: make([]byte, quickBytes)}
	c.early = copy(c.buf, early)
	go c.serve(httptest.NewRequest(http.MethodGet, "/v2/", nil))
	return client
}

// Would catch a client that takes half an answer in time, and then finds the next answer in it, where a proxy may have
// asked for somebody else: handlers write without heeding whether that went well.
func TestQuickSendsNothingBehindHalfAnAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		answers := 0
		client := quickPipe("", func(w http.ResponseWriter, _ *http.Request) {
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
		client := quickPipe("", func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Range") == "" {
				w.Header().Set("Content-Length", strconv.Itoa(1<<20))
				_, _ = w.Write(make([]byte, 1<<20))
				return
			}
			_ = r.Context().Done()
			for range 3 {
				_, _ = w.Write(make([]byte, 5000))
				time.Sleep(2 * quickPatience)
			}
			if err := r.Context().Err(); err != nil {
				t.Errorf("the client is taken for gone: %v", err)
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

// Would catch requests that are lost, or answered in another order, because they came while somebody waited for the end of
// the one before: read by who waited, or before that.
func TestQuickKeepsWhatCameMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, early := range []string{"", strings.Replace(plainRequest, "/v2/", "/v2/early", 1)} {
			var contexts []context.Context
			client := quickPipe(early, func(w http.ResponseWriter, r *http.Request) {
				contexts = append(contexts, r.Context())
				_ = r.Context().Done()
				time.Sleep(time.Second)
				if err := r.Context().Err(); err != nil {
					t.Errorf("%s: a client that asked for more is taken for gone: %v", r.URL, err)
				}
				w.Header().Set("Path", r.URL.Path)
				w.Header().Set("Transfer-Encoding", "chunked") // is net/http's to say
				_, _ = io.WriteString(w, "body")
			})
			sent := make(chan error, 1)
			go func() {
				_, err := io.WriteString(client, strings.Replace(plainRequest, "/v2/", "/v2/late", 1))
				sent <- err
			}()
			answers := bufio.NewReader(client)
			for _, want := range []string{"/v2/", "/v2/early", "/v2/late"} {
				if want == "/v2/early" && early == "" {
					continue
				}
				res, err := http.ReadResponse(answers, nil)
				if err != nil {
					t.Fatalf("%s: %v", want, err)
				}
				body, err := io.ReadAll(res.Body)
				if got := res.Header.Get("Path"); got != want || string(body) != "body" || err != nil {
					t.Errorf("answer of %s, want of %s: %q, %v", got, want, body, err)
				}
			}
			if err := <-sent; err != nil {
				t.Error(err)
			}
			if err := client.Close(); err != nil {
				t.Error(err)
			}
			synctest.Wait()
			for i, ctx := range contexts {
				if ctx.Err() == nil {
					t.Errorf("the context of request %d has not ended", i)
				}
			}
		}
	})
}
