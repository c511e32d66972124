// Command atcr-hold is blob storage for container images that anyone can run: an atproto account of its
// own, whose repo says who may read and write.
package main

import (
	"context"
	"log/slog"

	"atcr.io/internal/daemon"
	"atcr.io/internal/hold"
)

var command = daemon.Command[hold.Config]{
	Name:   "atcr-hold",
	About:  "atcr-hold stores container image blobs, on S3 or in a folder, for you, your team or everybody.",
	Prefix: hold.Prefix,
	Try: `Try it on this machine, with nothing else installed:
  HOLD_PUBLIC_URL=http://127.0.0.1:8080 HOLD_OWNER=did:plc:your-test-did HOLD_PUBLIC=true \
  HOLD_ALLOW_ALL_CREW=true STORAGE_DRIVER=filesystem \
  HOLD_DATABASE_DIR=$(mktemp -d) STORAGE_ROOT_DIR=$(mktemp -d) atcr-hold`,
	Subs:     commands,
	LogLevel: func(c hold.Config) string { return c.LogLevel },
	Serve: func(ctx context.Context, c hold.Config, logger *slog.Logger) error {
		return hold.Run(ctx, c, hold.Options{Logger: logger})
	},
}

func main() { command.Main() }
