// Command atcr-appview is a container registry whose images are named by atproto identities, described in
// their owners' repos, and stored in holds that their owners chose.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"atcr.io/internal/appview"
	"atcr.io/internal/envconf"
)

const usage = `atcr-appview is the registry that docker and other clients talk to.

Usage:
  atcr-appview [serve]              run the AppView
  atcr-appview config               print the settings in effect, secrets hidden
  atcr-appview config --env-example print an example environment file
  atcr-appview config --markdown    print the manual of the settings
  atcr-appview --help               print this

Settings come from the environment. Each may also come from a file that NAME_FILE names.

`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	go func() {
		<-ctx.Done()
		stop() // from here on a second signal ends the process at once
	}()
	if err := run(ctx, os.Args[1:], os.Environ(), os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "atcr-appview:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args, environ []string, stdout, stderr io.Writer) error {
	command := "serve"
	if len(args) > 0 {
		command = args[0]
	}
	switch command {
	case "-h", "--help", "help":
		_, err := io.WriteString(stdout, usage+envconf.Usage(appview.Config{}))
		return err
	case "config":
		if len(args) == 2 && args[1] == "--env-example" {
			_, err := io.WriteString(stdout, envconf.Example(appview.Config{}))
			return err
		}
		if len(args) == 2 && args[1] == "--markdown" {
			_, err := io.WriteString(stdout, envconf.Markdown(appview.Config{}))
			return err
		}
	case "serve":
	default:
		return fmt.Errorf("unknown command %q; atcr-appview --help lists them", command)
	}
	if len(args) > 1 {
		return fmt.Errorf("unknown argument %q; atcr-appview --help says what there is", args[1])
	}
	var config appview.Config
	if err := envconf.Load(environ, appview.Prefix, &config); err != nil {
		return fmt.Errorf("the settings have problems:\n%w", err)
	}
	if command == "config" {
		_, err := io.WriteString(stdout, envconf.Effective(config))
		return err
	}
	var level slog.Level
	if err := level.UnmarshalText([]byte(config.LogLevel)); err != nil {
		return errors.New("ATCR_LOG_LEVEL: " + err.Error())
	}
	appview.LimitMemory()
	return appview.Run(ctx, config, appview.Options{Logger: slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: level}))})
}
