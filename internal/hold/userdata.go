package hold

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/api/atcr"
	"atcr.io/internal/pds"
	"atcr.io/internal/xrpc"
)

// exportUserData is all that the hold's repo says of the caller.
func (h *Hold) exportUserData(w http.ResponseWriter, r *http.Request) error {
	caller, err := h.caller(r, xrpc.Call{Lxm: []string{atcr.HoldExportUserDataNSID}})
	if err != nil {
		return err
	}
	if caller == "" {
		return xrpc.Errorf(http.StatusUnauthorized, atcr.HoldExportUserDataErrorAuthRequired, "this call needs a service token for %s", h.did)
	}
	access, err := h.roster.Access(r.Context(), caller)
	if err != nil {
		return err
	}
	out := atcr.HoldExportUserDataOutput{
		ExportedAt: timestamp(h.now()), HoldDid: h.did.String(), UserDid: caller.String(), IsCaptain: access.Owner,
		LayerRecords: []json.RawMessage{}, StatsRecords: []json.RawMessage{}, BlueskyPosts: []json.RawMessage{},
	}
	layers, err := h.ledger.LayersOf(r.Context(), caller)
	if err != nil {
		return err
	}
	for _, rkey := range layers {
		record, err := h.repo.GetRecord(r.Context(), atcr.HoldLayerNSID, rkey)
		if errors.Is(err, pds.ErrRecordNotFound) {
			continue // deleted meanwhile
		}
		if err != nil {
			return err
		}
		out.LayerRecords = append(out.LayerRecords, record.Value)
	}
	crew, err := h.repo.GetRecord(r.Context(), atcr.HoldCrewNSID, syntax.RecordKey(atcr.CrewRkey(caller.String())))
	if err == nil {
		out.CrewRecord = crew.Value
	} else if !errors.Is(err, pds.ErrRecordNotFound) {
		return err
	}
	err = h.eachStats(r.Context(), caller, func(record pds.Record) { out.StatsRecords = append(out.StatsRecords, record.Value) })
	if err != nil {
		return err
	}
	xrpc.WriteJSON(w, http.StatusOK, out)
	return nil
}

// eachStats calls fn with the statistics of owner's repositories.
func (h *Hold) eachStats(ctx context.Context, owner syntax.DID, fn func(pds.Record)) error {
	return h.eachRecord(ctx, atcr.HoldStatsNSID, func(record pds.Record) error {
		var stats atcr.HoldStats
		if readJSON(record, &stats) && stats.OwnerDid == owner.String() {
			fn(record)
		}
		return nil
	})
}

// deleteUserData deletes the caller's layer and statistics records and their membership. A refusal stays: it
// is the owner's word. The bytes go by collection, where nobody else's manifests name them.
func (h *Hold) deleteUserData(w http.ResponseWriter, r *http.Request) error {
	caller, err := h.callerOnce(r, atcr.HoldDeleteUserDataNSID)
	if err != nil {
		return err
	}
	if err := h.verifier.Use(xrpc.BearerToken(r)); err != nil {
		return err
	}
	layers, err := h.ledger.LayersOf(r.Context(), caller)
	if err != nil {
		return err
	}
	var stats []syntax.RecordKey
	if err := h.eachStats(r.Context(), caller, func(record pds.Record) { stats = append(stats, record.Rkey) }); err != nil {
		return err
	}
	member, known, err := h.member(r.Context(), caller)
	if err != nil {
		return err
	}
	access, err := h.roster.Access(r.Context(), caller)
	if err != nil {
		return err
	}
	leaves := known && len(member.Permissions) > 0 && !access.Owner
	err = errors.Join(h.deleteRecords(r.Context(), atcr.HoldLayerNSID, layers), h.deleteRecords(r.Context(), atcr.HoldStatsNSID, stats))
	if err == nil && leaves {
		err = h.removeMember(r.Context(), caller)
	}
	if err == nil {
		err = h.ledger.Erase(r.Context(), caller)
	}
	if err != nil {
		return err
	}
	h.quota.forget(caller)
	nLayers, nStats := int64(len(layers)), int64(len(stats))
	xrpc.WriteJSON(w, http.StatusOK, atcr.HoldDeleteUserDataOutput{Success: true, CrewDeleted: &leaves, LayersDeleted: &nLayers, StatsDeleted: &nStats})
	return nil
}

// removeMember deletes every crew record of did, whatever its key.
func (h *Hold) removeMember(ctx context.Context, did syntax.DID) error {
	var keys []syntax.RecordKey
	err := h.eachRecord(ctx, atcr.HoldCrewNSID, func(record pds.Record) error {
		var member atcr.HoldCrew
		if readJSON(record, &member) && member.Member == did.String() {
			keys = append(keys, record.Rkey)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return h.deleteRecords(ctx, atcr.HoldCrewNSID, keys)
}
