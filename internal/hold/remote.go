package hold

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/api/atcr"
	"atcr.io/internal/crew"
	"atcr.io/internal/httpx"
	"atcr.io/internal/identity"
	"atcr.io/internal/xrpc"
)

// Remote is a hold that is reached over the network, by somebody who signs in at their own PDS: its owner, or a
// member with crew:admin.
type Remote struct {
	Hold     string // a DID, a host name or a URL
	Handle   string // or DID, of who signs in
	Password string // an app password
	PLCURL   string
	TestMode bool
}

// remoteCrew is a session for the crew commands.
type remoteCrew struct {
	upstream  xrpc.Upstream
	hold, pds string // base URLs
	did       syntax.DID
	session   string // access token at the PDS
}

// Crew runs crew list, set (add) or remove at the hold, with the parameters of the commands on the hold itself.
//
// Errors: sentences for who typed it.
func (r Remote) Crew(ctx context.Context, name string, parameters map[string]string, tell func(Line)) error {
	resolver := identity.New(identity.Config{PLCURL: r.PLCURL, AllowPrivate: r.TestMode, UserAgent: userAgent})
	c := &remoteCrew{upstream: xrpc.Upstream{Client: httpx.NewClient(httpx.ClientConfig{AllowPrivate: r.TestMode, Timeout: 30 * time.Second, UserAgent: userAgent})}}
	if err := c.findHold(ctx, resolver, r.Hold); err != nil {
		return fmt.Errorf("--hold %s: %w", r.Hold, err)
	}
	if name == "crew list" {
		return c.list(ctx, tell)
	}
	member, err := syntax.ParseDID(parameters["member"])
	if err != nil {
		return fmt.Errorf("%q is not a DID; it looks like did:plc:abc…", parameters["member"])
	}
	var permissions []string
	if text, given := parameters["permissions"]; given {
		if permissions, err = parsePermissions(text); err != nil {
			return err
		}
	}
	if err := c.signIn(ctx, resolver, r); err != nil {
		return err
	}
	if name == "crew set" {
		var tier *string
		if name, given := parameters["tier"]; given {
			tier = &name
		}
		return c.set(ctx, member, permissions, tier, tell)
	}
	return c.remove(ctx, member, tell)
}

// findHold asks a hold for its DID, and goes to where that DID says that it is.
func (c *remoteCrew) findHold(ctx context.Context, resolver *identity.Resolver, name string) error {
	did, err := syntax.ParseDID(name)
	if err != nil {
		base := name
		if !strings.Contains(base, "://") {
			base = "https://" + base
		}
		var said struct{ DID syntax.DID }
		if err := c.upstream.JSON(ctx, xrpc.UpstreamCall{Base: base, NSID: "com.atproto.server.describeServer"}, &said); err != nil {
			return err
		}
		did = said.DID
	}
	who, err := resolver.LookupDID(ctx, did)
	if err != nil {
		return err
	}
	if !who.IsHold() {
		return fmt.Errorf("%s is no hold", did)
	}
	c.did, c.hold = did, who.Hold()
	return nil
}

func (c *remoteCrew) signIn(ctx context.Context, resolver *identity.Resolver, r Remote) error {
	if r.Handle == "" || r.Password == "" {
		return errors.New("give your handle with --as, and an app password in APP_PASSWORD or a file named by --password-file")
	}
	who, err := lookup(ctx, resolver, r.Handle)
	if err != nil {
		return fmt.Errorf("--as %s: %w", r.Handle, err)
	}
	if c.pds = who.PDS(); c.pds == "" {
		return fmt.Errorf("--as %s: the account has no PDS", r.Handle)
	}
	call, err := xrpc.JSONCall(c.pds, "com.atproto.server.createSession", "", map[string]string{"identifier": who.DID.String(), "password": r.Password})
	if err != nil {
		return err
	}
	var session struct {
		AccessJwt string
		DID       syntax.DID
	}
	if err := c.upstream.JSON(ctx, call, &session); err != nil {
		return fmt.Errorf("sign in as %s: %w", r.Handle, err)
	}
	if session.DID != who.DID {
		return fmt.Errorf("sign in as %s: the PDS opened a session for another account", r.Handle)
	}
	c.session = session.AccessJwt
	return nil
}

func lookup(ctx context.Context, resolver *identity.Resolver, name string) (*identity.Identity, error) {
	id, err := syntax.ParseAtIdentifier(strings.TrimPrefix(name, "@"))
	if err != nil {
		return nil, err
	}
	return resolver.Lookup(ctx, id)
}

