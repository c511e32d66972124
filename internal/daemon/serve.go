package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"atcr.io/internal/httpx"
)

// NewRegistry has the metrics of the process and the runtime.
func NewRegistry() *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}

// Server is what a daemon serves, and where.
type Server struct {
	Handler  http.Handler
	Listener net.Listener // nil: Address
	// QuickBelow is httpx.Endpoint's.
	QuickBelow []string
	// Address is what AddressSetting says; DebugAddress (metrics, profiles; "" for none) what DebugSetting says.
	Address, AddressSetting    string
	DebugAddress, DebugSetting string
	// Private are served beside, until the end.
	Private  []httpx.Endpoint
	Registry *prometheus.Registry
	Logger   *slog.Logger
	Grace    time.Duration
	// Stopping, where not nil, is called when the end begins: what keeps requests in flight may end them.
	Stopping func()
	// Ready is called with the public address once connections are taken.
	Ready func(address string)
}

// Serve listens and serves until ctx ends, then gives requests in flight their grace.
func (s Server) Serve(ctx context.Context) error {
	var lc net.ListenConfig
	public := s.Listener
	if public == nil {
		var err error
		if public, err = lc.Listen(ctx, "tcp", s.Address); err != nil {
			return fmt.Errorf("%s: %w", s.AddressSetting, err)
		}
	}
	server := httpx.NewServer(s.Handler, s.Logger)
	if s.Stopping != nil {
		server.RegisterOnShutdown(s.Stopping)
	}
	endpoints := []httpx.Endpoint{{Server: server, Listener: public, QuickBelow: s.QuickBelow}}
	if s.DebugAddress != "" {
		private, err := lc.Listen(ctx, "tcp", s.DebugAddress)
		if err != nil {
			return errors.Join(fmt.Errorf("%s: %w", s.DebugSetting, err), public.Close())
		}
		endpoints = append(endpoints, httpx.Endpoint{Server: httpx.NewServer(httpx.DebugHandler(s.Registry), s.Logger), Listener: private})
	}
	endpoints = append(endpoints, s.Private...)
	s.Ready(public.Addr().String())
	return httpx.Serve(ctx, s.Logger, s.Grace, endpoints...)
}
