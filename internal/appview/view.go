package appview

import (
	"context"
	"encoding/json"
	"errors"
	"hash/maphash"
	"log/slog"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"
	lru "github.com/hashicorp/golang-lru/v2"

	"atcr.io/api/atcr"
	"atcr.io/internal/identity"
	"atcr.io/internal/index"
	"atcr.io/internal/ingest"
	"atcr.io/internal/oci"
	"atcr.io/internal/xrpc"
)

// coveredFresh bounds how long memory answers from the index without looking again.
const coveredFresh = 5 * time.Minute

// view is what this AppView knows of the network beside what it asks: the index, whether a firehose keeps it
// true, and what of it caches in memory may go on believing.
type view struct {
	index  *index.Index
	feed   *ingest.Ingester // nil: no firehose is read
	logger *slog.Logger
	// shared: other processes write to the same database, so that memory alone does not know what changed.
	shared bool

	known  *lru.Cache[syntax.DID, coverage]
	seed   maphash.Seed
	all    atomic.Uint64
	shards [256]atomic.Uint64
}

func newView(x *index.Index, feed *ingest.Ingester, logger *slog.Logger, shared bool) *view {
	v := &view{index: x, feed: feed, logger: logger, shared: shared, seed: maphash.MakeSeed(), known: newLRU[syntax.DID, coverage](20_000)}
	x.OnChange(v.changed)
	if feed != nil {
		feed.OnLive(func() { v.all.Add(1) })
	}
	return v
}

func (v *view) shard(did syntax.DID) *atomic.Uint64 {
	return &v.shards[maphash.String(v.seed, did.String())%uint64(len(v.shards))]
}

// changed makes copies in memory old where all of a repo, or everything, may have changed. Single records are
// the caches' own matter.
func (v *view) changed(touched []index.Touched) {
	for _, t := range touched {
		switch {
		case t.DID == "":
			v.all.Add(1)
		case t.Collection == "":
			v.shard(t.DID).Add(1)
		}
	}
}

// stamp is a number that changes with what copies of a repo's records depend on.
func (v *view) stamp(ctx context.Context, did syntax.DID) uint64 {
	at := v.all.Load()<<32 + v.shard(did).Load()<<1
	if !v.shared {
		return at
	}
	version, err := v.index.Version(ctx, did)
	if err != nil {
		return v.all.Add(1) << 32 // nothing in memory is known to be true
	}
	return at*1_000_003 + uint64(version)
}

// covered tells whether the index is as true as the owner's PDS: the repo was read whole, and a firehose that is
// up to date brings its changes.
func (v *view) covered(ctx context.Context, did syntax.DID) bool {
	if v.feed == nil || asksPDS(ctx) {
		return false
	}
	stamp := v.stamp(ctx, did)
	if c, ok := v.known.Get(did); ok && c.stamp == stamp && time.Since(c.at) < coverageFresh {
		return c.covered
	}
	r, found, err := v.index.Repo(ctx, did)
	if err != nil {
		v.logger.Warn("the index cannot be asked", "error", err)
		return false
	}
	covered := found && r.Complete && r.Status == index.StatusActive && v.feed.Live(r.Source)
	v.known.Add(did, coverage{stamp, time.Now(), covered})
	return covered
}

// coverage is an answer of covered, good while nothing changed of what it depends on.
type coverage struct {
	stamp   uint64
	at      time.Time
	covered bool
}

// coverageFresh is for what changes without a word: another process that reads a repo whole.
const coverageFresh = 2 * time.Second

type askPDSKey struct{}

// askPDS makes look-ups pass by everything that is kept.
func askPDS(ctx context.Context) context.Context { return context.WithValue(ctx, askPDSKey{}, true) }

func asksPDS(ctx context.Context) bool { return ctx.Value(askPDSKey{}) != nil }

