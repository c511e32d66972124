package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"atcr.io/internal/daemon"
	"atcr.io/internal/hold"
)

// commands work on the hold that the settings name: on the running one through a socket in its database
// folder, else on its database.
var commands = []daemon.Sub[hold.Config]{
	remote("doctor", "[--appview HOST]", "look at the running hold from outside, and say what to do", nil, func(f *flag.FlagSet) {
		f.String("appview", "", "an AppView's host name, which the hold's and the storage's must not be under")
	}),
	remote("gc", "[--dry-run] [--unclaimed]", "delete blobs that no manifest has named for 48 hours", nil, func(f *flag.FlagSet) {
		f.Bool("dry-run", false, "only say what would be deleted, and why")
		f.Bool("unclaimed", false, "delete those as well of which nobody knows who uploaded them")
	}),
	remote("fsck", "", "make the blob index agree with the storage, and check the repo", nil, nil),
	elsewhere(remote("crew list", "[--hold H]", "list the members, here or at a hold elsewhere", nil, elsewhereFlags)),
	elsewhere(remote("crew add", "DID [--permissions P] [--tier T] [--hold H --as HANDLE]", "make somebody a member", []string{"member"}, addFlags)),
	elsewhere(remote("crew set", "DID [--permissions P] [--tier T] [--hold H --as HANDLE]", "change what a member may, or their tier", []string{"member"}, setFlags)),
	elsewhere(remote("crew remove", "DID [--hold H --as HANDLE]", "end a membership", []string{"member"}, elsewhereFlags)),
	remote("captain transfer", "DID", "give the hold to another owner", []string{"member"}, nil),
	remote("block list", "", "list who and what is blocked", nil, nil),
	remote("block", "DID|DIGEST --reason TEXT", "serve somebody, or a blob, no more; callers are told why", []string{"subject"}, func(f *flag.FlagSet) {
		f.String("reason", "", "what callers are told")
	}),
	remote("unblock", "DID|DIGEST", "serve them again", []string{"subject"}, nil),
	remote("repo verify", "", "read every record and check what the repo's signature says of them", nil, nil),
	remote("repo export", "[FILE]", "write the repo as a CAR, to standard output or into a file", []string{"file"}, nil),
	{Name: "repo import", Usage: "FILE [--key DID:KEY]", About: "make the repo what a CAR has (- is standard input); the hold must be stopped", Run: importRepo},
	remote("repo rebuild", "[--new-key]", "make a new head of the records that are whole; the hold must be stopped", nil, func(f *flag.FlagSet) {
		f.Bool("new-key", false, "make a signing key where it is lost for good")
	}),
	remote("key show", "", "show the DID and its public keys", nil, nil),
	remote("key rotate", "", "give the hold a new signing key, and tell the network", nil, nil),
	remote("key export-rotation", "[FILE]", "write the rotation key of a did:plc out, to be kept elsewhere", []string{"file"}, nil),
	remote("backup", "FILE [--with-rotation-key]", "write database and signing key into one file, while the hold runs", []string{"file"}, func(f *flag.FlagSet) {
		f.Bool("with-rotation-key", false, "the key that may change the hold's did:plc as well")
	}),
	{Name: "restore", Usage: "FILE", About: "make a hold of a backup, in empty folders", Run: restore},
	remote("request-crawl", "[RELAY]", "ask relays to read this hold", []string{"relay"}, nil),
}

func addFlags(f *flag.FlagSet) { crewFlags(f, "blob:read,blob:write", "") }

func setFlags(f *flag.FlagSet) { crewFlags(f, "", "; without it a member keeps theirs") }

func crewFlags(f *flag.FlagSet, permissions, absent string) {
	f.String("permissions", permissions, "comma-separated: blob:read, blob:write, crew:admin; or none, which refuses them"+absent)
	f.String("tier", "", "quota tier, of HOLD_QUOTAS; without it a member keeps theirs, and an empty one takes it away")
	elsewhereFlags(f)
}

