// Package web has the pages of an AppView: signing in, approving a device, settings. They are plain,
// server-rendered and need no JavaScript.
//
// It owns pages, cookies and forms, and refuses to own what stands behind them: who somebody is, what is kept of
// them and where their images go is asked through the small interfaces below, which the wiring plugs in.
package web

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/internal/httpx"
)

// Visitor is a signed-in person at their browser.
type Visitor struct {
	DID    syntax.DID
	Handle string // "" where it cannot be found out
	// Browser is the public id of this browser's sign-in, Session that of the sign-in at their PDS.
	Browser string
	Session string
	// Renew: their browser has not been seen for a while, and its cookie is to live as long again.
	Renew bool
	// Missing are permissions that this AppView needs and was not given.
	Missing []string
	// Refused is why this AppView does nothing for them but give back and delete what it keeps; nil for nearly all.
	Refused *Problem
}

// Name is what a page calls somebody.
func (v Visitor) Name() string {
	if v.Handle != "" {
		return v.Handle
	}
	return v.DID.String()
}

// ErrSignedOut says that a cookie is nobody's, or nobody's any more.
var ErrSignedOut = errors.New("nobody is signed in")

// Start is what a sign-in begins with.
type Start struct {
	Who     string // as typed: a handle or DID
	Back    string // a path of ours
	Consent bool   // ask for approval again
	Browser string // the sign-in cookie, if there is one
	Caller  string // for limits
}

// SignIn signs people in at their own PDS. Errors are *Problem where a person can be told what is wrong.
type SignIn interface {
	// Begin is where to send the browser, and what its sign-in cookie becomes.
	Begin(ctx context.Context, s Start) (target, cookie string, err error)
	// Finish reads what the person's PDS sent back: the secret for this browser's cookie, and where to go on.
	Finish(ctx context.Context, query url.Values, cookie, agent, address string) (secret, back string, err error)
	// Visitor is whose a cookie's secret is. Errors: ErrSignedOut.
	Visitor(ctx context.Context, secret string) (Visitor, error)
	SignOut(ctx context.Context, v Visitor) error
}

// Machine is what asks to be approved. All but Address is what it says of itself.
type Machine struct {
	Name, Platform, Address string
	Expires                 time.Time
}

// Devices are machines that ask. Errors are *Problem where the code is wrong.
type Devices interface {
	Machine(ctx context.Context, v Visitor, caller, userCode string) (Machine, error)
	Decide(ctx context.Context, v Visitor, caller, userCode string, approve bool) error
}

// Hold is storage as a person sees it.
type Hold struct {
	DID        syntax.DID
	URL        string
	Default    bool // the AppView's choice for those who made none
	Chosen     bool
	MayWrite   bool
	OthersRead bool
	Role       string
	Problem    string
}

// Holds shows and sets where a person's images go. Errors are *Problem.
type Holds interface {
	Current(ctx context.Context, v Visitor) (Hold, error)
	// Known are those where the person may write, as far as this AppView knows.
	Known(ctx context.Context, v Visitor) []Hold
	// Choose takes a DID or URL, or "" for the default.
	Choose(ctx context.Context, v Visitor, hold string) (Hold, error)
}

// Kinds of what is kept, for Revoke.
const (
	KindBrowser = "browser"
	KindDevice  = "device"
	KindToken   = "token"
	KindSession = "session"
)

// Item is something that acts for a person, until it is revoked.
type Item struct {
	Kind, ID string
	Name     string
	Detail   string // what it may do, or from where it came
	Created  time.Time
	Used     time.Time // zero: not known
	Expires  time.Time // zero: never
	This     bool      // the browser that looks
}

// TokenRequest is an access token that somebody wants.
type TokenRequest struct {
	Name         string
	Repositories []string // without the owner; empty: all
	Actions      []string
	Lifetime     time.Duration
}

