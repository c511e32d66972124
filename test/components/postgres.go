package components

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"

	"github.com/jackc/pgx/v5"
)

// Postgres is a running PostgreSQL server, on a socket in a folder of its own. It keeps nothing over a crash
// unless it is told to, and orders text as a language does unless a column says otherwise, as servers of other people do.
type Postgres struct {
	PID int

	dir string

	mu        sync.Mutex
	databases int
}

// StartPostgres starts a server without a database of ours. settings, as in "fsync=on", take the place of its own.
func StartPostgres(tb TB, settings ...string) *Postgres {
	tb.Helper()
	dir, err := os.MkdirTemp("", "atcr-pg-") // not tb.TempDir, into which another user cannot look
	if err != nil {
		tb.Fatalf("components: %v", err)
	}
	tb.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			tb.Logf("components: %v", err)
		}
	})
	data := filepath.Join(dir, "data")
	initdb := asNobody(tb, dir, exec.Command(Path(tb, "initdb"), "--no-sync", "--no-instructions", "--auth=trust", "--username=atcr",
		"--encoding=UTF8", "--locale=C.UTF-8", "--locale-provider=icu", "--icu-locale=en", "-D", data))
	if out, err := initdb.CombinedOutput(); err != nil {
		tb.Fatalf("components: initdb: %v\n%s", err, out)
	}
	argv := []string{"-D", data, "-k", dir}
	for _, setting := range append([]string{
		"listen_addresses=", "unix_socket_permissions=0777", "fsync=off", "full_page_writes=off", "autovacuum=off", "max_connections=500", "shared_buffers=32MB",
		"max_wal_size=256MB", "wal_level=minimal", "max_wal_senders=0",
	}, settings...) {
		argv = append(argv, "-c", setting)
	}
	p := &Postgres{dir: dir}
	started := start(tb, "postgres", asNobody(tb, dir, exec.Command(Path(tb, "postgres"), argv...)))
	started.ready(tb, func(ctx context.Context) error {
		c, err := pgx.Connect(ctx, p.url("postgres"))
		if err != nil {
			return err
		}
		return c.Close(ctx)
	})
	p.PID = started.cmd.Process.Pid
	return p
}

// asNobody has a command run as another user where this one is root, whom PostgreSQL refuses. The folder
// becomes that user's.
func asNobody(tb TB, dir string, cmd *exec.Cmd) *exec.Cmd {
	tb.Helper()
	cmd.Dir = dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C.UTF-8", "HOME=" + dir}
	if os.Geteuid() != 0 {
		return cmd
	}
	who, err := user.Lookup("nobody")
	if err != nil {
		tb.Fatalf("components: %v", err)
	}
	uid, err := strconv.Atoi(who.Uid)
	gid, gidErr := strconv.Atoi(who.Gid)
	if err := errors.Join(err, gidErr, os.Chown(dir, uid, gid)); err != nil {
		tb.Fatalf("components: %v", err)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}} //nolint:gosec // ids are small
	return cmd
}

func (p *Postgres) url(database string) string {
	return "postgres://atcr@/" + database + "?host=" + url.QueryEscape(p.dir)
}

// CreateDatabase makes an empty database and returns its URL.
func (p *Postgres) CreateDatabase(tb TB) string {
	tb.Helper()
	p.mu.Lock() // one at a time: they are copies of one template
	defer p.mu.Unlock()
	p.databases++
	name := fmt.Sprintf("test%d", p.databases)
	c, err := pgx.Connect(tb.Context(), p.url("postgres"))
	if err == nil {
		_, err = c.Exec(tb.Context(), "CREATE DATABASE "+name)
		err = errors.Join(err, c.Close(tb.Context()))
	}
	if err != nil {
		tb.Fatalf("components: create a database: %v", err)
	}
	return p.url(name)
}
