package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"atcr.io/test/components/toolbox"
)

// readRow is one kind of read at one server.
type readRow struct {
	what, name string
	url        string
	header     string
	status     int
	peer       bool // of those among which is the best peer
	process    *process
	rates      []float64
	cpu        []float64 // requests a second of the server's processor time
	alone      []float64 // requests a second where the server has a processor to itself
}

const (
	byTag, byDigest, asRedirect, asBytes = "manifest by tag", "manifest by digest", "blob redirect", "blob of 1 KiB"
	readRepository                       = "/v2/alice.test/read"
	readTime                             = 2 * time.Second
)

// benchRead compares reads of manifests, and of a blob that is answered with a redirect. The peers run without
// authentication and with their caches; ours checks names, records and the hold's policy. bare is a server that knows
// its one answer: what this load generator gets out of any server that is written in Go.
func benchRead(ctx context.Context, b *bench) error {
	rows, ours, err := b.readRows(ctx)
	if err != nil {
		return err
	}
	for range b.rounds {
		for _, r := range rows {
			if err := r.measure(ctx); err != nil {
				return fmt.Errorf("%s, %s: %w", r.what, r.name, err)
			}
		}
	}
	b.printf("\n## Reads\n\n16 connections; the load generator shares the machine. By the clock, and by the server's own processor time, in which the load generator\nhas no part, and gitea's database has. bare: a Go server that knows its one answer, and does nothing else;\nsocket: a loop that answers every empty line with the same bytes, and parses nothing: the most that any server can have here.\n%s, with a token: it asks who may read, as a registry of many people must, and gets an RS256 token.\nWanted of manifests: ≥3× the best peer; of the redirect: ≥10× distribution.\n\n"+
		"| read | server | requests/s | of the best peer | requests/CPU-s | of the best peer |\n|---|---|---|---|---|---|\n", distribution3)
	clock, cpu := map[string]*best{}, map[string]*best{}
	for _, r := range rows {
		if clock[r.what] == nil {
			clock[r.what], cpu[r.what] = &best{}, &best{}
		}
		if r.peer {
			clock[r.what].see(r.name, median(r.rates))
			cpu[r.what].see(r.name, median(r.cpu))
		}
	}
	for _, r := range rows {
		b.printf("| %s | %s | %.0f | %.1f× | %.0f | %.1f× |\n", r.what, r.name, median(r.rates), median(r.rates)/clock[r.what].value, median(r.cpu), median(r.cpu)/cpu[r.what].value)
	}
	for _, r := range rows {
		if strings.HasPrefix(r.name, "AppView") && r.what != asRedirect {
			b.verdict(r.what+", "+r.name, *clock[r.what], median(r.rates), 3)
		}
	}
	if err := b.redirects(ctx, slices.DeleteFunc(slices.Clone(rows), func(r *readRow) bool { return r.what != asRedirect })); err != nil {
		return err
	}
	return b.concurrentPulls(ctx, ours)
}

func (r *readRow) rate(ctx context.Context, d time.Duration) (float64, error) {
	return rate(ctx, r.url, "Accept: application/vnd.oci.image.manifest.v1+json\r\n"+r.header, r.status, 16, d)
}

// measure is a round in which server and load generator have all processors.
func (r *readRow) measure(ctx context.Context) error {
	before, err := r.process.cpu()
	if err != nil {
		return err
	}
	v, err := r.rate(ctx, readTime)
	if err != nil {
		return err
	}
	after, err := r.process.cpu()
	if err != nil {
		return err
	}
	r.rates = append(r.rates, v)
	r.cpu = append(r.cpu, v*readTime.Seconds()/max((after-before).Seconds(), 0.01))
	return nil
}

