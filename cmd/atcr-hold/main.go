// Command atcr-hold is blob storage for container images that anyone can run: an atproto account of its
// own, whose repo says who may read and write.
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

	"atcr.io/internal/envconf"
	"atcr.io/internal/hold"
)

const usage = `atcr-hold stores container image blobs, on S3 or in a folder, for you, your team or everybody.

Usage:
  atcr-hold [serve]              run the hold
  atcr-hold config               print the settings in effect, secrets hidden
  atcr-hold config --env-example print an example environment file
  atcr-hold config --markdown    print the manual of the settings
  atcr-hold --help               print this

Try it on this machine, with nothing else installed:
  HOLD_PUBLIC_URL=http://127.0.0.1:8080 HOLD_OWNER=did:plc:your-test-did HOLD_PUBLIC=true \
  HOLD_ALLOW_ALL_CREW=true STORAGE_DRIVER=filesystem \
  HOLD_DATABASE_DIR=$(mktemp -d) STORAGE_ROOT_DIR=$(mktemp -d) atcr-hold

Settings come from the environment. Each may also come from a file that NAME_FILE names.

`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	go func() {
		<-ctx.Done()
		stop() // from here on a second signal ends the process at once
	}()
	if err := run(ctx, os.Args[1:], os.Environ(), os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "atcr-hold:", err)
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
		_, err := io.WriteString(stdout, usage+envconf.Usage(hold.Config{}))
		return err
	case "config":
		if len(args) == 2 && args[1] == "--env-example" {
			_, err := io.WriteString(stdout, envconf.Example(hold.Config{}))
			return err
		}
		if len(args) == 2 && args[1] == "--markdown" {
			_, err := io.WriteString(stdout, envconf.Markdown(hold.Config{}))
			return err
		}
	case "serve":
	default:
		return fmt.Errorf("unknown command %q; atcr-hold --help lists them", command)
	}
	if len(args) > 1 {
		return fmt.Errorf("unknown argument %q; atcr-hold --help says what there is", args[1])
	}
	var config hold.Config
	if err := envconf.Load(environ, hold.Prefix, &config); err != nil {
		return fmt.Errorf("the settings have problems:\n%w", err)
	}
	if command == "config" {
		_, err := io.WriteString(stdout, envconf.Effective(config))
		return err
	}
	var level slog.Level
	if err := level.UnmarshalText([]byte(config.LogLevel)); err != nil {
		return errors.New("HOLD_LOG_LEVEL: " + err.Error())
	}
	hold.LimitMemory()
	return hold.Run(ctx, config, hold.Options{Logger: slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: level}))})
}
