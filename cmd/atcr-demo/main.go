// Command atcr-demo shows the whole of ATCR on one machine: a local atproto network, two holds and an
// AppView in one process, with images pushed and pulled by a client that the project did not write.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
)

const usage = `atcr-demo starts a container registry with everything behind it on this machine, and uses it.

Usage:
  atcr-demo              start, push and pull images, then keep running until Ctrl-C
  atcr-demo --once       stop after the round trips: status 0 if all went well, 1 if not
  atcr-demo --help       print this

Options:
  --port N     port of the registry (the AppView) on 127.0.0.1; default 0: any free one
  --data DIR   keep the data in DIR, and go on with it next time: same accounts, images and ports.
               Default: a temporary folder, removed at the end
  --json       print one line of JSON on standard output once the round trips are done, all else on
               standard error:
               {"appview","hold","holdDid","pds","plc","accounts":[{"handle","did","password"}]}
  --log LEVEL  of the servers' logs, on standard error: debug, info, warn or error (default)

What it starts, each on a port of its own:
  a did:plc directory and a PDS   where alice.test and bob.test have their accounts
  a public hold                   where everybody's blobs go who has not chosen another
  a private hold                  bob's own; the profile record in his repo names it
  an AppView                      the registry that docker and the others talk to

What it does then: alice pushes an image (this very program, FROM scratch), and it is pulled back without an
account; bob pushes one, which lands in his own hold and which nobody else can pull. Every digest is
verified. At the end it prints the docker lines to type next; any registry client will do.
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	go func() {
		<-ctx.Done()
		stop() // from here on a second signal ends the process at once
	}()
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "atcr-demo:", err)
		os.Exit(1)
	}
}

// options are the command line.
type options struct {
	once, json, hello bool
	data, log         string
	port              int
}

func parseOptions(args []string) (*options, error) {
	var o options
	flags := flag.NewFlagSet("atcr-demo", flag.ContinueOnError)
	flags.SetOutput(io.Discard) // errors are returned, help is ours
	flags.BoolVar(&o.once, "once", false, "")
	flags.BoolVar(&o.json, "json", false, "")
	flags.BoolVar(&o.hello, "hello", false, "") // what the pushed image runs
	flags.StringVar(&o.data, "data", "", "")
	flags.StringVar(&o.log, "log", "error", "")
	flags.IntVar(&o.port, "port", 0, "")
	if err := flags.Parse(args); err != nil {
		return nil, err
	}
	if flags.NArg() > 0 {
		return nil, fmt.Errorf("unknown argument %q; atcr-demo --help says what there is", flags.Arg(0))
	}
	if o.port < 0 || o.port > 65535 {
		return nil, fmt.Errorf("--port %d: a port is a number from 0 (any free one) to 65535", o.port)
	}
	return &o, nil
}

// run is the whole program. It returns nil where ctx ended it after the round trips went well.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	o, err := parseOptions(args)
	if errors.Is(err, flag.ErrHelp) {
		_, err := io.WriteString(stdout, usage)
		return err
	}
	if err != nil {
		return err
	}
	if o.hello {
		_, err := fmt.Fprintln(stdout, "Hello from a container whose image is named by an atproto identity and stored where its owner chose.")
		return err
	}
	return demonstrate(ctx, o, stdout, stderr)
}
