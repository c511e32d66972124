package appview

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sort"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/api/atcr"
	"atcr.io/internal/httpx"
	"atcr.io/internal/index"
	"atcr.io/internal/oci"
	"atcr.io/internal/registry"
)

const (
	listFresh  = 3 * time.Second
	listFailed = 2 * time.Second
	listsKept  = 1000
	// listsBytes bounds the memory of all lists of tags, and that of all lists of referrers, which are kept.
	listsBytes = 32 << 20
	// referrersBytes bounds the referrers of one repository, annotations and all: more are not listed at all, since
	// a part would be taken for the whole.
	referrersBytes = 16 << 20
)

// lists reads whole collections: the tags and the referrers of a repository.
type lists struct {
	from      collections
	view      *view
	tags      *cache[repositoryKey, []string]
	referrers *cache[repositoryKey, []referrer]
	room      int // of one repository's referrers, in bytes
	most      int // tags of one repository
}

// referrer is a manifest that names a subject.
type referrer struct {
	subject    string
	descriptor oci.Descriptor
}

// sizeOf is about what a referrer takes of memory.
func sizeOf(r *referrer) int {
	n := 200 + len(r.subject) + len(r.descriptor.MediaType) + len(r.descriptor.ArtifactType)
	for k, v := range r.descriptor.Annotations {
		n += 32 + len(k) + len(v)
	}
	return n
}

func newLists(from collections, d directory, v *view, now clock) *lists {
	l := &lists{from: from, view: v, room: referrersBytes, most: tagsIndexed}
	pds := func(ctx context.Context, key repositoryKey) (owner, error) {
		who, err := d.LookupDID(ctx, key.did)
		if err != nil {
			return owner{}, identityError(key.did.String(), err)
		}
		return owner{DID: key.did, PDS: who.PDS()}, nil
	}
	l.tags = newCache(listsKept, listFresh, listFailed, now, func(ctx context.Context, key repositoryKey) ([]string, error) {
		if v.covered(ctx, key.did) {
			if tags, err := l.indexedTags(ctx, key); err == nil && len(tags) > 0 || errors.Is(err, index.ErrTooLong) {
				return tags, err
			}
		}
		of, err := pds(ctx, key)
		var tags []string
		if err == nil {
			tags, err = l.readTags(ctx, of, key.repository)
		}
		if err != nil && temporary(err) && v.seenBefore(ctx, key.did) {
			if tags, indexErr := l.indexedTags(context.WithoutCancel(ctx), key); indexErr == nil && len(tags) > 0 || errors.Is(indexErr, index.ErrTooLong) {
				return tags, indexErr
			}
		}
		return tags, err
	})
	l.referrers = newCache(listsKept, listFresh, listFailed, now, func(ctx context.Context, key repositoryKey) ([]referrer, error) {
		if v.covered(ctx, key.did) {
			if all, err := l.indexedReferrers(ctx, key); err == nil || errors.Is(err, index.ErrTooLong) {
				return all, err
			}
		}
		of, err := pds(ctx, key)
		var all []referrer
		if err == nil {
			all, err = l.readReferrers(ctx, of, key.repository)
		}
		if err != nil && temporary(err) && v.seenBefore(ctx, key.did) {
			if all, indexErr := l.indexedReferrers(context.WithoutCancel(ctx), key); indexErr == nil && len(all) > 0 {
				return all, nil
			}
		}
		return all, err
	})
	l.tags.weigh(listsBytes, func(tags []string) (n int) {
		for _, tag := range tags {
			n += 16 + len(tag)
		}
		return n
	})
	l.referrers.weigh(listsBytes, func(all []referrer) (n int) {
		for i := range all {
			n += sizeOf(&all[i])
		}
		return n
	})
	l.tags.stamp = func(ctx context.Context, k repositoryKey) uint64 { return v.stamp(ctx, k.did) }
	l.tags.covered = func(ctx context.Context, k repositoryKey) bool { return v.covered(ctx, k.did) }
	l.referrers.stamp, l.referrers.covered = l.tags.stamp, l.tags.covered
	v.index.OnChange(l.changed)
	l.tags.timeout, l.referrers.timeout = time.Minute, time.Minute
	return l
}

// changed forgets lists of repositories whose records changed.
func (l *lists) changed(touched []index.Touched) {
	for _, t := range touched {
		if t.Repository != "" && (t.Collection == atcr.TagNSID || t.Collection == atcr.ManifestNSID) {
			l.forget(repositoryKey{t.DID, t.Repository})
		}
	}
}

// tagsIndexed is what a PDS's list may have, too.
const tagsIndexed = listPages * listPageRecords

