// Command docker-credential-atcr signs people in to ATCR registries for docker, podman, crane and others.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"atcr.io/internal/credhelper"
)

// version is set by the release: -ldflags "-X main.version=v1.2.3".
var version = "development"

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	p := credhelper.Program{Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Version: version}
	return p.Run(ctx, os.Args[1:])
}
