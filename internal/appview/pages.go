package appview

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/internal/credential"
	"atcr.io/internal/httpx"
	"atcr.io/internal/oci"
	"atcr.io/internal/registry"
	"atcr.io/internal/session"
	"atcr.io/internal/sqldb"
	"atcr.io/internal/web"
	"atcr.io/internal/xrpc"
)

// pages is what stands behind internal/web: sessions, credentials and holds.
type pages struct {
	directory   directory
	sessions    *session.Store
	credentials *credential.Store
	choice      *chooser
	welcome     func(ctx context.Context, s session.Session)
	manifests   *manifests
	blocks      *blocks
	db          *sqldb.DB
}

// Tags are those of somebody's repository, as everybody sees them.
func (p *pages) Tags(ctx context.Context, owner, repository string) ([]string, error) {
	name, err := oci.ParseName(owner + "/" + repository)
	if err != nil {
		return nil, p.problem(err)
	}
	of, err := p.manifests.owners.find(ctx, name.Owner)
	if err == nil {
		err = p.blocks.repository(of.DID, name.Repository)
	}
	if err != nil {
		return nil, p.problem(err)
	}
	tags, err := p.manifests.Tags(ctx, registry.Caller{}, name, "", -1)
	if err != nil {
		return nil, p.problem(err)
	}
	return tags, nil
}

// newPages makes the web server.
func (a *AppView) newPages(p *pages, address, caller func(*http.Request) string, adapter *httpx.Adapter, now clock) (*web.Server, error) {
	c := a.config
	u, err := url.Parse(c.BaseURL)
	if err != nil {
		return nil, err
	}
	origin := p.sessions.SignInOrigin()
	if origin == "" {
		origin = c.BaseURL
	}
	return web.New(web.Config{
		SignIn: p, Devices: p, Holds: p, Keeping: p, Images: p,
		BaseURL: c.BaseURL, Origin: origin, Service: c.ServiceName, Insecure: u.Scheme == "http", Downloads: c.HelperDownloads,
		Address: address, Caller: caller, Adapter: adapter, Now: now,
	})
}

// Begin resolves who wants to sign in, and asks their server.
func (p *pages) Begin(ctx context.Context, s web.Start) (target, cookie string, err error) {
	name, err := parseIdentity(s.Who)
	if err != nil {
		return "", "", &web.Problem{Status: http.StatusBadRequest, Title: "No handle", Text: "That is neither a handle, like alice.example.com, nor a DID.", Err: err}
	}
	who, err := p.directory.Lookup(ctx, name)
	if err != nil {
		return "", "", p.problem(identityError(s.Who, err))
	}
	if who.PDS() == "" {
		return "", "", &web.Problem{Status: http.StatusBadRequest, Title: "No server", Text: "This account names no PDS, so nobody can be asked who it is."}
	}
	b := session.BeginSignIn{
		Account:  session.Account{DID: who.DID, PDS: who.PDS(), Handle: who.Handle},
		ReturnTo: s.Back, Browser: s.Browser, Caller: s.Caller,
	}
	if s.Consent {
		b.Prompt = "consent"
	}
	started, err := p.sessions.BeginSignIn(ctx, b)
	if err != nil {
		return "", "", p.problem(err)
	}
	return started.URL, started.Browser, nil
}

// Finish ends a sign-in and opens the browser's.
func (p *pages) Finish(ctx context.Context, query url.Values, cookie, agent, address string) (secret, back string, err error) {
	done, err := p.sessions.FinishSignIn(ctx, query, cookie)
	if err != nil {
		return "", "", p.problem(err)
	}
	httpx.EventFrom(ctx).DID = done.Session.DID.String()
	if done.Session.New && p.blocks.person(done.Session.DID.String()) == nil { // who is blocked signs in to leave
		p.welcome(ctx, done.Session)
	}
	secret, err = p.sessions.OpenBrowser(ctx, done.Session.ID, agent, address)
	if err != nil {
		return "", "", p.problem(err)
	}
	return secret, done.ReturnTo, nil
}

// Visitor is whose a cookie is.
func (p *pages) Visitor(ctx context.Context, secret string) (web.Visitor, error) {
	b, err := p.sessions.Browser(ctx, secret)
	if errors.Is(err, session.ErrGone) {
		return web.Visitor{}, web.ErrSignedOut
	}
	if err != nil {
		return web.Visitor{}, err
	}
	return web.Visitor{
		DID: b.Session.DID, Handle: checkedHandle(ctx, p.directory, b.Session.DID), Browser: b.ID, Session: b.Session.ID, Renew: b.Noted, Missing: b.Missing,
		Refused: p.refused(b.Session.DID),
	}, nil
}

