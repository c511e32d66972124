package appview

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"
	"golang.org/x/sync/errgroup"

	"atcr.io/api/atcr"
	"atcr.io/internal/oci"
	"atcr.io/internal/registry"
	"atcr.io/internal/session"
	"atcr.io/internal/xrpc"
)

const (
	// checkTimeout bounds what is asked of one hold while somebody waits for a page.
	checkTimeout = 10 * time.Second
	// maxKnownHolds bounds how many holds are asked about one person.
	maxKnownHolds = 20
	putRecordNSID = "com.atproto.repo.putRecord"
)

// chooser shows and sets the hold that a person pushes to.
type chooser struct {
	holds    *holds
	calls    *holdCalls
	sessions caller
	upstream xrpc.Upstream
	from     collections
	owners   owners
	crew     func(ctx context.Context, member syntax.DID, limit int) ([]syntax.DID, error) // of whose crew the index says a person is
	clock    clock
}

// holdReport is what a person is told of a hold.
type holdReport struct {
	DID syntax.DID `json:"did"`
	URL string     `json:"url,omitempty"`
	// Default: it is the AppView's own choice, for those who made none.
	Default bool `json:"default"`
	// Chosen: it is where the person's pushes go.
	Chosen bool `json:"chosen"`
	// MayWrite is what the hold answered to an upload in the person's name, which was aborted.
	MayWrite bool `json:"mayWrite"`
	// OthersRead: everybody may pull; else the hold's members.
	OthersRead bool `json:"othersRead"`
	// Role is what the hold's records say of the person: owner, a crew label, or "".
	Role string `json:"role,omitempty"`
	// Problem says in a sentence why pushes would fail, or "".
	Problem string `json:"problem,omitempty"`
}

// current is the hold that the person's pushes go to, checked. What is wrong with it is in Problem.
func (c *chooser) current(ctx context.Context, s session.Session) (holdReport, error) {
	did, byDefault, err := c.chosen(ctx, s.DID)
	if err != nil {
		return holdReport{}, err
	}
	report := c.check(ctx, s, did)
	report.Chosen, report.Default = true, byDefault
	return report, nil
}

// chosen is the DID in the person's profile, or the default. A profile that names nothing usable is an error.
func (c *chooser) chosen(ctx context.Context, did syntax.DID) (hold syntax.DID, byDefault bool, err error) {
	profile, err := c.holds.profiles.get(ctx, did)
	if err != nil {
		return "", false, upstreamError("your PDS", err)
	}
	if profile == nil || !profile.Malformed && profile.Value.DefaultHold == "" {
		return c.holds.byDefault, true, nil
	}
	if !profile.Malformed {
		if hold, err = holdDID(profile.Value.DefaultHold); err == nil {
			return hold, false, nil
		}
	}
	return "", false, oci.Errorf(oci.CodeDenied, "the hold in your io.atcr.sailor.profile cannot be read: choose one again")
}

// check asks a hold, live, what the person may do there.
func (c *chooser) check(ctx context.Context, s session.Session, did syntax.DID) holdReport {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	report := holdReport{DID: did}
	c.holds.cached.forget(did)
	at, err := c.holds.find(ctx, did)
	if err != nil {
		report.Problem = oci.AsError(err).Message
		return report
	}
	report.URL, report.OthersRead = at.URL, at.Public
	report.Role, _ = c.standing(ctx, at, s.DID)
	if err := c.tryUpload(ctx, s, at); err != nil {
		report.Problem = oci.AsError(err).Message
		return report
	}
	report.MayWrite = true
	return report
}

// tryUpload begins an upload and aborts it: the hold's own answer is the only one that counts.
func (c *chooser) tryUpload(ctx context.Context, s session.Session, at *hold) error {
	who := registry.Caller{Subject: s.DID.String(), Session: s.ID, Push: true}
	out, err := c.calls.begin(ctx, who, at, atcr.HoldInitiateUploadInput{Digest: oci.FromBytes(nil).String()})
	if err != nil {
		return err
	}
	if err := c.calls.call(ctx, who, at, atcr.HoldAbortUploadNSID, atcr.HoldAbortUploadInput{UploadId: out.UploadId}, nil); err != nil {
		return nil //nolint:nilerr // it ends by itself after a while, and the answer was yes
	}
	return nil
}

// standing is what the hold's public records say of a person: a label, and whether they may write. A hold that
// does not answer says nothing.
func (c *chooser) standing(ctx context.Context, at *hold, did syntax.DID) (role string, write bool) {
	captain, err := getRecord[atcr.HoldCaptain](ctx, c.upstream, at.URL, at.DID, atcr.HoldCaptainNSID, atcr.SelfRkey)
	if err == nil && captain != nil && captain.Value.Owner == did.String() {
		return "owner", true
	}
	member, err := getRecord[atcr.HoldCrew](ctx, c.upstream, at.URL, at.DID, atcr.HoldCrewNSID, atcr.CrewRkey(did.String()))
	if err != nil || member == nil || member.Malformed || member.Value.Member != did.String() {
		return "", at.AllowAllCrew
	}
	may := member.Value.Permissions
	if len(may) == 0 {
		return "refused", false
	}
	if role = member.Value.Role; role == "" {
		role = "member"
	}
	return role, at.AllowAllCrew || slices.Contains(may, "blob:write") || slices.Contains(may, "crew:admin")
}

