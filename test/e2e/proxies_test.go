package e2e

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"atcr.io/internal/oci"
	"atcr.io/test/components"
	"atcr.io/test/docs"
)

// What docs/proxies.md calls them.
const (
	proxiedAppView = "https://atcr.example"
	proxiedHold    = "https://hold.example"
)

// proxied is a network whose AppView and hold are behind a proxy, and reach everything by https.
type proxied struct {
	*network
	holdEnv []string // of the hold, but for what a test changes
	pds     string   // the PDS's name
}

// Would catch a proxy, configured as docs/proxies.md says, by which some of what a hold or an AppView does is lost:
// nginx, HAProxy and Caddy as Debian has them, daemons as operators run them, unmodified clients.
func TestProxies(t *testing.T) {
	if !ownNetwork(t, map[string]string{"atcr.example": "1.2.3.1", "hold.example": "1.2.3.2", "pds.example": "1.2.3.3", "bucket.example": "1.2.3.4"}) {
		return
	}
	n := startProxied(t)
	for i, name := range components.Proxies() {
		t.Run(name, func(t *testing.T) {
			configuration := proxyConfiguration(t, name)
			p := components.StartProxy(t, name, configuration, "127.0.0.1:443")
			secret := n.pushesAndPulls(t, name)
			n.follows(t, name)
			n.isNotBuffered(t, name)
			n.answersInARow(t, name, 25)
			n.knowsCallers(t, 10*(i+1))
			tellsNoSecrets(t, p.Log(), secret)
		})
	}
	t.Run("nginx with HTTP/1.0", func(t *testing.T) { // as it speaks where nobody tells it otherwise
		configuration := strings.Replace(proxyConfiguration(t, "nginx"), "proxy_http_version 1.1;", "proxy_http_version 1.0;", 1)
		configuration = strings.Replace(configuration, "$atcr_connection;", "close;", 1)
		components.StartProxy(t, "nginx", configuration, "127.0.0.1:443")
		n.answersInARow(t, "nginx", 8)
	})
}

// proxyConfiguration is what docs/proxies.md says of a proxy, with the network's certificate, and logs to standard output.
func proxyConfiguration(t *testing.T, name string) string {
	t.Helper()
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "proxies.md"))
	if err != nil {
		t.Fatal(err)
	}
	heading := map[string]string{"nginx": "## nginx", "haproxy": "## HAProxy", "caddy": "## Caddy"}[name]
	blocks := docs.Blocks(docs.Section(string(page), heading))
	if len(blocks) != 1 {
		t.Fatalf("docs/proxies.md has %d configurations of %s", len(blocks), name)
	}
	configuration, certificate := blocks[0], os.Getenv(certificateEnv)
	replace := func(old, with string) {
		t.Helper()
		if !strings.Contains(configuration, old) {
			t.Fatalf("the configuration of %s has no %q", name, old)
		}
		configuration = strings.ReplaceAll(configuration, old, with)
	}
	switch name {
	case "nginx":
		replace("/etc/letsencrypt/live/atcr.example/fullchain.pem", certificate)
		replace("/etc/letsencrypt/live/atcr.example/privkey.pem", certificate)
		replace("/var/log/nginx/atcr.log", "/dev/stdout")
		replace("/var/log/nginx/atcr-error.log", "stderr")
	case "haproxy":
		replace("/etc/haproxy/certs/", certificate)
	case "caddy": // which else asks for one on the internet
		replace("    log\n    reverse_proxy", "    log\n    tls "+certificate+" "+certificate+"\n    reverse_proxy")
	}
	return configuration
}

