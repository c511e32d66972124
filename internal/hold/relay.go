package hold

import (
	"context"
	"errors"
	"net/url"
	"strings"
	"time"

	"atcr.io/internal/daemon"
	"atcr.io/internal/httpx"
	"atcr.io/internal/xrpc"
)

const (
	requestCrawlNSID = "com.atproto.sync.requestCrawl"
	// crawlPause is the least time between two requests to a relay, crawlLook how often it is looked whether
	// one is due.
	crawlPause = time.Hour
	crawlLook  = 30 * time.Second
)

// followRelays asks the relays to read this hold: at the start, and again whenever there are new commits and
// nobody reads them, at most once an hour.
func (h *Hold) followRelays(ctx context.Context) error {
	public, err := url.Parse(h.config.PublicURL)
	if err != nil || len(h.config.Relays) == 0 || daemon.PrivateHost(public.Hostname()) {
		return err // a relay could not reach it
	}
	head, err := h.repo.Head(ctx)
	if err != nil {
		return err
	}
	h.crawlMu.Lock()
	due := h.crawledAt.IsZero() || head.Rev != h.crawledRev && h.host.Subscribers() == 0 && h.now().Sub(h.crawledAt) >= crawlPause
	h.crawlMu.Unlock()
	if !due {
		return nil
	}
	var errs []error
	for _, relay := range h.config.Relays {
		errs = append(errs, h.requestCrawl(ctx, relay))
	}
	failed := errors.Join(errs...)
	h.crawlMu.Lock()
	h.crawledAt, h.crawledRev = h.now(), head.Rev
	if failed != nil {
		h.crawledRev = "" // asked again, whatever is new by then
	}
	h.crawlMu.Unlock()
	return failed
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
