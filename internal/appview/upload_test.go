package appview

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"atcr.io/internal/oci"
	"atcr.io/internal/xrpc"
	"atcr.io/test/databases"
)

const startPath = "/v2/alice.test/app/blobs/uploads/"

// Would catch bytes that arrive out of order, an upload that is lost over a restart, and a blob that is
// readable though its digest was wrong.
func TestUploadInChunks(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	alice := n.as(n.alice, "alice.test/app")
	blob := bytes.Repeat([]byte("0123456789"), 1000)
	d := oci.FromBytes(blob)
	begun := alice.must(202, alice.do(http.MethodPost, startPath, nil))
	location := begun.header.Get("Location")
	if !strings.HasPrefix(location, startPath) || strings.Contains(location, "localhost") || begun.header.Get("Range") != "0-0" {
		t.Fatalf("%v", begun.header)
	}
	if got := alice.must(202, alice.do(http.MethodPatch, location, blob[:4000], "Content-Range", "0-3999")); got.header.Get("Range") != "0-3999" {
		t.Errorf("%v", got.header)
	}
	n.restart()
	for at, arrived := range map[string]string{"0-5999": "0-3999", "4001-10000": "0-3999", "9-1": "", "x": ""} {
		got := alice.do(http.MethodPatch, location, blob[4000:], "Content-Range", at)
		if got.status != 416 || got.header.Get("Range") != arrived || (got.header.Get("Location") == "") != (arrived == "") || got.code() != "BLOB_UPLOAD_INVALID" {
			t.Errorf("Content-Range %s: %d %v %s", at, got.status, got.header, got.body)
		}
	}
	if got := alice.must(204, alice.do(http.MethodGet, location, nil)); got.header.Get("Range") != "0-3999" {
		t.Errorf("status: %v", got.header)
	}
	location = alice.must(202, alice.do(http.MethodPatch, location, blob[4000:], "Content-Range", "4000-9999")).header.Get("Location")
	alice.must(201, alice.do(http.MethodPut, location+"?digest="+d.String(), nil))
	if got := alice.do(http.MethodPatch, location, []byte("x")); got.status != 404 || got.code() != "BLOB_UPLOAD_UNKNOWN" {
		t.Errorf("after the end: %d %s", got.status, got.body)
	}
	head := alice.must(200, alice.do(http.MethodHead, "/v2/alice.test/app/blobs/"+d.String(), nil))
	if head.header.Get("Content-Length") != "10000" {
		t.Errorf("%v", head.header)
	}
	wrong := oci.FromBytes([]byte("other"))
	location = alice.must(202, alice.do(http.MethodPost, startPath, nil)).header.Get("Location")
	if got := alice.do(http.MethodPut, location+"?digest="+wrong.String(), blob); got.status != 400 || got.code() != "DIGEST_INVALID" {
		t.Errorf("wrong digest: %d %s", got.status, got.body)
	}
	for _, method := range []string{http.MethodHead, http.MethodGet} {
		if got := alice.do(method, "/v2/alice.test/app/blobs/"+wrong.String(), nil); got.status != 404 {
			t.Errorf("%s of a refused blob: %d", method, got.status)
		}
	}
	location = alice.must(202, alice.do(http.MethodPost, startPath, nil)).header.Get("Location")
	alice.must(204, alice.do(http.MethodDelete, location, nil))
	if got := alice.do(http.MethodGet, location, nil); got.status != 404 {
		t.Errorf("cancelled: %d", got.status)
	}
	small := []byte("all at once")
	alice.must(201, alice.do(http.MethodPost, startPath+"?digest="+oci.FromBytes(small).String(), small))
}