func (l *lists) indexedTags(ctx context.Context, key repositoryKey) ([]string, error) {
	tags, err := l.view.index.TagNames(ctx, key.did, key.repository, "", l.most+1)
	if err == nil && len(tags) > l.most {
		return nil, &oci.Error{
			Code: oci.CodeUnsupported, Status: http.StatusUnprocessableEntity, Err: index.ErrTooLong,
			Message: fmt.Sprintf("%s of %s has more than %d tags: ask for some of them, with n and last", key.repository, key.did, l.most),
		}
	}
	return tags, err
}

func (l *lists) indexedReferrers(ctx context.Context, key repositoryKey) ([]referrer, error) {
	found, err := l.view.index.Referrers(ctx, key.did, key.repository, "")
	if errors.Is(err, index.ErrTooLong) {
		return nil, tooManyReferrers(key)
	}
	var out []referrer
	room := l.room
	for _, m := range found {
		if m.BlobCID == "" {
			continue
		}
		r := referrerOf(m)
		if room -= sizeOf(&r); room < 0 {
			return nil, tooManyReferrers(key)
		}
		out = append(out, r)
	}
	return out, err
}

func tooManyReferrers(key repositoryKey) error {
	return &oci.Error{
		Code: oci.CodeUnsupported, Status: http.StatusUnprocessableEntity, Err: index.ErrTooLong,
		Message: fmt.Sprintf("the referrers in %s of %s take more than %d MiB: this registry lists none of them, rather than some", key.repository, key.did, referrersBytes>>20),
	}
}

func (l *lists) forget(key repositoryKey) {
	l.tags.forget(key)
	l.referrers.forget(key)
}

// readTags are the tags of a repository in lexical order. A repository without tags and manifests is
// unknown.
func (l *lists) readTags(ctx context.Context, of owner, repository string) ([]string, error) {
	var tags []string
	err := listRecords(ctx, l.from, of, atcr.TagNSID, func(f found[atcr.Tag]) bool {
		if f.Value.Repository == repository {
			if reference, err := oci.ParseReference(f.Value.Tag); err == nil && reference.Tag != "" {
				tags = append(tags, f.Value.Tag)
			}
		}
		return true
	})
	if err != nil {
		return nil, upstreamError("the PDS of "+of.DID.String(), err)
	}
	if len(tags) > 0 {
		slices.Sort(tags)
		return slices.Compact(tags), nil
	}
	known := false
	err = listRecords(ctx, l.from, of, atcr.ManifestNSID, func(f found[atcr.Manifest]) bool {
		known = f.Value.Repository == repository
		return !known
	})
	if err != nil {
		return nil, upstreamError("the PDS of "+of.DID.String(), err)
	}
	if !known {
		return nil, oci.Errorf(oci.CodeNameUnknown, "there is no repository %s of %s", repository, of.DID)
	}
	return nil, nil
}

func (l *lists) readReferrers(ctx context.Context, of owner, repository string) ([]referrer, error) {
	var out []referrer
	room := l.room
	err := listRecords(ctx, l.from, of, atcr.ManifestNSID, func(f found[atcr.Manifest]) bool {
		m := &f.Value
		if m.Repository != repository || m.Subject == nil || m.ManifestBlob == nil || validManifest(m) != nil {
			return true
		}
		d := oci.Descriptor{
			MediaType: m.MediaType, Digest: oci.Digest(m.Digest), Size: m.ManifestBlob.Size,
			ArtifactType: m.ArtifactType, Annotations: m.Annotations,
		}
		if d.ArtifactType == "" && m.Config != nil {
			d.ArtifactType = m.Config.MediaType
		}
		r := referrer{subject: m.Subject.Digest, descriptor: d}
		room -= sizeOf(&r)
		out = append(out, r)
		return room >= 0
	})
	if err != nil {
		return nil, upstreamError("the PDS of "+of.DID.String(), err)
	}
	if room < 0 {
		return nil, tooManyReferrers(repositoryKey{of.DID, repository})
	}
	return out, nil
}

// Tags lists what the owner's PDS has. Of more than can be listed the index has pages.
func (m *manifests) Tags(ctx context.Context, c registry.Caller, name oci.Name, last string, n int) ([]string, error) {
	of, err := m.owners.find(ctx, name.Owner)
	if err != nil {
		return nil, err
	}
	tags, err := m.lists.tags.get(m.asAsked(ctx, c, of.DID), repositoryKey{of.DID, name.Repository})
	if errors.Is(err, index.ErrTooLong) && n >= 0 && n <= m.lists.most+1 {
		return m.lists.view.index.TagNames(ctx, of.DID, name.Repository, last, n)
	}
	if err != nil {
		return nil, err
	}
	return tags[sort.Search(len(tags), func(i int) bool { return tags[i] > last }):], nil
}

