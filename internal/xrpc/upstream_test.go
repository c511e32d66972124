package xrpc_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"atcr.io/internal/httpx"
	"atcr.io/internal/xrpc"
)

const nsid = "com.atproto.repo.getRecord"

func upstream() xrpc.Upstream {
	return xrpc.Upstream{Client: httpx.NewClient(httpx.ClientConfig{AllowPrivate: true, Timeout: 10 * time.Second})}
}

func serve(t testing.TB, h http.HandlerFunc) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s
}

// Would catch a call that arrives otherwise than it was meant: path, query, token, type, length.
func TestUpstreamRequest(t *testing.T) {
	t.Parallel()
	var got *http.Request
	var body []byte
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		got = r
		body, _ = io.ReadAll(r.Body)
		w.Header().Set("X-Answer", "yes")
		_, _ = io.WriteString(w, `{"n":1,"more":true}`)
	})
	var out struct{ N int }
	query := url.Values{"repo": {"did:plc:a b"}}
	if err := upstream().JSON(t.Context(), xrpc.UpstreamCall{Base: s.URL + "/", NSID: nsid, Query: query}, &out); err != nil || out.N != 1 {
		t.Fatal(out, err)
	}
	if got.Method != http.MethodGet || got.URL.Path != "/xrpc/"+nsid || got.URL.Query().Get("repo") != "did:plc:a b" || got.Header.Get("Authorization") != "" || len(body) != 0 {
		t.Errorf("GET: %s %s %v", got.Method, got.URL, got.Header)
	}
	call, err := xrpc.JSONCall(s.URL, "com.atproto.repo.putRecord", "secret", map[string]int{"a": 1})
	if err != nil {
		t.Fatal(err)
	}
	call.Header = http.Header{"Dpop": {"proof"}}
	_, header, err := upstream().Bytes(t.Context(), call)
	if err != nil || header.Get("X-Answer") != "yes" {
		t.Fatal(header, err)
	}
	if got.Method != http.MethodPost || string(body) != `{"a":1}` || got.ContentLength != 7 || got.Header.Get("Authorization") != "Bearer secret" ||
		got.Header.Get("Content-Type") != "application/json" || got.Header.Get("Dpop") != "proof" {
		t.Errorf("POST: %s %q %v", got.Method, body, got.Header)
	}
	if _, err := xrpc.JSONCall(s.URL, nsid, "", func() {}); err == nil {
		t.Error("a function is JSON")
	}
}