// Would catch a Location that somebody else, or another repository, can go on with.
func TestUploadsOfOthers(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	alice := n.as(n.alice, "alice.test/app", "alice.test/other")
	location := alice.must(202, alice.do(http.MethodPost, startPath, nil)).header.Get("Location")
	id := strings.TrimPrefix(location, startPath)
	for what, got := range map[string]answer{
		"another person":     n.as(n.bob, "bob.test/app").do(http.MethodGet, "/v2/bob.test/app/blobs/uploads/"+id, nil),
		"another repository": alice.do(http.MethodGet, "/v2/alice.test/other/blobs/uploads/"+id, nil),
		"a changed id":       alice.do(http.MethodPatch, startPath+id[:len(id)-6]+"AAAAAA", []byte("x")),
		"no id":              alice.do(http.MethodPut, startPath+"abc?digest="+oci.FromBytes(nil).String(), nil),
	} {
		if got.status != 404 || got.code() != "BLOB_UPLOAD_UNKNOWN" {
			t.Errorf("%s: %d %s", what, got.status, got.body)
		}
	}
	if got := n.nobody().do(http.MethodPatch, location, []byte("x")); got.status != 401 {
		t.Errorf("nobody: %d", got.status)
	}
	n.ahead.Add(int64(uploadLifetime + time.Minute))
	if got := alice.do(http.MethodGet, location, nil); got.status != 404 {
		t.Errorf("a day later: %d", got.status)
	}
}

// Would catch a client that sends its token to the hold, or bytes that pass here although they need not.
func TestDirectUploads(t *testing.T) {
	t.Parallel()
	for setting, direct := range map[string]map[string]bool{
		"auto":   {"containerd/2.1": true, "docker/28.0": false, "": false},
		"always": {"docker/28.0": true, "containers/5.23.1 (github.com/containers/image)": false, "Buildah/1.28.2": false, "oras/1.3.6": false, "Helm/3.22.0": false},
		"never":  {"containerd/2.1": false},
	} {
		n := newNetwork(t, "ATCR_DIRECT_UPLOADS="+setting)
		alice := n.as(n.alice, "alice.test/app")
		for agent, want := range direct {
			blob := []byte(setting + agent)
			d := oci.FromBytes(blob)
			got := alice.must(202, alice.do(http.MethodPost, startPath, nil, "User-Agent", agent))
			location := got.header.Get("Location")
			if strings.HasPrefix(location, n.public.url+"/u/") != want {
				t.Errorf("%s, %q: %s", setting, agent, location)
			}
			if !want {
				continue
			}
			put := request(t, http.MethodPut, location+"?digest="+d.String(), blob)
			if put.status != 201 || put.header.Get("Location") != n.base+"/v2/alice.test/app/blobs/"+d.String() {
				t.Errorf("%d %v %s", put.status, put.header, put.body)
			}
			// Nobody told the AppView: its owner finds it all the same.
			redirect := alice.must(307, alice.do(http.MethodGet, put.header.Get("Location"), nil))
			if b := request(t, http.MethodGet, redirect.header.Get("Location"), nil); b.body != string(blob) {
				t.Errorf("%d %q", b.status, b.body)
			}
		}
	}
	targets, err := newTargets("https://atcr.test", false, nil, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	u := &uploads{baseURL: "https://atcr.test", direct: directAlways, calls: &holdCalls{targets: targets}}
	for target, want := range map[string]bool{
		"https://hold.test/u/x": true, "http://hold.test/u/x": false, "https://atcr.test:8443/u/x": false, "https://hold.atcr.test/u/x": false,
		"https://ATCR.test./u/x": false, "https://notatcr.test/u/x": true,
	} {
		if u.goesDirect("containerd/2", target) != want {
			t.Errorf("%s: %v", target, !want)
		}
	}
}

// Would catch a blob that went straight to the hold and is not there for its owner, or not again after it was deleted.
func TestDirectUploadsAreSeen(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	alice := n.as(n.alice, "alice.test/app")
	blob := []byte("straight to the hold")
	path := "/v2/alice.test/app/blobs/" + oci.FromBytes(blob).String()
	begin := func() string {
		return alice.must(202, alice.do(http.MethodPost, startPath, nil, "User-Agent", "containerd/2.1")).header.Get("Location")
	}
	location := begin()
	if got := request(t, http.MethodPut, location+"?digest="+oci.FromBytes(blob).String(), blob); got.status != 201 || !strings.HasPrefix(location, n.public.url) {
		t.Fatalf("%s: %d %s", location, got.status, got.body)
	}
	n.nobody().must(401, n.nobody().do(http.MethodGet, path, nil)) // it may be theirs
	reader := n.withScope(n.alice.Handle+":"+n.alice.AppPassword, "repository:alice.test/app:pull")
	reader.must(307, reader.do(http.MethodGet, path, nil))
	reader.must(200, reader.do(http.MethodHead, path, nil))
	alice.must(202, alice.do(http.MethodDelete, path, nil))
	reader.must(404, reader.do(http.MethodGet, path, nil))
	if location = begin(); !strings.HasPrefix(location, startPath) {
		t.Fatalf("nobody will tell that it came again: %s", location)
	}
	alice.must(201, alice.do(http.MethodPut, location+"?digest="+oci.FromBytes(blob).String(), blob))
	n.nobody().must(307, n.nobody().do(http.MethodGet, path, nil))
}

// Would catch a mount that gives a blob to who may not read it, or that fails where an upload would do.
func TestMount(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	alice := n.as(n.alice, "alice.test/one", "alice.test/two")
	image := newImage("one")
	alice.push("alice.test/one", image, "1.0")
	d := oci.FromBytes(image.layer).String()
	mount := func(u user, name, from string) answer {
		return u.do(http.MethodPost, "/v2/"+name+"/blobs/uploads/?mount="+d+"&from="+from, nil)
	}
	if got := mount(alice, "alice.test/two", "alice.test/one"); got.status != 201 || got.header.Get("Docker-Content-Digest") != d {
		t.Errorf("%d %s", got.status, got.body)
	}
	if got := mount(alice, "alice.test/two", ""); got.status != 201 {
		t.Errorf("from anywhere: %d", got.status)
	}
	for _, from := range []string{"alice.test/none", "carol.test/x"} {
		if got := mount(alice, "alice.test/two", from); got.status != 202 || got.header.Get("Location") == "" {
			t.Errorf("from %s: %d", from, got.status)
		}
	}
	n.useHold(n.bob, n.private.did) // another hold than the blob's
	if got := mount(n.as(n.bob, "bob.test/app"), "bob.test/app", "alice.test/one"); got.status != 202 {
		t.Errorf("across holds: %d", got.status)
	}
}

// strangeHold makes a hold one by somebody else: without uploadUrl, and with tokens for its bare DID alone.
func strangeHold(h *testHold) {
	h.misbehave(func(w http.ResponseWriter, r *http.Request, next http.Handler) bool {
		if token := xrpc.BearerToken(r); token != "" {
			raw, err := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[1])
			if err != nil || bytes.Contains(raw, []byte("#atcr_hold")) {
				xrpc.WriteError(w, xrpc.Errorf(401, "BadJwtAudience", "aud is another"))
				return true
			}
		}
		if !strings.HasSuffix(r.URL.Path, "io.atcr.hold.initiateUpload") {
			return false
		}
		rec := &recorder{header: http.Header{}}
		next.ServeHTTP(rec, r)
		var out map[string]any
		if json.Unmarshal(rec.body.Bytes(), &out) == nil {
			delete(out, "uploadUrl")
		}
		xrpc.WriteJSON(w, rec.status, out)
		return true
	})
}