// startProxied starts everything but the proxy.
func startProxied(t *testing.T) *proxied {
	t.Helper()
	n := &proxied{network: &network{pds: components.StartReferencePDS(t, "alice.test"), registry: "atcr.example", publicDID: "did:web:hold.example"}}
	n.alice = n.network.pds.Accounts[0]
	s3 := components.StartS3(t)
	s3.CreateBucket(t, "blobs")
	n.pds = httpsFront(t, "1.2.3.3", "pds.example", n.network.pds.URL)
	bucket := httpsFront(t, "1.2.3.4", "bucket.example", s3.Endpoint)
	directory := n.directory(t)
	trust := "SSL_CERT_FILE=" + os.Getenv("SSL_CERT_FILE")
	n.holdEnv = []string{
		"HOLD_PUBLIC_URL=" + proxiedHold, "HOLD_SERVER_ADDR=:8080", "HOLD_DEBUG_ADDR=", "HOLD_TRUSTED_PROXIES=127.0.0.1", "HOLD_REQUESTS_PER_ADDRESS=100",
		"HOLD_OWNER=" + n.alice.DID, "HOLD_PUBLIC=true", "HOLD_PLC_URL=" + directory, "HOLD_HANDLE_RESOLVER_URL=" + n.network.pds.URL, "HOLD_RELAYS=",
		"HOLD_DATABASE_DIR=" + t.TempDir(), "HOLD_LOG_LEVEL=debug", "STORAGE_DRIVER=s3", "S3_ENDPOINT=" + s3.Endpoint, "S3_PUBLIC_ENDPOINT=" + bucket, "S3_BUCKET=blobs",
		"AWS_ACCESS_KEY_ID=" + s3.AccessKey, "AWS_SECRET_ACCESS_KEY=" + s3.SecretKey, trust,
	}
	n.public = startDaemon(t, binaries.hold, "http://127.0.0.1:8080", "/xrpc/_health", n.holdEnv...)
	n.appview = startDaemon(t, binaries.appview, "http://127.0.0.1:5000", "/v2/",
		"ATCR_BASE_URL="+proxiedAppView, "ATCR_HTTP_ADDR=:5000", "ATCR_DEBUG_ADDR=", "ATCR_TRUSTED_PROXIES=127.0.0.1", "ATCR_RATE_LIMIT=10000", "ATCR_DEFAULT_HOLD_DID="+n.publicDID,
		"ATCR_DATABASE_DIR="+t.TempDir(), "ATCR_PLC_URL="+directory, "ATCR_HANDLE_RESOLVER_URL="+n.network.pds.URL, "ATCR_LOG_LEVEL=debug", trust)
	return n
}

// httpsFront is the https URL of a name that leads to what is at target.
func httpsFront(t *testing.T, address, name, target string) string {
	t.Helper()
	u, err := url.Parse(target)
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := tls.LoadX509KeyPair(os.Getenv(certificateEnv), os.Getenv(certificateEnv))
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", address+":8443") //nolint:noctx // it does not wait
	if err != nil {
		t.Fatal(err)
	}
	s := &httptest.Server{Listener: l, TLS: &tls.Config{Certificates: []tls.Certificate{certificate}}, Config: &http.Server{
		ReadHeaderTimeout: time.Minute,
		Handler: &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host, r.Out.Host = u.Scheme, u.Host, r.In.Host // as it was signed
		}},
	}}
	s.StartTLS()
	t.Cleanup(s.Close)
	return "https://" + name + ":8443"
}

// directory is the PDS's directory, where the PDS has its name.
func (n *proxied) directory(t *testing.T) string {
	t.Helper()
	u, err := url.Parse(n.network.pds.PLCURL)
	if err != nil {
		t.Fatal(err)
	}
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(u)
			r.Out.Header.Del("Accept-Encoding")
		},
		ModifyResponse: func(res *http.Response) error {
			body, err := io.ReadAll(res.Body)
			if err != nil {
				return err
			}
			body = bytes.ReplaceAll(body, []byte(n.network.pds.URL), []byte(n.pds))
			res.Body = io.NopCloser(bytes.NewReader(body))
			res.Header.Del("Content-Length")
			res.ContentLength = -1
			return nil
		},
	}
	s := httptest.NewServer(proxy)
	t.Cleanup(s.Close)
	return s.URL
}

// restartHold ends the hold, and starts it with some settings more. The proxy still has connections to the one that ended.
func (n *proxied) restartHold(t *testing.T, settings ...string) {
	t.Helper()
	n.public.kill(syscall.SIGTERM)
	n.public.env = append(append([]string{}, n.holdEnv...), settings...)
	n.public.start(t, "/xrpc/_health")
}

