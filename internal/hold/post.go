package hold

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/api/atcr"
	"atcr.io/internal/identity"
	"atcr.io/internal/ledger"
	"atcr.io/internal/oci"
	"atcr.io/internal/pds"
	"atcr.io/internal/xrpc"
)

const (
	postNSID = "app.bsky.feed.post"
	// maxPostsPerDay about one person.
	maxPostsPerDay      = 10
	readManifestTimeout = 10 * time.Second
	maxPostChildren     = 100 // of an index that are looked at
	maxConfigBytes      = 4 << 20
)

// poster makes posts behind the answer: each waits for servers of the person it is about.
type poster struct {
	client *http.Client
	ctx    context.Context
	making sync.WaitGroup
	places chan struct{} // of those that are being made
}

const (
	// maxPosting bounds the posts that are being made.
	maxPosting = 16
	// maxPostsResumed bounds those that a start makes.
	maxPostsResumed = 100
)

// wantedPost is the post that a push asks for, where the hold does that; nil for none. What goes wrong costs the post,
// never the push.
//
// Source: contract, "notifyManifest"; record app.bsky.feed.post.
func (h *Hold) wantedPost(ctx context.Context, m ledger.Manifest, uri syntax.ATURI, in atcr.HoldNotifyManifestInput) *ledger.PostDue {
	if !h.config.BlueskyPosts || in.Tag == "" || !validTag(in.Tag) {
		return nil
	}
	post := ledger.Post{Owner: m.Owner, Manifest: uri, Tag: in.Tag}
	may, _, err := h.ledger.MayPost(ctx, post, maxPostsPerDay)
	if err != nil {
		h.log.Warn("post about a push", "error", err)
	}
	if err != nil || !may {
		return nil
	}
	message, err := json.Marshal(in)
	if err != nil {
		h.log.Warn("post about a push", "error", err)
		return nil
	}
	return &ledger.PostDue{Post: post, Message: message}
}

// announce begins a post. It is settled when it is made, or cannot be; one that the hold's end cuts short is not.
func (h *Hold) announce(post ledger.Post, m ledger.Manifest, in atcr.HoldNotifyManifestInput, blobs []namedBlob) {
	log := h.log.With("did", m.Owner.String(), "repository", m.Repository)
	ctx := h.posts.ctx
	settle := func() {
		if err := h.ledger.PostSettled(context.WithoutCancel(ctx), post); err != nil {
			log.Warn("post about a push", "error", err)
		}
	}
	select {
	case h.posts.places <- struct{}{}:
	default:
		log.Warn("no post about a push: too many are being made")
		settle()
		return
	}
	h.posts.making.Go(func() {
		defer func() { <-h.posts.places }()
		err := h.post(ctx, post, m, in, blobs)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			log.Info("no post about a push", "error", err)
		}
		settle()
	})
}

// resumePosts makes the posts that were under way when the hold ended, one after the other.
func (h *Hold) resumePosts(ctx context.Context) error {
	due, err := h.ledger.PostsDue(ctx, maxPostsResumed)
	if err != nil {
		return err
	}
	for _, d := range due {
		if !h.config.BlueskyPosts {
			err = errors.New("this hold posts no more")
		} else {
			err = h.resumePost(ctx, d)
		}
		if ctx.Err() != nil {
			return nil //nolint:nilerr // they are found again at the next start
		}
		if err != nil {
			h.log.Info("no post about a push", "did", d.Owner.String(), "error", err)
		}
		if err := h.ledger.PostSettled(ctx, d.Post); err != nil {
			return err
		}
	}
	return nil
}

func (h *Hold) resumePost(ctx context.Context, d ledger.PostDue) error {
	var in atcr.HoldNotifyManifestInput
	if err := json.Unmarshal(d.Message, &in); err != nil {
		return err
	}
	m, err := notified(in)
	if err != nil {
		return err
	}
	blobs, err := h.manifestBlobs(ctx, d.Owner, in.Manifest)
	if err != nil {
		return err
	}
	return h.post(ctx, d.Post, m, in, blobs)
}

func validTag(tag string) bool {
	r, err := oci.ParseReference(tag)
	return err == nil && r.Tag != ""
}

func (h *Hold) post(ctx context.Context, post ledger.Post, m ledger.Manifest, in atcr.HoldNotifyManifestInput, blobs []namedBlob) error {
	who, err := h.identities.LookupDID(ctx, m.Owner)
	if err != nil {
		return err
	}
	manifest, err := h.readManifest(ctx, who, m, in)
	if err != nil {
		return err
	}
	image, err := h.describeImage(ctx, m, in, manifest, blobs)
	if err != nil {
		return err
	}
	image.handle = h.handleOf(ctx, who)
	raw, err := json.Marshal(image.post(h.config.AppViewURL, h.now()))
	if err != nil {
		return err
	}
	return h.writePost(ctx, post, raw)
}

// writePost commits the post together with the memory of it, unless the image, or its owner's data, was deleted meanwhile.
func (h *Hold) writePost(ctx context.Context, post ledger.Post, raw json.RawMessage) error {
	h.counting.Lock()
	defer h.counting.Unlock()
	if may, known, err := h.ledger.MayPost(ctx, post, maxPostsPerDay); err != nil || !may || !known {
		return err
	}
	post.Rkey = syntax.RecordKey(syntax.NewTIDFromTime(h.now(), 0))
	h.following.mu.Lock()
	h.following.posting = map[syntax.RecordKey]awaited[ledger.Post]{post.Rkey: {post, raw}}
	h.following.mu.Unlock()
	defer func() {
		h.following.mu.Lock()
		h.following.posting = nil
		h.following.mu.Unlock()
	}()
	_, err := h.repo.Apply(ctx, []pds.Write{{Action: pds.Create, Collection: postNSID, Rkey: post.Rkey, Value: raw, Validation: pds.Always}}, nil)
	return err
}

