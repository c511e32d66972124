package main

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"atcr.io/test/components"
	"atcr.io/test/components/toolbox"
)

// peer is another registry.
type peer struct {
	name       string
	durable    bool   // what it took outlives it
	pull, push string // what Authorization says, "" where it asks for nothing
	*process
}

const (
	distribution3 = "distribution 3.1.2"
	distribution2 = "distribution 2.8.3"
	giteaName     = "gitea 1.26.0"
)

// aboutPeers says on the page what each peer is.
const aboutPeers = `
The peers: distribution 3.1.2, the CNCF's registry; distribution 2.8.3, the generation before it, which many still run, built from its
packages with a main of ours, without its health checks; gitea 1.26.0, a forge with a registry in it, on PostgreSQL. None logs requests. Those
of distribution cache blobs' descriptors in memory and do not ask who it is; gitea caches in memory and wants a token, for reads an anonymous one,
which was fetched before. Best peer: the best of those that keep what they take. crane's registry is one for tests, with everything in memory and open to
everybody: shown, but no peer.
`

// folderPeers starts every peer that keeps its blobs in a folder.
func (b *bench) folderPeers(ctx context.Context, section string) ([]peer, error) {
	three, err := b.startDistribution(ctx, "distribution-"+section, nil, nil)
	if err != nil {
		return nil, err
	}
	two, err := b.startDistribution2(ctx, "distribution2-"+section)
	if err != nil {
		return nil, err
	}
	gitea, err := b.startGitea(ctx, "gitea-"+section)
	if err != nil {
		return nil, err
	}
	return []peer{{name: distribution3, durable: true, process: three}, {name: distribution2, durable: true, process: two}, gitea}, nil
}

func (b *bench) startDistribution2(ctx context.Context, name string) (*process, error) {
	program, err := toolbox.Path("registry2")
	if err != nil {
		return nil, err
	}
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	config := filepath.Join(b.dir, name+".yml")
	text := fmt.Sprintf("version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\nstorage:\n  filesystem: {rootdirectory: %q}\n  cache: {blobdescriptor: inmemory}\n  delete: {enabled: true}\nhttp: {addr: \"127.0.0.1:%d\"}\n",
		filepath.Join(b.dir, name), port)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return nil, err
	}
	base := fmt.Sprintf("http://127.0.0.1:%d", port)
	p, err := start(ctx, b.dir, name, base, base+"/v2/", nil, program, config)
	if err != nil {
		return nil, err
	}
	b.stoppers = append(b.stoppers, p.stop)
	return p, nil
}

// giteaConfig is gitea without what a registry does not need: mail, ssh, background work, logs of requests. Its
// public files are none but pictures, as the module has it.
const giteaConfig = `APP_NAME = bench
RUN_MODE = prod
WORK_PATH = %[1]s
[server]
HTTP_ADDR = 127.0.0.1
HTTP_PORT = %[2]d
ROOT_URL = http://127.0.0.1:%[2]d/
STATIC_ROOT_PATH = %[3]s
DISABLE_SSH = true
OFFLINE_MODE = true
LFS_START_SERVER = false
[database]
DB_TYPE = postgres
HOST = %[4]s
NAME = %[5]s
USER = atcr
MAX_IDLE_CONNS = 64
MAX_OPEN_CONNS = 64
[security]
INSTALL_LOCK = true
SECRET_KEY = secret-of-the-bench
[log]
MODE = console
LEVEL = Error
logger.router.MODE =
[cache]
ADAPTER = memory
[session]
PROVIDER = memory
[cron]
ENABLED = false
[indexer]
ISSUE_INDEXER_TYPE = db
[actions]
ENABLED = false
[mailer]
ENABLED = false
[packages]
ENABLED = true
`

