package httpx

import (
	"context"
	"sync"
	"time"
)

// quickContext is the context of a request that a quickConn answers. As net/http's it ends with the answer, or before
// that with the client. Whether the client is there is looked at only from when somebody wants to know: what net/http
// spends on that for each request is more than a redirect costs.
type quickContext struct {
	context.Context // for its values
	conn            *quickConn

	mu      sync.Mutex
	asked   context.Context // nil until somebody asked
	cancel  context.CancelFunc
	watched chan struct{} // closed when nobody reads from the connection any more
	ended   bool
}

// Done begins to watch the connection.
func (x *quickContext) Done() <-chan struct{} {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.asked != nil {
		return x.asked.Done()
	}
	x.asked, x.cancel = context.WithCancel(x.Context)
	switch {
	case x.ended:
		x.cancel()
	case x.conn.early == 0: // else a client has asked for more, and is taken to wait for it: as net/http does
		x.watched = make(chan struct{})
		x.conn.readFrom = time.Time{}
		_ = x.conn.conn.SetReadDeadline(time.Time{})
		go x.watch()
	}
	return x.asked.Done()
}

// watch waits for the next request, or the end of the connection.
func (x *quickContext) watch() {
	defer close(x.watched)
	n, err := x.conn.conn.Read(x.conn.buf)
	x.conn.early = n
	if err != nil {
		x.cancel()
	}
}

// end is called once the request was answered.
func (x *quickContext) end() {
	x.mu.Lock()
	x.ended = true
	watched, cancel := x.watched, x.cancel
	x.mu.Unlock()
	if watched != nil {
		_ = x.conn.conn.SetReadDeadline(time.Unix(1, 0)) // long ago
		<-watched
	}
	if cancel != nil {
		cancel()
	}
}

func (x *quickContext) Err() error {
	x.mu.Lock()
	defer x.mu.Unlock()
	switch {
	case x.asked != nil:
		return x.asked.Err()
	case x.ended:
		return context.Canceled
	}
	return x.Context.Err()
}

// Value is also where package context looks for what cancels children.
func (x *quickContext) Value(key any) any {
	x.mu.Lock()
	from := x.Context
	if x.asked != nil {
		from = x.asked
	}
	x.mu.Unlock()
	return from.Value(key)
}
