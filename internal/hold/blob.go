package hold

import (
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/api/atcr"
	"atcr.io/internal/httpx"
	"atcr.io/internal/oci"
	"atcr.io/internal/upload"
	"atcr.io/internal/xrpc"
)

const getBlobNSID = "com.atproto.sync.getBlob"

// getBlob serves OCI blobs under com.atproto.sync.getBlob where cid is an OCI digest; a CID is an atproto
// blob of the hold's own repo and goes to the repo host.
//
// Permission comes first, so that whoever may not read learns nothing of what is here.
func (h *Hold) getBlob(w http.ResponseWriter, r *http.Request) error {
	content, err := xrpc.RequiredParam(r, "cid")
	if err != nil {
		return err
	}
	if !strings.Contains(content, ":") {
		return h.getAtBlob(w, r)
	}
	digest, err := oci.ParseDigest(content)
	if err != nil {
		return xrpc.InvalidRequest("cid: %s", oci.AsError(err).Message)
	}
	event := httpx.EventFrom(r.Context())
	event.Reference = digest.String()
	method, err := xrpc.Param(r, "method")
	if err != nil {
		return err
	}
	if method != "" && method != http.MethodGet && method != http.MethodHead {
		return xrpc.InvalidRequest("parameter \"method\" must be GET or HEAD")
	}
	blob, viewer, err := h.readableBlob(r, digest)
	if err == nil { // permission is decided first
		err = h.blockedBlob(digest, r.URL.Query().Get("did"))
	}
	event.DID = viewer.String()
	if err == nil && (r.Method == http.MethodHead || method == http.MethodHead) { // whoever pushes relies on it
		blob, err = h.promised(r, blob, viewer)
	}
	if err != nil {
		return tellJoining(w, err)
	}
	if method != "" {
		target, err := h.blobURL(r, blob, viewer, method)
		if err != nil {
			return err
		}
		w.Header().Set("Cache-Control", "no-store")
		xrpc.WriteJSON(w, http.StatusOK, map[string]string{"url": target})
		return nil
	}
	blobHeaders(w, blob)
	if r.Method == http.MethodHead {
		w.Header().Set("Content-Length", strconv.FormatInt(blob.Size, 10))
		w.Header().Set("Accept-Ranges", "bytes")
		w.WriteHeader(http.StatusOK)
		return nil
	}
	h.countPull(r, blob.Digest)
	target, ok, err := h.uploads.Presign(r.Context(), blob, r.Method, linkTTL)
	if err != nil {
		return err
	}
	if ok {
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("Location", target)
		w.WriteHeader(http.StatusTemporaryRedirect)
		return nil
	}
	return h.sendBlob(w, r, blob)
}

// readableBlob is the blob, if this caller may read here and it is there for them. Most blobs of a public
// hold are found without a look at the caller; who has one of their own does not wait for that of others.
func (h *Hold) readableBlob(r *http.Request, digest oci.Digest) (upload.Blob, syntax.DID, error) {
	nobody := h.mayRead(r.Context(), "")
	if nobody == nil {
		if blob, err := h.uploads.Verified(r.Context(), digest); err == nil {
			return blob, "", nil
		} else if !errors.Is(err, upload.ErrNoBlob) {
			return upload.Blob{}, "", blobError(digest, err)
		}
	}
	viewer, err := h.caller(r, xrpc.Call{Lxm: []string{getBlobNSID}})
	if err != nil {
		if nobody != nil {
			return upload.Blob{}, "", err
		}
		viewer = "" // a public hold answers a token that it does not know as it answers nobody
	}
	if err := h.mayRead(r.Context(), viewer); err != nil {
		return upload.Blob{}, viewer, err
	}
	blob, err := h.uploads.Stat(r.Context(), digest, viewer)
	return blob, viewer, blobError(digest, err)
}

