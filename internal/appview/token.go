package appview

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"mime"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/internal/credential"
	"atcr.io/internal/httpx"
	"atcr.io/internal/identity"
	"atcr.io/internal/oci"
	"atcr.io/internal/registry"
	"atcr.io/internal/regtoken"
	"atcr.io/internal/session"
	"atcr.io/internal/xrpc"
)

// maxFormBytes bounds the body of a token request.
const maxFormBytes = 16 << 10

// signIn opens sessions, and finds the one that devices and access tokens act with: session.Store.
type signIn interface {
	grants
	Login(ctx context.Context, a session.Account, password, caller string) (session.Session, error)
}

// tokenServer answers /auth/token.
type tokenServer struct {
	directory directory
	owners    owners
	sessions  signIn
	// credentials are the devices and access tokens of this AppView.
	credentials *credential.Store
	tokens      *regtoken.Issuer
	welcome     func(ctx context.Context, s session.Session) // a person's first sign-in
	blocked     func(did string) error
	limits      registry.Limiter           // may be nil
	caller      func(*http.Request) string // for limits
	service     string
	baseURL     string
	logger      *slog.Logger
}

// tokenRequest is what a client asks for, by GET or by POST.
type tokenRequest struct {
	user, password string
	signedIn       bool // credentials were shown
	scopes         []string
}

// serve answers GET, as docker asks, and POST with a form, as OAuth has it.
//
// Source: https://distribution.github.io/distribution/spec/auth/token/, …/auth/oauth/
func (t *tokenServer) serve(w http.ResponseWriter, r *http.Request) error {
	if err := registry.Take(w, r, t.limits, registry.Caller{}); err != nil {
		return err
	}
	in, err := readTokenRequest(w, r)
	if err != nil {
		return err
	}
	asked, err := regtoken.ParseScopes(in.scopes)
	if err != nil {
		return &oci.Error{Code: oci.CodeUnsupported, Status: http.StatusBadRequest, Message: err.Error()}
	}
	claims, err := t.claims(w, r, in, asked)
	if err != nil {
		return err
	}
	token, issued, expires, err := t.tokens.Sign(claims)
	if err != nil {
		return err
	}
	w.Header().Set("Cache-Control", "no-store")
	xrpc.WriteJSON(w, http.StatusOK, map[string]any{
		"token": token, "access_token": token, "token_type": "Bearer",
		"expires_in": int(expires.Sub(issued) / time.Second), "issued_at": issued.UTC().Format(time.RFC3339),
		"scope": scopeText(claims.Access),
	})
	return nil
}

// claims is who asks and what they get.
func (t *tokenServer) claims(w http.ResponseWriter, r *http.Request, in tokenRequest, asked []regtoken.Access) (regtoken.Claims, error) {
	ctx := r.Context()
	if !in.signedIn {
		return regtoken.Claims{Access: t.granted(r, "", asked, credential.Scope{})}, nil
	}
	signIn := t.login
	if credential.IsSecret(in.password) {
		signIn = t.show
	}
	s, scope, err := signIn(r, in)
	if err != nil {
		if oci.AsError(err).HTTPStatus() == http.StatusUnauthorized {
			w.Header().Set("WWW-Authenticate", `Basic realm="`+t.service+`"`)
		}
		return regtoken.Claims{}, err
	}
	httpx.EventFrom(ctx).DID = s.DID.String()
	c := regtoken.Claims{Subject: s.DID.String(), Session: s.ID, Access: t.granted(r, s.DID.String(), asked, scope)}
	if len(asked) > 0 && len(c.Access) == 0 {
		// The credential is for other repositories: what everybody may, its bearer may too, as nobody.
		c = regtoken.Claims{Access: t.granted(r, "", asked, credential.Scope{})}
	}
	return c, nil
}

// granted is what of asked the person has and scope allows: pull everywhere, since holds decide who reads, and
// the rest where the name is theirs.
func (t *tokenServer) granted(r *http.Request, subject string, asked []regtoken.Access, scope credential.Scope) []regtoken.Access {
	var out []regtoken.Access
	for _, a := range asked {
		g := regtoken.Access{Type: a.Type, Name: a.Name}
		own := ""
		if t.isOwner(r, subject, a.Name) {
			_, own, _ = strings.Cut(a.Name, "/")
		}
		for _, action := range a.Actions {
			if (action == regtoken.Pull || own != "") && scope.Allows(own, action) {
				g.Actions = append(g.Actions, action)
			}
		}
		if len(g.Actions) > 0 {
			out = append(out, g)
		}
	}
	return out
}

