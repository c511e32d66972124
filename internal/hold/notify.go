package hold

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/api/atcr"
	"atcr.io/internal/httpx"
	"atcr.io/internal/ledger"
	"atcr.io/internal/oci"
	"atcr.io/internal/pds"
	"atcr.io/internal/upload"
	"atcr.io/internal/xrpc"
)

// maxManifestLayers bounds the blobs of one manifest, its config included.
const maxManifestLayers = 1000

// maxPullCount bounds what one message may say.
const maxPullCount = 1_000_000

// notifyManifest records what happened to an image: a push, a pull, a delete.
//
// Source: contract, "notifyManifest".
func (h *Hold) notifyManifest(w http.ResponseWriter, r *http.Request) error {
	caller, err := h.caller(r, xrpc.Call{Lxm: []string{atcr.HoldNotifyManifestNSID}, RequireLxm: h.config.RequireLxm})
	if err != nil {
		return err
	}
	if caller == "" {
		return xrpc.Errorf(http.StatusUnauthorized, "AuthRequired", "this call needs a service token for %s", h.did)
	}
	httpx.EventFrom(r.Context()).DID = caller.String()
	var in atcr.HoldNotifyManifestInput
	if err := xrpc.ReadJSON(w, r, &in); err != nil {
		return err
	}
	m, err := notified(in)
	if err != nil {
		return err
	}
	var out atcr.HoldNotifyManifestOutput
	switch in.Operation {
	case "", "push":
		out, err = h.pushed(r.Context(), caller, m, in)
	case "pull":
		out, err = h.pulled(r.Context(), caller, m, in)
	case "delete":
		out, err = h.deleted(r.Context(), caller, m)
	default:
		err = xrpc.Errorf(http.StatusBadRequest, atcr.HoldNotifyManifestErrorInvalidOperation, "operation must be push, pull or delete")
	}
	if err != nil {
		return err
	}
	out.Success = true
	xrpc.WriteJSON(w, http.StatusOK, out)
	return nil
}

// notified reads what every message names.
func notified(in atcr.HoldNotifyManifestInput) (ledger.Manifest, error) {
	var m ledger.Manifest
	did, err := syntax.ParseDID(in.UserDid)
	if err != nil {
		return m, xrpc.InvalidRequest("userDid must be a DID")
	}
	if _, err := oci.ParseName("a/" + in.Repository); err != nil {
		return m, xrpc.InvalidRequest("repository must be a repository's name, without its owner")
	}
	m.Owner, m.Repository = did, in.Repository
	if m.Digest, err = namedDigest(in.ManifestDigest); err != nil {
		return m, err
	}
	if in.Tag != "" && !validTag(in.Tag) {
		return m, xrpc.InvalidRequest("tag must be a tag, or absent")
	}
	if in.Manifest.Config != nil && in.Manifest.Config.Digest != "" {
		m.Config, err = namedDigest(in.Manifest.Config.Digest)
	}
	return m, err
}

// namedDigest is a digest that a message names.
func namedDigest(s string) (oci.Digest, error) {
	d, err := oci.ParseDigest(s)
	if err != nil {
		return "", xrpc.InvalidRequest("%s", oci.AsError(err).Message)
	}
	return d, nil
}

func mismatch(caller, owner syntax.DID) error {
	return xrpc.Errorf(http.StatusForbidden, atcr.HoldNotifyManifestErrorUserMismatch, "the token is %s's, the image %s's", caller, owner)
}

