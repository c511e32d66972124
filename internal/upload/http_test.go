package upload

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"testing"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/internal/blobstore"
	"atcr.io/internal/httpx"
	"atcr.io/internal/oci"
)

// serve puts the handler behind a real server.
func (r *rig) serve() (base string) {
	r.t.Helper()
	mux := http.NewServeMux()
	server := httptest.NewServer(mux)
	r.t.Cleanup(server.Close)
	adapter := httpx.Adapter{Logger: r.cfg.Logger}
	mux.Handle(PathPrefix, adapter.Wrap("/u/{secret}", oci.WriteError, r.Handler(server.URL)))
	return server.URL
}

type exchange struct {
	method, query string
	header        map[string]string
	body          string
	status        int
	want          map[string]string // answer headers
	code          oci.Code
}

func (r *rig) exchange(at string, x exchange) (said string) {
	r.t.Helper()
	req, err := http.NewRequestWithContext(r.t.Context(), x.method, at+x.query, strings.NewReader(x.body))
	if err != nil {
		r.t.Fatal(err)
	}
	for k, v := range x.header {
		req.Header.Set(k, v)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	if res.StatusCode != x.status {
		r.t.Errorf("%s %s: %d, want %d: %s", x.method, x.query, res.StatusCode, x.status, body)
	}
	for k, v := range x.want {
		if got := res.Header.Get(k); got != v {
			r.t.Errorf("%s %s: %s is %q, want %q", x.method, x.query, k, got, v)
		}
	}
	if x.code == "" {
		if len(body) != 0 {
			r.t.Errorf("%s %s: a body: %s", x.method, x.query, body)
		}
		return string(body)
	}
	var answer struct {
		Errors []struct {
			Code    oci.Code
			Message string
		}
	}
	if err := json.Unmarshal(body, &answer); err != nil || len(answer.Errors) != 1 || answer.Errors[0].Code != x.code {
		r.t.Errorf("%s %s: %s, want %s", x.method, x.query, body, x.code)
	}
	return string(body)
}

// Would catch any answer that differs from the distribution spec's: status, headers, error code.
func TestHTTP(t *testing.T) {
	t.Parallel()
	r := newRig(t, newMemory(), nil)
	base := r.serve()
	hello := oci.FromBytes([]byte("hello world"))
	put := "?digest=" + url.QueryEscape(hello.String())
	location := "https://appview.test/v2/alice.test/app/blobs/"
	begin := func(location string) string {
		s, err := r.Begin(t.Context(), alice, BeginOptions{Location: location})
		if err != nil {
			t.Fatal(err)
		}
		return URL(base, s.Secret)
	}
	created := map[string]string{"Docker-Content-Digest": hello.String(), "Location": location + hello.String()}

	at := begin(location) // chunks
	for _, x := range []exchange{
		{method: "GET", status: 204, want: map[string]string{"Range": "0-0", "Location": at}},
		{method: "PATCH", body: "", status: 202, want: map[string]string{"Range": "0-0", "Location": at}},
		{method: "PATCH", header: map[string]string{"Content-Range": "0-4"}, body: "hello", status: 202, want: map[string]string{"Range": "0-4", "Location": at}},
		{method: "PATCH", header: map[string]string{"Content-Range": "0-4"}, body: "hello", status: 416, code: oci.CodeBlobUploadInvalid, want: map[string]string{"Range": "0-4"}},
		{method: "PATCH", header: map[string]string{"Content-Range": "6-10"}, body: "world", status: 416, code: oci.CodeBlobUploadInvalid, want: map[string]string{"Range": "0-4"}},
		{method: "PATCH", header: map[string]string{"Content-Range": "5-6"}, body: " world", status: 400, code: oci.CodeSizeInvalid},
		{method: "PATCH", header: map[string]string{"Content-Range": "what"}, body: "x", status: 416, code: oci.CodeBlobUploadInvalid},
		{method: "PATCH", query: "?digest-algorithm=sha512", body: "x", status: 400, code: oci.CodeDigestInvalid},
		{method: "GET", status: 204, want: map[string]string{"Range": "0-4"}},
		{method: "POST", status: 405, code: oci.CodeUnsupported},
		{method: "PUT", status: 400, code: oci.CodeDigestInvalid},
		{method: "PUT", query: "?digest=sha256:ABC", status: 400, code: oci.CodeDigestInvalid},
		{method: "PUT", query: put, header: map[string]string{"Content-Range": "0-5"}, body: " world", status: 416, code: oci.CodeBlobUploadInvalid},
		{method: "PUT", query: put, header: map[string]string{"Content-Range": "5-10"}, body: " world", status: 201, want: created},
		{method: "PUT", query: put, status: 201, want: created},
		{method: "PUT", query: "?digest=" + oci.FromBytes(nil).String(), status: 404, code: oci.CodeBlobUploadUnknown},
		{method: "PATCH", body: "x", status: 404, code: oci.CodeBlobUploadUnknown},
		{method: "GET", status: 404, code: oci.CodeBlobUploadUnknown},
		{method: "DELETE", status: 404, code: oci.CodeBlobUploadUnknown},
	} {
		r.exchange(at, x)
	}
	r.content(hello, "")

	at = begin("") // one PUT, no location
	r.exchange(at, exchange{method: "PUT", query: put, body: "hello world", status: 201, want: map[string]string{
		"Location": base + "/xrpc/com.atproto.sync.getBlob?did=did:plc:alice&cid=" + hello.String(), "Docker-Content-Digest": hello.String(),
	}})
	at = begin("https://appview.test/exact")
	r.exchange(at, exchange{method: "PUT", query: put, body: "hello world", status: 201, want: map[string]string{"Location": "https://appview.test/exact"}})

	at = begin(location) // wrong bytes
	r.exchange(at, exchange{method: "PUT", query: put, body: "hello there", status: 400, code: oci.CodeDigestInvalid})
	r.exchange(at, exchange{method: "GET", status: 404, code: oci.CodeBlobUploadUnknown})

	long := sha512Of([]byte("hello world")) // announced with the first PATCH
	at = begin(location)
	r.exchange(at, exchange{method: "PATCH", query: "?digest-algorithm=md5", body: "x", status: 400, code: oci.CodeDigestInvalid})
	r.exchange(at, exchange{method: "PATCH", query: "?digest-algorithm=sha512", body: "hello world", status: 202})
	r.exchange(at, exchange{method: "PUT", query: "?digest=" + long.String(), status: 201, want: map[string]string{"Docker-Content-Digest": long.String()}})
	r.content(long, "")

	at = begin(location) // cancelled
	r.exchange(at, exchange{method: "PATCH", body: "x", status: 202})
	r.exchange(at, exchange{method: "DELETE", status: 204})
	r.exchange(at, exchange{method: "PATCH", body: "x", status: 404, code: oci.CodeBlobUploadUnknown})
	for _, secret := range []string{"", "x", strings.Repeat("a", secretLength), strings.Repeat("a", 10_000), "a/b"} {
		r.exchange(base+PathPrefix+secret, exchange{method: "GET", status: 404, code: oci.CodeBlobUploadUnknown})
	}
}

// Would catch a chunk that is lost because its sender's connection broke, which is when resuming counts.
func TestHTTPConnectionBreaks(t *testing.T) {
	t.Parallel()
	r := newRig(t, newMemory(), nil)
	base := r.serve()
	s := r.begin(alice)
	data := noise(400_000, 1)
	conn, err := net.Dial("tcp", strings.TrimPrefix(base, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fprintf(conn, "PATCH %s%s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", PathPrefix, s.Secret, len(data), data[:250_000]); err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()
	var n int64
	for n < 250_000 { // the server learns of it in its own time
		if n, err = r.Status(t.Context(), s.Secret); err != nil {
			t.Fatal(err)
		}
	}
	for errors.Is(func() error { _, err = r.Append(t.Context(), s.Secret, &n, bytes.NewReader(nil)); return err }(), ErrBusy) {
	}
	if err != nil {
		t.Fatal(err)
	}
	r.reopen()
	if _, err := r.Finish(t.Context(), s.Secret, oci.FromBytes(data), &n, bytes.NewReader(data[n:])); err != nil {
		t.Fatal(err)
	}
	r.content(oci.FromBytes(data), "")
}

// Would catch an error whose own text, which may name secrets, reaches clients, and statuses that tell
// clients to give up where they should wait.
func TestTranslate(t *testing.T) {
	t.Parallel()
	for err, want := range map[error]int{
		errors.New("poison"): 500, blobstore.ErrNoSpace: 507, ErrQuota: 403, ErrTooLarge: 413, ErrBusy: 429, ErrClosed: 503,
		httpx.ErrTooSlow: 408, ErrUnknown: 404, &RangeError{Offset: 7}: 416, ErrMixed: 400, ErrAlgorithm: 400, ErrDigestMismatch: 400, ErrBrokenOff: 400,
	} {
		w := httptest.NewRecorder()
		oci.WriteError(w, translate(w, fmt.Errorf("poison: %w", err)))
		if w.Code != want || strings.Contains(w.Body.String(), "poison") {
			t.Errorf("%v: %d, want %d: %s", err, w.Code, want, w.Body)
		}
		if retry := w.Header().Get("Retry-After"); want == 429 && retry == "" {
			t.Errorf("%v: no Retry-After", err)
		}
	}
}

// Would catch a refusal in the middle of a body that the client takes for something else.
func TestHTTPQuota(t *testing.T) {
	t.Parallel()
	var refusal error = &Refused{"no more"}
	r := newRig(t, newMemory(), func(c *Config) {
		c.Allow = func(context.Context, syntax.DID, int64) error { return refusal }
	})
	base := r.serve()
	at := URL(base, r.begin(alice).Secret)
	if said := r.exchange(at, exchange{method: "PATCH", body: "x", status: 403, code: oci.CodeDenied}); !strings.Contains(said, "no more") {
		t.Errorf("no reason: %s", said)
	}
	empty := "?digest=" + oci.FromBytes(nil).String()
	at = URL(base, r.begin(alice).Secret)
	refusal = errors.New("database")
	if said := r.exchange(at, exchange{method: "PUT", query: empty, status: 500, code: "UNKNOWN"}); strings.Contains(said, "database") {
		t.Errorf("%s", said)
	}
	refusal = nil
	r.exchange(at, exchange{method: "PUT", query: empty, status: 201})
}

// Would catch ranges misread, and a panic or overflow on what nobody should send.
func FuzzParseContentRange(f *testing.F) {
	for _, seed := range []string{"0-4", "5-9", "0--1", "bytes 0-4/10", "bytes 0-4/*", "4-0", "-", "0-", "-1-2", "9223372036854775807-9223372036854775807", "0-9223372036854775807", "+1-2", "1-2-3", "0x1-2", " 1-2"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, header string) {
		start, end, ok := parseContentRange(header)
		if !ok {
			return
		}
		if start < 0 || end < start-1 || end-start+1 < 0 {
			t.Fatalf("%q: %d to %d", header, start, end)
		}
		text := strings.TrimPrefix(header, "bytes ")
		text, _, _ = strings.Cut(text, "/")
		first, last, _ := strings.Cut(text, "-")
		a, errA := strconv.ParseInt(first, 10, 64)
		b, errB := strconv.ParseInt(last, 10, 64)
		if errA != nil || errB != nil || a != start || b != end {
			t.Fatalf("%q: %d to %d", header, start, end)
		}
	})
}

// Would catch a final PUT that takes longer the larger the blob is.
func TestFinalPutIsQuick(t *testing.T) {
	t.Parallel()
	m := newMemory()
	r := newRig(t, m, nil)
	s := r.begin(alice)
	data := noise(8<<20, 1)
	if _, err := r.Append(t.Context(), s.Secret, nil, bytes.NewReader(data)); err != nil {
		t.Fatal(err)
	}
	var after []string
	m.fault.set(func(step string) error {
		if name, ok := strings.CutPrefix(step, "before "); ok {
			after = append(after, name)
		}
		return nil
	})
	if _, err := r.Finish(t.Context(), s.Secret, oci.FromBytes(data), nil, nil); err != nil {
		t.Fatal(err)
	}
	for _, name := range after {
		if name == "open" || name == "stat" {
			t.Errorf("the final PUT reads: %v", after)
		}
	}
	if len(after) > 3 { // an empty write, the commit
		t.Errorf("the final PUT asks the storage for %v", after)
	}
}
