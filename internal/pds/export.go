package pds

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"atcr.io/internal/xrpc"
)

const (
	maxExports  = 64 // downloads at once
	maxSpooling = 2  // that read the database at once, of its few connections
	// exportProgress is how long a reader may take for each piece.
	exportProgress = 30 * time.Second
)

// getRepo sends the whole repo. `since` is allowed to be answered with all of it.
//
// It goes through a file without a name, beside the database: a reader takes the time that it takes, and
// must hold neither a connection nor a snapshot of the database meanwhile, nor get half a repo as a whole.
func (h *Host) getRepo(w http.ResponseWriter, r *http.Request) error {
	repo, err := h.repoParam(r, "did")
	if err != nil {
		return err
	}
	if _, err := xrpc.Param(r, "since"); err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/vnd.ipld.car")
	if r.Method == http.MethodHead {
		return nil
	}
	defer h.exports.Add(-1)
	if h.exports.Add(1) > maxExports {
		return &xrpc.Error{Status: http.StatusTooManyRequests, Name: "RateLimitExceeded", Message: "too many downloads at once", RetryAfter: time.Minute}
	}
	f, size, err := h.spool(r.Context(), repo)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	w.Header().Set("Content-Length", strconv.FormatInt(size, 10))
	control := http.NewResponseController(w)
	for err == nil {
		if err := control.SetWriteDeadline(time.Now().Add(exportProgress)); err != nil && !errors.Is(err, http.ErrNotSupported) {
			return err
		}
		_, err = io.CopyN(w, f, 256<<10)
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// spool exports repo into a file that is gone when it is closed.
func (h *Host) spool(ctx context.Context, repo *Repo) (*os.File, int64, error) {
	select {
	case h.spooling <- struct{}{}:
		defer func() { <-h.spooling }()
	case <-ctx.Done():
		return nil, 0, ctx.Err()
	}
	f, err := os.CreateTemp(filepath.Dir(h.db.Path()), ".export-*.car")
	if err != nil {
		return nil, 0, fmt.Errorf("export: %w", err)
	}
	err = errors.Join(os.Remove(f.Name()), repo.Export(ctx, f))
	size, seekErr := f.Seek(0, io.SeekCurrent)
	if err == nil {
		err = seekErr
	}
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		return nil, 0, errors.Join(fmt.Errorf("export: %w", err), f.Close())
	}
	return f, size, nil
}
