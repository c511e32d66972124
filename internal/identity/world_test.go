package identity

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bluesky-social/indigo/atproto/atcrypto"
	"github.com/bluesky-social/indigo/atproto/syntax"
)

const alice = syntax.DID("did:plc:ewvi7nxzyoun6zhxrhs64oiz")

// server answers what the test says, and counts.
type server struct {
	*httptest.Server
	mu     sync.Mutex
	count  map[string]int
	answer http.HandlerFunc
}

func newServer(t testing.TB, answer http.HandlerFunc) *server {
	t.Helper()
	s := &server{count: map[string]int{}, answer: answer}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.count[r.URL.Path]++
		answer := s.answer
		s.mu.Unlock()
		answer(w, r)
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *server) set(answer http.HandlerFunc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answer = answer
}

func (s *server) asked() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, c := range s.count {
		n += c
	}
	return n
}

// web is the server under the name localhost, as a did:web.
func (s *server) web() syntax.DID {
	return syntax.DID("did:web:localhost%3A" + s.URL[strings.LastIndexByte(s.URL, ':')+1:])
}

// clock is a time that the test turns.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// names is DNS in memory.
type names map[string][]string

func (n names) LookupTXT(_ context.Context, name string) ([]string, error) {
	if records, ok := n[name]; ok {
		return records, nil
	}
	return nil, &net.DNSError{Err: "no such host", Name: name, IsNotFound: true}
}

func (n names) LookupNS(ctx context.Context, name string) ([]*net.NS, error) {
	_, err := n.LookupTXT(ctx, name)
	return nil, err
}

func newResolver(c Config) (*Resolver, *clock) {
	time := &clock{now: time.Unix(1_760_000_000, 0)}
	c.Now, c.Logger = time.Now, slog.New(slog.NewTextHandler(io.Discard, nil))
	r := New(c)
	r.dns = names{}
	return r, time
}

// document is a DID document; key is Multikey, or with its own type the older form.
func document(t testing.TB, did syntax.DID, handle string, key atcrypto.PrivateKey, kind string) string {
	t.Helper()
	public, err := key.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	text := public.Multibase()
	if kind != "Multikey" {
		text = "z" + base58(public.UncompressedBytes())
	}
	out, err := json.Marshal(map[string]any{
		"id": did, "alsoKnownAs": []string{"at://" + handle},
		"verificationMethod": []any{map[string]any{"id": did + "#atproto", "type": kind, "controller": did, "publicKeyMultibase": text}},
		"service": []any{
			map[string]any{"id": "#atproto_pds", "type": "AtprotoPersonalDataServer", "serviceEndpoint": "https://pds.example/"},
			map[string]any{"id": "#atcr_hold", "type": "AtcrHoldService", "serviceEndpoint": "https://hold.example/"},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

func say(text string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, text) }
}

func status(code int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
}

// endless sends until the client has enough; sent says how much that was.
func endless(sent chan<- int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(10<<30))
		page, n := make([]byte, 64<<10), 0
		for n < 10<<30 {
			m, err := w.Write(page)
			if n += m; err != nil {
				break
			}
		}
		sent <- n
	}
}

func k256(t testing.TB) *atcrypto.PrivateKeyK256 {
	t.Helper()
	key, err := atcrypto.GeneratePrivateKeyK256()
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// base58 is Bitcoin's, of bytes that begin with no zero.
func base58(b []byte) string {
	const digits = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
	var out []byte
	n, base, digit := new(big.Int).SetBytes(b), big.NewInt(58), new(big.Int)
	for n.Sign() > 0 {
		n.DivMod(n, base, digit)
		out = append(out, digits[digit.Int64()])
	}
	slices.Reverse(out)
	return string(out)
}
