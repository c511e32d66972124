package appview

import (
	"context"
	"net/http"
	"sync"

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
	all line
	mu  sync.Mutex
	of  map[string]*line // of hosts that anybody is at or waits for
}

// line is those who have a turn, and those who wait for one.
type line struct {
	turn chan struct{}
	room int // for both
	in   int // by turns.mu
}

func newTurns() *turns {
	return &turns{all: newLine(listsAtOnce, listsWaiting), of: map[string]*line{}}
}

func newLine(atOnce, waiting int) line {
	return line{turn: make(chan struct{}, atOnce), room: atOnce + waiting}
}

// take waits for a turn at host, which done ends. Errors: *oci.Error, 503 where too many wait or ctx ended first.
func (t *turns) take(ctx context.Context, host string) (done func(), err error) {
	leaveHost, err := t.enter(ctx, host, func() *line {
		if t.of[host] == nil {
			own := newLine(listsAtOnceOfHost, listsWaitingOfHost)
			t.of[host] = &own
		}
		return t.of[host]
	})
	if err != nil {
		return nil, err
	}
	leaveAll, err := t.enter(ctx, host, func() *line { return &t.all })
	if err != nil {
		leaveHost()
		return nil, err
	}
	return func() { leaveAll(); leaveHost() }, nil
}

// enter stands in the line that at finds.
func (t *turns) enter(ctx context.Context, host string, at func() *line) (leave func(), err error) {
	t.mu.Lock()
	l := at()
	full := l.in == l.room
	if !full {
		l.in++
	}
	t.mu.Unlock()
	if full {
		return nil, busy(host, nil)
	}
	out := func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if l.in--; l.in == 0 && l != &t.all {
			delete(t.of, host)
		}
	}
	select {
	case l.turn <- struct{}{}:
		return func() { <-l.turn; out() }, nil
	case <-ctx.Done():
		out()
		return nil, busy(host, ctx.Err())
	}
}

func busy(host string, cause error) error {
	return &oci.Error{
		Code: oci.CodeTooManyRequests, Status: http.StatusServiceUnavailable, RetryAfter: retryHint, Err: cause,
		Message: "too many lists are being read at " + host + " or elsewhere: try again in a moment",
	}
}
