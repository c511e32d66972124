package appview

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"atcr.io/internal/devnet"
)

// Would catch a flood of names that nobody has, or of requests past the caches, that goes on for ever; one caller's
// that is paid by others; and a client that is not told when to come again.
func TestFloods(t *testing.T) {
	t.Parallel()
	n := newNetwork(t, "ATCR_RATE_LIMIT=600", "ATCR_TRUSTED_PROXIES=127.0.0.1")
	alice := n.as(n.alice, "alice.test/app")
	alice.push("alice.test/app", newImage("one"), "1.0")
	asked := n.PDS.Inject(nil, func(w http.ResponseWriter, r *http.Request, next http.Handler) { next.ServeHTTP(w, r) })
	flood := func(from, path string, header ...string) (served int, last answer) {
		t.Helper()
		for i := range 1500 {
			p := path
			if strings.Contains(path, "%d") {
				p = fmt.Sprintf(path, i)
			}
			last = n.nobody().do(http.MethodGet, p, nil, append(header, "X-Forwarded-For", from)...)
			if last.status == 429 {
				return i, last
			}
		}
		return 1500, last
	}
	for _, tt := range []struct {
		from, path string
		header     []string
		most       int
	}{
		{"8.8.1.1", "/v2/nobody%d.test/app/manifests/1.0", nil, 12},
		{"8.8.1.2", "/v2/alice.test/app/manifests/1.0", []string{"Cache-Control", "no-cache"}, 60},
		{"8.8.1.3", "/v2/alice.test/app/manifests/1.0", nil, 1000},
		{"2001:4860::1", "/v2/nobody%d.test/app/manifests/1.0", nil, 12},
	} {
		served, last := flood(tt.from, tt.path, tt.header...)
		after, err := strconv.Atoi(last.header.Get("Retry-After"))
		if served > tt.most || served < 4 || last.code() != "TOOMANYREQUESTS" || err != nil || after < 1 || after > 120 {
			t.Errorf("%s: %d served, then %d, Retry-After %q", tt.path, served, last.status, last.header.Get("Retry-After"))
		}
		if last.header.Get("RateLimit-Limit") != "600;w=60" || last.header.Get("RateLimit-Remaining") != "0;w=60" {
			t.Errorf("%v", last.header)
		}
	}
	if asked.Fired() > 300 {
		t.Errorf("the PDS was asked %d times", asked.Fired())
	}
	neighbour := n.nobody().do(http.MethodGet, "/v2/alice.test/app/manifests/1.0", nil, "X-Forwarded-For", "2001:4860::2")
	other := n.nobody().do(http.MethodGet, "/v2/alice.test/app/manifests/1.0", nil, "X-Forwarded-For", "8.8.9.9")
	person := alice.do(http.MethodGet, "/v2/alice.test/app/manifests/1.0", nil, "X-Forwarded-For", "8.8.1.3")
	inside := n.nobody().do(http.MethodGet, "/v2/alice.test/app/manifests/1.0", nil, "X-Forwarded-For", "10.0.0.1")
	if neighbour.status != 429 || other.status != 200 || person.status != 200 || inside.status != 200 {
		t.Errorf("the same network %d, another %d, a person from there %d, the operator's own network %d", neighbour.status, other.status, person.status, inside.status)
	}
	if got := other.header.Get("RateLimit-Remaining"); got != "599;w=60" || inside.header.Get("RateLimit-Limit") != "" {
		t.Errorf("%q is left to another, and %q to nobody's limit", got, inside.header.Get("RateLimit-Limit"))
	}
	token := answer{}
	for i := 0; i < 1000 && token.status != 429; i++ {
		token = request(t, http.MethodGet, n.base+"/auth/token", nil, "X-Forwarded-For", "8.8.1.3")
	}
	if token.status != 429 || token.header.Get("Retry-After") == "" {
		t.Errorf("tokens without end: %d", token.status)
	}
	// Names that a token is asked for cost as much as those that are pulled from; nobody's, and those that nobody answers for.
	names := func(from, authorization, query string) (served int) {
		t.Helper()
		for i := range 300 {
			header := []string{"X-Forwarded-For", from, "Authorization", authorization}
			if authorization == "" {
				header[3] = basic(fmt.Sprintf("nobody%d.test", 5000+i), "x")
			}
			got := request(t, http.MethodGet, n.base+"/auth/token"+strings.ReplaceAll(query, "%d", strconv.Itoa(i)), nil, header...)
			if got.status == 429 {
				if got.header.Get("Retry-After") == "" || got.header.Get("RateLimit-Limit") != "600;w=60" {
					t.Errorf("%v", got.header)
				}
				return i
			}
		}
		return 300
	}
	scopes := "?scope=repository:a%d.test/x:push&scope=repository:b%d.test/x:push&scope=repository:c%d.test/x:push"
	if served := names("8.8.2.1", "", ""); served > 12 {
		t.Errorf("%d users that nobody is were looked up", served)
	}
	if served := names("8.8.2.2", basic(n.alice.Handle, n.alice.AppPassword), scopes); served > 5 || served == 0 {
		t.Errorf("a token for names that nobody has was given %d times", served)
	}
	slow := n.PDS.Inject(devnet.Method("com.atproto.identity.resolveHandle"), devnet.Down())
	if served, last := flood("8.8.2.3", "/v2/slow%d.test/app/manifests/1.0"); served > 60 || last.status != 429 {
		t.Errorf("%d names that nobody answers for were looked up, then %d", served, last.status)
	}
	slow.Remove()
	if slow.Fired() == 0 {
		t.Error("nobody was asked")
	}
	n.forget() // two minutes later
	if got := n.nobody().do(http.MethodGet, "/v2/alice.test/app/manifests/1.0", nil, "X-Forwarded-For", "8.8.1.3"); got.status != 200 {
		t.Errorf("later: %d", got.status)
	}
}

