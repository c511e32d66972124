// Package daemon is what our daemons have in common: the command line, checks of settings that each has,
// listeners, and the way from a signal to the end.
//
// It owns how a daemon starts and stops, and refuses to own what it does.
package daemon

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"

	"atcr.io/internal/envconf"
)

// memoryLimit is where the garbage collector begins to work harder: buffers and caches are bounded, so
// garbage is what grows.
const memoryLimit = 96 << 20

// Command is a daemon's command line: `serve` (the default), `config` and help. C is its Config, a tagged
// struct whose pointer may be an envconf.Validator.
type Command[C any] struct {
	Name   string
	About  string // one sentence for the top of the help, and an example for its end
	Try    string
	Prefix string // of the settings that are its own
	Subs   []Sub[C]
	// LogLevel is the setting of that name: debug, info, warn or error.
	LogLevel func(C) string
	// Serve runs until ctx ends.
	Serve func(ctx context.Context, config C, logger *slog.Logger) error
}

// Sub is a command beside serve and config. Its Name may have two words.
type Sub[C any] struct {
	Name, Usage, About string
	// Run does it. What it prints is its result; what it logs goes to standard error.
	Run func(ctx context.Context, config C, logger *slog.Logger, args []string, stdout io.Writer) error
	// Elsewhere, where not nil, is asked first, and does it where the arguments say that it is about another
	// machine's daemon, without this one's settings.
	Elsewhere func(ctx context.Context, environ, args []string, stdout io.Writer) (done bool, err error)
}

// sub finds the command that args name, and its own arguments.
func (c Command[C]) sub(args []string) (*Sub[C], []string) {
	for i := range c.Subs {
		words := strings.Fields(c.Subs[i].Name)
		if len(args) >= len(words) && slices.Equal(args[:len(words)], words) {
			return &c.Subs[i], args[len(words):]
		}
	}
	return nil, nil
}

// limited says that the memory limit is ours, not the operator's.
var limited atomic.Bool

// Reserve adds to the memory limit what the daemon must keep, however much it is: else the garbage collector would
// work without end to make room that cannot be made. It counts from nothing each time.
func Reserve(bytes int64) {
	if limited.Load() {
		debug.SetMemoryLimit(memoryLimit + bytes)
	}
}

// Main runs the command of this process and ends it. The first SIGINT or SIGTERM ends gracefully, a second
// one at once.
func (c Command[C]) Main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	go func() {
		<-ctx.Done()
		stop() // from here on a second signal has its usual effect
	}()
	if debug.SetMemoryLimit(-1) > 1<<50 { // GOMEMLIMIT is not set
		limited.Store(true)
		debug.SetMemoryLimit(memoryLimit)
	}
	if err := c.Run(ctx, os.Args[1:], os.Environ(), os.Stdout, os.Stderr); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", c.Name, err)
		os.Exit(1)
	}
}

// Run is Main with everything that belongs to the process given.
func (c Command[C]) Run(ctx context.Context, args, environ []string, stdout, stderr io.Writer) error {
	sub, rest := c.sub(args)
	command := "serve"
	if len(args) > 0 {
		command, args = args[0], args[1:]
	}
	var config C
	manual := ""
	switch {
	case command == "-h" || command == "--help" || command == "help":
		manual = c.usage()
	case command == "config" && len(args) == 1 && args[0] == "--env-example":
		manual = envconf.Example(config)
	case command == "config" && len(args) == 1 && args[0] == "--markdown":
		manual = envconf.Markdown(config)
	case sub != nil:
	case command != "serve" && command != "config":
		return fmt.Errorf("unknown command %q; %s --help lists them", command, c.Name)
	case len(args) > 0:
		return fmt.Errorf("unknown argument %q; %s --help says what there is", args[0], c.Name)
	}
	if manual != "" {
		_, err := io.WriteString(stdout, manual)
		return err
	}
	if sub != nil && sub.Elsewhere != nil {
		if done, err := sub.Elsewhere(ctx, environ, rest, stdout); done {
			return withoutHelp(err)
		}
	}
	if err := envconf.Load(environ, c.Prefix, &config); err != nil {
		return fmt.Errorf("the settings have problems:\n%w", err)
	}
	if command == "config" {
		_, err := io.WriteString(stdout, envconf.Effective(config))
		return err
	}
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.LogLevel(config))); err != nil {
		return err
	}
	if sub != nil {
		level = max(level, slog.LevelWarn) // what is told is the result
	}
	logger := slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: level}))
	if sub != nil {
		return withoutHelp(sub.Run(ctx, config, logger, rest, stdout))
	}
	return c.Serve(ctx, config, logger)
}

// withoutHelp makes it no error that help was asked for.
func withoutHelp(err error) error {
	if errors.Is(err, flag.ErrHelp) {
		return nil
	}
	return err
}

func (c Command[C]) usage() string {
	var config C
	text := c.About + "\n\nUsage:\n"
	rows := [][2]string{
		{"[serve]", "run it"},
		{"config", "print the settings in effect, secrets hidden"},
		{"config --env-example", "print an example environment file"},
		{"config --markdown", "print the manual of the settings"},
	}
	for _, s := range c.Subs {
		rows = append(rows, [2]string{strings.TrimSpace(s.Name + " " + s.Usage), s.About})
	}
	for _, row := range append(rows, [2]string{"--help", "print this"}) {
		text += fmt.Sprintf("  %-56s %s\n", c.Name+" "+row[0], row[1])
	}
	if c.Try != "" {
		text += "\n" + c.Try + "\n"
	}
	return text + "\nSettings come from the environment. Each may also come from a file that NAME_FILE names.\n\n" + envconf.Usage(config)
}
