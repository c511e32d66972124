package appview

import (
	"context"
	"net/http"

	"atcr.io/internal/httpx"
	"atcr.io/internal/oci"
)

// Whole lists are read at PDSes, some at once: each takes as much memory and as long as its PDS wants, up to bounds of
// its own.
const (
	listsAtOnce  = 32
	listsWaiting = 64 // for listsAtOnce
	// Of one PDS, so that none that is slow takes every turn.
	listsAtOnceOfHost  = 4
	listsWaitingOfHost = 12
)

// turns bounds what is done at once, of each host and in all.
type turns struct {
	of  *httpx.Lines // of each host
	all *httpx.Lines // one line
}

func newTurns() *turns {
	return &turns{of: httpx.NewLines(listsAtOnceOfHost, listsWaitingOfHost), all: httpx.NewLines(listsAtOnce, listsWaiting)}
}

// take waits for a turn at host, which done ends. Errors: *oci.Error, 503 where too many wait or ctx ended first.
func (t *turns) take(ctx context.Context, host string) (done func(), err error) {
	leaveHost, err := t.of.Enter(ctx, host)
	if err != nil {
		return nil, busy(host, err)
	}
	leaveAll, err := t.all.Enter(ctx, "")
	if err != nil {
		leaveHost()
		return nil, busy(host, err)
	}
	return func() { leaveAll(); leaveHost() }, nil
}

func busy(host string, cause error) error {
	return &oci.Error{
		Code: oci.CodeTooManyRequests, Status: http.StatusServiceUnavailable, RetryAfter: retryHint, Err: cause,
		Message: "too many lists are being read at " + host + " or elsewhere: try again in a moment",
	}
}
