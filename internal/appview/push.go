package appview

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"
	"golang.org/x/sync/errgroup"

	"atcr.io/api/atcr"
	"atcr.io/internal/httpx"
	"atcr.io/internal/oci"
	"atcr.io/internal/registry"
	"atcr.io/internal/session"
	"atcr.io/internal/xrpc"
)

type clock = func() time.Time

// caller calls people's PDSes in their name: session.Store.
type caller interface {
	Call(ctx context.Context, session string, c session.Call, out any) error
}

const (
	// blobChecks is how many of a manifest's blobs are asked for at once.
	blobChecks = 8
	// writeAttempts bounds what another writer of the same records can cost.
	writeAttempts = 4
	writeBackoff  = 100 * time.Millisecond
	// maxBlobs is what holds take in one message, which names a manifest's config and all its layers.
	maxBlobs = 1000
	// repoLease is how long others wait for a process that ended in the middle of a write.
	repoLease = time.Minute
)

// Put writes a manifest in the order that leaves nothing half-written: the blobs are in the hold; then the
// bytes go to the person's PDS, which serves them once a record names them; then records of manifest and
// tags, in one commit.
//
// Source: contract, "Records in the user's own repo".
func (m *manifests) Put(ctx context.Context, c registry.Caller, name oci.Name, man registry.Manifest, parsed *oci.Manifest, tags []string) error {
	of, err := m.owners.own(ctx, c, name)
	if err != nil {
		return err
	}
	at, err := m.holds.forPush(ctx, of.DID)
	if err != nil {
		return err
	}
	httpx.EventFrom(ctx).Hold = at.DID.String()
	if n := len(parsed.Blobs()); n > maxBlobs { // the hold could not be told, and would delete them
		return oci.Errorf(oci.CodeManifestInvalid, "the manifest names %d blobs, and holds take at most %d: build the image with fewer layers", n, maxBlobs)
	}
	if err := m.requireBlobs(ctx, c, of, name, at, parsed); err != nil {
		return err
	}
	if err := m.requireChildren(ctx, of, name, parsed); err != nil {
		return err
	}
	unlock, err := m.lock(ctx, of.DID)
	if err != nil {
		return err
	}
	defer unlock()
	told, err := m.notifier.pushing(ctx, c, of, name, at, man, parsed, tags)
	if err != nil {
		return err
	}
	p := &push{manifests: m, ctx: ctx, session: c.Session, of: of, name: name, at: at.DID, manifest: man, parsed: parsed, tags: tags}
	err = p.write()
	what := written
	switch {
	case err == nil && !m.places.uploadedAll(at.DID, c.Subject, parsed.Blobs()):
		what = writtenOfOthers
	case err == nil:
	case p.unsure:
		what = perhapsWritten
	default:
		what = notWritten
	}
	refused := told(what)
	if err != nil {
		return err
	}
	var named []oci.Digest // the hold has them, and they are part of the repository
	for _, b := range parsed.Blobs() {
		named = append(named, b.Digest)
		if err := m.gone.restore(ctx, blobKey{of.DID, name.Repository, b.Digest}); err != nil {
			return err
		}
	}
	if m.shared { // others have not learnt it, and may just have looked in vain
		if err := m.recent.came(ctx, of.DID, name.Repository, at.DID, named...); err != nil {
			return err
		}
	}
	m.keep(ctx, man.Digest, man.Bytes)
	m.seen(ctx, of)
	m.places.learn(of.DID, name.Repository, man, at.DID)
	m.lists.forget(repositoryKey{of.DID, name.Repository})
	return refused
}

