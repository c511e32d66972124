package registry

import (
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"

	"atcr.io/internal/httpx"
	"atcr.io/internal/oci"
)

// getBlob sends the client to the bytes. A Range header goes along with it.
func (s *Server) getBlob(w http.ResponseWriter, r *http.Request) error {
	q := requestFrom(r)
	digest, err := oci.ParseDigest(q.path.Reference)
	if err != nil {
		return err
	}
	place, err := s.Blobs.Locate(r.Context(), q.caller, q.path.Name, digest)
	if err != nil {
		return s.challenged(w, q, err)
	}
	if place.Through {
		return s.sendBlob(w, r, place, digest)
	}
	if backwards(r.Header["Range"]) {
		return &oci.Error{Code: oci.CodeUnsupported, Status: http.StatusRequestedRangeNotSatisfiable, Message: "the range ends before it begins"}
	}
	h := w.Header()
	values := [2]string{place.URL, q.path.Reference}
	h["Location"] = values[0:1:1]
	h["Docker-Content-Digest"] = values[1:2:2]
	h["Cache-Control"] = noStore
	h["Content-Length"] = nothing
	w.WriteHeader(http.StatusTemporaryRedirect)
	return nil
}

// backwards tells whether a Range asks for bytes that end before they begin. Storage answers that with everything, as
// RFC 9110 lets it, and the distribution spec wants a 416.
//
// Source: RFC 9110, section 14.1.1.
func backwards(ranges []string) bool {
	if len(ranges) != 1 {
		return false
	}
	rest, ok := strings.CutPrefix(ranges[0], "bytes=")
	first, last, _ := strings.Cut(rest, "-")
	from, fromErr := strconv.ParseUint(first, 10, 64)
	to, toErr := strconv.ParseUint(last, 10, 64)
	return ok && fromErr == nil && toErr == nil && to < from
}

// sendBlob passes bytes on. Where there are fewer than were said, the client's connection breaks off too.
func (s *Server) sendBlob(w http.ResponseWriter, r *http.Request, place Place, digest oci.Digest) error {
	res, err := s.Blobs.Fetch(r.Context(), place, r.Header)
	if err != nil {
		return err
	}
	defer func() { _ = res.Body.Close() }()
	h := w.Header()
	for _, name := range []string{"Content-Length", "Content-Range"} {
		if v := res.Header.Get(name); v != "" {
			h.Set(name, v)
		}
	}
	h.Set("Content-Type", "application/octet-stream")
	h.Set("Docker-Content-Digest", string(digest))
	h.Set("Accept-Ranges", "bytes")
	w.WriteHeader(res.StatusCode)
	_, err = io.Copy(w, res.Body)
	return err
}

func (s *Server) headBlob(w http.ResponseWriter, r *http.Request) error {
	q := requestFrom(r)
	digest, err := oci.ParseDigest(q.path.Reference)
	if err != nil {
		return err
	}
	size, err := s.Blobs.Stat(r.Context(), q.caller, q.path.Name, digest)
	if err != nil {
		return s.challenged(w, q, err)
	}
	h := w.Header()
	h.Set("Content-Type", "application/octet-stream")
	h.Set("Content-Length", strconv.FormatInt(size, 10))
	h.Set("Docker-Content-Digest", string(digest))
	h.Set("Accept-Ranges", "bytes")
	w.WriteHeader(http.StatusOK)
	return nil
}

// deleteBlob takes a blob out of a repository.
//
// Source: distribution-spec, "Deleting Blobs".
func (s *Server) deleteBlob(w http.ResponseWriter, r *http.Request) error {
	q := requestFrom(r)
	digest, err := oci.ParseDigest(q.path.Reference)
	if err != nil {
		return err
	}
	if err := s.Blobs.DeleteBlob(r.Context(), q.caller, q.path.Name, digest); err != nil {
		return s.challenged(w, q, err)
	}
	w.Header().Set("Docker-Content-Digest", string(digest))
	w.WriteHeader(http.StatusAccepted)
	return nil
}

// challenged adds the challenge where a better token could help.
func (s *Server) challenged(w http.ResponseWriter, q *request, err error) error {
	if oci.AsError(err).HTTPStatus() == http.StatusUnauthorized && w.Header().Get("WWW-Authenticate") == "" {
		w.Header().Set("WWW-Authenticate", s.Authorizer.Challenge(q.path.Name, q.action, err))
	}
	return err
}

func isTooLarge(err error) bool {
	_, limited := errors.AsType[*http.MaxBytesError](err)
	return limited || errors.Is(err, httpx.ErrTooLarge)
}

func brokenOff(err error) error {
	e := oci.Errorf(oci.CodeSizeInvalid, "the request broke off")
	if errors.Is(err, httpx.ErrTooSlow) {
		e = oci.Errorf(oci.CodeSizeInvalid, "the bytes came too slowly")
		e.Status = http.StatusRequestTimeout
	}
	e.Err = err
	return e
}