// elsewhereFlags are for a hold on another machine: settings of a hold are then not needed.
func elsewhereFlags(f *flag.FlagSet) {
	f.String("hold", "", "a hold elsewhere: its DID, host name or URL")
	f.String("as", "", "with --hold: your handle or DID; you own the hold or have crew:admin")
	f.String("password-file", "", "with --hold: a file with your app password (- is standard input); default: the variable APP_PASSWORD")
}

// tasksOf are the hold's names where the command line has others.
var tasksOf = map[string]string{"crew add": "crew set"}

func taskOf(name string) string {
	if task, ok := tasksOf[name]; ok {
		return task
	}
	return name
}

// remote is a command that the hold carries out. arguments are the names of its parameters in their order.
func remote(name, usage, about string, arguments []string, flags func(*flag.FlagSet)) daemon.Sub[hold.Config] {
	return daemon.Sub[hold.Config]{Name: name, Usage: usage, About: about, Run: func(ctx context.Context, c hold.Config, logger *slog.Logger, args []string, stdout io.Writer) error {
		parameters, asJSON, err := parse(name, usage, about, arguments, flags, args, stdout)
		if err != nil {
			return err
		}
		if path, ok := parameters["file"]; ok { // the hold has another working directory
			if parameters["file"], err = filepath.Abs(path); err != nil {
				return err
			}
		}
		p := &printing{w: stdout, text: stdout, asJSON: asJSON}
		if name == "repo export" && parameters["file"] == "" { // what it says must not get into the CAR
			p.text, parameters["notes"] = os.Stderr, "true"
		}
		return p.command(func(tell func(hold.Line)) error {
			return hold.Command(ctx, c, logger, taskOf(name), parameters, tell)
		})
	}}
}

// elsewhere lets a command work on a hold that is reached over the network too, with --hold.
func elsewhere(command daemon.Sub[hold.Config]) daemon.Sub[hold.Config] {
	arguments, flags := []string{"member"}, setFlags
	switch command.Name {
	case "crew add":
		flags = addFlags
	case "crew list":
		arguments, flags = nil, elsewhereFlags
	case "crew remove":
		flags = elsewhereFlags
	}
	command.Elsewhere = func(ctx context.Context, environ, args []string, stdout io.Writer) (bool, error) {
		parameters, asJSON, err := parse(command.Name, command.Usage, command.About, arguments, flags, args, stdout)
		if err != nil || parameters["hold"] == "" {
			return err != nil, err
		}
		r := hold.Remote{Hold: parameters["hold"], Handle: parameters["as"], PLCURL: "https://plc.directory"}
		for _, one := range environ {
			switch name, value, _ := strings.Cut(one, "="); name {
			case "APP_PASSWORD":
				r.Password = value
			case "HOLD_PLC_URL":
				r.PLCURL = value
			case "TEST_MODE":
				r.TestMode = value == "true"
			}
		}
		if path := parameters["password-file"]; path != "" {
			if r.Password, err = readPassword(path); err != nil {
				return true, err
			}
		}
		p := &printing{w: stdout, text: stdout, asJSON: asJSON}
		return true, p.command(func(tell func(hold.Line)) error {
			return r.Crew(ctx, taskOf(command.Name), parameters, tell)
		})
	}
	return command
}

func readPassword(path string) (string, error) {
	f := os.Stdin
	if path != "-" {
		var err error
		if f, err = os.Open(path); err != nil {
			return "", err
		}
		defer func() { _ = f.Close() }()
	}
	raw, err := io.ReadAll(io.LimitReader(f, 4096))
	return strings.TrimSpace(string(raw)), err
}

