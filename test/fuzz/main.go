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
	"strconv"
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

// fuzz runs one target with one worker, and returns its last word, or all of them where it failed. A run that fails and
// found nothing, as Go's fuzzing does where its worker answers late, is made a second time.
func (t target) fuzz(ctx context.Context, each time.Duration, cache string) (string, error) {
	text, err := t.once(ctx, each, cache)
	if errors.Is(err, errSlow) && ctx.Err() == nil {
		text, err = t.once(ctx, each, cache)
	}
	return text, err
}

var (
	errFound = errors.New("an input fails")
	errSlow  = errors.New("twice it ended without an input that fails: the machine is too slow, or the target keeps its worker busy; run it again by itself")
)

// grace is what a run may take beside the time that it was given.
const grace = 5 * time.Minute

// once is one run. Errors: errFound, where an input was written or a seed fails; errSlow.
func (t target) once(ctx context.Context, each time.Duration, cache string) (string, error) {
	before, err := t.inputs()
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, each+grace)
	defer cancel()
	// Not for a second each, which is the default form: with every new input that would be all that a short run does.
	cmd := exec.CommandContext(ctx, t.binary, "-test.run=^$", "-test.fuzz=^"+t.name+"$", "-test.fuzztime="+each.String(),
		"-test.parallel=1", "-test.fuzzminimizetime=100x", "-test.fuzzcachedir="+filepath.Join(cache, t.pkg))
	cmd.Dir = t.dir
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	out, failed := cmd.CombinedOutput()
	text := strings.TrimSpace(string(out))
	after, err := t.inputs()
	switch {
	case err != nil:
		return text, err
	case strings.Contains(text, "without coverage guidance"):
		return text, errors.New("the binary has no coverage to be led by")
	case failed == nil:
		return summary(text), nil
	case len(after) > len(before) || strings.Contains(text, "seed corpus entry") || strings.Contains(text, "Failing input written"):
		return text, fmt.Errorf("%w: %w", errFound, failed)
	}
	return text, fmt.Errorf("%w: %w", errSlow, failed)
}

// inputs are those that were found and kept.
func (t target) inputs() ([]string, error) {
	return filepath.Glob(filepath.Join(t.dir, "testdata", "fuzz", t.name, "*"))
}

var progress = regexp.MustCompile(`fuzz: elapsed: (\S+), execs: (\d+) \(\S+\), (.*)`)

// summary is the last of the lines that tell how far a run came, with its whole rate: the line's is that of the last moment.
func summary(text string) string {
	lines := progress.FindAllStringSubmatch(text, -1)
	if len(lines) == 0 {
		return text
	}
	last := lines[len(lines)-1]
	took, err := time.ParseDuration(last[1])
	execs, _ := strconv.Atoi(last[2])
	if err != nil || took <= 0 {
		return text
	}
	return fmt.Sprintf("%s, execs: %d (%.0f/s), %s", took, execs, float64(execs)/took.Seconds(), last[3])
}
