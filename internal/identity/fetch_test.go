package identity

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/bluesky-social/indigo/atproto/atcrypto"
	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/internal/httpx"
)

// Would catch a document that is read otherwise than it says: keys old and new, services, the handle.
func TestDocument(t *testing.T) {
	t.Parallel()
	p256, err := atcrypto.GeneratePrivateKeyP256()
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		key  atcrypto.PrivateKey
		kind string
	}{
		"Multikey K-256": {k256(t), "Multikey"},
		"Multikey P-256": {p256, "Multikey"},
		"older K-256":    {k256(t), "EcdsaSecp256k1VerificationKey2019"},
		"older P-256":    {p256, "EcdsaSecp256r1VerificationKey2019"},
	} {
		plc := newServer(t, say(document(t, alice, "Alice.Example", test.key, test.kind)))
		r, _ := newResolver(Config{PLCURL: plc.URL + "/"})
		i, err := r.LookupDID(t.Context(), alice)
		if err != nil {
			t.Fatal(err)
		}
		want, err := test.key.PublicKey()
		if err != nil {
			t.Fatal(err)
		}
		key, err := r.SigningKey(t.Context(), alice)
		if err != nil || !key.Equal(want) {
			t.Errorf("%s: key %v %v", name, key, err)
		}
		if i.DID != alice || i.Handle != "alice.example" || i.PDS() != "https://pds.example" || i.Hold() != "https://hold.example" || !i.IsHold() || i.Service("none") != "" {
			t.Errorf("%s: %+v", name, i)
		}
		if i.Document().DID != alice || plc.count["/"+alice.String()] != 1 || plc.asked() != 1 {
			t.Errorf("%s: asked %v", name, plc.count)
		}
	}
}

// Would catch a hold that is found only under its newer service, and a document without anything that is
// read as if it had it.
func TestDocumentSparse(t *testing.T) {
	t.Parallel()
	plc := newServer(t, say(`{"id":"`+alice.String()+`","service":[{"id":"`+alice.String()+`#atproto_pds","type":"X","serviceEndpoint":"https://pds.example"}]}`))
	r, _ := newResolver(Config{PLCURL: plc.URL})
	i, err := r.LookupDID(t.Context(), alice)
	if err != nil {
		t.Fatal(err)
	}
	if i.Hold() != "https://pds.example" || i.IsHold() || i.Handle != "" {
		t.Errorf("%+v", i)
	}
	if _, err := r.SigningKey(t.Context(), alice); !errors.Is(err, ErrInvalid) {
		t.Errorf("no key: %v", err)
	}
}

// Would catch an answer of the directory that is taken for another: above all an outage for "no such",
// and another's document.
func TestDirectoryAnswers(t *testing.T) {
	t.Parallel()
	good := document(t, alice, "alice.example", k256(t), "Multikey")
	elsewhere := newServer(t, say(good))
	for name, test := range map[string]struct {
		answer http.HandlerFunc
		want   error
	}{
		"good":     {say(good), nil},
		"wrong id": {say(strings.ReplaceAll(good, "ewvi", "aaaa")), ErrInvalid},
		"no id":    {say(`{}`), ErrInvalid},
		"null":     {say(`null`), ErrInvalid},
		"list":     {say(`[]`), ErrInvalid},
		"garbage":  {say(`<html>`), ErrInvalid},
		"nothing":  {say(``), ErrInvalid},
		"400":      {status(400), ErrNotFound},
		"404":      {status(404), ErrNotFound},
		"410":      {status(410), ErrNotFound},
		"403":      {status(403), ErrUnavailable},
		"429":      {status(429), ErrUnavailable},
		"500":      {status(500), ErrUnavailable},
		"502":      {status(502), ErrUnavailable},
		"204":      {status(204), ErrUnavailable},
		"redirect": {func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, elsewhere.URL, http.StatusFound) }, ErrUnavailable},
		"cut off":  {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, ErrUnavailable},
		"cut off later": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "9")
			_, _ = w.Write([]byte("{"))
		}, ErrUnavailable},
	} {
		plc := newServer(t, test.answer)
		r, _ := newResolver(Config{PLCURL: plc.URL})
		_, err := r.LookupDID(t.Context(), alice)
		if !errors.Is(err, test.want) {
			t.Errorf("%s: %v", name, err)
		}
		var temporary interface{ Temporary() bool }
		if is := errors.As(err, &temporary) && temporary.Temporary(); is != errors.Is(test.want, ErrUnavailable) {
			t.Errorf("%s: temporary %v", name, is)
		}
	}
	if elsewhere.asked() != 0 {
		t.Error("a redirect was followed")
	}
	down := newServer(t, status(200))
	down.Close()
	r, _ := newResolver(Config{PLCURL: down.URL})
	if _, err := r.LookupDID(t.Context(), alice); !errors.Is(err, ErrUnavailable) {
		t.Errorf("nobody listens: %v", err)
	}
}

