package hold

import (
	"context"
	"time"
)

// startBackground starts what a hold does by itself. It ends with Close.
func (h *Hold) startBackground(ctx context.Context) {
	ctx, h.stop = context.WithCancel(context.WithoutCancel(ctx))
	h.posts.ctx, h.posts.places = ctx, make(chan struct{}, maxPosting)
	h.posts.making.Go(func() {
		if err := h.resumePosts(ctx); err != nil && ctx.Err() == nil {
			h.log.Error("make posts that were under way", "error", err)
		}
	})
	for _, task := range []struct {
		what  string
		every time.Duration
		run   func(context.Context) error
	}{
		{"prune events", 10 * time.Minute, h.host.Prune},
		{"publish statistics", statsEvery, h.publishStats},
		{"remove idle members", time.Hour, h.removeIdle},
		{"ask relays", crawlLook, h.followRelays},
		{"tell the directory", time.Minute, h.settleIdentity},
		{"collect blobs", h.config.CollectEvery, h.collectUnnamed},
	} {
		if task.every > 0 {
			h.background.Go(func() { h.repeat(ctx, task.what, task.every, task.run) })
		}
	}
}

func (h *Hold) repeat(ctx context.Context, what string, every time.Duration, run func(context.Context) error) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if err := run(ctx); err != nil && ctx.Err() == nil {
			h.log.Error(what, "error", err)
		}
	}
}
