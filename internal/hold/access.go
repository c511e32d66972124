package hold

import (
	"context"
	"net/http"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/internal/xrpc"
)

// caller is who signed the request's service token, "" where there is none.
// Errors: *xrpc.Error 401 for a token that is not good for this call.
func (h *Hold) caller(r *http.Request, call xrpc.Call) (syntax.DID, error) {
	token := xrpc.BearerToken(r)
	if token == "" {
		return "", nil
	}
	return h.verifier.Verify(r.Context(), token, call)
}

// mayRead is nil where did ("" for nobody) may read blobs here.
func (h *Hold) mayRead(ctx context.Context, did syntax.DID) error {
	if err := h.blockedPerson(did); err != nil {
		return err
	}
	access, err := h.roster.Access(ctx, did)
	if err != nil || access.Read {
		return err
	}
	return h.denied(did, "blob:read", access.Reason)
}

// mayWrite is nil where did ("" for nobody) may upload blobs here.
func (h *Hold) mayWrite(ctx context.Context, did syntax.DID) error {
	if err := h.blockedPerson(did); err != nil {
		return err
	}
	access, err := h.roster.Access(ctx, did)
	if err != nil || access.Write {
		return err
	}
	return h.denied(did, "blob:write", access.Reason)
}

// denied is the same answer whether or not what was asked for exists.
func (h *Hold) denied(did syntax.DID, permission, reason string) error {
	if did == "" {
		return xrpc.Errorf(http.StatusUnauthorized, "AuthRequired",
			"%s is needed at this hold: sign in, with an account that has it (the hold is %s)", permission, h.did)
	}
	return xrpc.Errorf(http.StatusForbidden, "Forbidden", "%s has no %s at this hold: %s", did, permission, reason)
}
