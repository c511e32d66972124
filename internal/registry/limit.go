package registry

import (
	"net/http"
	"strconv"
	"strings"
	"time"

	"atcr.io/internal/oci"
)

// Limiter bounds what one caller asks for.
type Limiter interface {
	// Take takes cost from what the caller of r has left. limited is false where nothing bounds this caller.
	Take(r *http.Request, c Caller, cost int) (a Allowance, limited bool)
}

// Allowance is what a caller has.
type Allowance struct {
	Limit     int           // in a Window
	Window    time.Duration // in which it comes back
	Remaining int
	Wait      time.Duration // until the request may be tried again; 0 where it may go on
}

// What requests cost. Those that have other servers asked cost more: a flood of them is not this registry's
// alone to bear.
const (
	usualCost   = 1
	freshCost   = 20  // Cache-Control: no-cache
	unknownCost = 100 // a name that nobody has
)

// wantsFresh tells whether a request asks to be answered past the caches.
func wantsFresh(r *http.Request) bool {
	return strings.Contains(strings.ToLower(r.Header.Get("Cache-Control")), "no-cache")
}

// take bounds a request before it is served, and says what is left with what clients count by: manifests.
//
// Source: distribution-spec, "Error Codes", TOOMANYREQUESTS; draft-ietf-httpapi-ratelimit-headers-02.
func (s *Server) take(w http.ResponseWriter, r *http.Request, c Caller, kind Kind) error {
	if s.Limiter == nil {
		return nil
	}
	cost := usualCost
	if wantsFresh(r) {
		cost = freshCost
	}
	a, limited := s.Limiter.Take(r, c, cost)
	if !limited {
		return nil
	}
	if kind == ManifestReference || a.Wait > 0 {
		window := ";w=" + strconv.Itoa(int(a.Window/time.Second))
		w.Header().Set("RateLimit-Limit", strconv.Itoa(a.Limit)+window)
		w.Header().Set("RateLimit-Remaining", strconv.Itoa(a.Remaining)+window)
	}
	if a.Wait > 0 {
		return &oci.Error{Code: oci.CodeTooManyRequests, Message: "too many requests: slow down", RetryAfter: a.Wait}
	}
	return nil
}

// charge takes what an answer cost beyond the usual.
func (s *Server) charge(r *http.Request, c Caller, err error) {
	if s.Limiter != nil && err != nil && oci.AsError(err).Code == oci.CodeNameUnknown {
		s.Limiter.Take(r, c, unknownCost)
	}
}
