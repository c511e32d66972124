package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"

	"atcr.io/internal/appview"
	"atcr.io/internal/daemon"
)

const subject = "DID|HANDLE|DID/REPOSITORY|DIGEST"

// commands work on the database of the settings, beside the processes that run on it.
var commands = []daemon.Sub[appview.Config]{
	blocking("block list", "", "list what is blocked, and why", 0, func(_ context.Context, b *appview.Blocking, _, _ string) ([]appview.Block, string, error) {
		return b.List(), "", nil
	}),
	blocking("block", subject+" --reason TEXT", "serve somebody, a repository or a digest no more; callers are told why", 1, func(ctx context.Context, b *appview.Blocking, subject, reason string) ([]appview.Block, string, error) {
		one, err := b.Add(ctx, subject, reason)
		return []appview.Block{one}, "is blocked", err
	}),
	blocking("unblock", subject, "serve them again", 1, func(ctx context.Context, b *appview.Blocking, subject, _ string) ([]appview.Block, string, error) {
		one, err := b.Remove(ctx, subject)
		return []appview.Block{one}, "is served again", err
	}),
	{Name: "oauth-key rotate", About: "make a new OAuth key, beside those that sessions need; nobody is signed out", Run: appview.RotateOAuthKey},
	{
		Name: "reindex", About: "read all repos that ATCR_RELAY_URLS list, and those that are known, and make the index of them anew",
		Run: func(ctx context.Context, c appview.Config, logger *slog.Logger, args []string, stdout io.Writer) error {
			if len(args) > 0 {
				return errors.New("usage: atcr-appview reindex")
			}
			return appview.Reindex(ctx, c, logger, stdout)
		},
	},
}

// blocking is a command on the list of what is blocked, with so many arguments. What run returns is printed.
func blocking(name, usage, about string, arguments int, run func(ctx context.Context, b *appview.Blocking, subject, reason string) (told []appview.Block, what string, err error)) daemon.Sub[appview.Config] {
	return daemon.Sub[appview.Config]{Name: name, Usage: usage, About: about, Run: func(ctx context.Context, c appview.Config, logger *slog.Logger, args []string, stdout io.Writer) (err error) {
		set := flag.NewFlagSet("atcr-appview "+name, flag.ContinueOnError)
		set.SetOutput(stdout)
		asJSON, reason := set.Bool("json", false, "print lines of JSON"), new(string)
		if name == "block" {
			reason = set.String("reason", "", "what callers are told")
		}
		var given []string
		for rest := args; ; rest = rest[1:] {
			if err := set.Parse(rest); err != nil {
				return err
			}
			if rest = set.Args(); len(rest) == 0 {
				break
			}
			given = append(given, rest[0])
		}
		if len(given) != arguments {
			return fmt.Errorf("usage: atcr-appview %s %s", name, usage)
		}
		b, err := appview.OpenBlocking(ctx, c, logger)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, b.Close()) }()
		told, what, err := run(ctx, b, append(given, "")[0], *reason)
		if err != nil {
			return err
		}
		return tell(stdout, told, what, *asJSON)
	}}
}

func tell(w io.Writer, told []appview.Block, what string, asJSON bool) (err error) {
	encoder := json.NewEncoder(w)
	for _, one := range told {
		switch {
		case asJSON:
			err = errors.Join(err, encoder.Encode(one))
		case what == "":
			_, printed := fmt.Fprintf(w, "%s  %s  %s\n", one.Subject, one.At.UTC().Format("2006-01-02"), one.Reason)
			err = errors.Join(err, printed)
		default:
			_, printed := fmt.Fprintf(w, "%s %s: %s\n", one.Subject, what, one.Reason)
			err = errors.Join(err, printed)
		}
	}
	return err
}
