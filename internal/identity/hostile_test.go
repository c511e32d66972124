package identity

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/internal/httpx"
)

// Would catch a key of 256 KiB that holds a processor for seconds at each token (base58 is quadratic).
func TestHugeKey(t *testing.T) {
	t.Parallel()
	doc := `{"id":"` + alice.String() + `","verificationMethod":[{"id":"#atproto","type":"Multikey","controller":"` + alice.String() + `","publicKeyMultibase":"z` + strings.Repeat("z", 250<<10) + `"}]}`
	plc := newServer(t, say(doc))
	r, _ := newResolver(Config{PLCURL: plc.URL})
	began := time.Now()
	if _, err := r.SigningKey(t.Context(), alice); !errors.Is(err, ErrInvalid) {
		t.Error(err)
	}
	if d := time.Since(began); d > time.Second {
		t.Errorf("a key that is none took %s", d)
	}
}

// Would catch documents of strangers that fill the memory: 300 of 20,000 entries are measured.
func TestCacheBytes(t *testing.T) {
	filler := strings.Repeat("x", 250<<10)
	plc := newServer(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = fmt.Fprintf(w, `{"id":"%s","alsoKnownAs":["%s"]}`, strings.TrimPrefix(r.URL.Path, "/"), filler)
	})
	r, _ := newResolver(Config{PLCURL: plc.URL})
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	for i := range 300 {
		if _, err := r.LookupDID(t.Context(), syntax.DID(fmt.Sprintf("did:plc:n%d", i))); err != nil {
			t.Fatal(err)
		}
	}
	if grown := heap() - before; grown > 40<<20 {
		t.Errorf("300 documents hold %d MiB", grown>>20)
	}
	runtime.KeepAlive(r)
}

type brokenDNS struct{}

func (brokenDNS) LookupTXT(context.Context, string) ([]string, error) {
	return nil, &net.DNSError{Err: "server misbehaving", IsTemporary: true}
}

func (brokenDNS) LookupNS(context.Context, string) ([]*net.NS, error) {
	return nil, &net.DNSError{Err: "server misbehaving", IsTemporary: true}
}

// Would catch an outage of DNS that makes a known handle unknown.
func TestHandleDuringOutage(t *testing.T) {
	t.Parallel()
	r, clock := newResolver(Config{})
	r.guarded = &http.Client{Transport: answers{}}
	r.dns = names{"_atproto.dns.test.com": {"did=" + alice.String()}}
	if _, err := r.ResolveHandle(t.Context(), "dns.test.com"); err != nil {
		t.Fatal(err)
	}
	r.dns = brokenDNS{}
	clock.add(freshFor)
	if did, err := r.ResolveHandle(t.Context(), "dns.test.com"); did != alice {
		t.Errorf("%s %v", did, err)
	}
}

// slowHosts is a transport to hosts that accept and never answer.
type slowHosts struct{ asked chan struct{} }

func (s slowHosts) RoundTrip(r *http.Request) (*http.Response, error) {
	s.asked <- struct{}{}
	<-r.Context().Done()
	return nil, r.Context().Err()
}

// Would catch strangers' slow hosts that keep everybody else from being looked up.
func TestSlowStrangers(t *testing.T) {
	t.Parallel()
	plc := newServer(t, say(document(t, alice, "alice.example", k256(t), "Multikey")))
	r, _ := newResolver(Config{PLCURL: plc.URL})
	slow := slowHosts{make(chan struct{}, maxLookups)}
	r.guarded = &http.Client{Transport: slow}
	for i := range maxLookups {
		go func() { _, _ = r.LookupDID(t.Context(), syntax.DID(fmt.Sprintf("did:web:h%d.test.com", i))) }()
	}
	for range maxLookups { // as many as there may be at once
		<-slow.asked
	}
	if _, err := r.LookupDID(t.Context(), alice); err != nil {
		t.Errorf("the directory was not asked: %v", err)
	}
}

// from is a request of caller.
func from(ctx context.Context, caller string) context.Context {
	r := (&http.Request{}).WithContext(ctx)
	return httpx.WithEvent(r, &httpx.Event{Caller: caller}).Context()
}

