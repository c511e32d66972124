package xrpc_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"atcr.io/internal/xrpc"
)

// Would catch internal text that reaches a caller: paths, queries, addresses and secrets stand in errors.
func TestWriteErrorPoisoned(t *testing.T) {
	t.Parallel()
	const poison = "/var/lib/secret-5ebe2294"
	cause := errors.New("open " + poison)
	for name, test := range map[string]struct {
		err    error
		status int
		code   string
	}{
		"unknown":         {cause, http.StatusInternalServerError, "InternalServerError"},
		"wrapped unknown": {fmt.Errorf("read: %w", cause), http.StatusInternalServerError, "InternalServerError"},
		"cause":           {&xrpc.Error{Status: 400, Name: "Nope", Message: "no", Err: cause}, 400, "Nope"},
		"wrapped around":  {fmt.Errorf("%w: %w", &xrpc.Error{Status: 404, Name: "Gone", Message: "no"}, cause), 404, "Gone"},
		"too large":       {fmt.Errorf("%s: %w", poison, &http.MaxBytesError{Limit: 4}), http.StatusRequestEntityTooLarge, "PayloadTooLarge"},
		"given up":        {fmt.Errorf("%s: %w", poison, context.Canceled), http.StatusServiceUnavailable, "Timeout"},
		"too late":        {fmt.Errorf("%s: %w", poison, context.DeadlineExceeded), http.StatusServiceUnavailable, "Timeout"},
		"panic":           {fmt.Errorf("panic: %s", poison), http.StatusInternalServerError, "InternalServerError"},
	} {
		w := httptest.NewRecorder()
		status, code := xrpc.WriteError(w, test.err)
		if w.Code != test.status || status != test.status || code != test.code {
			t.Errorf("%s: %d %d %s", name, w.Code, status, code)
		}
		if strings.Contains(w.Body.String(), "5ebe2294") || strings.Contains(fmt.Sprint(w.Header()), "5ebe2294") {
			t.Errorf("%s: the caller reads %s", name, w.Body)
		}
		var envelope map[string]string
		if err := json.Unmarshal(w.Body.Bytes(), &envelope); err != nil || len(envelope) != 2 || envelope["error"] != test.code || envelope["message"] == "" {
			t.Errorf("%s: %s %v", name, w.Body, err)
		}
	}
}

// Would catch an answer that a client cannot act on: no type, no length, no time to come back, no challenge.
func TestWriteErrorHeaders(t *testing.T) {
	t.Parallel()
	w := httptest.NewRecorder()
	xrpc.WriteError(w, &xrpc.Error{Status: 429, Name: "RateLimitExceeded", Message: "later", RetryAfter: 1500 * time.Millisecond})
	for name, want := range map[string]string{
		"Retry-After": "2", "Content-Type": "application/json; charset=utf-8", "X-Content-Type-Options": "nosniff",
		"Content-Length": fmt.Sprint(w.Body.Len()), "WWW-Authenticate": "",
	} {
		if got := w.Header().Get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	w = httptest.NewRecorder()
	xrpc.WriteError(w, xrpc.Errorf(http.StatusUnauthorized, "InvalidToken", "no"))
	if w.Header().Get("WWW-Authenticate") != "Bearer" || w.Header().Get("Retry-After") != "" {
		t.Errorf("401: %v", w.Header())
	}
	w = httptest.NewRecorder()
	w.Header().Set("WWW-Authenticate", `DPoP algs="ES256"`)
	xrpc.WriteError(w, xrpc.Errorf(http.StatusUnauthorized, "InvalidToken", "no"))
	if got := w.Header().Values("WWW-Authenticate"); len(got) != 1 || !strings.HasPrefix(got[0], "DPoP") {
		t.Errorf("401 with its own challenge: %v", got)
	}
}

// Would catch an error whose cause errors.Is no longer finds, and one that forgets to say it.
func TestErrorf(t *testing.T) {
	t.Parallel()
	cause := errors.New("cause")
	err := fmt.Errorf("call: %w", xrpc.InvalidRequest("bad %q: %w", "x", cause))
	e := xrpc.AsError(err)
	if !errors.Is(err, cause) || e.Status != 400 || e.Name != "InvalidRequest" || e.Message != `bad "x": cause` {
		t.Errorf("%+v", e)
	}
	if !strings.Contains(e.Error(), "InvalidRequest") || (&xrpc.Error{Name: "A", Message: "b"}).Error() != "A: b" {
		t.Errorf("%s", e)
	}
}

// Would catch a value that JSON cannot hold and that is sent as a success without a body.
func TestWriteJSONPanics(t *testing.T) {
	t.Parallel()
	w := httptest.NewRecorder()
	defer func() {
		if recover() == nil || w.Body.Len() != 0 || len(w.Header()) != 0 {
			t.Errorf("no panic, or bytes before it: %v", w.Header())
		}
	}()
	xrpc.WriteJSON(w, 200, func() {})
}

// Would catch a body without a limit, and rubbish behind or instead of JSON that is let through.
func TestReadJSON(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		body   string
		status int // 0: good
	}{
		"good":         {`{"n":1}`, 0},
		"unknown":      {`{"n":1,"more":true}`, 0}, // Lexicons grow
		"empty":        {``, 400},
		"wrong type":   {`{"n":"x"}`, 400},
		"two values":   {`{"n":1}{"n":2}`, 400},
		"not JSON":     {`n=1`, 400},
		"at the limit": {`{"n":1,"s":"` + strings.Repeat("x", xrpc.MaxJSONBytes-14) + `"}`, 0},
		"over":         {`{"n":1,"s":"` + strings.Repeat("x", xrpc.MaxJSONBytes-13) + `"}`, 413},
		"many values":  {`{"n":1,"list":[` + strings.Repeat("{},", 1_200_000) + `{}]}`, 400},
		"many in text": {`{"n":1,"s":"\\\"` + strings.Repeat("{[,", 100_000) + `"}`, 0},
		"deep":         {strings.Repeat("[", 1<<20), 400},
	} {
		var out struct{ N int }
		w := httptest.NewRecorder()
		err := xrpc.ReadJSON(w, httptest.NewRequest(http.MethodPost, "/", strings.NewReader(test.body)), &out)
		if test.status == 0 && (err != nil || out.N != 1) || test.status != 0 && (err == nil || xrpc.AsError(err).Status != test.status) {
			t.Errorf("%s: %+v %v", name, out, err)
		}
	}
	broken := httptest.NewRequest(http.MethodPost, "/", &failing{})
	if err := xrpc.ReadJSON(httptest.NewRecorder(), broken, &struct{}{}); xrpc.AsError(err).Status != 400 {
		t.Errorf("broken body: %v", err)
	}
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errors.New("connection reset") }

