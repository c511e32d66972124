package registry

import (
	"net/http"
	"net/url"

	"atcr.io/internal/httpx"
	"atcr.io/internal/oci"
)

// postUpload begins an upload; with `digest` and a body it is the whole upload, with `mount` none may be
// needed.
//
// Source: distribution-spec, "Pushing blobs".
func (s *Server) postUpload(w http.ResponseWriter, r *http.Request) error {
	q := requestFrom(r)
	query := r.URL.Query()
	if mount := query.Get("mount"); mount != "" {
		done, err := s.mount(w, r, q, mount, query.Get("from"))
		if err != nil || done {
			return err
		}
	}
	options := BeginOptions{UserAgent: r.UserAgent(), Algorithm: query.Get("digest-algorithm")}
	whole := false
	if text := query.Get("digest"); text != "" {
		digest, err := oci.ParseDigest(text)
		if err != nil {
			return err
		}
		options.Digest, options.Algorithm = digest, digest.Algorithm()
		whole = r.ContentLength != 0
	}
	if options.Algorithm != "" {
		if _, err := oci.NewHash(options.Algorithm); err != nil {
			return err
		}
	}
	if whole {
		options.UserAgent = "" // the bytes are here already: they go through
	}
	upload, err := s.Uploads.Begin(r.Context(), q.caller, q.path.Name, options)
	if err != nil {
		return s.challenged(w, q, err)
	}
	if !whole {
		writeProgress(w, upload, http.StatusAccepted)
		return nil
	}
	id, err := idOf(upload.Location)
	if err != nil {
		return err
	}
	if err := s.Uploads.Finish(r.Context(), q.caller, q.path.Name, id, options.Digest, chunkOf(w, r)); err != nil {
		return s.challenged(w, q, err)
	}
	writeCreated(w, q.path.Name, options.Digest)
	return nil
}

// mount tells whether the blob is there without an upload. A source that is not there, or not readable, is
// no error: the client then uploads.
func (s *Server) mount(w http.ResponseWriter, r *http.Request, q *request, mount, from string) (bool, error) {
	digest, err := oci.ParseDigest(mount)
	if err != nil {
		return false, err
	}
	var source oci.Name
	if from != "" {
		if source, err = oci.ParseName(from); err != nil {
			return false, nil //nolint:nilerr // a repository of another registry's, perhaps
		}
	}
	done, err := s.Uploads.Mount(r.Context(), q.caller, q.path.Name, source, digest)
	if err != nil {
		return false, s.challenged(w, q, err)
	}
	if done {
		writeCreated(w, q.path.Name, digest)
	}
	return done, nil
}

func (s *Server) patchUpload(w http.ResponseWriter, r *http.Request) error {
	q := requestFrom(r)
	upload, err := s.Uploads.Append(r.Context(), q.caller, q.path.Name, q.path.Reference, chunkOf(w, r))
	if err != nil {
		return s.challenged(w, q, err)
	}
	writeProgress(w, upload, http.StatusAccepted)
	return nil
}

func (s *Server) getUpload(w http.ResponseWriter, r *http.Request) error {
	q := requestFrom(r)
	upload, err := s.Uploads.Status(r.Context(), q.caller, q.path.Name, q.path.Reference)
	if err != nil {
		return s.challenged(w, q, err)
	}
	writeProgress(w, upload, http.StatusNoContent)
	return nil
}

func (s *Server) putUpload(w http.ResponseWriter, r *http.Request) error {
	q := requestFrom(r)
	digest, err := oci.ParseDigest(r.URL.Query().Get("digest"))
	if err != nil {
		return err
	}
	if err := s.Uploads.Finish(r.Context(), q.caller, q.path.Name, q.path.Reference, digest, chunkOf(w, r)); err != nil {
		return s.challenged(w, q, err)
	}
	writeCreated(w, q.path.Name, digest)
	return nil
}

func (s *Server) deleteUpload(w http.ResponseWriter, r *http.Request) error {
	q := requestFrom(r)
	if err := s.Uploads.Cancel(r.Context(), q.caller, q.path.Name, q.path.Reference); err != nil {
		return s.challenged(w, q, err)
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func chunkOf(w http.ResponseWriter, r *http.Request) Chunk {
	return Chunk{
		Body: httpx.ProgressBody(w, r), Size: r.ContentLength, ContentRange: r.Header.Get("Content-Range"),
		Algorithm: r.URL.Query().Get("digest-algorithm"),
	}
}

func writeProgress(w http.ResponseWriter, u Upload, status int) {
	h := w.Header()
	h.Set("Location", u.Location)
	h.Set("Range", u.Range)
	h.Set("Docker-Upload-UUID", oci.FromBytes([]byte(u.Location)).Hex()[:32])
	h.Set("Cache-Control", "no-store")
	if status != http.StatusNoContent {
		h.Set("Content-Length", "0")
	}
	w.WriteHeader(status)
}

func writeCreated(w http.ResponseWriter, name oci.Name, d oci.Digest) {
	h := w.Header()
	h.Set("Location", "/v2/"+name.String()+"/blobs/"+string(d))
	h.Set("Docker-Content-Digest", string(d))
	h.Set("Content-Length", "0")
	w.WriteHeader(http.StatusCreated)
}

// idOf is the id in a Location of this host.
func idOf(location string) (string, error) {
	u, err := url.Parse(location)
	if err != nil {
		return "", err
	}
	p, err := ParsePath(u.EscapedPath())
	return p.Reference, err
}
