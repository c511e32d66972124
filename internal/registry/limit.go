package registry

import (
	"errors"
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
	slowCost    = 20  // a name of which nobody says in time whose it is
)

// ErrUnresolved marks errors of names that could not be looked up: who asks for many keeps others from look-ups.
var ErrUnresolved = errors.New("the name could not be looked up")

// wantsFresh tells whether a request asks to be answered past the caches.
func wantsFresh(r *http.Request) bool {
	return strings.Contains(strings.ToLower(r.Header.Get("Cache-Control")), "no-cache")
}

// take bounds a request before it is served, and says what is left with what clients count by: manifests.
func (s *Server) take(w http.ResponseWriter, r *http.Request, c Caller, kind Kind) error {
	cost := usualCost
	if wantsFresh(r) {
		cost = freshCost
	}
	return take(w, r, s.Limiter, c, cost, kind == ManifestReference)
}

// Take bounds a request that is none of this API, such as one for a token, before it is served. l may be nil.
// Errors: *oci.Error, 429.
func Take(w http.ResponseWriter, r *http.Request, l Limiter, c Caller) error {
	return take(w, r, l, c, usualCost, false)
}

// take says what is left where that is asked for, or nothing is.
//
// Source: distribution-spec, "Error Codes", TOOMANYREQUESTS; draft-ietf-httpapi-ratelimit-headers-02.
func take(w http.ResponseWriter, r *http.Request, l Limiter, c Caller, cost int, told bool) error {
	if l == nil {
		return nil
	}
	a, limited := l.Take(r, c, cost)
	if !limited {
		return nil
	}
	if told || a.Wait > 0 {
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
func (s *Server) charge(r *http.Request, c Caller, err error) { Charge(r, s.Limiter, c, err) }

// Charge takes what a look-up that failed cost beyond the usual: others were asked, and may be again. l may be nil.
func Charge(r *http.Request, l Limiter, c Caller, err error) {
	switch {
	case l == nil || err == nil:
	case errors.Is(err, ErrUnresolved):
		l.Take(r, c, slowCost)
	case oci.AsError(err).Code == oci.CodeNameUnknown:
		l.Take(r, c, unknownCost)
	}
}
