// Command bench measures ATCR beside its peers in one run on one machine, and prints the figures as Markdown. The
// peers are the registries that can be had as Go modules and keep what they take (distribution 3 and 2, gitea), and
// the reference PDS; crane's in-memory registry is shown beside them. What it measures: layer pushes to a folder, peak
// memory under many of them, S3 requests, small pushes, manifest and blob reads, a thousand pulls at once, commits
// to a hold's repo, that repo beside the reference PDS, and a hold by itself.
//
// It needs bin/atcr-hold and bin/atcr-appview (make build) and components, which make bench installs.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"atcr.io/internal/devnet"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// bench is one run: where things are, what was started, and the report.
type bench struct {
	dir      string // data, removed at the end
	bin      string
	rounds   int
	out      io.Writer
	network  *devnet.Network
	alice    devnet.Account
	stoppers []func() error
}

type section struct {
	name string
	run  func(context.Context, *bench) error
}

var sections = []section{
	{"push", benchPush}, {"push-s3", benchPushS3}, {"memory", benchMemory}, {"s3", benchS3Requests}, {"small", benchSmall}, {"read", benchRead}, {"index", benchIndex}, {"commits", benchCommits},
	{"repo", benchRepo}, {"alone", benchAlone},
}

func run(ctx context.Context, args []string, out io.Writer) (err error) {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	only := flags.String("only", "", "comma-separated sections: push, push-s3, memory, s3, small, read, index, commits, repo, alone (default all)")
	rounds := flags.Int("rounds", 5, "rounds of each measurement; medians are printed")
	bin := flags.String("bin", "bin", "folder of atcr-hold and atcr-appview")
	plain := flags.String("plain", "", "be the plain server of the pushes, at address,folder")
	bare := flags.String("bare", "", "be the bare server of the reads, at address,file")
	socket := flags.String("socket", "", "be the socket of the reads, at address,")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *bare != "" {
		return serveBare(ctx, *bare)
	}
	if *socket != "" {
		return serveSocket(ctx, *socket)
	}
	if *plain != "" {
		return servePlain(ctx, *plain)
	}
	dir, err := os.MkdirTemp("", "atcr-bench-")
	if err != nil {
		return err
	}
	b := &bench{dir: dir, bin: *bin, rounds: *rounds, out: out}
	defer func() {
		for i := len(b.stoppers) - 1; i >= 0; i-- {
			err = errors.Join(err, b.stoppers[i]())
		}
		err = errors.Join(err, os.RemoveAll(dir))
	}()
	b.network, err = devnet.Start(ctx, devnet.Config{Dir: filepath.Join(dir, "devnet"), Accounts: []string{"alice.test"}})
	if err != nil {
		return err
	}
	b.stoppers = append(b.stoppers, b.network.Close)
	b.alice = b.network.Accounts[0]

	b.printf("# Benchmarks\n\n`make bench` prints this page anew: one run, each figure beside its peer.\n\n%s, %d cores, %s, %s/%s. All on the same machine, in the same run; medians of %d rounds.\n%s",
		time.Now().UTC().Format("2006-01-02"), runtime.NumCPU(), runtime.Version(), runtime.GOOS, runtime.GOARCH, b.rounds, aboutPeers)
	known := map[string]bool{}
	for _, s := range sections {
		known[s.name] = true
	}
	for name := range strings.SplitSeq(*only, ",") {
		if name != "" && !known[name] {
			return fmt.Errorf("no section %q", name)
		}
	}
	for _, s := range sections {
		if *only != "" && !strings.Contains(","+*only+",", ","+s.name+",") {
			continue
		}
		if err := s.run(ctx, b); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	return nil
}

func (b *bench) printf(format string, args ...any) { _, _ = fmt.Fprintf(b.out, format, args...) }

// benchCommits runs the repo host's own benchmarks, which print the plain inserts beside the commits.
func benchCommits(ctx context.Context, b *bench) error {
	b.printf("\n## Commits to a hold's repo\n\nsynchronous=FULL; plain: one insert a commit, same driver, same disk. CommitToFrame: from the write to its frame at a\nsubscriber, on a hold that does nothing else.\n\n```\n")
	for _, run := range [][]string{{"-bench", "Commit$", "-benchtime", "2s"}, {"-bench", "CommitToFrame", "-benchtime", "500x"}} {
		cmd := exec.CommandContext(ctx, "go", append(append([]string{"test", "-run", "^$"}, run...), "atcr.io/internal/pds")...)
		text, err := cmd.CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w\n%s", err, text)
		}
		b.printf("%s", text)
	}
	b.printf("```\n")
	return nil
}