// measureAlone is a round in which the server has one processor, and the load generator the others.
func (r *readRow) measureAlone(ctx context.Context) (err error) {
	server, others := split()
	for pid, on := range map[int][]int{r.process.cmd.Process.Pid: server, os.Getpid(): others} {
		if err := pin(ctx, pid, on); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, pin(ctx, pid, slices.Concat(server, others))) }()
	}
	if _, err := r.rate(ctx, readTime); err != nil { // in which Go programs learn how many processors there are
		return err
	}
	v, err := r.rate(ctx, readTime)
	r.alone = append(r.alone, v)
	return err
}

// redirects says how many times as fast as distribution the redirect is, with and without tokens, and how many times as
// fast it could be.
func (b *bench) redirects(ctx context.Context, rows []*readRow) error {
	b.printf("\nThe redirects, where the server has one processor, and the load generator the others: neither takes the other's time.\n\n| server | requests/s | of distribution |\n|---|---|---|\n")
	by := map[string]*readRow{}
	for range b.rounds {
		for _, r := range rows {
			if err := r.measureAlone(ctx); err != nil {
				return fmt.Errorf("%s, %s, alone: %w", r.what, r.name, err)
			}
			by[r.name] = r
		}
	}
	for _, r := range rows {
		b.printf("| %s | %.0f | %.1f× |\n", r.name, median(r.alone), median(r.alone)/median(by[distribution3+", S3"].alone))
	}
	for _, token := range []string{"", ", with a token"} {
		peer, own, most := by[distribution3+", S3"+token], by["AppView"+token], by["socket"]
		for _, how := range []struct {
			what   string
			values func(*readRow) []float64
		}{
			{"on a processor of its own", func(r *readRow) []float64 { return r.alone }},
			{"by processor time", func(r *readRow) []float64 { return r.cpu }},
			{"by the clock, beside the load generator", func(r *readRow) []float64 { return r.rates }},
		} {
			theirs := median(how.values(peer))
			b.verdict(asRedirect+token+", "+how.what, best{peer.name, theirs}, median(how.values(own)), 10)
			b.printf("\nThe most that any server can have: %.1f×.\n", median(how.values(most))/theirs)
		}
	}
	return nil
}

