package hold

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/api/atcr"
	"atcr.io/internal/crew"
	"atcr.io/internal/httpx"
	"atcr.io/internal/pds"
	"atcr.io/internal/xrpc"
)

const (
	// idleFor is how long somebody who made themselves a member stays one without a push.
	idleFor   = 30 * 24 * time.Hour
	idleBatch = pds.MaxCommitOps
)

// requestCrew makes the caller a member, at a hold that takes everybody. Who has a crew record keeps it as
// it is, a refusal included.
//
// Source: contract, "requestCrew".
func (h *Hold) requestCrew(w http.ResponseWriter, r *http.Request) error {
	caller, err := h.callerOnce(r, atcr.HoldRequestCrewNSID)
	if err != nil {
		return err
	}
	if err := h.blockedPerson(caller); err != nil {
		return err
	}
	var in atcr.HoldRequestCrewInput
	if err := xrpc.ReadJSON(w, r, &in); err != nil {
		return err
	}
	permissions, err := wishes(in)
	if err != nil {
		return err
	}
	h.registering.Lock()
	defer h.registering.Unlock()
	_, known, err := h.member(r.Context(), caller)
	if err != nil {
		return err
	}
	policy, err := h.roster.policy(r.Context())
	if err != nil {
		return err
	}
	if !known && !policy.AllowAllCrew {
		return xrpc.Errorf(http.StatusForbidden, atcr.HoldRequestCrewErrorRegistrationDisabled, "this hold's members are chosen by its owner: ask them")
	}
	if err := h.verifier.Use(xrpc.BearerToken(r)); err != nil {
		return err
	}
	if known {
		xrpc.WriteJSON(w, http.StatusOK, atcr.HoldRequestCrewOutput{Status: "already_member"})
		return nil
	}
	today, err := h.ledger.Registrations(r.Context())
	if err != nil {
		return err
	}
	if today >= h.config.Registrations {
		e := xrpc.Errorf(http.StatusTooManyRequests, "RateLimitExceeded", "too many people became members today: try again tomorrow")
		e.RetryAfter = time.Hour
		return e
	}
	out, err := h.register(r.Context(), caller, permissions)
	if err != nil {
		return err
	}
	xrpc.WriteJSON(w, http.StatusOK, out)
	return nil
}

// wishes are the permissions that somebody may ask for by themselves.
func wishes(in atcr.HoldRequestCrewInput) ([]string, error) {
	if in.Role != "" && in.Role != "member" {
		return nil, xrpc.InvalidRequest("role must be member")
	}
	if len(in.Permissions) == 0 {
		return []string{crew.BlobRead, crew.BlobWrite}, nil
	}
	for _, p := range in.Permissions {
		if p != crew.BlobRead && p != crew.BlobWrite {
			return nil, xrpc.InvalidRequest("permissions may be %s and %s", crew.BlobRead, crew.BlobWrite)
		}
	}
	slices.Sort(in.Permissions)
	return slices.Compact(in.Permissions), nil
}

// register writes the crew record, and in its transaction that the member came by themselves.
func (h *Hold) register(ctx context.Context, did syntax.DID, permissions []string) (out atcr.HoldRequestCrewOutput, err error) {
	rkey := syntax.RecordKey(atcr.CrewRkey(did.String()))
	raw, err := json.Marshal(atcr.HoldCrew{Member: did.String(), Role: "member", Permissions: permissions, AddedAt: timestamp(h.now())})
	if err != nil {
		return out, err
	}
	h.following.mu.Lock()
	h.following.registering = map[syntax.RecordKey]awaited[syntax.DID]{rkey: {did, raw}}
	h.following.mu.Unlock()
	defer func() {
		h.following.mu.Lock()
		h.following.registering = nil
		h.following.mu.Unlock()
	}()
	result, err := h.repo.Apply(ctx, []pds.Write{{Action: pds.Create, Collection: atcr.HoldCrewNSID, Rkey: rkey, Value: raw}}, nil)
	if errors.Is(err, pds.ErrRecordExists) {
		return atcr.HoldRequestCrewOutput{Status: "already_member"}, nil
	}
	if err != nil {
		return out, err
	}
	return atcr.HoldRequestCrewOutput{Status: "created", Uri: string(result.Writes[0].URI), Cid: result.Writes[0].CID.String()}, nil
}

// removeIdle removes those who made themselves members and pushed nothing for long.
func (h *Hold) removeIdle(ctx context.Context) error {
	for {
		idle, err := h.ledger.Idle(ctx, h.now().Add(-idleFor), idleBatch)
		if err != nil || len(idle) == 0 {
			return err
		}
		if err := h.removeRegistered(ctx, idle); err != nil || len(idle) < idleBatch {
			return err
		}
	}
}

// removeRegistered deletes the records by which people made themselves members. One that the owner wrote since they were
// looked for stays.
func (h *Hold) removeRegistered(ctx context.Context, dids []syntax.DID) error {
	var deletes []pds.Write
	for _, did := range dids {
		rkey := syntax.RecordKey(atcr.CrewRkey(did.String()))
		record, err := h.repo.GetRecord(ctx, atcr.HoldCrewNSID, rkey)
		if errors.Is(err, pds.ErrRecordNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		// Asked behind the look at the record: the same commit writes both.
		registered, err := h.ledger.Registered(ctx, did)
		if err != nil {
			return err
		}
		if registered {
			deletes = append(deletes, pds.Write{Action: pds.Delete, Collection: atcr.HoldCrewNSID, Rkey: rkey, SwapRecord: &record.CID})
		}
	}
	return h.deleteAll(ctx, deletes)
}

// callerOnce is the caller of a method whose tokens are good for one call. The token is used up by Verifier.Use,
// once the call was found permitted.
func (h *Hold) callerOnce(r *http.Request, nsid string) (syntax.DID, error) {
	caller, err := h.caller(r, xrpc.Call{Lxm: []string{nsid}, Once: true})
	if err != nil {
		return "", err
	}
	if caller == "" {
		return "", xrpc.Errorf(http.StatusUnauthorized, "AuthRequired", "this call needs a service token for %s with lxm %s", h.did, nsid)
	}
	httpx.EventFrom(r.Context()).DID = caller.String()
	return caller, nil
}
