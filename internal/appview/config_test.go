package appview

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"atcr.io/api/atcr"
	"atcr.io/internal/envconf"
	"atcr.io/internal/identity"
	"atcr.io/internal/oci"
	"atcr.io/internal/registry"
)

// Would catch settings that start something unsafe, and problems told one at a time.
func TestConfig(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	good := []string{"ATCR_DEFAULT_HOLD_DID=did:web:hold.example.com", "ATCR_DATABASE_DIR=" + dir}
	for _, tt := range []struct {
		set  []string
		want []string // parts of the problems; none: it is fine
	}{
		{nil, nil},
		{[]string{"ATCR_BASE_URL=https://atcr.example.com/"}, nil},
		{[]string{"ATCR_BASE_URL=http://127.0.0.1:5000"}, nil},
		{[]string{"ATCR_BASE_URL=http://atcr.internal", "TEST_MODE=true"}, nil},
		{[]string{"ATCR_DEFAULT_HOLD_DID=https://hold.example.com"}, nil},
		{[]string{"ATCR_TRUSTED_PROXIES=10.0.0.0/8, 192.0.2.1,::1"}, nil},
		{[]string{"ATCR_SERVICE_HOST=10.0.0.1", "ATCR_PORT_5000_TCP=x"}, nil}, // Kubernetes puts these
		{[]string{"ATCR_BASE_URL=http://atcr.example.com"}, []string{"use https"}},
		{[]string{"ATCR_BASE_URL=https://atcr.example.com", "TEST_MODE=true"}, []string{"TEST_MODE must not be set"}},
		{[]string{"ATCR_BASE_URL=http://atcr.example.com", "TEST_MODE=true"}, []string{"TEST_MODE must not be set"}},
		{[]string{"ATCR_BASE_URL=https://user:pw@atcr.example.com/x"}, []string{"ATCR_BASE_URL"}},
		{[]string{"ATCR_DEFAULT_HOLD_DID="}, []string{"ATCR_DEFAULT_HOLD_DID is required"}},
		{[]string{"ATCR_DEFAULT_HOLD_DID=hold"}, []string{"neither a DID nor a URL"}},
		{[]string{"ATCR_DEFAULT_HOLD_DID=did:x"}, []string{"not a DID"}},
		{[]string{"ATCR_DATABASE_DIR=" + file}, []string{"is a file"}},
		{[]string{"ATCR_DATABASE_DIR="}, []string{"is empty"}},
		{[]string{"ATCR_TOKEN_EXPIRATION=5"}, []string{"between 60s and 1h"}},
		{[]string{"ATCR_DIRECT_UPLOADS=maybe", "ATCR_LOG_LEVEL=loud", "ATCR_HTTP_ADDR=5000", "ATCR_TRUSTED_PROXIES=proxy", "ATCR_PLC_URL=plc", "ATCR_HANDLE_RESOLVER_URL=x"},
			[]string{"auto, always or never", "debug, info", "host:port", "neither an address", "ATCR_PLC_URL", "ATCR_HANDLE_RESOLVER_URL"}},
		{[]string{"ATCR_BASEURL=https://x.example.com"}, []string{"did you mean ATCR_BASE_URL"}},
		{[]string{`ATCR_SERVICE_NAME=a"b`}, []string{"ATCR_SERVICE_NAME"}},
		{[]string{"ATCR_DATABASE_URL=postgres://me:secretword@db.example.com/atcr"}, nil},
		{[]string{"ATCR_DATABASE_URL=mysql://me:secretword@db.example.com/atcr"}, []string{"ATCR_DATABASE_URL: is no URL like postgres://"}},
	} {
		var c Config
		err := envconf.Load(append(append([]string(nil), good...), tt.set...), Prefix, &c)
		if (err == nil) != (tt.want == nil) {
			t.Errorf("%q: %v", tt.set, err)
		}
		for _, part := range tt.want {
			if err != nil && !strings.Contains(err.Error(), part) {
				t.Errorf("%q: no %q in %v", tt.set, part, err)
			}
		}
		if shown := envconf.Effective(c); strings.Contains(shown, "secretword") || err != nil && strings.Contains(err.Error(), "secretword") {
			t.Errorf("%q: a password is shown: %v\n%s", tt.set, err, shown)
		}
		if err == nil && (c.ServiceName == "" || strings.HasSuffix(c.BaseURL, "/") || !strings.HasPrefix(c.DefaultHoldDID, "did:web:hold.example.com") || c.SecretKeyFile == "") {
			t.Errorf("%q: %+v", tt.set, c)
		}
	}
}