// unanswered tells whether a PDS, or the way to it, failed: then what was seen before is better than nothing. An error
// without a name is no PDS's, but that of a proxy before it.
func unanswered(err error) bool {
	if errors.Is(err, identity.ErrUnavailable) || errors.Is(err, context.DeadlineExceeded) {
		return true
	}
	e, ok := errors.AsType[*xrpc.UpstreamError](err)
	return ok && (e.Status == 0 || e.Invalid || e.Name == "" || e.Status >= 500 || e.Status == http.StatusTooManyRequests)
}

// seenBefore tells whether what the index has of a repo may be shown while its owner's PDS does not answer: not
// where the account is known not to be active.
func (v *view) seenBefore(ctx context.Context, did syntax.DID) bool {
	r, found, err := v.index.Repo(context.WithoutCancel(ctx), did)
	return err == nil && found && r.Status == index.StatusActive
}

// observe gives the index what was read of a record, f nil for none, unless it changed since version.
func observe[T any](ctx context.Context, v *view, did syntax.DID, version int64, collection, rkey string, f *found[T]) {
	c := index.Change{Collection: collection, Rkey: rkey}
	if f != nil && !f.Malformed {
		raw, err := json.Marshal(f.Value)
		if err != nil {
			return
		}
		c.CID, c.Value = f.CID, raw
	}
	if err := v.index.Observe(context.WithoutCancel(ctx), did, version, c); err != nil {
		v.logger.Warn("the index cannot be written", "did", did, "error", err)
	}
}

// wrote gives the index what a PDS acknowledged. The records are there whatever becomes of it: the index can be
// made anew.
func (v *view) wrote(ctx context.Context, did syntax.DID, writes []write, done acknowledged) {
	changes := make([]index.Change, len(writes))
	for i, w := range writes {
		changes[i] = index.Change{Collection: w.Collection, Rkey: w.Rkey}
		if w.Value == nil {
			continue
		}
		raw, err := json.Marshal(w.Value)
		if err != nil {
			continue
		}
		changes[i].Value = raw
		if i < len(done.CIDs) {
			changes[i].CID = done.CIDs[i]
		}
	}
	err := v.index.Write(context.WithoutCancel(ctx), []index.Commit{{DID: did, Rev: done.Rev, Changes: changes}}, index.Cursor{})
	if err != nil {
		v.logger.Error("the index cannot be written", "did", did, "error", err)
		v.shard(did).Add(1)
	}
}

// foundTag and foundManifest are records as the index has them.
func foundTag(t *index.Tag) *found[atcr.Tag] {
	if t == nil {
		return nil
	}
	f := &found[atcr.Tag]{Rkey: t.Rkey, CID: t.CID, Value: atcr.Tag{Repository: t.Repository, Tag: t.Name, ManifestDigest: t.Digest}}
	if t.ManifestRkey != "" {
		f.Value.Manifest = "at://" + t.DID.String() + "/" + atcr.ManifestNSID + "/" + t.ManifestRkey
	}
	return f
}

func foundManifest(m *index.Manifest) *found[atcr.Manifest] {
	if m == nil {
		return nil
	}
	f := &found[atcr.Manifest]{Rkey: m.Rkey, CID: m.CID, Value: atcr.Manifest{
		Repository: m.Repository, Digest: m.Digest, MediaType: m.MediaType, ArtifactType: m.ArtifactType, HoldDid: m.Hold,
	}}
	if m.BlobCID != "" {
		f.Value.ManifestBlob = &atcr.Blob{LexiconTypeID: "blob", Ref: atcr.BlobRef{Link: m.BlobCID}, MimeType: m.BlobMime, Size: m.BlobSize}
	}
	return f
}

// referrerOf is a manifest with a subject as the registry lists it.
func referrerOf(m *index.Manifest) referrer {
	d := oci.Descriptor{
		MediaType: m.MediaType, Digest: oci.Digest(m.Digest), Size: m.BlobSize, ArtifactType: m.ArtifactType, Annotations: m.Annotations,
	}
	if d.ArtifactType == "" {
		d.ArtifactType = m.ConfigType
	}
	return referrer{subject: m.Subject, descriptor: d}
}