// refused is what a blocked person is told; nil for everybody else.
func (p *pages) refused(did syntax.DID) *web.Problem {
	err := p.blocks.person(did.String())
	if err == nil {
		return nil
	}
	return &web.Problem{
		Status: http.StatusForbidden, Title: "Blocked here", Again: "/settings/delete", Err: err,
		Text: sentence(oci.AsError(err).Message) + " You can still save what is kept of you, at /settings/export, and delete it.",
	}
}

// SignOut ends one browser. Devices go on: they act with the sign-in at the PDS.
func (p *pages) SignOut(ctx context.Context, v web.Visitor) error {
	err := p.sessions.EndBrowser(ctx, v.DID, v.Browser)
	if errors.Is(err, session.ErrGone) {
		return nil
	}
	return err
}

// Machine is what asks with a user code.
func (p *pages) Machine(ctx context.Context, v web.Visitor, caller, userCode string) (web.Machine, error) {
	r, err := p.credentials.Pending(ctx, v.DID, caller, userCode)
	if err != nil {
		return web.Machine{}, p.problem(err)
	}
	return web.Machine{Name: r.Name, Platform: r.Platform, Address: r.Address, Expires: r.Expires}, nil
}

// Decide approves or refuses a machine.
func (p *pages) Decide(ctx context.Context, v web.Visitor, caller, userCode string, approve bool) error {
	if err := p.credentials.Decide(ctx, v.DID, caller, userCode, approve); err != nil {
		return p.problem(err)
	}
	return nil
}

func sessionOfVisitor(v web.Visitor) session.Session {
	return session.Session{ID: v.Session, DID: v.DID}
}

// Current is where the visitor's pushes go.
func (p *pages) Current(ctx context.Context, v web.Visitor) (web.Hold, error) {
	r, err := p.choice.current(ctx, sessionOfVisitor(v))
	if err != nil {
		return web.Hold{}, p.problem(err)
	}
	return web.Hold(r), nil
}

// Known are holds where the visitor may write.
func (p *pages) Known(ctx context.Context, v web.Visitor) []web.Hold {
	var out []web.Hold
	for _, r := range p.choice.known(ctx, sessionOfVisitor(v)) {
		out = append(out, web.Hold(r))
	}
	return out
}

// Choose sets the visitor's hold.
func (p *pages) Choose(ctx context.Context, v web.Visitor, hold string) (web.Hold, error) {
	r, err := p.choice.choose(ctx, sessionOfVisitor(v), hold)
	if err != nil {
		return web.Hold{}, p.problem(err)
	}
	return web.Hold(r), nil
}

// List is all that acts for the visitor.
func (p *pages) List(ctx context.Context, v web.Visitor) ([]web.Item, error) {
	var out []web.Item
	browsers, err := p.sessions.Browsers(ctx, v.DID)
	if err != nil {
		return nil, err
	}
	for _, b := range browsers {
		out = append(out, web.Item{
			Kind: web.KindBrowser, ID: b.ID, Name: browserName(b.Agent), Detail: "signed in from " + b.Address, Created: b.CreatedAt, Used: b.UsedAt, This: b.ID == v.Browser,
		})
	}
	credentials, err := p.credentials.List(ctx, v.DID)
	if err != nil {
		return nil, err
	}
	for _, c := range credentials {
		item := web.Item{Kind: web.KindToken, ID: c.ID, Name: c.Name, Detail: scopeDetail(c.Scope), Created: c.CreatedAt, Used: c.UsedAt, Expires: c.ExpiresAt}
		if c.Kind == credential.Device {
			item.Kind, item.Detail = web.KindDevice, strings.TrimSpace(c.Platform+" from "+c.Address)
		}
		out = append(out, item)
	}
	sessions, err := p.sessions.Sessions(ctx, v.DID)
	if err != nil {
		return nil, err
	}
	for _, s := range sessions {
		name := "approved in a browser"
		if s.Kind == session.AppPassword {
			name = "by an app password"
		}
		out = append(out, web.Item{Kind: web.KindSession, ID: s.ID, Name: name, Detail: "at " + xrpc.HostOf(s.PDS), Created: s.CreatedAt, Used: s.UsedAt})
	}
	return out, nil
}

func scopeDetail(s credential.Scope) string {
	where := "any repository"
	if len(s.Repositories) > 0 {
		where = strings.Join(s.Repositories, ", ")
	}
	return strings.Join(s.Actions, ", ") + ": " + where
}

// browserName is what people call a browser, of what it says of itself.
func browserName(agent string) string {
	name, system := "A browser", ""
	for _, known := range []string{"Firefox", "Edg", "OPR", "Chrome", "Safari"} {
		if strings.Contains(agent, known+"/") {
			name = map[string]string{"Edg": "Edge", "OPR": "Opera"}[known]
			if name == "" {
				name = known
			}
			break
		}
	}
	for _, known := range [][2]string{{"Android", "Android"}, {"iPhone", "iPhone"}, {"iPad", "iPad"}, {"Windows", "Windows"}, {"Mac OS", "macOS"}, {"Linux", "Linux"}} {
		if strings.Contains(agent, known[0]) {
			system = " on " + known[1]
			break
		}
	}
	return name + system
}

