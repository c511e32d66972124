package pds

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"maps"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"
	"github.com/ipfs/go-cid"

	"atcr.io/internal/httpx"
	"atcr.io/internal/xrpc"
)

const (
	maxExports  = 64 // downloads at once
	maxSpooling = 2  // that read the database at once, of its few connections
	// exportProgress is how long a reader may take for each piece.
	exportProgress = 30 * time.Second
)

// getRepo sends the whole repo, or what who has the revision `since` needs to get from there to the head.
func (h *Host) getRepo(w http.ResponseWriter, r *http.Request) error {
	repo, err := h.didParam(r)
	if err != nil {
		return err
	}
	since, err := xrpc.Param(r, "since")
	if err != nil {
		return err
	}
	if since == "" {
		return h.sendCAR(w, r, repo, nil, nil)
	}
	if _, err := syntax.ParseTID(since); err != nil {
		return xrpc.InvalidRequest("parameter \"since\" is not a revision")
	}
	return h.sendCAR(w, r, repo, &selection{since: since}, nil)
}

// maxBlocks bounds a getBlocks.
const maxBlocks = 200

// getBlocks sends those blocks of the repo at its head that `cids` names. Errors: BlockNotFound.
func (h *Host) getBlocks(w http.ResponseWriter, r *http.Request) error {
	repo, err := h.didParam(r)
	if err != nil {
		return err
	}
	names := r.URL.Query()["cids"]
	if len(names) == 0 || len(names) > maxBlocks {
		return xrpc.InvalidRequest("parameter \"cids\" is given %d times; 1 to %d are allowed", len(names), maxBlocks)
	}
	missing := map[cid.Cid]bool{}
	for _, name := range names {
		c, err := parseCID(name)
		if err != nil {
			return xrpc.InvalidRequest("parameter \"cids\" has %.100q, which is not a CID", name)
		}
		missing[c] = true
	}
	wanted := maps.Clone(missing)
	want := func(c cid.Cid) bool {
		delete(missing, c)
		return wanted[c]
	}
	return h.sendCAR(w, r, repo, &selection{block: want}, func() error {
		for c := range missing {
			return xrpc.Errorf(http.StatusBadRequest, "BlockNotFound", "the repo has no block %s now", c)
		}
		return nil
	})
}

// getRecordProof is com.atproto.sync.getRecord: the record, or that there is none, with what proves it.
func (h *Host) getRecordProof(w http.ResponseWriter, r *http.Request) error {
	repo, err := h.didParam(r)
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

// sendCAR sends the repo at its head: all of it, or the blocks that are selected. check, where not nil, has the last
// word before the first byte.
//
// It goes through files without a name, beside the database: a reader takes the time that it takes, and must
// hold neither a connection nor a snapshot of the database meanwhile, nor get half a repo as a whole.
func (h *Host) sendCAR(w http.ResponseWriter, r *http.Request, repo *Repo, which *selection, check func() error) (err error) {
	if r.Method == http.MethodHead {
		w.Header().Set("Content-Type", carType)
		return nil
	}
	defer h.exports.Add(-1)
	if h.exports.Add(1) > maxExports {
		return &xrpc.Error{Status: http.StatusTooManyRequests, Name: "RateLimitExceeded", Message: "too many downloads at once", RetryAfter: time.Minute}
	}
	spool, err := repo.spool(r.Context(), which)
	if err != nil {
		return fmt.Errorf("export: %w", err)
	}
	defer func() { _ = spool.Close() }()
	if check != nil {
		if err := check(); err != nil {
			return err
		}
	}
	header := w.Header()
	header.Set("Content-Type", carType)
	header.Add("Vary", "Accept-Encoding")
	paced := httpx.PacedWriter(w, exportProgress)
	if acceptsGzip(r) {
		header.Set("Content-Encoding", "gzip")
		zipped, _ := gzip.NewWriterLevel(paced, gzip.BestSpeed) // fails for unknown levels alone
		if err := spool.writeTo(zipped); err != nil {
			return err // without the end that would make it whole
		}
		return zipped.Close()
	}
	header.Set("Content-Length", strconv.FormatInt(spool.size(), 10))
	return spool.writeTo(paced)
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
