package httpx_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

// Would catch look-ups that go on for clients who have left, and keep their turns from others.
func TestQuickContextEndsWithTheClient(t *testing.T) {
	t.Parallel()
	entered, ended := make(chan struct{}), make(chan error)
	address := serveAnswers(t, true, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/v2/wait" {
			answers(w, r)
			return
		}
		ctx, cancel := context.WithTimeout(r.Context(), time.Hour)
		defer cancel()
		close(entered)
		<-ctx.Done()
		ended <- ctx.Err()
	}))
	conn := warmed(t, address)
	if _, err := io.WriteString(conn, plainGET("/v2/wait")); err != nil {
		t.Fatal(err)
	}
	<-entered
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// Would catch a context that outlives its request, so that what waits for its end piles up with each that follows on the
// connection, and one whose end nobody sees who asks late.
func TestQuickContextEndsWithTheAnswer(t *testing.T) {
	t.Parallel()
	contexts := make(chan context.Context, 10)
	address := serveAnswers(t, true, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v2/asked" {
			_ = r.Context().Done()
		}
		contexts <- r.Context()
		w.Header().Set("Content-Length", "0")
	}))
	conn := warmed(t, address)
	for _, path := range []string{"/v2/asked", "/v2/redirect", "/v2/redirect"} {
		if _, err := io.WriteString(conn, plainGET(path)); err != nil {
			t.Fatal(err)
		}
		res, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
	}
	for i := range 5 { // the sixth may be under way
		ctx := <-contexts
		if i == 4 { // of the others, nobody asks
			<-ctx.Done()
		}
		if err := ctx.Err(); !errors.Is(err, context.Canceled) {
			t.Errorf("request %d: %v", i, err)
		}
	}
}

// Would catch bytes of the next request that are lost, or are taken twice, because they came while somebody waited for the
// end of the one before.
func TestQuickContextKeepsWhatCame(t *testing.T) {
	t.Parallel()
	entered, leave := make(chan struct{}), make(chan struct{})
	address := serveAnswers(t, true, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v2/wait" {
			_ = r.Context().Done()
			entered <- struct{}{}
			<-leave
			if err := r.Context().Err(); err != nil {
				t.Errorf("a client that asked for more is taken for gone: %v", err)
			}
		}
		w.Header().Set("X-Path", r.URL.Path)
		w.Header().Set("Content-Length", "0")
	}))
	next := plainGET("/v2/next")
	for _, split := range []int{0, 1, 3, 4, 20, len(next) - 1, len(next)} {
		t.Run(fmt.Sprint(split), func(t *testing.T) {
			conn := warmed(t, address)
			if _, err := io.WriteString(conn, plainGET("/v2/wait")); err != nil {
				t.Fatal(err)
			}
			<-entered
			if _, err := io.WriteString(conn, next[:split]); err != nil {
				t.Fatal(err)
			}
			leave <- struct{}{}
			r := bufio.NewReader(conn)
			for i, want := range []string{"/v2/wait", "/v2/next", "/v2/next"} {
				res, err := http.ReadResponse(r, nil)
				if err != nil {
					t.Fatal(err)
				}
				_ = res.Body.Close()
				if got := res.Header.Get("X-Path"); got != want {
					t.Errorf("answer %d is of %s, want of %s", i, got, want)
				}
				if i == 0 {
					if _, err := io.WriteString(conn, next[split:]); err != nil {
						t.Fatal(err)
					}
				} else if _, err := io.WriteString(conn, next); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// Would catch a stop that leaves a look-up running when its time is over: what it uses is closed next.
func TestQuickContextEndsWithTheServer(t *testing.T) {
	t.Parallel()
	entered, ended := make(chan struct{}), make(chan struct{})
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/v2/wait" {
			answers(w, r)
			return
		}
		close(entered)
		<-r.Context().Done()
		close(ended)
	})
	address, stop, done := startServing(t, handler, []string{"/v2/"}, 10*time.Millisecond)
	if _, err := io.Copy(warmed(t, address), strings.NewReader(plainGET("/v2/wait"))); err != nil {
		t.Fatal(err)
	}
	<-entered
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
	<-ended
}
