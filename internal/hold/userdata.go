package hold

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/api/atcr"
	"atcr.io/internal/httpx"
	"atcr.io/internal/pds"
	"atcr.io/internal/xrpc"
)

// exportsPerHour bounds how often one person may ask for all that is theirs, which reads all statistics and members.
const exportsPerHour = 20

// exportUserData streams all that the hold's repo says of the caller, a record at a time.
func (h *Hold) exportUserData(w http.ResponseWriter, r *http.Request) error {
	caller, err := h.caller(r, xrpc.Call{Lxm: []string{atcr.HoldExportUserDataNSID}})
	if err != nil {
		return err
	}
	if caller == "" {
		return xrpc.Errorf(http.StatusUnauthorized, atcr.HoldExportUserDataErrorAuthRequired, "this call needs a service token for %s", h.did)
	}
	if err := h.limits.exports.Take(w.Header(), caller.String(), 1); err != nil {
		return err
	}
	access, err := h.roster.Access(r.Context(), caller)
	if err != nil {
		return err
	}
	crewRecord, err := h.crewRecord(r.Context(), caller)
	if err != nil {
		return err
	}
	posts, err := h.ledger.PostsOf(r.Context(), caller) // few: so many a day
	if err != nil {
		return err
	}
	begin, err := json.Marshal(struct {
		ExportedAt string          `json:"exportedAt"`
		HoldDID    syntax.DID      `json:"holdDid"`
		UserDID    syntax.DID      `json:"userDid"`
		IsCaptain  bool            `json:"isCaptain"`
		Crew       json.RawMessage `json:"crewRecord,omitempty"`
	}{timestamp(h.now()), h.did, caller, access.Owner, crewRecord})
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	out := &recordStream{h: h, ctx: r.Context(), w: bufio.NewWriterSize(httpx.PacedWriter(w, exportProgress), 64<<10)}
	out.write(bytes.TrimSuffix(begin, []byte("}")))
	out.list("layerRecords", func() error {
		return h.ledger.EachLayerOf(r.Context(), caller, func(rkey syntax.RecordKey) error { return out.record(atcr.HoldLayerNSID, rkey) })
	})
	out.list("statsRecords", func() error {
		return h.eachStats(r.Context(), caller, func(record pds.Record) { out.value(record.Value) })
	})
	out.list("blueskyPosts", func() error {
		for _, rkey := range posts {
			if err := out.record(postNSID, rkey); err != nil {
				return err
			}
		}
		return nil
	})
	out.write([]byte("}"))
	if out.err == nil {
		out.err = out.w.Flush()
	}
	return out.err // which cuts off what was sent
}

// exportProgress is how long 64 KiB of an export may take.
const exportProgress = time.Minute

// recordStream writes lists of records as JSON. Its first error stays, and ends it.
type recordStream struct {
	h     *Hold
	ctx   context.Context
	w     *bufio.Writer
	begun bool // the list has a value
	err   error
}

func (s *recordStream) write(p []byte) {
	if s.err == nil {
		_, s.err = s.w.Write(p)
	}
}

func (s *recordStream) list(name string, values func() error) {
	s.write([]byte(`,"` + name + `":[`))
	s.begun = false
	if s.err == nil {
		if err := values(); s.err == nil {
			s.err = err
		}
	}
	s.write([]byte("]"))
}

func (s *recordStream) value(raw json.RawMessage) {
	if s.begun {
		s.write([]byte(","))
	}
	s.begun = true
	s.write(raw)
}

