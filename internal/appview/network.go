package appview

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"atcr.io/internal/httpx"
	"atcr.io/internal/identity"
	"atcr.io/internal/index"
	"atcr.io/internal/ingest"
)

const maintainEvery = 10 * time.Minute

// maxDictionaryBytes bounds the file of Jetstream's dictionary.
const maxDictionaryBytes = 4 << 20

// openNetwork opens the index, and begins to read the firehoses that the settings name.
func (a *AppView) openNetwork(ctx, background context.Context, directory *identity.Resolver, guarded *http.Client, reg prometheus.Registerer, now clock) error {
	x, err := index.Open(ctx, index.Config{DB: a.db, ContentBytes: a.config.ManifestCacheBytes, Logger: a.logger, Metrics: reg, Now: now})
	if err != nil {
		return err
	}
	feed, err := a.newIngester(x, directory, guarded, reg, now)
	if err != nil {
		return err
	}
	reading := len(a.config.RelayURLs)+len(a.config.JetstreamURLs) > 0
	if reading {
		a.view = newView(x, feed, a.logger, a.db.OnServer())
	} else {
		a.view = newView(x, nil, a.logger, a.db.OnServer())
	}
	if reading {
		a.running.Go(func() { feed.Run(background) })
	}
	a.every(background, maintainEvery, func(ctx context.Context) {
		if err := x.Maintain(ctx); err != nil && ctx.Err() == nil {
			a.logger.Error("look after the index", "error", err)
		}
	})
	return nil
}

func (a *AppView) newIngester(x *index.Index, directory *identity.Resolver, guarded *http.Client, reg prometheus.Registerer, now clock) (*ingest.Ingester, error) {
	var dictionary []byte
	if file := a.config.JetstreamDictionary; file != "" {
		f, err := os.Open(file)
		if err != nil {
			return nil, fmt.Errorf("ATCR_JETSTREAM_DICTIONARY_FILE: %w", err)
		}
		dictionary, err = httpx.ReadLimited(f, maxDictionaryBytes)
		_ = f.Close() // it was read
		if err != nil {
			return nil, fmt.Errorf("ATCR_JETSTREAM_DICTIONARY_FILE: %w", err)
		}
	}
	return ingest.New(ingest.Config{
		Relays: a.config.RelayURLs, Jetstreams: a.config.JetstreamURLs, Dictionary: dictionary, Collections: index.Collections(),
		Directory: directory, Sink: sink{x}, Logger: a.logger, Metrics: reg, Now: now, Upstream: guarded,
		Trusted: httpx.NewClient(httpx.ClientConfig{AllowPrivate: true, Timeout: callTimeout, UserAgent: userAgent}),
	})
}
