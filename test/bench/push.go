package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"time"
)

// layer is pseudo-random bytes made as they are read, so that the generator's memory does not count.
// The first block is unique; the rest repeats, which costs the sender little.
type layer struct {
	size   int64
	seed   uint64
	digest string
}

const blockBytes = 1 << 20

func newLayer(size int64, seed uint64) *layer {
	l := &layer{size: size, seed: seed}
	h := sha256.New()
	if _, err := io.Copy(h, l.reader()); err != nil {
		panic(err) // the reader cannot fail
	}
	l.digest = "sha256:" + hex.EncodeToString(h.Sum(nil))
	return l
}

func (l *layer) reader() io.Reader {
	block := make([]byte, blockBytes)
	source := rand.NewChaCha8([32]byte{byte(l.seed), byte(l.seed >> 8), byte(l.seed >> 16), byte(l.seed >> 24)})
	_, _ = source.Read(block) // never fails
	return io.LimitReader(&repeat{block: block}, l.size)
}

type repeat struct {
	block []byte
	at    int
}

func (r *repeat) Read(p []byte) (int, error) {
	n := copy(p, r.block[r.at:])
	r.at = (r.at + n) % len(r.block)
	return n, nil
}

// begin starts an upload and returns the URL that takes the bytes.
type begin func(ctx context.Context) (string, error)

// pushed is what one push took.
type pushed struct {
	Total time.Duration // from POST to 201
	Final time.Duration // from the last byte's acknowledgement to 201: the final PUT
	Last  time.Duration // from when the last byte was given to the system to 201
	There time.Duration // from 201 to when a HEAD finds the layer
	at    string        // where the 201 says that the layer is
}

// find has Total go on until a HEAD finds the layer: a registry may answer before its storage is done.
func (p *pushed) find(ctx context.Context, authorization string) error {
	start := time.Now()
	if _, err := send(ctx, http.MethodHead, p.at, nil, authorization, http.StatusOK); err != nil {
		return err
	}
	p.There = time.Since(start)
	p.Total += p.There
	return nil
}

var client = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64, WriteBufferSize: 256 << 10}}

// push sends a layer as docker does: POST, PATCH with the whole stream, PUT with the digest.
func push(ctx context.Context, b begin, l *layer, authorization string) (pushed, error) {
	start := time.Now()
	target, err := b(ctx)
	if err != nil {
		return pushed{}, err
	}
	body := &ending{Reader: l.reader()}
	target, err = send(ctx, http.MethodPatch, target, body, authorization, http.StatusAccepted)
	if err != nil {
		return pushed{}, err
	}
	last := time.Now()
	separator := "?"
	if strings.Contains(target, "?") {
		separator = "&"
	}
	at, err := send(ctx, http.MethodPut, target+separator+"digest="+l.digest, nil, authorization, http.StatusCreated)
	if err != nil {
		return pushed{}, err
	}
	return pushed{Total: time.Since(start), Final: time.Since(last), Last: time.Since(body.ended()), at: at}, nil
}

// ending remembers when its end was read.
type ending struct {
	io.Reader
	mu sync.Mutex
	at time.Time
}

func (e *ending) Read(p []byte) (int, error) {
	n, err := e.Reader.Read(p)
	if err == io.EOF { //nolint:errorlint // readers return it as it is
		e.mu.Lock()
		e.at = time.Now()
		e.mu.Unlock()
	}
	return n, err
}

func (e *ending) Close() error { return nil }

func (e *ending) ended() time.Time {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.at
}

// registryUpload is begin by the distribution API.
func registryUpload(base, repository, authorization string) begin {
	return func(ctx context.Context) (string, error) {
		return send(ctx, http.MethodPost, base+"/v2/"+repository+"/blobs/uploads/", nil, authorization, http.StatusAccepted)
	}
}

// send returns the answer's Location, whole.
func send(ctx context.Context, method, target string, body io.Reader, authorization string, want int) (string, error) {
	req, err := http.NewRequestWithContext(ctx, method, target, body)
	if err != nil {
		return "", err
	}
	if authorization != "" {
		req.Header.Set("Authorization", authorization)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/octet-stream")
	}
	res, err := client.Do(req)
	if err != nil {
		return "", err
	}
	text, err := io.ReadAll(io.LimitReader(res.Body, 4096))
	if err := errors.Join(err, res.Body.Close()); err != nil {
		return "", err
	}
	if res.StatusCode != want {
		return "", fmt.Errorf("%s %s: %s: %s", method, req.URL.Path, res.Status, text)
	}
	location, err := req.URL.Parse(res.Header.Get("Location"))
	if err != nil {
		return "", err
	}
	return location.String(), nil
}

// parallel runs n pushes at once and returns the time of all and the slowest final PUT.
func parallel(ctx context.Context, n int, one func(ctx context.Context, i int) (pushed, error)) (total, worstFinal time.Duration, err error) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	start := time.Now()
	for i := range n {
		wg.Go(func() {
			p, e := one(ctx, i)
			mu.Lock()
			defer mu.Unlock()
			err = errors.Join(err, e)
			worstFinal = max(worstFinal, p.Final)
		})
	}
	wg.Wait()
	return time.Since(start), worstFinal, err
}
