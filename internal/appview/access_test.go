package appview

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"atcr.io/internal/devnet"
	"atcr.io/internal/oci"
)

// Would catch names that anybody but their owner pushes to, and refusals that do not say what to do.
func TestStrangers(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	bob := n.as(n.bob, "alice.test/app", "bob.test/app")
	got := bob.do(http.MethodPost, "/v2/alice.test/app/blobs/uploads/", nil)
	if got.status != 403 || got.code() != "DENIED" || !strings.Contains(got.body, n.bob.DID) {
		t.Errorf("a stranger's upload: %d %s", got.status, got.body)
	}
	if got := bob.put("alice.test/app", "1.0", newImage("x").manifest); got.status != 403 {
		t.Errorf("a stranger's manifest: %d %s", got.status, got.body)
	}
	if got := bob.do(http.MethodDelete, "/v2/alice.test/app/manifests/1.0", nil); got.status != 403 {
		t.Errorf("a stranger's delete: %d %s", got.status, got.body)
	}
	for _, u := range []user{n.nobody(), n.withScope("", "repository:alice.test/app:pull,push")} {
		got := u.do(http.MethodPost, "/v2/alice.test/app/blobs/uploads/", nil)
		if got.status != 401 || !strings.Contains(got.header.Get("WWW-Authenticate"), `scope="repository:alice.test/app:pull,push"`) {
			t.Errorf("nobody's upload: %d %q", got.status, got.header.Get("WWW-Authenticate"))
		}
	}
	// A token for one repository is none for another of the same owner.
	if got := bob.do(http.MethodPost, "/v2/bob.test/other/blobs/uploads/", nil); got.status != 401 || !strings.Contains(got.header.Get("WWW-Authenticate"), "insufficient_scope") {
		t.Errorf("beyond the scope: %d %q", got.status, got.header.Get("WWW-Authenticate"))
	}
}

