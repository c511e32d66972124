package appview

import (
	"context"
	"log/slog"
	"net"

	"atcr.io/internal/daemon"
)

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
	registry := daemon.NewRegistry()
	a, err := Open(ctx, config, logger, registry)
	if err != nil {
		return err
	}
	defer func() {
		if err := a.Close(); err != nil {
			logger.Error("close", "error", err)
		}
	}()
	quick := []string{"/v2/", "/auth/token"} // a proxy sends both on one connection
	return daemon.Server{
		Handler: a.Handler(), Listener: o.Listener, Address: config.HTTPAddr, AddressSetting: "ATCR_HTTP_ADDR", QuickBelow: quick,
		DebugAddress: config.DebugAddr, DebugSetting: "ATCR_DEBUG_ADDR", Registry: registry, Logger: logger, Grace: config.Grace,
		Ready: func(address string) {
			logger.Info("AppView is ready", "address", address, "url", config.BaseURL,
				"default_hold", config.DefaultHoldDID, "direct_uploads", config.DirectUploads)
			if o.Ready != nil {
				o.Ready(a)
			}
		},
	}.Serve(ctx)
}
