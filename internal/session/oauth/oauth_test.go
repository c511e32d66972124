package oauth

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bluesky-social/indigo/atproto/lexicon"
	"github.com/golang-jwt/jwt/v5"
)

func newClient(t *testing.T, base, set string) *Client {
	t.Helper()
	keys, err := OpenKeys(filepath.Join(t.TempDir(), "oauth.pem"), nil)
	if err != nil {
		t.Fatal(err)
	}
	c, err := New(Config{BaseURL: base, Keys: keys, HTTP: http.DefaultClient, PermissionSet: set})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// Would catch an approval of too little that counts as enough, in any of the forms in which servers say it.
func TestMissing(t *testing.T) {
	t.Parallel()
	all := strings.Join(append([]string{scopeAtproto}, permissions()...), " ")
	reversed := strings.Fields(all)
	slices.Reverse(reversed)
	without := func(scope string) string { return strings.ReplaceAll(all, scope, "") }
	for name, tt := range map[string]struct {
		set, granted string
		missing      []string
	}{
		"all":              {"", all, nil},
		"generic":          {"", "atproto transition:generic", nil},
		"another order":    {"", strings.Join(reversed, " "), nil},
		"one form for all": {"", "atproto repo?collection=io.atcr.manifest&collection=io.atcr.tag&collection=io.atcr.sailor.profile&collection=io.atcr.sailor.star&collection=io.atcr.repo.page blob:*/* " + rpcScope(append(slices.Clone(holdMethods), readMethod)...), nil},
		"everything":       {"", "atproto repo:* blob:*/* " + rpcScope(append(slices.Clone(holdMethods), readMethod)...), nil},
		"no tags":          {"", without("repo:io.atcr.tag"), []string{"repo:io.atcr.tag"}},
		"tags created":     {"", strings.ReplaceAll(all, "repo:io.atcr.tag", "repo:io.atcr.tag?action=create"), []string{"repo:io.atcr.tag"}},
		"tags in parts":    {"", all[:len("atproto")] + " repo:io.atcr.tag?action=create repo:io.atcr.tag?action=update&action=delete" + strings.ReplaceAll(all[len("atproto"):], "repo:io.atcr.tag", ""), nil},
		"images alone":     {"", strings.ReplaceAll(all, "blob:application/*", "blob:image/*"), []string{"blob:application/*"}},
		"one hold":         {"", strings.ReplaceAll(all, "&aud=*", "&aud=did:web:hold.test%23atcr_hold"), nil},
		"a method less":    {"", strings.ReplaceAll(all, "lxm=io.atcr.hold.uploadPart&", ""), []string{"rpc:io.atcr.hold.uploadPart?aud=*"}},
		"garbage":          {"", all + " repo:% \x00 rpc: include:", nil},
		"a set":            {"io.atcr.authFull", "atproto include:io.atcr.authFull blob:application/* rpc:com.atproto.sync.getBlob?aud=*", nil},
		"a set's contents": {"io.atcr.authFull", all, nil},
		"a set alone":      {"io.atcr.authFull", "atproto include:io.atcr.authFull", []string{"blob:application/*", "rpc:com.atproto.sync.getBlob?aud=*"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := newClient(t, "https://appview.test", tt.set).Missing(tt.granted)
			want := tt.missing
			if name == "one hold" {
				for _, m := range append(slices.Clone(holdMethods), readMethod) {
					want = append(want, "rpc:"+m+"?aud=*")
				}
			}
			if !slices.Equal(got, want) {
				t.Errorf("missing %q, want %q", got, want)
			}
		})
	}
	if got := newClient(t, "https://appview.test", "").Missing(""); len(got) != len(collections)+1+len(holdMethods)+1 {
		t.Errorf("nothing granted, and %d missing", len(got))
	}
	if got := newClient(t, "https://appview.test", "").Missing("atproto include:io.atcr.other"); len(got) == 0 {
		t.Error("a set that is not ours counts")
	}
}

// Would catch a client that servers do not take: by its name, its redirect, or what it declares.
func TestMetadata(t *testing.T) {
	t.Parallel()
	web := newClient(t, "https://appview.test", "io.atcr.authFull")
	m := web.Metadata("ATCR")
	if m.ClientID != "https://appview.test/oauth-client-metadata.json" || !slices.Equal(m.RedirectURIs, []string{"https://appview.test/oauth/callback"}) ||
		m.JWKSURI != "https://appview.test/oauth/jwks.json" || m.TokenEndpointAuthMethod != "private_key_jwt" || !m.DPoPBoundAccessTokens {
		t.Errorf("%+v", m)
	}
	for _, scope := range wanted("io.atcr.authFull") {
		for s := range strings.FieldsSeq(scope) {
			if !slices.Contains(strings.Fields(m.Scope), s) {
				t.Errorf("%s is asked for and not declared", s)
			}
		}
	}
	for base, origin := range map[string]string{
		"http://127.0.0.1:5000": "http://127.0.0.1:5000", "http://localhost:5000": "http://127.0.0.1:5000",
		"http://localhost": "http://127.0.0.1", "http://[::1]:5000": "http://[::1]:5000",
	} {
		c, err := New(Config{BaseURL: base, HTTP: http.DefaultClient})
		if err != nil {
			t.Fatal(err)
		}
		u, err := url.Parse(c.id)
		if err != nil || u.Host != "localhost" || u.Query().Get("redirect_uri") != origin+CallbackPath || c.Origin() != origin || c.Metadata("x").JWKSURI != "" {
			t.Errorf("%s: %s", base, c.id)
		}
	}
	if _, err := New(Config{BaseURL: "https://appview.test", HTTP: http.DefaultClient}); err == nil {
		t.Error("a confidential client without keys")
	}
}

// Would catch a private key that is published.
func TestJWKS(t *testing.T) {
	t.Parallel()
	c := newClient(t, "https://appview.test", "")
	keys, err := c.JWKS()
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(keys)
	if err != nil {
		t.Fatal(err)
	}
	if len(keys.Keys) != 1 || keys.Keys[0].ID != c.config.Keys.Signing().ID || bytes.Contains(text, []byte(`"d"`)) {
		t.Errorf("%s", text)
	}
	// The key of RFC 7517, appendix A.1; its thumbprint was made with jose for Node.
	j := JWK{KeyType: "EC", Curve: "P-256", X: "MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4", Y: "4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"}
	if got := j.thumbprint(); got != "cn-I_WNMClehiVp51i_0VpOENW1upEerA8sEam5hn-s" {
		t.Errorf("thumbprint %s", got)
	}
}

// Would catch a key that others can read, that differs between processes, that is made anew over an old one,
// or that signs before servers could have seen it; and a rotation that takes away what sessions need.
func TestKeys(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "keys", "oauth.pem")
	clock := time.Now()
	now := func() time.Time { return clock }
	opened := make([]*Keys, 8)
	var wg sync.WaitGroup
	for i := range opened {
		wg.Go(func() {
			var err error
			if opened[i], err = OpenKeys(path, now); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	first := opened[0].Signing()
	for _, k := range opened {
		if k == nil || k.Signing().ID != first.ID {
			t.Fatal("two processes have two keys")
		}
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	none := func(string) (bool, error) { return false, nil }
	second, err := opened[0].Rotate(none)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := opened[0].Rotate(none); err != nil { // at once: what signs now stays
		t.Fatal(err)
	}
	if got := opened[1].Signing(); got.ID != first.ID || len(opened[1].All()) != 3 {
		t.Errorf("%d keys, and %s signs, not %s", len(opened[1].All()), got.ID, first.ID)
	}
	clock = clock.Add(2 * time.Hour)
	third := opened[1].Signing()
	if third.ID == first.ID || third.ID == second.ID {
		t.Error("a key that has been published for two hours does not sign")
	}
	if _, err := opened[2].Rotate(func(id string) (bool, error) { return id == first.ID, nil }); err != nil {
		t.Fatal(err)
	}
	_, hasFirst := opened[3].ByID(first.ID)
	_, hasSecond := opened[3].ByID(second.ID)
	_, hasThird := opened[3].ByID(third.ID)
	if !hasFirst || hasSecond || !hasThird || len(opened[3].All()) != 3 {
		t.Errorf("first %v, second %v, third %v of %d", hasFirst, hasSecond, hasThird, len(opened[3].All()))
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("after a rotation: %v, %v", info.Mode(), err)
	}
	if entries, err := os.ReadDir(filepath.Dir(path)); err != nil || len(entries) != 1 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
	if err := os.WriteFile(path, []byte("damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	if opened[3].Signing().ID != third.ID { // runs on
		t.Error("a damaged file ends a process that runs")
	}
	if _, err := OpenKeys(path, now); err == nil || strings.Contains(err.Error(), "damaged") {
		t.Errorf("a damaged file: %v", err)
	}
}

// Would catch a time that is ahead of the server's, and one that a cache made old.
func TestServerTime(t *testing.T) {
	t.Parallel()
	clock := time.Date(2026, 1, 1, 12, 0, 0, 700_000_000, time.UTC)
	p := newPeers(func() time.Time { return clock })
	server := clock.Add(90 * time.Second)
	hear := func(age string) {
		res := &http.Response{Header: http.Header{"Date": {server.Format(http.TimeFormat)}, "Dpop-Nonce": {"n"}}}
		if age != "" {
			res.Header.Set("Date", server.Add(-30*time.Second).Format(http.TimeFormat))
			res.Header.Set("Age", age)
		}
		p.heard("https://pds.test", false, res)
	}
	for _, age := range []string{"", "30"} {
		hear(age)
		got := p.time("https://pds.test")
		if got.After(server) || server.Sub(got) > time.Second {
			t.Errorf("age %q: %s, and it is %s", age, got, server)
		}
	}
	if p.time("https://other.test") != clock || p.known("https://other.test") || p.nonce("https://pds.test", true) != "" || p.nonce("https://pds.test", false) != "n" {
		t.Error("one server's word counts for another")
	}
	res := &http.Response{Header: http.Header{"Dpop-Nonce": {strings.Repeat("n", 10_000)}, "Date": {"yesterday"}}}
	p.heard("https://pds.test", false, res)
	if p.nonce("https://pds.test", false) != "n" || !p.known("https://pds.test") {
		t.Error("garbage counts")
	}
}

// Would catch a token that is sent without proof, a proof that is good elsewhere, and a body that is lost
// when the server asks for another nonce.
func TestTransport(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var bodies []string
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		claims := jwt.MapClaims{}
		if _, _, err := jwt.NewParser().ParseUnverified(r.Header.Get("DPoP"), claims); err != nil {
			t.Error(err)
		}
		if claims["htu"] != "http://"+r.Host+"/xrpc/a" || claims["htm"] != http.MethodPost || claims["ath"] == nil || r.Header.Get("Authorization") != "DPoP token" {
			t.Errorf("%v, %q", claims, r.Header.Get("Authorization"))
		}
		var b bytes.Buffer
		if _, err := b.ReadFrom(r.Body); err != nil {
			t.Error(err)
		}
		bodies = append(bodies, b.String())
		w.Header().Set("DPoP-Nonce", "second")
		if claims["nonce"] != "second" {
			w.Header().Set("WWW-Authenticate", `DPoP error="use_dpop_nonce"`)
			w.WriteHeader(http.StatusUnauthorized)
		}
	}))
	t.Cleanup(s.Close)
	c := newClient(t, "https://appview.test", "")
	client := c.ClientFor(c.config.Keys.Signing().Private, "token")
	res, err := client.Post(s.URL+"/xrpc/a?b=c", "text/plain", strings.NewReader("body"))
	if err != nil {
		t.Fatal(err)
	}
	if err := res.Body.Close(); err != nil || res.StatusCode != http.StatusOK || !slices.Equal(bodies, []string{"body", "body"}) {
		t.Errorf("%v, %s, %q", err, res.Status, bodies)
	}
}

// Would catch a published permission set that is not what we ask for.
func TestPermissionSet(t *testing.T) {
	t.Parallel()
	raw, err := os.ReadFile("../../../lexicons/io/atcr/authFull.json")
	if err != nil {
		t.Fatal(err)
	}
	var file lexicon.SchemaFile
	if err := json.Unmarshal(raw, &file); err != nil {
		t.Fatal(err)
	}
	set, ok := file.Defs["main"].Inner.(lexicon.SchemaPermissionSet)
	if err := file.FinishParse(); err != nil || !ok {
		t.Fatalf("%T, %v", file.Defs["main"].Inner, err)
	}
	if err := set.CheckSchema(); err != nil {
		t.Error(err)
	}
	if len(set.Permissions) != 2 || !slices.Equal(set.Permissions[0].Collection, collections) || !slices.Equal(set.Permissions[1].LXM, holdMethods) || set.Permissions[1].Audience != "*" {
		t.Errorf("%+v", set.Permissions)
	}
}