// pushed makes the layer records of a manifest. Blobs that have theirs keep it, so a repeated push writes
// nothing.
func (h *Hold) pushed(ctx context.Context, caller syntax.DID, m ledger.Manifest, in atcr.HoldNotifyManifestInput) (out atcr.HoldNotifyManifestOutput, err error) {
	if caller != m.Owner {
		return out, mismatch(caller, m.Owner)
	}
	defer h.persons.adding(caller)()
	if err := h.mayWrite(ctx, caller); err != nil {
		return out, err
	}
	blobs, err := h.manifestBlobs(ctx, caller, in.Manifest)
	if err != nil {
		return out, err
	}
	if err := h.quota.notify(ctx, caller, blobs); err != nil {
		return out, err
	}
	uri, err := h.ledger.ManifestURI(ctx, m)
	if err != nil {
		return out, err
	}
	layers, err := h.missingLayers(ctx, caller, uri, blobs)
	if err != nil {
		return out, err
	}
	if err := h.takeRecords(ctx, caller, len(layers)); err != nil {
		return out, err
	}
	if err := h.applyAll(ctx, layers); err != nil {
		return out, err
	}
	created := int64(len(layers))
	key := caller.String() + " " + m.Repository + " " + m.Digest.String() + " " + in.Tag
	counted := h.once(key)
	post := h.wantedPost(ctx, m, uri, in)
	if err := h.ledger.Push(ctx, m, uri, counted, post); err != nil {
		h.again(key, counted)
		return out, err
	}
	h.quota.forget(caller)
	h.imageCame(m.Config)
	if post != nil {
		h.announce(post.Post, m, in, blobs)
	}
	out.Operation, out.LayersCreated, out.StatsUpdated = "push", &created, &counted
	return out, nil
}

// namedBlob is a blob that a manifest names, with what the hold's index says of it.
type namedBlob struct {
	upload.Blob
	mediaType string
}

// manifestBlobs are config and layers, each once, with the sizes that the index has.
func (h *Hold) manifestBlobs(ctx context.Context, caller syntax.DID, info atcr.HoldNotifyManifestManifestInfo) ([]namedBlob, error) {
	named := slices.Clone(info.Layers)
	if info.Config != nil && info.Config.Digest != "" {
		named = append(named, *info.Config)
	}
	if len(named) > maxManifestLayers {
		return nil, xrpc.InvalidRequest("a manifest may name at most %d blobs here", maxManifestLayers)
	}
	seen := map[oci.Digest]bool{}
	out := make([]namedBlob, 0, len(named))
	for _, n := range named {
		d, err := namedDigest(n.Digest)
		if err != nil {
			return nil, err
		}
		if seen[d] {
			continue
		}
		seen[d] = true
		// Promised, so that it stays until its record is there.
		b, err := h.uploads.Promise(ctx, d, caller, "")
		if errors.Is(err, upload.ErrNoBlob) {
			return nil, xrpc.Errorf(http.StatusBadRequest, atcr.HoldNotifyManifestErrorBlobNotFound, "this hold has no blob %s: push it first", d)
		}
		if err != nil {
			return nil, blobError(d, err)
		}
		mediaType := n.MediaType
		if mediaType == "" || len(mediaType) > 128 {
			mediaType = "application/octet-stream"
		}
		out = append(out, namedBlob{b, mediaType})
	}
	return out, nil
}

// putLayers writes the records that are not there yet, all of a manifest in one commit where they fit.
func (h *Hold) putLayers(ctx context.Context, caller syntax.DID, manifest syntax.ATURI, blobs []namedBlob) error {
	writes, err := h.missingLayers(ctx, caller, manifest, blobs)
	if err != nil {
		return err
	}
	return h.applyAll(ctx, writes)
}

// missingLayers are the records of a manifest's blobs that are not there yet.
func (h *Hold) missingLayers(ctx context.Context, caller syntax.DID, manifest syntax.ATURI, blobs []namedBlob) (writes []pds.Write, err error) {
	there := map[syntax.RecordKey]bool{}
	keys, err := h.ledger.Layers(ctx, manifest.String())
	if err != nil {
		return nil, err
	}
	for _, k := range keys {
		there[k] = true
	}
	now := timestamp(h.now())
	for _, b := range blobs {
		rkey := syntax.RecordKey(atcr.LayerRkey(manifest.String(), b.Digest.String()))
		if there[rkey] {
			continue
		}
		raw, err := json.Marshal(atcr.HoldLayer{
			Digest: b.Digest.String(), Size: b.Size, MediaType: strings.ToValidUTF8(b.mediaType, "?"), Manifest: manifest.String(), UserDid: caller.String(), CreatedAt: now,
		})
		if err != nil {
			return nil, err
		}
		writes = append(writes, pds.Write{Action: pds.Put, Collection: atcr.HoldLayerNSID, Rkey: rkey, Value: raw})
	}
	return writes, nil
}

