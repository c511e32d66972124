package hold

import (
	"encoding/json"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/bluesky-social/indigo/atproto/syntax"
	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"

	"atcr.io/api/atcr"
	"atcr.io/internal/oci"
)

// repos are people's own repos, as a PDS shows their manifests to others.
type repos struct {
	down   atomic.Bool
	repeat atomic.Bool // lists give their first page again and again

	mu        sync.Mutex
	manifests map[syntax.DID]map[string]atcr.Manifest
	blobs     map[string][]byte // by CID
	others    map[string]any    // records of any form, by at-uri
	asked     int
}

// keep puts a record of any form into its owner's repo.
func (r *repos) keep(uri string, record any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.others[uri] = record
}

func newRepos() *repos {
	return &repos{manifests: map[syntax.DID]map[string]atcr.Manifest{}, blobs: map[string][]byte{}, others: map[string]any{}}
}

// publish writes a manifest record. short leaves out what the manifest names, as of one that is too long.
func (r *repos) publish(did syntax.DID, rkey string, m atcr.Manifest, short bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if short {
		raw, err := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": m.MediaType, "config": m.Config, "layers": m.Layers})
		if err != nil {
			panic(err)
		}
		hash, err := multihash.Sum(raw, multihash.SHA2_256, -1)
		if err != nil {
			panic(err)
		}
		c := cid.NewCidV1(cid.Raw, hash).String()
		r.blobs[c], m.Config, m.Layers = raw, nil, nil
		m.ManifestBlob = &atcr.Blob{MimeType: m.MediaType, Size: int64(len(raw))}
		m.ManifestBlob.Ref.Link = c
	}
	if r.manifests[did] == nil {
		r.manifests[did] = map[string]atcr.Manifest{}
	}
	r.manifests[did][rkey] = m
}

func (r *repos) remove(did syntax.DID, rkey string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.manifests[did], rkey)
}

// manifestRecord is a manifest at the hold s.
func (s *server) manifestRecord(repository, name string, config oci.Digest, layers ...oci.Digest) atcr.Manifest {
	m := atcr.Manifest{
		Repository: repository, Digest: manifestDigest(name), MediaType: oci.MediaTypeImageManifest, SchemaVersion: 2, HoldDid: s.did.String(),
		CreatedAt: "2026-01-01T00:00:00Z", Config: &atcr.ManifestBlobReference{Digest: config.String(), MediaType: "application/x", Size: 1},
	}
	for _, l := range layers {
		m.Layers = append(m.Layers, atcr.ManifestBlobReference{Digest: l.String(), MediaType: "application/x", Size: 1})
	}
	return m
}

func (r *repos) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if r.down.Load() {
		http.Error(w, "down", http.StatusBadGateway)
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked++
	q := req.URL.Query()
	did := syntax.DID(q.Get("repo"))
	item := func(rkey string) map[string]any {
		return map[string]any{"uri": "at://" + did.String() + "/" + q.Get("collection") + "/" + rkey, "cid": "x", "value": r.manifests[did][rkey]}
	}
	var answer any
	switch strings.TrimPrefix(req.URL.Path, "/xrpc/") {
	case "com.atproto.repo.listRecords":
		out := map[string]any{"records": []any{}}
		keys := make([]string, 0, len(r.manifests[did]))
		for k := range r.manifests[did] {
			keys = append(keys, k)
		}
		slices.Sort(keys)
		limit, _ := strconv.Atoi(q.Get("limit"))
		var page []any
		for _, k := range keys {
			if (k > q.Get("cursor") || r.repeat.Load()) && len(page) < min(limit, 3) { // several pages, however few
				page = append(page, item(k))
				out["records"], out["cursor"] = page, k
			}
		}
		answer = out
	case "com.atproto.identity.resolveHandle":
		name, ok := strings.CutSuffix(q.Get("handle"), ".test")
		if !ok {
			http.NotFound(w, req)
			return
		}
		answer = map[string]string{"did": "did:plc:" + name}
	case "com.atproto.repo.getRecord":
		uri := "at://" + did.String() + "/" + q.Get("collection") + "/" + q.Get("rkey")
		if record, ok := r.others[uri]; ok {
			answer = map[string]any{"uri": uri, "cid": "x", "value": record}
			break
		}
		if _, ok := r.manifests[did][q.Get("rkey")]; !ok {
			w.WriteHeader(http.StatusBadRequest)
			_, _ = w.Write([]byte(`{"error":"RecordNotFound"}`))
			return
		}
		answer = item(q.Get("rkey"))
	case getBlobNSID:
		_, _ = w.Write(r.blobs[q.Get("cid")])
		return
	default:
		http.NotFound(w, req)
		return
	}
	_ = json.NewEncoder(w).Encode(answer)
}
