// Command atcr-appview is the registry that container clients talk to: it writes manifests and tags into
// people's own PDSes and sends clients to holds for bytes.
package main

import (
	"context"
	"log/slog"

	"atcr.io/internal/appview"
	"atcr.io/internal/daemon"
)

var command = daemon.Command[appview.Config]{
	Name:     "atcr-appview",
	About:    "atcr-appview is the registry that docker and other clients talk to.",
	Prefix:   appview.Prefix,
	Subs:     commands,
	LogLevel: func(c appview.Config) string { return c.LogLevel },
	Serve: func(ctx context.Context, c appview.Config, logger *slog.Logger) error {
		return appview.Run(ctx, c, appview.Options{Logger: logger})
	},
}

func main() { command.Main() }
