package registry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"atcr.io/internal/httpx"
	"atcr.io/internal/oci"
)

// memory is a registry in memory: all four interfaces, with faults.
type memory struct {
	mu        sync.Mutex
	manifests map[string]Manifest // by name@digest and name:tag
	subjects  map[oci.Digest][]oci.Descriptor
	blobs     map[oci.Digest][]byte
	uploads   map[string][]byte
	fault     error // returned by everything but Authorize
	asked     []Action
	calls     int
	through   func(header http.Header) (*http.Response, error)
}

func newMemory() *memory {
	return &memory{
		manifests: map[string]Manifest{}, subjects: map[oci.Digest][]oci.Descriptor{}, blobs: map[oci.Digest][]byte{}, uploads: map[string][]byte{},
	}
}

// Authorize takes "Bearer <actions, comma-separated>".
func (m *memory) Authorize(r *http.Request, _ oci.Name, action Action) (Caller, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.asked = append(m.asked, action)
	granted := strings.Split(strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer "), ",")
	if r.Header.Get("Authorization") != "" && (action == "" || slices.Contains(granted, string(action))) {
		return Caller{Subject: "did:plc:alice", Push: slices.Contains(granted, "push")}, nil
	}
	return Caller{}, oci.Errorf(oci.CodeUnauthorized, "log in")
}

func (m *memory) Challenge(name oci.Name, action Action, _ error) string {
	return `Bearer scope="` + name.String() + ":" + string(action) + `"`
}

func (m *memory) Get(_ context.Context, _ Caller, name oci.Name, reference oci.Reference) (Manifest, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.calls++
	got, ok := m.manifests[name.String()+" "+reference.String()]
	if m.fault != nil {
		return got, m.fault
	}
	if !ok {
		return got, oci.Errorf(oci.CodeManifestUnknown, "no %s", reference)
	}
	return got, nil
}

func (m *memory) Put(_ context.Context, _ Caller, name oci.Name, man Manifest, parsed *oci.Manifest, tags []string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.calls++
	for _, reference := range append(slices.Clone(tags), man.Digest.String()) {
		m.manifests[name.String()+" "+reference] = man
	}
	if parsed.Subject != nil {
		d := oci.Descriptor{MediaType: man.MediaType, Digest: man.Digest, Size: int64(len(man.Bytes)), ArtifactType: parsed.ArtifactType}
		m.subjects[parsed.Subject.Digest] = append(m.subjects[parsed.Subject.Digest], d)
	}
	return m.fault
}

func (m *memory) Delete(_ context.Context, _ Caller, name oci.Name, reference oci.Reference) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.manifests, name.String()+" "+reference.String())
	return m.fault
}

func (m *memory) Tags(_ context.Context, _ Caller, _ oci.Name, last string, _ int) ([]string, error) {
	return slices.DeleteFunc([]string{"a", "b", "c", "d"}, func(tag string) bool { return tag <= last }), m.fault
}

func (m *memory) Referrers(_ context.Context, _ Caller, _ oci.Name, d oci.Digest) ([]oci.Descriptor, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.subjects[d], m.fault
}

func (m *memory) Stat(_ context.Context, _ Caller, _ oci.Name, d oci.Digest) (int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fault != nil {
		return 0, m.fault
	}
	b, ok := m.blobs[d]
	if !ok {
		return 0, oci.Errorf(oci.CodeBlobUnknown, "no %s", d)
	}
	return int64(len(b)), nil
}

func (m *memory) Locate(ctx context.Context, c Caller, name oci.Name, d oci.Digest) (Place, error) {
	if _, err := m.Stat(ctx, c, name, d); err != nil {
		return Place{}, err
	}
	return Place{URL: "https://hold.test/" + d.Hex(), Through: m.through != nil}, nil
}

func (m *memory) Fetch(_ context.Context, _ Place, header http.Header) (*http.Response, error) {
	return m.through(header)
}

func (m *memory) DeleteBlob(ctx context.Context, c Caller, name oci.Name, d oci.Digest) error {
	if _, err := m.Stat(ctx, c, name, d); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.blobs, d)
	return nil
}

func (m *memory) Begin(_ context.Context, _ Caller, name oci.Name, o BeginOptions) (Upload, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	id := "u" + strconv.Itoa(len(m.uploads)) + o.Algorithm
	m.uploads[id] = nil
	return m.standing(name, id), m.fault
}

func (m *memory) standing(name oci.Name, id string) Upload {
	return Upload{
		Location: "/v2/" + name.String() + "/blobs/uploads/" + id,
		Range:    "0-" + strconv.Itoa(max(len(m.uploads[id])-1, 0)),
	}
}

func (m *memory) Mount(_ context.Context, _ Caller, _, _ oci.Name, d oci.Digest) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.blobs[d] != nil, m.fault
}