// Would catch a parameter that is taken where it is absent, given twice, out of range or of another type.
func TestParams(t *testing.T) {
	t.Parallel()
	type call func(r *http.Request) (any, error)
	str := func(r *http.Request) (any, error) { return xrpc.Param(r, "p") }
	required := func(r *http.Request) (any, error) { return xrpc.RequiredParam(r, "p") }
	number := func(r *http.Request) (any, error) { return xrpc.IntParam(r, "p", 50, 1, 100) }
	boolean := func(r *http.Request) (any, error) { return xrpc.BoolParam(r, "p") }
	for name, test := range map[string]struct {
		call  call
		query string
		want  any // nil: refused
	}{
		"absent":              {str, "q=1", ""},
		"one":                 {str, "p=a+b", "a b"},
		"twice":               {str, "p=a&p=a", nil},
		"required":            {required, "p=a", "a"},
		"required, absent":    {required, "", nil},
		"required, empty":     {required, "p=", nil},
		"required, twice":     {required, "p=a&p=b", nil},
		"number":              {number, "p=7", 7},
		"number, absent":      {number, "", 50},
		"number, low":         {number, "p=0", nil},
		"number, high":        {number, "p=101", nil},
		"number, huge":        {number, "p=99999999999999999999999", nil},
		"number, negative":    {number, "p=-1", nil},
		"number, text":        {number, "p=seven", nil},
		"number, fraction":    {number, "p=7.0", nil},
		"number, twice":       {number, "p=7&p=8", nil},
		"boolean":             {boolean, "p=true", true},
		"boolean, false":      {boolean, "p=false", false},
		"boolean, absent":     {boolean, "", false},
		"boolean, a number":   {boolean, "p=1", nil},
		"boolean, twice":      {boolean, "p=true&p=false", nil},
		"boolean, big letter": {boolean, "p=True", nil},
	} {
		got, err := test.call(&http.Request{URL: &url.URL{RawQuery: test.query}})
		switch {
		case test.want == nil && (err == nil || xrpc.AsError(err).Status != 400):
			t.Errorf("%s: %v %v", name, got, err)
		case test.want != nil && (err != nil || got != test.want):
			t.Errorf("%s: %v %v, want %v", name, got, err, test.want)
		}
	}
}

// Would catch other schemes taken for a bearer token.
func TestBearerToken(t *testing.T) {
	t.Parallel()
	for header, want := range map[string]string{
		"": "", "Bearer a.b.c": "a.b.c", "bearer a.b.c": "a.b.c", "Bearer  a.b.c ": "a.b.c",
		"Basic YTpi": "", "DPoP a.b.c": "", "Bearer": "", "a.b.c": "",
	} {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.Header.Set("Authorization", header)
		if got := xrpc.BearerToken(r); got != want {
			t.Errorf("%q: %q, want %q", header, got, want)
		}
	}
}
