package appview

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"
	"golang.org/x/sync/errgroup"

	"atcr.io/api/atcr"
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

// records reads manifest and tag records from their owners' PDSes, and keeps them for seconds.
type records struct {
	upstream  xrpc.Upstream
	directory directory
	manifests *cache[recordKey, *found[atcr.Manifest]] // nil values: there is none
	tags      *cache[recordKey, *found[atcr.Tag]]
}

func newRecords(u xrpc.Upstream, d directory, now func() time.Time) *records {
	r := &records{upstream: u, directory: d}
	r.manifests = newCache(recordsKept, recordFresh, recordFailed, now, func(ctx context.Context, k recordKey) (*found[atcr.Manifest], error) {
		f, err := loadRecord[atcr.Manifest](ctx, r, k, atcr.ManifestNSID)
		return slimManifest(f), err
	})
	r.tags = newCache(recordsKept, recordFresh, recordFailed, now, func(ctx context.Context, k recordKey) (*found[atcr.Tag], error) {
		f, err := loadRecord[atcr.Tag](ctx, r, k, atcr.TagNSID)
		return slimTag(f), err
	})
	return r
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

func loadRecord[T any](ctx context.Context, r *records, k recordKey, collection string) (*found[T], error) {
	who, err := r.directory.LookupDID(ctx, k.did)
	if err != nil {
		return nil, identityError(k.did.String(), err)
	}
	f, err := getRecord[T](ctx, r.upstream, who.PDS(), k.did, collection, k.rkey)
	if err != nil {
		return nil, upstreamError("the PDS of "+k.did.String(), err)
	}
	return f, nil
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
	var both [2]*found[atcr.Tag]
	g, ctx := errgroup.WithContext(ctx)
	for i, rkey := range tagRkeys(repository, tag) {
		g.Go(func() (err error) {
			both[i], err = r.tags.get(ctx, recordKey{did, rkey})
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return newerTag(repository, tag, both), nil
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
