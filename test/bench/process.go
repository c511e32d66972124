package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// process is a server under measurement, in a process group of its own.
type process struct {
	name string
	url  string
	cmd  *exec.Cmd
	log  *os.File

	database int // the process's number of its own database server, 0 where it has none
}

// start runs a program until stop and waits until ready answers below 500.
func start(ctx context.Context, dir, name, url, ready string, env []string, argv ...string) (*process, error) {
	log, err := os.Create(filepath.Join(dir, name+".log"))
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir}, env...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	p := &process{name: name, url: url, cmd: cmd, log: log}
	for deadline := time.Now().Add(30 * time.Second); ; {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, ready, nil)
		if err != nil {
			return nil, errors.Join(err, p.stop())
		}
		if res, err := http.DefaultClient.Do(req); err == nil {
			_ = res.Body.Close()
			if res.StatusCode < 500 {
				return p, nil
			}
		}
		if ctx.Err() != nil || time.Now().After(deadline) {
			tail, _ := os.ReadFile(log.Name()) // for the message alone
			return nil, errors.Join(fmt.Errorf("%s did not start:\n%s", name, tail), p.stop())
		}
		select {
		case <-ctx.Done():
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (p *process) stop() error {
	_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL) // it may have ended
	_ = p.cmd.Wait()                                      // killed: the status says nothing
	return p.log.Close()
}

// pause keeps a process from working until stop.
func (p *process) pause() { _ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGSTOP) } // it may have ended

// peakMemory is the process's largest resident set so far, in bytes.
func (p *process) peakMemory() (int64, error) { return p.memory("VmHWM:") }

// memory is a line of the process's status, in bytes.
func (p *process) memory(line string) (int64, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	defer func() { _ = f.Close() }()
	for s := bufio.NewScanner(f); s.Scan(); {
		if value, ok := strings.CutPrefix(s.Text(), line); ok {
			kb, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(value, "kB")), 10, 64)
			return kb << 10, err
		}
	}
	return 0, errors.New("no " + line)
}

// resetPeak makes peakMemory begin anew.
func (p *process) resetPeak() error {
	return os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", p.cmd.Process.Pid), []byte("5"), 0)
}

// freePort is a port of 127.0.0.1 that was free a moment ago.
func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	port := l.Addr().(*net.TCPAddr).Port
	return port, l.Close()
}

// cpu is the time of processors that the process has taken, and its database with it.
func (p *process) cpu() (time.Duration, error) {
	own, err := processCPU(p.cmd.Process.Pid)
	if err != nil || p.database == 0 {
		return own, err
	}
	database, err := childrenCPU(p.database)
	return own + database, err
}

func processCPU(pid int) (time.Duration, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The name in parentheses may have spaces; user and system time are the 12th and 13th fields behind it.
	_, rest, _ := strings.Cut(string(raw), ") ")
	fields := strings.Fields(rest)
	if len(fields) < 13 {
		return 0, fmt.Errorf("/proc/%d/stat has another form", pid)
	}
	var ticks int64
	for _, text := range fields[11:13] {
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return 0, err
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond, nil // USER_HZ is 100 on every Linux
}

// listen takes an address for a server that this program is itself.
func listen(ctx context.Context, address string) (net.Listener, error) {
	var lc net.ListenConfig
	return lc.Listen(ctx, "tcp", address)
}
