package hold

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/api/atcr"
	"atcr.io/internal/httpx"
	"atcr.io/internal/ledger"
	"atcr.io/internal/oci"
	"atcr.io/internal/pds"
)

const (
	// statsEvery is how often counts become records: a relay reads so many events of a host and no more.
	statsEvery = time.Minute
	statsBatch = 100
	// toldFor is how long the word of a trusted AppView stands for what the hold sees of pulls itself.
	toldFor = time.Hour
)

// publishStats writes waiting counts into statistics records, a batch a commit.
func (h *Hold) publishStats(ctx context.Context) error {
	for {
		if n, err := h.publishCounts(ctx); err != nil || n < statsBatch {
			return err
		}
	}
}

// publishCounts writes one batch, and tells how many it had.
func (h *Hold) publishCounts(ctx context.Context) (n int, err error) {
	h.counting.Lock() // what is read here must not be erased before it is written
	defer h.counting.Unlock()
	pending, err := h.ledger.Pending(ctx, statsBatch)
	if err != nil || len(pending) == 0 {
		return 0, err
	}
	counts := make(map[syntax.RecordKey]awaited[ledger.Counts], len(pending))
	writes := make([]pds.Write, 0, len(pending))
	for _, c := range pending {
		rkey := syntax.RecordKey(atcr.StatsRkey(c.Owner.String(), c.Repository))
		stats, err := h.stats(ctx, rkey)
		if err != nil {
			return 0, err
		}
		stats.OwnerDid, stats.Repository, stats.UpdatedAt = c.Owner.String(), c.Repository, timestamp(h.now())
		stats.PushCount, stats.PullCount = stats.PushCount+c.Pushes, stats.PullCount+c.Pulls
		if !c.Pushed.IsZero() {
			stats.LastPush = timestamp(c.Pushed)
		}
		if !c.Pulled.IsZero() {
			stats.LastPull = timestamp(c.Pulled)
		}
		raw, err := json.Marshal(stats)
		if err != nil {
			return 0, err
		}
		counts[rkey] = awaited[ledger.Counts]{c, raw}
		writes = append(writes, pds.Write{Action: pds.Put, Collection: atcr.HoldStatsNSID, Rkey: rkey, Value: raw})
	}
	h.following.mu.Lock()
	h.following.counts = counts
	h.following.mu.Unlock()
	defer func() {
		h.following.mu.Lock()
		h.following.counts = nil
		h.following.mu.Unlock()
	}()
	return len(pending), h.applyAll(ctx, writes)
}

// stats is the record, or an empty one.
func (h *Hold) stats(ctx context.Context, rkey syntax.RecordKey) (stats atcr.HoldStats, err error) {
	r, err := h.repo.GetRecord(ctx, atcr.HoldStatsNSID, rkey)
	if errors.Is(err, pds.ErrRecordNotFound) {
		return stats, nil
	}
	if err == nil {
		err = json.Unmarshal(r.Value, &stats)
	}
	return stats, err
}

// imageCame forgets what is remembered of a config blob.
func (h *Hold) imageCame(config oci.Digest) {
	h.images.Add(1)
	h.configs.Remove(config)
}

// imagesWent forgets what is remembered of all config blobs: whose image one was is not said when it goes.
func (h *Hold) imagesWent() {
	h.images.Add(1)
	h.configs.Purge()
}

// countPull counts a config blob that was handed out as a pull of the images that have it, once an address
// and hour: where no trusted AppView tells of pulls, this is what a hold sees of them.
func (h *Hold) countPull(r *http.Request, digest oci.Digest) {
	if h.now().Sub(time.Unix(0, h.told.Load())) < toldFor {
		return
	}
	manifests, ok := h.configs.Get(digest)
	if !ok {
		var err error
		images := h.images.Load()
		if manifests, err = h.ledger.ConfigOf(r.Context(), digest); err != nil {
			h.log.Warn("count a pull", "error", err)
			return
		}
		h.configs.Add(digest, manifests)
		if h.images.Load() != images {
			h.configs.Remove(digest)
		}
	}
	if len(manifests) != 1 { // of several images nobody knows which was pulled
		return
	}
	m := manifests[0]
	address := httpx.ClientAddress(r, h.config.proxies).String()
	key := address + " " + digest.String()
	now := h.now()
	h.recentMu.Lock()
	at, seen := h.pullers.Get(key)
	if !seen || now.Sub(at) >= time.Hour {
		h.pullers.Add(key, now)
	}
	h.recentMu.Unlock()
	if seen && now.Sub(at) < time.Hour {
		return
	}
	if _, err := h.ledger.Pull(r.Context(), m.Owner, m.Repository, 1); err != nil {
		h.recentMu.Lock()
		h.pullers.Remove(key)
		h.recentMu.Unlock()
		h.log.Warn("count a pull", "error", err)
	}
}
