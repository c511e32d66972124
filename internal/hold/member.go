package hold

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/api/atcr"
	"atcr.io/internal/crew"
	"atcr.io/internal/pds"
	"atcr.io/internal/xrpc"
)

// maxClockAhead is how far ahead of the hold's clock a crew record may say that it was written: of several for a
// member the newest counts, and one from the future would outrank all that come.
const maxClockAhead = 5 * time.Minute

// addedAt is when a crew record says that it was written; one that does not say is the oldest.
func addedAt(m atcr.HoldCrew) time.Time {
	at, err := time.Parse(time.RFC3339, m.AddedAt)
	if err != nil {
		return time.Time{}
	}
	return at
}

// changed is a member's record with other permissions. Of the one before (zero for none) it keeps the fields that
// nobody here knows, and permissions and tier where these are nil; somebody new may read and write then.
func changed(before atcr.HoldCrew, did syntax.DID, permissions []string, tier *string, at time.Time) atcr.HoldCrew {
	if tier == nil {
		tier = &before.Tier
	}
	switch {
	case permissions != nil:
	case before.Member != "":
		permissions = append([]string{}, before.Permissions...)
	default:
		permissions = []string{crew.BlobRead, crew.BlobWrite}
	}
	return atcr.HoldCrew{
		LexiconTypeID: atcr.HoldCrewNSID, Member: did.String(), Role: "member", Permissions: permissions, Tier: *tier, AddedAt: timestamp(at), Extra: before.Extra,
	}
}

// crewOf are the keys of every crew record of did, and the one that counts; zero for none.
func (h *Hold) crewOf(ctx context.Context, did syntax.DID) (keys []syntax.RecordKey, counts atcr.HoldCrew, err error) {
	err = h.eachRecord(ctx, atcr.HoldCrewNSID, func(record pds.Record) error {
		var member atcr.HoldCrew
		if !readJSON(record, &member) || member.Member != did.String() {
			return nil
		}
		if len(keys) == 0 || addedAt(member).After(addedAt(counts)) {
			counts = member
		}
		keys = append(keys, record.Rkey)
		return nil
	})
	return keys, counts, err
}

// setMember writes did's record, and deletes others that they have, in one commit: none of them may outrank it.
func (h *Hold) setMember(ctx context.Context, did syntax.DID, permissions []string, tier *string) (member atcr.HoldCrew, err error) {
	rkey := syntax.RecordKey(atcr.CrewRkey(did.String()))
	for range setRounds {
		keys, before, err := h.crewOf(ctx, did)
		if err != nil {
			return member, err
		}
		keys = slices.DeleteFunc(keys, func(k syntax.RecordKey) bool { return k == rkey })
		if most := pds.MaxCommitOps - 1; len(keys) > most { // more than one commit holds
			if err := h.deleteRecords(ctx, atcr.HoldCrewNSID, keys[most:]); err != nil {
				return member, err
			}
			keys = keys[:most]
		}
		member = changed(before, did, permissions, tier, h.now())
		raw, err := json.Marshal(member)
		if err != nil {
			return member, err
		}
		writes := []pds.Write{{Action: pds.Put, Collection: atcr.HoldCrewNSID, Rkey: rkey, Value: raw}}
		for _, k := range keys {
			writes = append(writes, pds.Write{Action: pds.Delete, Collection: atcr.HoldCrewNSID, Rkey: k})
		}
		_, err = h.repo.Apply(ctx, writes, nil)
		if !errors.Is(err, pds.ErrRecordNotFound) { // one of the others went meanwhile
			return member, err
		}
	}
	return member, fmt.Errorf("others change the records of %s at the same time: try again", did)
}

// setRounds bounds how often setMember looks again.
const setRounds = 5

// oneRecord is nil where a write leaves a member with one record, or puts the one with the usual key beside it;
// batch has the keys of the writes before it in the same call. The owner may write what they like: nobody's
// record is to outrank theirs.
func (h *Hold) oneRecord(ctx context.Context, access crew.Access, change crew.Write, rkey syntax.RecordKey, batch map[syntax.DID]syntax.RecordKey) error {
	if change.Collection != atcr.HoldCrewNSID || change.Delete || access.Owner {
		return nil
	}
	refusal := xrpc.InvalidRequest("%s has a crew record under another key: change that one, or leave the key away", change.Member)
	if other, ok := batch[change.Member]; ok && other != rkey {
		return refusal
	}
	batch[change.Member] = rkey
	if rkey.String() == atcr.CrewRkey(change.Member.String()) {
		return nil
	}
	keys, _, err := h.crewOf(ctx, change.Member)
	if err != nil || len(keys) == 0 || slices.Contains(keys, rkey) {
		return err
	}
	return refusal
}