// Keeping is what this AppView keeps of a person. Errors are *Problem where a person can do something.
type Keeping interface {
	List(ctx context.Context, v Visitor) ([]Item, error)
	Revoke(ctx context.Context, v Visitor, kind, id string) error
	NewToken(ctx context.Context, v Visitor, r TokenRequest) (secret string, err error)
	// Export is all of it, without secrets, as JSON can show it.
	Export(ctx context.Context, v Visitor) (any, error)
	// Forget ends and removes all of it.
	Forget(ctx context.Context, v Visitor) error
}

// Config is what New needs.
type Config struct {
	SignIn  SignIn
	Devices Devices
	Holds   Holds
	Keeping Keeping
	Images  Images

	BaseURL string // of this AppView
	// Origin is scheme and host under which people sign in; elsewhere on this machine they are sent there.
	Origin string
	// Service is this registry's name in commands that people type.
	Service string
	// Insecure: the base URL is http on this machine, where a browser takes no __Host- cookies.
	Insecure bool
	// Downloads is a folder with releases of the credential helper, or the https URL of one; "" is none.
	Downloads string
	// Address is from where a request comes, for lists. Caller is what limits count: of IPv6 the network.
	Address func(*http.Request) string
	Caller  func(*http.Request) string
	Adapter *httpx.Adapter
	Now     func() time.Time
}

// Server serves the pages.
type Server struct {
	config    Config
	templates templates
	tries     *httpx.Limiter // sign-ins, by caller
	looks     *httpx.Limiter // at images, which may have other servers asked, by caller
	downloads fs.FS          // nil: elsewhere, or none
}

const (
	signInsPerAddress = 30
	looksPerAddress   = 120
	signInWindow      = 10 * time.Minute
	maxFormBytes      = 16 << 10
)

// New parses the templates.
func New(c Config) (*Server, error) {
	if c.Now == nil {
		c.Now = time.Now
	}
	t, err := parseTemplates()
	if err != nil {
		return nil, err
	}
	s := &Server{config: c, templates: t, tries: httpx.NewLimiter(signInsPerAddress, signInWindow, c.Now), looks: httpx.NewLimiter(looksPerAddress, time.Minute, c.Now)}
	if c.Downloads != "" && !strings.Contains(c.Downloads, "://") {
		s.downloads = os.DirFS(c.Downloads)
	}
	return s, nil
}

// access says who a page is for.
type access string

const (
	everybody access = "everybody"
	signedIn  access = "signed in, and not refused"
	// refusedToo is for leaving: everybody has a right to that.
	refusedToo access = "signed in"
)

type route struct {
	pattern string
	access  access
	handler func(*Server, http.ResponseWriter, *http.Request, Visitor) error
}

// routes is every page, and whom it is for.
var routes = []route{
	{"GET /{$}", everybody, (*Server).getHome},
	{"GET /style.css", everybody, (*Server).getStyle},
	{"GET /r/{owner}/{repository...}", everybody, (*Server).getImage},
	{"GET /login", everybody, (*Server).getLogin},
	{"POST /login", everybody, (*Server).postLogin},
	{"GET /oauth/callback", everybody, (*Server).getCallback},
	{"POST /logout", everybody, (*Server).postLogout},
	{"GET /device", signedIn, (*Server).getDevice},
	{"POST /device", signedIn, (*Server).postDevice},
	{"GET /settings", signedIn, (*Server).getSettings},
	{"POST /settings/hold", signedIn, (*Server).postHold},
	{"POST /settings/token", signedIn, (*Server).postToken},
	{"POST /settings/revoke", refusedToo, (*Server).postRevoke},
	{"GET /settings/export", refusedToo, (*Server).getExport},
	{"GET /settings/delete", refusedToo, (*Server).getDelete},
	{"POST /settings/delete", refusedToo, (*Server).postDelete},
	{"GET /install.sh", everybody, (*Server).getInstallShell},
	{"GET /install.ps1", everybody, (*Server).getInstallPowerShell},
	{"GET /downloads/{file}", everybody, (*Server).getDownload},
	{"GET /", everybody, (*Server).getNothing},
}

