package clients

import (
	"cmp"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
)

// witness keeps what is used as a credential at the AppView, and looks at each request elsewhere for it.
type witness struct {
	mu      sync.Mutex
	secrets map[string]bool
	seen    map[string]int // "hold pulls", "hold uploads", "storage pulls": of clients; "hold service tokens"; "credentials": those that are new
	faults  []string
}

func newWitness() *witness { return &witness{secrets: map[string]bool{}, seen: map[string]int{}} }

// atAppView gathers the registry's tokens, with each of their parts that no other token shares, and passwords.
func (w *witness) atAppView(h http.Handler) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		scheme, credential, _ := strings.Cut(r.Header.Get("Authorization"), " ")
		secrets := []string{credential}
		if strings.EqualFold(scheme, "Basic") {
			_, password, _ := r.BasicAuth()
			secrets = append(secrets, password)
		} else if parts := strings.Split(credential, "."); len(parts) == 3 {
			secrets = parts[1:]
		}
		w.mu.Lock()
		for _, s := range secrets {
			if s != "" && !w.secrets[s] {
				w.secrets[s] = true
				w.seen["credentials"]++
			}
		}
		w.mu.Unlock()
		h.ServeHTTP(rw, r)
	})
}

// at looks at what comes to a place where holdDID's service tokens, and none else, are good; "": none at all.
func (w *witness) at(place string, h http.Handler, holdDID string) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		w.look(place, r, holdDID)
		h.ServeHTTP(rw, r)
	})
}

