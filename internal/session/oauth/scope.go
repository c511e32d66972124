package oauth

import (
	"net/url"
	"slices"
	"strings"

	"github.com/bluesky-social/indigo/atproto/auth"

	"atcr.io/api/atcr"
)

// Scopes with a meaning of their own.
const (
	scopeAtproto = "atproto"
	// scopeGeneric is everything that an app password may: for servers that know no finer permissions.
	scopeGeneric = "transition:generic"
)

// collections are the records that this AppView writes in people's repos.
var collections = []string{
	atcr.ManifestNSID, atcr.TagNSID, atcr.SailorProfileNSID, atcr.SailorStarNSID, atcr.RepoPageNSID,
}

// manifestBlobs is what a manifest's bytes are uploaded as: any `application/…` type is a manifest.
const manifestBlobs = "application/*"

// holdMethods are the methods that are called in a person's name, at whatever hold they chose.
var holdMethods = []string{
	"io.atcr.hold.abortUpload", "io.atcr.hold.completeUpload", "io.atcr.hold.deleteUserData", "io.atcr.hold.exportUserData",
	"io.atcr.hold.getPartUploadUrl", "io.atcr.hold.getQuota", "io.atcr.hold.initiateUpload", "io.atcr.hold.notifyManifest",
	"io.atcr.hold.requestCrew", "io.atcr.hold.uploadPart",
}

// readMethod reads blobs of private holds. It is not in io.atcr, so no permission set there can hold it.
const readMethod = "com.atproto.sync.getBlob"

// permissions is all that this AppView needs, each as a scope of its own, so that a server can list them.
//
// Source: https://atproto.com/specs/permission
func permissions() []string {
	var out []string
	for _, c := range collections {
		out = append(out, "repo:"+c)
	}
	return append(out, "blob:"+manifestBlobs, rpcScope(append(slices.Clone(holdMethods), readMethod)...))
}

func rpcScope(methods ...string) string {
	return "rpc?lxm=" + strings.Join(methods, "&lxm=") + "&aud=*"
}

// coarse is what a server is asked for that knows no fine permissions.
const coarse = scopeAtproto + " " + scopeGeneric

// wanted are the scopes to ask for, best first: what a server refuses is followed by the next, and by coarse at
// last.
func wanted(permissionSet string) []string {
	fine := strings.Join(append([]string{scopeAtproto}, permissions()...), " ")
	if permissionSet == "" {
		return []string{fine}
	}
	set := strings.Join([]string{scopeAtproto, "include:" + permissionSet, "blob:" + manifestBlobs, rpcScope(readMethod)}, " ")
	return []string{set, fine}
}

// declared are all fine scopes that may ever be asked for, as the client's metadata name them. Servers that
// know no fine permissions refuse metadata that name any: for them this is a client of another name.
func declared(permissionSet string) string {
	var out []string
	for _, scope := range wanted(permissionSet) {
		for s := range strings.FieldsSeq(scope) {
			if !slices.Contains(out, s) {
				out = append(out, s)
			}
		}
	}
	return strings.Join(out, " ")
}

// Missing are the permissions that this AppView needs and that granted, a scope as a server said it, lacks;
// nil where all are there. A permission set that is granted as such counts as what it holds.
func (c *Client) Missing(granted string) []string {
	fields := strings.Fields(granted)
	if slices.Contains(fields, scopeGeneric) {
		return nil
	}
	var have []auth.Permission
	included := false
	for _, f := range fields {
		p, err := auth.ParsePermissionString(f)
		if err != nil {
			continue // one that we do not know helps nobody
		}
		included = included || p.Resource == "include" && p.NSID == c.config.PermissionSet && p.NSID != ""
		have = append(have, *p)
	}
	var missing []string
	for _, collection := range collections {
		if !included && !grantsRepo(have, collection) {
			missing = append(missing, "repo:"+collection)
		}
	}
	if !grantsBlobs(have) {
		missing = append(missing, "blob:"+manifestBlobs)
	}
	for _, method := range append(slices.Clone(holdMethods), readMethod) {
		if (!included || method == readMethod) && !grantsMethod(have, method) {
			missing = append(missing, "rpc:"+method+"?aud=*")
		}
	}
	return missing
}

func grantsRepo(have []auth.Permission, collection string) bool {
	for _, action := range []string{"create", "update", "delete"} {
		if !slices.ContainsFunc(have, func(p auth.Permission) bool {
			return p.Resource == "repo" && (slices.Contains(p.Collection, collection) || slices.Contains(p.Collection, "*")) &&
				(len(p.Action) == 0 || slices.Contains(p.Action, action))
		}) {
			return false
		}
	}
	return true
}

func grantsBlobs(have []auth.Permission) bool {
	return slices.ContainsFunc(have, func(p auth.Permission) bool {
		return p.Resource == "blob" && (slices.Contains(p.Accept, manifestBlobs) || slices.Contains(p.Accept, "*/*"))
	})
}

func grantsMethod(have []auth.Permission, method string) bool {
	return slices.ContainsFunc(have, func(p auth.Permission) bool {
		return p.Resource == "rpc" && p.Audience == "*" && slices.Contains(p.Endpoint, method)
	})
}

// loopbackClientID is the name of a client that runs on the person's own machine and has no metadata to fetch.
//
// Source: https://atproto.com/specs/oauth, "Localhost Client Development"
func loopbackClientID(redirect, scope string) string {
	return "http://localhost?" + url.Values{"redirect_uri": {redirect}, "scope": {scope}}.Encode()
}