// Would catch one caller who takes all look-ups with names whose hosts never answer: others then wait, and so do names that
// are known; and one whose look-ups no longer count once they gave up waiting for them.
func TestShares(t *testing.T) {
	t.Parallel()
	r, clock := newResolver(Config{})
	slow := slowHosts{make(chan struct{}, 10*maxLookups)}
	r.guarded = &http.Client{Transport: slow}
	r.dns = names{"_atproto.known.test.com": {"did=" + alice.String()}, "_atproto.new.test.com": {"did=" + alice.String()}}
	if _, err := r.ResolveHandle(t.Context(), "known.test.com"); err != nil {
		t.Fatal(err)
	}
	gone, leave := context.WithCancel(t.Context())
	failed := make(chan error, 10*maxLookups)
	flood := func(ctx context.Context, name string, n int) {
		for i := range n {
			go func() {
				_, err := r.LookupDID(ctx, syntax.DID(fmt.Sprintf("did:web:%s%d.test.com", name, i)))
				failed <- err
			}()
		}
	}
	flood(from(gone, "flood"), "a", 10*maxLookups)
	for range 10*maxLookups - shareLookups - shareWaiting { // who finds no room is told at once
		if err := <-failed; !errors.Is(err, ErrTooMany) || !errors.Is(err, ErrUnavailable) {
			t.Fatal(err)
		}
	}
	for range shareLookups {
		<-slow.asked
	}
	leave()
	for range shareLookups + shareWaiting {
		if err := <-failed; !errors.Is(err, context.Canceled) || errors.Is(err, ErrTooMany) {
			t.Errorf("who gave up: %v", err)
		}
	}
	flood(from(t.Context(), "flood"), "b", 10*maxLookups)
	for range 10*maxLookups - shareLookups - shareWaiting { // those that were given up have their turns still
		if err := <-failed; !errors.Is(err, ErrTooMany) {
			t.Fatal(err)
		}
	}
	for _, age := range []time.Duration{0, freshFor} {
		clock.add(age)
		if did, err := r.ResolveHandle(from(t.Context(), "flood"), "known.test.com"); did != alice {
			t.Errorf("a name that is known, for %s: %v", age, err)
		}
	}
	for _, caller := range []string{"another", ""} {
		r.handles.Remove("new.test.com")
		if did, err := r.ResolveHandle(from(t.Context(), caller), "new.test.com"); did != alice {
			t.Errorf("%q: %v", caller, err)
		}
	}
	if len(slow.asked) != 0 || len(r.slots) != shareLookups {
		t.Errorf("%d are under way, and %d hosts were asked beyond", len(r.slots), len(slow.asked))
	}
}

// Would catch people behind one address who are refused because many of them ask for the same name.
func TestShareOfOneName(t *testing.T) {
	t.Parallel()
	answer, arrived, open := gate(document(t, alice, "alice.example", k256(t), "Multikey"))
	plc := newServer(t, answer)
	r, _ := newResolver(Config{PLCURL: plc.URL})
	found := make(chan error)
	for range shareLookups + shareWaiting {
		go func() {
			_, err := r.LookupDID(from(t.Context(), "many"), alice)
			found <- err
		}()
	}
	<-arrived
	close(open)
	for range shareLookups + shareWaiting {
		if err := <-found; err != nil {
			t.Error(err)
		}
	}
	if plc.asked() != 1 || r.shares.Len() != 0 {
		t.Errorf("asked %d times; %d callers are remembered", plc.asked(), r.shares.Len())
	}
}