type recorder struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (r *recorder) Header() http.Header { return r.header }

func (r *recorder) WriteHeader(status int) { r.status = status }

func (r *recorder) Write(p []byte) (int, error) { return r.body.Write(p) }

// Would catch an AppView that works with our own holds alone.
func TestHoldOfSomebodyElse(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	strangeHold(n.public)
	alice := n.as(n.alice, "alice.test/app")
	image := newImage("one")
	alice.push("alice.test/app", image, "1.0")
	n.nobody().pull("alice.test/app", "1.0", image)

	large := bytes.Repeat([]byte("0123456789abcdef"), (2*partBytes+4096)/16)
	d := oci.FromBytes(large)
	location := alice.must(202, alice.do(http.MethodPost, startPath, nil)).header.Get("Location")
	first := partBytes + 100
	if got := alice.must(202, alice.do(http.MethodPatch, location, large[:first])); got.header.Get("Range") != "0-8388707" {
		t.Errorf("%v", got.header)
	}
	if got := alice.do(http.MethodPatch, location, large[:10], "Content-Range", "0-9"); got.status != 416 || got.header.Get("Range") != "0-8388707" {
		t.Errorf("out of order: %d %v", got.status, got.header)
	}
	alice.must(204, alice.do(http.MethodGet, location, nil))
	alice.must(201, alice.do(http.MethodPut, location+"?digest="+d.String(), large[first:]))
	head := alice.must(200, alice.do(http.MethodHead, "/v2/alice.test/app/blobs/"+d.String(), nil))
	if head.header.Get("Content-Length") != "16781312" {
		t.Errorf("%v", head.header)
	}
	if got := alice.do(http.MethodPut, location+"?digest="+d.String(), nil); got.status != 404 {
		t.Errorf("after the end: %d %s", got.status, got.body)
	}

	alice.upload("alice.test/app", nil) // a blob of no bytes
	location = alice.must(202, alice.do(http.MethodPost, startPath, nil)).header.Get("Location")
	if got := alice.do(http.MethodPut, location+"?digest="+oci.FromBytes([]byte("x")).String(), []byte("y")); got.status != 400 || got.code() != "DIGEST_INVALID" {
		t.Errorf("wrong digest: %d %s", got.status, got.body)
	}
	location = alice.must(202, alice.do(http.MethodPost, startPath, nil)).header.Get("Location")
	alice.must(204, alice.do(http.MethodDelete, location, nil))
	if got := alice.do(http.MethodPatch, location, []byte("y")); got.status != 404 {
		t.Errorf("cancelled: %d", got.status)
	}
}