// withScope is a user with a token for a scope; basic is the credentials, "" for nobody's.
func (n *network) withScope(basic, scope string) user {
	n.t.Helper()
	req, err := http.NewRequestWithContext(n.t.Context(), http.MethodGet, n.base+"/auth/token?scope="+url.QueryEscape(scope), nil)
	if err != nil {
		n.t.Fatal(err)
	}
	if basic != "" {
		req.Header.Set("Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(basic)))
	}
	return user{n, "Bearer " + n.tokenOf(req)}
}

// Would catch a private hold's image that is answered to nobody, or to somebody whom the hold refuses; and a
// public one that needs a login.
func TestPrivateHold(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	n.useHold(n.bob, n.private.did)
	bob := n.as(n.bob, "bob.test/secret")
	image := newImage("secret")
	bob.push("bob.test/secret", image, "1.0")
	if got := n.records(n.bob, "io.atcr.manifest")[image.digest.Hex()]["holdDid"]; got != n.private.did {
		t.Errorf("the record names %v", got)
	}
	bob.pull("bob.test/secret", "1.0", image)
	layer := "/v2/bob.test/secret/blobs/" + oci.FromBytes(image.layer).String()
	for _, path := range []string{"/v2/bob.test/secret/manifests/1.0", layer} {
		got := n.nobody().do(http.MethodGet, path, nil)
		if got.status != 401 || !strings.HasPrefix(got.header.Get("WWW-Authenticate"), "Bearer realm=") || !strings.Contains(got.body, "log in") {
			t.Errorf("nobody at %s: %d %q %s", path, got.status, got.header.Get("WWW-Authenticate"), got.body)
		}
	}
	alice := n.as(n.alice, "bob.test/secret")
	if got := alice.do(http.MethodGet, layer, nil); got.status != 403 || !strings.Contains(got.body, "crew membership") {
		t.Errorf("a stranger's pull: %d %s", got.status, got.body)
	}
	// Alice chooses a hold that does not take her.
	n.useHold(n.alice, n.private.did)
	got := n.as(n.alice, "alice.test/app").do(http.MethodPost, "/v2/alice.test/app/blobs/uploads/", nil)
	if got.status != 403 || got.code() != "DENIED" || !strings.Contains(got.body, "does not accept pushes from "+n.alice.DID) ||
		!strings.Contains(got.body, "ask its owner for crew membership, or choose another hold") {
		t.Errorf("a push to another's hold: %d %s", got.status, got.body)
	}
	// A registry token is no key to a hold.
	direct := request(t, http.MethodGet, n.private.url+"/xrpc/com.atproto.sync.getBlob?did="+n.bob.DID+"&cid="+oci.FromBytes(image.layer).String(), nil,
		"Authorization", bob.authorization)
	if direct.status != 401 {
		t.Errorf("a registry token at the hold: %d %s", direct.status, direct.body)
	}
}

// Would catch a hold's token, an expired or a forged one that is taken here, and Basic where Bearer is asked.
func TestWrongTokens(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	var session struct{ AccessJwt string }
	n.post("com.atproto.server.createSession", "", map[string]string{"identifier": n.alice.DID, "password": n.alice.AppPassword}, &session)
	service := request(t, http.MethodGet, n.PDSURL+"/xrpc/com.atproto.server.getServiceAuth?aud="+url.QueryEscape(n.public.did)+"&lxm=com.atproto.sync.getBlob", nil,
		"Authorization", "Bearer "+session.AccessJwt)
	var out struct{ Token string }
	if err := json.Unmarshal([]byte(service.body), &out); err != nil || out.Token == "" {
		t.Fatalf("%s, %v", service.body, err)
	}
	good := n.as(n.alice, "alice.test/app").authorization
	for what, header := range map[string]string{
		"a hold's service token": "Bearer " + out.Token,
		"a PDS's access token":   "Bearer " + session.AccessJwt,
		"cut off":                good[:len(good)-4],
		"garbage":                "Bearer x",
		"nothing":                "Bearer ",
		"a password":             "Basic " + base64.StdEncoding.EncodeToString([]byte(n.alice.Handle+":"+n.alice.AppPassword)),
	} {
		for _, path := range []string{"/v2/", "/v2/alice.test/app/manifests/1.0"} {
			got := user{n, header}.do(http.MethodGet, path, nil)
			if got.status != 401 || !strings.Contains(got.header.Get("WWW-Authenticate"), `error="invalid_token"`) {
				t.Errorf("%s at %s: %d %q", what, path, got.status, got.header.Get("WWW-Authenticate"))
			}
		}
	}
}

// Would catch a client that cannot sign in because of how it asks: GET or POST, handle or DID, whatever the
// first colon cuts off.
func TestTokenRequests(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	const scope = "repository:alice.test/app:pull,push repository:bob.test/app:pull,push registry:catalog:*"
	handle, did, password := n.alice.Handle, n.alice.DID, n.alice.AppPassword
	form := func(v url.Values) answer {
		v.Set("scope", scope)
		v.Set("service", "x")
		return request(t, http.MethodPost, n.base+"/auth/token", []byte(v.Encode()), "Content-Type", "application/x-www-form-urlencoded")
	}
	get := func(credentials string) answer {
		return request(t, http.MethodGet, n.base+"/auth/token?scope="+url.QueryEscape(scope), nil,
			"Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(credentials)))
	}
	underscored := strings.ReplaceAll(did, ":", "_")
	for what, got := range map[string]answer{
		"handle":         get(handle + ":" + password),
		"@handle":        get("@" + handle + ":" + password),
		"HANDLE":         get(strings.ToUpper(handle) + ":" + password),
		"DID":            get(did + ":" + password),
		"did_plc":        get(underscored + ":" + password),
		"form":           form(url.Values{"grant_type": {"password"}, "username": {handle}, "password": {password}}),
		"form, DID":      form(url.Values{"grant_type": {"password"}, "username": {did}, "password": {password}}),
		"form, cut DID":  form(url.Values{"grant_type": {"password"}, "username": {"did"}, "password": {strings.TrimPrefix(did, "did:") + ":" + password}}),
		"form, no grant": form(url.Values{"username": {handle}, "password": {password}}),
	} {
		var out struct {
			Token       string `json:"token"`
			AccessToken string `json:"access_token"`
			ExpiresIn   int    `json:"expires_in"`
			Scope       string `json:"scope"`
		}
		if err := json.Unmarshal([]byte(got.body), &out); err != nil || got.status != 200 || out.Token == "" || out.AccessToken != out.Token || out.ExpiresIn != 300 {
			t.Errorf("%s: %d %s", what, got.status, got.body)
			continue
		}
		if out.Scope != "repository:alice.test/app:pull,push repository:bob.test/app:pull" || got.header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s: granted %q", what, out.Scope)
		}
		if ok := (user{n, "Bearer " + out.Token}).do(http.MethodGet, "/v2/", nil); ok.status != 200 {
			t.Errorf("%s: /v2/ says %d", what, ok.status)
		}
	}
	for what, tt := range map[string]struct {
		got    answer
		status int
		text   string
	}{
		"wrong password":       {get(handle + ":wrong"), 401, "wrong handle or app password"},
		"no password":          {get(handle), 401, "wrong handle or app password"},
		"main password":        {get(handle + ":" + n.alice.Password), 401, "make an app password"},
		"unknown handle":       {get("carol.test:x"), 401, "no account carol.test"},
		"no handle":            {get("carol:x"), 401, "neither a handle nor a DID"},
		"refresh token":        {form(url.Values{"grant_type": {"refresh_token"}, "refresh_token": {"x"}}), 400, "not supported"},
		"a scope that is none": {request(t, http.MethodGet, n.base+"/auth/token?scope=x", nil), 400, "a scope has the form"},
		"no form":              {request(t, http.MethodPost, n.base+"/auth/token", []byte("{}"), "Content-Type", "application/json"), 415, "form"},
		"a large form":         {request(t, http.MethodPost, n.base+"/auth/token", make([]byte, maxFormBytes+1), "Content-Type", "application/x-www-form-urlencoded"), 413, "too large"},
		"no Basic":             {request(t, http.MethodGet, n.base+"/auth/token", nil, "Authorization", "Bearer x"), 401, "Basic"},
		"broken Basic":         {request(t, http.MethodGet, n.base+"/auth/token", nil, "Authorization", "Basic %%%"), 401, "Basic"},
	} {
		if tt.got.status != tt.status || tt.got.code() == "" || !strings.Contains(tt.got.body, tt.text) {
			t.Errorf("%s: %d %s", what, tt.got.status, tt.got.body)
		}
		if tt.status == 401 && tt.got.header.Get("WWW-Authenticate") == "" && !strings.Contains(what, "Basic") {
			t.Errorf("%s: 401 without WWW-Authenticate", what)
		}
	}
}

// Would catch a sign-in that costs the PDS one createSession a token, of which it allows 30 in 5 minutes.
func TestManyTokensOneSession(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	created := n.PDS.Inject(devnet.Method("com.atproto.server.createSession"), func(w http.ResponseWriter, r *http.Request, next http.Handler) { next.ServeHTTP(w, r) })
	for range 40 {
		n.as(n.alice, "alice.test/app")
	}
	n.restart()
	n.as(n.alice, "alice.test/app")
	if created.Fired() != 1 {
		t.Errorf("%d sessions", created.Fired())
	}
}

// Would catch a user name that is cut at the wrong colon.
func TestSplitUser(t *testing.T) {
	t.Parallel()
	for in, want := range map[string][2]string{
		"alice.test:pw":            {"alice.test", "pw"},
		"alice.test:p:w":           {"alice.test", "p:w"},
		"did:plc:abc:pw":           {"did:plc:abc", "pw"},
		"did:plc:abc:p:w":          {"did:plc:abc", "p:w"},
		"did:web:pds.test%3A80:pw": {"did:web:pds.test%3A80", "pw"},
		"did_plc_abc:pw":           {"did_plc_abc", "pw"},
		"alice.test":               {"alice.test", ""},
		"did:plc:abc":              {"did:plc:abc", ""},
		":":                        {"", ""},
		"":                         {"", ""},
	} {
		if user, password := splitUser(in); user != want[0] || password != want[1] {
			t.Errorf("%q: %q %q", in, user, password)
		}
	}
}

// Would catch two spellings of a DID that are two people, or one that is nobody.
func TestParseIdentity(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"alice.test": "alice.test", "Alice.TEST": "alice.test", "@alice.test": "alice.test",
		"did:plc:z72i7hdynmk6r22z27h6tvur": "did:plc:z72i7hdynmk6r22z27h6tvur", "did_plc_z72i7hdynmk6r22z27h6tvur": "did:plc:z72i7hdynmk6r22z27h6tvur",
		"did_web_pds.example.com": "did:web:pds.example.com", "did:web:pds.example.com": "did:web:pds.example.com",
		"": "", "alice": "", "did_key_abc": "", "did:plc": "", "a_b.test": "", "alice.test/x": "",
	} {
		got, err := parseIdentity(in)
		if (err != nil) != (want == "") || err == nil && got.String() != want {
			t.Errorf("%q: %q, %v", in, got, err)
		}
	}
}