// Register adds every page to mux.
func (s *Server) Register(mux *http.ServeMux) error {
	protect := http.NewCrossOriginProtection()
	// Behind a proxy the Host header may be another; New's base URL is what people see.
	if err := protect.AddTrustedOrigin(s.config.BaseURL); err != nil {
		return fmt.Errorf("web: the base URL: %w", err)
	}
	protect.SetDenyHandler(s.config.Adapter.Wrap("cross-origin", s.writeError, func(w http.ResponseWriter, r *http.Request) error {
		s.begin(w, r)
		return &Problem{Status: http.StatusForbidden, Title: "Not from another site", Text: "This form was sent by another web site, so it was not looked at."}
	}))
	for _, route := range routes {
		mux.Handle(route.pattern, protect.Handler(s.config.Adapter.Wrap(route.pattern, s.writeError, s.serve(route))))
	}
	return nil
}

// begin sets what every answer has.
func (s *Server) begin(w http.ResponseWriter, r *http.Request) {
	id := strings.ToLower(rand.Text()[:12])
	httpx.EventFrom(r.Context()).ID = id
	h := w.Header()
	h.Set("X-Request-Id", id)
	h.Set("Content-Security-Policy", policy("'self'"))
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "same-origin")
	h.Set("Cache-Control", "no-store")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
}

// policy allows our own style and nothing else. Forms go where formAction says: browsers look at redirects too.
func policy(formAction string) string {
	return "default-src 'none'; style-src 'self'; img-src 'self' data:; base-uri 'none'; frame-ancestors 'none'; form-action " + formAction
}

func (s *Server) serve(route route) httpx.Handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		s.begin(w, r)
		if s.elsewhere(w, r) {
			return nil
		}
		r.Body = http.MaxBytesReader(w, r.Body, maxFormBytes)
		v, err := s.visitor(r)
		if err != nil && !errors.Is(err, ErrSignedOut) {
			return err
		}
		if v.DID != "" {
			httpx.EventFrom(r.Context()).DID = v.DID.String()
		}
		if v.Renew {
			s.setCookie(w, browserCookie, s.cookie(r, browserCookie), cookieLife)
		}
		if route.access != everybody && v.DID == "" {
			return s.sendToSignIn(w, r)
		}
		if route.access == signedIn && v.Refused != nil {
			return v.Refused
		}
		if r.Method == http.MethodPost {
			if err := r.ParseForm(); err != nil {
				return &Problem{Status: http.StatusBadRequest, Title: "The form cannot be read", Text: "Go back and try again.", Err: err}
			}
		}
		return route.handler(s, w, r, v)
	}
}

// elsewhere sends a browser that came by another name of this machine to where cookies and sign-ins work.
func (s *Server) elsewhere(w http.ResponseWriter, r *http.Request) bool {
	u, err := url.Parse(s.config.Origin)
	if err != nil || u.Host == "" || r.Host == u.Host || !s.config.Insecure || r.Method != http.MethodGet {
		return false
	}
	asked := url.URL{Host: r.Host}
	if !httpx.IsLoopbackHost(asked.Hostname()) || asked.Port() != u.Port() {
		return false
	}
	http.Redirect(w, r, s.config.Origin+r.URL.RequestURI(), http.StatusSeeOther)
	return true
}

// sendToSignIn comes back to a page that was looked at; a form that was sent has to be sent again.
func (s *Server) sendToSignIn(w http.ResponseWriter, r *http.Request) error {
	back := r.URL.RequestURI()
	if r.Method != http.MethodGet {
		back = "/settings"
	}
	http.Redirect(w, r, "/login?"+url.Values{"back": {back}}.Encode(), http.StatusSeeOther)
	return nil
}

// localPath is text where it is a path of ours, else fallback: nobody is sent to another site.
func localPath(text, fallback string) string {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "" || u.Host != "" || u.User != nil || !strings.HasPrefix(text, "/") ||
		strings.HasPrefix(text, "//") || strings.ContainsAny(text, "\\\r\n\t") || len(text) > 1024 {
		return fallback
	}
	return text
}