// Would catch an answer without end that fills the memory.
func TestEndlessAnswer(t *testing.T) {
	t.Parallel()
	sent := make(chan int, 1)
	plc := newServer(t, endless(sent))
	r, _ := newResolver(Config{PLCURL: plc.URL})
	if _, err := r.LookupDID(t.Context(), alice); !errors.Is(err, ErrInvalid) || !errors.Is(err, httpx.ErrTooLarge) {
		t.Errorf("%v", err)
	}
	if n := <-sent; n > 64<<20 { // what lies in the sockets' buffers, at most
		t.Errorf("%d bytes were taken", n)
	}
}

// Would catch a DID that becomes another URL than its own.
func TestStrangeDIDs(t *testing.T) {
	t.Parallel()
	plc := newServer(t, status(200))
	r, _ := newResolver(Config{PLCURL: plc.URL, AllowPrivate: true})
	for _, did := range []syntax.DID{"", "did:plc:", "did:key:zQ3shXjHeiBuRCKmM36cuYnm7YEMzhGnCmCyW92sRJ9pribSF", "did:plc:../../export", "did:plc:a?b=c", "plc", "did:web:a/b"} {
		if _, err := r.LookupDID(t.Context(), did); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: %v", did, err)
		}
	}
	if plc.asked() != 0 {
		t.Errorf("asked: %v", plc.count)
	}
}

// Would catch a did:web that leads to this machine, this network, a path, or a port.
func TestWebURL(t *testing.T) {
	t.Parallel()
	for did, want := range map[syntax.DID]struct{ public, private string }{
		"did:web:example.com":                       {"https://example.com/.well-known/did.json", "https://example.com/.well-known/did.json"},
		"did:web:example.com:user":                  {"", ""},
		"did:web:example.com%2Fuser":                {"", ""},
		"did:web:a%40example.com":                   {"", ""},
		"did:web:example.com%3Fa":                   {"", ""},
		"did:web:example.com%23a":                   {"", ""},
		"did:web:example.com%5Ca":                   {"", ""},
		"did:web:example.com%ZZ":                    {"", ""},
		"did:web:example.com%3A8080":                {"", "http://example.com:8080/.well-known/did.json"},
		"did:web:localhost":                         {"", "http://localhost/.well-known/did.json"},
		"did:web:localhost%3A8080":                  {"", "http://localhost:8080/.well-known/did.json"},
		"did:web:hold.localhost%3A8080":             {"", "http://hold.localhost:8080/.well-known/did.json"},
		"did:web:127.0.0.1":                         {"", "http://127.0.0.1/.well-known/did.json"},
		"did:web:127.0.0.1%3A80":                    {"", "http://127.0.0.1:80/.well-known/did.json"},
		"did:web:%5B%3A%3A1%5D%3A80":                {"", "http://[::1]:80/.well-known/did.json"},
		"did:web:%5B%3A%3Affff%3A127.0.0.1%5D%3A80": {"", "http://[::ffff:127.0.0.1]:80/.well-known/did.json"},
	} {
		for private, wanted := range map[bool]string{false: want.public, true: want.private} {
			r, _ := newResolver(Config{AllowPrivate: private})
			got, err := r.webURL(did)
			if got != wanted || (err == nil) == (wanted == "") || err != nil && !errors.Is(err, ErrInvalid) {
				t.Errorf("%s, private %t: %q %v, want %q", did, private, got, err, wanted)
			}
		}
	}
}

// Would catch a stranger's DID that makes this process ask its own network.
func TestGuard(t *testing.T) {
	t.Parallel()
	inside := newServer(t, status(200))
	r, _ := newResolver(Config{PLCURL: inside.URL})
	for _, did := range []syntax.DID{
		inside.web(), "did:web:127.0.0.1", "did:web:10.0.0.1", "did:web:169.254.169.254", "did:web:192.168.1.1", "did:web:100.64.0.1",
		"did:web:%5B%3A%3A1%5D", "did:web:%5Bfd00%3A%3A1%5D", "did:web:%5B%3A%3Affff%3A10.0.0.1%5D", "did:web:0.0.0.0",
		// Names that the URL check does not know lead here all the same: the dialler must see it.
		"did:web:LOCALHOST",
	} {
		if _, err := r.LookupDID(t.Context(), did); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", did, err)
		}
	}
	if inside.asked() != 0 {
		t.Errorf("asked: %v", inside.count)
	}
}

// Would catch a devnet's hold that cannot be found.
func TestWebOnLocalhost(t *testing.T) {
	t.Parallel()
	s := newServer(t, status(200))
	s.set(say(document(t, s.web(), "hold.test", k256(t), "Multikey")))
	r, _ := newResolver(Config{AllowPrivate: true})
	i, err := r.LookupDID(t.Context(), s.web())
	if err != nil || i.DID != s.web() || s.count["/.well-known/did.json"] != 1 {
		t.Errorf("%+v %v %v", i, err, s.count)
	}
}

// answers is a transport that knows some hosts.
type answers map[string]string

