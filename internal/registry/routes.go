package registry

import (
	"errors"
	"net/http"
	"slices"
	"strings"

	"atcr.io/internal/httpx"
	"atcr.io/internal/oci"
)

// route is one row of the table: what may be called, and the access that it needs.
type route struct {
	kind    Kind
	method  string
	action  Action
	serve   httpx.Handler
	handler http.Handler
}

type routeKey struct {
	kind   Kind
	method string
}

func (r route) pattern() string { return r.method + " " + r.kind.String() }

// table is everything that is served.
func (s *Server) table() []route {
	return []route{
		{kind: Base, method: http.MethodGet, action: "", serve: s.getBase},
		{kind: Base, method: http.MethodHead, action: "", serve: s.getBase},

		{kind: ManifestReference, method: http.MethodGet, action: Pull, serve: s.getManifest},
		{kind: ManifestReference, method: http.MethodHead, action: Pull, serve: s.getManifest},
		{kind: ManifestReference, method: http.MethodPut, action: Push, serve: s.putManifest},
		{kind: ManifestReference, method: http.MethodDelete, action: Delete, serve: s.deleteManifest},

		{kind: Blob, method: http.MethodGet, action: Pull, serve: s.getBlob},
		{kind: Blob, method: http.MethodHead, action: Pull, serve: s.headBlob},
		{kind: Blob, method: http.MethodDelete, action: Delete, serve: s.deleteBlob},

		{kind: UploadStart, method: http.MethodPost, action: Push, serve: s.postUpload},
		{kind: UploadSession, method: http.MethodGet, action: Push, serve: s.getUpload},
		{kind: UploadSession, method: http.MethodPatch, action: Push, serve: s.patchUpload},
		{kind: UploadSession, method: http.MethodPut, action: Push, serve: s.putUpload},
		{kind: UploadSession, method: http.MethodDelete, action: Push, serve: s.deleteUpload},

		{kind: TagList, method: http.MethodGet, action: Pull, serve: s.getTags},
		{kind: Referrers, method: http.MethodGet, action: Pull, serve: s.getReferrers},
	}
}

func (s *Server) allowed(k Kind) string {
	var methods []string
	for key := range s.routes {
		if key.kind == k {
			methods = append(methods, key.method)
		}
	}
	slices.Sort(methods)
	return strings.Join(methods, ", ")
}

// getBase is how clients find out whether this is a registry and their token good.
func (s *Server) getBase(w http.ResponseWriter, _ *http.Request) error {
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", "2")
	_, err := w.Write([]byte("{}"))
	return err
}

// translate writes err in the spec's form, with the challenge that a 401 needs.
func (s *Server) translate(w http.ResponseWriter, err error) (status int, code string) {
	if e, ok := errors.AsType[*RangeError](err); ok {
		w.Header().Set("Range", e.Upload.Range)
		w.Header().Set("Location", e.Upload.Location)
	}
	return oci.WriteError(w, err)
}