// parse reads a command's arguments and flags, in any order.
func parse(name, usage, about string, arguments []string, flags func(*flag.FlagSet), args []string, stdout io.Writer) (parameters map[string]string, asJSON bool, err error) {
	set := flag.NewFlagSet("atcr-hold "+name, flag.ContinueOnError)
	set.SetOutput(stdout)
	set.Usage = func() {
		_, _ = fmt.Fprintf(stdout, "atcr-hold %s\n  %s\n\n", strings.TrimSpace(name+" "+usage), about)
		set.PrintDefaults()
	}
	printJSON := set.Bool("json", false, "print lines of JSON")
	if flags != nil {
		flags(set)
	}
	parameters = map[string]string{}
	for rest := args; ; {
		if err := set.Parse(rest); err != nil {
			return nil, false, err
		}
		if rest = set.Args(); len(rest) == 0 {
			break
		}
		if len(parameters) == len(arguments) {
			return nil, false, fmt.Errorf("unknown argument %q; usage: atcr-hold %s %s", rest[0], name, usage)
		}
		parameters[arguments[len(parameters)]] = rest[0]
		rest = rest[1:]
	}
	if len(parameters) < len(arguments) && !strings.HasPrefix(usage, "[") {
		return nil, false, fmt.Errorf("usage: atcr-hold %s %s", name, usage)
	}
	read := func(f *flag.Flag) {
		if v := f.Value.String(); f.Name != "json" && v != "false" {
			parameters[f.Name] = v
		}
	}
	set.VisitAll(func(f *flag.Flag) {
		if f.DefValue != "" {
			read(f)
		}
	})
	set.Visit(read) // given, and empty, is not the same as not given
	return parameters, *printJSON, nil
}

// printing is where a command's lines go. Its first error stays: a result that was cut is no result.
type printing struct {
	w      io.Writer
	text   io.Writer // for people; another where w takes data
	asJSON bool
	err    error
}

// command runs fn, which tells its lines.
func (p *printing) command(fn func(tell func(hold.Line)) error) error {
	return errors.Join(fn(p.print), p.err)
}

func (p *printing) print(l hold.Line) {
	var err error
	switch {
	case l.Bytes != nil:
		_, err = p.w.Write(l.Bytes)
	case p.asJSON && l.Data != nil:
		err = json.NewEncoder(p.w).Encode(l.Data)
	case !p.asJSON && l.Text != "":
		_, err = fmt.Fprintln(p.text, l.Text)
	}
	if p.err == nil && err != nil {
		p.err = fmt.Errorf("print: %w", err)
	}
}

// restore unpacks a backup, and makes the hold ready to be started.
func restore(ctx context.Context, c hold.Config, logger *slog.Logger, args []string, stdout io.Writer) error {
	parameters, asJSON, err := parse("restore", "FILE", "make a hold of a backup, in empty folders", []string{"file"}, nil, args, stdout)
	if err != nil {
		return err
	}
	if err := hold.Restore(c, parameters["file"]); err != nil {
		return err
	}
	p := &printing{w: stdout, text: stdout, asJSON: asJSON}
	return p.command(func(tell func(hold.Line)) error {
		return hold.Command(ctx, c, logger, "announce", nil, tell)
	})
}

// importRepo reads a CAR, from a file or standard input.
func importRepo(ctx context.Context, c hold.Config, logger *slog.Logger, args []string, stdout io.Writer) error {
	parameters, asJSON, err := parse("repo import", "FILE [--key DID:KEY]", "make the repo what a CAR has (- is standard input); the hold must be stopped", []string{"file"}, func(f *flag.FlagSet) {
		f.String("key", "", "a did:key that the CAR may have been signed with, beside the hold's own")
	}, args, stdout)
	if err != nil {
		return err
	}
	f := os.Stdin
	if path := parameters["file"]; path != "-" {
		if f, err = os.Open(path); err != nil {
			return err
		}
		defer func() { _ = f.Close() }()
	}
	p := &printing{w: stdout, text: stdout, asJSON: asJSON}
	return p.command(func(tell func(hold.Line)) error {
		return hold.Import(ctx, c, logger, f, parameters["key"], tell)
	})
}
