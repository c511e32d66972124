package upload

import (
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"atcr.io/api/atcr"
	"atcr.io/internal/blobstore"
	"atcr.io/internal/httpx"
	"atcr.io/internal/oci"
	"atcr.io/internal/sqldb"
)

// PathPrefix is where Handler is to be mounted; behind it comes a session's secret.
const PathPrefix = "/u/"

// Handler serves the OCI blob-upload calls on /u/<secret>: PATCH, GET, PUT ?digest= and DELETE. The secret
// is all the permission there is; Authorization is not read. baseURL is the hold's, without a slash at the
// end. Errors are *oci.Error.
//
// Source: OCI distribution-spec, "Pushing a blob in chunks"; contract.md, uploadUrl.
func (u *Uploads) Handler(baseURL string) httpx.Handler {
	h := &streamHandler{u: u, base: baseURL}
	return func(w http.ResponseWriter, r *http.Request) error {
		secret, ok := strings.CutPrefix(r.URL.Path, PathPrefix)
		if !ok || len(secret) != secretLength || strings.Contains(secret, "/") {
			return translate(w, ErrUnknown)
		}
		var err error
		switch r.Method {
		case http.MethodPatch:
			err = h.patch(w, r, secret)
		case http.MethodGet, http.MethodHead:
			err = h.get(w, r, secret)
		case http.MethodPut:
			err = h.put(w, r, secret)
		case http.MethodDelete:
			err = h.delete(w, r, secret)
		default:
			w.Header().Set("Allow", "PATCH, GET, HEAD, PUT, DELETE")
			err = oci.Errorf(oci.CodeUnsupported, "an upload takes PATCH, GET, PUT and DELETE")
		}
		return translate(w, err)
	}
}

const secretLength = 43 // 32 bytes in base64 without padding

// URL is the address of a session's secret under baseURL.
func URL(baseURL, secret string) string { return baseURL + PathPrefix + secret }

type streamHandler struct {
	u    *Uploads
	base string
}

func (h *streamHandler) patch(w http.ResponseWriter, r *http.Request, secret string) error {
	start, err := contentRange(r)
	if err != nil {
		return err
	}
	offset, err := h.u.appendAs(r.Context(), secret, r.URL.Query().Get("digest-algorithm"), start, httpx.ProgressBody(w, r))
	if err != nil {
		return err
	}
	h.progress(w, secret, offset, http.StatusAccepted)
	return nil
}

func (h *streamHandler) get(w http.ResponseWriter, r *http.Request, secret string) error {
	offset, err := h.u.Status(r.Context(), secret)
	if err != nil {
		return err
	}
	h.progress(w, secret, offset, http.StatusNoContent)
	return nil
}

// progress says where the upload stands.
func (h *streamHandler) progress(w http.ResponseWriter, secret string, offset int64, status int) {
	w.Header().Set("Location", URL(h.base, secret))
	w.Header().Set("Range", rangeOf(offset))
	w.Header().Set("Docker-Upload-UUID", publicID(secret))
	w.Header().Set("Cache-Control", "no-store")
	if status == http.StatusAccepted {
		w.Header().Set("Content-Length", "0")
	}
	w.WriteHeader(status)
}

func (h *streamHandler) put(w http.ResponseWriter, r *http.Request, secret string) error {
	digest, err := oci.ParseDigest(r.URL.Query().Get("digest"))
	if err != nil {
		return err
	}
	start, err := contentRange(r)
	if err != nil {
		return err
	}
	blob, location, err := h.u.finishStream(r.Context(), secret, digest, start, httpx.ProgressBody(w, r))
	if err != nil {
		return err
	}
	switch {
	case location == "":
		location = h.base + "/xrpc/com.atproto.sync.getBlob?did=" + blob.Owner.String() + "&cid=" + digest.String()
	case strings.HasSuffix(location, "/"):
		location += digest.String()
	}
	w.Header().Set("Location", location)
	w.Header().Set("Docker-Content-Digest", digest.String())
	w.Header().Set("Docker-Upload-UUID", publicID(secret))
	if blob.Joining() {
		w.Header().Set(atcr.JoiningHeader, "true")
	}
	w.Header().Set("Content-Length", "0")
	w.WriteHeader(http.StatusCreated)
	return nil
}

