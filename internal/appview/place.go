package appview

import (
	"cmp"
	"context"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"
	lru "github.com/hashicorp/golang-lru/v2"

	"atcr.io/api/atcr"
	"atcr.io/internal/oci"
	"atcr.io/internal/registry"
)

const (
	placesKept = 60_000
	// scanFresh is how long a search of somebody's records is not repeated.
	scanFresh  = 10 * time.Second
	scanFailed = 2 * time.Second
	// scanManifests bounds the manifests that a search reads because their records do not name the blobs.
	scanManifests = 20
	// presentFresh is how long a blob that a hold had is believed to be there still: well below the 48 h
	// that a hold keeps one that no image names.
	presentFresh = 10 * time.Minute
	// uploadedFresh is how long a blob that was sent counts for who sent it whatever becomes of it: below those 48 h, too.
	uploadedFresh = time.Hour
)

// blobKey is a blob of a repository.
type blobKey struct {
	did        syntax.DID
	repository string
	digest     oci.Digest
}

// repositoryKey is a repository.
type repositoryKey struct {
	did        syntax.DID
	repository string
}

// presentKey is a blob that a hold has for somebody.
type presentKey struct {
	hold   syntax.DID
	reader string
	digest oci.Digest
}

// present is a blob that a hold had, and what it said of its size.
type present struct {
	since time.Time
	size  int64 // unknownSize where it was sent
}

// unknownSize is that of a blob that the hold was not asked about.
const unknownSize = -1

// places knows at which hold the blobs of a repository are: from manifests that were served and pushed,
// from blobs that were uploaded, and else by a search of the owner's records.
type places struct {
	from      collections
	directory directory
	view      *view
	manifests interface {
		read(ctx context.Context, of owner, record *atcr.Manifest) ([]byte, error)
	}
	known   *lru.Cache[blobKey, syntax.DID]
	scans   *cache[repositoryKey, struct{}]
	present *lru.Cache[presentKey, present]
	// mixed are repositories whose blobs were known at several holds: there what a manifest says is learnt each time, since
	// the hold that was learnt last may lose a blob with the manifest that named it there.
	mixed *lru.Cache[repositoryKey, struct{}]
	// uploaded are blobs that somebody has just sent, and the hold counted for them: of others it may say no when a
	// manifest names them.
	uploaded *lru.Cache[presentKey, time.Time]
	clock    clock
}

func newPlaces(from collections, d directory, v *view, now clock) *places {
	p := &places{
		from: from, directory: d, view: v, clock: now,
		known: newLRU[blobKey, syntax.DID](placesKept), present: newLRU[presentKey, present](placesKept),
		uploaded: newLRU[presentKey, time.Time](10_000), mixed: newLRU[repositoryKey, struct{}](10_000),
	}
	p.scans = newCache(10_000, scanFresh, scanFailed, now, p.scan)
	p.scans.timeout = time.Minute
	return p
}

// add notes that a blob of a repository is at a hold.
func (p *places) add(did syntax.DID, repository string, d oci.Digest, at syntax.DID) {
	if at == "" {
		return
	}
	key := blobKey{did, repository, d}
	if before, ok := p.known.Peek(key); ok && before != at {
		p.mixed.Add(repositoryKey{did, repository}, struct{}{})
	}
	p.known.Add(key, at)
}

// knows tells whether find would answer without a search.
func (p *places) knows(did syntax.DID, repository string, d oci.Digest) bool {
	return p.known.Contains(blobKey{did, repository, d})
}

// learn notes the blobs that a manifest names. The manifest's own digest marks that it was done.
func (p *places) learn(did syntax.DID, repository string, m registry.Manifest, at syntax.DID) {
	done, ok := p.known.Get(blobKey{did, repository, m.Digest})
	if at == "" || ok && done == at && !p.mixed.Contains(repositoryKey{did, repository}) {
		return
	}
	parsed, err := oci.ParseManifest(m.MediaType, m.Bytes)
	if err != nil {
		return
	}
	for _, b := range parsed.Blobs() {
		p.add(did, repository, b.Digest, at)
	}
	p.add(did, repository, m.Digest, at)
}

