package httpx

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"syscall"
	"time"
)

// ErrForbiddenAddress says that a name leads to an address that outside requests must not reach:
// loopback, private, link-local, multicast and the like.
var ErrForbiddenAddress = errors.New("the address is not a public one")

// ErrInsecureURL says that a URL chosen by others is not https, or carries credentials.
var ErrInsecureURL = errors.New("the URL must be https and without credentials")

// ErrTooLarge says that an answer is larger than the caller takes.
var ErrTooLarge = errors.New("the answer is too large")

// ClientConfig says what a client may reach.
type ClientConfig struct {
	// AllowPrivate allows http and private or loopback addresses: tests, and addresses that the operator
	// chose rather than others.
	AllowPrivate bool
	// Timeout bounds a whole exchange, body included; 0 means none, for streams, which then need their own.
	Timeout time.Duration
	// FollowRedirects allows up to three, each checked like the first request.
	FollowRedirects bool
	UserAgent       string
}

// NewClient makes a client for addresses that others chose. The address is checked when it is dialled,
// after the name was resolved, so that a name cannot change its mind in between.
func NewClient(c ClientConfig) *http.Client {
	dialer := &net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}
	if !c.AllowPrivate {
		dialer.ControlContext = func(_ context.Context, _, address string, _ syscall.RawConn) error {
			host, _, err := net.SplitHostPort(address)
			if err != nil {
				return err
			}
			ip, err := netip.ParseAddr(host)
			if err != nil || !PublicAddress(ip) {
				return fmt.Errorf("%w: %s", ErrForbiddenAddress, host)
			}
			return nil
		}
	}
	transport := &http.Transport{
		DialContext:            dialer.DialContext, // no Proxy: a proxy would dial for us, unguarded
		ForceAttemptHTTP2:      true,
		MaxIdleConns:           200,
		MaxIdleConnsPerHost:    32,
		IdleConnTimeout:        60 * time.Second,
		TLSHandshakeTimeout:    10 * time.Second,
		ResponseHeaderTimeout:  30 * time.Second,
		ExpectContinueTimeout:  time.Second,
		MaxResponseHeaderBytes: 64 << 10,
		WriteBufferSize:        64 << 10,
		ReadBufferSize:         64 << 10,
	}
	return &http.Client{
		Transport: &guard{next: transport, config: c},
		Timeout:   c.Timeout,
		CheckRedirect: func(_ *http.Request, via []*http.Request) error {
			if !c.FollowRedirects || len(via) > 3 {
				return http.ErrUseLastResponse
			}
			return nil
		},
	}
}

type guard struct {
	next   http.RoundTripper
	config ClientConfig
}

func (g *guard) RoundTrip(r *http.Request) (*http.Response, error) {
	if err := CheckURL(r.URL, g.config.AllowPrivate); err != nil {
		if r.Body != nil {
			_ = r.Body.Close()
		}
		return nil, err
	}
	if g.config.UserAgent != "" && r.Header.Get("User-Agent") == "" {
		r = r.Clone(r.Context())
		r.Header.Set("User-Agent", g.config.UserAgent)
	}
	return g.next.RoundTrip(r)
}

// CheckURL refuses a URL that others chose and that is not https, has credentials, or names a private
// address outright. Names are checked when they are dialled; see NewClient.
func CheckURL(u *url.URL, allowPrivate bool) error {
	if u.User != nil || u.Host == "" || (u.Scheme != "https" && (!allowPrivate || u.Scheme != "http")) {
		return fmt.Errorf("%w: %s://%s", ErrInsecureURL, u.Scheme, u.Host) // path and query may be secrets: presigned URLs
	}
	if allowPrivate {
		return nil
	}
	if ip, err := netip.ParseAddr(u.Hostname()); err == nil && !PublicAddress(ip) {
		return fmt.Errorf("%w: %s", ErrForbiddenAddress, u.Hostname())
	}
	if IsLoopbackHost(u.Hostname()) {
		return fmt.Errorf("%w: %s", ErrForbiddenAddress, u.Hostname())
	}
	return nil
}

// special are the blocks of the IANA registries that netip has no word for.
var special = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("192.0.0.0/24"),
	netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("198.18.0.0/15"), netip.MustParsePrefix("198.51.100.0/24"),
	netip.MustParsePrefix("203.0.113.0/24"), netip.MustParsePrefix("240.0.0.0/4"), netip.MustParsePrefix("192.88.99.0/24"),
	netip.MustParsePrefix("2001::/23"), netip.MustParsePrefix("2001:db8::/32"), netip.MustParsePrefix("2002::/16"),
	netip.MustParsePrefix("3fff::/20"),
}

// unicast6 is the part of IPv6 that is given out. Outside it lie, among others, forms that carry an IPv4
// address (::a.b.c.d, 64:ff9b::/96) and so lead to private ones.
var unicast6 = netip.MustParsePrefix("2000::/3")

// PublicAddress tells whether ip is an address of the public internet.
func PublicAddress(ip netip.Addr) bool {
	ip = ip.Unmap()
	if !ip.IsGlobalUnicast() || ip.IsPrivate() || ip.IsLoopback() || ip.IsLinkLocalUnicast() {
		return false
	}
	ip = ip.WithZone("")
	if ip.Is6() && !unicast6.Contains(ip) {
		return false
	}
	for _, p := range special {
		if p.Contains(ip) {
			return false
		}
	}
	return true
}

// IsLoopbackHost tells whether a URL's host name means this machine: localhost, *.localhost, 127.0.0.0/8, ::1.
func IsLoopbackHost(host string) bool {
	if host == "localhost" || len(host) > 10 && host[len(host)-10:] == ".localhost" {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap().IsLoopback()
}

// ReadLimited reads at most limit bytes of r; more is ErrTooLarge.
func ReadLimited(r io.Reader, limit int64) ([]byte, error) {
	body, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(body)) > limit {
		return nil, fmt.Errorf("%w: over %d bytes", ErrTooLarge, limit)
	}
	return body, nil
}