// pushesAndPulls has crane push a large layer, and pull it: as alice, with the bytes from the hold, and as nobody, with those
// from the storage. containerd's way of an upload is walked too; it returns the secret of that.
func (n *proxied) pushesAndPulls(t *testing.T, name string) (secret string) {
	t.Helper()
	crane, alice, image := components.Path(t, "crane"), dockerConfig(t), largeImage(t)
	reference := n.registry + "/alice.test/" + name + ":1.0"
	pull := func(config string) {
		t.Helper()
		out := filepath.Join(t.TempDir(), "out")
		command(t, []string{config}, crane, "pull", "--format=oci", reference, out)
		sameBlobs(t, image, out)
		if got := strings.TrimSpace(command(t, []string{config}, crane, "digest", reference)); got != image.digest {
			t.Errorf("%s is %s, want %s", reference, got, image.digest)
		}
	}
	n.restartHold(t, "DISABLE_PRESIGNED_URLS=true")
	command(t, []string{alice}, crane, "auth", "login", n.registry, "-u", n.alice.Handle, "-p", n.alice.AppPassword)
	command(t, []string{alice}, crane, "push", image.layout, reference)
	pull(alice)
	n.restartHold(t)
	pull(dockerConfig(t))

	token := tokenAt(t, proxiedAppView, n.alice, "repository:alice.test/"+name+":pull,push")
	c := proxyClient(t, "")
	c.header = http.Header{"Authorization": {"Bearer " + token}, "User-Agent": {"containerd/2.1.0"}}
	location := c.upload(newBlob(1<<20), "alice.test/"+name)
	if !strings.HasPrefix(location, proxiedHold+"/u/") {
		t.Errorf("containerd is sent to %s", location)
	}
	return strings.TrimPrefix(location, proxiedHold+"/u/")
}

// follows reads the hold's firehose until it has told of what is pushed meanwhile.
func (n *proxied) follows(t *testing.T, name string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	conn, _, err := websocket.Dial(ctx, "wss://hold.example/xrpc/com.atproto.sync.subscribeRepos", nil)
	if err != nil {
		t.Fatalf("the firehose: %v", err)
	}
	defer func() { _ = conn.CloseNow() }()
	conn.SetReadLimit(4 << 20)
	crane, alice, image := components.Path(t, "crane"), dockerConfig(t), writeLayout(t, platformImage(t, 1<<10, 1, "amd64"))
	command(t, []string{alice}, crane, "auth", "login", n.registry, "-u", n.alice.Handle, "-p", n.alice.AppPassword)
	command(t, []string{alice}, crane, "push", image.layout, n.registry+"/alice.test/"+name+"-followed:1.0")
	for {
		_, frame, err := conn.Read(ctx)
		if err != nil {
			t.Fatalf("the firehose: %v", err)
		}
		for _, digest := range image.blobs {
			if bytes.Contains(frame, []byte("#commit")) && bytes.Contains(frame, []byte("sha256:"+digest)) {
				return
			}
		}
	}
}

// isNotBuffered sends half of a layer, and the other half when the hold has that: by the AppView, whose own way to the
// hold leads by the proxy too, and straight to the hold.
func (n *proxied) isNotBuffered(t *testing.T, name string) {
	t.Helper()
	repository := "alice.test/" + name
	token := tokenAt(t, proxiedAppView, n.alice, "repository:"+repository+":pull,push")
	blob := newBlob(4 << 20)
	for _, agent := range []string{"a client", "containerd/2.1.0"} {
		c := proxyClient(t, "")
		c.header = http.Header{"Authorization": {"Bearer " + token}, "User-Agent": {agent}}
		location := c.send(http.MethodPost, proxiedAppView+"/v2/"+repository+"/blobs/uploads/", nil, http.StatusAccepted).location
		reader, writer := io.Pipe()
		done := make(chan answer, 1)
		go func() { done <- c.send(http.MethodPatch, location, reader, http.StatusAccepted) }()
		if _, err := writer.Write(blob[:2<<20]); err != nil {
			t.Fatal(err)
		}
		waitUntil(t, "bytes arrive at the hold while more are to come", func() bool { return arrived(t, location, token) != "0-0" })
		if _, err := writer.Write(blob[2<<20:]); err != nil {
			t.Fatal(err)
		}
		if err := writer.Close(); err != nil {
			t.Fatal(err)
		}
		location = (<-done).location
		c.send(http.MethodPut, location+"?digest="+oci.FromBytes(blob).String(), nil, http.StatusCreated)
		blob = newBlob(4 << 20)
	}
}

// answersInARow asks many things on a few connections, some of which are answered quickly, some given up, and some wrong,
// with uploads between them. Every answer must be that of its own question.
func (n *proxied) answersInARow(t *testing.T, name string, rounds int) {
	t.Helper()
	repository := "alice.test/" + name
	token := tokenAt(t, proxiedAppView, n.alice, "repository:"+repository+":pull,push")
	manifest := proxyClient(t, token).send(http.MethodGet, proxiedAppView+"/v2/"+repository+"/manifests/1.0", nil, http.StatusOK)
	if oci.FromBytes([]byte(manifest.body)).String() != manifest.digest {
		t.Fatalf("the manifest %q is not that of %s", manifest.body, manifest.digest)
	}
	var all sync.WaitGroup
	for g := range 8 {
		all.Go(func() {
			c := proxyClient(t, token)
			own := newBlob(10_000 + g)
			c.upload(own, repository)
			for i := range rounds {
				if i%5 == 4 {
					own = newBlob(10_000 + 100*i + g)
					c.upload(own, repository)
				}
				c.row(n, repository, manifest, own, fmt.Sprintf("none-%d-%d", g, i))
			}
		})
	}
	all.Wait()
}