// Referrers lists what the owner's PDS has.
func (m *manifests) Referrers(ctx context.Context, c registry.Caller, name oci.Name, d oci.Digest) ([]oci.Descriptor, error) {
	of, err := m.owners.find(ctx, name.Owner)
	if err != nil {
		return nil, err
	}
	all, err := m.lists.referrers.get(m.asAsked(ctx, c, of.DID), repositoryKey{of.DID, name.Repository})
	if err != nil {
		return nil, err
	}
	var out []oci.Descriptor
	for _, r := range all {
		if r.subject == d.String() {
			out = append(out, r.descriptor)
		}
	}
	return out, nil
}

// Delete removes a tag's records, or a manifest's records in this repository with the tags that name it.
func (m *manifests) Delete(ctx context.Context, c registry.Caller, name oci.Name, reference oci.Reference) error {
	of, err := m.owners.own(ctx, c, name)
	if err != nil {
		return err
	}
	unlock, err := m.lock(ctx, of.DID)
	if err != nil {
		return err
	}
	defer unlock()
	var doomed []write
	var at []syntax.DID
	if reference.Tag != "" {
		doomed, err = m.doomedTag(ctx, of, name.Repository, reference.Tag)
	} else {
		doomed, at, err = m.doomedManifest(ctx, of, name.Repository, reference.Digest)
	}
	if err != nil {
		return upstreamError("your PDS", err)
	}
	if len(doomed) == 0 {
		return oci.Errorf(oci.CodeManifestUnknown, "%s has no manifest %s", name, reference)
	}
	told, err := m.notifier.deleting(ctx, c, of, name.Repository, at, reference.Digest)
	if err != nil {
		return err
	}
	for batch := range slices.Chunk(doomed, 200) { // more writes a PDS does not take at once
		done, err := applyWrites(ctx, m.sessions, c.Session, of.DID, batch)
		if err != nil {
			if refused(err) {
				told(notWritten)
			} else {
				told(perhapsWritten)
			}
			return upstreamError("your PDS", err)
		}
		m.records.view.wrote(ctx, of.DID, batch, done)
		for _, w := range batch {
			if w.Collection == atcr.TagNSID {
				m.records.tags.put(tagKey{of.DID, name.Repository, w.tag}, nil)
			} else {
				m.records.manifests.put(recordKey{of.DID, w.Rkey}, nil)
			}
		}
	}
	told(written)
	httpx.EventFrom(ctx).Reference = reference.String()
	m.lists.forget(repositoryKey{of.DID, name.Repository})
	return nil
}

func (m *manifests) doomedTag(ctx context.Context, of owner, repository, tag string) (doomed []write, err error) {
	for _, rkey := range tagRkeys(repository, tag) {
		f, err := getRecord[atcr.Tag](ctx, m.upstream, of.PDS, of.DID, atcr.TagNSID, rkey)
		if err != nil {
			return nil, err
		}
		if f != nil && f.Value.Repository == repository && f.Value.Tag == tag {
			doomed = append(doomed, write{Type: actionDelete, Collection: atcr.TagNSID, Rkey: rkey, tag: tag})
		}
	}
	return doomed, nil
}

// doomedManifest are the deletions, the manifest's own last, so that one that stops half-way can be asked for again; and
// the holds that have its blobs.
func (m *manifests) doomedManifest(ctx context.Context, of owner, repository string, d oci.Digest) (doomed []write, at []syntax.DID, err error) {
	var records []write
	uris := map[string]bool{}
	for _, rkey := range manifestRkeys(repository, d) {
		f, err := getRecord[atcr.Manifest](ctx, m.upstream, of.PDS, of.DID, atcr.ManifestNSID, rkey)
		if err != nil {
			return nil, nil, err
		}
		if f != nil && f.Value.Repository == repository {
			records = append(records, write{Type: actionDelete, Collection: atcr.ManifestNSID, Rkey: rkey})
			if hold := holdOf(&f.Value); hold != "" {
				at = append(at, hold)
			}
			uris[rkey] = true
		}
	}
	if len(records) == 0 {
		return nil, nil, nil
	}
	err = listRecords(ctx, m.lists.from, of, atcr.TagNSID, func(f found[atcr.Tag]) bool {
		t := &f.Value
		names := uris[rkeyOf(t.Manifest, of.DID, atcr.ManifestNSID)] || t.Manifest == "" && t.ManifestDigest == d.String()
		if t.Repository == repository && names {
			doomed = append(doomed, write{Type: actionDelete, Collection: atcr.TagNSID, Rkey: f.Rkey, tag: t.Tag})
		}
		return true
	})
	return append(doomed, records...), at, err
}