// choose makes text (a DID or URL; "" for the default) the hold of the person, after the hold said that they
// may write there. Errors: *oci.Error, whose message says what is wrong.
func (c *chooser) choose(ctx context.Context, s session.Session, text string) (holdReport, error) {
	text = strings.TrimSpace(text)
	did := c.holds.byDefault
	if text != "" {
		if !strings.HasPrefix(text, "did:") && !strings.Contains(text, "://") {
			text = "https://" + text
		}
		var err error
		if did, err = holdDID(text); err != nil {
			return holdReport{}, oci.Errorf(oci.CodeDenied, "%w: give the hold's DID, like did:web:hold.example.com, or its URL", err)
		}
	}
	report := c.check(ctx, s, did)
	if !report.MayWrite {
		return report, oci.Errorf(oci.CodeDenied, "your hold was not changed: %s", report.Problem)
	}
	value := did.String()
	if text == "" {
		value = ""
	}
	if err := c.write(ctx, s, value); err != nil {
		return report, upstreamError("your PDS", err)
	}
	report.Chosen, report.Default = true, text == ""
	return report, nil
}

// write changes the profile's defaultHold and nothing else. Who writes at the same time is not overwritten.
func (c *chooser) write(ctx context.Context, s session.Session, value string) error {
	defer c.holds.profiles.forget(s.DID)
	for attempt := 0; ; attempt++ {
		c.holds.profiles.forget(s.DID)
		old, err := c.holds.profiles.get(ctx, s.DID)
		if err != nil {
			return err
		}
		now := c.clock().UTC().Format("2006-01-02T15:04:05.000Z")
		record := atcr.SailorProfile{CreatedAt: now}
		in := map[string]any{"repo": s.DID, "collection": atcr.SailorProfileNSID, "rkey": atcr.SelfRkey, "swapRecord": nil}
		if old != nil {
			in["swapRecord"] = old.CID
			if !old.Malformed {
				record = old.Value
			}
		}
		record.DefaultHold, record.UpdatedAt = value, now
		in["record"] = record
		body, err := json.Marshal(in)
		if err != nil {
			return err
		}
		err = c.sessions.Call(ctx, s.ID, session.Call{NSID: putRecordNSID, Body: body, ContentType: "application/json"}, nil)
		if attempt > 2 || !xrpc.IsUpstream(err, "InvalidSwap") {
			return err
		}
	}
}

// known are the holds that a person may want: the default, theirs, those that their images are in and those of whose
// crew the index says they are, where they may write. Holds that do not answer are left out.
func (c *chooser) known(ctx context.Context, s session.Session) []holdReport {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	candidates := []syntax.DID{c.holds.byDefault}
	chosen, _, err := c.chosen(ctx, s.DID)
	if err == nil {
		candidates = append(candidates, chosen)
	}
	if of, err := c.owners.find(ctx, s.DID.String()); err == nil {
		_ = listRecords(ctx, c.from, of, atcr.ManifestNSID, func(f found[atcr.Manifest]) bool { // a PDS that fails adds none
			if did := holdOf(&f.Value); did != "" {
				candidates = append(candidates, did)
			}
			return true
		})
	}
	if crew, err := c.crew(ctx, s.DID, maxKnownHolds); err == nil { // an index that fails adds none
		candidates = append(candidates, crew...) // last: strangers may write that too
	}
	seen := map[syntax.DID]bool{}
	candidates = slices.DeleteFunc(candidates, func(did syntax.DID) bool {
		known := seen[did]
		seen[did] = true
		return known
	})
	reports := make([]holdReport, min(len(candidates), maxKnownHolds))
	g := errgroup.Group{}
	g.SetLimit(4)
	for i := range reports {
		g.Go(func() error {
			at, err := c.holds.find(ctx, candidates[i])
			if err != nil {
				return nil //nolint:nilerr // it is left out
			}
			role, write := c.standing(ctx, at, s.DID)
			if !write {
				return nil
			}
			reports[i] = holdReport{DID: at.DID, URL: at.URL, OthersRead: at.Public, Role: role, Default: at.DID == c.holds.byDefault, Chosen: at.DID == chosen, MayWrite: true}
			return nil
		})
	}
	_ = g.Wait() // no function fails
	return slices.DeleteFunc(reports, func(r holdReport) bool { return r.DID == "" })
}

// sessionError says for pages and devices what an ended session means.
func sessionError(baseURL string, err error) error {
	if !errors.Is(err, session.ErrGone) {
		return err
	}
	e := oci.Errorf(oci.CodeUnauthorized, "%s", fmt.Sprintf("your sign-in at your PDS has ended: sign in at %s/settings, then this works again", baseURL))
	e.Err = err
	return e
}