// readRows starts every server, pushes the same small image to each, and says what is read of them.
func (b *bench) readRows(ctx context.Context) (rows []*readRow, ours []*process, err error) {
	storage, err := b.startS3(ctx, versitygw, "versitygw-read")
	if err != nil {
		return nil, nil, err
	}
	peerStorage, err := b.startS3(ctx, versitygw, "versitygw-read-peer")
	if err != nil {
		return nil, nil, err
	}
	peers, err := b.folderPeers(ctx, "read")
	if err != nil {
		return nil, nil, err
	}
	onS3, err := b.startDistribution(ctx, "distribution-read-s3", peerStorage, nil)
	if err != nil {
		return nil, nil, err
	}
	auth, err := newTokens(b.dir)
	if err != nil {
		return nil, nil, err
	}
	asking, err := b.startDistribution(ctx, "distribution-read-s3-token", peerStorage, auth)
	if err != nil {
		return nil, nil, err
	}
	peerToken, err := auth.bearer(strings.TrimPrefix(readRepository, "/v2/"))
	if err != nil {
		return nil, nil, err
	}
	crane, err := b.startCrane(ctx, "crane-read")
	if err != nil {
		return nil, nil, err
	}
	peers = append(peers, peer{name: distribution3 + ", S3", durable: true, process: onS3}, peer{name: "crane registry, memory", process: crane})
	h, err := b.startHold(ctx, "hold-read", storage.holdEnv(storage.url)...)
	if err != nil {
		return nil, nil, err
	}
	appview, err := b.startAppView(ctx, "appview-read", h)
	if err != nil {
		return nil, nil, err
	}
	token, err := registryToken(ctx, appview, b.alice, "repository:alice.test/read:pull,push")
	if err != nil {
		return nil, nil, err
	}
	for _, p := range peers {
		if _, err := pushSmallImage(ctx, p.url, p.push, 11); err != nil {
			return nil, nil, fmt.Errorf("%s: %w", p.name, err)
		}
	}
	image, err := pushSmallImage(ctx, appview.url, token, 11)
	if err != nil {
		return nil, nil, err
	}
	bare, err := b.startBare(ctx, "bare", image)
	if err != nil {
		return nil, nil, err
	}
	socket, err := b.startBare(ctx, "socket", image)
	if err != nil {
		return nil, nil, err
	}
	add := func(what, name, path, authorization string, status int, p *process) *readRow {
		r := &readRow{what: what, name: name, url: p.url + path, status: status, process: p}
		if authorization != "" {
			r.header = "Authorization: " + authorization + "\r\n"
		}
		rows = append(rows, r)
		return r
	}
	addPeers := func(what, path string, peers []peer) {
		for _, p := range peers {
			add(what, p.name, path, p.pull, 200, p.process).peer = p.durable
		}
	}
	for _, of := range [][2]string{{byTag, "1.0"}, {byDigest, image.digest}} {
		path := readRepository + "/manifests/" + of[1]
		addPeers(of[0], path, peers)
		add(of[0], "AppView", path, "", 200, appview)
		add(of[0], "AppView, with a token", path, token, 200, appview)
		add(of[0], "bare", path, "", 200, bare)
	}
	blob, atHold := readRepository+"/blobs/"+image.layer, "/xrpc/com.atproto.sync.getBlob?did="+b.alice.DID+"&cid="+image.layer
	add(asRedirect, distribution3+", S3", blob, "", 307, onS3).peer = true
	add(asRedirect, distribution3+", S3, with a token", blob, peerToken, 307, asking)
	add(asRedirect, "AppView", blob, "", 307, appview)
	add(asRedirect, "AppView, with a token", blob, token, 307, appview)
	add(asRedirect, "hold, presigned", atHold, "", 307, h.process)
	add(asRedirect, "bare", blob, "", 307, bare)
	add(asRedirect, "socket", blob, "", 200, socket)
	addPeers(asBytes, blob, slices.DeleteFunc(peers, func(p peer) bool { return p.process == onS3 }))
	onFolder, err := b.folderHold(ctx)
	if err != nil {
		return nil, nil, err
	}
	add(asBytes, "hold, folder", atHold, "", 200, onFolder)
	return rows, []*process{appview, h.process}, nil
}

// folderHold is a hold on a folder that has the small image's layer.
func (b *bench) folderHold(ctx context.Context) (*process, error) {
	h, err := b.startHold(ctx, "hold-read-folder")
	if err != nil {
		return nil, err
	}
	service, err := b.serviceToken(ctx, h)
	if err != nil {
		return nil, err
	}
	_, err = push(ctx, b.holdUpload(h, service), newLayer(1024, 12), "")
	return h.process, err
}

// startCrane runs the registry that crane has for tests: without storage, and without a check of who asks.
func (b *bench) startCrane(ctx context.Context, name string) (*process, error) {
	program, err := toolbox.Path("crane")
	if err != nil {
		return nil, err
	}
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	address := fmt.Sprintf("127.0.0.1:%d", port)
	p, err := start(ctx, b.dir, name, "http://"+address, "http://"+address+"/v2/", nil, program, "registry", "serve", "--address", address)
	if err != nil {
		return nil, err
	}
	b.stoppers = append(b.stoppers, p.stop)
	return p, nil
}

// startBare runs this program as the server that serves by flag: of one manifest and one redirect, or of the redirect.
func (b *bench) startBare(ctx context.Context, flag string, image smallImage) (*process, error) {
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	file := filepath.Join(b.dir, "bare-manifest")
	if err := os.WriteFile(file, image.manifest, 0o600); err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	address := fmt.Sprintf("127.0.0.1:%d", port)
	p, err := start(ctx, b.dir, flag, "http://"+address, "http://"+address+"/manifests/", nil, self, "-"+flag, address+","+file)
	if err != nil {
		return nil, err
	}
	b.stoppers = append(b.stoppers, p.stop)
	return p, nil
}