// applyAll makes as few commits as there can be.
func (h *Hold) applyAll(ctx context.Context, writes []pds.Write) error {
	for chunk := range slices.Chunk(writes, pds.MaxCommitOps) {
		if _, err := h.repo.Apply(ctx, chunk, nil); err != nil {
			return err
		}
	}
	return nil
}

// pulled counts pulls: one by who pulled, many by an AppView whose word is taken.
func (h *Hold) pulled(ctx context.Context, caller syntax.DID, m ledger.Manifest, in atcr.HoldNotifyManifestInput) (out atcr.HoldNotifyManifestOutput, err error) {
	count := int64(1)
	if slices.Contains(h.config.TrustedAppViews, caller.String()) { // which needs to read nothing here
		if in.Count != nil {
			count = *in.Count
		}
		h.told.Store(h.now().UnixNano())
	} else if err := h.mayRead(ctx, caller); err != nil {
		return out, err
	}
	if count < 1 || count > maxPullCount {
		return out, xrpc.InvalidRequest("count must be 1 to %d", maxPullCount)
	}
	key := "pull " + caller.String() + " " + m.Owner.String() + " " + m.Repository
	counted := h.once(key)
	if counted {
		counted, err = h.ledger.Pull(ctx, m.Owner, m.Repository, count)
		h.again(key, err != nil)
	}
	out.Operation, out.StatsUpdated = "pull", &counted
	return out, err
}

// deleted removes the layer records that a manifest brought; the bytes go by collection.
func (h *Hold) deleted(ctx context.Context, caller syntax.DID, m ledger.Manifest) (out atcr.HoldNotifyManifestOutput, err error) {
	if caller != m.Owner {
		return out, mismatch(caller, m.Owner)
	}
	uri, err := h.ledger.ManifestURI(ctx, m)
	if err != nil {
		return out, err
	}
	keys, err := h.ledger.Layers(ctx, uri.String())
	if err != nil {
		return out, err
	}
	if err := h.deleteRecords(ctx, atcr.HoldLayerNSID, keys); err != nil {
		return out, err
	}
	h.quota.forget(caller)
	none := false
	out.Operation, out.StatsUpdated = "delete", &none
	defer h.imagesWent()
	return out, h.ledger.Forget(ctx, m)
}

// deleteRecords deletes those that are still there.
func (h *Hold) deleteRecords(ctx context.Context, collection syntax.NSID, keys []syntax.RecordKey) error {
	writes := make([]pds.Write, len(keys))
	for i, k := range keys {
		writes[i] = pds.Write{Action: pds.Delete, Collection: collection, Rkey: k}
	}
	return h.deleteAll(ctx, writes)
}

// meanwhile tells whether err says that a record to be deleted went, or is another than the one that was meant.
func meanwhile(err error) bool {
	return errors.Is(err, pds.ErrRecordNotFound) || errors.Is(err, pds.ErrInvalidSwap)
}

// deleteAll deletes the records that are still there, in as few commits as there can be.
func (h *Hold) deleteAll(ctx context.Context, deletes []pds.Write) error {
	for writes := range slices.Chunk(deletes, pds.MaxCommitOps) {
		_, err := h.repo.Apply(ctx, writes, nil)
		if meanwhile(err) { // each for itself
			for i := range writes {
				if _, err := h.repo.Apply(ctx, writes[i:i+1], nil); err != nil && !meanwhile(err) {
					return err
				}
			}
			continue
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// once tells whether key was not seen in the last minute.
func (h *Hold) once(key string) bool {
	h.recentMu.Lock()
	defer h.recentMu.Unlock()
	now := h.now()
	if at, ok := h.recent.Get(key); ok && now.Sub(at) < time.Minute {
		return false
	}
	h.recent.Add(key, now)
	return true
}

// again takes once back, where what it was asked for came to nothing.
func (h *Hold) again(key string, nothing bool) {
	if nothing {
		h.recentMu.Lock()
		h.recent.Remove(key)
		h.recentMu.Unlock()
	}
}
