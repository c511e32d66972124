package hold

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/api/atcr"
	"atcr.io/internal/blobstore"
	"atcr.io/internal/httpx"
	"atcr.io/internal/oci"
	"atcr.io/internal/sqldb"
	"atcr.io/internal/upload"
	"atcr.io/internal/xrpc"
)

// maxLocationBytes bounds the address that an AppView gives a blob.
const maxLocationBytes = 2048

// uploader is the caller of one of the five upload methods, who may write here.
func (h *Hold) uploader(r *http.Request) (syntax.DID, error) {
	did, err := h.caller(r, xrpc.Call{Lxm: uploadMethods, RequireLxm: h.config.RequireLxm})
	if err != nil {
		return "", err
	}
	httpx.EventFrom(r.Context()).DID = did.String()
	if err := h.mayWrite(r.Context(), did); err != nil {
		return "", err
	}
	return did, nil
}

func (h *Hold) initiateUpload(w http.ResponseWriter, r *http.Request) error {
	did, err := h.uploader(r)
	if err != nil {
		return err
	}
	var in atcr.HoldInitiateUploadInput
	if err := xrpc.ReadJSON(w, r, &in); err != nil {
		return err
	}
	digest, err := parseDigest(in.Digest)
	if err != nil {
		return err
	}
	if location := in.Location; location != "" {
		if u, err := url.Parse(location); err != nil || len(location) > maxLocationBytes || (u.Scheme != "https" && u.Scheme != "http") {
			return xrpc.InvalidRequest("location must be an http(s) URL of at most %d bytes", maxLocationBytes)
		}
	}
	// The digest may be a placeholder, so only its algorithm is believed.
	session, err := h.uploads.Begin(r.Context(), did, upload.BeginOptions{Location: in.Location, Algorithm: digest.Algorithm()})
	if err != nil {
		return uploadError(err, uploadFailed)
	}
	xrpc.WriteJSON(w, http.StatusOK, atcr.HoldInitiateUploadOutput{UploadId: session.ID, UploadUrl: upload.URL(h.config.PublicURL, session.Secret)})
	return nil
}

func (h *Hold) getPartUploadURL(w http.ResponseWriter, r *http.Request) error {
	did, err := h.uploader(r)
	if err != nil {
		return err
	}
	var in atcr.HoldGetPartUploadUrlInput
	if err := xrpc.ReadJSON(w, r, &in); err != nil {
		return err
	}
	out := atcr.HoldGetPartUploadUrlOutput{Method: http.MethodPut}
	target, header, err := h.uploads.PartURL(r.Context(), did, in.UploadId, int(in.PartNumber))
	switch {
	case err == nil:
		out.Url, out.Headers = target, header
	case errors.Is(err, upload.ErrNoPresign):
		out.Url = h.config.PublicURL + "/xrpc/" + atcr.HoldUploadPartNSID
		out.Headers = map[string]string{"X-Upload-Id": in.UploadId, "X-Part-Number": strconv.FormatInt(in.PartNumber, 10)}
	default:
		return uploadError(err, uploadFailed)
	}
	xrpc.WriteJSON(w, http.StatusOK, out)
	return nil
}

func (h *Hold) uploadPart(w http.ResponseWriter, r *http.Request) error {
	did, err := h.uploader(r)
	if err != nil {
		return err
	}
	number, err := strconv.Atoi(r.Header.Get("X-Part-Number"))
	if err != nil {
		return xrpc.Errorf(http.StatusBadRequest, "InvalidPartNumber", "the header X-Part-Number must be a whole number, from 1 on")
	}
	etag, err := h.uploads.PutPart(r.Context(), did, r.Header.Get("X-Upload-Id"), number, httpx.ProgressBody(w, r))
	if err != nil {
		return uploadError(err, uploadFailed)
	}
	xrpc.WriteJSON(w, http.StatusOK, atcr.HoldUploadPartOutput{Etag: etag})
	return nil
}

