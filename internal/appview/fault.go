package appview

import (
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"atcr.io/internal/oci"
	"atcr.io/internal/session"
	"atcr.io/internal/xrpc"
)

// retryHint is how soon to try a server again that is down.
const retryHint = 5 * time.Second

// upstreamError says in the registry's words that another server failed. who names it for people: "the PDS
// of alice.test". Errors that are none of another server's pass.
func upstreamError(who string, err error) error {
	if errors.Is(err, session.ErrGone) {
		return &oci.Error{
			Code: oci.CodeUnauthorized, Err: err,
			Message: "your sign-in has ended, or its app password was revoked: log in again",
		}
	}
	if errors.Is(err, session.ErrScope) {
		return &oci.Error{
			Code: oci.CodeDenied, Err: err,
			Message: "you approved of less than this needs: sign in again at this registry's web page, and approve",
		}
	}
	e, ok := errors.AsType[*xrpc.UpstreamError](err)
	if !ok {
		return err
	}
	var out *oci.Error
	switch {
	case e.Status == http.StatusTooManyRequests:
		out = oci.Errorf(oci.CodeTooManyRequests, "%s (%s) limits requests: try again later", who, e.Host)
	case e.Status == http.StatusRequestEntityTooLarge:
		out = &oci.Error{Code: oci.CodeSizeInvalid, Status: http.StatusRequestEntityTooLarge, Message: fmt.Sprintf("the manifest is larger than %s (%s) takes", who, e.Host)}
	case e.Timeout:
		out = oci.Unavailable(http.StatusGatewayTimeout, nil, "%s (%s) did not answer in time", who, e.Host)
	case e.Invalid:
		out = oci.Unavailable(http.StatusBadGateway, nil, "%s (%s) answered something that makes no sense", who, e.Host)
	case e.Status == 0:
		out = oci.Unavailable(http.StatusServiceUnavailable, nil, "%s (%s) cannot be reached: try again in a moment", who, e.Host)
	case e.Status == http.StatusServiceUnavailable:
		out = oci.Unavailable(http.StatusServiceUnavailable, nil, "%s (%s) is not available: try again in a moment", who, e.Host)
	case e.Status >= 500:
		out = oci.Unavailable(http.StatusBadGateway, nil, "%s (%s) failed", who, e.Host)
	default:
		why := strings.Trim(e.Name+": "+e.Message, ": ")
		if why == "" {
			why = "status " + strconv.Itoa(e.Status)
		}
		out = oci.Unavailable(http.StatusBadGateway, nil, "%s (%s) refused: %s", who, e.Host, why)
	}
	out.Err, out.RetryAfter = err, e.RetryAfter
	if out.RetryAfter == 0 && (out.Status == http.StatusServiceUnavailable || out.Code == oci.CodeTooManyRequests) {
		out.RetryAfter = retryHint
	}
	return out
}

// missing tells whether a repo's server says that it has no such record or blob. An error without a name is some
// proxy's page, and one about the whole repo says nothing of what is in it: both are failures. The reference PDS had no
// names of its own for these once, and says what it means in the message.
//
// Source: bluesky-social/atproto, packages/pds, api/com/atproto: repo/getRecord.ts, sync/getBlob.ts.
func missing(err error) bool {
	e, ok := errors.AsType[*xrpc.UpstreamError](err)
	if !ok || e.Status != http.StatusBadRequest && e.Status != http.StatusNotFound {
		return false
	}
	switch e.Name {
	case "RecordNotFound", "BlobNotFound":
		return true
	case "InvalidRequest":
		return strings.HasPrefix(e.Message, "Could not locate record") || strings.HasPrefix(e.Message, "Blob not found")
	}
	return false
}

// temporary tells whether what failed may go well another time: a server that does not answer.
func temporary(err error) bool {
	e, ok := errors.AsType[*oci.Error](err)
	return ok && (e.Status >= 500 || e.Code == oci.CodeTooManyRequests) || unanswered(err)
}
