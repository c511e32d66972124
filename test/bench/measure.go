package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"
)

func expiry() string { return strconv.FormatInt(time.Now().Add(50*time.Minute).Unix(), 10) }

func median[T int64 | float64 | time.Duration](v []T) T {
	s := slices.Clone(v)
	slices.Sort(s)
	return s[len(s)/2]
}

// target is one way to push.
type target struct {
	name          string
	begin         begin
	authorization string
	process       *process
}

// pushTargets are the peer, the hold itself, and the hold through the AppView, started anew for a section. storages are
// the hold's and the peer's, none where storage is folder.
func (b *bench) pushTargets(ctx context.Context, section, storage string) (targets []target, storages []*s3Server, err error) {
	suffix, holdEnv := "-"+section+"-"+storage, []string(nil)
	var peerS3 *s3Server
	if storage != folder {
		own, err := b.startS3(ctx, storage, storage+"-hold"+suffix)
		if err != nil {
			return nil, nil, err
		}
		holdEnv = own.holdEnv(own.url)
		if peerS3, err = b.startS3(ctx, storage, storage+"-peer"+suffix); err != nil {
			return nil, nil, err
		}
		storages = []*s3Server{own, peerS3}
	}
	peer, err := b.startDistribution(ctx, "distribution"+suffix, peerS3, nil)
	if err != nil {
		return nil, nil, err
	}
	h, err := b.startHold(ctx, "hold"+suffix, holdEnv...)
	if err != nil {
		return nil, nil, err
	}
	appview, err := b.startAppView(ctx, "appview"+suffix, h)
	if err != nil {
		return nil, nil, err
	}
	service, err := b.serviceToken(ctx, h)
	if err != nil {
		return nil, nil, err
	}
	token, err := registryToken(ctx, appview, b.alice, "repository:alice.test/bench:pull,push")
	if err != nil {
		return nil, nil, err
	}
	return []target{
		{"distribution", registryUpload(peer.url, "alice.test/bench", ""), "", peer},
		{"hold, uploadUrl", b.holdUpload(h, service), "", h.process},
		{"through the AppView", registryUpload(appview.url, "alice.test/bench", token), token, appview},
	}, storages, nil
}

func benchPush(ctx context.Context, b *bench) error {
	targets, _, err := b.pushTargets(ctx, "push", folder)
	if err != nil {
		return err
	}
	plain, err := b.startPlain(ctx)
	if err != nil {
		return err
	}
	targets = append(targets, target{"plain", registryUpload(plain.url, "alice.test/bench", ""), "", plain})
	first, again, err := touchMemory()
	if err != nil {
		return err
	}
	b.printf("\n## Pushing one layer, storage is a folder\n\nPOST, PATCH with the whole stream, PUT, at each target once a round, in any order. Final PUT: its own time; last byte: from when the last byte was given to the system to\nthe 201; each median and worst. CPU: of the server that takes the layer. The disk is synced before each push, and the layer is deleted after it. plain: from the\nconnection through sha256 into a file, and fsync, without anything else. %d GiB of memory were touched before, lest the host's first giving of it be measured: %s, and a second time %s.\n\n| layer | target | MB/s | of distribution | of plain | wanted | final PUT | last byte | CPU s/GB |\n|---|---|---|---|---|---|---|---|---|\n",
		touchedBytes>>30, first.Round(10*time.Millisecond), again.Round(10*time.Millisecond))
	seed := uint64(1)
	for _, size := range []int64{256 << 20, 1 << 30} {
		rounds := b.rounds
		if size < 1<<30 {
			rounds *= 3 // a short push is a matter of luck
		}
		pushes, cpu := make([][]pushed, len(targets)), make([]time.Duration, len(targets))
		for range rounds {
			for _, i := range rand.Perm(len(targets)) { // who comes next takes over the memory of the one before
				t := targets[i]
				seed++
				l := newLayer(size, seed)
				syscall.Sync() // what an earlier push left to be written is not this one's to pay
				before, err := t.process.cpu()
				if err != nil {
					return err
				}
				p, err := push(ctx, t.begin, l, t.authorization)
				if err != nil {
					return fmt.Errorf("%s: %w", t.name, err)
				}
				after, err := t.process.cpu()
				if err = errors.Join(err, b.dropFiles(size)); err != nil {
					return err
				}
				cpu[i] += after - before
				pushes[i] = append(pushes[i], p)
			}
		}
		times := func(i int, of func(pushed) time.Duration) []time.Duration { return durations(pushes[i], of) }
		total := func(p pushed) time.Duration { return p.Total }
		for i, t := range targets {
			final, last := times(i, func(p pushed) time.Duration { return p.Final }), times(i, func(p pushed) time.Duration { return p.Last })
			b.printf("| %d MiB | %s | %.0f | %.2f× | %.2f× | %s | %s, %s | %s, %s | %.2f |\n", size>>20, t.name, float64(size)/1e6/median(times(i, total)).Seconds(),
				median(times(0, total)).Seconds()/median(times(i, total)).Seconds(), median(times(len(targets)-1, total)).Seconds()/median(times(i, total)).Seconds(),
				[]string{"", "≥1×, ≥0.9×", "≥0.8×", ""}[i], short(median(final)), short(slices.Max(final)),
				short(median(last)), short(slices.Max(last)), cpu[i].Seconds()/float64(rounds)/float64(size)*1e9)
		}
	}
	return nil
}

