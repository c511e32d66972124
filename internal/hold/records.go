package hold

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/api/atcr"
	"atcr.io/internal/crew"
	"atcr.io/internal/pds"
	"atcr.io/internal/xrpc"
)

const uploadBlobNSID = "com.atproto.repo.uploadBlob"

// timestamp is an atproto datetime.
func timestamp(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000Z") }

// settle writes captain and first crew member at the first start, and at every later one makes the
// captain's booleans those of the settings, so that the record is what the hold does.
func (h *Hold) settle(ctx context.Context) error {
	captain, exists, err := h.captain(ctx)
	if err != nil {
		return err
	}
	if !exists {
		return h.found(ctx)
	}
	if h.config.Owner != "" && h.config.Owner != captain.Owner {
		return fmt.Errorf("HOLD_OWNER is %s, but this hold belongs to %s: set HOLD_OWNER to that, or hand the hold over with `atcr-hold captain transfer`", h.config.Owner, captain.Owner)
	}
	captain.Public, captain.AllowAllCrew, captain.EnableBlueskyPosts = h.config.Public, h.config.AllowAllCrew, h.config.BlueskyPosts
	return h.put(ctx, record{atcr.HoldCaptainNSID, atcr.SelfRkey, captain})
}

// found writes the records of a new hold in one commit.
func (h *Hold) found(ctx context.Context) error {
	if h.config.Owner == "" {
		return errNoOwner
	}
	now := timestamp(h.now())
	return h.put(ctx,
		record{atcr.HoldCaptainNSID, atcr.SelfRkey, atcr.HoldCaptain{
			Owner: h.config.Owner, Public: h.config.Public, AllowAllCrew: h.config.AllowAllCrew, EnableBlueskyPosts: h.config.BlueskyPosts, DeployedAt: now,
		}},
		record{atcr.HoldCrewNSID, atcr.CrewRkey(h.config.Owner), atcr.HoldCrew{
			Member: h.config.Owner, Role: "owner", Permissions: []string{crew.BlobRead, crew.BlobWrite, crew.CrewAdmin}, AddedAt: now,
		}},
	)
}

type record struct {
	collection, rkey string
	value            any
}

func (h *Hold) put(ctx context.Context, records ...record) error {
	writes := make([]pds.Write, len(records))
	for i, r := range records {
		raw, err := json.Marshal(r.value)
		if err != nil {
			return err
		}
		writes[i] = pds.Write{Action: pds.Put, Collection: syntax.NSID(r.collection), Rkey: syntax.RecordKey(r.rkey), Value: raw}
	}
	_, err := h.repo.Apply(ctx, writes, nil)
	return err
}

func (h *Hold) captain(ctx context.Context) (captain atcr.HoldCaptain, exists bool, err error) {
	r, err := h.repo.GetRecord(ctx, atcr.HoldCaptainNSID, atcr.SelfRkey)
	if errors.Is(err, pds.ErrRecordNotFound) {
		return captain, false, nil
	}
	if err == nil {
		err = json.Unmarshal(r.Value, &captain)
	}
	return captain, true, err
}

// roster is the policy that the hold's records make, read again after each commit that touched them.
type roster struct {
	repo *pds.Repo

	mu      sync.Mutex
	current *crew.Policy // nil: to be read
}

// Access is what did may do.
func (r *roster) Access(ctx context.Context, did syntax.DID) (crew.Access, error) {
	p, err := r.policy(ctx)
	if err != nil {
		return crew.Access{}, err
	}
	return p.Access(did), nil
}

// forget drops the policy where a commit changed captain or crew.
func (r *roster) forget(ops []pds.Op) {
	for _, op := range ops {
		if op.Collection == atcr.HoldCaptainNSID || op.Collection == atcr.HoldCrewNSID {
			r.mu.Lock()
			r.current = nil
			r.mu.Unlock()
			return
		}
	}
}

func (r *roster) policy(ctx context.Context) (*crew.Policy, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.current != nil {
		return r.current, nil
	}
	captainRecord, err := r.repo.GetRecord(ctx, atcr.HoldCaptainNSID, atcr.SelfRkey)
	if err != nil {
		return nil, err
	}
	var captain atcr.HoldCaptain
	if err := json.Unmarshal(captainRecord.Value, &captain); err != nil {
		return nil, fmt.Errorf("captain record: %w", err)
	}
	p := &crew.Policy{Owner: syntax.DID(captain.Owner), Public: captain.Public, AllowAllCrew: captain.AllowAllCrew, Members: map[syntax.DID]crew.Member{}}
	for cursor := ""; ; {
		page, err := r.repo.ListRecords(ctx, atcr.HoldCrewNSID, 500, cursor, true)
		if err != nil {
			return nil, err
		}
		for _, record := range page {
			var member atcr.HoldCrew
			if err := json.Unmarshal(record.Value, &member); err != nil {
				continue // somebody wrote it badly: it gives nobody anything
			}
			added := addedAt(member)
			did := syntax.DID(member.Member)
			if old, ok := p.Members[did]; !ok || added.After(old.AddedAt) {
				p.Members[did] = crew.Member{Permissions: member.Permissions, AddedAt: added, Tier: member.Tier}
			}
			cursor = record.Rkey.String()
		}
		if len(page) < 500 {
			r.current = p
			return p, nil
		}
	}
}

// authoriseBlob is asked for every picture that comes over HTTP. They belong to the hold's profile and posts, and
// so to what its owner alone may write.
func (h *Hold) authoriseBlob(ctx context.Context, r *http.Request) (*pds.Repo, error) {
	caller, err := h.callerOnce(r, uploadBlobNSID)
	if err != nil {
		return nil, err
	}
	access, err := h.roster.Access(ctx, caller)
	if err != nil {
		return nil, err
	}
	if !access.Owner {
		return nil, xrpc.Errorf(http.StatusForbidden, "Forbidden", "only the hold's owner may upload pictures for its profile and posts; images are pushed with io.atcr.hold.initiateUpload")
	}
	return h.repo, h.verifier.Use(xrpc.BearerToken(r))
}

// authoriseWrite is asked by the repo host for every write that comes over HTTP.
func (h *Hold) authoriseWrite(ctx context.Context, r *http.Request, nsid string, repo *pds.Repo, writes []pds.Write) error {
	call := xrpc.Call{Lxm: []string{nsid}, Once: true}
	caller, err := h.caller(r, call)
	if err != nil {
		return err
	}
	if caller == "" {
		return h.needsToken(nsid)
	}
	if err := h.blockedPerson(caller); err != nil {
		return err
	}
	access, err := h.roster.Access(ctx, caller)
	if err != nil {
		return err
	}
	batch := map[syntax.DID]syntax.RecordKey{}
	for i := range writes {
		change, err := h.describe(ctx, repo, &writes[i])
		if err != nil {
			return err
		}
		if err := access.MayWrite(change); err != nil {
			return &xrpc.Error{Status: http.StatusForbidden, Name: "Forbidden", Message: strings.TrimPrefix(err.Error(), crew.ErrDenied.Error()+": "), Err: err}
		}
		if err := h.oneRecord(ctx, access, change, writes[i].Rkey, batch); err != nil {
			return err
		}
	}
	if err := h.takeRecords(r.Context(), caller, len(writes)); err != nil {
		return err
	}
	return h.verifier.Use(xrpc.BearerToken(r))
}

// describe says what a write would change, as far as permission goes, and checks the records whose form
// the hold relies on.
func (h *Hold) describe(ctx context.Context, repo *pds.Repo, w *pds.Write) (crew.Write, error) {
	out := crew.Write{Collection: w.Collection, Delete: w.Action == pds.Delete}
	switch w.Collection {
	case atcr.HoldCrewNSID:
		return h.describeCrew(ctx, repo, w, out)
	case atcr.HoldCaptainNSID:
		if out.Delete || w.Rkey != atcr.SelfRkey {
			return out, nil
		}
		var next atcr.HoldCaptain
		if err := json.Unmarshal(w.Value, &next); err != nil {
			return out, xrpc.InvalidRequest("the record is no %s: %v", atcr.HoldCaptainNSID, err)
		}
		now, _, err := h.captain(ctx)
		out.SameCaptain = err == nil && next.Owner == now.Owner && next.Public == now.Public && next.AllowAllCrew == now.AllowAllCrew && next.EnableBlueskyPosts == now.EnableBlueskyPosts
		return out, err
	}
	return out, nil
}

func (h *Hold) describeCrew(ctx context.Context, repo *pds.Repo, w *pds.Write, out crew.Write) (crew.Write, error) {
	var next atcr.HoldCrew
	if w.Action != pds.Delete {
		if err := json.Unmarshal(w.Value, &next); err != nil {
			return out, xrpc.InvalidRequest("the record is no %s: %v", atcr.HoldCrewNSID, err)
		}
		if _, err := syntax.ParseDID(next.Member); err != nil {
			return out, xrpc.InvalidRequest("member must be a DID")
		}
		if len(next.Permissions) > 32 {
			return out, xrpc.InvalidRequest("at most 32 permissions")
		}
		if addedAt(next).After(h.now().Add(maxClockAhead)) {
			return out, xrpc.InvalidRequest("addedAt is in the future: this hold's clock says %s", timestamp(h.now()))
		}
		out.New, out.Member = next.Permissions, syntax.DID(next.Member)
		if w.Rkey == "" { // one record a member, whoever writes it
			w.Rkey, w.Action = syntax.RecordKey(atcr.CrewRkey(next.Member)), pds.Put
		}
	}
	old, err := repo.GetRecord(ctx, w.Collection, w.Rkey)
	if err == nil {
		var before atcr.HoldCrew
		if err := json.Unmarshal(old.Value, &before); err == nil {
			out.Old = before.Permissions
			if out.Delete {
				out.Member = syntax.DID(before.Member)
			}
		}
	} else if !errors.Is(err, pds.ErrRecordNotFound) {
		return out, err
	}
	// Another record for the same member would be outranked by a newer one.
	if p, err := h.roster.policy(ctx); err == nil {
		out.Old = append(slices.Clone(out.Old), p.Members[out.Member].Permissions...)
	}
	return out, nil
}
