package registry

import (
	"encoding/json"
	"net/http"
	"net/url"
	"sort"
	"strconv"

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
	tags, err := s.Manifests.Tags(r.Context(), q.caller, q.path.Name)
	if err != nil {
		return s.challenged(w, q, err)
	}
	if last := query.Get("last"); last != "" {
		tags = tags[sort.Search(len(tags), func(i int) bool { return tags[i] > last }):]
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
	manifests := make([]oci.Descriptor, 0, len(found))
	kind := r.URL.Query().Get("artifactType")
	for _, d := range found {
		if kind == "" || d.ArtifactType == kind {
			manifests = append(manifests, d)
		}
	}
	if kind != "" {
		w.Header().Set("OCI-Filters-Applied", "artifactType")
	}
	return writeJSON(w, oci.MediaTypeImageIndex, map[string]any{
		"schemaVersion": 2, "mediaType": oci.MediaTypeImageIndex, "manifests": manifests,
	})
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
