package pds

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/bluesky-social/indigo/atproto/syntax"
	"github.com/ipfs/go-cid"

	"atcr.io/internal/xrpc"
)

func (h *Host) describeServer(w http.ResponseWriter, _ *http.Request) error {
	domains := h.config.Domains
	if domains == nil {
		domains = []string{}
	}
	xrpc.WriteJSON(w, http.StatusOK, map[string]any{
		"did": h.config.ServerDID, "availableUserDomains": domains, "inviteCodeRequired": true, "phoneVerificationRequired": false,
		"links": map[string]string{}, "contact": map[string]string{},
	})
	return nil
}

func (h *Host) resolveHandle(w http.ResponseWriter, r *http.Request) error {
	handle, err := xrpc.RequiredParam(r, "handle")
	if err != nil {
		return err
	}
	if _, err := syntax.ParseHandle(handle); err != nil {
		return xrpc.InvalidRequest("parameter \"handle\" is not a handle")
	}
	repo, err := h.repoBy(strings.ToLower(handle))
	if err != nil {
		return xrpc.Errorf(http.StatusBadRequest, "HandleNotFound", "this server has no account %s", handle)
	}
	xrpc.WriteJSON(w, http.StatusOK, map[string]any{"did": repo.did})
	return nil
}

// repoParam is the repo that a parameter names, by DID or handle.
func (h *Host) repoParam(r *http.Request, name string) (*Repo, error) {
	v, err := xrpc.RequiredParam(r, name)
	if err != nil {
		return nil, err
	}
	if _, err := syntax.ParseAtIdentifier(v); err != nil {
		return nil, xrpc.InvalidRequest("parameter %q is neither a DID nor a handle", name)
	}
	return h.repoBy(v)
}

// didParam is the repo that `did` names.
func (h *Host) didParam(r *http.Request) (*Repo, error) {
	v, err := xrpc.RequiredParam(r, "did")
	if err != nil {
		return nil, err
	}
	did, err := syntax.ParseDID(v)
	if err != nil {
		return nil, xrpc.InvalidRequest("parameter \"did\" is not a DID")
	}
	return h.Repo(did)
}

func (h *Host) describeRepo(w http.ResponseWriter, r *http.Request) error {
	repo, err := h.repoParam(r, "repo")
	if err != nil {
		return err
	}
	collections, err := repo.Collections(r.Context())
	if err != nil {
		return err
	}
	var document any = map[string]string{"id": repo.did.String()}
	if h.config.DIDDocument != nil {
		if document, err = h.config.DIDDocument(r.Context(), repo.did); err != nil {
			return err
		}
	}
	handle := repo.handle
	if handle == "" {
		handle = syntax.HandleInvalid.String()
	}
	xrpc.WriteJSON(w, http.StatusOK, map[string]any{
		"handle": handle, "did": repo.did, "didDoc": document, "collections": collections, "handleIsCorrect": repo.handle != "",
	})
	return nil
}

// collectionParam is the collection that a request names.
func collectionParam(r *http.Request) (syntax.NSID, error) {
	v, err := xrpc.RequiredParam(r, "collection")
	if err != nil {
		return "", err
	}
	nsid, err := syntax.ParseNSID(v)
	if err != nil {
		return "", xrpc.InvalidRequest("parameter \"collection\" is not an NSID")
	}
	return nsid, nil
}

// recordParams is the record that a request names.
func recordParams(r *http.Request) (syntax.NSID, syntax.RecordKey, error) {
	collection, err := collectionParam(r)
	if err != nil {
		return "", "", err
	}
	v, err := xrpc.RequiredParam(r, "rkey")
	if err != nil {
		return "", "", err
	}
	rkey, err := syntax.ParseRecordKey(v)
	if err != nil {
		return "", "", xrpc.InvalidRequest("parameter \"rkey\" is not a record key")
	}
	return collection, rkey, nil
}

func (h *Host) getRecord(w http.ResponseWriter, r *http.Request) error {
	repo, err := h.repoParam(r, "repo")
	if err != nil {
		return err
	}
	collection, rkey, err := recordParams(r)
	if err != nil {
		return err
	}
	want, err := xrpc.Param(r, "cid")
	if err != nil {
		return err
	}
	record, err := repo.GetRecord(r.Context(), collection, rkey)
	if err != nil {
		return err
	}
	if want != "" && want != record.CID.String() {
		return fmt.Errorf("%w: it has another CID now", ErrRecordNotFound)
	}
	xrpc.WriteJSON(w, http.StatusOK, map[string]any{"uri": record.URI, "cid": record.CID.String(), "value": record.Value})
	return nil
}

// listBytes is where an answer of listRecords ends before its limit; a record has a megabyte at most.
const listBytes = 1 << 20