func (w *witness) look(place string, r *http.Request, holdDID string) {
	var header strings.Builder
	_ = r.Header.Write(&header) // a Builder takes all
	text := r.RequestURI + "\n" + header.String()
	if unescaped, err := url.QueryUnescape(r.RequestURI); err == nil {
		text += unescaped
	}
	ours, what := r.UserAgent() == "atcr-appview", " uploads"
	if r.Method == http.MethodGet || r.Method == http.MethodHead {
		what = " pulls"
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if !ours {
		w.seen[place+what]++
	}
	accuse := func(of string) {
		w.faults = append(w.faults, fmt.Sprintf("%s of %q to the %s %s", r.Method, r.UserAgent(), place, of))
	}
	for secret := range w.secrets {
		if strings.Contains(text, secret) {
			accuse("has a credential of the AppView's: " + text)
		}
	}
	if r.Header.Get("Cookie") != "" || r.Header.Get("Proxy-Authorization") != "" {
		accuse("has a cookie or another's authorization")
	}
	switch a := r.Header.Get("Authorization"); {
	case a == "":
	case ours && holdDID != "" && isServiceToken(a, holdDID):
		w.seen[place+" service tokens"]++
	default:
		accuse("is authorized by " + a)
	}
}

// isServiceToken tells whether it is a token that a PDS made for that hold.
func isServiceToken(authorization, holdDID string) bool {
	token, bearer := strings.CutPrefix(authorization, "Bearer ")
	parts := strings.Split(token, ".")
	if !bearer || len(parts) != 3 {
		return false
	}
	raw, err := base64.RawURLEncoding.DecodeString(parts[1])
	var claims struct{ Iss, Aud string }
	if err != nil || json.Unmarshal(raw, &claims) != nil {
		return false
	}
	aud, _, _ := strings.Cut(claims.Aud, "#")
	return aud == holdDID && strings.HasPrefix(claims.Iss, "did:")
}

// take is what was seen since the last time.
func (w *witness) take() (seen map[string]int, faults []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	seen, faults = w.seen, w.faults
	w.seen, w.faults = map[string]int{}, nil
	return seen, faults
}

// Would catch a registry token, or a password, that a client takes along to a hold or to its storage: where blobs are
// pulled by presigned URLs, and where they are pushed through the AppView and straight to the hold.
func TestNoTokenLeaves(t *testing.T) {
	for name, run := range map[string]struct{ direct, public, goDirect string }{
		"streamed":            {"auto", "true", "ctr"},
		"a hold with a login": {"auto", "false", "ctr"},
		"direct":              {"always", "true", "docker ctr crane regctl cosign"},
	} {
		t.Run(name, func(t *testing.T) {
			n := startNetwork(t, true, "ATCR_DIRECT_UPLOADS="+run.direct, "HOLD_PUBLIC="+run.public, "HOLD_ALLOW_ALL_CREW="+run.public)
			for _, m := range makers {
				goesDirect := slices.Contains(strings.Fields(run.goDirect), m.name)
				t.Run(m.name, func(t *testing.T) {
					c := m.make(newFixture(t, n))
					for _, deed := range []string{"login", "push", "pull", "sign", "verify"} {
						if do, ok := c.deeds[deed]; ok {
							if err := do(t.Context()); err != nil {
								t.Errorf("%s: %v", deed, err)
							}
						}
					}
					n.witness.judge(t, goesDirect, cmp.Or(map[string]int{"helm": 2}[m.name], 3))
				})
			}
		})
	}
}

// judge fails with each fault, and where less was seen than one client does with so many blobs.
func (w *witness) judge(t *testing.T, direct bool, blobs int) {
	t.Helper()
	seen, faults := w.take()
	for _, fault := range faults {
		t.Error(fault)
	}
	uploads := seen["hold uploads"]
	if seen["credentials"] == 0 || seen["hold service tokens"] == 0 || seen["storage pulls"] < blobs || (uploads >= blobs) != direct || !direct && uploads > 0 {
		t.Errorf("of %d blobs too little was seen, or too much: %v", blobs, seen)
	}
}

// Would catch a witness that sees nothing.
func TestWitness(t *testing.T) {
	const token, password = "header.payload-of-the-token.signature", "abcd-efgh"
	w := newWitness()
	here := w.atAppView(http.NotFoundHandler())
	for _, use := range []func(*http.Request){
		func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+token) }, func(r *http.Request) { r.SetBasicAuth("alice.test", password) },
	} {
		r := httptest.NewRequest(http.MethodGet, "/v2/", nil)
		use(r)
		here.ServeHTTP(httptest.NewRecorder(), r)
	}
	claims := base64.RawURLEncoding.EncodeToString([]byte(`{"iss":"did:plc:alice","aud":"did:web:hold.test#atcr_hold"}`))
	there := w.at("hold", http.NotFoundHandler(), "did:web:hold.test")
	for name, test := range map[string]struct {
		target, agent string
		header        [2]string
		fine          bool
	}{
		"a plain request":            {target: "/u/secret", fine: true},
		"a service token":            {agent: "atcr-appview", header: [2]string{"Authorization", "Bearer h." + claims + ".s"}, fine: true},
		"a service token, by others": {agent: "curl", header: [2]string{"Authorization", "Bearer h." + claims + ".s"}},
		"the token":                  {header: [2]string{"Authorization", "Bearer " + token}},
		"the token, by the AppView":  {agent: "atcr-appview", header: [2]string{"Authorization", "Bearer " + token}},
		"the token in a query":       {target: "/u/secret?token=" + token},
		"a part of it, escaped":      {target: "/u/secret?x=payload%2Dof-the-token"},
		"a part of it in a cookie":   {header: [2]string{"Cookie", "a=signature"}},
		"another cookie":             {header: [2]string{"Cookie", "a=b"}},
		"another header":             {header: [2]string{"X-Registry-Token", token}},
		"Basic":                      {header: [2]string{"Authorization", "Basic eDp5"}},
		"the password":               {header: [2]string{"X-Password", password}},
	} {
		r := httptest.NewRequest(http.MethodGet, "http://hold.test"+test.target, nil)
		r.Header.Set("User-Agent", test.agent)
		if test.header[0] != "" {
			r.Header.Set(test.header[0], test.header[1])
		}
		there.ServeHTTP(httptest.NewRecorder(), r)
		if _, faults := w.take(); (len(faults) == 0) != test.fine {
			t.Errorf("%s: %q", name, faults)
		}
	}
}
