package appview

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/internal/httpx"
	"atcr.io/internal/identity"
	"atcr.io/internal/index"
	"atcr.io/internal/ingest"
)

const (
	reindexWorkers  = 4
	reindexPage     = 500
	reindexProgress = 2 * time.Second
)

// Reindex makes the index anew: it lists the repos that the relays in config know, and reads each of them, and
// those that are followed already, whole. It tells its progress to out. The AppView may run meanwhile.
//
// Errors: what it could not do at all. Repos that cannot be read are counted, and tried again by the AppView.
func Reindex(ctx context.Context, config Config, logger *slog.Logger, out io.Writer) (err error) {
	db, err := openDatabase(ctx, config)
	if err != nil {
		return err
	}
	a := &AppView{config: config, logger: logger, db: db}
	defer func() {
		if closeErr := db.Close(); err == nil {
			err = closeErr
		}
	}()
	directory := identity.New(identity.Config{
		PLCURL: config.PLCURL, HandleResolverURL: config.HandleResolverURL, AllowPrivate: config.TestMode, UserAgent: userAgent, Logger: logger,
	})
	guarded := httpx.NewClient(httpx.ClientConfig{AllowPrivate: config.TestMode, Timeout: callTimeout, UserAgent: userAgent})
	x, err := index.Open(ctx, index.Config{DB: db, ContentBytes: config.ManifestCacheBytes, Logger: logger})
	if err != nil {
		return err
	}
	feed, err := a.newIngester(x, directory, guarded, nil, time.Now)
	if err != nil {
		return err
	}
	for _, base := range config.RelayURLs {
		found := 0
		if err := feed.Discover(ctx, base, func(n int) { found = n }); err != nil {
			return fmt.Errorf("list the repos of %s: %w", base, err)
		}
		if _, err := fmt.Fprintf(out, "%s lists %d repos with records of images\n", base, found); err != nil {
			return err
		}
	}
	return readAll(ctx, x, feed, logger, out)
}

// readAll reads every repo that is followed, whatever is known of it.
func readAll(ctx context.Context, x *index.Index, feed *ingest.Ingester, logger *slog.Logger, out io.Writer) error {
	before, err := x.Counts(ctx)
	if err != nil {
		return err
	}
	var mu sync.Mutex
	done, failed, shown := 0, 0, time.Now()
	repos := make(chan ingest.Repo)
	var running sync.WaitGroup
	for range reindexWorkers {
		running.Go(func() {
			for r := range repos {
				r.Rev, r.Data = "", "" // whatever is known of it
				err := feed.ReadRepo(ctx, r)
				mu.Lock()
				done++
				if err != nil {
					failed++
					logger.Warn("a repo could not be read", "did", r.DID, "error", err)
				}
				if time.Since(shown) > reindexProgress {
					shown = time.Now()
					_, _ = fmt.Fprintf(out, "%d of %d repos, %d could not be read\n", done, before.Repos, failed) // the next line says it again
				}
				mu.Unlock()
			}
		})
	}
	err = eachRepo(ctx, x, func(r index.Repo) { repos <- sinkRepo(r) })
	close(repos)
	running.Wait()
	if err != nil {
		return err
	}
	after, err := x.Counts(ctx)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(out, "%d repos were read, %d could not be: the index has %d repositories, %d manifests and %d tags\n",
		done-failed, failed, after.Repositories, after.Manifests, after.Tags)
	return err
}

func eachRepo(ctx context.Context, x *index.Index, visit func(index.Repo)) error {
	after := syntax.DID("")
	for ctx.Err() == nil {
		page, err := x.Repos(ctx, after, reindexPage)
		if err != nil || len(page) == 0 {
			return err
		}
		for _, r := range page {
			if r.Status != index.StatusDeleted {
				visit(r)
			}
		}
		after = page[len(page)-1].DID
	}
	return ctx.Err()
}
