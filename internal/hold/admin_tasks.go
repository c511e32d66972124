package hold

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/api/atcr"
	"atcr.io/internal/crew"
	"atcr.io/internal/pds"
	"atcr.io/internal/upload"
)

func adminCollect(ctx context.Context, h *Hold, r *http.Request, tell say) error {
	o := CollectOptions{DryRun: r.URL.Query().Get("dry-run") != "", Unclaimed: r.URL.Query().Get("unclaimed") != ""}
	would := map[bool]string{true: "would delete", false: "deleted"}[o.DryRun]
	o.Progress = func(looked int64) { tell(Line{Text: fmt.Sprintf("looked at %d blobs …", looked)}) }
	o.Report = func(b upload.Unnamed) {
		owner := "found in the storage"
		if b.Owner != "" {
			owner = "uploaded by " + b.Owner.String()
		}
		data := map[string]any{"digest": b.Digest, "size": b.Size, "uploader": b.Owner, "since": timestamp(b.Since)}
		text := fmt.Sprintf("%s %s, %s, %s: no manifest has named it since %s", would, b.Digest, Bytes(b.Size), owner, b.Since.UTC().Format("2006-01-02 15:04"))
		if b.Kept != "" {
			data["kept"] = b.Kept
			text = fmt.Sprintf("kept %s, %s, %s: %s", b.Digest, Bytes(b.Size), owner, b.Kept)
		}
		tell(Line{Text: text, Data: data})
	}
	c, err := h.Collect(ctx, o)
	if err == nil || c.Blobs > 0 {
		tell(Line{Text: fmt.Sprintf("%s %d blobs, %s; kept %d that no manifest here names", would, c.Blobs, Bytes(c.Bytes), c.Kept), Data: c})
	}
	return err
}

func adminFsck(ctx context.Context, h *Hold, _ *http.Request, tell say) error {
	end := tell.working(progressEvery, "comparing the index with the storage", nil)
	rebuilt, err := h.uploads.Rebuild(ctx)
	end()
	if err != nil {
		return err
	}
	tell(Line{
		Text: fmt.Sprintf("%d blobs that were in the storage alone are in the index now; %d that are not in the storage any more are out of it", rebuilt.Added, rebuilt.Removed),
		Data: rebuilt,
	})
	return adminVerify(ctx, h, nil, tell)
}

func adminCrewList(ctx context.Context, h *Hold, _ *http.Request, tell say) error {
	policy, err := h.roster.policy(ctx)
	if err != nil {
		return err
	}
	tell(Line{Text: policy.Owner.String() + "  owner", Data: map[string]any{"member": policy.Owner, "owner": true}})
	members := make([]syntax.DID, 0, len(policy.Members))
	for did := range policy.Members {
		members = append(members, did)
	}
	slices.Sort(members)
	for _, did := range members {
		m := policy.Members[did]
		if did == policy.Owner {
			continue
		}
		what := strings.Join(m.Permissions, ", ")
		if what == "" {
			what = "refused"
		}
		if m.Tier != "" {
			what += "  tier " + m.Tier
		}
		tell(Line{Text: did.String() + "  " + what, Data: map[string]any{"member": did, "permissions": m.Permissions, "tier": m.Tier, "addedAt": timestamp(m.AddedAt)}})
	}
	return nil
}

func memberOf(r *http.Request) (syntax.DID, error) {
	text, err := required(r, "member")
	if err != nil {
		return "", err
	}
	did, err := syntax.ParseDID(text)
	if err != nil {
		return "", fmt.Errorf("%q is not a DID; it looks like did:plc:abc…", text)
	}
	return did, nil
}

func adminCrewSet(ctx context.Context, h *Hold, r *http.Request, tell say) error {
	did, err := memberOf(r)
	if err != nil {
		return err
	}
	q := r.URL.Query()
	var permissions []string // nil: as they are
	if q.Has("permissions") {
		if permissions, err = parsePermissions(q.Get("permissions")); err != nil {
			return err
		}
	}
	var tier *string
	if q.Has("tier") {
		name := q.Get("tier")
		if _, ok := h.quota.quotas.Tiers[name]; name != "" && !ok {
			return fmt.Errorf("HOLD_QUOTAS has no tier %q", name)
		}
		tier = &name
	}
	member, err := h.setMember(ctx, did, permissions, tier)
	if err != nil {
		return err
	}
	tell(memberLine(member))
	return nil
}

func adminCrewRemove(ctx context.Context, h *Hold, r *http.Request, tell say) error {
	did, err := memberOf(r)
	if err != nil {
		return err
	}
	_, known, err := h.member(ctx, did)
	if err != nil {
		return err
	}
	if !known {
		return fmt.Errorf("%s is no member", did)
	}
	if err := h.removeMember(ctx, did); err != nil {
		return err
	}
	tell(Line{Text: did.String() + " is no member any more", Data: map[string]any{"member": did}})
	return nil
}

