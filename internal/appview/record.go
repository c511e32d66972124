package appview

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"
	"golang.org/x/sync/errgroup"

	"atcr.io/api/atcr"
	"atcr.io/internal/index"
	"atcr.io/internal/oci"
	"atcr.io/internal/xrpc"
)

const (
	recordFresh  = 3 * time.Second // how late a change made elsewhere is seen
	recordFailed = 2 * time.Second
	recordsKept  = 20_000
)

// recordKey is where a record stands.
type recordKey struct {
	did  syntax.DID
	rkey string
}

// tagKey is a tag of a repository.
type tagKey struct {
	did             syntax.DID
	repository, tag string
}

// records answers what manifest and tag records say: from the index where a firehose keeps it true, else from
// their owners' PDSes, for seconds. What a PDS that does not answer said before is better than nothing.
type records struct {
	upstream  xrpc.Upstream
	directory directory
	view      *view
	manifests *cache[recordKey, *found[atcr.Manifest]] // nil values: there is none
	tags      *cache[tagKey, *found[atcr.Tag]]
}

func newRecords(u xrpc.Upstream, d directory, v *view, now func() time.Time) *records {
	r := &records{upstream: u, directory: d, view: v}
	r.manifests = newCache(recordsKept, recordFresh, recordFailed, now, r.loadManifest)
	r.manifests.stamp = func(ctx context.Context, k recordKey) uint64 { return v.stamp(ctx, k.did) }
	r.manifests.covered = func(ctx context.Context, k recordKey) bool { return v.covered(ctx, k.did) }
	r.tags = newCache(recordsKept, recordFresh, recordFailed, now, r.loadTag)
	r.tags.stamp = func(ctx context.Context, k tagKey) uint64 { return v.stamp(ctx, k.did) }
	r.tags.covered = func(ctx context.Context, k tagKey) bool { return v.covered(ctx, k.did) }
	v.index.OnChange(r.changed)
	return r
}

// changed forgets what is no longer so.
func (r *records) changed(touched []index.Touched) {
	for _, t := range touched {
		switch t.Collection {
		case atcr.ManifestNSID:
			r.manifests.forget(recordKey{t.DID, t.Rkey})
		case atcr.TagNSID:
			r.tags.forget(tagKey{t.DID, t.Repository, t.Tag})
		}
	}
}

func (r *records) loadManifest(ctx context.Context, k recordKey) (*found[atcr.Manifest], error) {
	if r.view.covered(ctx, k.did) {
		m, err := r.view.index.ManifestAt(ctx, k.did, k.rkey)
		if err == nil && m != nil {
			return foundManifest(m), nil
		}
	}
	f, err := readRecord[atcr.Manifest](ctx, r, k, atcr.ManifestNSID)
	if err == nil {
		return slimManifest(f), nil
	}
	if unanswered(err) && r.view.seenBefore(ctx, k.did) {
		if m, indexErr := r.view.index.ManifestAt(context.WithoutCancel(ctx), k.did, k.rkey); indexErr == nil && m != nil {
			return foundManifest(m), nil
		}
	}
	return nil, recordError(k.did, err)
}

// loadTag reads both keys under which a tag's record may be.
func (r *records) loadTag(ctx context.Context, k tagKey) (*found[atcr.Tag], error) {
	if r.view.covered(ctx, k.did) {
		t, err := r.view.index.TagOf(ctx, k.did, k.repository, k.tag)
		if err == nil && t != nil {
			return foundTag(t), nil
		}
	}
	var both [2]*found[atcr.Tag]
	g, reading := errgroup.WithContext(ctx)
	for i, rkey := range tagRkeys(k.repository, k.tag) {
		g.Go(func() error {
			f, err := readRecord[atcr.Tag](reading, r, recordKey{k.did, rkey}, atcr.TagNSID)
			both[i] = slimTag(f)
			return err
		})
	}
	err := g.Wait()
	if err == nil {
		return newerTag(k.repository, k.tag, both), nil
	}
	if unanswered(err) && r.view.seenBefore(ctx, k.did) {
		if t, indexErr := r.view.index.TagOf(context.WithoutCancel(ctx), k.did, k.repository, k.tag); indexErr == nil && t != nil {
			return foundTag(t), nil
		}
	}
	return nil, recordError(k.did, err)
}

// keptBytes bounds what is kept of a record. Records are other people's, and of any size.
const keptBytes = 4096

// slimManifest is what pulls need of a manifest record; one that is not small even so is malformed.
func slimManifest(f *found[atcr.Manifest]) *found[atcr.Manifest] {
	if f == nil || f.Malformed {
		return f
	}
	v := &f.Value
	slim := atcr.Manifest{
		Repository: v.Repository, Digest: v.Digest, MediaType: v.MediaType, HoldDid: v.HoldDid, HoldEndpoint: v.HoldEndpoint,
		ManifestBlob: v.ManifestBlob,
	}
	n := len(f.CID) + len(slim.Repository) + len(slim.Digest) + len(slim.MediaType) + len(slim.HoldDid) + len(slim.HoldEndpoint)
	if b := slim.ManifestBlob; b != nil {
		n += len(b.Ref.Link) + len(b.MimeType) + len(b.LexiconTypeID)
	}
	if n > keptBytes {
		return &found[atcr.Manifest]{Rkey: f.Rkey, Malformed: true}
	}
	return &found[atcr.Manifest]{Rkey: f.Rkey, CID: f.CID, Value: slim}
}