// Revoke ends one of them.
func (p *pages) Revoke(ctx context.Context, v web.Visitor, kind, id string) error {
	var err error
	switch kind {
	case web.KindBrowser:
		err = p.sessions.EndBrowser(ctx, v.DID, id)
	case web.KindDevice, web.KindToken:
		err = p.credentials.Revoke(ctx, v.DID, id)
	case web.KindSession:
		err = p.sessions.End(ctx, v.DID, id)
	default:
		return &web.Problem{Status: http.StatusBadRequest, Title: "Nothing to revoke", Text: "The form names nothing that can be revoked.", Again: "/settings"}
	}
	if errors.Is(err, session.ErrGone) || errors.Is(err, credential.ErrUnknown) {
		return &web.Problem{Status: http.StatusNotFound, Title: "Not there", Text: "It was revoked already, or is not yours.", Again: "/settings", Err: err}
	}
	return err
}

// NewToken makes an access token.
func (p *pages) NewToken(ctx context.Context, v web.Visitor, r web.TokenRequest) (string, error) {
	secret, _, err := p.credentials.NewToken(ctx, v.DID, r.Name, credential.Scope{Repositories: r.Repositories, Actions: r.Actions}, r.Lifetime)
	if err != nil {
		return "", p.problem(err)
	}
	return secret, nil
}

// problem says in words for a page what other layers say in theirs. What it does not know passes.
func (p *pages) problem(err error) error {
	if limit, ok := errors.AsType[*session.LimitError](err); ok {
		return tooMany(limit.RetryAfter, err)
	}
	if limit, ok := errors.AsType[*credential.LimitError](err); ok {
		return tooMany(limit.RetryAfter, err)
	}
	if scope, ok := errors.AsType[*session.ScopeError](err); ok {
		return &web.Problem{
			Status: http.StatusForbidden, Title: "Not all was approved", Again: "/login?again=1", Err: err,
			Text: "Without these permissions nothing can be pushed here: " + strings.Join(scope.Missing, ", ") + ". Sign in again and approve all of them.",
		}
	}
	for _, known := range []struct {
		err         error
		status      int
		title, text string
	}{
		{session.ErrSignInUnknown, http.StatusBadRequest, "This sign-in is over", "It took too long, was ended in another browser, or was used before. Begin again."},
		{session.ErrDenied, http.StatusForbidden, "You said no", "Nobody was signed in, and nothing was changed."},
		{session.ErrOtherAccount, http.StatusForbidden, "Another account", "You signed in at your server as somebody other than you asked for here. Begin again with the right handle."},
		{session.ErrRefused, http.StatusForbidden, "Your server refuses", "Your PDS refuses this account: it may be deactivated or taken down."},
		{session.ErrGone, http.StatusForbidden, "Signed out meanwhile", "This sign-in has ended. Sign in again."},
		{session.ErrNoOAuth, http.StatusBadGateway, "Your server cannot do this", "Your PDS offers no sign-in of the kind that is needed here. Use an app password with docker login."},
		{credential.ErrCode, http.StatusNotFound, "Unknown code", "There is no such code, or no longer: they are good for ten minutes, and once. Look at your terminal, or begin again there."},
		{credential.ErrScope, http.StatusBadRequest, "No such token", "Tick at least one of pull, push and delete, and name repositories like app, team/api or team/*, without the handle."},
		{credential.ErrTooMany, http.StatusConflict, "Too many tokens", "You have a hundred access tokens: revoke some that you do not use."},
	} {
		if errors.Is(err, known.err) {
			again := ""
			if errors.Is(err, session.ErrSignInUnknown) || errors.Is(err, session.ErrOtherAccount) || errors.Is(err, session.ErrGone) || errors.Is(err, session.ErrDenied) {
				again = "/login"
			}
			return &web.Problem{Status: known.status, Title: known.title, Text: known.text, Again: again, Err: err}
		}
	}
	if _, ok := errors.AsType[*xrpc.UpstreamError](err); ok {
		err = upstreamError("your PDS", err)
	}
	e, ok := errors.AsType[*oci.Error](err)
	if !ok {
		return err
	}
	return &web.Problem{Status: e.HTTPStatus(), Title: "That did not work", Text: sentence(e.Message), RetryAfter: e.RetryAfter, Err: err}
}

func tooMany(wait time.Duration, err error) error {
	return &web.Problem{
		Status: http.StatusTooManyRequests, Title: "Too many attempts", RetryAfter: wait, Err: err,
		Text: "Try again in " + wait.Round(time.Second).String() + ".",
	}
}

// sentence makes a registry's message one for people.
func sentence(message string) string {
	if message == "" {
		return message
	}
	return strings.ToUpper(message[:1]) + message[1:] + "."
}