// find is the hold that has a blob of a repository, "" for none. Errors: *oci.Error.
func (p *places) find(ctx context.Context, of owner, repository string, d oci.Digest) (syntax.DID, error) {
	key := blobKey{of.DID, repository, d}
	if at, ok := p.known.Get(key); ok {
		if p.mixed.Contains(repositoryKey{key.did, key.repository}) { // by a manifest that is there
			at = cmp.Or(p.indexed(ctx, key), at)
		}
		return at, nil
	}
	if p.view.covered(ctx, of.DID) {
		if at := p.indexed(ctx, key); at != "" {
			return at, nil
		}
	}
	if _, err := p.scans.get(ctx, repositoryKey{of.DID, repository}); err != nil {
		if temporary(err) && p.view.seenBefore(ctx, of.DID) {
			if at := p.indexed(ctx, key); at != "" {
				return at, nil
			}
		}
		return "", err
	}
	at, _ := p.known.Get(key)
	return at, nil
}

// indexed is the hold that has a blob, by the manifests in the index; "" where none names it.
func (p *places) indexed(ctx context.Context, key blobKey) syntax.DID {
	at, err := p.view.index.HoldOfBlob(context.WithoutCancel(ctx), key.did, key.repository, key.digest.String())
	if err != nil || at == "" {
		return ""
	}
	p.known.Add(key, syntax.DID(at))
	return syntax.DID(at)
}

// scan reads the records of a repository and notes the blobs that they name. Older ones do not replace
// newer ones, but lists have no order in time, so what is known stays.
func (p *places) scan(ctx context.Context, key repositoryKey) (struct{}, error) {
	who, err := p.directory.LookupDID(ctx, key.did)
	if err != nil {
		return struct{}{}, identityError(key.did.String(), err)
	}
	of := owner{DID: key.did, PDS: who.PDS()}
	var unnamed []*atcr.Manifest // whose blobs the record does not name
	err = listRecords(ctx, p.from, of, atcr.ManifestNSID, func(f found[atcr.Manifest]) bool {
		if f.Value.Repository != key.repository {
			return true
		}
		at := holdOf(&f.Value)
		if f.Value.Config != nil && len(f.Value.Layers) == 0 && len(unnamed) < scanManifests && validManifest(&f.Value) == nil {
			unnamed = append(unnamed, &f.Value)
		}
		if f.Value.Config != nil {
			p.note(key, f.Value.Config.Digest, at)
		}
		for _, l := range f.Value.Layers {
			p.note(key, l.Digest, at)
		}
		return true
	})
	if err != nil {
		return struct{}{}, upstreamError("the PDS of "+key.did.String(), err)
	}
	for _, record := range unnamed {
		raw, err := p.manifests.read(ctx, of, record)
		if err != nil {
			continue // one that cannot be read has no blobs that could be pulled
		}
		p.learn(key.did, key.repository, registry.Manifest{MediaType: record.MediaType, Digest: oci.Digest(record.Digest), Bytes: raw}, holdOf(record))
	}
	return struct{}{}, nil
}

func (p *places) note(key repositoryKey, digest string, at syntax.DID) {
	d, err := oci.ParseDigest(digest)
	if err != nil {
		return
	}
	if _, ok := p.known.Peek(blobKey{key.did, key.repository, d}); !ok {
		p.add(key.did, key.repository, d, at)
	}
}

// seen notes that a hold has a blob for reader, with what it says of the size, or unknownSize.
func (p *places) seen(at syntax.DID, reader string, d oci.Digest, size int64) {
	p.present.Add(presentKey{at, reader, d}, present{p.clock(), size})
}

// sent notes that reader sent a blob to a hold.
func (p *places) sent(at syntax.DID, reader string, d oci.Digest) {
	p.uploaded.Add(presentKey{at, reader, d}, p.clock())
}

// uploadedAll tells whether reader has just uploaded all of these.
func (p *places) uploadedAll(at syntax.DID, reader string, all []oci.Descriptor) bool {
	for _, b := range all {
		since, ok := p.uploaded.Get(presentKey{at, reader, b.Digest})
		if !ok || p.clock().Sub(since) >= uploadedFresh {
			return false
		}
	}
	return true
}

// isPresent tells whether a hold had a blob for reader a moment ago, and its size, or unknownSize.
func (p *places) isPresent(at syntax.DID, reader string, d oci.Digest) (size int64, ok bool) {
	seen, ok := p.present.Get(presentKey{at, reader, d})
	return seen.size, ok && p.clock().Sub(seen.since) < presentFresh
}