// readManifest reads the manifest's record from its owner's PDS, and says whether it is what the hold was told.
// Errors: where it is not, or cannot be read.
func (h *Hold) readManifest(ctx context.Context, who *identity.Identity, m ledger.Manifest, in atcr.HoldNotifyManifestInput) (*atcr.Manifest, error) {
	var last error
	for _, rkey := range []string{atcr.ManifestRkey(m.Digest.String()), atcr.ManifestRkeyIn(m.Digest.String(), m.Repository)} {
		var out struct{ Value atcr.Manifest }
		last = xrpc.Upstream{Client: h.posts.client}.JSON(ctx, xrpc.UpstreamCall{
			Base: who.PDS(), NSID: "com.atproto.repo.getRecord", Limit: 2 << 20,
			Query: url.Values{"repo": {m.Owner.String()}, "collection": {atcr.ManifestNSID}, "rkey": {rkey}},
		}, &out)
		if last == nil {
			last = h.sameManifest(&out.Value, m, in)
		}
		if last == nil {
			return &out.Value, nil
		}
	}
	return nil, fmt.Errorf("the manifest's record: %w", last)
}

// sameManifest compares a record with what the hold was told. Layers and children are a summary that a record
// may lack.
func (h *Hold) sameManifest(r *atcr.Manifest, m ledger.Manifest, in atcr.HoldNotifyManifestInput) error {
	switch {
	case r.Digest != m.Digest.String() || r.Repository != m.Repository || r.MediaType != in.Manifest.MediaType:
		return fmt.Errorf("it is of another manifest: %.200q in %.200q", r.Digest, r.Repository)
	case !h.isHere(r):
		return fmt.Errorf("it says that the blobs are at %.200q", r.HoldDid+r.HoldEndpoint)
	case r.Config != nil && r.Config.Digest != m.Config.String():
		return fmt.Errorf("it has the config %.200q", r.Config.Digest)
	}
	told := map[string]bool{}
	for _, l := range in.Manifest.Layers {
		told[l.Digest] = true
	}
	for _, l := range in.Manifest.Manifests {
		told[l.Digest] = true
	}
	for _, l := range r.Layers {
		if len(l.Urls) == 0 && !told[l.Digest] {
			return fmt.Errorf("it has the layer %.200q", l.Digest)
		}
	}
	for _, c := range r.Manifests {
		if !told[c.Digest] {
			return fmt.Errorf("it has the child %.200q", c.Digest)
		}
	}
	return nil
}

// handleOf is who's handle where it leads back to them, else "".
func (h *Hold) handleOf(ctx context.Context, who *identity.Identity) syntax.Handle {
	if who.Handle == "" {
		return ""
	}
	did, err := h.identities.ResolveHandle(ctx, who.Handle)
	if err != nil || did != who.DID {
		return ""
	}
	return who.Handle
}

// describeImage counts what an image has: of an index, what the hold knows of its children.
func (h *Hold) describeImage(ctx context.Context, m ledger.Manifest, in atcr.HoldNotifyManifestInput, record *atcr.Manifest, blobs []namedBlob) (pushedImage, error) {
	image := pushedImage{owner: m.Owner, repository: m.Repository, tag: in.Tag}
	if children := in.Manifest.Manifests; len(children) > 0 {
		platforms := map[string]*atcr.ManifestPlatform{}
		for _, c := range record.Manifests {
			platforms[c.Digest] = c.Platform
		}
		var uris []syntax.ATURI
		for _, c := range children[:min(len(children), maxPostChildren)] {
			d, err := namedDigest(c.Digest)
			if err != nil {
				return image, err
			}
			uri, err := h.ledger.ManifestURI(ctx, ledger.Manifest{Owner: m.Owner, Repository: m.Repository, Digest: d})
			if err != nil {
				return image, err
			}
			uris = append(uris, uri)
			platform := c.Platform
			if platform == nil {
				platform = platforms[c.Digest]
			}
			if platform != nil {
				image.addPlatform(platform.Os, platform.Architecture, platform.Variant)
			}
		}
		var err error
		image.layers, image.bytes, err = h.ledger.Contents(ctx, uris)
		return image, err
	}
	for _, b := range blobs {
		image.bytes += b.Size
		if b.Digest != m.Config {
			image.layers++
			continue
		}
		if platform, ok := h.configPlatform(ctx, b); ok {
			image.addPlatform(platform.OS, platform.Architecture, platform.Variant)
		}
	}
	return image, nil
}

// configPlatform is what an image's config says that it runs on.
func (h *Hold) configPlatform(ctx context.Context, b namedBlob) (p oci.Platform, ok bool) {
	if b.Size > maxConfigBytes || !b.Verified {
		return p, false
	}
	object, err := h.uploads.Open(ctx, b.Blob)
	if err != nil {
		return p, false
	}
	defer func() { _ = object.Close() }()
	return p, json.NewDecoder(object).Decode(&p) == nil
}
