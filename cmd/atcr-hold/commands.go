package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"strings"

	"atcr.io/internal/daemon"
	"atcr.io/internal/hold"
)

// commands work on the hold that the settings name: on the running one through a socket in its database
// folder, else on its database.
var commands = []daemon.Sub[hold.Config]{
	remote("doctor", "", "look at the running hold from outside, and say what to do", nil, nil),
	remote("gc", "[--dry-run] [--unclaimed]", "delete blobs that no manifest has named for 48 hours", nil, func(f *flag.FlagSet) {
		f.Bool("dry-run", false, "only say what would be deleted, and why")
		f.Bool("unclaimed", false, "delete those as well of which nobody knows who uploaded them")
	}),
	remote("fsck", "", "make the blob index agree with the storage, and check the repo", nil, nil),
	remote("crew list", "", "list the members", nil, nil),
	remote("crew add", "DID [--permissions P] [--tier T]", "make somebody a member, or change what they may", []string{"member"}, crewFlags),
	remote("crew set", "DID [--permissions P] [--tier T]", "the same", []string{"member"}, crewFlags),
	remote("crew remove", "DID", "end a membership", []string{"member"}, nil),
	remote("captain transfer", "DID", "give the hold to another owner", []string{"member"}, nil),
	remote("block list", "", "list who and what is blocked", nil, nil),
	remote("block", "DID|DIGEST --reason TEXT", "serve somebody, or a blob, no more; callers are told why", []string{"subject"}, func(f *flag.FlagSet) {
		f.String("reason", "", "what callers are told")
	}),
	remote("unblock", "DID|DIGEST", "serve them again", []string{"subject"}, nil),
	remote("repo verify", "", "read every record and check what the repo's signature says of them", nil, nil),
	remote("repo export", "FILE", "write the repo into a CAR file", []string{"file"}, nil),
	remote("backup", "FILE", "write database and signing key into one file, while the hold runs", []string{"file"}, nil),
	{Name: "restore", Usage: "FILE", About: "make a hold of a backup, in empty folders", Run: restore},
	remote("request-crawl", "[RELAY]", "ask relays to read this hold", []string{"relay"}, nil),
}

func crewFlags(f *flag.FlagSet) {
	f.String("permissions", "blob:read,blob:write", "comma-separated: blob:read, blob:write, crew:admin; or none, which refuses them")
	f.String("tier", "", "quota tier, of HOLD_QUOTAS")
}

// tasksOf are the hold's names where the command line has others.
var tasksOf = map[string]string{"crew add": "crew set"}

// remote is a command that the hold carries out. arguments are the names of its parameters in their order.
func remote(name, usage, about string, arguments []string, flags func(*flag.FlagSet)) daemon.Sub[hold.Config] {
	return daemon.Sub[hold.Config]{Name: name, Usage: usage, About: about, Run: func(ctx context.Context, c hold.Config, logger *slog.Logger, args []string, stdout io.Writer) error {
		set := flag.NewFlagSet("atcr-hold "+name, flag.ContinueOnError)
		set.SetOutput(stdout)
		asJSON := set.Bool("json", false, "print lines of JSON")
		if flags != nil {
			flags(set)
		}
		parameters := map[string]string{}
		for rest := args; ; {
			if err := set.Parse(rest); err != nil {
				return err
			}
			if rest = set.Args(); len(rest) == 0 {
				break
			}
			if len(parameters) == len(arguments) {
				return fmt.Errorf("unknown argument %q; usage: atcr-hold %s %s", rest[0], name, usage)
			}
			parameters[arguments[len(parameters)]] = rest[0]
			rest = rest[1:]
		}
		if len(parameters) < len(arguments) && !strings.HasPrefix(usage, "[") {
			return fmt.Errorf("usage: atcr-hold %s %s", name, usage)
		}
		if path, ok := parameters["file"]; ok { // the hold has another working directory
			absolute, err := filepath.Abs(path)
			if err != nil {
				return err
			}
			parameters["file"] = absolute
		}
		set.VisitAll(func(f *flag.Flag) {
			if f.Name != "json" && f.Value.String() != "" && f.Value.String() != "false" {
				parameters[f.Name] = f.Value.String()
			}
		})
		task := name
		if other, ok := tasksOf[name]; ok {
			task = other
		}
		return hold.Command(ctx, c, logger, task, parameters, printer(stdout, *asJSON))
	}}
}

func printer(w io.Writer, asJSON bool) func(hold.Line) {
	encoder := json.NewEncoder(w)
	return func(l hold.Line) {
		switch {
		case asJSON && l.Data != nil:
			_ = encoder.Encode(l.Data)
		case !asJSON && l.Text != "":
			_, _ = fmt.Fprintln(w, l.Text)
		}
	}
}

// restore unpacks a backup, and makes the hold ready to be started.
func restore(ctx context.Context, c hold.Config, logger *slog.Logger, args []string, stdout io.Writer) error {
	if len(args) != 1 || strings.HasPrefix(args[0], "-") {
		return errors.New("usage: atcr-hold restore FILE")
	}
	if err := hold.Restore(c, args[0]); err != nil {
		return err
	}
	return hold.Command(ctx, c, logger, "announce", nil, printer(stdout, false))
}
