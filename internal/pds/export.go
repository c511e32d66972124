package pds

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/ipfs/go-cid"

	"atcr.io/internal/xrpc"
)

const (
	maxExports  = 64 // downloads at once
	maxSpooling = 2  // that read the database at once, of its few connections
	// exportProgress is how long a reader may take for each piece.
	exportProgress = 30 * time.Second
)

// getRepo sends the whole repo. `since` is allowed to be answered with all of it.
func (h *Host) getRepo(w http.ResponseWriter, r *http.Request) error {
	repo, err := h.repoParam(r, "did")
	if err != nil {
		return err
	}
	if _, err := xrpc.Param(r, "since"); err != nil {
		return err
	}
	return h.sendCAR(w, r, repo.Export)
}

// maxBlocks bounds a getBlocks.
const maxBlocks = 200

// getBlocks sends those blocks of the repo at its head that `cids` names. Errors: BlockNotFound.
func (h *Host) getBlocks(w http.ResponseWriter, r *http.Request) error {
	repo, err := h.repoParam(r, "did")
	if err != nil {
		return err
	}
	names := r.URL.Query()["cids"]
	if len(names) == 0 || len(names) > maxBlocks {
		return xrpc.InvalidRequest("parameter \"cids\" is given %d times; 1 to %d are allowed", len(names), maxBlocks)
	}
	missing := map[cid.Cid]bool{}
	for _, name := range names {
		c, err := cid.Decode(name)
		if err != nil {
			return xrpc.InvalidRequest("parameter \"cids\" has %.100q, which is not a CID", name)
		}
		missing[c] = true
	}
	wanted := maps.Clone(missing)
	return h.sendCAR(w, r, func(ctx context.Context, out io.Writer) error {
		err := repo.snapshot(ctx, func(s *snapshot) error {
			return s.write(ctx, out, cid.Undef, func(c cid.Cid) bool {
				delete(missing, c)
				return wanted[c]
			})
		})
		for c := range missing {
			if err == nil {
				err = xrpc.Errorf(http.StatusBadRequest, "BlockNotFound", "the repo has no block %s now", c)
			}
		}
		return err
	})
}

// getRecordProof is com.atproto.sync.getRecord: the record, or that there is none, with what proves it.
func (h *Host) getRecordProof(w http.ResponseWriter, r *http.Request) error {
	repo, err := h.repoParam(r, "did")
	if err != nil {
		return err
	}
	collection, rkey, err := recordParams(r)
	if err != nil {
		return err
	}
	var car bytes.Buffer
	if err := repo.Proof(r.Context(), &car, collection, rkey); err != nil {
		return err
	}
	w.Header().Set("Content-Type", carType)
	w.Header().Set("Content-Length", strconv.Itoa(car.Len()))
	_, err = w.Write(car.Bytes())
	return err
}

const carType = "application/vnd.ipld.car"

// sendCAR sends what export writes.
//
// It goes through a file without a name, beside the database: a reader takes the time that it takes, and
// must hold neither a connection nor a snapshot of the database meanwhile, nor get half a repo as a whole.
func (h *Host) sendCAR(w http.ResponseWriter, r *http.Request, export func(context.Context, io.Writer) error) (err error) {
	if r.Method == http.MethodHead {
		w.Header().Set("Content-Type", carType)
		return nil
	}
	defer h.exports.Add(-1)
	if h.exports.Add(1) > maxExports {
		return &xrpc.Error{Status: http.StatusTooManyRequests, Name: "RateLimitExceeded", Message: "too many downloads at once", RetryAfter: time.Minute}
	}
	f, size, err := h.spool(r.Context(), export)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	header := w.Header()
	header.Set("Content-Type", carType)
	header.Add("Vary", "Accept-Encoding")
	var to io.Writer = w
	if acceptsGzip(r) {
		header.Set("Content-Encoding", "gzip")
		zipped, _ := gzip.NewWriterLevel(w, gzip.BestSpeed) // fails for unknown levels alone
		defer func() { err = errors.Join(err, zipped.Close()) }()
		to = zipped
	} else {
		header.Set("Content-Length", strconv.FormatInt(size, 10))
	}
	control := http.NewResponseController(w)
	for err == nil {
		if err := control.SetWriteDeadline(time.Now().Add(exportProgress)); err != nil && !errors.Is(err, http.ErrNotSupported) {
			return err
		}
		_, err = io.CopyN(to, f, 256<<10)
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// acceptsGzip tells whether the client asks for gzip, and does not refuse it by q=0.
func acceptsGzip(r *http.Request) bool {
	for _, value := range r.Header.Values("Accept-Encoding") {
		for coding := range strings.SplitSeq(value, ",") {
			name, weight, _ := strings.Cut(strings.ReplaceAll(strings.ToLower(coding), " ", ""), ";")
			if name == "gzip" && strings.Trim(strings.TrimPrefix(weight, "q="), "0.") != "" || name == "gzip" && weight == "" {
				return true
			}
		}
	}
	return false
}

// spool exports into a file that is gone when it is closed.
func (h *Host) spool(ctx context.Context, export func(context.Context, io.Writer) error) (*os.File, int64, error) {
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
	err = errors.Join(os.Remove(f.Name()), export(ctx, f))
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