func (h *Host) listRecords(w http.ResponseWriter, r *http.Request) error {
	repo, err := h.repoParam(r, "repo")
	if err != nil {
		return err
	}
	collection, err := collectionParam(r)
	if err != nil {
		return err
	}
	limit, err := xrpc.IntParam(r, "limit", 50, 1, 100)
	if err != nil {
		return err
	}
	cursor, err := xrpc.Param(r, "cursor")
	if err != nil {
		return err
	}
	reverse, err := xrpc.BoolParam(r, "reverse")
	if err != nil {
		return err
	}
	records, err := repo.list(r.Context(), collection, limit, listBytes, cursor, reverse)
	if err != nil {
		return err
	}
	type item struct {
		URI   string          `json:"uri"`
		CID   string          `json:"cid"`
		Value json.RawMessage `json:"value"`
	}
	out := struct {
		Cursor  string `json:"cursor,omitempty"`
		Records []item `json:"records"`
	}{Records: make([]item, len(records))}
	size := 0
	for i, record := range records {
		out.Records[i] = item{record.URI.String(), record.CID.String(), record.Value}
		size += len(record.Value)
	}
	if len(records) == limit || size >= listBytes { // there may be more
		out.Cursor = records[len(records)-1].Rkey.String()
	}
	xrpc.WriteJSON(w, http.StatusOK, out)
	return nil
}

func (h *Host) getLatestCommit(w http.ResponseWriter, r *http.Request) error {
	repo, err := h.didParam(r)
	if err != nil {
		return err
	}
	head, err := repo.Head(r.Context())
	if err != nil {
		return err
	}
	xrpc.WriteJSON(w, http.StatusOK, map[string]string{"cid": head.CID.String(), "rev": head.Rev})
	return nil
}

func (h *Host) getRepoStatus(w http.ResponseWriter, r *http.Request) error {
	repo, err := h.didParam(r)
	if err != nil {
		return err
	}
	head, err := repo.Head(r.Context())
	if err != nil {
		return err
	}
	xrpc.WriteJSON(w, http.StatusOK, map[string]any{"did": repo.did, "active": true, "rev": head.Rev})
	return nil
}

func (h *Host) listRepos(w http.ResponseWriter, r *http.Request) error {
	limit, err := xrpc.IntParam(r, "limit", 500, 1, 1000)
	if err != nil {
		return err
	}
	cursor, err := xrpc.Param(r, "cursor")
	if err != nil {
		return err
	}
	out := struct {
		Cursor string           `json:"cursor,omitempty"`
		Repos  []map[string]any `json:"repos"`
	}{Repos: []map[string]any{}}
	for _, repo := range h.Repos() {
		if repo.did.String() <= cursor {
			continue
		}
		if len(out.Repos) == limit {
			out.Cursor = out.Repos[limit-1]["did"].(syntax.DID).String()
			break
		}
		head, err := repo.Head(r.Context())
		if err != nil {
			return err
		}
		out.Repos = append(out.Repos, map[string]any{"did": repo.did, "head": head.CID.String(), "rev": head.Rev, "active": true})
	}
	xrpc.WriteJSON(w, http.StatusOK, out)
	return nil
}

func (h *Host) listBlobs(w http.ResponseWriter, r *http.Request) error {
	repo, err := h.didParam(r)
	if err != nil {
		return err
	}
	limit, err := xrpc.IntParam(r, "limit", 500, 1, 1000)
	if err != nil {
		return err
	}
	cursor, err := xrpc.Param(r, "cursor")
	if err != nil {
		return err
	}
	since, err := xrpc.Param(r, "since")
	if err != nil {
		return err
	}
	if _, err := syntax.ParseTID(since); since != "" && err != nil {
		return xrpc.InvalidRequest("parameter \"since\" is not a revision")
	}
	cids, err := repo.ListBlobs(r.Context(), since, cursor, limit)
	if err != nil {
		return err
	}
	out := struct {
		Cursor string   `json:"cursor,omitempty"`
		CIDs   []string `json:"cids"`
	}{CIDs: cids}
	if len(cids) == limit {
		out.Cursor = cids[limit-1]
	}
	xrpc.WriteJSON(w, http.StatusOK, out)
	return nil
}

// GetBlobHandler serves an atproto blob by its CID, so that no browser takes it for a page of this host.
func (h *Host) GetBlobHandler(w http.ResponseWriter, r *http.Request) error {
	return translated(h.getBlob)(w, r)
}

func (h *Host) getBlob(w http.ResponseWriter, r *http.Request) error {
	repo, err := h.didParam(r)
	if err != nil {
		return err
	}
	v, err := xrpc.RequiredParam(r, "cid")
	if err != nil {
		return err
	}
	c, err := parseCID(v)
	if err != nil {
		return xrpc.InvalidRequest("parameter \"cid\" is not a CID")
	}
	blob, err := repo.GetBlob(r.Context(), c)
	if err != nil {
		return err
	}
	header := w.Header()
	header.Set("Content-Type", blob.Mime)
	header.Set("Content-Length", strconv.Itoa(len(blob.Data)))
	header.Set("Content-Security-Policy", "default-src 'none'; sandbox")
	header.Set("X-Content-Type-Options", "nosniff")
	header.Set("Content-Disposition", `attachment; filename="`+c.String()+`"`)
	header.Set("ETag", `"`+c.String()+`"`)
	if r.Method == http.MethodHead {
		return nil
	}
	_, err = w.Write(blob.Data)
	return errors.Join(err, context.Cause(r.Context()))
}

// parseCID reads a CID in the forms that the protocol has: version 1, in the letters that its syntax allows.
//
// Source: https://atproto.com/specs/lexicon, "cid".
func parseCID(text string) (cid.Cid, error) {
	if _, err := syntax.ParseCID(text); err != nil {
		return cid.Undef, err
	}
	c, err := cid.Decode(text)
	if err == nil && c.Version() != 1 {
		err = errors.New("a CID of version 0")
	}
	return c, err
}