func (a answers) RoundTrip(r *http.Request) (*http.Response, error) {
	body, ok := a[r.URL.String()]
	if !ok {
		return nil, &net.OpError{Op: "dial", Err: &net.DNSError{Err: "no such host", Name: r.URL.Host, IsNotFound: true}}
	}
	return &http.Response{StatusCode: 200, Body: io.NopCloser(strings.NewReader(body)), Request: r}, nil
}

// Would catch a handle that leads to another's DID, and one that nobody has told as an outage.
func TestResolveHandle(t *testing.T) {
	t.Parallel()
	const other = "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa"
	for handle, test := range map[syntax.Handle]struct {
		want syntax.DID
		err  error
	}{
		"dns.test.com":    {alice, nil},
		"DNS.Test.com":    {alice, nil},
		"host.test.com":   {alice, nil},
		"both.test.com":   {alice, nil},
		"two.test.com":    {"", ErrInvalid},
		"bad.test.com":    {"", ErrInvalid},
		"other.test.com":  {"", ErrNotFound},
		"page.test.com":   {"", ErrInvalid},
		"nobody.test.com": {"", ErrNotFound},
		"alice.localhost": {"", ErrNotFound},
		"alice.internal":  {"", ErrNotFound},
		"handle.invalid":  {"", ErrNotFound},
		"printer.local":   {"", ErrNotFound},
		"1.0.0.127.arpa":  {"", ErrNotFound},
	} {
		r, _ := newResolver(Config{})
		r.dns = names{
			"_atproto.dns.test.com":   {"v=spf1", "did=" + alice.String()},
			"_atproto.both.test.com":  {"did=" + alice.String()},
			"_atproto.two.test.com":   {"did=" + alice.String(), "did=" + other},
			"_atproto.bad.test.com":   {"did=alice"},
			"_atproto.other.test.com": {"v=spf1"},
		}
		r.guarded = &http.Client{Transport: answers{
			"https://host.test.com/.well-known/atproto-did": alice.String() + "\n",
			"https://both.test.com/.well-known/atproto-did": other,
			"https://page.test.com/.well-known/atproto-did": "<html>",
		}}
		got, err := r.ResolveHandle(t.Context(), handle)
		if got != test.want || !errors.Is(err, test.err) {
			t.Errorf("%s: %s %v", handle, got, err)
		}
	}
}

// Would catch a resolver of the operator's that is not asked first, or that is believed against the document.
func TestHandleResolver(t *testing.T) {
	t.Parallel()
	plc := newServer(t, say(document(t, alice, "alice.test", k256(t), "Multikey")))
	asked := newServer(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Query().Get("handle") {
		case "alice.test", "mallory.test":
			_, _ = io.WriteString(w, `{"did":"`+alice.String()+`"}`)
		case "garbage.localhost":
			_, _ = io.WriteString(w, `[`)
		case "nodid.localhost":
			_, _ = io.WriteString(w, `{}`)
		default:
			w.WriteHeader(400)
		}
	})
	r, _ := newResolver(Config{PLCURL: plc.URL, HandleResolverURL: asked.URL + "/"})
	r.guarded = &http.Client{Transport: answers{}}
	for name, want := range map[string]error{
		"alice.test": nil, "ALICE.test": nil, alice.String(): nil, "mallory.test": ErrHandleMismatch,
		"nobody.test": ErrNotFound, "nobody.localhost": ErrNotFound, "garbage.localhost": ErrInvalid, "nodid.localhost": ErrInvalid,
	} {
		id, err := syntax.ParseAtIdentifier(name)
		if err != nil {
			t.Fatal(err)
		}
		i, err := r.Lookup(t.Context(), id)
		if !errors.Is(err, want) || err == nil && i.DID != alice {
			t.Errorf("%s: %v", name, err)
		}
	}
	if asked.count["/xrpc/com.atproto.identity.resolveHandle"] != asked.asked() {
		t.Errorf("asked: %v", asked.count)
	}
}

// Would catch a panic on a stranger's did:web, and a URL that is not the host that it names.
func FuzzWebURL(f *testing.F) {
	for _, s := range []string{"example.com", "localhost%3A80", "a%2Fb", "a:b", "%5B%3A%3A1%5D%3A80", "a%40b", "%00", "a%3A", "%3A80"} {
		f.Add(s)
	}
	private, _ := newResolver(Config{AllowPrivate: true})
	public, _ := newResolver(Config{})
	f.Fuzz(func(t *testing.T, identifier string) {
		did, err := syntax.ParseDID("did:web:" + identifier)
		if err != nil {
			return
		}
		for _, r := range []*Resolver{private, public} {
			target, err := r.webURL(did)
			if err != nil {
				continue
			}
			req, err := http.NewRequestWithContext(context.Background(), http.MethodGet, target, nil)
			if err != nil {
				continue // get says so
			}
			if u := req.URL; u.Path != "/.well-known/did.json" || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
				t.Errorf("%s: %s", did, target)
			}
			if u := req.URL; r == public && (u.Port() != "" || u.Scheme != "https" || httpx.IsLoopbackHost(u.Hostname()) && httpx.CheckURL(u, false) == nil) {
				t.Errorf("%s is public: %s", did, target)
			}
		}
	})
}