func (h *Hold) completeUpload(w http.ResponseWriter, r *http.Request) error {
	did, err := h.uploader(r)
	if err != nil {
		return err
	}
	var in atcr.HoldCompleteUploadInput
	if err := xrpc.ReadJSON(w, r, &in); err != nil {
		return err
	}
	digest, err := parseDigest(in.Digest)
	if err != nil {
		return err
	}
	parts := make([]blobstore.Part, len(in.Parts))
	for i, p := range in.Parts {
		parts[i] = blobstore.Part{Number: int(p.PartNumber), ETag: p.Etag}
	}
	blob, err := h.uploads.Complete(r.Context(), did, in.UploadId, digest, parts)
	if err != nil {
		return uploadError(err, "CompletionFailed")
	}
	xrpc.WriteJSON(w, http.StatusOK, atcr.HoldCompleteUploadOutput{Status: "completed", Digest: blob.Digest.String()})
	return nil
}

func (h *Hold) abortUpload(w http.ResponseWriter, r *http.Request) error {
	did, err := h.uploader(r)
	if err != nil {
		return err
	}
	var in atcr.HoldAbortUploadInput
	if err := xrpc.ReadJSON(w, r, &in); err != nil {
		return err
	}
	if err := h.uploads.Cancel(r.Context(), did, in.UploadId); err != nil {
		return uploadError(err, "AbortFailed")
	}
	xrpc.WriteJSON(w, http.StatusOK, atcr.HoldAbortUploadOutput{Status: "aborted"})
	return nil
}

// parseDigest is oci.ParseDigest with the method's error.
func parseDigest(s string) (oci.Digest, error) {
	d, err := oci.ParseDigest(s)
	if err != nil {
		return "", xrpc.Errorf(http.StatusBadRequest, "InvalidDigest", "%s", oci.AsError(err).Message)
	}
	return d, nil
}

// uploadFailed is the general failure of uploadPart, and of what comes before the parts.
const uploadFailed = "UploadFailed"

// uploadErrors says what each error of an upload is in the methods' own words; without a name it is the
// method's general failure.
var uploadErrors = []struct {
	err    error
	status int
	name   string
}{
	{upload.ErrUnknown, http.StatusNotFound, "InvalidUploadId"},
	{upload.ErrPartNumber, http.StatusBadRequest, "InvalidPartNumber"},
	{upload.ErrPartDiffers, http.StatusBadRequest, ""},
	{upload.ErrMissingParts, http.StatusBadRequest, "MissingParts"},
	{upload.ErrDigestMismatch, http.StatusBadRequest, "InvalidDigest"},
	{upload.ErrAlgorithm, http.StatusBadRequest, "InvalidDigest"},
	{upload.ErrMixed, http.StatusConflict, ""},
	{upload.ErrBusy, http.StatusConflict, ""},
	{upload.ErrQuota, http.StatusForbidden, "QuotaExceeded"},
	{upload.ErrTooLarge, http.StatusRequestEntityTooLarge, ""},
	{upload.ErrTooManyOpen, http.StatusTooManyRequests, "RateLimitExceeded"},
	{upload.ErrInvalid, http.StatusBadRequest, "InvalidRequest"},
	{upload.ErrClosed, http.StatusServiceUnavailable, ""},
	{upload.ErrJoining, http.StatusServiceUnavailable, ""},
	{blobstore.ErrNoSpace, http.StatusInsufficientStorage, ""},
	{blobstore.ErrPartTooSmall, http.StatusBadRequest, ""},
	{sqldb.ErrFull, http.StatusInsufficientStorage, ""},
	{httpx.ErrTooSlow, http.StatusRequestTimeout, ""},
	{upload.ErrBrokenOff, http.StatusBadRequest, ""},
}

// uploadError puts an upload's error into the words of a method whose general failure is called failure. The
// sentinel's own text is for callers; what wraps it is for the log.
func uploadError(err error, failure string) error {
	for _, e := range uploadErrors {
		if !errors.Is(err, e.err) {
			continue
		}
		out := &xrpc.Error{Status: e.status, Name: e.name, Message: e.err.Error(), Err: err}
		if out.Name == "" {
			out.Name = failure
		}
		if next, ok := errors.AsType[*upload.PartNumberError](err); ok {
			out.Message = next.Error()
		}
		if refused, ok := errors.AsType[*upload.Refused](err); ok {
			out.Message = refused.Reason
		}
		if e.status == http.StatusTooManyRequests {
			out.RetryAfter = time.Minute
		}
		return out
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err // the caller is gone
	}
	return &xrpc.Error{Status: http.StatusInternalServerError, Name: failure, Message: "the hold could not do that: its operator finds the reason in its log", Err: err}
}
