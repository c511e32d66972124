// Command install installs the servers and clients that the tests use: those that its arguments name, or all
// that `make test` needs. What is there already is left alone.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"atcr.io/test/components/toolbox"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	names := os.Args[1:]
	if len(names) == 0 {
		names = toolbox.Default()
	}
	if err := toolbox.Install(ctx, os.Stderr, names); err != nil {
		fmt.Fprintln(os.Stderr, "components:", err)
		os.Exit(1)
	}
}
