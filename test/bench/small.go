package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"
)

// smallImage is a config and a layer of 1 KiB each.
type smallImage struct {
	digest, layer string
	manifest      []byte
}

// pushSmallImage pushes one as docker does: HEAD, POST, PATCH and PUT for each blob, then the manifest as tag 1.0.
func pushSmallImage(ctx context.Context, base, authorization string, seed uint64) (smallImage, error) {
	layers := []*layer{newLayer(1024, seed), newLayer(1024, seed+1)}
	for _, l := range layers {
		if err := head(ctx, base+readRepository+"/blobs/"+l.digest, authorization); err != nil {
			return smallImage{}, err
		}
		if _, err := push(ctx, registryUpload(base, "alice.test/read", authorization), l, authorization); err != nil {
			return smallImage{}, err
		}
	}
	descriptor := func(mediaType string, l *layer) map[string]any {
		return map[string]any{"mediaType": mediaType, "digest": l.digest, "size": l.size}
	}
	raw, err := json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
		"config": descriptor("application/vnd.oci.image.config.v1+json", layers[0]),
		"layers": []any{descriptor("application/vnd.oci.image.layer.v1.tar", layers[1])},
	})
	if err != nil {
		return smallImage{}, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, base+readRepository+"/manifests/1.0", bytes.NewReader(raw))
	if err != nil {
		return smallImage{}, err
	}
	req.Header.Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
	if authorization != "" {
		req.Header.Set("Authorization", authorization)
	}
	res, err := client.Do(req)
	if err != nil {
		return smallImage{}, err
	}
	defer func() { _ = res.Body.Close() }()
	text, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusCreated {
		return smallImage{}, fmt.Errorf("manifest: %s: %s", res.Status, text)
	}
	return smallImage{digest: res.Header.Get("Docker-Content-Digest"), layer: layers[1].digest, manifest: raw}, nil
}

// head asks whether a blob is there; either answer will do.
func head(ctx context.Context, url, authorization string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodHead, url, nil)
	if err != nil {
		return err
	}
	if authorization != "" {
		req.Header.Set("Authorization", authorization)
	}
	res, err := client.Do(req)
	if err != nil {
		return err
	}
	return res.Body.Close()
}

// stopwatch runs while at least one request is with a server.
type stopwatch struct {
	mu    sync.Mutex
	busy  int
	since time.Time
	total time.Duration
}

func (s *stopwatch) around(w http.ResponseWriter, r *http.Request, next http.Handler) {
	s.mu.Lock()
	if s.busy++; s.busy == 1 {
		s.since = time.Now()
	}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.busy--; s.busy == 0 {
			s.total += time.Since(s.since)
		}
	}()
	next.ServeHTTP(w, r)
}

// take is what has run since the last look.
func (s *stopwatch) take() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.total
	s.total = 0
	return t
}

// benchSmall pushes images of two blobs of 1 KiB, each new, one after the other, in turn at every registry.
func benchSmall(ctx context.Context, b *bench) error {
	const pushesARound = 20
	peers, err := b.folderPeers(ctx, "small")
	if err != nil {
		return err
	}
	h, err := b.startHold(ctx, "hold-small")
	if err != nil {
		return err
	}
	appview, err := b.startAppView(ctx, "appview-small", h)
	if err != nil {
		return err
	}
	token, err := registryToken(ctx, appview, b.alice, "repository:alice.test/read:pull,push")
	if err != nil {
		return err
	}
	var pds stopwatch
	watched := b.network.PDS.Inject(nil, pds.around)
	defer watched.Remove()
	timed := func(base, authorization string, i uint64) (time.Duration, error) {
		began := time.Now()
		_, err := pushSmallImage(ctx, base, authorization, 10_000+2*i)
		return time.Since(began), err
	}
	theirs := make([][]time.Duration, len(peers))
	var ours, own []time.Duration
	for i := range uint64(b.rounds * pushesARound) {
		for j, p := range peers {
			took, err := timed(p.url, p.push, i)
			if err != nil {
				return fmt.Errorf("%s: %w", p.name, err)
			}
			theirs[j] = append(theirs[j], took)
		}
		pds.take() // what the hold asked of it meanwhile
		took, err := timed(appview.url, token, i)
		if err != nil {
			return err
		}
		ours, own = append(ours, took), append(own, took-min(pds.take(), took))
	}
	var fastest best
	for j, p := range peers {
		fastest.see(p.name, 1/median(theirs[j]).Seconds())
	}
	b.printf("\n## Small pushes\n\nConfig and layer of 1 KiB each, and a manifest, storage a folder; one after the other, %d each; wanted: ≥1× the best peer. Without the PDS:\nless the time in which a request was with the person's PDS, which keeps manifest and records; the peers have no such thing.\n\n"+
		"| server | a push | of the best peer |\n|---|---|---|\n", len(ours))
	row := func(name string, times []time.Duration) {
		b.printf("| %s | %s | %.2f× |\n", name, short(median(times)), 1/median(times).Seconds()/fastest.value)
	}
	for j, p := range peers {
		row(p.name, theirs[j])
	}
	row("AppView and hold", ours)
	row("the same, without the PDS", own)
	b.verdict("small pushes", fastest, 1/median(ours).Seconds(), 1)
	return nil
}
