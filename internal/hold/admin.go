package hold

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"

	"github.com/prometheus/client_golang/prometheus"

	"atcr.io/internal/xrpc"
)

// adminSocket is where a running hold takes commands: a file that its own user alone may open.
const adminSocket = "admin.sock"

// Line is a step of a command, or its result. Text is for people; the fields beside it are for scripts.
type Line struct {
	Text  string `json:"text,omitempty"`
	Error string `json:"error,omitempty"`
	Data  any    `json:"data,omitempty"`
	Bytes []byte `json:"bytes,omitempty"` // the next piece of a result that is no text
}

// say passes on what a command has done so far.
type say func(Line)

// task is a command on a hold.
type task func(ctx context.Context, h *Hold, r *http.Request, tell say) error

// tasks are the commands by name.
var tasks = map[string]task{
	"gc":                  adminCollect,
	"fsck":                adminFsck,
	"crew list":           adminCrewList,
	"crew set":            adminCrewSet,
	"crew remove":         adminCrewRemove,
	"captain transfer":    adminTransfer,
	"repo verify":         adminVerify,
	"repo export":         adminExport,
	"repo rebuild":        adminRebuild,
	"key show":            adminKeyShow,
	"key rotate":          adminKeyRotate,
	"key export-rotation": adminKeyExport,
	"backup":              adminBackup,
	"block":               adminBlock,
	"doctor":              adminDoctor,
	"unblock":             adminUnblock,
	"block list":          adminBlocks,
	"announce":            adminReannounce,
	"request-crawl":       adminCrawl,
}

// adminHandler runs a command: POST /?task=NAME and its parameters, answered line by line.
func (h *Hold) adminHandler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		run, ok := tasks[r.URL.Query().Get("task")]
		if r.Method != http.MethodPost || !ok {
			http.Error(w, "no such command", http.StatusNotFound)
			return
		}
		w.Header().Set("Content-Type", "application/x-ndjson")
		encoder, flush := json.NewEncoder(w), http.NewResponseController(w)
		tell := serial(func(l Line) {
			_ = encoder.Encode(l) // who asked may be gone; the context says so
			_ = flush.Flush()
		})
		if err := run(r.Context(), h, r, tell); err != nil {
			tell(Line{Error: err.Error()})
		}
	})
}

// listenAdmin makes the socket. A path that is too long for one, or a file system without, costs the
// commands on a running hold, and nothing else.
func (h *Hold) listenAdmin(ctx context.Context) net.Listener {
	path := filepath.Join(h.config.DatabaseDir, adminSocket)
	_ = os.Remove(path) // an earlier process's: this one has the lock
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "unix", path)
	if err == nil {
		if err = os.Chmod(path, 0o600); err != nil {
			err = errors.Join(err, l.Close())
		}
	}
	if err != nil {
		h.log.Warn("commands like atcr-hold gc need the hold to be stopped", "error", err)
		return nil
	}
	return l
}

// Command runs a command on the hold of config: on the running one, else on its database.
//
// Errors: the command's own.
func Command(ctx context.Context, config Config, logger *slog.Logger, name string, parameters map[string]string, tell func(Line)) error {
	path := filepath.Join(config.DatabaseDir, adminSocket)
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", path)
	}}}
	defer client.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://hold/", nil)
	if err != nil {
		return err
	}
	q := req.URL.Query()
	q.Set("task", name)
	for k, v := range parameters {
		q.Set(k, v)
	}
	req.URL.RawQuery = q.Encode()
	res, err := client.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return offline(ctx, config, logger, name, req, tell)
	}
	defer func() { _ = res.Body.Close() }()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("the running hold does not know the command %q: restart it after the update", name)
	}
	lines := json.NewDecoder(res.Body)
	for lines.More() {
		var l Line
		if err := lines.Decode(&l); err != nil {
			return fmt.Errorf("the hold broke off: %w", err)
		}
		if l.Error != "" {
			return errors.New(l.Error)
		}
		tell(l)
	}
	return nil
}

// offline opens the hold for one command.
func offline(ctx context.Context, config Config, logger *slog.Logger, name string, r *http.Request, tell say) error {
	if _, err := os.Stat(filepath.Join(config.DatabaseDir, "db.sqlite3")); err != nil {
		return fmt.Errorf("there is no hold in %s (HOLD_DATABASE_DIR): %w", config.DatabaseDir, err)
	}
	run, ok := tasks[name]
	if !ok {
		return fmt.Errorf("no command %q", name)
	}
	tell = serial(tell)
	config.repair = repairFor(name, r, tell)
	return withHold(ctx, config, logger, func(h *Hold) error { return run(ctx, h, r, tell) })
}

// withHold opens the hold, quietly, for as long as fn takes.
func withHold(ctx context.Context, config Config, logger *slog.Logger, fn func(*Hold) error) (err error) {
	config.CollectEvery, config.Relays = 0, nil
	h, err := Open(ctx, config, logger, prometheus.NewRegistry())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, h.Close()) }()
	return fn(h)
}

// required is a parameter that must be there.
func required(r *http.Request, name string) (string, error) {
	v := r.URL.Query().Get(name)
	if v == "" {
		return "", xrpc.InvalidRequest("%s is missing", name)
	}
	return v, nil
}