// call is a write at the hold, with a service token for it alone.
func (c *remoteCrew) call(ctx context.Context, nsid string, in any) error {
	query := url.Values{"aud": {c.did.String()}, "lxm": {nsid}}
	var auth struct{ Token string }
	err := c.upstream.JSON(ctx, xrpc.UpstreamCall{Base: c.pds, NSID: "com.atproto.server.getServiceAuth", Query: query, Token: c.session}, &auth)
	if err != nil {
		return err
	}
	call, err := xrpc.JSONCall(c.hold, nsid, auth.Token, in)
	if err != nil {
		return err
	}
	return c.upstream.JSON(ctx, call, nil)
}

// crewEntry is a crew record and its key.
type crewEntry struct {
	rkey string
	atcr.HoldCrew
}

// crewPages bounds the list of a hold's members: a hundred thousand.
const crewPages = 1000

func (c *remoteCrew) entries(ctx context.Context) (out []crewEntry, err error) {
	type page struct {
		Cursor  string
		Records []struct {
			URI   syntax.ATURI
			Value atcr.HoldCrew
		}
	}
	query := url.Values{"repo": {c.did.String()}, "collection": {atcr.HoldCrewNSID}, "limit": {"100"}}
	err = xrpc.Pages(ctx, c.upstream, xrpc.UpstreamCall{Base: c.hold, NSID: "com.atproto.repo.listRecords", Query: query}, crewPages, func(p page) (int, string, error) {
		for _, r := range p.Records {
			out = append(out, crewEntry{r.URI.RecordKey().String(), r.Value})
		}
		return len(p.Records), p.Cursor, nil
	})
	return out, err
}

func (c *remoteCrew) list(ctx context.Context, tell func(Line)) error {
	entries, err := c.entries(ctx)
	if err != nil {
		return err
	}
	slices.SortFunc(entries, func(a, b crewEntry) int { return strings.Compare(a.Member+a.AddedAt, b.Member+b.AddedAt) })
	for i, e := range entries {
		if i+1 < len(entries) && entries[i+1].Member == e.Member {
			continue // the newest of several counts
		}
		tell(memberLine(e.HoldCrew))
	}
	return nil
}

// memberLine says what a member may.
func memberLine(m atcr.HoldCrew) Line {
	what := strings.Join(m.Permissions, ", ")
	if what == "" {
		what = "refused"
	}
	if m.Role == "owner" {
		what += "  owner"
	}
	if m.Tier != "" {
		what += "  tier " + m.Tier
	}
	return Line{Text: m.Member + "  " + what, Data: map[string]any{"member": m.Member, "permissions": m.Permissions, "tier": m.Tier, "addedAt": m.AddedAt}}
}

func (c *remoteCrew) set(ctx context.Context, member syntax.DID, permissions []string, tier *string, tell func(Line)) error {
	entries, err := c.entries(ctx)
	if err != nil {
		return err
	}
	var before *atcr.HoldCrew
	for i, e := range entries {
		if e.Member == member.String() && (before == nil || addedAt(e.HoldCrew).After(addedAt(*before))) {
			before = &entries[i].HoldCrew
		}
	}
	if before == nil {
		before = &atcr.HoldCrew{}
	}
	record := changed(*before, member, permissions, tier, time.Now())
	rkey := atcr.CrewRkey(member.String())
	err = c.call(ctx, "com.atproto.repo.putRecord", map[string]any{"repo": c.did, "collection": atcr.HoldCrewNSID, "rkey": rkey, "record": record})
	if err != nil {
		return err
	}
	for _, e := range entries { // one record a member
		if e.Member == member.String() && e.rkey != rkey {
			if err := c.delete(ctx, e.rkey); err != nil {
				return err
			}
		}
	}
	tell(memberLine(record))
	return nil
}

func (c *remoteCrew) delete(ctx context.Context, rkey string) error {
	return c.call(ctx, "com.atproto.repo.deleteRecord", map[string]any{"repo": c.did, "collection": atcr.HoldCrewNSID, "rkey": rkey})
}

func (c *remoteCrew) remove(ctx context.Context, member syntax.DID, tell func(Line)) error {
	entries, err := c.entries(ctx)
	if err != nil {
		return err
	}
	known := false
	for _, e := range entries {
		if e.Member != member.String() {
			continue
		}
		known = true
		if err := c.delete(ctx, e.rkey); err != nil {
			return err
		}
	}
	if !known {
		return fmt.Errorf("%s is no member", member)
	}
	tell(Line{Text: member.String() + " is no member any more", Data: map[string]any{"member": member}})
	return nil
}

// parsePermissions reads a comma-separated list; none is the empty one, which refuses.
func parsePermissions(text string) ([]string, error) {
	permissions := []string{}
	for p := range strings.SplitSeq(text, ",") {
		switch p {
		case "", "none":
		case crew.BlobRead, crew.BlobWrite, crew.CrewAdmin:
			permissions = append(permissions, p)
		default:
			return nil, fmt.Errorf("no permission %q: there are %s, %s, %s, and none, which refuses the member", p, crew.BlobRead, crew.BlobWrite, crew.CrewAdmin)
		}
	}
	return permissions, nil
}