// row asks for a manifest and a blob in all ways, and for what is not there.
func (c *proxiedClient) row(n *proxied, repository string, manifest answer, own []byte, none string) {
	c.t.Helper()
	base, digest := proxiedAppView+"/v2/"+repository, oci.FromBytes(own).String()
	check := func(what string, ok bool, a answer) {
		if !ok {
			c.t.Errorf("%s: %d, digest %q, length %d, location %q, body %.200q", what, a.status, a.digest, a.length, a.location, a.body)
		}
	}
	a := c.send(http.MethodGet, base+"/manifests/"+manifest.digest, nil, http.StatusOK)
	check("a manifest", a.body == manifest.body && a.digest == manifest.digest, a)
	a = c.send(http.MethodHead, base+"/manifests/1.0", nil, http.StatusOK)
	check("HEAD of a manifest", a.body == "" && a.digest == manifest.digest && a.length == int64(len(manifest.body)), a)
	a = c.send(http.MethodGet, base+"/manifests/"+none, nil, http.StatusNotFound)
	check("a tag that is not there", strings.Contains(a.body, "MANIFEST_UNKNOWN") && strings.Contains(a.body, none), a)
	a = c.send(http.MethodGet, base+"/blobs/"+digest, nil, http.StatusTemporaryRedirect)
	check("a blob", strings.HasPrefix(a.location, proxiedHold+"/") && strings.HasSuffix(a.location, digest), a)
	link := a.location
	a = c.send(http.MethodHead, link, nil, http.StatusOK)
	check("HEAD of a blob at the hold", a.length == int64(len(own)), a)
	a = c.send(http.MethodGet, link, nil, http.StatusTemporaryRedirect)
	check("a blob at the hold", strings.HasPrefix(a.location, "https://bucket.example:8443/") && strings.Contains(a.location, digest[len("sha256:"):]), a)
	a = c.send(http.MethodHead, base+"/manifests/"+none, nil, http.StatusNotFound)
	check("HEAD of a tag that is not there", a.body == "", a)
	c.header.Set("If-None-Match", `"`+manifest.digest+`"`)
	a = c.send(http.MethodGet, base+"/manifests/1.0", nil, http.StatusNotModified)
	c.header.Del("If-None-Match")
	check("a manifest that is known", a.body == "", a)
	c.givesUp(base + "/manifests/1.0")
}

// knowsCallers makes so many calls from one address that there are too many of it, whatever it says of itself, and
// then one from another. 1.2.3.x and the two above are addresses that made none.
func (n *proxied) knowsCallers(t *testing.T, x int) {
	t.Helper()
	for where, target := range map[string]string{
		"hold":    "/xrpc/com.atproto.sync.getLatestCommit?did=" + n.publicDID,
		"AppView": "/v2/did_plc_nobodyhasthisnameatallxxx/app/manifests/1.0",
	} {
		base, direct := proxiedHold, "http://1.2.3.2:8080"
		if where == "AppView" {
			base, direct = proxiedAppView, "http://1.2.3.1:5000"
		}
		ask := func(address, at string, times int) (last int) {
			t.Helper()
			c := proxyClient(t, "")
			c.from(address)
			for i := range times {
				c.header.Set("X-Forwarded-For", fmt.Sprintf("9.9.%d.%d", x, i)) // as who would like to be somebody else
				if last = c.try(http.MethodGet, at+target, nil).status; last == http.StatusTooManyRequests {
					break
				}
			}
			return last
		}
		address := func(i int) string { return fmt.Sprintf("1.2.3.%d", x+i) }
		if got := ask(address(0), base, 150); got != http.StatusTooManyRequests {
			t.Errorf("%s: 150 calls of one address by the proxy end with %d", where, got)
		}
		if got := ask(address(1), base, 1); got == http.StatusTooManyRequests || got >= 500 {
			t.Errorf("%s: the first call of another address is answered with %d", where, got)
		}
		// Who comes by no trusted proxy is not believed.
		if got := ask(address(2), direct, 150); got != http.StatusTooManyRequests {
			t.Errorf("%s: 150 calls of one address by no proxy end with %d", where, got)
		}
	}
}

