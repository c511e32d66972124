// Package components owns starting and stopping the servers that the tests run against and that nobody here
// wrote: the reference PDS with its PLC directory, an S3 server, PostgreSQL, a docker daemon, the distribution
// registry, reverse proxies. It also listens for those that run in a test's own process.
// It refuses to know anything of ATCR, and to skip: a component that is missing fails the test.
//
// Each server gets free ports on loopback and a folder of its own, so that tests start as many as they like
// at once, and is stopped with the test, its whole process group with it.
package components

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"time"

	"atcr.io/test/components/toolbox"
)

// TB is the part of testing.TB that the starters use. Program gives one to a program that is no test.
type TB interface {
	Helper()
	Cleanup(func())
	Context() context.Context
	Failed() bool
	Fatalf(format string, args ...any)
	Logf(format string, args ...any)
	TempDir() string
}

// Path is where the program of a component lies: crane, regctl, versitygw, minio, registry, postgres, skopeo, docker,
// dockerd, nginx, haproxy, caddy, ip, strace, curl or node. A missing one fails the test.
func Path(tb TB, name string) string {
	tb.Helper()
	path, err := toolbox.Path(name)
	if err != nil {
		tb.Fatalf("components: %v", err)
	}
	return path
}

// FreePort is a port of loopback that nobody listens on. It lies below those that the kernel gives to
// outgoing connections, so that none of them takes it before a server does.
func FreePort(tb TB) int {
	tb.Helper()
	for range 100 {
		port := 20000 + rand.IntN(12000)
		var config net.ListenConfig
		l, err := config.Listen(tb.Context(), "tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			continue
		}
		if err := l.Close(); err != nil {
			tb.Fatalf("components: %v", err)
		}
		return port
	}
	tb.Fatalf("components: no free port found")
	return 0
}

const (
	startTimeout = 90 * time.Second // a machine with two cores may start several at once
	stopTimeout  = 20 * time.Second
)

// process is a server that runs until the test ends.
type process struct {
	name   string
	cmd    *exec.Cmd
	output *output
	exited chan struct{}
}

// output keeps what a server said, for the message where it fails.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) all() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

func (o *output) tail() string {
	all := o.all()
	return all[max(0, len(all)-4000):]
}

// Start runs a server of somebody's until the end of the test, and waits until check succeeds.
func Start(tb TB, name string, cmd *exec.Cmd, check func(context.Context) error) {
	tb.Helper()
	start(tb, name, cmd).ready(tb, check)
}

// start runs cmd in a process group of its own until the end of the test. Standard error, and standard output
// where cmd has no other place for it, are kept.
func start(tb TB, name string, cmd *exec.Cmd) *process {
	tb.Helper()
	p := &process{name: name, cmd: cmd, output: &output{}, exited: make(chan struct{})}
	cmd.Stderr = p.output
	if cmd.Stdout == nil {
		cmd.Stdout = p.output
	}
	group := ownGroup()
	if cmd.SysProcAttr != nil {
		group.Credential = cmd.SysProcAttr.Credential
	}
	cmd.SysProcAttr = group
	cmd.WaitDelay = 5 * time.Second
	started := make(chan error, 1)
	go func() {
		// On Linux the child ends with the thread that started it: keep that thread as long as the child.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // how it ended matters only to whoever waits for it to be ready
			close(p.exited)
		}
	}()
	if err := <-started; err != nil {
		tb.Fatalf("components: start %s: %v", name, err)
	}
	tb.Cleanup(func() {
		p.stop()
		if tb.Failed() {
			tb.Logf("%s said:\n%s", name, p.output.tail())
		}
	})
	return p
}

// stop asks the server to end, and kills its process group where it does not or leaves children behind.
func (p *process) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may be gone already
	select {
	case <-p.exited:
	case <-time.After(stopTimeout):
	}
	_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL) // usually nobody is left in the group
	<-p.exited
}

// ready waits until check succeeds.
func (p *process) ready(tb TB, check func(context.Context) error) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), startTimeout)
	defer cancel()
	for {
		err := check(ctx)
		if err == nil {
			return
		}
		select {
		case <-p.exited:
			tb.Fatalf("components: %s ended at start:\n%s", p.name, p.output.tail())
		case <-ctx.Done():
			tb.Fatalf("components: %s is not ready: %v\n%s", p.name, err, p.output.tail())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// listens is a check that somebody accepts connections at a host:port.
func listens(address string) func(context.Context) error {
	return func(ctx context.Context) error {
		var dialer net.Dialer
		conn, err := dialer.DialContext(ctx, "tcp", address)
		return errors.Join(err, closeAny(conn))
	}
}

func closeAny(conn net.Conn) error {
	if conn == nil {
		return nil
	}
	return conn.Close()
}