// slimTag is a tag record without what others added to it; one that is not small even so is malformed.
func slimTag(f *found[atcr.Tag]) *found[atcr.Tag] {
	if f == nil || f.Malformed {
		return f
	}
	slim := f.Value
	slim.Extra = nil
	n := len(f.CID) + len(slim.Repository) + len(slim.Tag) + len(slim.Manifest) + len(slim.ManifestDigest) + len(slim.CreatedAt) + len(slim.UpdatedAt)
	if n > keptBytes {
		return &found[atcr.Tag]{Rkey: f.Rkey, Malformed: true}
	}
	return &found[atcr.Tag]{Rkey: f.Rkey, CID: f.CID, Value: slim}
}

// readRecord asks the owner's PDS, and lets the index know. Errors: as they come.
func readRecord[T any](ctx context.Context, r *records, k recordKey, collection string) (*found[T], error) {
	who, err := r.directory.LookupDID(ctx, k.did)
	if err != nil {
		return nil, err
	}
	version, err := r.view.index.Version(ctx, k.did)
	if err != nil {
		return nil, err
	}
	f, err := getRecord[T](ctx, r.upstream, who.PDS(), k.did, collection, k.rkey)
	if err != nil {
		return nil, err
	}
	observe(ctx, r.view, k.did, version, collection, k.rkey, f)
	return f, nil
}

// recordError says in the registry's words why a record cannot be had.
func recordError(did syntax.DID, err error) error {
	if _, upstream := errors.AsType[*xrpc.UpstreamError](err); upstream {
		return upstreamError("the PDS of "+did.String(), err)
	}
	return identityError(did.String(), err)
}

// manifest is the record of a digest in a repository, nil for none. Its key belongs to the first repository
// that had those bytes; others have one with their name in it.
func (r *records) manifest(ctx context.Context, did syntax.DID, repository string, d oci.Digest) (*found[atcr.Manifest], error) {
	for _, rkey := range manifestRkeys(repository, d) {
		f, err := r.manifests.get(ctx, recordKey{did, rkey})
		if err != nil {
			return nil, err
		}
		if f != nil && f.Value.Repository == repository && f.Value.Digest == d.String() {
			return f, nil
		}
	}
	return nil, nil
}

func manifestRkeys(repository string, d oci.Digest) [2]string {
	return [2]string{atcr.ManifestRkey(d.String()), atcr.ManifestRkeyIn(d.String(), repository)}
}

func tagRkeys(repository, tag string) [2]string {
	return [2]string{atcr.TagRkey(repository, tag), atcr.OldTagRkey(repository, tag)}
}

// tag is the record of a tag, nil for none: of two, the one that was changed last.
func (r *records) tag(ctx context.Context, did syntax.DID, repository, tag string) (*found[atcr.Tag], error) {
	return r.tags.get(ctx, tagKey{did, repository, tag})
}

// newerTag judges by the records' fields, not by their keys.
func newerTag(repository, tag string, both [2]*found[atcr.Tag]) *found[atcr.Tag] {
	var newest *found[atcr.Tag]
	for _, f := range both {
		if f == nil || f.Value.Repository != repository || f.Value.Tag != tag {
			continue
		}
		if newest == nil || changedAt(&f.Value).After(changedAt(&newest.Value)) {
			newest = f
		}
	}
	return newest
}

func changedAt(t *atcr.Tag) time.Time {
	for _, text := range []string{t.UpdatedAt, t.CreatedAt} {
		if at, err := syntax.ParseDatetimeLenient(text); err == nil {
			return at.Time()
		}
	}
	return time.Time{}
}

// tagged is the manifest record that a tag names, nil for none.
func (r *records) tagged(ctx context.Context, did syntax.DID, t *atcr.Tag) (*found[atcr.Manifest], error) {
	if rkey := rkeyOf(t.Manifest, did, atcr.ManifestNSID); rkey != "" {
		f, err := r.manifests.get(ctx, recordKey{did, rkey})
		if err != nil || f != nil && f.Value.Repository == t.Repository {
			return f, err
		}
		// The key may have gone to another repository since: the digest says which manifest was meant.
	}
	d, err := oci.ParseDigest(t.ManifestDigest)
	if err != nil {
		return nil, nil
	}
	return r.manifest(ctx, did, t.Repository, d)
}

// resolve is the manifest record that a reference names. Errors: *oci.Error, CodeManifestUnknown for none.
func (r *records) resolve(ctx context.Context, of owner, name oci.Name, reference oci.Reference) (*found[atcr.Manifest], error) {
	var f *found[atcr.Manifest]
	var err error
	if reference.Digest != "" {
		f, err = r.manifest(ctx, of.DID, name.Repository, reference.Digest)
	} else {
		var t *found[atcr.Tag]
		if t, err = r.tag(ctx, of.DID, name.Repository, reference.Tag); err == nil && t != nil {
			f, err = r.tagged(ctx, of.DID, &t.Value)
		}
	}
	if err != nil {
		return nil, err
	}
	if f == nil {
		return nil, oci.Errorf(oci.CodeManifestUnknown, "%s has no manifest %s", name, reference)
	}
	return f, validManifest(&f.Value)
}

// validManifest checks what is about to be believed.
func validManifest(m *atcr.Manifest) error {
	d, err := oci.ParseDigest(m.Digest)
	if err == nil {
		_, err = oci.ParseMediaType(m.MediaType)
	}
	if err == nil && m.ManifestBlob != nil {
		if cid := cidOf(d); cid != "" && cid != m.ManifestBlob.Ref.Link {
			err = errors.New("its manifestBlob has another digest")
		}
	}
	if err != nil {
		e := oci.Errorf(oci.CodeManifestUnknown, "the manifest record is not valid: %s", strings.TrimSpace(oci.AsError(err).Message))
		e.Err = err
		return e
	}
	return nil
}
