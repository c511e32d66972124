// Command fuzz runs every fuzz target of the module for a while, several at once: each in its own process, from one
// test binary a package. Only the project's packages and the parsers that they rely on are instrumented for
// coverage: a database driver that knows which of its lines ran costs minutes to build, and finds nothing.
//
// What a target finds is written below its package's testdata/fuzz, to be committed with what mends it.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"time"
)

// instrumented are patterns of the packages whose coverage leads the search.
var instrumented = []string{
	"atcr.io/...", "encoding/json", "encoding/base64", "net/url", "strconv", "mime", "github.com/bluesky-social/indigo/atproto/...",
	"github.com/ipld/go-car/...", "github.com/ipfs/go-cid", "github.com/multiformats/...", "github.com/whyrusleeping/cbor-gen",
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "fuzz:", err)
		os.Exit(1)
	}
}

// target is one Fuzz function in a built test binary.
type target struct{ pkg, dir, binary, name string }

func run(ctx context.Context, args []string, out io.Writer) (err error) {
	flags := flag.NewFlagSet("fuzz", flag.ContinueOnError)
	each := flags.Duration("time", time.Minute, "how long each target runs")
	parallel := flags.Int("parallel", runtime.NumCPU(), "targets at once")
	only := flags.String("run", "", "regular expression of targets, as in internal/oci.FuzzParse (default all)")
	if err := flags.Parse(args); err != nil {
		return err
	}
	match, err := regexp.Compile(*only)
	if err != nil {
		return err
	}
	tmp, err := os.MkdirTemp("", "atcr-fuzz-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	targets, err := build(ctx, tmp, match)
	if err != nil {
		return err
	}
	if len(targets) == 0 {
		return fmt.Errorf("no target matches %q", *only)
	}
	fmt.Fprintf(out, "%d targets, %s each, %d at once\n", len(targets), *each, *parallel)
	cache, err := os.UserCacheDir()
	if err != nil {
		return err
	}
	queue := make(chan target)
	var wg sync.WaitGroup
	var mu sync.Mutex
	for range *parallel {
		wg.Go(func() {
			for t := range queue {
				text, failed := t.fuzz(ctx, *each, filepath.Join(cache, "atcr-fuzz"))
				mu.Lock()
				fmt.Fprintf(out, "%s.%s: %s\n", t.pkg, t.name, text)
				if failed != nil {
					err = errors.Join(err, fmt.Errorf("%s.%s: %w", t.pkg, t.name, failed))
				}
				mu.Unlock()
			}
		})
	}
	for _, t := range targets {
		select {
		case queue <- t:
		case <-ctx.Done():
		}
	}
	close(queue)
	wg.Wait()
	return errors.Join(err, ctx.Err())
}

// build makes the test binaries of all packages that have targets, and lists those.
func build(ctx context.Context, dir string, match *regexp.Regexp) ([]target, error) {
	list, err := command(ctx, "go", "list", "-f", `{{.ImportPath}} {{.Dir}} {{range .TestGoFiles}}{{$.Dir}}/{{.}} {{end}}{{range .XTestGoFiles}}{{$.Dir}}/{{.}} {{end}}`, "./...")
	if err != nil {
		return nil, err
	}
	declared := regexp.MustCompile(`(?m)^func (Fuzz\w+)\(`)
	var targets []target
	for line := range strings.Lines(list) {
		fields := strings.Fields(line)
		t := target{pkg: strings.TrimPrefix(fields[0], "atcr.io/"), dir: fields[1], binary: filepath.Join(dir, strings.ReplaceAll(fields[0], "/", "_"))}
		before := len(targets)
		for _, file := range fields[2:] {
			source, err := os.ReadFile(file)
			if err != nil {
				return nil, err
			}
			for _, m := range declared.FindAllSubmatch(source, -1) {
				if t.name = string(m[1]); match.MatchString(t.pkg + "." + t.name) {
					targets = append(targets, t)
				}
			}
		}
		if len(targets) == before {
			continue
		}
		args := []string{"test", "-c", "-o", t.binary}
		for _, pattern := range instrumented {
			args = append(args, "-gcflags="+pattern+"=-d=libfuzzer")
		}
		if _, err := command(ctx, "go", append(args, fields[0])...); err != nil {
			return nil, err
		}
	}
	return targets, nil
}

func command(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, stderr.Bytes())
	}
	return string(out), nil
}

// fuzz runs one target with one worker, and returns its last word, or all of them where it failed.
func (t target) fuzz(ctx context.Context, each time.Duration, cache string) (string, error) {
	cmd := exec.CommandContext(ctx, t.binary, "-test.run=^$", "-test.fuzz=^"+t.name+"$", "-test.fuzztime="+each.String(),
		"-test.parallel=1", "-test.fuzzminimizetime=1s", "-test.fuzzcachedir="+filepath.Join(cache, t.pkg))
	cmd.Dir = t.dir
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	out, err := cmd.CombinedOutput()
	text := strings.TrimSpace(string(out))
	if err == nil && !strings.Contains(text, "without coverage guidance") {
		lines := strings.Split(text, "\n")
		for _, line := range lines {
			if strings.HasPrefix(line, "fuzz: elapsed") {
				text = strings.TrimPrefix(line, "fuzz: ")
			}
		}
		return text, nil
	}
	if err == nil {
		err = errors.New("the binary has no coverage to be led by")
	}
	return text, err
}