// blobError puts an error of a look for a blob into the words of the methods that read one.
func blobError(d oci.Digest, err error) error {
	switch {
	case errors.Is(err, upload.ErrNoBlob):
		return xrpc.Errorf(http.StatusNotFound, "BlobNotFound", "this hold has no blob %s", d)
	case errors.Is(err, upload.ErrJoining):
		return &xrpc.Error{Status: http.StatusServiceUnavailable, Name: "BlobNotReady", Message: err.Error(), RetryAfter: joiningRetry, Err: err}
	case errors.Is(err, upload.ErrClosed):
		return &xrpc.Error{Status: http.StatusServiceUnavailable, Name: "BlobNotReady", Message: err.Error(), RetryAfter: time.Second, Err: err}
	}
	return err
}

// tellJoining is err, of which the answer says besides whether the blob is on its way.
func tellJoining(w http.ResponseWriter, err error) error {
	if errors.Is(err, upload.ErrJoining) || errors.Is(err, upload.ErrClosed) {
		w.Header().Set(atcr.JoiningHeader, "true")
	}
	return err
}

// joiningRetry is when to ask again for a blob that the storage is still putting together.
const joiningRetry = 5 * time.Second

// promised renews a blob of which the caller is told that it is here.
func (h *Hold) promised(r *http.Request, blob upload.Blob, viewer syntax.DID) (upload.Blob, error) {
	told, err := syntax.ParseDID(r.URL.Query().Get("did")) // whose image it is for, as AppViews say
	if err != nil || told == h.did || h.mayWrite(r.Context(), told) != nil {
		told = ""
	}
	digest := blob.Digest
	blob, err = h.uploads.Promise(r.Context(), digest, viewer, told)
	return blob, blobError(digest, err)
}

// blobURL is where the caller may send its own client for method.
func (h *Hold) blobURL(r *http.Request, blob upload.Blob, viewer syntax.DID, method string) (string, error) {
	if target, ok, err := h.uploads.Presign(r.Context(), blob, method, linkTTL); ok || err != nil {
		return target, err
	}
	path := h.links.Load().path(link{Method: method, Digest: blob.Digest, Viewer: viewer, Expires: h.now().Add(linkTTL).Unix()})
	return h.config.PublicURL + path, nil
}

// getLinkedBlob serves `/d/<secret>/<hex>`.
func (h *Hold) getLinkedBlob(w http.ResponseWriter, r *http.Request) error {
	v, err := h.links.Load().parse(r.PathValue("secret"), r.Method, h.now())
	if err != nil {
		return xrpc.Errorf(http.StatusForbidden, "InvalidToken", "this link is not valid, or no longer: ask for a new one")
	}
	if err := h.blockedBlob(v.Digest, v.Viewer.String()); err != nil {
		return err
	}
	blob, err := h.uploads.Stat(r.Context(), v.Digest, v.Viewer)
	if err != nil {
		return tellJoining(w, blobError(v.Digest, err))
	}
	blobHeaders(w, blob)
	return h.sendBlob(w, r, blob)
}

// sendBlob answers GET and HEAD with the bytes, ranges and conditions included. From a folder the kernel
// sends the file without passing the process.
func (h *Hold) sendBlob(w http.ResponseWriter, r *http.Request, blob upload.Blob) error {
	object, err := h.uploads.Open(r.Context(), blob)
	if err != nil {
		return err
	}
	defer func() { _ = object.Close() }()
	http.ServeContent(w, r, "", time.Time{}, object)
	return nil
}

// blobHeaders keep a browser from taking a blob for a page of this host.
func blobHeaders(w http.ResponseWriter, blob upload.Blob) {
	header := w.Header()
	header.Set("Content-Type", "application/octet-stream")
	header.Set("Content-Security-Policy", "default-src 'none'; sandbox")
	header.Set("X-Content-Type-Options", "nosniff")
	header.Set("Docker-Content-Digest", blob.Digest.String())
	header.Set("ETag", `"`+blob.Digest.String()+`"`)
}

// uploadMethods share their service tokens: one serves a whole push.
var uploadMethods = []string{
	atcr.HoldInitiateUploadNSID, atcr.HoldGetPartUploadUrlNSID, atcr.HoldUploadPartNSID,
	atcr.HoldCompleteUploadNSID, atcr.HoldAbortUploadNSID,
}
