package pds

import (
	"net/http"
	"sync"
	"time"

	"atcr.io/internal/xrpc"
)

// subscribers counts who follows the firehose, in all and by client.
type subscribers struct {
	mu  sync.Mutex
	all int
	by  map[string]int
}

// enter takes a place, which leave gives back. Errors: *xrpc.Error 429.
func (h *Host) enter(r *http.Request) (leave func(), err error) {
	client := ""
	if h.config.SubscriberKey != nil {
		client = h.config.SubscriberKey(r)
	}
	s := &h.subscribers
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.all >= h.config.MaxSubscribers:
		err = tooManySubscribers("too many subscribers")
	case client != "" && s.by[client] >= h.config.MaxSubscribersEach:
		err = tooManySubscribers("too many subscribers from this address")
	}
	if err != nil {
		return nil, err
	}
	s.all++
	if client != "" {
		if s.by == nil {
			s.by = map[string]int{}
		}
		s.by[client]++
	}
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.all--
		if client == "" {
			return
		}
		if s.by[client]--; s.by[client] == 0 {
			delete(s.by, client)
		}
	}, nil
}

func tooManySubscribers(message string) error {
	return &xrpc.Error{Status: http.StatusTooManyRequests, Name: "RateLimitExceeded", Message: message, RetryAfter: time.Minute}
}

// Subscribers is how many follow the firehose now.
func (h *Host) Subscribers() int64 {
	h.subscribers.mu.Lock()
	defer h.subscribers.mu.Unlock()
	return int64(h.subscribers.all)
}
