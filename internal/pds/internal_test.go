package pds

import (
	"context"
	"runtime"
)

// AwaitWaiting returns once n callers of Apply wait for a commit.
func (r *Repo) AwaitWaiting(n int) {
	for {
		r.mu.Lock()
		waiting := len(r.waiting)
		r.mu.Unlock()
		if waiting >= n {
			return
		}
		runtime.Gosched()
	}
}

// RingBytes is how much memory the newest events take.
func (h *Host) RingBytes() (n int) {
	h.events.mu.Lock()
	defer h.events.mu.Unlock()
	for _, e := range h.events.ring {
		n += len(e.Frame)
	}
	return n
}

// PageBytes is what a subscriber at cursor is given at once.
func (h *Host) PageBytes(ctx context.Context, cursor int64) (n int, err error) {
	page, _, err := h.events.after(ctx, cursor)
	for _, e := range page {
		n += len(e.Frame)
	}
	return n, err
}

// encode is that of a host that knows no Lexicons.
func encode(w Write) (encoded, error) { return (&Host{}).encode(w) }
