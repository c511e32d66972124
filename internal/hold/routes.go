package hold

import (
	"net/http"
	"net/url"
	"strings"

	"atcr.io/api/atcr"
	"atcr.io/internal/httpx"
	"atcr.io/internal/oci"
	"atcr.io/internal/pds"
	"atcr.io/internal/upload"
	"atcr.io/internal/xrpc"
)

// methods are the hold's own XRPC methods; the repo's come from the repo host.
func (h *Hold) methods() []pds.Route {
	return []pds.Route{
		{NSID: atcr.HoldInitiateUploadNSID, Method: http.MethodPost, Access: "blob:write", Handler: h.initiateUpload},
		{NSID: atcr.HoldGetPartUploadUrlNSID, Method: http.MethodPost, Access: "blob:write", Handler: h.getPartUploadURL},
		{NSID: atcr.HoldUploadPartNSID, Method: http.MethodPut, Access: "blob:write", Handler: h.uploadPart},
		{NSID: atcr.HoldCompleteUploadNSID, Method: http.MethodPost, Access: "blob:write", Handler: h.completeUpload},
		{NSID: atcr.HoldAbortUploadNSID, Method: http.MethodPost, Access: "blob:write", Handler: h.abortUpload},
		{NSID: getBlobNSID, Method: http.MethodGet, Access: "blob:read", Handler: h.getBlob},
		{NSID: atcr.HoldNotifyManifestNSID, Method: http.MethodPost, Access: "blob:write; pulls blob:read", Handler: h.notifyManifest},
		{NSID: atcr.HoldRequestCrewNSID, Method: http.MethodPost, Access: "signed in", Handler: h.requestCrew},
		{NSID: atcr.HoldGetQuotaNSID, Method: http.MethodGet, Access: "public", Handler: h.getQuota},
		{NSID: atcr.HoldListTiersNSID, Method: http.MethodGet, Access: "public", Handler: h.listTiers},
		{NSID: atcr.HoldExportUserDataNSID, Method: http.MethodGet, Access: "signed in", Handler: h.exportUserData},
		{NSID: atcr.HoldDeleteUserDataNSID, Method: http.MethodPost, Access: "signed in", Handler: h.deleteUserData},
		{NSID: getProfileNSID, Method: http.MethodGet, Access: "public", Handler: h.getProfile},
		{NSID: getProfilesNSID, Method: http.MethodGet, Access: "public", Handler: h.getProfiles},
		{NSID: "_health", Method: http.MethodGet, Access: "public", Handler: h.health},
	}
}

// xrpcRoutes are all XRPC methods; the hold's win over the repo host's.
func (h *Hold) xrpcRoutes() []pds.Route {
	own := h.methods()
	taken := map[string]bool{}
	for _, r := range own {
		taken[r.NSID] = true
	}
	for _, r := range h.host.Routes() {
		if taken[r.NSID] {
			continue
		}
		if r.Method == http.MethodPost {
			r.Handler = h.knownCaller(r.NSID, r.Handler)
		}
		own = append(own, r)
	}
	return h.limited(own)
}

// Methods are the NSIDs of all XRPC methods.
func (h *Hold) Methods() (out []string) {
	for _, r := range h.xrpcRoutes() {
		out = append(out, r.NSID)
	}
	return out
}

// knownCaller asks for the caller's token before a byte of the body is read, so that strangers cannot have
// bodies kept in memory. What the caller may do is decided once it is known what is asked for.
func (h *Hold) knownCaller(nsid string, next httpx.Handler) httpx.Handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		did, err := h.caller(r, xrpc.Call{Lxm: []string{nsid}, Once: true})
		if err != nil {
			return err
		}
		if did == "" {
			return h.needsToken(nsid)
		}
		return next(w, r)
	}
}

func (h *Hold) needsToken(nsid string) error {
	return xrpc.Errorf(http.StatusUnauthorized, "AuthRequired", "this call needs a service token for %s with lxm %s", h.did, nsid)
}

// routes is the one list of what is served.
func (h *Hold) routes(adapter *httpx.Adapter) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/xrpc/", pds.Serve(adapter, h.xrpcRoutes()))
	for _, r := range []struct {
		pattern, access string
		translate       httpx.Translator
		handler         httpx.Handler
	}{
		{"GET /.well-known/did.json", "public", xrpc.WriteError, h.getDIDDocument},
		{"GET /.well-known/atproto-did", "public", xrpc.WriteError, h.getAtprotoDID},
		{upload.PathPrefix, "who knows the secret", oci.WriteError, h.uploads.Handler(h.config.PublicURL)},
		{"GET /d/{secret}/{name}", "who knows the secret", xrpc.WriteError, h.getLinkedBlob},
		{"GET /robots.txt", "public", xrpc.WriteError, text("User-agent: *\nDisallow: /u/\nDisallow: /d/\n")},
		{"GET /{$}", "public", xrpc.WriteError, text("This is an ATCR hold: blob storage for container images.\n\nIts repo says who may read and write: /xrpc/com.atproto.repo.describeRepo?repo=" + url.QueryEscape(h.did.String()) + "\n")},
		{"/", "public", xrpc.WriteError, notFound},
	} {
		mux.Handle(r.pattern, adapter.Wrap(strings.TrimPrefix(r.pattern, "GET "), r.translate, r.handler))
	}
	return mux
}

func notFound(http.ResponseWriter, *http.Request) error {
	return xrpc.Errorf(http.StatusNotFound, "NotFound", "there is nothing here; methods are under /xrpc/")
}

func text(body string) httpx.Handler {
	return func(w http.ResponseWriter, _ *http.Request) error {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		_, err := w.Write([]byte(body))
		return err
	}
}

// health says that the database answers.
func (h *Hold) health(w http.ResponseWriter, r *http.Request) error {
	if _, err := h.repo.Head(r.Context()); err != nil {
		return err
	}
	xrpc.WriteJSON(w, http.StatusOK, map[string]string{"version": version()})
	return nil
}

// getAtBlob serves a blob of the hold's own repo by its CID.
func (h *Hold) getAtBlob(w http.ResponseWriter, r *http.Request) error {
	return h.host.GetBlobHandler(w, r)
}
