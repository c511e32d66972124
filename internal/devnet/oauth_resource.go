package devnet

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"

	"github.com/bluesky-social/indigo/atproto/auth"

	"atcr.io/internal/httpx"
	"atcr.io/internal/xrpc"
)

// checkPermission refuses a scope that the server does not know. The caller has the lock.
func (o *OAuth) checkPermission(scope string) error {
	if scope == "atproto" || scope == "transition:generic" {
		return nil
	}
	p, err := auth.ParsePermissionString(scope)
	if err != nil || o.coarse {
		return refuse("invalid_scope", "%s is not supported", scope)
	}
	if p.Resource == "include" {
		return refuse("invalid_scope", "permission sets cannot be resolved here")
	}
	return nil
}

// guard stands before the PDS: it turns a session of OAuth into one of the PDS's own for a single request, if
// the session's scope covers it. Other requests pass.
//
// Source: RFC 9449 section 7
func (o *OAuth) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Date", o.now().UTC().Format(http.TimeFormat))
		scheme, access, _ := strings.Cut(r.Header.Get("Authorization"), " ")
		if !strings.EqualFold(scheme, "DPoP") {
			next.ServeHTTP(w, r)
			return
		}
		w.Header().Set("DPoP-Nonce", o.nonce())
		own, err := o.session(w, r, access)
		if err != nil {
			writeResourceError(w, err)
			return
		}
		r = r.Clone(r.Context())
		r.Header.Set("Authorization", "Bearer "+own)
		next.ServeHTTP(w, r)
	})
}

func writeResourceError(w http.ResponseWriter, err error) {
	if e, ok := errors.AsType[*oauthError](err); ok {
		w.Header().Set("WWW-Authenticate", `DPoP error="`+e.name+`", error_description="`+strings.ReplaceAll(e.message, `"`, `'`)+`"`)
		err = &xrpc.Error{Status: http.StatusUnauthorized, Name: e.name, Message: e.message}
	}
	xrpc.WriteError(w, err)
}

// session is an access token of the PDS's own, for this request.
func (o *OAuth) session(w http.ResponseWriter, r *http.Request, access string) (string, error) {
	jkt, err := o.proof(r, access)
	if err != nil {
		return "", err
	}
	o.mu.Lock()
	g, good := o.grants[access], false
	var scope string
	if g != nil {
		good, scope = !g.ended && g.access == access && g.jkt == jkt && o.now().Before(g.expires), g.scope
	}
	o.mu.Unlock()
	if !good {
		return "", refuse("invalid_token", "the access token is not good, or no longer")
	}
	missing, err := lacks(w, r, scope)
	if err != nil {
		return "", err
	}
	if missing != "" {
		return "", xrpc.Errorf(http.StatusForbidden, "ScopeMissingError", "Missing required scope %q", missing)
	}
	return o.server.tokens.sign(g.did, scopeAppPass, "")
}

// lacks names what a request needs that scope does not have, "" for nothing.
func lacks(w http.ResponseWriter, r *http.Request, scope string) (string, error) {
	if slices.Contains(strings.Fields(scope), "transition:generic") {
		return "", nil
	}
	have, err := auth.ParseOAuthScope(scope)
	if err != nil {
		return "atproto", nil
	}
	has := func(match func(p auth.Permission) bool) bool { return slices.ContainsFunc(have, match) }
	switch nsid := strings.TrimPrefix(r.URL.Path, "/xrpc/"); nsid {
	case "com.atproto.server.getSession":
		return "", nil
	case "com.atproto.server.getServiceAuth":
		lxm, aud := r.URL.Query().Get("lxm"), r.URL.Query().Get("aud")
		if !has(func(p auth.Permission) bool {
			return p.Resource == "rpc" && slices.Contains(p.Endpoint, lxm) && (p.Audience == "*" || p.Audience == aud)
		}) {
			return "rpc:" + lxm, nil
		}
		return "", nil
	case "com.atproto.repo.uploadBlob":
		class, _, _ := strings.Cut(r.Header.Get("Content-Type"), "/")
		if !has(func(p auth.Permission) bool {
			return p.Resource == "blob" && (slices.Contains(p.Accept, "*/*") || slices.Contains(p.Accept, class+"/*"))
		}) {
			return "blob:" + r.Header.Get("Content-Type"), nil
		}
		return "", nil
	case "com.atproto.repo.createRecord", "com.atproto.repo.putRecord", "com.atproto.repo.deleteRecord", "com.atproto.repo.applyWrites":
		return lacksRepo(w, r, nsid, has)
	default:
		return nsid, nil
	}
}

// lacksRepo reads a write, and puts its body back.
func lacksRepo(w http.ResponseWriter, r *http.Request, nsid string, has func(func(auth.Permission) bool) bool) (string, error) {
	body, err := httpx.ReadLimited(http.MaxBytesReader(w, r.Body, 8<<20), 8<<20)
	if err != nil {
		return "", xrpc.InvalidRequest("the body cannot be read")
	}
	r.Body = http.NoBody
	if len(body) > 0 {
		r.Body = readCloser{bytes.NewReader(body)}
	}
	var in struct {
		Collection string
		Writes     []struct {
			Type       string `json:"$type"`
			Collection string
		}
	}
	if err := json.Unmarshal(body, &in); err != nil {
		return "", xrpc.InvalidRequest("the body is no JSON")
	}
	actions := map[string][]string{
		"com.atproto.repo.createRecord": {"create"}, "com.atproto.repo.putRecord": {"create", "update"}, "com.atproto.repo.deleteRecord": {"delete"},
		"com.atproto.repo.applyWrites#create": {"create"}, "com.atproto.repo.applyWrites#update": {"update"}, "com.atproto.repo.applyWrites#delete": {"delete"},
	}
	may := func(collection string, kind string) bool {
		for _, action := range actions[kind] {
			if !has(func(p auth.Permission) bool {
				return p.Resource == "repo" && (slices.Contains(p.Collection, collection) || slices.Contains(p.Collection, "*")) &&
					(len(p.Action) == 0 || slices.Contains(p.Action, action))
			}) {
				return false
			}
		}
		return len(actions[kind]) > 0
	}
	if in.Writes == nil && !may(in.Collection, nsid) {
		return "repo:" + in.Collection, nil
	}
	for _, write := range in.Writes {
		if !may(write.Collection, write.Type) {
			return "repo:" + write.Collection, nil
		}
	}
	return "", nil
}

type readCloser struct{ *bytes.Reader }

func (readCloser) Close() error { return nil }