// isOwner charges for names that are looked up in vain, as they are where they are pulled from.
func (t *tokenServer) isOwner(r *http.Request, subject, text string) bool {
	if subject == "" {
		return false
	}
	name, err := oci.ParseName(text)
	if err != nil {
		return false
	}
	of, err := t.owners.find(r.Context(), name.Owner)
	registry.Charge(r, t.limits, registry.Caller{}, err)
	return err == nil && of.DID.String() == subject
}

func scopeText(access []regtoken.Access) string {
	var out []string
	for _, a := range access {
		out = append(out, a.Type+":"+a.Name+":"+strings.Join(a.Actions, ","))
	}
	return strings.Join(out, " ")
}

func readTokenRequest(w http.ResponseWriter, r *http.Request) (tokenRequest, error) {
	var in tokenRequest
	var err error
	if header := r.Header.Get("Authorization"); header != "" {
		if in.user, in.password, err = basicCredentials(header); err != nil {
			return in, err
		}
		in.signedIn = true
	}
	if r.Method == http.MethodGet {
		in.scopes = r.URL.Query()["scope"]
		return in, nil
	}
	if mediaType, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || mediaType != "application/x-www-form-urlencoded" {
		return in, &oci.Error{Code: oci.CodeUnsupported, Status: http.StatusUnsupportedMediaType, Message: "send a form: application/x-www-form-urlencoded"}
	}
	raw, err := httpx.ReadLimited(http.MaxBytesReader(w, r.Body, maxFormBytes), maxFormBytes)
	if err != nil {
		return in, &oci.Error{Code: oci.CodeSizeInvalid, Status: http.StatusRequestEntityTooLarge, Message: "the form is too large", Err: err}
	}
	form, err := url.ParseQuery(string(raw))
	if err != nil {
		return in, &oci.Error{Code: oci.CodeUnsupported, Status: http.StatusBadRequest, Message: "the form cannot be read"}
	}
	in.scopes = form["scope"]
	switch grant := form.Get("grant_type"); grant {
	case "password", "":
		if user, password := form.Get("username"), form.Get("password"); user != "" || password != "" {
			in.user, in.password = splitUser(user + ":" + password)
			in.signedIn = true
		}
	default: // clients go on with GET
		return in, &oci.Error{Code: oci.CodeUnsupported, Status: http.StatusBadRequest, Message: "grant_type " + short(grant) + " is not supported: use password"}
	}
	return in, nil
}

func basicCredentials(header string) (user, password string, err error) {
	scheme, encoded, _ := strings.Cut(header, " ")
	raw, decodeErr := base64.StdEncoding.DecodeString(strings.TrimSpace(encoded))
	if !strings.EqualFold(scheme, "Basic") || decodeErr != nil {
		return "", "", unauthorized(nil, "send handle and app password by Basic authentication")
	}
	user, password = splitUser(string(raw))
	return user, password, nil
}

// splitUser cuts `user:password`. Basic authentication ends the user at the first colon, which would take a
// DID apart: its name is up to the third.
func splitUser(text string) (user, password string) {
	colons := 1
	if strings.HasPrefix(text, "did:") {
		colons = 3
	}
	end := 0
	for range colons {
		i := strings.IndexByte(text[end:], ':')
		if i < 0 {
			return text, ""
		}
		end += i + 1
	}
	return text[:end-1], text[end:]
}