// Would catch a wrong answer of a PDS or hold that is taken for another, waited for, or read without end.
func TestUpstreamAnswers(t *testing.T) {
	t.Parallel()
	elsewhere := serve(t, func(http.ResponseWriter, *http.Request) { t.Error("a redirect was followed, with its token") })
	answer := func(status int, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(status)
			_, _ = io.WriteString(w, body)
		}
	}
	for name, test := range map[string]struct {
		answer http.HandlerFunc
		want   xrpc.UpstreamError // Host, NSID and Err are not compared
	}{
		"error":        {answer(400, `{"error":"RecordNotFound","message":"no such record"}`), xrpc.UpstreamError{Status: 400, Name: "RecordNotFound", Message: "no such record"}},
		"unauthorized": {answer(401, `{"error":"ExpiredToken"}`), xrpc.UpstreamError{Status: 401, Name: "ExpiredToken"}},
		"page":         {answer(502, `<html>`), xrpc.UpstreamError{Status: 502}},
		"list":         {answer(500, `[1]`), xrpc.UpstreamError{Status: 500}},
		"empty":        {answer(404, ""), xrpc.UpstreamError{Status: 404}},
		"redirect": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, elsewhere.URL, http.StatusTemporaryRedirect)
		}, xrpc.UpstreamError{Status: 307, Invalid: true}},
		"garbage":     {answer(200, `<html>`), xrpc.UpstreamError{Status: 200, Invalid: true}},
		"wrong type":  {answer(200, `{"n":"one"}`), xrpc.UpstreamError{Status: 200, Invalid: true}},
		"many values": {answer(200, `{"n":1,"list":[`+strings.Repeat("{},", 300_000)+`{}]}`), xrpc.UpstreamError{Status: 200, Invalid: true}},
		"too long":    {answer(200, strings.Repeat(" ", 2<<20)), xrpc.UpstreamError{Invalid: true}},
		"too long, announced": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", fmt.Sprint(10<<30))
			w.WriteHeader(200)
		}, xrpc.UpstreamError{Status: 200, Invalid: true}},
		"without end": {func(w http.ResponseWriter, _ *http.Request) {
			page := make([]byte, 64<<10)
			for range 10 << 30 / len(page) {
				if _, err := w.Write(page); err != nil {
					return
				}
			}
			t.Error("10 GB were taken")
		}, xrpc.UpstreamError{Invalid: true}},
		"an error without end": {func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(500)
			page := make([]byte, 64<<10)
			for range 10 << 30 / len(page) {
				if _, err := w.Write(page); err != nil {
					return
				}
			}
			t.Error("10 GB were taken")
		}, xrpc.UpstreamError{Status: 500}},
		"cut off": {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, xrpc.UpstreamError{}},
		"cut off mid": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "9")
			_, _ = w.Write([]byte("{"))
		}, xrpc.UpstreamError{}},
		"strange words": {
			answer(400, `{"error":"Line\nbreak","message":"`+strings.Repeat("ä", 400)+`\r\nSet-Cookie: a"}`),
			xrpc.UpstreamError{Status: 400, Name: "Line break", Message: strings.Repeat("ä", 150) + "…"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := serve(t, test.answer)
			var out struct{ N int }
			err := upstream().JSON(t.Context(), xrpc.UpstreamCall{Base: s.URL, NSID: nsid, Token: "secret-5ebe2294", Limit: 1 << 20}, &out)
			e, ok := errors.AsType[*xrpc.UpstreamError](err)
			if !ok {
				t.Fatalf("%v", err)
			}
			got := *e
			if got.Host != strings.TrimPrefix(s.URL, "http://") || got.NSID != nsid || !strings.Contains(err.Error(), nsid) || strings.Contains(err.Error(), "5ebe2294") {
				t.Errorf("%v", err)
			}
			if !utf8.ValidString(err.Error()) || strings.ContainsAny(got.Name+got.Message, "\r\n") {
				t.Errorf("%q", err)
			}
			got.Host, got.NSID, got.Err, got.Header = "", "", nil, nil
			if !reflect.DeepEqual(got, test.want) {
				t.Errorf("%+v, want %+v (%v)", got, test.want, err)
			}
		})
	}
}

