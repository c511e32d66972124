package hold

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/api/atcr"
	"atcr.io/internal/httpx"
	"atcr.io/internal/identity"
	"atcr.io/internal/oci"
	"atcr.io/internal/xrpc"
)

const (
	witnessPage   = 100
	witnessPages  = 1000 // of one person: more is not read, and keeps everything
	witnessWithin = time.Minute
	// witnessPatience is what a round may wait for servers of others in all; who is not asked keeps what is theirs.
	witnessPatience = 30 * time.Minute
	witnessKept     = 16 // people whose manifests are remembered in a round
)

// witness reads what people's own repos say of their images, for a round of collection: a manifest that this
// hold was never told of (the message was lost, or the database is an older one) still names its blobs.
type witness struct {
	people   identities
	upstream xrpc.Upstream
	started  func() time.Time
	waited   time.Duration
	read     map[syntax.DID]*inventory
	order    []syntax.DID
}

// identities finds people: identity.Resolver.
type identities interface {
	LookupDID(ctx context.Context, did syntax.DID) (*identity.Identity, error)
}

// inventory is what one person's manifests name.
type inventory struct {
	err   error
	pds   string
	names map[[16]byte]int32 // the beginning of the sha256 of a digest → the manifest that names it
	keys  []string           // of the manifest records
}

func (i *inventory) add(d oci.Digest, manifest int) {
	sum := sha256.Sum256([]byte(d))
	i.names[[16]byte(sum[:])] = int32(manifest) //nolint:gosec // at most witnessPage*witnessPages
}

func (i *inventory) find(d oci.Digest) (rkey string, ok bool) {
	sum := sha256.Sum256([]byte(d))
	n, ok := i.names[[16]byte(sum[:])]
	if !ok {
		return "", false
	}
	return i.keys[n], true
}

func (h *Hold) newWitness() *witness {
	return &witness{
		people:   h.identities,
		upstream: xrpc.Upstream{Client: httpx.NewClient(httpx.ClientConfig{AllowPrivate: h.config.TestMode, Timeout: 30 * time.Second, UserAgent: userAgent})},
		started:  time.Now, // waiting is real, whatever the hold's clock says
		read:     map[syntax.DID]*inventory{},
	}
}

// ask is what did's repo names.
func (w *witness) ask(ctx context.Context, did syntax.DID) *inventory {
	if i, ok := w.read[did]; ok {
		return i
	}
	i := &inventory{names: map[[16]byte]int32{}}
	if w.waited > witnessPatience {
		i.err = errors.New("this round has waited too long for others")
		return i
	}
	start := w.started()
	ctx, cancel := context.WithTimeout(ctx, witnessWithin)
	defer cancel()
	i.err = w.fill(ctx, did, i)
	w.waited += w.started().Sub(start)
	if len(w.order) == witnessKept {
		delete(w.read, w.order[0])
		w.order = w.order[1:]
	}
	w.read[did], w.order = i, append(w.order, did)
	return i
}

func (w *witness) fill(ctx context.Context, did syntax.DID, into *inventory) error {
	person, err := w.people.LookupDID(ctx, did)
	if errors.Is(err, identity.ErrNotFound) && did.Method() == "plc" {
		return nil // the directory knows all that there are: this one is gone for good
	}
	if err != nil {
		return err
	}
	if into.pds = person.PDS(); into.pds == "" {
		return errors.New("they have no PDS now")
	}
	type page struct {
		Cursor  string
		Records []struct {
			URI   syntax.ATURI
			Value atcr.Manifest
		}
	}
	query := url.Values{"repo": {did.String()}, "collection": {atcr.ManifestNSID}, "limit": {strconv.Itoa(witnessPage)}}
	call := xrpc.UpstreamCall{Base: into.pds, NSID: "com.atproto.repo.listRecords", Query: query, Limit: 16 << 20}
	var noted error
	err = xrpc.Pages(ctx, w.upstream, call, witnessPages, func(p page) (int, string, error) {
		for _, r := range p.Records {
			into.keys = append(into.keys, r.URI.RecordKey().String())
			if noted = w.note(ctx, did, into, &r.Value); noted != nil {
				return 0, "", noted
			}
		}
		return len(p.Records), p.Cursor, nil
	})
	if noted == nil && xrpc.IsUpstream(err, "RepoNotFound") {
		return nil // the account was deleted
	}
	return err
}

