package pds

import (
	"errors"
	"net/http"
	"strings"

	"atcr.io/internal/httpx"
	"atcr.io/internal/xrpc"
)

// Route is a row of the list of what is served.
type Route struct {
	NSID    string
	Method  string // GET (HEAD too) or POST
	Access  string // who may: "public", or "authorised" by Config.Authorise
	Handler httpx.Handler
}

// Routes are the host's methods. Errors are *xrpc.Error.
func (h *Host) Routes() []Route {
	routes := []Route{
		{"com.atproto.server.describeServer", http.MethodGet, "public", h.describeServer},
		{"com.atproto.identity.resolveHandle", http.MethodGet, "public", h.resolveHandle},
		{"com.atproto.repo.describeRepo", http.MethodGet, "public", h.describeRepo},
		{"com.atproto.repo.getRecord", http.MethodGet, "public", h.getRecord},
		{"com.atproto.repo.listRecords", http.MethodGet, "public", h.listRecords},
		{"com.atproto.repo.createRecord", http.MethodPost, "authorised", h.createRecord},
		{"com.atproto.repo.putRecord", http.MethodPost, "authorised", h.putRecord},
		{"com.atproto.repo.deleteRecord", http.MethodPost, "authorised", h.deleteRecord},
		{"com.atproto.repo.applyWrites", http.MethodPost, "authorised", h.applyWrites},
		{"com.atproto.repo.uploadBlob", http.MethodPost, "authorised", h.uploadBlob},
		{"com.atproto.sync.getBlob", http.MethodGet, "public", h.GetBlobHandler},
		{"com.atproto.sync.listBlobs", http.MethodGet, "public", h.listBlobs},
		{"com.atproto.sync.getRecord", http.MethodGet, "public", h.getRecordProof},
		{"com.atproto.sync.getBlocks", http.MethodGet, "public", h.getBlocks},
		{"com.atproto.sync.getRepo", http.MethodGet, "public", h.getRepo},
		{"com.atproto.sync.getLatestCommit", http.MethodGet, "public", h.getLatestCommit},
		{"com.atproto.sync.getRepoStatus", http.MethodGet, "public", h.getRepoStatus},
		{"com.atproto.sync.listRepos", http.MethodGet, "public", h.listRepos},
		{"com.atproto.sync.subscribeRepos", http.MethodGet, "public", h.subscribeRepos},
	}
	for i := range routes {
		routes[i].Handler = translated(routes[i].Handler)
	}
	return routes
}

// translations says what each error is in XRPC's words.
var translations = []struct {
	err    error
	status int
	name   string
}{
	{ErrRepoNotFound, http.StatusBadRequest, "RepoNotFound"},
	{ErrRecordNotFound, http.StatusBadRequest, "RecordNotFound"},
	{ErrRecordExists, http.StatusBadRequest, "InvalidRequest"},
	{ErrInvalidSwap, http.StatusBadRequest, "InvalidSwap"},
	{ErrInvalidRecord, http.StatusBadRequest, "InvalidRequest"},
	{ErrBlobNotFound, http.StatusBadRequest, "BlobNotFound"},
}

func translated(next httpx.Handler) httpx.Handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		err := next(w, r)
		for _, t := range translations {
			if errors.Is(err, t.err) {
				return &xrpc.Error{Status: t.status, Name: t.name, Message: err.Error(), Err: err}
			}
		}
		return err
	}
}

// Serve finds the route of an XRPC path among rows, and says 501 or 405 where there is none.
func Serve(adapter *httpx.Adapter, rows []Route) http.Handler {
	handlers := make(map[string]http.Handler, len(rows))
	methods := make(map[string]string, len(rows))
	for _, row := range rows {
		handlers[row.NSID], methods[row.NSID] = adapter.Wrap(row.NSID, xrpc.WriteError, row.Handler), row.Method
	}
	unknown := adapter.Wrap("unknown", xrpc.WriteError, func(_ http.ResponseWriter, r *http.Request) error {
		return xrpc.Errorf(http.StatusNotImplemented, "MethodNotImplemented", "this server has no method of that name")
	})
	wrongVerb := adapter.Wrap("wrong verb", xrpc.WriteError, func(w http.ResponseWriter, r *http.Request) error {
		allow := methods[strings.TrimPrefix(r.URL.Path, "/xrpc/")]
		w.Header().Set("Allow", allow)
		return xrpc.Errorf(http.StatusMethodNotAllowed, "InvalidRequest", "this method is called with %s", allow)
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		header := w.Header()
		header.Set("Access-Control-Allow-Origin", "*")
		header.Set("Access-Control-Expose-Headers", "*")
		if r.Method == http.MethodOptions {
			header.Set("Access-Control-Allow-Methods", "GET, HEAD, POST, PUT, DELETE, PATCH")
			header.Set("Access-Control-Allow-Headers", "*, Authorization")
			header.Set("Access-Control-Max-Age", "86400")
			w.WriteHeader(http.StatusNoContent)
			return
		}
		nsid := strings.TrimPrefix(r.URL.Path, "/xrpc/")
		handler, ok := handlers[nsid]
		switch verb := methods[nsid]; {
		case !ok:
			handler = unknown
		case r.Method == verb || (r.Method == http.MethodHead && verb == http.MethodGet):
		case verb == http.MethodPut && r.Method == http.MethodPost: // uploadPart takes both
		default:
			handler = wrongVerb
		}
		handler.ServeHTTP(w, r)
	})
}
