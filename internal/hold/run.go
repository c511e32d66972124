package hold

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime/debug"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"atcr.io/internal/httpx"
)

// memoryLimit is where the garbage collector begins to work harder: the part buffers and the caches are
// bounded, so garbage is what grows.
const memoryLimit = 96 << 20

// Options are what a test or another program gives Run instead of what it would make itself.
type Options struct {
	Logger *slog.Logger
	// Listener replaces ServerAddr.
	Listener net.Listener
	// Ready is called once requests are served.
	Ready func(*Hold)
}

// Run opens the hold and serves until ctx ends, then gracefully stops. config was validated.
func Run(ctx context.Context, config Config, o Options) error {
	logger := o.Logger
	if logger == nil {
		logger = slog.Default()
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	h, err := Open(ctx, config, logger, registry)
	if err != nil {
		return err
	}
	defer func() {
		if err := h.Close(); err != nil {
			logger.Error("close", "error", err)
		}
	}()
	endpoints, err := listen(ctx, config, o.Listener, h, logger, registry)
	if err != nil {
		return err
	}
	logger.Info("hold is ready", "did", h.did, "address", endpoints[0].Listener.Addr().String(), "url", config.PublicURL,
		"public", config.Public, "allow_all_crew", config.AllowAllCrew)
	if o.Ready != nil {
		o.Ready(h)
	}
	return httpx.Serve(ctx, logger, config.Grace, endpoints...)
}

// LimitMemory sets the process's soft memory limit, unless GOMEMLIMIT already did. For a process that is
// a hold and nothing else.
func LimitMemory() {
	if debug.SetMemoryLimit(-1) > 1<<50 {
		debug.SetMemoryLimit(memoryLimit)
	}
}

func listen(ctx context.Context, config Config, public net.Listener, h *Hold, logger *slog.Logger, registry *prometheus.Registry) ([]httpx.Endpoint, error) {
	var lc net.ListenConfig
	if public == nil {
		var err error
		if public, err = lc.Listen(ctx, "tcp", config.ServerAddr); err != nil {
			return nil, fmt.Errorf("HOLD_SERVER_ADDR: %w", err)
		}
	}
	endpoints := []httpx.Endpoint{{Server: httpx.NewServer(h.Handler(), logger), Listener: public}}
	if config.DebugAddr == "" {
		return endpoints, nil
	}
	private, err := lc.Listen(ctx, "tcp", config.DebugAddr)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("HOLD_DEBUG_ADDR: %w", err), public.Close())
	}
	return append(endpoints, httpx.Endpoint{Server: httpx.NewServer(httpx.DebugHandler(registry), logger), Listener: private}), nil
}
