package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"atcr.io/internal/blobstore/s3"
	"atcr.io/test/components/toolbox"
)

// The storages of the pushes: folder, and two S3 servers that do differently what a completed upload needs.
const (
	folder    = "folder"
	versitygw = "versitygw"
	minIO     = "minio"
)

// s3Server is an S3 server with one bucket.
type s3Server struct {
	*process
	key, secret string
	core        minio.Core
}

const bucket = "blobs"

// startS3 starts a versitygw or MinIO.
func (b *bench) startS3(ctx context.Context, kind, name string) (*s3Server, error) {
	program, err := toolbox.Path(kind)
	if err != nil {
		return nil, err
	}
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	root := filepath.Join(b.dir, name)
	if err := os.MkdirAll(root, 0o755); err != nil {
		return nil, err
	}
	s := &s3Server{key: "benchkey", secret: "benchsecret"}
	address := fmt.Sprintf("127.0.0.1:%d", port)
	ready, env, argv := "/", []string{"ROOT_ACCESS_KEY=" + s.key, "ROOT_SECRET_KEY=" + s.secret}, []string{program, "--port", address, "posix", root}
	if kind == minIO {
		ready, env, argv = "/minio/health/ready", []string{"MINIO_ROOT_USER=" + s.key, "MINIO_ROOT_PASSWORD=" + s.secret, "MINIO_BROWSER=off"},
			[]string{program, "server", "--quiet", "--address", address, root}
	}
	s.process, err = start(ctx, b.dir, name, "http://"+address, "http://"+address+ready, env, argv...)
	if err != nil {
		return nil, err
	}
	b.stoppers = append(b.stoppers, s.stop)
	client, err := minio.New(address, &minio.Options{Creds: credentials.NewStaticV4(s.key, s.secret, ""), Region: "us-east-1"})
	if err != nil {
		return nil, err
	}
	s.core = minio.Core{Client: client}
	return s, client.MakeBucket(ctx, bucket, minio.MakeBucketOptions{})
}

// clear deletes every object, so that a run needs no disk and no page cache for all of them.
func (s *s3Server) clear(ctx context.Context) error {
	for object := range s.core.Client.ListObjects(ctx, bucket, minio.ListObjectsOptions{Recursive: true}) {
		if err := errors.Join(object.Err, s.core.RemoveObject(ctx, bucket, object.Key, minio.RemoveObjectOptions{})); err != nil {
			return err
		}
	}
	return nil
}

// partsAlone sends l as a hold does, in as large parts and as many of them at once, but has nobody to take it from and
// does not hash it. Final and Last are the time of the completing request alone.
func (s *s3Server) partsAlone(ctx context.Context, l *layer) (pushed, error) {
	start := time.Now()
	const key = "atcr/uploads/parts-alone"
	id, err := s.core.NewMultipartUpload(ctx, bucket, key, minio.PutObjectOptions{})
	if err != nil {
		return pushed{}, err
	}
	var mu sync.Mutex // of what is below
	reader, parts, failed := l.reader(), []minio.CompletePart(nil), error(nil)
	next := func(buffer []byte) (number, n int) {
		mu.Lock()
		defer mu.Unlock()
		n, _ = io.ReadFull(reader, buffer) // ends, and nothing else
		if n == 0 || failed != nil {
			return 0, 0
		}
		parts = append(parts, minio.CompletePart{PartNumber: len(parts) + 1})
		return len(parts), n
	}
	var wg sync.WaitGroup
	for range s3.PartsInFlight {
		wg.Go(func() {
			buffer := make([]byte, s3.PartBytes)
			for {
				number, n := next(buffer)
				if n == 0 {
					return
				}
				part, err := s.core.PutObjectPart(ctx, bucket, key, id, number, bytes.NewReader(buffer[:n]), int64(n), minio.PutObjectPartOptions{DisableContentSha256: true})
				mu.Lock()
				parts[number-1].ETag = part.ETag
				failed = errors.Join(failed, err)
				mu.Unlock()
			}
		})
	}
	if wg.Wait(); failed != nil {
		return pushed{}, failed
	}
	last := time.Now()
	_, err = s.core.CompleteMultipartUpload(ctx, bucket, key, id, parts, minio.PutObjectOptions{})
	return pushed{Total: time.Since(start), Final: time.Since(last), Last: time.Since(last)}, err
}

