package appview

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

// memoryLimit is where the garbage collector begins to work harder: caches are bounded, so garbage is what
// grows.
const memoryLimit = 96 << 20

// Options are what a test or another program gives Run instead of what it would make itself.
type Options struct {
	Logger *slog.Logger
	// Listener replaces HTTPAddr.
	Listener net.Listener
	// Ready is called once requests are served.
	Ready func(*AppView)
}

// Run opens the AppView and serves until ctx ends, then gracefully stops. config was validated.
func Run(ctx context.Context, config Config, o Options) error {
	logger := o.Logger
	if logger == nil {
		logger = slog.Default()
	}
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	a, err := Open(ctx, config, logger, reg)
	if err != nil {
		return err
	}
	defer func() {
		if err := a.Close(); err != nil {
			logger.Error("close", "error", err)
		}
	}()
	endpoints, err := listen(ctx, config, o.Listener, a, logger, reg)
	if err != nil {
		return err
	}
	logger.Info("AppView is ready", "address", endpoints[0].Listener.Addr().String(), "url", config.BaseURL,
		"default_hold", config.DefaultHoldDID, "direct_uploads", config.DirectUploads)
	if o.Ready != nil {
		o.Ready(a)
	}
	return httpx.Serve(ctx, logger, config.Grace, endpoints...)
}

// LimitMemory sets the process's soft memory limit, unless GOMEMLIMIT already did. For a process that is
// an AppView and nothing else.
func LimitMemory() {
	if debug.SetMemoryLimit(-1) > 1<<50 {
		debug.SetMemoryLimit(memoryLimit)
	}
}

func listen(ctx context.Context, config Config, public net.Listener, a *AppView, logger *slog.Logger, reg *prometheus.Registry) ([]httpx.Endpoint, error) {
	var lc net.ListenConfig
	if public == nil {
		var err error
		if public, err = lc.Listen(ctx, "tcp", config.HTTPAddr); err != nil {
			return nil, fmt.Errorf("ATCR_HTTP_ADDR: %w", err)
		}
	}
	endpoints := []httpx.Endpoint{{Server: httpx.NewServer(a.Handler(), logger), Listener: public}}
	if config.DebugAddr == "" {
		return endpoints, nil
	}
	private, err := lc.Listen(ctx, "tcp", config.DebugAddr)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("ATCR_DEBUG_ADDR: %w", err), public.Close())
	}
	return append(endpoints, httpx.Endpoint{Server: httpx.NewServer(httpx.DebugHandler(reg), logger), Listener: private}), nil
}