// startGitea runs gitea on a folder and a PostgreSQL that is as durable as it comes, with alice.test as a user whose
// packages everybody may read.
func (b *bench) startGitea(ctx context.Context, name string) (peer, error) {
	program, err := toolbox.Path("gitea")
	if err != nil {
		return peer{}, err
	}
	postgres, database, err := b.startPostgres(ctx)
	if err != nil {
		return peer{}, err
	}
	socket, db, err := socketOf(database)
	if err != nil {
		return peer{}, err
	}
	port, err := freePort()
	if err != nil {
		return peer{}, err
	}
	dir := filepath.Join(b.dir, name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return peer{}, err
	}
	config := filepath.Join(dir, "app.ini")
	if err := os.WriteFile(config, fmt.Appendf(nil, giteaConfig, dir, port, filepath.Dir(program), socket, db), 0o600); err != nil {
		return peer{}, err
	}
	env := []string{"GITEA_WORK_DIR=" + dir, "USER=" + os.Getenv("USER"), "GITEA_I_AM_BEING_UNSAFE_RUNNING_AS_ROOT=true"}
	base := fmt.Sprintf("http://127.0.0.1:%d", port)
	p, err := start(ctx, b.dir, name, base, base+"/v2/", env, program, "web", "--config", config)
	if err != nil {
		return peer{}, err
	}
	b.stoppers = append(b.stoppers, p.stop)
	p.database = postgres
	const password = "a-password-of-the-bench"
	create := exec.CommandContext(ctx, program, "admin", "user", "create", "--config", config, "--username", "alice.test", "--password", password,
		"--email", "alice@alice.test", "--must-change-password=false")
	create.Env = append(env, "PATH="+os.Getenv("PATH"), "HOME="+b.dir)
	if out, err := create.CombinedOutput(); err != nil {
		return peer{}, fmt.Errorf("gitea: create a user: %w\n%s", err, out)
	}
	out := peer{name: giteaName, durable: true, process: p}
	if out.pull, err = giteaToken(ctx, base, ""); err != nil {
		return peer{}, err
	}
	out.push, err = giteaToken(ctx, base, password)
	return out, err
}

// giteaToken is alice.test's token, or an anonymous one where the password is "".
func giteaToken(ctx context.Context, base, password string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+"/v2/token", nil)
	if err != nil {
		return "", err
	}
	if password != "" {
		req.SetBasicAuth("alice.test", password)
	}
	var out struct{ Token string }
	err = doJSON(req, &out)
	return "Bearer " + out.Token, err
}

// startPostgres runs a server that loses nothing over a crash, and returns its process's number and the URL of an
// empty database.
func (b *bench) startPostgres(ctx context.Context) (pid int, database string, err error) {
	ctx, stop := context.WithCancel(ctx)
	started, ended := make(chan string, 1), make(chan error, 1)
	go func() {
		ended <- components.Program(ctx, func(tb components.TB) {
			server := components.StartPostgres(tb, "fsync=on", "full_page_writes=on", "autovacuum=on", "shared_buffers=128MB", "max_wal_size=1GB")
			pid = server.PID
			started <- server.CreateDatabase(tb)
			<-ctx.Done()
		})
	}()
	select {
	case database = <-started:
		b.stoppers = append(b.stoppers, func() error { stop(); return <-ended })
		return pid, database, nil
	case err := <-ended:
		stop()
		return 0, "", err
	}
}

// childrenCPU is the time of processors that a process's children have taken.
func childrenCPU(parent int) (time.Duration, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", parent, parent))
	if err != nil {
		return 0, err
	}
	var total time.Duration
	for _, text := range strings.Fields(string(raw)) {
		pid, err := strconv.Atoi(text)
		if err != nil {
			return 0, err
		}
		if t, err := processCPU(pid); err == nil { // else it ended meanwhile
			total += t
		}
	}
	return total, nil
}

// best is the largest value of a durable peer, and whose it is.
type best struct {
	name  string
	value float64
}

func (m *best) see(name string, value float64) {
	if value > m.value {
		*m = best{name, value}
	}
}

// socketOf takes the folder of the socket and the name of the database out of a URL.
func socketOf(database string) (socket, name string, err error) {
	u, err := url.Parse(database)
	if err != nil {
		return "", "", err
	}
	return u.Query().Get("host"), strings.TrimPrefix(u.Path, "/"), nil
}

// verdict says below a table who the best peer is, and whether ours is as many times as fast as is wanted: value and
// peer in whatever is more when it is better.
func (b *bench) verdict(what string, peer best, value, wanted float64) {
	if times := value / peer.value; times < wanted {
		b.printf("\n**%s: %.2f× of %s; %.0f× is wanted.**\n", what, times, peer.name, wanted)
	} else {
		b.printf("\n%s: %.2f× of the best peer, %s; wanted: ≥%.0f×.\n", what, times, peer.name, wanted)
	}
}