// Would catch hold addresses that mean another hold.
func TestHoldDID(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"did:web:h.example": "did:web:h.example", "did:plc:z72i7hdynmk6r22z27h6tvur": "did:plc:z72i7hdynmk6r22z27h6tvur",
		"https://h.example": "did:web:h.example", "https://H.example/": "did:web:h.example", "http://localhost:8080": "did:web:localhost%3A8080",
		"h.example": "", "https://h.example/path": "", "https://u@h.example": "", "": "", "did:": "",
	} {
		got, err := holdDID(in)
		if got.String() != want || (err != nil) != (want == "") {
			t.Errorf("%q: %q, %v", in, got, err)
		}
	}
}

// Would catch a secret that is made anew over an old one, readable by others, or two of them in a race.
func TestSecret(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "new", "secret.key")
	secrets := make([][]byte, 8)
	var wg sync.WaitGroup
	for i := range secrets {
		wg.Go(func() {
			var err error
			if secrets[i], err = firstSecret(path); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, s := range secrets {
		if !bytes.Equal(s, secrets[0]) || len(s) != secretBytes {
			t.Fatal("processes have different secrets")
		}
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if entries, err := os.ReadDir(filepath.Dir(path)); err != nil || len(entries) != 1 {
		t.Errorf("%v, %v", entries, err)
	}
	if err := os.WriteFile(path, []byte("short"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := loadSecrets(path); err == nil || strings.Contains(err.Error(), "short") && !strings.Contains(err.Error(), "does not hold") {
		t.Errorf("a damaged secret: %v", err)
	}
}

// Would catch a client that chooses its own address, and so its own limits.
func TestClientAddress(t *testing.T) {
	t.Parallel()
	var c Config
	err := envconf.Load([]string{"ATCR_DEFAULT_HOLD_DID=did:web:h.example", "ATCR_DATABASE_DIR=" + t.TempDir(), "ATCR_TRUSTED_PROXIES=10.0.0.0/8,2001:db8::1"}, Prefix, &c)
	if err != nil {
		t.Fatal(err)
	}
	a := &AppView{config: c, logger: slog.New(slog.DiscardHandler)}
	for _, tt := range []struct{ peer, forwarded, want string }{
		{"192.0.2.1:80", "", "192.0.2.1"},
		{"192.0.2.1:80", "198.51.100.1", "192.0.2.1"},
		{"10.0.0.1:80", "198.51.100.1", "198.51.100.1"},
		{"10.0.0.1:80", "203.0.113.9, 198.51.100.1", "198.51.100.1"},
		{"10.0.0.1:80", "203.0.113.9, 198.51.100.1, 10.2.3.4", "198.51.100.1"},
		{"10.0.0.1:80", "nonsense", "10.0.0.1"},
		{"10.0.0.1:80", "", "10.0.0.1"},
		{"[::ffff:10.0.0.1]:80", "198.51.100.1", "198.51.100.1"},
		{"[2001:db8::1]:80", "2001:db8::2", "2001:db8::2"},
	} {
		r := &http.Request{RemoteAddr: tt.peer, Header: http.Header{}}
		if tt.forwarded != "" {
			r.Header.Set("X-Forwarded-For", tt.forwarded)
		}
		if got := a.clientAddress(r).String(); got != tt.want {
			t.Errorf("%s via %q: %s, want %s", tt.peer, tt.forwarded, got, tt.want)
		}
	}
}

// Would catch a summary that a PDS or a reader refuses, and what is left out in another order than readers
// expect.
func TestShorten(t *testing.T) {
	t.Parallel()
	long := func(n int) map[string]string { return map[string]string{"k": strings.Repeat("x", n)} }
	d := oci.FromBytes(nil).String()
	full := func(annotation, layerAnnotation, url, layers int) *atcr.Manifest {
		m := &atcr.Manifest{Repository: "app", Digest: d, MediaType: "x", Annotations: long(annotation)}
		for range layers {
			m.Layers = append(m.Layers, atcr.ManifestBlobReference{MediaType: "x", Digest: d, Annotations: long(layerAnnotation), Urls: []string{strings.Repeat("u", url)}})
		}
		return m
	}
	for _, tt := range []struct {
		what   string
		m      *atcr.Manifest
		leaves [4]bool // descriptor annotations, annotations, urls, layers
	}{
		{"small", full(10, 10, 10, 10), [4]bool{true, true, true, true}},
		{"annotated layers", full(10, 20_000, 10, 10), [4]bool{false, true, true, true}},
		{"annotations", full(100_000, 10, 10, 10), [4]bool{false, false, true, true}},
		{"urls", full(10, 10, 20_000, 10), [4]bool{false, false, false, true}},
		{"layers", full(10, 10, 10, 2000), [4]bool{false, false, false, false}},
	} {
		shorten(tt.m)
		got := [4]bool{false, tt.m.Annotations != nil, false, tt.m.Layers != nil}
		if tt.m.Layers != nil {
			got[0], got[2] = tt.m.Layers[0].Annotations != nil, tt.m.Layers[0].Urls != nil
		}
		if tt.what == "layers" {
			got[0], got[2] = false, false
		}
		raw, err := json.Marshal(tt.m)
		if err != nil || len(raw) > maxRecordBytes || got != tt.leaves {
			t.Errorf("%s: %v of %d bytes, %v", tt.what, got, len(raw), err)
		}
	}
	if blobReference(&oci.Descriptor{Size: maxSafeInteger + 1}) != nil || blobReferences([]oci.Descriptor{{}, {MediaType: strings.Repeat("x", 129)}}) != nil {
		t.Error("what a reader cannot take is in the summary")
	}
}

// Would catch one look-up a caller, an answer kept too long, a failure asked again and again, a caller whose
// end is everybody's, and a read that overwrites a newer write.
func TestCache(t *testing.T) {
	t.Parallel()
	now := time.Unix(1000, 0)
	var loads atomic.Int64
	var fail atomic.Bool
	wait := make(chan struct{})
	c := newCache(10, time.Minute, time.Second, func() time.Time { return now }, func(context.Context, string) (int64, error) {
		<-wait
		if fail.Load() {
			return 0, errors.New("no")
		}
		return loads.Add(1), nil
	})
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.get(gone, "k"); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if v, err := c.get(t.Context(), "k"); v != 1 || err != nil {
				t.Errorf("%d, %v", v, err)
			}
		})
	}
	close(wait)
	wg.Wait()
	now = now.Add(2 * time.Minute)
	if v, _ := c.get(t.Context(), "k"); v != 2 {
		t.Errorf("old: %d", v)
	}
	c.put("k", 42)
	if v, _ := c.get(t.Context(), "k"); v != 42 {
		t.Errorf("put: %d", v)
	}
	c.forget("k")
	if v, _ := c.get(t.Context(), "k"); v != 3 {
		t.Errorf("forgotten: %d", v)
	}
	fail.Store(true)
	now = now.Add(2 * time.Minute)
	if _, err := c.get(t.Context(), "k"); err == nil {
		t.Error("no failure")
	}
	fail.Store(false)
	if _, err := c.get(t.Context(), "k"); err == nil {
		t.Error("a failure is asked again at once")
	}
	now = now.Add(2 * time.Second)
	if v, err := c.get(t.Context(), "k"); v != 4 || err != nil {
		t.Errorf("%d, %v", v, err)
	}
}

// Would catch a read that began before a write and ends after it, and is then believed.
func TestCacheKeepsWrites(t *testing.T) {
	t.Parallel()
	started, finish := make(chan struct{}), make(chan struct{})
	var ticks atomic.Int64
	c := newCache(10, time.Minute, time.Second, func() time.Time { return time.Unix(ticks.Add(1), 0) }, func(context.Context, string) (string, error) {
		close(started)
		<-finish
		return "old", nil
	})
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = c.get(t.Context(), "k") // what it got is as old as it was asked
	}()
	<-started
	c.put("k", "new")
	if v, _ := c.get(t.Context(), "k"); v != "new" {
		t.Errorf("during the read: %q", v)
	}
	close(finish)
	<-done
	if v, _ := c.get(t.Context(), "k"); v != "new" {
		t.Errorf("after the read: %q", v)
	}
}

// Would catch a look-up that ends in the moment of a change, and puts what it has read over that.
func TestCacheAtOnce(t *testing.T) {
	t.Parallel()
	for what, change := range map[string]func(*cache[string, int64]){
		"put":    func(c *cache[string, int64]) { c.put("k", 2) },
		"forget": func(c *cache[string, int64]) { c.forget("k") },
	} {
		for range 20_000 {
			var now atomic.Int64
			now.Store(1)
			read := make(chan struct{})
			c := newCache(10, time.Minute, time.Second, time.Now, func(context.Context, string) (int64, error) {
				n := now.Load()
				if n == 1 {
					close(read)
				}
				return n, nil
			})
			done := make(chan struct{})
			go func() {
				defer close(done)
				_, _ = c.get(t.Context(), "k") // 1 or 2, as it was when it was asked
			}()
			<-read
			now.Store(2)
			change(c)
			<-done
			if v, _ := c.get(t.Context(), "k"); v != 2 {
				t.Fatalf("%s: %d", what, v)
			}
		}
	}
}

// Would catch a caller with too many look-ups whose refusal others get who ask for the same, then or a moment later.
func TestCacheOfOthersRefusal(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		loads, refuse := 0, make(chan struct{})
		c := newCache(10, time.Minute, time.Minute, time.Now, func(context.Context, string) (int, error) {
			if loads++; loads == 1 {
				<-refuse
				return 0, holdUnknown("did:web:hold.test", identity.ErrTooMany)
			}
			return loads, nil
		})
		began, joined := make(chan error, 1), make(chan error, 1)
		get := func(done chan<- error) {
			_, err := c.get(t.Context(), "k")
			done <- err
		}
		go get(began)
		synctest.Wait()
		go get(joined)
		synctest.Wait()
		close(refuse)
		if err := <-began; oci.AsError(err).HTTPStatus() != http.StatusTooManyRequests || !errors.Is(err, registry.ErrUnresolved) {
			t.Errorf("who began it: %v", err)
		}
		if err := <-joined; err != nil || loads != 2 {
			t.Errorf("who joined: %v after %d look-ups", err, loads)
		}
	})
}