// record writes a record that is still there.
func (s *recordStream) record(collection syntax.NSID, rkey syntax.RecordKey) error {
	record, err := s.h.repo.GetRecord(s.ctx, collection, rkey)
	if errors.Is(err, pds.ErrRecordNotFound) {
		return nil // deleted meanwhile
	}
	if err == nil {
		s.value(record.Value)
		err = s.err
	}
	return err
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

// crewRecord is did's crew record, whatever its key: of several the one that counts; nil for none.
func (h *Hold) crewRecord(ctx context.Context, did syntax.DID) (newest json.RawMessage, err error) {
	var added time.Time
	err = h.eachRecord(ctx, atcr.HoldCrewNSID, func(record pds.Record) error {
		var member atcr.HoldCrew
		if readJSON(record, &member) && member.Member == did.String() && (newest == nil || addedAt(member).After(added)) {
			newest, added = record.Value, addedAt(member)
		}
		return nil
	})
	return newest, err
}

// deleteUserData deletes the caller's layer and statistics records, the posts about them and their membership, in
// one commit where they fit. A refusal stays: it is the owner's word. The bytes go by collection, where nobody
// else's manifests name them.
func (h *Hold) deleteUserData(w http.ResponseWriter, r *http.Request) error {
	caller, err := h.callerOnce(r, atcr.HoldDeleteUserDataNSID)
	if err != nil {
		return err
	}
	if err := h.verifier.Use(xrpc.BearerToken(r)); err != nil {
		return err
	}
	out := atcr.HoldDeleteUserDataOutput{Success: true}
	defer h.persons.deleting(caller)() // a push that goes on has added its records, or has yet to ask whether it may
	// Others may add records meanwhile, as who publishes statistics: those go too.
	for round := 0; ; round++ {
		found, err := h.userRecords(r.Context(), caller)
		if err != nil {
			return err
		}
		if len(found.all) == 0 {
			break
		}
		if round == deleteRounds { // the ledger must still know of what is left
			return xrpc.Errorf(http.StatusConflict, atcr.HoldDeleteUserDataErrorDeletionFailed,
				"%d records are left, which came while others were deleted: end the pushes that go on, and ask again", len(found.all))
		}
		if err := h.deleteAll(r.Context(), found.all); err != nil {
			return err
		}
		found.addTo(&out)
	}
	late, err := h.eraseCounts(r.Context(), caller)
	if err = errors.Join(err, h.uploads.Disown(r.Context(), caller)); err != nil {
		return err
	}
	late.addTo(&out)
	h.quota.forget(caller)
	h.imagesWent()
	xrpc.WriteJSON(w, http.StatusOK, out)
	return nil
}

// eraseCounts deletes the statistics and posts that came of waiting counts and pushes behind the last look, and what the
// ledger has, those counts and pushes included: no record can come of them then.
func (h *Hold) eraseCounts(ctx context.Context, did syntax.DID) (late userRecords, err error) {
	h.counting.Lock()
	defer h.counting.Unlock()
	if err := errors.Join(h.eachStats(ctx, did, late.addStats), h.addPosts(ctx, did, &late)); err != nil {
		return late, err
	}
	return late, errors.Join(h.deleteAll(ctx, late.all), h.ledger.Erase(ctx, did))
}

// deleteRounds bounds how often records are looked for that came meanwhile.
const deleteRounds = 5

// userRecords are a person's records at a hold.
type userRecords struct {
	all           []pds.Write
	layers, stats int64
	crew          bool
}

// addTo counts what was deleted.
func (u userRecords) addTo(out *atcr.HoldDeleteUserDataOutput) {
	if out.LayersDeleted == nil {
		out.LayersDeleted, out.StatsDeleted, out.CrewDeleted = new(int64), new(int64), new(bool)
	}
	*out.LayersDeleted += u.layers
	*out.StatsDeleted += u.stats
	*out.CrewDeleted = *out.CrewDeleted || u.crew
}

func (u *userRecords) add(collection syntax.NSID, rkey syntax.RecordKey) {
	u.all = append(u.all, pds.Write{Action: pds.Delete, Collection: collection, Rkey: rkey})
}

func (u *userRecords) addStats(record pds.Record) {
	u.add(atcr.HoldStatsNSID, record.Rkey)
	u.stats++
}

// userRecords finds what deleteUserData deletes; the membership last, as long as records are left to be made by it.
func (h *Hold) userRecords(ctx context.Context, did syntax.DID) (found userRecords, err error) {
	layers, err := h.ledger.LayersOf(ctx, did)
	if err != nil {
		return found, err
	}
	for _, rkey := range layers {
		found.add(atcr.HoldLayerNSID, rkey)
	}
	found.layers = int64(len(layers))
	err = h.eachStats(ctx, did, found.addStats)
	if err != nil {
		return found, err
	}
	if err := h.addPosts(ctx, did, &found); err != nil {
		return found, err
	}
	member, known, err := h.member(ctx, did)
	if err != nil {
		return found, err
	}
	access, err := h.roster.Access(ctx, did)
	if err != nil || !known || len(member.Permissions) == 0 || access.Owner {
		return found, err
	}
	found.crew = true
	crew, _, err := h.crewOf(ctx, did)
	for _, rkey := range crew {
		found.add(atcr.HoldCrewNSID, rkey)
	}
	return found, err
}

// addPosts finds the posts about did that are still there.
func (h *Hold) addPosts(ctx context.Context, did syntax.DID, found *userRecords) error {
	posts, err := h.ledger.PostsOf(ctx, did)
	if err != nil {
		return err
	}
	for _, rkey := range posts {
		if _, err := h.repo.GetRecord(ctx, postNSID, rkey); err == nil {
			found.add(postNSID, rkey)
		}
	}
	return nil
}

// removeMember deletes every crew record of did, whatever its key.
func (h *Hold) removeMember(ctx context.Context, did syntax.DID) error {
	keys, _, err := h.crewOf(ctx, did)
	if err != nil {
		return err
	}
	return h.deleteRecords(ctx, atcr.HoldCrewNSID, keys)
}
