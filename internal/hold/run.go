package hold

import (
	"context"
	"log/slog"
	"net"

	"atcr.io/internal/daemon"
	"atcr.io/internal/httpx"
)

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
	registry := daemon.NewRegistry()
	h, err := Open(ctx, config, logger, registry)
	if err != nil {
		return err
	}
	defer func() {
		if err := h.Close(); err != nil {
			logger.Error("close", "error", err)
		}
	}()
	var private []httpx.Endpoint
	if l := h.listenAdmin(ctx); l != nil {
		private = append(private, httpx.Endpoint{Server: httpx.NewServer(h.adminHandler(), logger), Listener: l})
	}
	var quick []string
	if h.presigns { // what the hold sends itself is net/http's, which has the kernel copy it
		quick = []string{"/xrpc/" + getBlobNSID + "?"}
	}
	return daemon.Server{
		Private: private, QuickBelow: quick,
		Handler: h.Handler(), Listener: o.Listener, Address: config.ServerAddr, AddressSetting: "HOLD_SERVER_ADDR",
		DebugAddress: config.DebugAddr, DebugSetting: "HOLD_DEBUG_ADDR", Registry: registry, Logger: logger, Grace: config.Grace, Stopping: h.uploads.StopWaiting,
		Ready: func(address string) {
			logger.Info("hold is ready", "did", h.did, "address", address, "url", config.PublicURL,
				"public", config.Public, "allow_all_crew", config.AllowAllCrew)
			if o.Ready != nil {
				o.Ready(h)
			}
		},
	}.Serve(ctx)
}
