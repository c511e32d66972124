package pds

import (
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"

	"github.com/bluesky-social/indigo/atproto/syntax"
	"github.com/ipfs/go-cid"

	"atcr.io/internal/xrpc"
)

// writeInput is what the four calls that write records share.
type writeInput struct {
	Repo       string          `json:"repo"`
	Collection string          `json:"collection"`
	Rkey       string          `json:"rkey"`
	Record     json.RawMessage `json:"record"`
	SwapCommit *string         `json:"swapCommit"`
	SwapRecord json.RawMessage `json:"swapRecord"` // absent: not compared; null: nothing must be there
	Writes     []writeItem     `json:"writes"`
	Validate   *bool           `json:"validate"` // absent: where the Lexicon is known
}

func (in writeInput) validation() Validation {
	switch {
	case in.Validate == nil:
		return WhereKnown
	case *in.Validate:
		return Always
	}
	return Unchecked
}

// writeItem is an entry of applyWrites.
type writeItem struct {
	Type       string          `json:"$type"`
	Collection string          `json:"collection"`
	Rkey       string          `json:"rkey"`
	Value      json.RawMessage `json:"value"`
}

func (h *Host) createRecord(w http.ResponseWriter, r *http.Request) error {
	return h.writeOne(w, r, "com.atproto.repo.createRecord", Create)
}

func (h *Host) putRecord(w http.ResponseWriter, r *http.Request) error {
	return h.writeOne(w, r, "com.atproto.repo.putRecord", Put)
}

func (h *Host) deleteRecord(w http.ResponseWriter, r *http.Request) error {
	return h.writeOne(w, r, "com.atproto.repo.deleteRecord", Delete)
}

func (h *Host) writeOne(w http.ResponseWriter, r *http.Request, nsid string, action Action) error {
	var in writeInput
	if err := xrpc.ReadJSON(w, r, &in); err != nil {
		return err
	}
	write := Write{Action: action, Collection: syntax.NSID(in.Collection), Rkey: syntax.RecordKey(in.Rkey), Value: in.Record, Validation: in.validation()}
	if len(in.SwapRecord) > 0 {
		swap, err := swapOf(in.SwapRecord)
		if err != nil {
			return err
		}
		write.SwapRecord = &swap
	}
	result, err := h.write(r, nsid, in, []Write{write})
	if action == Delete && errors.Is(err, ErrRecordNotFound) {
		xrpc.WriteJSON(w, http.StatusOK, map[string]any{}) // deleting what is not there is no error
		return nil
	}
	if err != nil {
		return err
	}
	commit := map[string]string{"cid": result.Commit.String(), "rev": result.Rev}
	if action == Delete {
		xrpc.WriteJSON(w, http.StatusOK, map[string]any{"commit": commit})
		return nil
	}
	out := written(result.Writes[0])
	out["commit"] = commit
	xrpc.WriteJSON(w, http.StatusOK, out)
	return nil
}

// written is what is said of a record that stands.
func written(done WriteResult) map[string]any {
	out := map[string]any{"uri": done.URI, "cid": done.CID.String()}
	if done.Status != "" {
		out["validationStatus"] = done.Status
	}
	return out
}

// swapOf reads swapRecord: null, or a CID.
func swapOf(raw json.RawMessage) (cid.Cid, error) {
	var text *string
	if err := json.Unmarshal(raw, &text); err != nil {
		return cid.Undef, xrpc.InvalidRequest("swapRecord is neither null nor a CID")
	}
	if text == nil {
		return cid.Undef, nil
	}
	c, err := parseCID(*text)
	if err != nil {
		return cid.Undef, xrpc.InvalidRequest("swapRecord is not a CID")
	}
	return c, nil
}

// write authorises and applies.
func (h *Host) write(r *http.Request, nsid string, in writeInput, writes []Write) (Result, error) {
	repo, err := h.repoBy(in.Repo)
	if err != nil {
		return Result{}, err
	}
	if h.config.Authorise == nil {
		return Result{}, xrpc.Errorf(http.StatusForbidden, "Forbidden", "this server takes no writes")
	}
	if err := h.config.Authorise(r.Context(), r, nsid, repo, writes); err != nil {
		return Result{}, err
	}
	var swap *cid.Cid
	if in.SwapCommit != nil {
		c, err := parseCID(*in.SwapCommit)
		if err != nil {
			return Result{}, xrpc.InvalidRequest("swapCommit is not a CID")
		}
		swap = &c
	}
	return repo.Apply(r.Context(), writes, swap)
}

const applyWritesNSID = "com.atproto.repo.applyWrites"

var applyActions = map[string]Action{
	applyWritesNSID + "#create": Create, applyWritesNSID + "#update": Update, applyWritesNSID + "#delete": Delete,
}

func (h *Host) applyWrites(w http.ResponseWriter, r *http.Request) error {
	var in writeInput
	if err := xrpc.ReadJSON(w, r, &in); err != nil {
		return err
	}
	writes := make([]Write, len(in.Writes))
	for i, item := range in.Writes {
		action, ok := applyActions[item.Type]
		if !ok {
			return xrpc.InvalidRequest("writes[%d].$type is none of #create, #update and #delete of %s", i, applyWritesNSID)
		}
		writes[i] = Write{Action: action, Collection: syntax.NSID(item.Collection), Rkey: syntax.RecordKey(item.Rkey), Value: item.Value, Validation: in.validation()}
	}
	result, err := h.write(r, applyWritesNSID, in, writes)
	if err != nil {
		return err
	}
	results := make([]map[string]any, len(result.Writes))
	for i, done := range result.Writes {
		switch done.Action {
		case Delete:
			results[i] = map[string]any{"$type": applyWritesNSID + "#deleteResult"}
		case Create:
			results[i] = written(done)
			results[i]["$type"] = applyWritesNSID + "#createResult"
		default:
			results[i] = written(done)
			results[i]["$type"] = applyWritesNSID + "#updateResult"
		}
	}
	xrpc.WriteJSON(w, http.StatusOK, map[string]any{
		"commit": map[string]string{"cid": result.Commit.String(), "rev": result.Rev}, "results": results,
	})
	return nil
}

func (h *Host) uploadBlob(w http.ResponseWriter, r *http.Request) error {
	if h.config.AuthoriseBlob == nil {
		return xrpc.Errorf(http.StatusForbidden, "Forbidden", "this server takes no blobs")
	}
	repo, err := h.config.AuthoriseBlob(r.Context(), r)
	if err != nil {
		return err
	}
	data, err := io.ReadAll(http.MaxBytesReader(w, r.Body, MaxBlobBytes))
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return err
	}
	if err != nil {
		return xrpc.InvalidRequest("the request body could not be read")
	}
	if len(data) == 0 {
		return xrpc.InvalidRequest("the request has no body: an empty blob is none")
	}
	kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil {
		kind = "application/octet-stream"
	}
	blob, err := repo.PutBlob(r.Context(), kind, data)
	if err != nil {
		return err
	}
	xrpc.WriteJSON(w, http.StatusOK, map[string]any{"blob": map[string]any{
		"$type": "blob", "ref": map[string]string{"$link": blob.CID.String()}, "mimeType": blob.Mime, "size": len(data),
	}})
	return nil
}