// note adds what the newest manifest of into names: as its record says, or, where that is a shortened one, as
// its bytes do.
func (w *witness) note(ctx context.Context, did syntax.DID, into *inventory, record *atcr.Manifest) error {
	at := len(into.keys) - 1
	named, err := w.namedBy(ctx, did, into.pds, record)
	if err != nil {
		return fmt.Errorf("manifest %s: %w", record.Digest, err)
	}
	for _, b := range named {
		into.add(oci.Digest(b.Digest), at)
	}
	return nil
}

// namedBy are the blobs that a manifest needs.
func (w *witness) namedBy(ctx context.Context, did syntax.DID, pds string, record *atcr.Manifest) ([]atcr.HoldNotifyManifestBlobInfo, error) {
	if len(record.Layers) > 0 || len(record.Manifests) > 0 || record.ManifestBlob == nil {
		named := record.Layers
		if record.Config != nil {
			named = append([]atcr.ManifestBlobReference{*record.Config}, named...)
		}
		out := make([]atcr.HoldNotifyManifestBlobInfo, len(named))
		for i, n := range named {
			out[i] = atcr.HoldNotifyManifestBlobInfo{Digest: n.Digest, MediaType: n.MediaType, Size: n.Size}
		}
		return out, nil
	}
	raw, _, err := w.upstream.Bytes(ctx, xrpc.UpstreamCall{
		Base: pds, NSID: getBlobNSID, Query: url.Values{"did": {did.String()}, "cid": {record.ManifestBlob.Ref.Link}}, Limit: oci.MaxManifestBytes,
	})
	if err != nil {
		return nil, err
	}
	parsed, err := oci.ParseManifest(record.MediaType, raw)
	if err != nil {
		return nil, nil //nolint:nilerr // what nobody can read names nothing
	}
	var out []atcr.HoldNotifyManifestBlobInfo
	for _, b := range parsed.Blobs() {
		out = append(out, atcr.HoldNotifyManifestBlobInfo{Digest: b.Digest.String(), MediaType: b.MediaType, Size: b.Size})
	}
	return out, nil
}

// manifest reads one record again, with the blobs that it needs.
func (w *witness) manifest(ctx context.Context, did syntax.DID, pds, rkey string) (record atcr.Manifest, named []atcr.HoldNotifyManifestBlobInfo, err error) {
	var out struct{ Value json.RawMessage }
	err = w.upstream.JSON(ctx, xrpc.UpstreamCall{
		Base: pds, NSID: "com.atproto.repo.getRecord", Query: url.Values{"repo": {did.String()}, "collection": {atcr.ManifestNSID}, "rkey": {rkey}},
	}, &out)
	if err == nil {
		err = json.Unmarshal(out.Value, &record)
	}
	if err == nil {
		named, err = w.namedBy(ctx, did, pds, &record)
	}
	return record, named, err
}

// isHere tells whether a record says that this hold has its blobs.
func (h *Hold) isHere(record *atcr.Manifest) bool {
	if record.HoldDid != "" {
		return record.HoldDid == h.did.String()
	}
	u, err := url.Parse(record.HoldEndpoint)
	own, ownErr := url.Parse(h.config.PublicURL)
	return err == nil && ownErr == nil && u.Host != "" && u.Host == own.Host
}

// adopt makes the layer records of a manifest that this hold was not told of. Blobs that are not here are left out.
func (h *Hold) adopt(ctx context.Context, w *witness, did syntax.DID, i *inventory, rkey string) error {
	record, named, err := w.manifest(ctx, did, i.pds, rkey)
	if err != nil || !h.isHere(&record) {
		return err
	}
	m, err := notified(atcr.HoldNotifyManifestInput{UserDid: did.String(), Repository: record.Repository, ManifestDigest: record.Digest})
	if err != nil {
		return err
	}
	defer h.persons.adding(did)()
	var blobs []namedBlob
	for _, n := range named[:min(len(named), maxManifestLayers)] {
		found, err := h.manifestBlobs(ctx, did, atcr.HoldNotifyManifestManifestInfo{Layers: []atcr.HoldNotifyManifestBlobInfo{n}})
		if e, ok := errors.AsType[*xrpc.Error](err); ok && e.Status == http.StatusBadRequest {
			continue
		}
		if err != nil {
			return err
		}
		blobs = append(blobs, found...)
	}
	if record.Config != nil {
		if m.Config, err = oci.ParseDigest(record.Config.Digest); err != nil {
			m.Config = ""
		}
	}
	uri := syntax.ATURI("at://" + did.String() + "/" + atcr.ManifestNSID + "/" + rkey)
	if err := h.putLayers(ctx, did, uri, blobs); err != nil {
		return err
	}
	defer h.imageCame(m.Config)
	return h.ledger.Push(ctx, m, uri, false, nil)
}