// requireBlobs refuses a manifest whose config or layers are not in the hold, or have another size there, as far as the hold
// was asked: clients refuse to pull such an image.
func (m *manifests) requireBlobs(ctx context.Context, c registry.Caller, of owner, name oci.Name, at *hold, parsed *oci.Manifest) error {
	var mu sync.Mutex
	var absent []oci.Digest
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(blobChecks)
	asked := map[oci.Digest]bool{}
	sizes := map[oci.Digest]int64{}
	for _, b := range parsed.Blobs() {
		if asked[b.Digest] {
			continue
		}
		asked[b.Digest] = true
		if size, ok := m.places.isPresent(at.DID, c.Subject, b.Digest); ok {
			mu.Lock()
			sizes[b.Digest] = size
			mu.Unlock()
			continue
		}
		g.Go(func() error {
			size, err := m.calls.statJoined(ctx, c, at, of.DID, b.Digest)
			if isBlobUnknown(err) {
				mu.Lock()
				defer mu.Unlock()
				absent = append(absent, b.Digest)
				return nil
			}
			if err != nil {
				return err
			}
			m.places.seen(at.DID, c.Subject, b.Digest, size)
			mu.Lock()
			defer mu.Unlock()
			sizes[b.Digest] = size
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if len(absent) == 0 {
		return requireSizes(at, parsed, sizes)
	}
	e := oci.Errorf(oci.CodeManifestBlobUnknown, "%s: %d of the manifest's blobs are not in the hold %s: push them first", name, len(absent), at.DID)
	e.Detail = map[string]any{"digests": absent[:min(len(absent), 20)]}
	return e
}

// requireSizes refuses a manifest that says other sizes of its blobs than the hold does. In other types of manifest the
// field may mean something else.
func requireSizes(at *hold, parsed *oci.Manifest, sizes map[oci.Digest]int64) error {
	if !oci.KnownManifestType(parsed.MediaType) {
		return nil
	}
	for _, b := range parsed.Blobs() {
		if size := sizes[b.Digest]; size != unknownSize && size != b.Size {
			return oci.Errorf(oci.CodeManifestInvalid, "the manifest says that %s has %d bytes, and the hold %s has %d of it", b.Digest, b.Size, at.DID, size)
		}
	}
	return nil
}

// requireChildren refuses an index whose manifests are not in the repository, where that is asked for.
func (m *manifests) requireChildren(ctx context.Context, of owner, name oci.Name, parsed *oci.Manifest) error {
	if m.sparse {
		return nil
	}
	var mu sync.Mutex
	var absent []oci.Digest
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(blobChecks)
	asked := map[oci.Digest]bool{}
	for _, child := range parsed.Manifests {
		if asked[child.Digest] {
			continue
		}
		asked[child.Digest] = true
		g.Go(func() error {
			f, err := m.records.manifest(ctx, of.DID, name.Repository, child.Digest)
			if err == nil && f == nil {
				mu.Lock()
				defer mu.Unlock()
				absent = append(absent, child.Digest)
			}
			return err
		})
	}
	if err := g.Wait(); err != nil || len(absent) == 0 {
		return err
	}
	e := oci.Errorf(oci.CodeManifestBlobUnknown, "%s: %d of the index's manifests are not in this repository: push them first", name, len(absent))
	e.Detail = map[string]any{"digests": absent[:min(len(absent), 20)]}
	return e
}

// push is one manifest on its way into a repo.
type push struct {
	manifests *manifests
	ctx       context.Context //nolint:containedctx // a push lives as long as its request
	session   string
	of        owner
	name      oci.Name
	at        syntax.DID
	manifest  registry.Manifest
	parsed    *oci.Manifest
	tags      []string
	blob      *atcr.Blob // once it was uploaded
	unsure    bool       // a write failed in a way that leaves open whether it was made
}

// write decides and writes, again where somebody else wrote between the two.
func (p *push) write() error {
	for attempt := 1; ; attempt++ {
		err := p.tryWrite()
		if !conflicts(err) || attempt == writeAttempts {
			return upstreamError("your PDS", err)
		}
		timer := time.NewTimer(writeBackoff<<attempt + rand.N(writeBackoff))
		select {
		case <-p.ctx.Done():
			timer.Stop()
			return p.ctx.Err()
		case <-timer.C:
		}
	}
}

// conflicts tells whether a write may have failed because a record that was to be made is there, or one
// that was to be changed is gone. The reference PDS says so by a plain 500, and has then written nothing.
func conflicts(err error) bool {
	e, ok := errors.AsType[*xrpc.UpstreamError](err)
	return ok && e.NSID == applyWritesNSID && (e.Status == http.StatusInternalServerError || e.Status == http.StatusConflict ||
		e.Name == "InvalidSwap" || e.Name == "RecordAlreadyExists" || e.Name == "RecordNotFound")
}

// refused tells whether a PDS said that it did not write. Where its answer was lost or made no sense, or was that of a
// server in trouble, it may have written all the same.
func refused(err error) bool {
	e, ok := errors.AsType[*xrpc.UpstreamError](err)
	if !ok {
		return errors.Is(err, session.ErrGone)
	}
	return e.Status >= 400 && e.Status < 500 && !e.Timeout && !e.Invalid
}

func (p *push) tryWrite() error {
	now, err := p.read()
	if err != nil {
		return err
	}
	var writes []write
	record, rkey, action := p.manifestRecord(now.manifests)
	recordCID := ""
	for _, f := range now.manifests {
		if f != nil && f.Rkey == rkey {
			recordCID = f.CID
		}
	}
	if action != "" {
		if p.blob == nil {
			if p.blob, err = p.uploadBlob(); err != nil {
				return err
			}
		}
		record.ManifestBlob = p.blob
		shorten(record)
		writes = append(writes, write{Type: action, Collection: atcr.ManifestNSID, Rkey: rkey, Value: record})
	}
	tagRecords := make(map[string]*atcr.Tag, len(p.tags))
	for i, tag := range p.tags {
		t, tagRkey, action := p.tagRecord(tag, rkey, now.tags[i])
		if action != "" {
			writes = append(writes, write{Type: action, Collection: atcr.TagNSID, Rkey: tagRkey, Value: t})
		}
		tagRecords[tagRkey] = t
	}
	view := p.manifests.records.view
	if len(writes) > 0 {
		done, err := applyWrites(p.ctx, p.manifests.sessions, p.session, p.of.DID, writes)
		if err != nil {
			p.unsure = p.unsure || !refused(err)
			return err
		}
		view.wrote(p.ctx, p.of.DID, writes, done)
	}
	if action == "" { // the PDS had it, and the index may not
		observe(p.ctx, view, p.of.DID, now.version, atcr.ManifestNSID, rkey, &found[atcr.Manifest]{Rkey: rkey, CID: recordCID, Value: *record})
	}
	p.manifests.records.manifests.put(recordKey{p.of.DID, rkey}, slimManifest(&found[atcr.Manifest]{Rkey: rkey, Value: *record}))
	for tagRkey, t := range tagRecords {
		p.manifests.records.tags.put(tagKey{p.of.DID, p.name.Repository, t.Tag}, slimTag(&found[atcr.Tag]{Rkey: tagRkey, Value: *t}))
	}
	return nil
}

// before is what the repo has under the keys that a push may write.
type before struct {
	version   int64 // of the index, before the PDS was read
	manifests [2]*found[atcr.Manifest]
	tags      [][2]*found[atcr.Tag]
}

func (p *push) read() (before, error) {
	version, err := p.manifests.records.view.index.Version(p.ctx, p.of.DID)
	if err != nil {
		return before{}, err
	}
	out := before{version: version, tags: make([][2]*found[atcr.Tag], len(p.tags))}
	g, ctx := errgroup.WithContext(p.ctx)
	u := p.manifests.upstream
	for i, rkey := range manifestRkeys(p.name.Repository, p.manifest.Digest) {
		g.Go(func() (err error) {
			out.manifests[i], err = getRecord[atcr.Manifest](ctx, u, p.of.PDS, p.of.DID, atcr.ManifestNSID, rkey)
			return err
		})
	}
	for i, tag := range p.tags {
		for j, rkey := range tagRkeys(p.name.Repository, tag) {
			g.Go(func() (err error) {
				out.tags[i][j], err = getRecord[atcr.Tag](ctx, u, p.of.PDS, p.of.DID, atcr.TagNSID, rkey)
				return err
			})
		}
	}
	return out, g.Wait()
}

// manifestRecord is the record as it is to be, its key, and what has to be written: nothing where the same
// bytes are recorded for this repository and hold.
func (p *push) manifestRecord(now [2]*found[atcr.Manifest]) (record *atcr.Manifest, rkey string, action string) {
	rkeys := manifestRkeys(p.name.Repository, p.manifest.Digest)
	for i, f := range now {
		if f == nil || f.Value.Repository != p.name.Repository {
			continue
		}
		old := f.Value
		if holdOf(&old) == p.at && old.ManifestBlob != nil && old.MediaType == p.manifest.MediaType && validManifest(&old) == nil {
			return &old, rkeys[i], ""
		}
		record = &old
		p.summarise(record)
		return record, rkeys[i], actionUpdate
	}
	record = &atcr.Manifest{CreatedAt: p.timestamp()}
	p.summarise(record)
	if now[0] == nil {
		return record, rkeys[0], actionCreate
	}
	if now[1] != nil { // ours by its key, though its fields say otherwise
		return record, rkeys[1], actionUpdate
	}
	return record, rkeys[1], actionCreate
}

func (p *push) tagRecord(tag, manifestRkey string, now [2]*found[atcr.Tag]) (record *atcr.Tag, rkey string, action string) {
	uri := "at://" + p.of.DID.String() + "/" + atcr.ManifestNSID + "/" + manifestRkey
	digest := p.manifest.Digest.String()
	if old := newerTag(p.name.Repository, tag, now); old != nil {
		t := old.Value
		if t.Manifest == uri && t.ManifestDigest == digest {
			return &t, old.Rkey, ""
		}
		t.Manifest, t.ManifestDigest, t.UpdatedAt = uri, digest, p.timestamp()
		return &t, old.Rkey, actionUpdate
	}
	t := &atcr.Tag{
		Repository: p.name.Repository, Tag: tag, Manifest: uri, ManifestDigest: digest, CreatedAt: p.timestamp(),
	}
	rkey = atcr.TagRkey(p.name.Repository, tag)
	if now[0] != nil {
		return t, rkey, actionUpdate
	}
	return t, rkey, actionCreate
}

func (p *push) timestamp() string {
	return p.manifests.clock().UTC().Format("2006-01-02T15:04:05.000Z")
}

// uploadBlob stores the exact bytes in the person's repo. What comes back is written as it is, once its CID
// is that of the bytes.
func (p *push) uploadBlob() (*atcr.Blob, error) {
	var out struct {
		Blob *atcr.Blob `json:"blob"`
	}
	const nsid = "com.atproto.repo.uploadBlob"
	err := p.manifests.sessions.Call(p.ctx, p.session, session.Call{NSID: nsid, Body: p.manifest.Bytes, ContentType: p.manifest.MediaType}, &out)
	if err != nil {
		return nil, err
	}
	if want := cidOf(oci.FromBytes(p.manifest.Bytes)); out.Blob == nil || out.Blob.Ref.Link != want {
		return nil, &xrpc.UpstreamError{Host: xrpc.HostOf(p.of.PDS), NSID: nsid, Status: http.StatusOK, Invalid: true, Err: errors.New("the blob has another CID than its bytes")}
	}
	out.Blob.LexiconTypeID = "blob"
	return out.Blob, nil
}

const applyWritesNSID = "com.atproto.repo.applyWrites"

// Types of a write.
const (
	actionCreate = applyWritesNSID + "#create"
	actionUpdate = applyWritesNSID + "#update"
	actionDelete = applyWritesNSID + "#delete"
)

type write struct {
	Type       string `json:"$type"`
	Collection string `json:"collection"`
	Rkey       string `json:"rkey"`
	Value      any    `json:"value,omitempty"`
	tag        string // that a tag record says
}

// acknowledged is what a PDS says of writes that it made: the repo's rev behind them, and the CID of each record, ""
// where it says none.
type acknowledged struct {
	Rev  string
	CIDs []string
}

// applyWrites makes all of writes in one commit, or none. Errors: session.ErrGone, *xrpc.UpstreamError.
func applyWrites(ctx context.Context, sessions caller, id string, repo syntax.DID, writes []write) (acknowledged, error) {
	body, err := json.Marshal(map[string]any{"repo": repo, "writes": writes})
	if err != nil {
		return acknowledged{}, fmt.Errorf("encode writes: %w", err)
	}
	var out struct { // an answer that is no JSON is none: nothing may have been written
		Commit struct {
			Rev string `json:"rev"`
		} `json:"commit"`
		Results []struct {
			CID string `json:"cid"`
		} `json:"results"`
	}
	if err := sessions.Call(ctx, id, session.Call{NSID: applyWritesNSID, Body: body, ContentType: "application/json"}, &out); err != nil {
		return acknowledged{}, err
	}
	done := acknowledged{Rev: out.Commit.Rev}
	if len(out.Results) == len(writes) {
		for _, r := range out.Results {
			done.CIDs = append(done.CIDs, r.CID)
		}
	}
	if _, err := syntax.ParseTID(done.Rev); err != nil {
		done.Rev = ""
	}
	return done, nil
}

// lock lets one write at a time into a repo, whichever process makes it, so that pushes of one person's images do not
// undo each other's decisions.
func (m *manifests) lock(ctx context.Context, did syntax.DID) (unlock func(), err error) {
	name := "repo " + did.String()
	if m.shared {
		return m.leases.Take(ctx, name, repoLease)
	}
	return m.leases.TakeHere(ctx, name)
}