// Would catch a caller who asks after a change, and is answered by a look-up that began before it, also one who asks the
// PDS itself.
func TestCacheAfterWrites(t *testing.T) {
	t.Parallel()
	for what, change := range map[string]func(*cache[string, int64]){
		"put":    func(c *cache[string, int64]) { c.put("k", 0) },
		"forget": func(c *cache[string, int64]) { c.forget("k") },
	} {
		started, finish := make(chan struct{}), make(chan struct{})
		var loads atomic.Int64
		c := newCache(10, time.Minute, time.Second, time.Now, func(context.Context, string) (int64, error) {
			n := loads.Add(1)
			if n == 1 {
				close(started)
				<-finish
			}
			return n, nil
		})
		ctx := askPDS(t.Context())
		first := make(chan int64)
		go func() {
			v, _ := c.get(ctx, "k")
			first <- v
		}()
		<-started
		change(c)
		within, cancel := context.WithTimeout(ctx, time.Minute) // joined, it would wait for the first
		if v, err := c.get(within, "k"); v != 2 || err != nil {
			t.Errorf("%s: %d, %v", what, v, err)
		}
		cancel()
		close(finish)
		if v := <-first; v != 1 {
			t.Errorf("%s: the first got %d", what, v)
		}
		if v, err := c.get(t.Context(), "k"); v != 2 || err != nil {
			t.Errorf("%s: kept %d, %v", what, v, err)
		}
	}
}

// Would catch manifests' bytes without a bound.
func TestContents(t *testing.T) {
	t.Parallel()
	c := newContents(10_000)
	for i := range 100 {
		raw := bytes.Repeat([]byte{byte(i)}, 1000)
		c.put(oci.FromBytes(raw), raw)
		c.put(oci.FromBytes(raw), raw)
		if got, ok := c.get(oci.FromBytes(raw)); !ok || !bytes.Equal(got, raw) || c.size > c.limit || c.size != c.lru.Len()*cost(raw) {
			t.Fatalf("%d: %v, %d bytes", i, ok, c.size)
		}
	}
	large := make([]byte, 9000)
	if c.put(oci.FromBytes(large), large); c.lru.Len() == 1 {
		t.Error("one large manifest drives out all others")
	}
}
