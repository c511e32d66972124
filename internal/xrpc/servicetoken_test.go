package xrpc_test

import (
	"context"
	"encoding/base64"
	"errors"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bluesky-social/indigo/atproto/atcrypto"
	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/internal/xrpc"
)

const (
	person  = syntax.DID("did:plc:ewvi7nxzyoun6zhxrhs64oiz")
	service = syntax.DID("did:web:hold.example")
	upload  = "io.atcr.hold.initiateUpload"
)

// started is a fixed time with a part of a second, since iat has none.
var started = time.Unix(1_760_000_000, 700_000_000)

// directory is Keys in memory, with its faults and a count of what it was asked.
type directory struct {
	mu        sync.Mutex
	cached    atcrypto.PublicKey // what SigningKey says
	current   atcrypto.PublicKey // what RefreshSigningKey says
	err       error
	refresh   error
	asked     int
	refreshed int
}

func (d *directory) SigningKey(context.Context, syntax.DID) (atcrypto.PublicKey, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.asked++
	return d.cached, d.err
}

func (d *directory) RefreshSigningKey(context.Context, syntax.DID) (atcrypto.PublicKey, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.refreshed++
	if d.refresh == nil {
		d.cached = d.current
	}
	return d.current, d.refresh
}

// temporary is an error as the identity package has them.
type temporary struct{}

func (temporary) Error() string   { return "the directory at 10.1.2.3 is down" }
func (temporary) Temporary() bool { return true }

// desk is a verifier with a clock that the test turns.
type desk struct {
	*xrpc.Verifier
	keys *directory
	now  time.Time
}

func newDesk(t testing.TB, key atcrypto.PrivateKey) *desk {
	t.Helper()
	public, err := key.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	d := &desk{keys: &directory{cached: public, current: public}, now: started}
	d.Verifier = xrpc.NewVerifier(xrpc.VerifierConfig{
		Audience: service, Fragment: "atcr_hold", Keys: d.keys, Now: func() time.Time { return d.now },
	})
	return d
}