// benchPushS3 pushes one large layer where the storage is S3.
func benchPushS3(ctx context.Context, b *bench) error {
	const size = 1 << 30
	b.printf("\n## Pushing one layer, storage is S3\n\nThe same, to S3 servers on the same machine. parts alone: this program sends the same parts to the storage, three at a time, and neither receives nor hashes\nthem: the most that any can have here; its final PUT is CompleteMultipartUpload alone, the storage's own time. versitygw copies the parts into one file then, as\nobject stores do not; MinIO keeps them as they are. Last byte: until then the last parts are on their way. A hold answers when the parts are in the storage, and the storage joins\nthem after that: MB/s counts until a HEAD finds the layer, and HEAD is its own time; to the 201: of distribution, without it. CPU: of the server that takes the layer, and of the\nstorage, which share the machine.\n\n| storage | layer | target | MB/s | of distribution | to the 201 | of parts alone | wanted | final PUT | last byte | HEAD | CPU s/GB | storage's |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|\n")
	for _, kind := range []string{versitygw, minIO} {
		targets, storages, err := b.pushTargets(ctx, "push", kind)
		if err != nil {
			return err
		}
		targets = append(targets, target{name: "parts alone"})
		alone := len(targets) - 1
		pushes, spent := make([][]pushed, len(targets)), make([][2]time.Duration, len(targets))
		for round := range b.rounds {
			for _, i := range rand.Perm(len(targets)) {
				t, l := targets[i], newLayer(size, uint64(20_000+10*round+i))
				syscall.Sync()
				before, err := spentBy(t.process, storages)
				if err != nil {
					return err
				}
				var p pushed
				if i == alone {
					p, err = storages[0].partsAlone(ctx, l)
				} else {
					if p, err = push(ctx, t.begin, l, t.authorization); err == nil {
						err = p.find(ctx, t.authorization)
					}
				}
				after, cpuErr := spentBy(t.process, storages)
				err = errors.Join(err, cpuErr)
				for _, s := range storages {
					err = errors.Join(err, s.clear(ctx))
				}
				if err != nil {
					return fmt.Errorf("%s: %w", t.name, err)
				}
				spent[i][0] += after[0] - before[0]
				spent[i][1] += after[1] - before[1]
				pushes[i] = append(pushes[i], p)
			}
		}
		total := func(i int) float64 {
			return median(durations(pushes[i], func(p pushed) time.Duration { return p.Total })).Seconds()
		}
		answered := func(i int) float64 {
			return median(durations(pushes[i], func(p pushed) time.Duration { return p.Total - p.There })).Seconds()
		}
		for i, t := range targets {
			final, last := durations(pushes[i], func(p pushed) time.Duration { return p.Final }), durations(pushes[i], func(p pushed) time.Duration { return p.Last })
			there := durations(pushes[i], func(p pushed) time.Duration { return p.There })
			b.printf("| %s | %d MiB | %s | %.0f | %.2f× | %.2f× | %.2f× | %s | %s, %s | %s, %s | %s, %s | %.2f | %.2f |\n", kind, size>>20, t.name,
				size/1e6/total(i), total(0)/total(i), answered(0)/answered(i), total(alone)/total(i),
				[]string{"", "≥3×, PUT <50ms", "≥3×, PUT <50ms", ""}[i], short(median(final)), short(slices.Max(final)), short(median(last)), short(slices.Max(last)), short(median(there)), short(slices.Max(there)),
				spent[i][0].Seconds()/float64(b.rounds)/size*1e9, spent[i][1].Seconds()/float64(b.rounds)/size*1e9)
		}
		for _, s := range storages { // they have work of their own even when nobody asks
			s.pause()
		}
	}
	return nil
}

// spentBy is the processors' time of p, where there is one, and of the storages.
func spentBy(p *process, storages []*s3Server) (spent [2]time.Duration, err error) {
	if p != nil {
		if spent[0], err = p.cpu(); err != nil {
			return spent, err
		}
	}
	for _, s := range storages {
		d, err := s.cpu()
		if err != nil {
			return spent, err
		}
		spent[1] += d
	}
	return spent, nil
}

func durations(pushes []pushed, of func(pushed) time.Duration) (out []time.Duration) {
	for _, p := range pushes {
		out = append(out, of(p))
	}
	return out
}

// shortName is a process's name without the section that it was started for.
func shortName(p *process) string {
	name, _, _ := strings.Cut(p.name, "-memory-")
	return name
}