// Would catch a server that is waited for longer than the caller said, and one that is not there told as slow.
func TestUpstreamUnreachable(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	slow := serve(t, func(http.ResponseWriter, *http.Request) { <-release })
	t.Cleanup(func() { close(release) })
	down := serve(t, nil)
	down.Close()
	guarded := xrpc.Upstream{Client: httpx.NewClient(httpx.ClientConfig{Timeout: time.Second})}
	hurried := xrpc.Upstream{Client: httpx.NewClient(httpx.ClientConfig{AllowPrivate: true, Timeout: 20 * time.Millisecond})}
	for name, test := range map[string]struct {
		client           xrpc.Upstream
		base             string
		timeout, invalid bool
	}{
		"slow":          {hurried, slow.URL, true, false},
		"down":          {upstream(), down.URL, false, false},
		"inside":        {guarded, "https://127.0.0.1", false, true},
		"inside, named": {guarded, "https://localhost", false, true},
		"http":          {guarded, "http://pds.example", false, true},
		"no URL":        {upstream(), "::", false, true},
		"no host":       {upstream(), "", false, true},
		"a secret":      {guarded, "http://pds.example/u/5ebe2294", false, true},
	} {
		err := test.client.JSON(t.Context(), xrpc.UpstreamCall{Base: test.base, NSID: nsid, Query: url.Values{"k": {"5ebe2294"}}}, nil)
		e, ok := errors.AsType[*xrpc.UpstreamError](err)
		if !ok || e.Status != 0 || e.Timeout != test.timeout || e.Invalid != test.invalid || strings.Contains(e.Error(), "5ebe2294") {
			t.Errorf("%s: %+v: %v", name, e, err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	err := upstream().JSON(ctx, xrpc.UpstreamCall{Base: slow.URL, NSID: nsid}, nil)
	if e, ok := errors.AsType[*xrpc.UpstreamError](err); !ok || !e.Timeout || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
}

// Would catch a wait that is not what the other server asked for, or one without end; above all a hint for a
// call that was simply refused, since PDSes tell their limits with every answer.
func TestUpstreamRetryAfter(t *testing.T) {
	t.Parallel()
	soon := fmt.Sprint(time.Now().Add(time.Minute).Unix())
	for name, test := range map[string]struct {
		status    int
		header    http.Header
		low, high time.Duration
	}{
		"seconds":             {429, http.Header{"Retry-After": {"7"}}, 7 * time.Second, 7 * time.Second},
		"seconds, 503":        {503, http.Header{"Retry-After": {"7"}}, 7 * time.Second, 7 * time.Second},
		"a date":              {429, http.Header{"Retry-After": {time.Now().Add(time.Minute).UTC().Format(http.TimeFormat)}}, 50 * time.Second, time.Minute},
		"an old date":         {429, http.Header{"Retry-After": {time.Unix(0, 0).UTC().Format(http.TimeFormat)}}, 0, 0},
		"a PDS":               {429, http.Header{"Ratelimit-Reset": {soon}}, 50 * time.Second, time.Minute},
		"a PDS, both":         {429, http.Header{"Ratelimit-Reset": {soon}, "Retry-After": {"7"}}, 7 * time.Second, 7 * time.Second},
		"a PDS that refuses":  {400, http.Header{"Ratelimit-Reset": {soon}}, 0, 0},
		"a PDS that fails":    {500, http.Header{"Ratelimit-Reset": {soon}}, 0, 0},
		"for ever":            {429, http.Header{"Retry-After": {"2147483647"}}, 24 * time.Hour, 24 * time.Hour},
		"for ever, by a date": {429, http.Header{"Ratelimit-Reset": {"9223372036854775807"}}, 0, 24 * time.Hour},
		"negative":            {429, http.Header{"Retry-After": {"-7"}}, 0, 0},
		"words":               {429, http.Header{"Retry-After": {"soon"}}, 0, 0},
		"nothing":             {429, http.Header{}, 0, 0},
	} {
		s := serve(t, func(w http.ResponseWriter, _ *http.Request) {
			for name, values := range test.header {
				w.Header()[name] = values
			}
			w.WriteHeader(test.status)
		})
		err := upstream().JSON(t.Context(), xrpc.UpstreamCall{Base: s.URL, NSID: nsid}, nil)
		if e, ok := errors.AsType[*xrpc.UpstreamError](err); !ok || e.RetryAfter < test.low || e.RetryAfter > test.high {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Would catch an error's name that is looked for in its text, or not through what wraps it.
func TestIsUpstream(t *testing.T) {
	t.Parallel()
	err := fmt.Errorf("push: %w", &xrpc.UpstreamError{Host: "pds.example", NSID: nsid, Status: 400, Name: "InvalidSwap", Message: "RecordNotFound"})
	if !xrpc.IsUpstream(err, "RecordNotFound", "InvalidSwap") || xrpc.IsUpstream(err, "RecordNotFound") || xrpc.IsUpstream(err) || xrpc.IsUpstream(io.EOF, "") {
		t.Error(err)
	}
	for base, want := range map[string]string{"https://pds.example": "pds.example", "http://localhost:8080/x": "localhost:8080", "pds": "pds"} {
		if got := xrpc.HostOf(base); got != want {
			t.Errorf("%s: %s", base, got)
		}
	}
}