// show finds whose device or access token was shown. The user name says nothing that the secret does not:
// somebody else's is refused, and one that is nobody's any more (a handle that was changed) is not looked at.
//
// The session is the person's sign-in on the web, which the credential acts with.
func (t *tokenServer) show(r *http.Request, in tokenRequest) (session.Session, credential.Scope, error) {
	ctx := r.Context()
	c, err := t.credentials.Verify(ctx, in.password)
	if errors.Is(err, credential.ErrUnknown) {
		return session.Session{}, c.Scope, unauthorized(err, "this device or access token is not known, was revoked, or has expired: sign in again with docker-credential-atcr login %s, or make a new one at %s/settings", t.service, t.baseURL)
	}
	if err != nil {
		return session.Session{}, c.Scope, err
	}
	if err := t.blocked(c.DID.String()); err != nil {
		return session.Session{}, c.Scope, err
	}
	if name, err := parseIdentity(in.user); err == nil {
		who, err := t.directory.Lookup(ctx, name)
		switch {
		case errors.Is(err, identity.ErrUnavailable): // a handle that was changed costs its owner nothing
			registry.Charge(r, t.limits, registry.Caller{}, identityError(in.user, err))
		case err == nil && who.DID != c.DID:
			return session.Session{}, c.Scope, unauthorized(nil, "that device or access token is not %.100s's", in.user)
		}
	}
	s, err := sessionOf(ctx, t.directory, t.sessions, c.DID)
	return s, c.Scope, sessionError(t.baseURL, err)
}

// login signs a person in at their own PDS by an app password.
func (t *tokenServer) login(r *http.Request, in tokenRequest) (session.Session, credential.Scope, error) {
	s, err := t.loginByPassword(r, in)
	return s, credential.Scope{}, err
}

func (t *tokenServer) loginByPassword(r *http.Request, in tokenRequest) (session.Session, error) {
	name, err := parseIdentity(in.user)
	if err != nil {
		return session.Session{}, unauthorized(nil, "%.100q is neither a handle nor a DID: log in with your handle, like alice.example.com", in.user)
	}
	who, err := t.directory.Lookup(r.Context(), name)
	if err != nil {
		registry.Charge(r, t.limits, registry.Caller{}, identityError(in.user, err))
		return session.Session{}, loginIdentityError(in.user, err)
	}
	if err := t.blocked(who.DID.String()); err != nil { // before their PDS is asked, and a profile made
		return session.Session{}, err
	}
	if who.PDS() == "" {
		return session.Session{}, unauthorized(nil, "the account %.100s has no PDS", in.user)
	}
	s, err := t.sessions.Login(r.Context(), session.Account{DID: who.DID, PDS: who.PDS()}, in.password, t.caller(r))
	if err != nil {
		return s, loginError(who, err)
	}
	if s.New {
		t.logger.Info("signed in", "did", s.DID.String(), "pds", who.PDS())
		t.welcome(r.Context(), s)
	}
	return s, nil
}

func loginIdentityError(user string, err error) error {
	e := oci.AsError(identityError(user, err))
	if e.Code == oci.CodeNameUnknown {
		return unauthorized(err, "%s", e.Message)
	}
	return e
}

// loginError says what to do in a sentence, which clients show.
func loginError(who *identity.Identity, err error) error {
	settings := "https://bsky.app/settings/app-passwords, or wherever your PDS has its settings"
	switch {
	case errors.Is(err, session.ErrMainPassword):
		return unauthorized(err, "that is your account's main password: make an app password (%s) and log in with that", settings)
	case errors.Is(err, session.ErrCodeNeeded):
		return unauthorized(err, "that password needs a sign-in code, as main passwords do: make an app password (%s) and log in with that", settings)
	case errors.Is(err, session.ErrWrongPassword):
		return unauthorized(err, "wrong handle or app password; app passwords are made at %s", settings)
	case errors.Is(err, session.ErrRefused):
		return unauthorized(err, "your PDS refuses this account: it may be deactivated or taken down")
	}
	if limit, ok := errors.AsType[*session.LimitError](err); ok {
		return &oci.Error{
			Code: oci.CodeTooManyRequests, RetryAfter: limit.RetryAfter, Err: err,
			Message: fmt.Sprintf("too many wrong passwords: try again in %s", limit.RetryAfter.Round(time.Second)),
		}
	}
	return upstreamError("the PDS of "+atIdentifier(who), err)
}

func atIdentifier(who *identity.Identity) string {
	if who.Handle != "" && who.Handle != syntax.HandleInvalid {
		return who.Handle.String()
	}
	return who.DID.String()
}