// adminTransfer gives the hold to another owner. The one before stays a member, without crew:admin: that is the new
// owner's to give.
func adminTransfer(ctx context.Context, h *Hold, r *http.Request, tell say) error {
	did, err := memberOf(r)
	if err != nil {
		return err
	}
	captain, _, err := h.captain(ctx)
	if err != nil {
		return err
	}
	old := syntax.DID(captain.Owner)
	if old == did {
		return fmt.Errorf("%s owns this hold already", did)
	}
	if found, ok := h.blocks.find(did.String()); ok {
		return fmt.Errorf("%s; unblock them first", found.why())
	}
	captain.Owner = did.String()
	raw, err := json.Marshal(captain)
	if err != nil {
		return err
	}
	writes := []pds.Write{{Action: pds.Put, Collection: atcr.HoldCaptainNSID, Rkey: atcr.SelfRkey, Value: raw}}
	for _, m := range []struct {
		did         syntax.DID
		role        string
		permissions []string
	}{
		{did, "owner", []string{crew.BlobRead, crew.BlobWrite, crew.CrewAdmin}},
		{old, "member", []string{crew.BlobRead, crew.BlobWrite}},
	} {
		keys, before, err := h.crewOf(ctx, m.did)
		if err != nil {
			return err
		}
		if m.did == old && len(keys) == 0 {
			continue
		}
		member := changed(before, m.did, m.permissions, nil, h.now())
		member.Role = m.role
		if raw, err = json.Marshal(member); err != nil {
			return err
		}
		rkey := syntax.RecordKey(atcr.CrewRkey(m.did.String()))
		writes = append(writes, pds.Write{Action: pds.Put, Collection: atcr.HoldCrewNSID, Rkey: rkey, Value: raw})
		for _, k := range keys { // one record a member
			if k != rkey {
				writes = append(writes, pds.Write{Action: pds.Delete, Collection: atcr.HoldCrewNSID, Rkey: k})
			}
		}
	}
	if err := h.applyAll(ctx, writes); err != nil {
		return err
	}
	tell(Line{Text: fmt.Sprintf("the hold belongs to %s now, and no more to %s, who may still push and pull where they were a member. Set HOLD_OWNER=%s, or leave it empty, before the next start", did, old, did), Data: map[string]any{"owner": did, "before": old}})
	return nil
}

func adminVerify(ctx context.Context, h *Hold, _ *http.Request, tell say) error {
	end := tell.working(progressEvery, "reading every record", nil)
	records, err := h.repo.Verify(ctx)
	end()
	if err != nil {
		return err
	}
	head, err := h.repo.Head(ctx)
	if err != nil {
		return err
	}
	tell(Line{Text: fmt.Sprintf("the repo is whole: %d records, commit %s, rev %s", records, head.CID, head.Rev), Data: map[string]any{"records": records, "commit": head.CID.String(), "rev": head.Rev}})
	return nil
}

// create makes a file that must not exist yet, readable by its owner alone; it is removed again where fill
// fails.
func create(path string, fill func(*os.File) error) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if err := errors.Join(fill(f), f.Sync(), f.Close()); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}

// adminExport writes the repo into a file, or tells it piece by piece; words about its progress only to who asks for
// them, and keeps them apart.
func adminExport(ctx context.Context, h *Hold, r *http.Request, tell say) error {
	path := r.URL.Query().Get("file")
	if path == "" {
		tell = serial(tell)
		var told atomic.Int64
		if r.URL.Query().Get("notes") != "" {
			defer tell.working(progressEvery, "writing the repo", func() string { return Bytes(told.Load()).String() })()
		}
		out := bufio.NewWriterSize(teller(func(l Line) { told.Add(int64(len(l.Bytes))); tell(l) }), 64<<10)
		return errors.Join(h.repo.Export(ctx, out), out.Flush())
	}
	end := tell.working(progressEvery, "writing the repo", sizeOf(path))
	err := create(path, func(f *os.File) error { return h.repo.Export(ctx, f) })
	end()
	if err != nil {
		return err
	}
	tell(Line{Text: "the repo is in " + path, Data: map[string]any{"file": path}})
	return nil
}

// teller tells what is written to it.
type teller say

func (t teller) Write(p []byte) (int, error) {
	t(Line{Bytes: bytes.Clone(p)})
	return len(p), nil
}

func adminCrawl(ctx context.Context, h *Hold, r *http.Request, tell say) error {
	relays := h.config.Relays
	if one := r.URL.Query().Get("relay"); one != "" {
		relays = []string{one}
	}
	if len(relays) == 0 {
		return errors.New("no relay: name one, or set HOLD_RELAYS")
	}
	var errs []error
	for _, relay := range relays {
		if err := h.requestCrawl(ctx, relay); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", relay, err))
			continue
		}
		tell(Line{Text: relay + " will read this hold", Data: map[string]any{"relay": relay}})
	}
	return errors.Join(errs...)
}

// eachRecord calls fn with all records of a collection.
func (h *Hold) eachRecord(ctx context.Context, collection syntax.NSID, fn func(pds.Record) error) error {
	for cursor := ""; ; {
		page, err := h.repo.ListRecords(ctx, collection, 500, cursor, true)
		if err != nil {
			return err
		}
		for _, r := range page {
			cursor = r.Rkey.String()
			if err := fn(r); err != nil {
				return err
			}
		}
		if len(page) < 500 {
			return nil
		}
	}
}

// readJSON decodes a record.
func readJSON(r pds.Record, v any) bool { return json.Unmarshal(r.Value, v) == nil }
