package identity

import (
	"context"
	"errors"
	"net"
	"time"
)

// DNS that answers nothing at all costs each name its whole patience, and the look-ups of everybody with it. That a name has
// no answer in time says little, since its own servers may be slow on purpose: the root's servers, which every resolver knows,
// are asked for then. Where they have no answer either, no name is asked for a few seconds.

// resolver is DNS.
type resolver interface {
	LookupTXT(ctx context.Context, name string) ([]string, error)
	LookupNS(ctx context.Context, name string) ([]*net.NS, error)
}

const (
	silenceFor   = 5 * time.Second
	probeTimeout = time.Second
)

var errSilent = errors.New("DNS has not answered a moment ago")

// silent tells whether DNS answered nothing a moment ago.
func (r *Resolver) silent() bool {
	return r.config.Now().UnixNano() < r.silence.Load()
}

// listen finds out whether DNS, which had no answer to a name in time, has one to anything.
func (r *Resolver) listen(ctx context.Context) (answers bool) {
	heard, _, _ := r.flight.Do("DNS", func() (any, error) { // no name of a look-up
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), probeTimeout)
		defer cancel()
		_, err := r.dns.LookupNS(ctx, ".")
		if !timedOut(err) {
			return true, nil
		}
		r.silence.Store(r.config.Now().Add(silenceFor).UnixNano())
		return false, nil
	})
	answers, _ = heard.(bool)
	return answers
}

func timedOut(err error) bool {
	dns, ok := errors.AsType[*net.DNSError](err)
	return ok && dns.IsTimeout
}