// Would catch bytes of abandoned uploads that stay, and more than there is room for.
func TestPartsAreBounded(t *testing.T) {
	t.Parallel()
	databases.Each(t, testPartsAreBounded)
}

func testPartsAreBounded(t *testing.T, d databases.Database) {
	ctx, now := t.Context(), time.Now()
	p, err := openPartStore(ctx, d.Open(t), func() time.Time { return now })
	if err != nil {
		t.Fatal(err)
	}
	at := ticket{Hold: "did:web:hold.test", Subject: "did:plc:a"}
	open := func(id string) (ticket, *partUpload) {
		t.Helper()
		at.UploadID = id
		if err := p.begin(ctx, "did:plc:a", at.Hold, id); err != nil {
			t.Fatal(err)
		}
		u, err := p.find(ctx, at)
		if err != nil {
			t.Fatal(err)
		}
		return at, u
	}
	one, u := open("one")
	if err := p.begin(ctx, "did:plc:b", at.Hold, "one"); err == nil || oci.AsError(err).HTTPStatus() != 502 {
		t.Errorf("one id for two people: %v", err)
	}
	if err := p.keep(ctx, one, u, make([]byte, tailBytes)); err != nil {
		t.Fatal(err)
	}
	two, v := open("two")
	if err := p.keep(ctx, two, v, make([]byte, 1)); oci.AsError(err).Code != oci.CodeTooManyRequests {
		t.Errorf("over the limit: %v", err)
	}
	if err := p.keep(ctx, one, u, nil); err != nil {
		t.Error(err)
	}
	late := *v
	if err := p.keep(ctx, two, v, make([]byte, 100)); err != nil {
		t.Error(err)
	}
	if err := p.keep(ctx, two, &late, make([]byte, 50)); oci.AsError(err).Code != oci.CodeTooManyRequests || v.offset() != 100 {
		t.Errorf("two requests write to one upload: %v, %+v", err, v)
	}
	now = now.Add(partsIdle + time.Minute)
	open("three")
	if _, err := p.find(ctx, two); err == nil {
		t.Error("an idle upload is kept")
	}
	var left int
	if err := p.db.Reader().QueryRowContext(ctx, `SELECT count(*) FROM part_upload`).Scan(&left); err != nil || left != 1 {
		t.Errorf("%d uploads are left, %v", left, err)
	}
	for i := range openOwn {
		if err := p.begin(ctx, "did:plc:a", at.Hold, strings.Repeat("x", i+1)); err != nil {
			return
		}
	}
	t.Error("uploads without end")
}