func short(d time.Duration) time.Duration { return d.Round(100 * time.Microsecond) }

// dropFiles deletes what the targets keep of a layer, so that a run needs no disk and no page cache for all of them.
func (b *bench) dropFiles(size int64) error {
	return filepath.WalkDir(b.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if info, err := d.Info(); err != nil || info.Size() != size {
			return err
		}
		return os.Remove(path)
	})
}

func benchMemory(ctx context.Context, b *bench) error {
	b.printf("\n## 16 parallel pushes of 256 MiB\n\n| storage | target | process | peak memory | MB/s | slowest final PUT |\n|---|---|---|---|---|---|\n")
	for _, storage := range []string{folder, versitygw, minIO} {
		targets, storages, err := b.pushTargets(ctx, "memory", storage)
		if err != nil {
			return err
		}
		layers := make([]*layer, 16)
		for i, t := range targets {
			for j := range layers {
				layers[j] = newLayer(256<<20, uint64(1000+100*i+j))
			}
			processes := []*process{t.process}
			if i == 2 {
				processes = append(processes, targets[1].process)
			}
			for _, p := range processes {
				if err := p.resetPeak(); err != nil {
					return err
				}
			}
			total, worst, err := parallel(ctx, len(layers), func(ctx context.Context, j int) (pushed, error) {
				p, err := push(ctx, t.begin, layers[j], t.authorization)
				if err == nil {
					err = p.find(ctx, t.authorization)
				}
				return p, err
			})
			if err != nil {
				return fmt.Errorf("%s: %w", t.name, err)
			}
			for _, p := range processes {
				peak, err := p.peakMemory()
				if err != nil {
					return err
				}
				b.printf("| %s | %s | %s | %d MB | %.0f | %s |\n", storage, t.name, shortName(p), peak/1e6,
					float64(len(layers))*256*1.048576/total.Seconds(), worst.Round(time.Millisecond))
			}
			err = b.dropFiles(layers[0].size)
			for _, s := range storages {
				err = errors.Join(err, s.clear(ctx))
			}
			if err != nil {
				return err
			}
		}
		for _, s := range storages {
			s.pause()
		}
	}
	return nil
}

// benchS3Requests counts what a 1 KiB blob costs at the storage.
func benchS3Requests(ctx context.Context, b *bench) error {
	storage, err := b.startS3(ctx, versitygw, "versitygw-count")
	if err != nil {
		return err
	}
	proxy, err := startProxy(ctx, storage.url)
	if err != nil {
		return err
	}
	b.stoppers = append(b.stoppers, proxy.close)
	h, err := b.startHold(ctx, "hold-count", storage.holdEnv(proxy.url)...)
	if err != nil {
		return err
	}
	service, err := b.serviceToken(ctx, h)
	if err != nil {
		return err
	}
	l := newLayer(1024, 7)
	counted := func(f func() error) (int64, error) {
		before := proxy.requests.Load()
		err := f()
		return proxy.requests.Load() - before, err
	}
	pushes, err := counted(func() error { _, err := push(ctx, b.holdUpload(h, service), l, ""); return err })
	if err != nil {
		return err
	}
	blob := h.url + "/xrpc/com.atproto.sync.getBlob?did=" + b.alice.DID + "&cid=" + l.digest
	heads, err := counted(func() error { _, err := noRedirect(ctx, http.MethodHead, blob, http.StatusOK); return err })
	if err != nil {
		return err
	}
	gets, err := counted(func() error {
		_, err := noRedirect(ctx, http.MethodGet, blob, http.StatusTemporaryRedirect)
		return err
	})
	if err != nil {
		return err
	}
	b.printf("\n## S3 requests\n\n| 1 KiB blob | requests |\n|---|---|\n| push | %d |\n| HEAD | %d |\n| GET, to the redirect | %d |\n", pushes, heads, gets)
	return nil
}

func noRedirect(ctx context.Context, method, url string, want int) (http.Header, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, nil)
	if err != nil {
		return nil, err
	}
	res, err := client.Transport.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = res.Body.Close() }()
	_, _ = io.Copy(io.Discard, io.LimitReader(res.Body, 1<<20)) // so that the connection is used again
	if res.StatusCode != want {
		return nil, fmt.Errorf("%s %s: %s, want %d", method, req.URL.Path, res.Status, want)
	}
	return res.Header, nil
}
