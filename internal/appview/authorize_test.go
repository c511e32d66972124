package appview

import (
	"encoding/base64"
	"net/http"
	"strings"
	"testing"

	"atcr.io/internal/oci"
	"atcr.io/internal/registry"
)

func basic(user, password string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
}

// Would catch any combination of method, resource and caller that is let through or refused against the rule: pulls
// for everybody whose token does not say otherwise, writes for the owner with a token for just that.
func TestWhoMayDoWhat(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	alice := n.as(n.alice, "alice.test/app")
	image := newImage("one")
	alice.push("alice.test/app", image, "1.0")
	owner, stranger := n.alice.Handle+":"+n.alice.AppPassword, n.bob.Handle+":"+n.bob.AppPassword
	const all = ":pull,push,delete"
	callers := map[string]struct {
		user
		pull, push, delete, base int // what each is answered with: 0 for "let through"
	}{
		"nobody":                   {n.nobody(), 0, 401, 401, 401},
		"nobody, with a token":     {n.withScope("", "repository:alice.test/app"+all), 0, 401, 401, 0},
		"nobody's other token":     {n.withScope("", "repository:alice.test/other:pull"), 401, 401, 401, 0},
		"the owner":                {n.withScope(owner, "repository:alice.test/app"+all), 0, 0, 0, 0},
		"the owner, pull":          {n.withScope(owner, "repository:alice.test/app:pull"), 0, 401, 401, 0},
		"the owner, push":          {n.withScope(owner, "repository:alice.test/app:push"), 401, 0, 401, 0},
		"the owner, pull and push": {n.withScope(owner, "repository:alice.test/app:pull,push"), 0, 0, 401, 0},
		"the owner, delete":        {n.withScope(owner, "repository:alice.test/app:delete"), 401, 401, 0, 0},
		"the owner, elsewhere":     {n.withScope(owner, "repository:alice.test/other"+all), 401, 401, 401, 0},
		"the owner, no scope":      {n.withScope(owner, ""), 401, 401, 401, 0},
		"the owner by DID":         {n.withScope(owner, "repository:"+n.alice.DID+"/app"+all), 401, 401, 401, 0},
		"a stranger":               {n.withScope(stranger, "repository:alice.test/app"+all), 0, 403, 403, 0},
		"a stranger, elsewhere":    {n.withScope(stranger, "repository:bob.test/app"+all), 401, 403, 403, 0},
		"a forged token":           {user{n, alice.authorization + "x"}, 401, 401, 401, 401},
		"a password":               {user{n, basic(n.alice.Handle, n.alice.AppPassword)}, 401, 401, 401, 401},
	}
	d := oci.FromBytes(image.layer).String()
	resources := []struct {
		path    string
		methods map[string]registry.Action
	}{
		{"/v2/", map[string]registry.Action{"GET": "", "HEAD": ""}},
		{"/v2/alice.test/app/manifests/none", map[string]registry.Action{"GET": registry.Pull, "HEAD": registry.Pull, "PUT": registry.Push, "DELETE": registry.Delete}},
		{"/v2/alice.test/app/manifests/" + "sha256:" + zeros, map[string]registry.Action{"GET": registry.Pull, "HEAD": registry.Pull, "PUT": registry.Push, "DELETE": registry.Delete}},
		{"/v2/alice.test/app/blobs/sha256:" + zeros, map[string]registry.Action{"GET": registry.Pull, "HEAD": registry.Pull, "DELETE": registry.Delete}},
		{"/v2/alice.test/app/blobs/uploads/", map[string]registry.Action{"POST": registry.Push}},
		{"/v2/alice.test/app/blobs/uploads/?mount=" + d + "&from=alice.test/app", map[string]registry.Action{"POST": registry.Push}},
		{"/v2/alice.test/app/blobs/uploads/x", map[string]registry.Action{"GET": registry.Push, "PATCH": registry.Push, "DELETE": registry.Push}},
		{"/v2/alice.test/app/blobs/uploads/x?digest=" + d, map[string]registry.Action{"PUT": registry.Push}},
		{"/v2/alice.test/app/tags/list", map[string]registry.Action{"GET": registry.Pull}},
		{"/v2/alice.test/app/referrers/" + d, map[string]registry.Action{"GET": registry.Pull}},
	}
	for who, c := range callers {
		want := map[registry.Action]int{registry.Pull: c.pull, registry.Push: c.push, registry.Delete: c.delete, "": c.base}
		for _, resource := range resources {
			for method, action := range resource.methods {
				got := c.do(method, resource.path, nil, "Content-Type", oci.MediaTypeImageManifest)
				through := got.status != 401 && got.status != 403
				if w := want[action]; w == 0 && !through || w != 0 && got.status != w {
					t.Errorf("%s: %s %s: %d, want %d (0: let through): %s", who, method, resource.path, got.status, w, got.body)
				}
				if got.status == 401 && !strings.HasPrefix(got.header.Get("WWW-Authenticate"), "Bearer realm=") {
					t.Errorf("%s: %s %s: no challenge", who, method, resource.path)
				}
			}
		}
	}
}

// Would catch a route of the table that the test above does not know.
func TestEveryRouteHasItsRow(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	for path, methods := range map[string]string{
		"/v2/": "GET, HEAD", "/v2/alice.test/app/manifests/x": "DELETE, GET, HEAD, PUT", "/v2/alice.test/app/blobs/x": "DELETE, GET, HEAD",
		"/v2/alice.test/app/blobs/uploads/": "POST", "/v2/alice.test/app/blobs/uploads/x": "DELETE, GET, PATCH, PUT",
		"/v2/alice.test/app/tags/list": "GET", "/v2/alice.test/app/referrers/x": "GET",
	} {
		if got := n.nobody().do(http.MethodTrace, path, nil); got.status != 405 || got.header.Get("Allow") != methods {
			t.Errorf("%s: %d, allows %q", path, got.status, got.header.Get("Allow"))
		}
	}
}