// Would catch a handle that went to another person, and leads nobody anywhere until the cache forgets whose it was.
func TestHandleOfAnother(t *testing.T) {
	t.Parallel()
	const bob = syntax.DID("did:plc:bobbbbbbbbbbbbbbbbbbbbbb")
	key := k256(t)
	handles := map[syntax.DID]string{alice: "name.test.com", bob: "bob.test.com"}
	plc := newServer(t, func(w http.ResponseWriter, r *http.Request) {
		did := syntax.DID(r.URL.Path[1:])
		say(document(t, did, handles[did], key, "Multikey"))(w, r)
	})
	r, clock := newResolver(Config{PLCURL: plc.URL})
	r.dns = names{"_atproto.name.test.com": {"did=" + alice.String()}}
	look := func() *Identity {
		t.Helper()
		i, err := r.Lookup(t.Context(), syntax.Handle("name.test.com").AtIdentifier())
		if err != nil {
			t.Fatal(err)
		}
		return i
	}
	if i := look(); i.DID != alice {
		t.Fatal(i.DID)
	}
	if _, err := r.LookupDID(t.Context(), bob); err != nil {
		t.Fatal(err)
	}
	handles[alice], handles[bob] = "alice.test.com", "name.test.com"
	r.dns = names{"_atproto.name.test.com": {"did=" + bob.String()}}
	clock.add(refreshEvery)
	if _, err := r.Refresh(t.Context(), alice); err != nil { // a firehose said so
		t.Fatal(err)
	}
	if i := look(); i.DID != bob {
		t.Error(i.DID)
	}
}

// Would catch a person who cannot use a new handle until the cache forgets the old document.
func TestNewHandle(t *testing.T) {
	t.Parallel()
	key := k256(t)
	plc := newServer(t, say(document(t, alice, "old.test.com", key, "Multikey")))
	r, _ := newResolver(Config{PLCURL: plc.URL})
	r.dns = names{"_atproto.new.test.com": {"did=" + alice.String()}}
	if _, err := r.LookupDID(t.Context(), alice); err != nil {
		t.Fatal(err)
	}
	plc.set(say(document(t, alice, "new.test.com", key, "Multikey")))
	name, err := syntax.ParseAtIdentifier("new.test.com")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Lookup(t.Context(), name); err != nil {
		t.Error(err)
	}
}

// Would catch a person who is told that a handle is not theirs, although their document was not looked at since they took it.
func TestNewHandleWhileNothingIsRefreshed(t *testing.T) {
	t.Parallel()
	plc := newServer(t, say(document(t, alice, "old.test.com", k256(t), "Multikey")))
	r, clock := newResolver(Config{PLCURL: plc.URL})
	r.dns = names{"_atproto.new.test.com": {"did=" + alice.String()}}
	if _, err := r.LookupDID(t.Context(), alice); err != nil {
		t.Fatal(err)
	}
	name := syntax.Handle("new.test.com").AtIdentifier()
	clock.add(refreshEvery + time.Second)
	for i := range maxRefreshes {
		r.mayRefresh(syntax.DID(fmt.Sprintf("did:plc:n%d", i)))
	}
	if _, err := r.Lookup(t.Context(), name); !errors.Is(err, ErrUnavailable) || errors.Is(err, ErrHandleMismatch) {
		t.Errorf("too many were asked for: %v", err)
	}
	clock.add(refreshEvery + time.Second)
	plc.set(status(503))
	if _, err := r.Lookup(t.Context(), name); !errors.Is(err, ErrUnavailable) || errors.Is(err, ErrHandleMismatch) {
		t.Errorf("the directory is down: %v", err)
	}
	plc.set(say(document(t, alice, "old.test.com", k256(t), "Multikey")))
	clock.add(refreshEvery + time.Second)
	for range 2 { // the second is told what was seen a moment ago
		if _, err := r.Lookup(t.Context(), name); !errors.Is(err, ErrHandleMismatch) || errors.Is(err, ErrUnavailable) {
			t.Errorf("it is another's: %v", err)
		}
	}
}

// Would catch a directory that refuses us (403) and so takes away what is known of everybody.
func TestDirectoryRefuses(t *testing.T) {
	t.Parallel()
	plc := newServer(t, say(document(t, alice, "alice.example", k256(t), "Multikey")))
	r, clock := newResolver(Config{PLCURL: plc.URL})
	if _, err := r.LookupDID(t.Context(), alice); err != nil {
		t.Fatal(err)
	}
	plc.set(status(403))
	clock.add(freshFor)
	if _, err := r.LookupDID(t.Context(), alice); err != nil {
		t.Error(err)
	}
}