func k256(t testing.TB) *atcrypto.PrivateKeyK256 {
	t.Helper()
	key, err := atcrypto.GeneratePrivateKeyK256()
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func p256(t testing.TB) *atcrypto.PrivateKeyP256 {
	t.Helper()
	key, err := atcrypto.GeneratePrivateKeyP256()
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// sign makes a good token, which edit makes wrong; a nil value leaves a header or claim out.
func sign(t testing.TB, key atcrypto.PrivateKey, edit map[string]any) string {
	t.Helper()
	header := map[string]any{"typ": "JWT", "alg": "ES256K"}
	body := map[string]any{
		"iss": person, "aud": service, "lxm": upload, "jti": "one", "iat": started.Unix(), "exp": started.Unix() + 60,
	}
	for name, v := range edit {
		target := body
		if short, ok := strings.CutPrefix(name, "header."); ok {
			name, target = short, header
		}
		if target[name] = v; v == nil {
			delete(target, name)
		}
	}
	token, err := xrpc.SignJWT(key, header, body)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// nameOf is an error's name in the protocol, "" for none.
func nameOf(t testing.TB, err error) string {
	t.Helper()
	if err == nil {
		return ""
	}
	e, ok := errors.AsType[*xrpc.Error](err)
	if !ok {
		t.Fatalf("%T is no *xrpc.Error: %v", err, err)
	}
	return e.Name
}

// Would catch any rule of a service token that is not looked at, or looked at too strictly for the PDSes
// that exist.
func TestVerifyRules(t *testing.T) {
	t.Parallel()
	type m = map[string]any
	at := func(d time.Duration) int64 { return started.Add(d).Unix() }
	any5 := xrpc.Call{Lxm: []string{"io.atcr.hold.abortUpload", upload}}
	strict := xrpc.Call{Lxm: any5.Lxm, RequireLxm: true}
	once := xrpc.Call{Lxm: any5.Lxm, Once: true}
	for name, test := range map[string]struct {
		edit m
		call xrpc.Call
		want string
	}{
		"good":                 {m{}, any5, ""},
		"good, strict":         {m{}, strict, ""},
		"good, once":           {m{}, once, ""},
		"no typ":               {m{"header.typ": nil}, any5, ""},
		"typ in small letters": {m{"header.typ": "jwt"}, any5, ""},
		"access token":         {m{"header.typ": "at+jwt"}, any5, "InvalidToken"},
		"DPoP proof":           {m{"header.typ": "dpop+jwt"}, any5, "InvalidToken"},
		"alg none":             {m{"header.alg": "none"}, any5, "InvalidToken"},
		"alg HS256":            {m{"header.alg": "HS256"}, any5, "InvalidToken"},
		"no alg":               {m{"header.alg": nil}, any5, "InvalidToken"},
		"alg of another curve": {m{"header.alg": "ES256"}, any5, "BadJwtSignature"},
		"kid":                  {m{"header.kid": "#atproto"}, any5, ""},
		"another kid":          {m{"header.kid": "#atproto_label"}, any5, "InvalidToken"},
		"crit":                 {m{"header.crit": []string{"b64"}}, any5, "InvalidToken"},
		"aud with fragment":    {m{"aud": service + "#atcr_hold"}, any5, ""},
		"another fragment":     {m{"aud": service + "#atproto_pds"}, any5, "BadJwtAudience"},
		"another service":      {m{"aud": "did:web:other.example"}, any5, "BadJwtAudience"},
		"longer DID":           {m{"aud": service + ":users"}, any5, "BadJwtAudience"},
		"no aud":               {m{"aud": nil}, any5, "BadJwtAudience"},
		"aud is a list":        {m{"aud": []string{service.String()}}, any5, "InvalidToken"},
		"no lxm":               {m{"lxm": nil}, any5, ""},
		"no lxm, strict":       {m{"lxm": nil}, strict, "BadJwtLexiconMethod"},
		"no lxm, once":         {m{"lxm": nil}, once, "BadJwtLexiconMethod"},
		"another lxm":          {m{"lxm": "io.atcr.hold.requestCrew"}, any5, "BadJwtLexiconMethod"},
		"another lxm, strict":  {m{"lxm": "io.atcr.hold.requestCrew"}, strict, "BadJwtLexiconMethod"},
		"no exp":               {m{"exp": nil}, any5, "ExpiredToken"},
		"exp 0":                {m{"exp": 0}, any5, "ExpiredToken"},
		"exp at its leeway":    {m{"iat": at(-5 * time.Minute), "exp": at(-29 * time.Second)}, any5, ""},
		"exp over its leeway":  {m{"iat": at(-5 * time.Minute), "exp": at(-31 * time.Second)}, any5, "ExpiredToken"},
		"exp beyond time":      {m{"exp": int64(1<<63 - 1)}, any5, "ExpiredToken"},
		"exp as text":          {m{"exp": "never"}, any5, "InvalidToken"},
		"iat at its leeway":    {m{"iat": at(90 * time.Second), "exp": at(2 * time.Minute)}, any5, ""},
		"iat over its leeway":  {m{"iat": at(92 * time.Second), "exp": at(2 * time.Minute)}, any5, "InvalidToken"},
		"iat beyond time":      {m{"iat": int64(1<<63 - 1)}, any5, "InvalidToken"},
		"iat before time":      {m{"iat": int64(-1 << 63)}, any5, "InvalidToken"},
		"an hour":              {m{"exp": at(time.Hour)}, any5, ""},
		"over an hour":         {m{"exp": at(time.Hour + time.Second)}, any5, "InvalidToken"},
		"over an hour, old":    {m{"iat": at(-time.Hour), "exp": at(time.Second)}, any5, "InvalidToken"},
		"no iat":               {m{"iat": nil}, any5, ""},
		"no iat, an hour":      {m{"iat": nil, "exp": at(time.Hour)}, any5, ""},
		"no iat, over an hour": {m{"iat": nil, "exp": at(time.Hour + time.Second)}, any5, "InvalidToken"},
		"no iat, once":         {m{"iat": nil}, once, "InvalidToken"},
		"5 minutes, once":      {m{"exp": at(5 * time.Minute)}, once, ""},
		"over 5, once":         {m{"exp": at(5*time.Minute + time.Second)}, once, "InvalidToken"},
		"older, once":          {m{"iat": at(-time.Second)}, once, "InvalidToken"},
		"older":                {m{"iat": at(-time.Minute)}, any5, ""},
		"no iss":               {m{"iss": nil}, any5, "InvalidToken"},
		"iss is a handle":      {m{"iss": "alice.example"}, any5, "InvalidToken"},
		"iss with a fragment":  {m{"iss": person + "#atproto"}, any5, "InvalidToken"},
		"large":                {m{"jti": strings.Repeat("x", 4096)}, any5, "InvalidToken"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			key := k256(t)
			d := newDesk(t, key)
			token := sign(t, key, test.edit)
			for _, round := range []string{"first", "again"} { // the cache must not know better
				did, err := d.Verify(t.Context(), token, test.call)
				if got := nameOf(t, err); got != test.want || err == nil && did != person {
					t.Errorf("%s: %q by %s, want %q: %v", round, got, did, test.want, err)
				}
				if e := xrpc.AsError(err); err != nil && e.Status != http.StatusUnauthorized {
					t.Errorf("status %d", e.Status)
				}
			}
			if asked := d.keys.asked; test.want != "" && test.want != "BadJwtSignature" && asked != 0 {
				t.Errorf("a bad token cost %d look-ups", asked)
			}
		})
	}
}

// Would catch a verifier without a fragment that takes "DID#" for its own, and a cached token whose issuer
// is told although it is refused.
func TestVerifyAudienceAlone(t *testing.T) {
	t.Parallel()
	key := k256(t)
	d := newDesk(t, key)
	d.Verifier = xrpc.NewVerifier(xrpc.VerifierConfig{Audience: service, Keys: d.keys, Now: func() time.Time { return d.now }})
	call := xrpc.Call{Lxm: []string{upload}}
	for aud, want := range map[string]string{service.String(): "", service.String() + "#": "BadJwtAudience", service.String() + "#atcr_hold": "BadJwtAudience"} {
		if _, err := d.Verify(t.Context(), sign(t, key, map[string]any{"aud": aud}), call); nameOf(t, err) != want {
			t.Errorf("%s: %v", aud, err)
		}
	}
	token := sign(t, key, nil)
	for range 2 {
		if _, err := d.Verify(t.Context(), token, call); err != nil {
			t.Fatal(err)
		}
		if did, err := d.Verify(t.Context(), token, xrpc.Call{Lxm: []string{"io.atcr.hold.requestCrew"}}); err == nil || did != "" {
			t.Errorf("refused, and yet of %q", did)
		}
	}
}

// Would catch an algorithm that is not bound to the key's curve, and a key of another person.
func TestVerifyKeys(t *testing.T) {
	t.Parallel()
	k, p := k256(t), p256(t)
	for name, test := range map[string]struct {
		account, signer atcrypto.PrivateKey
		alg, want       string
	}{
		"K-256":                 {k, k, "ES256K", ""},
		"P-256":                 {p, p, "ES256", ""},
		"P-256 called K-256":    {p, p, "ES256K", "BadJwtSignature"},
		"K-256 called P-256":    {k, k, "ES256", "BadJwtSignature"},
		"somebody else's":       {k, k256(t), "ES256K", "BadJwtSignature"},
		"of the other curve":    {k, p, "ES256", "BadJwtSignature"},
		"of the other, in name": {k, p, "ES256K", "BadJwtSignature"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newDesk(t, test.account)
			_, err := d.Verify(t.Context(), sign(t, test.signer, map[string]any{"header.alg": test.alg}), xrpc.Call{Lxm: []string{upload}})
			if got := nameOf(t, err); got != test.want {
				t.Errorf("%q, want %q", got, test.want)
			}
		})
	}
}

// Would catch a PDS that is locked out for a signature that JWT allows, and its other form as a second token.
func TestVerifyHighS(t *testing.T) {
	t.Parallel()
	key := k256(t)
	d := newDesk(t, key)
	low := sign(t, key, map[string]any{"jti": nil})
	i := strings.LastIndexByte(low, '.')
	signature, err := base64.RawURLEncoding.DecodeString(low[i+1:])
	if err != nil {
		t.Fatal(err)
	}
	order, _ := new(big.Int).SetString("fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141", 16)
	new(big.Int).Sub(order, new(big.Int).SetBytes(signature[32:])).FillBytes(signature[32:])
	high := low[:i+1] + base64.RawURLEncoding.EncodeToString(signature)
	if _, err := d.Verify(t.Context(), high, xrpc.Call{Lxm: []string{upload}, Once: true}); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(d.Use(high), d.Use(low)); nameOf(t, err) != "InvalidToken" {
		t.Errorf("used in both forms: %v", err)
	}
}

// Would catch a token that was changed on its way, and a second spelling of the same signature.
func TestVerifyChanged(t *testing.T) {
	t.Parallel()
	key := k256(t)
	d := newDesk(t, key)
	good := sign(t, key, nil)
	parts := strings.Split(good, ".")
	flip := func(s string, i int) string {
		b := []byte(s)
		if b[i]++; b[i] == 'z'+1 || b[i] == 'Z'+1 || b[i] == '9'+1 || b[i] == '-'+1 || b[i] == '_'+1 {
			b[i] = 'A'
		}
		return string(b)
	}
	for name, token := range map[string]string{
		"empty": "", "a word": "word", "dots": "..", "four parts": good + ".x", "two parts": parts[0] + "." + parts[1],
		"claims":         parts[0] + "." + base64.RawURLEncoding.EncodeToString([]byte(`{"iss":"did:plc:other"}`)) + "." + parts[2],
		"signature":      parts[0] + "." + parts[1] + "." + flip(parts[2], 10),
		"loose bits":     parts[0] + "." + parts[1] + "." + flip(parts[2], 85),
		"no signature":   parts[0] + "." + parts[1] + ".",
		"padding":        good + "==",
		"longer":         good + "AAAA",
		"newline inside": parts[0] + "." + parts[1] + "." + parts[2][:4] + "\n" + parts[2][4:],
		"null claims":    parts[0] + "." + base64.RawURLEncoding.EncodeToString([]byte(`null`)) + "." + parts[2],
	} {
		if _, err := d.Verify(t.Context(), token, xrpc.Call{Lxm: []string{upload}}); nameOf(t, err) == "" {
			t.Errorf("%s: accepted", name)
		}
	}
}

// Would catch a rotated key that locks its owner out, and a look-up without end for a wrong one.
func TestVerifyRotation(t *testing.T) {
	t.Parallel()
	old, fresh := k256(t), p256(t)
	d := newDesk(t, old)
	public, err := fresh.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	d.keys.current = public
	call := xrpc.Call{Lxm: []string{upload}}
	token := sign(t, fresh, map[string]any{"header.alg": "ES256"})
	if _, err := d.Verify(t.Context(), token, call); err != nil {
		t.Fatal(err)
	}
	if d.keys.asked != 1 || d.keys.refreshed != 1 {
		t.Errorf("asked %d times, refreshed %d", d.keys.asked, d.keys.refreshed)
	}
	if _, err := d.Verify(t.Context(), sign(t, k256(t), nil), call); nameOf(t, err) != "BadJwtSignature" {
		t.Errorf("a stranger's key: %v", err)
	}
	if d.keys.refreshed != 2 {
		t.Errorf("%d look-ups for one wrong token", d.keys.refreshed-1)
	}
	d.keys.refresh = temporary{} // too often: the answer that is known counts
	if _, err := d.Verify(t.Context(), sign(t, k256(t), nil), call); nameOf(t, err) != "BadJwtSignature" {
		t.Errorf("no more look-ups: %v", err)
	}
}

// Would catch an outage that is told as the caller's fault, and the other way round; and the directory's
// own words in the answer.
func TestVerifyWithoutKeys(t *testing.T) {
	t.Parallel()
	key := k256(t)
	for name, test := range map[string]struct {
		err    error
		status int
	}{
		"down":     {temporary{}, http.StatusServiceUnavailable},
		"wrapped":  {errors.Join(errors.New("look-up at 10.1.2.3"), temporary{}), http.StatusServiceUnavailable},
		"no such":  {errors.New("no such DID at 10.1.2.3"), http.StatusUnauthorized},
		"poisoned": {errors.New("secret at 10.1.2.3"), http.StatusUnauthorized},
	} {
		d := newDesk(t, key)
		d.keys.err = test.err
		token := sign(t, key, nil)
		_, err := d.Verify(t.Context(), token, xrpc.Call{Lxm: []string{upload}})
		w := httptest.NewRecorder()
		xrpc.WriteError(w, err)
		if w.Code != test.status || strings.Contains(w.Body.String(), "10.1.2.3") {
			t.Errorf("%s: %d %s", name, w.Code, w.Body)
		}
		if temporarily := w.Code == http.StatusServiceUnavailable; temporarily != (w.Header().Get("Retry-After") != "") {
			t.Errorf("%s: Retry-After %q", name, w.Header().Get("Retry-After"))
		}
		d.keys.err = nil // a failure is not remembered as the token's
		if _, err := d.Verify(t.Context(), token, xrpc.Call{Lxm: []string{upload}}); err != nil {
			t.Errorf("%s, later: %v", name, err)
		}
	}
}

// Would catch a look-up for each call with the same token, and a cached one that outlives itself or its call.
func TestVerifyCached(t *testing.T) {
	t.Parallel()
	key := k256(t)
	d := newDesk(t, key)
	token := sign(t, key, nil)
	for range 3 {
		if _, err := d.Verify(t.Context(), token, xrpc.Call{Lxm: []string{upload}}); err != nil {
			t.Fatal(err)
		}
	}
	if d.keys.asked != 1 {
		t.Errorf("%d look-ups", d.keys.asked)
	}
	if _, err := d.Verify(t.Context(), token, xrpc.Call{Lxm: []string{"io.atcr.hold.requestCrew"}}); nameOf(t, err) != "BadJwtLexiconMethod" {
		t.Errorf("for another call: %v", err)
	}
	d.now = d.now.Add(91 * time.Second)
	if _, err := d.Verify(t.Context(), token, xrpc.Call{Lxm: []string{upload}}); nameOf(t, err) != "ExpiredToken" {
		t.Errorf("91 seconds later: %v", err)
	}
}

// Would catch a once-only token that is good twice, by whatever second spelling of it.
func TestUse(t *testing.T) {
	t.Parallel()
	key := k256(t)
	for name, edit := range map[string]map[string]any{
		"jti": {}, "no jti": {"jti": nil}, "huge jti": {"jti": strings.Repeat("j", 300)},
	} {
		d := newDesk(t, key)
		token := sign(t, key, edit)
		if err := d.Use(token); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		// ECDSA takes another random number each time, so the same claims have other bytes.
		for _, again := range []string{token, sign(t, key, edit)} {
			if err := d.Use(again); nameOf(t, err) != "InvalidToken" {
				t.Errorf("%s: used again: %v", name, err)
			}
		}
		other := map[string]any{"iss": "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa"}
		if err := d.Use(sign(t, key, other)); err != nil {
			t.Errorf("%s: another person's: %v", name, err)
		}
	}
	if err := newDesk(t, key).Use("word"); nameOf(t, err) != "InvalidToken" {
		t.Errorf("no token: %v", err)
	}
}

// Would catch memory that grows with each token, and a caller who locks out others or, for ever, herself.
func TestUseBounded(t *testing.T) {
	t.Parallel()
	key := k256(t)
	d := newDesk(t, key)
	use := func(iss syntax.DID) error {
		// Use looks at no signature, so none is made.
		token, err := xrpc.SignServiceToken(key, iss, service.String(), upload, d.now, time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		return d.Use(token)
	}
	for range 1000 {
		if err := use(person); err != nil {
			t.Fatal(err)
		}
	}
	if err := use(person); xrpc.AsError(err).Status != http.StatusTooManyRequests {
		t.Errorf("the next: %v", err)
	}
	if err := use("did:plc:aaaaaaaaaaaaaaaaaaaaaaaa"); err != nil {
		t.Errorf("another person: %v", err)
	}
	d.now = d.now.Add(2 * time.Minute)
	if err := use(person); err != nil {
		t.Errorf("two minutes later: %v", err)
	}
}

// Would catch many callers at once with one token who all get through.
func TestUseConcurrent(t *testing.T) {
	t.Parallel()
	key := k256(t)
	d := newDesk(t, key)
	token := sign(t, key, nil)
	var wg sync.WaitGroup
	var mu sync.Mutex
	through := 0
	for range 16 {
		wg.Go(func() {
			did, err := d.Verify(t.Context(), token, xrpc.Call{Lxm: []string{upload}, Once: true})
			if err != nil || did != person {
				t.Errorf("%s %v", did, err)
			}
			if d.Use(token) == nil {
				mu.Lock()
				defer mu.Unlock()
				through++
			}
		})
	}
	wg.Wait()
	if through != 1 {
		t.Errorf("%d of 16 came through", through)
	}
}

// Would catch a panic on a stranger's token, and any token but the signed ones that is accepted.
func FuzzVerify(f *testing.F) {
	key := k256(f)
	d := newDesk(f, key)
	good := sign(f, key, nil)
	f.Add(good)
	f.Add("..")
	f.Add("e30.e30.e30")
	f.Add(good[:len(good)-1] + "~")
	f.Fuzz(func(t *testing.T, token string) {
		_, err := d.Verify(t.Context(), token, xrpc.Call{Lxm: []string{upload}})
		if err == nil && token != good {
			t.Errorf("accepted: %q", token)
		}
		nameOf(t, err)
		_ = d.Use(token)
	})
}
