package components

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// Dockerd is a running docker daemon and the configuration of one client of it.
type Dockerd struct {
	Host   string // for DOCKER_HOST
	Config string // for DOCKER_CONFIG: the folder that keeps logins
	docker string
}

// StartDockerd starts a docker daemon that shares nothing with one of the machine: no bridge, no firewall
// rules, images in a folder of its own. It speaks plain http to registries on 127.0.0.0/8. It needs root.
func StartDockerd(tb TB) *Dockerd {
	tb.Helper()
	if os.Geteuid() != 0 {
		tb.Fatalf("components: a docker daemon needs root")
	}
	// Not TempDir, whose path has the test's name in it: a socket's path has at most 107 bytes.
	run, err := os.MkdirTemp("", "dockerd-")
	if err != nil {
		tb.Fatalf("components: %v", err)
	}
	tb.Cleanup(func() {
		_ = syscall.Unmount(filepath.Join(run, "exec", "netns", "default"), 0) // the daemon leaves it mounted
		if err := os.RemoveAll(run); err != nil {
			tb.Logf("components: %v", err)
		}
	})
	d := &Dockerd{Host: "unix://" + filepath.Join(run, "docker.sock"), Config: tb.TempDir(), docker: Path(tb, "docker")}
	cmd := exec.Command(Path(tb, "dockerd"),
		"--host", d.Host, "--data-root", tb.TempDir(), "--exec-root", filepath.Join(run, "exec"), "--pidfile", filepath.Join(run, "pid"),
		"--config-file", filepath.Join(run, "daemon.json"), // the machine's own is not read
		"--storage-driver", "vfs", // works on every file system, and leaves no mounts
		"--bridge", "none", "--iptables=false", "--ip6tables=false", "--default-ulimit", "nofile=1024:1024")
	if err := os.WriteFile(filepath.Join(run, "daemon.json"), []byte("{}"), 0o600); err != nil {
		tb.Fatalf("components: %v", err)
	}
	start(tb, "dockerd", cmd).ready(tb, func(ctx context.Context) error {
		return d.Command(ctx, "version").Run()
	})
	return d
}

// Command is a docker command at this daemon.
func (d *Dockerd) Command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, d.docker, args...)
	cmd.Env = append(os.Environ(), "DOCKER_HOST="+d.Host, "DOCKER_CONFIG="+d.Config, "DOCKER_CONTEXT=")
	return cmd
}

// Run runs a docker command, which must succeed, and returns its standard output.
func (d *Dockerd) Run(tb TB, args ...string) string {
	tb.Helper()
	out, err := d.Command(tb.Context(), args...).Output()
	if err != nil {
		stderr := ""
		if exit, ok := errors.AsType[*exec.ExitError](err); ok {
			stderr = string(exit.Stderr)
		}
		tb.Fatalf("docker %s: %v\n%s%s", strings.Join(args, " "), err, out, stderr)
	}
	return string(out)
}