// tellsNoSecrets reads what a proxy logged.
func tellsNoSecrets(t *testing.T, log, secret string) {
	t.Helper()
	secret, _, _ = strings.Cut(secret, "?")
	secret = strings.Trim(secret, "/")
	for _, want := range []string{"hold.example", "atcr.example", "/u/", "/v2/alice.test/", "PATCH", "getLatestCommit"} {
		if !strings.Contains(log, want) {
			t.Errorf("the log has no %q:\n%s", want, tail(log))
		}
	}
	for _, unwanted := range []string{secret, "did=", "X-Amz"} {
		if i := strings.Index(log, unwanted); i >= 0 {
			t.Errorf("the log has %q: …%.300s", unwanted, log[max(0, i-200):])
		}
	}
}

// largeImage has one layer of 64 MiB, which is no archive: making one takes longer than all that is done with it.
func largeImage(t *testing.T) testImage {
	t.Helper()
	image := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	image, err := mutate.AppendLayers(image, static.NewLayer(newBlob(64<<20), types.OCIUncompressedLayer))
	if err != nil {
		t.Fatal(err)
	}
	return writeLayout(t, image)
}

func newBlob(size int) []byte {
	blob := make([]byte, size)
	_, _ = rand.Read(blob) // never fails
	return blob
}

// proxiedClient is a client with connections of its own, which are kept open.
type proxiedClient struct {
	t      *testing.T
	header http.Header
	http   *http.Client
}

// answer is what matters of one.
type answer struct {
	status                 int
	digest, location, body string
	length                 int64
}

func proxyClient(t *testing.T, token string) *proxiedClient {
	t.Helper()
	c := &proxiedClient{t: t, header: http.Header{}}
	if token != "" {
		c.header.Set("Authorization", "Bearer "+token)
	}
	c.from("")
	return c
}

// from has the client call from an address, "" for any.
func (c *proxiedClient) from(address string) {
	dialer := &net.Dialer{}
	if address != "" {
		dialer.LocalAddr = &net.TCPAddr{IP: net.ParseIP(address)}
	}
	transport := &http.Transport{DialContext: dialer.DialContext, ForceAttemptHTTP2: true}
	c.http = &http.Client{Transport: transport, Timeout: time.Minute, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	c.t.Cleanup(transport.CloseIdleConnections)
}

// send sends a request that must be answered with want. A body's length is not said beforehand.
func (c *proxiedClient) send(method, target string, body io.Reader, want int) answer {
	c.t.Helper()
	a := c.try(method, target, body)
	if a.status != want {
		c.t.Errorf("%s %s: %d, want %d: %.300s", method, target, a.status, want, a.body)
	}
	return a
}

func (c *proxiedClient) try(method, target string, body io.Reader) (a answer) {
	c.t.Helper()
	req, err := http.NewRequestWithContext(c.t.Context(), method, target, body)
	if err != nil {
		c.t.Error(err)
		return a
	}
	req.Header = c.header.Clone()
	res, err := c.http.Do(req)
	if err != nil {
		c.t.Errorf("%s %s: %v", method, target, err)
		return a
	}
	raw, err := io.ReadAll(res.Body)
	if err := errors.Join(err, res.Body.Close()); err != nil {
		c.t.Errorf("%s %s: %v", method, target, err)
	}
	a = answer{status: res.StatusCode, digest: res.Header.Get("Docker-Content-Digest"), body: string(raw), length: res.ContentLength}
	if location, err := res.Location(); err == nil {
		a.location = location.String()
	}
	return a
}

// upload sends a blob as clients do, and returns where to.
func (c *proxiedClient) upload(blob []byte, repository string) (location string) {
	c.t.Helper()
	digest := oci.FromBytes(blob).String()
	location = c.send(http.MethodPost, proxiedAppView+"/v2/"+repository+"/blobs/uploads/", nil, http.StatusAccepted).location
	next := c.send(http.MethodPatch, location, struct{ io.Reader }{bytes.NewReader(blob)}, http.StatusAccepted).location
	c.send(http.MethodPut, next+"?digest="+digest, nil, http.StatusCreated)
	return location
}

// givesUp asks, and leaves before there is an answer, or when there is half of one.
func (c *proxiedClient) givesUp(target string) {
	ctx, cancel := context.WithTimeout(c.t.Context(), 500*time.Microsecond)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
	if err != nil {
		c.t.Error(err)
		return
	}
	req.Header = c.header.Clone()
	if res, err := c.http.Do(req); err == nil {
		_ = res.Body.Close()
	}
}
