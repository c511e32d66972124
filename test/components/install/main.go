// Command install installs the servers and clients that the tests use: those that its arguments name, or all
// that `make test` needs. What is there already is left alone. `install --path NAME` prints where one lies, and
// `install --clients` and `install --bench` name those that `make test-clients` and `make bench` need.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"atcr.io/test/components/toolbox"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "components:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) == 2 && args[0] == "--path" {
		path, err := toolbox.Path(args[1])
		if err == nil {
			fmt.Println(path)
		}
		return err
	}
	if len(args) == 1 && args[0] == "--clients" {
		fmt.Println(strings.Join(append(toolbox.Clients(), "dockerd", "skopeo", "crane", "regctl", "registry"), " "))
		return nil
	}
	if len(args) == 1 && args[0] == "--bench" {
		fmt.Println(strings.Join(toolbox.Bench(), " "))
		return nil
	}
	if len(args) == 0 {
		args = toolbox.Default()
	}
	return toolbox.Install(ctx, os.Stderr, args)
}