// Would catch a sealed Location that can be read, forged, or used for something else.
func TestSealer(t *testing.T) {
	t.Parallel()
	now := time.Now()
	s, err := newSealer([][]byte{bytes.Repeat([]byte{1}, 32)}, func() time.Time { return now })
	if err != nil {
		t.Fatal(err)
	}
	in := ticket{URL: "https://hold.test/u/secret", Hold: "did:web:hold.test", Subject: "did:plc:a", Repository: "app", Expires: now.Add(time.Hour).Unix()}
	id, err := s.seal(in)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := s.open(id, "did:plc:a", "app"); err != nil || got != in {
		t.Errorf("%+v, %v", got, err)
	}
	if raw, err := base64.RawURLEncoding.DecodeString(id); err != nil || bytes.Contains(raw, []byte("secret")) {
		t.Error("the hold's URL can be read")
	}
	for i := range id {
		changed := []byte(id)
		changed[i] ^= 1
		if _, err := s.open(string(changed), "did:plc:a", "app"); err == nil {
			t.Fatalf("opened with byte %d changed", i)
		}
	}
	other, err := newSealer([][]byte{bytes.Repeat([]byte{2}, 32)}, s.now)
	if err != nil {
		t.Fatal(err)
	}
	for what, open := range map[string]func() (ticket, error){
		"another subject":    func() (ticket, error) { return s.open(id, "did:plc:b", "app") },
		"another repository": func() (ticket, error) { return s.open(id, "did:plc:a", "ap") },
		"another secret":     func() (ticket, error) { return other.open(id, "did:plc:a", "app") },
		"empty":              func() (ticket, error) { return s.open("", "", "") },
		"short":              func() (ticket, error) { return s.open("AAAA", "", "") },
	} {
		if got, err := open(); !errors.Is(err, errTicket) || got != (ticket{}) {
			t.Errorf("%s: %+v, %v", what, got, err)
		}
	}
	now = now.Add(2 * time.Hour)
	if _, err := s.open(id, "did:plc:a", "app"); err == nil {
		t.Error("opened after its end")
	}
}

// Would catch a client that breaks off and is told that the hold did.
func TestBrokenOff(t *testing.T) {
	t.Parallel()
	body := &sentBody{from: io.MultiReader(strings.NewReader("abc"), errReader{})}
	if _, err := io.ReadAll(body); err == nil || body.failure() == nil {
		t.Fatal("not remembered")
	}
	e := oci.AsError((&relay{}).failed(t.Context(), &ticket{Hold: "did:web:hold.test"}, body, errors.New("write: broken pipe")))
	if e.Code != oci.CodeBlobUploadInvalid || e.HTTPStatus() != 400 {
		t.Errorf("%v", e)
	}
	e = oci.AsError((&relay{}).failed(t.Context(), &ticket{Hold: "did:web:hold.test"}, &sentBody{}, errors.New("refused")))
	if e.HTTPStatus() != 503 || !strings.Contains(e.Message, "did:web:hold.test") {
		t.Errorf("%v", e)
	}
}

// pieces gives one piece a Read, after a wait.
type pieces struct {
	left [][]byte
	wait time.Duration
}

func (p *pieces) Read(b []byte) (int, error) {
	if len(p.left) == 0 {
		return 0, io.EOF
	}
	time.Sleep(p.wait) // in a synctest bubble: no real time passes
	n := copy(b, p.left[0])
	p.left = p.left[1:]
	return n, nil
}

type writes [][]byte

func (w *writes) Write(p []byte) (int, error) {
	*w = append(*w, bytes.Clone(p))
	return len(p), nil
}

// Would catch bytes of a slow sender that are held back until the hold gives it up, and those of a fast one
// that go on as small as they came.
func TestSentBodyPieces(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		wait time.Duration
		want int // writes
	}{"fast": {0, 1}, "slow": {time.Second, 4}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				from := &pieces{left: [][]byte{[]byte("ab"), []byte("c"), []byte("de"), []byte("f")}, wait: test.wait}
				var got writes
				n, err := (&sentBody{from: from}).WriteTo(&got)
				if n != 6 || err != nil || string(bytes.Join(got, nil)) != "abcdef" {
					t.Fatalf("%d bytes %q, %v", n, got, err)
				}
				if len(got) != test.want {
					t.Errorf("%d writes, want %d: %q", len(got), test.want, got)
				}
			})
		})
	}
	var got writes
	body := &sentBody{from: io.MultiReader(strings.NewReader("abc"), errReader{})}
	if n, err := body.WriteTo(&got); n != 3 || err == nil || body.failure() == nil {
		t.Errorf("a sender that breaks off: %d, %v, %v", n, err, body.failure())
	}
}

type errReader struct{}

func (errReader) Read([]byte) (int, error) { return 0, errors.New("reset by peer") }
