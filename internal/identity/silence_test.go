package identity

import (
	"context"
	"errors"
	"net"
	"net/http"
	"sync/atomic"
	"testing"

	"github.com/bluesky-social/indigo/atproto/syntax"
)

// mutedDNS has names, and gives no answer in time to what is asked of others, or of anything where it is mute.
type mutedDNS struct {
	names
	slow  string // a name whose own servers do not answer
	mute  atomic.Bool
	asked atomic.Int64
}

var errTimeout = &net.DNSError{Err: "i/o timeout", IsTimeout: true, IsTemporary: true}

func (d *mutedDNS) LookupTXT(ctx context.Context, name string) ([]string, error) {
	d.asked.Add(1)
	if d.mute.Load() || name == d.slow {
		return nil, errTimeout
	}
	return d.names.LookupTXT(ctx, name)
}

func (d *mutedDNS) LookupNS(ctx context.Context, name string) ([]*net.NS, error) {
	if d.mute.Load() {
		return nil, errTimeout
	}
	return d.names.LookupNS(ctx, name)
}

// countedHosts are hosts that nobody reaches.
type countedHosts struct{ asked atomic.Int64 }

func (c *countedHosts) RoundTrip(*http.Request) (*http.Response, error) {
	c.asked.Add(1)
	return nil, &net.OpError{Op: "dial", Err: errTimeout}
}

// Would catch names that are each waited for, one after the other, while DNS answers nothing at all; and an outage that is
// remembered of them when it is over.
func TestSilentDNS(t *testing.T) {
	t.Parallel()
	dns, hosts := &mutedDNS{names: names{"_atproto.known.test.com": {"did=" + alice.String()}}}, &countedHosts{}
	dns.mute.Store(true)
	r, clock := newResolver(Config{})
	r.dns, r.guarded = dns, &http.Client{Transport: hosts}
	unavailable := func(asked int64, handles ...syntax.Handle) {
		t.Helper()
		for _, handle := range handles {
			if _, err := r.ResolveHandle(t.Context(), handle); !errors.Is(err, ErrUnavailable) || errors.Is(err, ErrNotFound) {
				t.Errorf("%s: %v", handle, err)
			}
		}
		if dns.asked.Load() != asked || hosts.asked.Load() != 0 {
			t.Errorf("DNS was asked %d times, want %d, hosts %d times", dns.asked.Load(), asked, hosts.asked.Load())
		}
	}
	unavailable(1, "first.test.com", "second.test.com", "known.test.com")
	clock.add(silenceFor)
	unavailable(2, "third.test.com", "fourth.test.com", "known.test.com")
	dns.mute.Store(false)
	clock.add(silenceFor)
	if did, err := r.ResolveHandle(t.Context(), "known.test.com"); did != alice {
		t.Errorf("DNS is back: %v", err)
	}
}

// Would catch a stranger's name, whose servers do not answer, that keeps all others from being looked up.
func TestSlowName(t *testing.T) {
	t.Parallel()
	dns, hosts := &mutedDNS{names: names{"_atproto.known.test.com": {"did=" + alice.String()}}, slow: "_atproto.slow.test.com"}, &countedHosts{}
	r, _ := newResolver(Config{})
	r.dns, r.guarded = dns, &http.Client{Transport: hosts}
	if _, err := r.ResolveHandle(t.Context(), "slow.test.com"); !errors.Is(err, ErrUnavailable) || hosts.asked.Load() != 1 {
		t.Errorf("%v, its host was asked %d times", err, hosts.asked.Load())
	}
	if did, err := r.ResolveHandle(t.Context(), "known.test.com"); did != alice {
		t.Errorf("another name: %v", err)
	}
}
