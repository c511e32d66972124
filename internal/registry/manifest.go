package registry

import (
	"errors"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"atcr.io/internal/httpx"
	"atcr.io/internal/oci"
)

// maxTags bounds the `tag` parameters of one push.
const maxTags = 10

func (s *Server) getManifest(w http.ResponseWriter, r *http.Request) error {
	q := requestFrom(r)
	reference, err := oci.ParseReference(q.path.Reference)
	if err != nil {
		return err
	}
	m, err := s.Manifests.Get(r.Context(), q.caller, q.path.Name, reference)
	if err != nil {
		return s.challenged(w, q, err)
	}
	h := w.Header()
	etag := `"` + string(m.Digest) + `"`
	h.Set("Docker-Content-Digest", string(m.Digest))
	h.Set("ETag", etag)
	if matches(r.Header["If-None-Match"], etag) {
		w.WriteHeader(http.StatusNotModified)
		return nil
	}
	h.Set("Content-Type", m.MediaType)
	h.Set("Content-Length", strconv.Itoa(len(m.Bytes)))
	w.WriteHeader(http.StatusOK)
	if r.Method != http.MethodHead {
		if m.Served != nil {
			m.Served()
		}
		_, _ = w.Write(m.Bytes) // the client is gone: nobody to tell
	}
	return nil
}

// matches tells whether the caller of If-None-Match has what etag stands for. Our tags have no comma in them.
//
// Source: RFC 9110, section 13.1.2.
func matches(header []string, etag string) bool {
	for _, line := range header {
		for tag := range strings.SplitSeq(line, ",") {
			if tag = strings.TrimPrefix(strings.TrimSpace(tag), "W/"); tag == etag || tag == "*" {
				return true
			}
		}
	}
	return false
}

// putManifest takes a manifest under a tag, or under its digest with any number of `tag` parameters.
//
// Source: distribution-spec, "Pushing Manifests".
func (s *Server) putManifest(w http.ResponseWriter, r *http.Request) error {
	q := requestFrom(r)
	reference, err := oci.ParseReference(q.path.Reference)
	if err != nil {
		return err
	}
	tags, err := tagsOf(r, reference)
	if err != nil {
		return err
	}
	mediaType, err := oci.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil {
		return err
	}
	raw, release, err := s.readManifest(w, r)
	defer release()
	if err != nil {
		return err
	}
	digest := reference.Digest
	if digest == "" {
		digest = oci.FromBytes(raw)
	} else if !digest.Matches(raw) {
		return oci.Errorf(oci.CodeDigestInvalid, "the manifest does not have the digest in the path")
	}
	parsed, err := oci.ParseManifest(mediaType, raw)
	if err != nil {
		return err
	}
	m := Manifest{MediaType: mediaType, Digest: digest, Bytes: raw}
	if err := s.Manifests.Put(r.Context(), q.caller, q.path.Name, m, parsed, tags); err != nil {
		return s.challenged(w, q, err)
	}
	h := w.Header()
	h.Set("Location", "/v2/"+q.path.Name.String()+"/manifests/"+string(digest))
	h.Set("Docker-Content-Digest", string(digest))
	if parsed.Subject != nil {
		h.Set("OCI-Subject", string(parsed.Subject.Digest))
	}
	if reference.Digest != "" {
		for _, tag := range tags {
			h.Add("OCI-Tag", tag)
		}
	}
	h.Set("Content-Length", "0")
	w.WriteHeader(http.StatusCreated)
	return nil
}

func tagsOf(r *http.Request, reference oci.Reference) ([]string, error) {
	if reference.Tag != "" {
		return []string{reference.Tag}, nil
	}
	tags := r.URL.Query()["tag"]
	if len(tags) > maxTags {
		return nil, oci.Errorf(oci.CodeManifestInvalid, "at most %d tags in one push", maxTags)
	}
	var once []string
	for _, tag := range tags {
		if parsed, err := oci.ParseReference(tag); err != nil || parsed.Tag == "" {
			return nil, oci.Errorf(oci.CodeManifestInvalid, "a tag parameter is not a tag")
		}
		if !slices.Contains(once, tag) {
			once = append(once, tag)
		}
	}
	return once, nil
}

// readManifest reads a manifest's bytes, whose room in memory is the caller's until release.
func (s *Server) readManifest(w http.ResponseWriter, r *http.Request) (raw []byte, release func(), err error) {
	body, release := s.manifests.reader(httpx.ProgressBody(w, r))
	raw, err = parseManifestBody(r, body)
	if errors.Is(err, errNoRoom) {
		err = &oci.Error{Code: oci.CodeTooManyRequests, Message: "too many manifests are being pushed: try again in a moment", RetryAfter: time.Second, Err: err}
	}
	return raw, release, err
}

func parseManifestBody(r *http.Request, body io.Reader) ([]byte, error) {
	tooLarge := &oci.Error{Code: oci.CodeSizeInvalid, Status: http.StatusRequestEntityTooLarge, Message: "the manifest is larger than 8 MiB"}
	if r.ContentLength > oci.MaxManifestBytes {
		return nil, tooLarge
	}
	raw, err := httpx.ReadLimited(body, oci.MaxManifestBytes)
	switch {
	case err == nil && len(raw) == 0:
		return nil, oci.Errorf(oci.CodeManifestInvalid, "the manifest is empty")
	case err == nil:
		return raw, nil
	case isTooLarge(err):
		return nil, tooLarge
	}
	return nil, brokenOff(err)
}

func (s *Server) deleteManifest(w http.ResponseWriter, r *http.Request) error {
	q := requestFrom(r)
	reference, err := oci.ParseReference(q.path.Reference)
	if err != nil {
		return err
	}
	if err := s.Manifests.Delete(r.Context(), q.caller, q.path.Name, reference); err != nil {
		return s.challenged(w, q, err)
	}
	w.Header().Set("Content-Length", "0")
	w.WriteHeader(http.StatusAccepted)
	_, _ = io.Copy(io.Discard, io.LimitReader(r.Body, 1<<10)) // keep the connection
	return nil
}
