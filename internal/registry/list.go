package registry

import (
	"encoding/json"
	"math"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"atcr.io/internal/oci"
)

// getTags lists tags in lexical order, `n` of them behind `last`.
//
// Source: distribution-spec, "Listing Tags".
func (s *Server) getTags(w http.ResponseWriter, r *http.Request) error {
	q := requestFrom(r)
	query := r.URL.Query()
	n := -1
	if text := query.Get("n"); text != "" {
		var err error
		if n, err = strconv.Atoi(text); err != nil || n < 0 {
			return &oci.Error{Code: oci.CodeUnsupported, Status: http.StatusBadRequest, Message: "n must be a whole number"}
		}
	}
	ask := n
	if n >= 0 && n < math.MaxInt {
		ask++ // which tells whether there is another page
	}
	tags, err := s.Manifests.Tags(r.Context(), q.caller, q.path.Name, query.Get("last"), ask)
	if err != nil {
		return s.challenged(w, q, err)
	}
	if n >= 0 && n < len(tags) {
		tags = tags[:n]
		if n > 0 {
			next := url.Values{"n": {strconv.Itoa(n)}, "last": {tags[n-1]}}
			w.Header().Set("Link", "</v2/"+q.path.Name.String()+"/tags/list?"+next.Encode()+`>; rel="next"`)
		}
	}
	if tags == nil {
		tags = []string{}
	}
	return writeJSON(w, "application/json", map[string]any{"name": q.path.Name.String(), "tags": tags})
}

// maxReferrersBytes is what clients take of an index: more of it comes behind a Link.
const maxReferrersBytes = 4 << 20

// getReferrers answers with an index of what refers to a digest; an empty one where nothing does.
//
// Source: distribution-spec, "Listing Referrers".
func (s *Server) getReferrers(w http.ResponseWriter, r *http.Request) error {
	q := requestFrom(r)
	digest, err := oci.ParseDigest(q.path.Reference)
	if err != nil {
		return err
	}
	found, err := s.Manifests.Referrers(r.Context(), q.caller, q.path.Name, digest)
	if err != nil {
		return s.challenged(w, q, err)
	}
	query := r.URL.Query()
	kind, last := query.Get("artifactType"), query.Get("last")
	page, next, err := referrersPage(found, kind, oci.Digest(last))
	if err != nil {
		return err
	}
	if kind != "" {
		w.Header().Set("OCI-Filters-Applied", "artifactType")
	}
	if next != "" {
		more := url.Values{"last": {next.String()}}
		if kind != "" {
			more.Set("artifactType", kind)
		}
		w.Header().Set("Link", "</v2/"+q.path.Name.String()+"/referrers/"+digest.String()+"?"+more.Encode()+`>; rel="next"`)
	}
	return writeJSON(w, oci.MediaTypeImageIndex, map[string]any{
		"schemaVersion": 2, "mediaType": oci.MediaTypeImageIndex, "manifests": page,
	})
}

// referrersPage is what of found is of a kind and behind last, by digest, as much as clients take. next is where the
// next page begins, "" for none.
func referrersPage(found []oci.Descriptor, kind string, last oci.Digest) (page []json.RawMessage, next oci.Digest, err error) {
	sorted := slices.SortedFunc(slices.Values(found), func(x, y oci.Descriptor) int { return strings.Compare(string(x.Digest), string(y.Digest)) })
	page, room := []json.RawMessage{}, maxReferrersBytes-512
	for _, d := range sorted {
		if kind != "" && d.ArtifactType != kind || d.Digest <= last {
			continue
		}
		raw, err := json.Marshal(d)
		if err != nil {
			return nil, "", err
		}
		if room -= len(raw) + 1; room < 0 && len(page) > 0 {
			return page, last, nil
		}
		page, last = append(page, raw), d.Digest
	}
	return page, "", nil
}

func writeJSON(w http.ResponseWriter, contentType string, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	h := w.Header()
	h.Set("Content-Type", contentType)
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(http.StatusOK)
	_, _ = w.Write(body) // the client is gone: nobody to tell
	return nil
}
