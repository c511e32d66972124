// Package oci has the nouns of the OCI distribution specification: names, references, digests,
// descriptors, manifests, and the error codes with their form on the wire.
//
// It owns how they are parsed and written, and refuses to own where anything is stored or who may do
// what. It imports nothing of this module.
//
// Source: https://github.com/opencontainers/distribution-spec (spec.md), image-spec (manifest.md, image-index.md).
package oci

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"
)

// Code is an error code of the distribution spec.
type Code string

// The codes of the spec's table "Error Codes".
const (
	CodeBlobUnknown         Code = "BLOB_UNKNOWN"
	CodeBlobUploadInvalid   Code = "BLOB_UPLOAD_INVALID"
	CodeBlobUploadUnknown   Code = "BLOB_UPLOAD_UNKNOWN"
	CodeDigestInvalid       Code = "DIGEST_INVALID"
	CodeManifestBlobUnknown Code = "MANIFEST_BLOB_UNKNOWN"
	CodeManifestInvalid     Code = "MANIFEST_INVALID"
	CodeManifestUnknown     Code = "MANIFEST_UNKNOWN"
	CodeNameInvalid         Code = "NAME_INVALID"
	CodeNameUnknown         Code = "NAME_UNKNOWN"
	CodeSizeInvalid         Code = "SIZE_INVALID"
	CodeUnauthorized        Code = "UNAUTHORIZED"
	CodeDenied              Code = "DENIED"
	CodeUnsupported         Code = "UNSUPPORTED"
	CodeTooManyRequests     Code = "TOOMANYREQUESTS"
)

// codeUnknown and codeUnavailable are outside the spec's table, which has no code for a server at fault;
// clients show them as they stand.
const (
	codeUnknown     Code = "UNKNOWN"
	codeUnavailable Code = "UNAVAILABLE"
)

// status is the HTTP status of each code where an Error names none.
var status = map[Code]int{
	CodeBlobUnknown:         http.StatusNotFound,
	CodeBlobUploadInvalid:   http.StatusBadRequest,
	CodeBlobUploadUnknown:   http.StatusNotFound,
	CodeDigestInvalid:       http.StatusBadRequest,
	CodeManifestBlobUnknown: http.StatusBadRequest,
	CodeManifestInvalid:     http.StatusBadRequest,
	CodeManifestUnknown:     http.StatusNotFound,
	CodeNameInvalid:         http.StatusBadRequest,
	CodeNameUnknown:         http.StatusNotFound,
	CodeSizeInvalid:         http.StatusBadRequest,
	CodeUnauthorized:        http.StatusUnauthorized,
	CodeDenied:              http.StatusForbidden,
	CodeUnsupported:         http.StatusMethodNotAllowed,
	CodeTooManyRequests:     http.StatusTooManyRequests,
	codeUnknown:             http.StatusInternalServerError,
	codeUnavailable:         http.StatusServiceUnavailable,
}

// Error is an error as clients see it. Wrapped causes are logged, never sent.
type Error struct {
	Code       Code
	Message    string // a sentence for people, saying what to do
	Detail     any    // encoded as JSON; nil: left out
	Status     int    // 0: the code's own
	RetryAfter time.Duration
	Err        error // the cause, for the log; may be nil
}

func (e *Error) Error() string {
	if e.Err != nil {
		return fmt.Sprintf("%s: %s: %v", e.Code, e.Message, e.Err)
	}
	return string(e.Code) + ": " + e.Message
}

func (e *Error) Unwrap() error { return e.Err }

// HTTPStatus is Status, or the code's own.
func (e *Error) HTTPStatus() int {
	if e.Status != 0 {
		return e.Status
	}
	if s, ok := status[e.Code]; ok {
		return s
	}
	return http.StatusInternalServerError
}

// Errorf makes an Error; a %w in format is kept as its cause and stands in the message as well, so wrap
// only what clients may read.
func Errorf(code Code, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Code: code, Message: err.Error(), Err: errors.Unwrap(err)}
}

// Unavailable says that another server (host) failed: 502, 503 or 504.
func Unavailable(httpStatus int, cause error, format string, args ...any) *Error {
	return &Error{Code: codeUnavailable, Status: httpStatus, Message: fmt.Sprintf(format, args...), Err: cause}
}

// AsError is the Error inside err, or a generic one that shows nothing of it.
func AsError(err error) *Error {
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	return &Error{Code: codeUnknown, Message: "internal server error", Err: err}
}

// WriteError translates err into the spec's form {"errors": [{code, message, detail}]}.
func WriteError(w http.ResponseWriter, err error) (httpStatus int, code string) {
	e := AsError(err)
	type entry struct {
		Code    Code   `json:"code"`
		Message string `json:"message"`
		Detail  any    `json:"detail,omitempty"`
	}
	body, marshalErr := json.Marshal(map[string][]entry{"errors": {{e.Code, e.Message, e.Detail}}})
	if marshalErr != nil {
		panic(fmt.Sprintf("oci: encode error: %v", marshalErr))
	}
	h := w.Header()
	if e.RetryAfter > 0 {
		h.Set("Retry-After", strconv.Itoa(int((e.RetryAfter+time.Second-1)/time.Second)))
	}
	h.Set("Content-Type", "application/json")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(e.HTTPStatus())
	_, _ = w.Write(body) // the client is gone: nobody to tell
	return e.HTTPStatus(), string(e.Code)
}
