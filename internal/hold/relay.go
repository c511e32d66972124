package hold

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"atcr.io/internal/daemon"
	"atcr.io/internal/httpx"
	"atcr.io/internal/xrpc"
)

const (
	requestCrawlNSID = "com.atproto.sync.requestCrawl"
	// crawlPause is the least time between two requests to a relay that says yes, crawlRetry to one that failed once,
	// crawlLook how often it is looked whether one is due.
	crawlPause = time.Hour
	crawlRetry = time.Minute
	crawlLook  = 30 * time.Second
)

// relayState is what is known of one relay.
type relayState struct {
	asked    time.Time // when it was asked last; zero: never
	rev      string    // the repo's, when it last said yes
	failures int       // since then
}

// due tells whether to ask: who failed is asked again after a minute, then ever later, up to crawlPause; who said
// yes, when there is something new and nobody reads, at most each crawlPause.
func (s relayState) due(now time.Time, rev string, read bool) bool {
	if s.failures > 0 {
		return now.Sub(s.asked) >= min(crawlPause, crawlRetry<<min(s.failures-1, 10))
	}
	return s.asked.IsZero() || rev != s.rev && !read && now.Sub(s.asked) >= crawlPause
}

// followRelays asks the relays to read this hold: at the start, and again whenever there are new commits and
// nobody reads them. Each is asked on its own: one that fails holds up none.
func (h *Hold) followRelays(ctx context.Context) error {
	public, err := url.Parse(h.config.PublicURL)
	if err != nil || len(h.config.Relays) == 0 || daemon.PrivateHost(public.Hostname()) {
		return err // a relay could not reach it
	}
	head, err := h.repo.Head(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, relay := range h.config.Relays {
		state := h.relays[relay]
		if !state.due(h.now(), head.Rev, h.host.Subscribers() > 0) {
			continue
		}
		if err := h.requestCrawl(ctx, relay); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", relay, err))
			state.failures++
		} else {
			state.failures, state.rev = 0, head.Rev
		}
		state.asked = h.now()
		h.relays[relay] = state
	}
	return errors.Join(errs...)
}

// requestCrawl asks one relay, a host name or a URL.
func (h *Hold) requestCrawl(ctx context.Context, relay string) error {
	if !strings.Contains(relay, "://") {
		relay = "https://" + relay
	}
	public, err := url.Parse(h.config.PublicURL)
	if err != nil {
		return err
	}
	u := xrpc.Upstream{Client: httpx.NewClient(httpx.ClientConfig{AllowPrivate: true, Timeout: 30 * time.Second, UserAgent: userAgent})} // the operator chose it
	call, err := xrpc.JSONCall(strings.TrimSuffix(relay, "/"), requestCrawlNSID, "", map[string]string{"hostname": public.Host})
	if err != nil {
		return err
	}
	return u.JSON(ctx, call, nil)
}