// serveBare answers /…/manifests/… with the file's bytes and everything else with a redirect.
func serveBare(ctx context.Context, spec string) error {
	address, file, _ := strings.Cut(spec, ",")
	manifest, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	l, err := listen(ctx, address)
	if err != nil {
		return err
	}
	server := &http.Server{ReadHeaderTimeout: 10 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "/manifests/") {
			w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
			_, _ = w.Write(manifest)
			return
		}
		w.Header().Set("Location", "http://localhost:1/xrpc/com.atproto.sync.getBlob?did=did:plc:x&cid=sha256:x")
		w.Header().Set("Content-Length", "0")
		w.WriteHeader(http.StatusTemporaryRedirect)
	})}
	return server.Serve(l)
}

// serveSocket answers whatever ends in an empty line with the headers of a redirect, and parses nothing: the least that
// a server in Go can do.
func serveSocket(ctx context.Context, spec string) error {
	address, _, _ := strings.Cut(spec, ",")
	l, err := listen(ctx, address)
	if err != nil {
		return err
	}
	answer := []byte("HTTP/1.1 200 OK\r\nLocation: http://localhost:1/xrpc/com.atproto.sync.getBlob?did=did:plc:x&cid=sha256:x\r\n" +
		"Date: Thu, 01 Jan 2026 00:00:00 GMT\r\nContent-Length: 0\r\n\r\n")
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer func() { _ = conn.Close() }()
			r := bufio.NewReaderSize(conn, 4096)
			for {
				for empty := false; !empty; {
					line, err := r.ReadSlice('\n')
					if err != nil {
						return
					}
					empty = len(bytes.TrimRight(line, "\r\n")) == 0
				}
				if _, err := conn.Write(answer); err != nil {
					return
				}
			}
		}()
	}
}

// concurrentPulls has many clients pull one image at once, each on connections of its own.
func (b *bench) concurrentPulls(ctx context.Context, ours []*process) error {
	const pullers = 1000
	for _, p := range ours {
		if err := p.resetPeak(); err != nil {
			return err
		}
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	var took []time.Duration
	failed := 0
	start := make(chan struct{})
	for range pullers {
		wg.Go(func() {
			<-start
			began := time.Now()
			err := pullOnce(ctx, ours[0].url)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				failed++
			}
			took = append(took, time.Since(began))
		})
	}
	close(start)
	wg.Wait()
	slices.Sort(took)
	b.printf("\n## %d pulls of one image at once\n\nManifest by tag, config and layer through their redirects to the storage, on connections of their own.\n\n| failed | median | p99 |", pullers)
	memory := ""
	for _, p := range ours {
		peak, err := p.peakMemory()
		if err != nil {
			return err
		}
		b.printf(" peak memory of %s |", strings.TrimSuffix(p.name, "-read"))
		memory += fmt.Sprintf(" %d MB |", peak/1e6)
	}
	b.printf("\n|---|---|---|---|---|\n| %d | %s | %s |%s\n", failed, took[len(took)/2].Round(time.Millisecond), took[len(took)*99/100].Round(time.Millisecond), memory)
	return nil
}

func pullOnce(ctx context.Context, base string) error {
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	one := &http.Client{Transport: transport}
	raw, err := getAll(ctx, one, base+readRepository+"/manifests/1.0")
	if err != nil {
		return err
	}
	for _, part := range strings.Split(string(raw), `"digest":"`)[1:] {
		digest, _, _ := strings.Cut(part, `"`)
		if _, err := getAll(ctx, one, base+readRepository+"/blobs/"+digest); err != nil {
			return err
		}
	}
	return nil
}

func getAll(ctx context.Context, c *http.Client, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	res, err := c.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", url, res.Status)
	}
	return body, err
}
