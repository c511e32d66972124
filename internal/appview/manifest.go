package appview

import (
	"context"
	"errors"
	"net/http"
	"sync"

	"github.com/bluesky-social/indigo/atproto/syntax"
	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/hashicorp/golang-lru/v2/simplelru"
	"golang.org/x/sync/singleflight"

	"atcr.io/api/atcr"
	"atcr.io/internal/oci"
	"atcr.io/internal/registry"
	"atcr.io/internal/sqldb"
	"atcr.io/internal/xrpc"
)

// manifestCacheBytes bounds the memory for manifests' bytes.
const manifestCacheBytes = 24 << 20

// manifests is registry.Manifests on the repos of people.
type manifests struct {
	upstream xrpc.Upstream
	owners   owners
	holds    *holds
	calls    *holdCalls
	notifier *notifier
	gone     *deletedBlobs
	recent   *recentBlobs
	pulls    *pulls
	records  *records
	places   *places
	bytes    *contents
	lists    *lists
	sessions caller
	leases   *sqldb.Leases
	shared   bool // by several processes
	sparse   bool // an index may name manifests that are not here
	flight   singleflight.Group
	met      *lru.Cache[syntax.DID, owner]
	fresh    *freshness
	clock    clock
}

// Get finds record and bytes, and checks the bytes against the digest.
func (m *manifests) Get(ctx context.Context, c registry.Caller, name oci.Name, reference oci.Reference) (registry.Manifest, error) {
	of, err := m.owners.find(ctx, name.Owner)
	if err != nil {
		return registry.Manifest{}, err
	}
	ctx = m.asAsked(ctx, c, of.DID)
	record, err := m.records.resolve(ctx, of, name, reference)
	if err != nil {
		return registry.Manifest{}, err
	}
	at := holdOf(&record.Value)
	if err := m.mayPull(ctx, c, at); err != nil {
		return registry.Manifest{}, err
	}
	raw, err := m.read(ctx, of, &record.Value)
	if err != nil {
		return registry.Manifest{}, err
	}
	out := registry.Manifest{MediaType: record.Value.MediaType, Digest: oci.Digest(record.Value.Digest), Bytes: raw}
	m.places.learn(of.DID, name.Repository, out, at)
	if at != "" && !isIndex(out.MediaType) {
		out.Served = func() { m.pulls.count(pullKey{at, of.DID, name.Repository}, out) }
	}
	m.seen(ctx, of)
	return out, nil
}

// asAsked passes by everything that is kept where the caller asks for that, within limits.
func (m *manifests) asAsked(ctx context.Context, c registry.Caller, did syntax.DID) context.Context {
	if c.Fresh && m.fresh.allow(did) {
		return askPDS(ctx)
	}
	return ctx
}

// seen lets the index know whose image this is, once for each process and change.
func (m *manifests) seen(ctx context.Context, of owner) {
	if last, ok := m.met.Get(of.DID); ok && last == of {
		return
	}
	if err := m.records.view.index.Meet(context.WithoutCancel(ctx), of.DID, of.Handle, of.PDS, ""); err != nil {
		m.records.view.logger.Warn("the index cannot be written", "did", of.DID, "error", err)
		return
	}
	m.met.Add(of.DID, of)
}

// keep remembers a manifest's bytes, in memory and, for when the PDS is down, in the database.
func (m *manifests) keep(ctx context.Context, d oci.Digest, raw []byte) {
	m.bytes.put(d, raw)
	if err := m.records.view.index.PutContent(context.WithoutCancel(ctx), d, raw); err != nil {
		m.records.view.logger.Warn("a manifest cannot be kept", "digest", d, "error", err)
	}
}

// mayPull sends those away who are nobody where the blobs are not for nobody: with a challenge, so that a
// client logs in, instead of a failure at the first blob. A hold that does not answer is met there.
func (m *manifests) mayPull(ctx context.Context, c registry.Caller, did syntax.DID) error {
	if c.Subject != "" || did == "" {
		return nil
	}
	at, err := m.holds.find(ctx, did)
	if err == nil && !at.Public {
		return privateHold(at)
	}
	return nil
}

// read is a manifest's bytes, checked. Errors: *oci.Error.
func (m *manifests) read(ctx context.Context, of owner, record *atcr.Manifest) ([]byte, error) {
	d := oci.Digest(record.Digest) // validManifest parsed it
	if raw, ok := m.bytes.get(d); ok {
		return raw, nil
	}
	result := m.flight.DoChan(of.DID.String()+d.String(), func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lookupTimeout)
		defer cancel()
		return m.fetch(ctx, of, record, d)
	})
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case r := <-result:
		raw, _ := r.Val.([]byte)
		return raw, r.Err
	}
}

func (m *manifests) fetch(ctx context.Context, of owner, record *atcr.Manifest, d oci.Digest) ([]byte, error) {
	if raw, err := m.records.view.index.Content(ctx, d); err == nil && raw != nil {
		m.bytes.put(d, raw)
		return raw, nil
	}
	cid := cidOf(d)
	if record.ManifestBlob != nil {
		cid = record.ManifestBlob.Ref.Link
	}
	if cid == "" {
		return nil, oci.Errorf(oci.CodeManifestUnknown, "the manifest record is an old one, without the manifest's bytes: push the image again")
	}
	raw, err := getAtBlob(ctx, m.upstream, of, cid)
	if errors.Is(err, errBlobMissing) {
		return nil, oci.Errorf(oci.CodeManifestUnknown, "the PDS of %s has the manifest's record, but not its bytes: push the image again", of.DID)
	}
	if err != nil {
		return nil, upstreamError("the PDS of "+of.DID.String(), err)
	}
	if !d.Matches(raw) {
		return nil, oci.Unavailable(http.StatusBadGateway, nil, "the PDS of %s answered with other bytes than %s", of.DID, d)
	}
	m.keep(ctx, d, raw)
	return raw, nil
}

// contents keeps bytes by their digest: they never change, so they are kept until there is no room.
type contents struct {
	mu    sync.Mutex
	lru   *simplelru.LRU[oci.Digest, []byte]
	size  int
	limit int
}

func newContents(limit int) *contents {
	c := &contents{limit: limit}
	var err error
	c.lru, err = simplelru.NewLRU(1<<20, func(_ oci.Digest, raw []byte) { c.size -= cost(raw) })
	if err != nil {
		panic("appview: " + err.Error()) // the size is a constant
	}
	return c
}

// cost of an entry: what an empty one takes as well.
func cost(raw []byte) int { return len(raw) + 256 }

func (c *contents) get(d oci.Digest) ([]byte, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lru.Get(d)
}

func (c *contents) put(d oci.Digest, raw []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if cost(raw) > c.limit/4 || c.lru.Contains(d) {
		return
	}
	c.lru.Add(d, raw)
	for c.size += cost(raw); c.size > c.limit; {
		c.lru.RemoveOldest()
	}
}