func (h *streamHandler) delete(w http.ResponseWriter, r *http.Request, secret string) error {
	if err := h.u.Abort(r.Context(), secret); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// rangeOf is the Range of an upload. The form has no word for "nothing yet"; registries say 0-0.
func rangeOf(offset int64) string { return "0-" + strconv.FormatInt(max(offset-1, 0), 10) }

// publicID names an upload to clients without giving its secret away.
func publicID(secret string) string { return oci.FromBytes([]byte("upload " + secret)).Hex()[:32] }

// contentRange is where a request's bytes begin, nil where it does not say. Errors: an *oci.Error.
func contentRange(r *http.Request) (*int64, error) {
	header := r.Header.Get("Content-Range")
	if header == "" {
		return nil, nil
	}
	start, end, ok := parseContentRange(header)
	if !ok {
		return nil, &oci.Error{
			Code: oci.CodeBlobUploadInvalid, Status: http.StatusRequestedRangeNotSatisfiable,
			Message: "Content-Range must be <first byte>-<last byte>",
		}
	}
	if r.ContentLength >= 0 && r.ContentLength != end-start+1 {
		return nil, oci.Errorf(oci.CodeSizeInvalid, "Content-Range names %d bytes, Content-Length %d", end-start+1, r.ContentLength)
	}
	return &start, nil
}

// parseContentRange reads the spec's form "<start>-<end>", and HTTP's "bytes <start>-<end>/<size or *>". A
// range of no bytes, which some clients send, is "<start>-<start-1>".
func parseContentRange(header string) (start, end int64, ok bool) {
	text, http := strings.CutPrefix(header, "bytes ")
	if http {
		var size string
		if text, size, ok = strings.Cut(text, "/"); !ok || size != "*" && !digits(size) {
			return 0, 0, false
		}
	}
	first, last, ok := strings.Cut(text, "-")
	if !ok || !digits(first) {
		return 0, 0, false
	}
	start, err := strconv.ParseInt(first, 10, 64)
	if err != nil {
		return 0, 0, false
	}
	if start == 0 && last == "-1" {
		return 0, -1, true
	}
	end, err = strconv.ParseInt(last, 10, 64)
	if err != nil || !digits(last) || end < start-1 || end-start == maxInt64 {
		return 0, 0, false
	}
	return start, end, true
}

const maxInt64 = 1<<63 - 1

func digits(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool { return r < '0' || r > '9' })
}

// translate puts an error into the spec's words. What it does not know passes, and becomes a plain 500.
func translate(w http.ResponseWriter, err error) error {
	if err == nil {
		return nil
	}
	if wrong, ok := errors.AsType[*RangeError](err); ok {
		w.Header().Set("Range", rangeOf(wrong.Offset))
		return &oci.Error{
			Code: oci.CodeBlobUploadInvalid, Status: http.StatusRequestedRangeNotSatisfiable, Message: wrong.Error(), Err: err,
		}
	}
	for _, t := range translations {
		if errors.Is(err, t.sentinel) {
			e := t.to
			e.Err = err
			if refused, ok := errors.AsType[*Refused](err); ok {
				e.Message = refused.Reason
			}
			return &e
		}
	}
	return err
}

var translations = []struct {
	sentinel error
	to       oci.Error
}{
	{ErrUnknown, oci.Error{Code: oci.CodeBlobUploadUnknown, Message: "there is no such upload: it was finished or cancelled, or is too old. Begin a new one"}},
	{ErrDigestMismatch, oci.Error{Code: oci.CodeDigestInvalid, Message: "the bytes do not have that digest; they were thrown away"}},
	{ErrAlgorithm, oci.Error{
		Code: oci.CodeDigestInvalid, Message: "another digest algorithm was in use: name it when the upload begins",
		Detail: fmt.Sprintf("send ?digest-algorithm=%s with the POST or the first PATCH", oci.SHA512),
	}},
	{ErrBusy, oci.Error{Code: oci.CodeTooManyRequests, Status: http.StatusTooManyRequests, RetryAfter: time.Second, Message: "another request is writing to this upload"}},
	{ErrMixed, oci.Error{Code: oci.CodeBlobUploadInvalid, Message: "this upload was begun in parts: finish it so"}},
	{ErrQuota, oci.Error{Code: oci.CodeDenied, Message: "the quota at this hold is used up: delete images, or ask its owner"}},
	{ErrTooLarge, oci.Error{Code: oci.CodeSizeInvalid, Status: http.StatusRequestEntityTooLarge, Message: "the blob is larger than this hold takes"}},
	{ErrClosed, *oci.Unavailable(http.StatusServiceUnavailable, nil, "the hold is restarting: go on in a moment")},
	{ErrJoining, *oci.Unavailable(http.StatusServiceUnavailable, nil, "the hold's storage is still at joining the parts of this blob: try again in a moment")},
	{blobstore.ErrNoSpace, *oci.Unavailable(http.StatusInsufficientStorage, nil, "the hold's storage is full: tell its owner")},
	{sqldb.ErrFull, *oci.Unavailable(http.StatusInsufficientStorage, nil, "the hold's disk is full: tell its owner")},
	{httpx.ErrTooSlow, oci.Error{Code: oci.CodeBlobUploadInvalid, Status: http.StatusRequestTimeout, Message: "the bytes came too slowly; what came is kept"}},
	{ErrBrokenOff, oci.Error{Code: oci.CodeBlobUploadInvalid, Message: "the bytes broke off; what came is kept"}},
}