func (m *memory) Append(_ context.Context, _ Caller, name oci.Name, id string, chunk Chunk) (Upload, error) {
	raw, err := io.ReadAll(chunk.Body)
	if err != nil {
		return Upload{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if start, _, ok := strings.Cut(chunk.ContentRange, "-"); ok && start != strconv.Itoa(len(m.uploads[id])) {
		return Upload{}, &RangeError{Upload: m.standing(name, id), Err: &oci.Error{Code: oci.CodeBlobUploadInvalid, Status: 416, Message: "out of order"}}
	}
	m.uploads[id] = append(m.uploads[id], raw...)
	return m.standing(name, id), m.fault
}

func (m *memory) Status(_ context.Context, _ Caller, name oci.Name, id string) (Upload, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.standing(name, id), m.fault
}

func (m *memory) Finish(_ context.Context, _ Caller, _ oci.Name, id string, d oci.Digest, chunk Chunk) error {
	raw, err := io.ReadAll(chunk.Body)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	all := append(m.uploads[id], raw...)
	if !d.Matches(all) {
		return oci.Errorf(oci.CodeDigestInvalid, "other bytes")
	}
	m.blobs[d] = all
	return m.fault
}

func (m *memory) Cancel(_ context.Context, _ Caller, _ oci.Name, id string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.uploads, id)
	return m.fault
}

func newServer(t *testing.T) (*memory, *httptest.Server) {
	t.Helper()
	m := newMemory()
	s := httptest.NewServer(New(Config{
		Authorizer: m, Manifests: m, Blobs: m, Uploads: m, Adapter: &httpx.Adapter{Logger: slog.New(slog.DiscardHandler)},
	}))
	t.Cleanup(s.Close)
	return m, s
}

// send is a request with all access; headers are pairs.
func send(t *testing.T, s *httptest.Server, method, path string, body []byte, header ...string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, s.URL+path, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer pull,push,delete")
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	res, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := io.ReadAll(res.Body)
	if err := errors.Join(err, res.Body.Close()); err != nil {
		t.Fatal(err)
	}
	return res, string(raw)
}

func codeOf(body string) string {
	var e struct{ Errors []struct{ Code string } }
	if json.Unmarshal([]byte(body), &e) != nil || len(e.Errors) != 1 {
		return ""
	}
	return e.Errors[0].Code
}

const imageType = oci.MediaTypeImageManifest

var image = []byte(`{"schemaVersion":2,"config":{"mediaType":"application/x","digest":"sha256:` + hex64 + `","size":0},"layers":[]}`)

// Would catch bytes or types that are not what was pushed, and headers that clients need on HEAD.
func TestManifest(t *testing.T) {
	t.Parallel()
	_, s := newServer(t)
	d := oci.FromBytes(image)
	res, body := send(t, s, http.MethodPut, "/v2/alice.test/app/manifests/1.0", image, "Content-Type", imageType+"; charset=utf-8")
	if res.StatusCode != http.StatusCreated || res.Header.Get("Docker-Content-Digest") != d.String() ||
		res.Header.Get("Location") != "/v2/alice.test/app/manifests/"+d.String() {
		t.Fatalf("PUT: %s %v %s", res.Status, res.Header, body)
	}
	for _, reference := range []string{"1.0", d.String()} {
		for _, method := range []string{http.MethodGet, http.MethodHead} {
			res, body := send(t, s, method, "/v2/alice.test/app/manifests/"+reference, nil)
			if res.StatusCode != http.StatusOK || res.ContentLength != int64(len(image)) || res.Header.Get("Content-Type") != imageType ||
				res.Header.Get("Docker-Content-Digest") != d.String() || method == http.MethodGet && body != string(image) {
				t.Errorf("%s %s: %s %v", method, reference, res.Status, res.Header)
			}
		}
	}
	for has, want := range map[string]int{
		`"` + d.String() + `"`: 304, `W/"` + d.String() + `"`: 304, `"old", "` + d.String() + `"`: 304, "*": 304,
		d.String(): 200, `"old"`: 200, `"old", W/"older"`: 200,
	} {
		if res, _ := send(t, s, http.MethodGet, "/v2/alice.test/app/manifests/1.0", nil, "If-None-Match", has); res.StatusCode != want {
			t.Errorf("If-None-Match: %s: %s", has, res.Status)
		}
	}
	res, _ = send(t, s, http.MethodDelete, "/v2/alice.test/app/manifests/1.0", nil)
	if res.StatusCode != http.StatusAccepted {
		t.Errorf("DELETE: %s", res.Status)
	}
	if res, body := send(t, s, http.MethodGet, "/v2/alice.test/app/manifests/1.0", nil); res.StatusCode != 404 || codeOf(body) != "MANIFEST_UNKNOWN" {
		t.Errorf("after DELETE: %s %s", res.Status, body)
	}
	res, _ = send(t, s, http.MethodPut, "/v2/alice.test/app/manifests/"+d.String()+"?tag=x&tag=y&tag=x", image, "Content-Type", imageType)
	if got := res.Header.Values("OCI-Tag"); res.StatusCode != http.StatusCreated || !slices.Equal(got, []string{"x", "y"}) {
		t.Errorf("PUT ?tag=: %s %q", res.Status, got)
	}
}

// Would catch manifests that are kept although they are wrong, or could run as a page on this host.
func TestBadManifests(t *testing.T) {
	t.Parallel()
	m, s := newServer(t)
	deep := []byte(strings.Repeat(`{"a":`, 100) + "1" + strings.Repeat("}", 100))
	for _, tt := range []struct {
		what, reference, mediaType string
		body                       []byte
		status                     int
		code                       string
	}{
		{"no JSON", "x", imageType, []byte("hello"), 400, "MANIFEST_INVALID"},
		{"truncated", "x", imageType, image[:len(image)-5], 400, "MANIFEST_INVALID"},
		{"empty", "x", imageType, nil, 400, "MANIFEST_INVALID"},
		{"a list", "x", imageType, []byte(`[]`), 400, "MANIFEST_INVALID"},
		{"no UTF-8", "x", imageType, []byte("{\"a\":\"\xff\"}"), 400, "MANIFEST_INVALID"},
		{"nested deep", "x", imageType, deep, 400, "MANIFEST_INVALID"},
		{"schema 1", "x", imageType, []byte(`{"schemaVersion":1}`), 400, "MANIFEST_INVALID"},
		{"a page", "x", "text/html", image, 400, "MANIFEST_INVALID"},
		{"a picture", "x", "image/svg+xml", image, 400, "MANIFEST_INVALID"},
		{"no type", "x", "", image, 400, "MANIFEST_INVALID"},
		{"two types", "x", imageType + ", text/html", image, 400, "MANIFEST_INVALID"},
		{"another digest", "sha256:" + hex64, imageType, image, 400, "DIGEST_INVALID"},
		{"a short digest", "sha256:abc", imageType, image, 400, "DIGEST_INVALID"},
		{"a digest in capitals", "sha256:" + strings.ToUpper(hex64), imageType, image, 400, "DIGEST_INVALID"},
		{"md5", "md5:" + hex64[:32], imageType, image, 400, "DIGEST_INVALID"},
		{"a bad tag", "-x", imageType, image, 400, "MANIFEST_INVALID"},
		{"a bad tag parameter", "sha256:" + oci.FromBytes(image).Hex() + "?tag=-x", imageType, image, 400, "MANIFEST_INVALID"},
		{"too large", "x", imageType, bytes.Repeat([]byte(" "), oci.MaxManifestBytes+1), 413, "SIZE_INVALID"},
	} {
		res, body := send(t, s, http.MethodPut, "/v2/alice.test/app/manifests/"+tt.reference, tt.body, "Content-Type", tt.mediaType)
		if res.StatusCode != tt.status || codeOf(body) != tt.code {
			t.Errorf("%s: %s %s, want %d %s", tt.what, res.Status, body, tt.status, tt.code)
		}
	}
	if m.calls != 0 {
		t.Errorf("%d bad manifests were passed on", m.calls)
	}
	// A type that nobody knows is kept as it is.
	other := []byte("\x00opaque")
	if res, body := send(t, s, http.MethodPut, "/v2/alice.test/app/manifests/x", other, "Content-Type", "application/vnd.other"); res.StatusCode != http.StatusCreated {
		t.Errorf("unknown type: %s %s", res.Status, body)
	}
	if res, body := send(t, s, http.MethodGet, "/v2/alice.test/app/manifests/x", nil); body != string(other) || res.Header.Get("Content-Type") != "application/vnd.other" {
		t.Errorf("unknown type came back as %q %q", res.Header.Get("Content-Type"), body)
	}
}

// Would catch a manifest of unknown length that is read without a limit.
func TestEndlessManifest(t *testing.T) {
	t.Parallel()
	_, s := newServer(t)
	endless := io.LimitReader(spaces{}, 1<<40)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, s.URL+"/v2/alice.test/app/manifests/x", endless)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer push")
	req.Header.Set("Content-Type", imageType)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return // the server cut the connection before its answer was read: as good
	}
	_ = res.Body.Close()
	if res.StatusCode != http.StatusRequestEntityTooLarge {
		t.Errorf("%s", res.Status)
	}
}

type spaces struct{}

func (spaces) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = ' '
	}
	return len(p), nil
}