// Would catch one address, or person, that asks for names of which nobody says whose they are, and so keeps everybody else's
// from being looked up.
func TestSlowNames(t *testing.T) {
	t.Parallel()
	n := newNetwork(t, "ATCR_RATE_LIMIT=0", "ATCR_TRUSTED_PROXIES=127.0.0.1")
	image := newImage("one")
	n.as(n.alice, "alice.test/app").push("alice.test/app", image, "1.0")
	n.as(n.bob, "bob.test/app").push("bob.test/app", image, "1.0")
	alice := n.as(n.alice, "bob.test/app")
	n.restart()
	get := func(u user, from, name string) answer {
		return u.do(http.MethodGet, "/v2/"+name+"/app/manifests/1.0", nil, "X-Forwarded-For", from)
	}
	n.nobody().must(200, get(n.nobody(), "8.8.1.1", "alice.test"))
	open, asked := make(chan struct{}), make(chan struct{}, 1000)
	n.PDS.Inject(devnet.Method("com.atproto.identity.resolveHandle"), func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if strings.HasPrefix(r.URL.Query().Get("handle"), "slow") {
			asked <- struct{}{}
			select {
			case <-open:
			case <-r.Context().Done():
			}
		}
		next.ServeHTTP(w, r)
	})
	const names, share, waiting = 200, 8, 56
	answers := make(chan answer, names)
	for i := range names {
		go func() { answers <- get(n.nobody(), "8.8.1.1", fmt.Sprintf("slow%d.test", i)) }()
	}
	for range names - share - waiting {
		got := <-answers
		if got.status != http.StatusTooManyRequests || got.code() != "TOOMANYREQUESTS" || got.header.Get("Retry-After") == "" {
			t.Fatalf("beyond its share: %d %v %s", got.status, got.header, got.body)
		}
	}
	for range share {
		<-asked
	}
	if got := get(n.nobody(), "8.8.1.1", "alice.test"); got.status != http.StatusOK {
		t.Errorf("a name that is known: %d %s", got.status, got.body)
	}
	if got := get(n.nobody(), "8.8.9.9", "nobody.test"); got.status != http.StatusNotFound {
		t.Errorf("another address: %d %s", got.status, got.body)
	}
	if got := get(alice, "8.8.1.1", "bob.test"); got.status != http.StatusOK {
		t.Errorf("a person, at the same address: %d %s", got.status, got.body)
	}
	if len(asked) != 0 {
		t.Errorf("%d names more are looked up", len(asked))
	}
	close(open)
	for range share + waiting {
		if got := <-answers; got.status != http.StatusNotFound && got.status != http.StatusTooManyRequests {
			t.Errorf("%d %s", got.status, got.body)
		}
	}
}

// Would catch guesses without end from an address that is not public, as behind a proxy that the settings do not
// name; and an operator who is not told of that.
func TestGuessesFromInside(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	var log strings.Builder
	n.app.Load().logger = slog.New(slog.NewTextHandler(&log, nil))
	limited := 0
	for i := range 30 {
		at := request(t, http.MethodGet, n.base+"/auth/token", nil, "Authorization", basic(n.alice.Handle, fmt.Sprint("guess ", i)), "X-Forwarded-For", fmt.Sprint("8.8.8.", i))
		if at.status == 429 {
			limited++
		}
	}
	if limited != 20 {
		t.Errorf("of 30 guesses %d are refused", limited)
	}
	if n := strings.Count(log.String(), "ATCR_TRUSTED_PROXIES"); n != 1 {
		t.Errorf("the log says it %d times: %s", n, log.String())
	}
}

// Would catch a caller who begins anew with each of the addresses that they have, and a list that shows less than
// the address.
func TestLimitsOfNetworks(t *testing.T) {
	t.Parallel()
	n := newNetwork(t, "ATCR_TRUSTED_PROXIES=127.0.0.1")
	post := func(path, from, form string) answer {
		return request(t, http.MethodPost, n.base+path, []byte(form), "Content-Type", "application/x-www-form-urlencoded", "X-Forwarded-For", from)
	}
	password := func(from string) answer {
		return request(t, http.MethodGet, n.base+"/auth/token", nil, "Authorization", basic(n.alice.Handle, "wrong"), "X-Forwarded-For", from)
	}
	for what, try := range map[string]func(from string) answer{
		"codes":     func(from string) answer { return post("/auth/device/code", from, "client_id=test") },
		"sign-ins":  func(from string) answer { return post("/login", from, "who=") },
		"passwords": password,
	} {
		refused := 0
		for i := range 40 {
			if try(fmt.Sprintf("2001:4860::%x", i+1)).status == 429 {
				refused++
			}
		}
		if refused == 0 || refused == 40 {
			t.Errorf("%s: %d of 40 are refused", what, refused)
		}
		if got := try("2001:4860:0:1::1"); got.status == 429 {
			t.Errorf("%s from another network: %d %s", what, got.status, got.body)
		}
	}
	b := n.browser()
	b.signInAs(n.alice)
	var code struct {
		UserCode string `json:"user_code"`
	}
	if err := json.Unmarshal([]byte(post("/auth/device/code", "2001:4860:0:2::7", "client_id=test").body), &code); err != nil {
		t.Fatal(err)
	}
	if got := b.send(http.MethodGet, "/device?user_code="+code.UserCode); !strings.Contains(got.body, "2001:4860:0:2::7") {
		t.Errorf("the page that asks for approval: %s", got.body)
	}
}
