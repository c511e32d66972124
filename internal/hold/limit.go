package hold

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/internal/daemon"
	"atcr.io/internal/httpx"
	"atcr.io/internal/pds"
	"atcr.io/internal/xrpc"
)

// limits bound what one address asks, and what one person has written.
type limits struct {
	requests *xrpc.RateLimit // by address
	records  *xrpc.RateLimit // by DID
	exports  *xrpc.RateLimit // by DID
}

const (
	requestWindow = 5 * time.Minute
	recordWindow  = time.Hour
)

func newLimits(c Config, now func() time.Time) limits {
	return limits{
		requests: xrpc.NewRateLimit(c.RequestsPerAddress, requestWindow, now),
		records:  xrpc.NewRateLimit(c.RecordsPerHour, recordWindow, now),
		exports:  xrpc.NewRateLimit(exportsPerHour, time.Hour, now),
	}
}

// validateLimits finds what is wrong with the settings of limits and of posts.
func (c *Config) validateLimits() (problems []error) {
	for _, s := range []struct {
		name          string
		value, lowest int
	}{
		{"HOLD_RECORDS_PER_HOUR", c.RecordsPerHour, 0}, {"HOLD_REQUESTS_PER_ADDRESS", c.RequestsPerAddress, 0},
		{"HOLD_FIREHOSE_SUBSCRIBERS", c.Subscribers, 1}, {"HOLD_FIREHOSE_SUBSCRIBERS_PER_ADDRESS", c.SubscribersPerAddress, 1},
	} {
		if s.value < s.lowest {
			problems = append(problems, fmt.Errorf("%s: at least %d", s.name, s.lowest))
		}
	}
	if _, err := daemon.BaseURL(c.AppViewURL); err != nil {
		problems = append(problems, fmt.Errorf("HOLD_APPVIEW_URL: %w", err))
	}
	if _, err := daemon.BaseURL(c.HandleResolver); err != nil && c.HandleResolver != "" {
		problems = append(problems, fmt.Errorf("HOLD_HANDLE_RESOLVER_URL: %w", err))
	}
	var err error
	if c.proxies, err = httpx.ParseProxies(c.TrustedProxies); err != nil {
		problems = append(problems, fmt.Errorf("HOLD_TRUSTED_PROXIES: %w", err))
	}
	return problems
}

// unlimited are public methods that have bounds of their own.
var unlimited = map[string]bool{"com.atproto.sync.subscribeRepos": true, "_health": true}

type headerKey struct{}

// limited wraps the methods that anybody may call, and shows those that write where RateLimit-* goes. Transfers
// of blobs are bounded by quotas and progress, not here: one push may be thousands of calls.
func (h *Hold) limited(routes []pds.Route) []pds.Route {
	for i, r := range routes {
		next := r.Handler
		switch {
		case r.Access == "public" && !unlimited[r.NSID]:
			routes[i].Handler = func(w http.ResponseWriter, r *http.Request) error {
				if err := h.takeRequest(w, r); err != nil {
					return err
				}
				return next(w, r)
			}
		case r.Method == http.MethodPost:
			routes[i].Handler = func(w http.ResponseWriter, r *http.Request) error {
				return next(w, r.WithContext(context.WithValue(r.Context(), headerKey{}, w.Header())))
			}
		}
	}
	return routes
}

// takeRequest counts a request of an address. One that is not public is a proxy's whose clients cannot be told
// apart, or the operator's own.
func (h *Hold) takeRequest(w http.ResponseWriter, r *http.Request) error {
	key := h.clientNetwork(r)
	if key == "" {
		return nil
	}
	return h.limits.requests.Take(w.Header(), key, 1)
}

// clientNetwork is what one client has at least: an address, or a network of IPv6. "" for one that is not public.
func (h *Hold) clientNetwork(r *http.Request) string {
	ip := httpx.ClientAddress(r, h.config.proxies)
	if !httpx.PublicAddress(ip) {
		return ""
	}
	return httpx.ClientNetwork(ip)
}

// takeRecords counts records that did has written. The owner answers for their own hold.
func (h *Hold) takeRecords(ctx context.Context, did syntax.DID, n int) error {
	access, err := h.roster.Access(ctx, did)
	if err != nil || access.Owner || n == 0 {
		return err
	}
	header, ok := ctx.Value(headerKey{}).(http.Header)
	if !ok {
		header = http.Header{}
	}
	return h.limits.records.Take(header, did.String(), n)
}
