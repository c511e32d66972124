package devnet

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/bluesky-social/indigo/atproto/atcrypto"
	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/internal/pds"
	"atcr.io/internal/xrpc"
)

const (
	maxServiceTokenLifetime = time.Hour
	methodlessTokenLifetime = time.Minute
	maxPasswordBytes        = 256
)

// privileged and protected are methods for which a PDS signs no service token: at all, or for a session
// that was opened with an app password.
var (
	protected = map[string]bool{
		"com.atproto.admin.sendEmail": true, "com.atproto.identity.requestPlcOperationSignature": true,
		"com.atproto.identity.signPlcOperation": true, "com.atproto.identity.updateHandle": true,
		"com.atproto.server.activateAccount": true, "com.atproto.server.createAppPassword": true,
		"com.atproto.server.deactivateAccount": true, "com.atproto.server.getSession": true,
	}
	privileged = func(lxm string) bool {
		return strings.HasPrefix(lxm, "chat.bsky.") || lxm == "com.atproto.server.createAccount"
	}
)

// repoMaker makes the repo of a new account.
type repoMaker func(ctx context.Context, n *account) error

// server is the account side of the PDS.
type server struct {
	url       string // http://localhost:PORT
	did       string // did:web:localhost%3APORT
	rotation  *atcrypto.PrivateKeyK256
	directory *directory
	accounts  *accounts
	tokens    *tokens
	limiter   *limiter
	makeRepo  repoMaker
	save      func() error
	now       func() time.Time
}

// routes are the account side's methods; those of the repos come beside them.
func (s *server) routes() []pds.Route {
	return []pds.Route{
		{NSID: "_health", Method: http.MethodGet, Access: "public", Handler: s.getHealth},
		{NSID: "com.atproto.server.createAccount", Method: http.MethodPost, Access: "public", Handler: s.createAccount},
		{NSID: "com.atproto.server.createSession", Method: http.MethodPost, Access: "public", Handler: s.createSession},
		{NSID: "com.atproto.server.refreshSession", Method: http.MethodPost, Access: "refresh token", Handler: s.refreshSession},
		{NSID: "com.atproto.server.deleteSession", Method: http.MethodPost, Access: "refresh token", Handler: s.deleteSession},
		{NSID: "com.atproto.server.getSession", Method: http.MethodGet, Access: "access token", Handler: s.getSession},
		{NSID: "com.atproto.server.createAppPassword", Method: http.MethodPost, Access: "access token", Handler: s.createAppPassword},
		{NSID: "com.atproto.server.getServiceAuth", Method: http.MethodGet, Access: "access token", Handler: s.getServiceAuth},
	}
}

// getAtprotoDID answers for the account whose handle the client dialled.
func (s *server) getAtprotoDID(w http.ResponseWriter, r *http.Request) error {
	host := r.Host
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	found, err := s.accounts.get(host)
	if err != nil {
		return xrpc.Errorf(http.StatusNotFound, "NotFound", "User not found")
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, err = w.Write([]byte(found.DID))
	return err
}

func (s *server) getHealth(w http.ResponseWriter, _ *http.Request) error {
	xrpc.WriteJSON(w, http.StatusOK, map[string]string{"version": "devnet"})
	return nil
}

func (s *server) createAccount(w http.ResponseWriter, r *http.Request) error {
	var in struct{ Handle, Password string }
	if err := xrpc.ReadJSON(w, r, &in); err != nil {
		return err
	}
	if in.Password == "" || len(in.Password) > maxPasswordBytes {
		return xrpc.Errorf(http.StatusBadRequest, "InvalidPassword", "a password has 1 to %d bytes", maxPasswordBytes)
	}
	made, err := s.openAccount(r.Context(), in.Handle, in.Password)
	if err != nil {
		return err
	}
	return s.writeSession(w, made, "")
}

// openAccount makes the identity, the repo and the account. Errors: *xrpc.Error and others.
func (s *server) openAccount(ctx context.Context, name, password string) (*account, error) {
	handle, err := syntax.ParseHandle(name)
	if err != nil || handle.TLD() != "test" {
		return nil, xrpc.Errorf(http.StatusBadRequest, "InvalidHandle", "%q is not a handle that ends in .test", name)
	}
	if _, err := s.accounts.get(handle.String()); err == nil {
		return nil, xrpc.Errorf(http.StatusBadRequest, "HandleNotAvailable", "Handle already taken: %s", handle)
	}
	made, err := newAccount(handle.Normalize(), password)
	if err != nil {
		return nil, err
	}
	op, err := made.genesis(s.url, s.rotation)
	if err != nil {
		return nil, fmt.Errorf("sign genesis operation: %w", err)
	}
	if made.DID, err = op.DID(); err != nil {
		return nil, err
	}
	if err := s.directory.apply(made.DID, op); err != nil {
		return nil, fmt.Errorf("register %s: %w", made.DID, err)
	}
	if err := s.makeRepo(ctx, made); err != nil {
		return nil, fmt.Errorf("make the repo of %s: %w", handle, err)
	}
	if err := s.accounts.add(made); err != nil {
		return nil, xrpc.Errorf(http.StatusBadRequest, "HandleNotAvailable", "Handle already taken: %s", handle)
	}
	return made, s.save()
}

func (s *server) createSession(w http.ResponseWriter, r *http.Request) error {
	var in struct{ Identifier, Password string }
	if err := xrpc.ReadJSON(w, r, &in); err != nil {
		return err
	}
	address, _, _ := net.SplitHostPort(r.RemoteAddr) // net/http's own form
	if !s.limiter.take(w, in.Identifier+"-"+address) {
		return nil
	}
	found, name, err := s.accounts.login(in.Identifier, in.Password)
	if err != nil {
		return xrpc.Errorf(http.StatusUnauthorized, "AuthenticationRequired", "Invalid identifier or password")
	}
	return s.writeSession(w, found, name)
}

// writeSession opens a session and answers with its tokens. appPassword is the name of the one that opened
// it, "" for the main password.
func (s *server) writeSession(w http.ResponseWriter, of *account, appPassword string) error {
	scope := scopeAccess
	if appPassword != "" {
		scope = scopeAppPass
	}
	access, err := s.tokens.sign(of.DID, scope, "")
	if err != nil {
		return err
	}
	refresh, err := s.tokens.sign(of.DID, scopeRefresh, s.accounts.grant(refreshGrant{DID: of.DID, AppPassword: appPassword}))
	if err != nil {
		return err
	}
	if err := s.save(); err != nil {
		return err
	}
	body := s.sessionBody(of)
	body["accessJwt"], body["refreshJwt"] = access, refresh
	xrpc.WriteJSON(w, http.StatusOK, body)
	return nil
}

func (s *server) sessionBody(of *account) map[string]any {
	body := map[string]any{"did": of.DID, "handle": of.Handle, "active": true}
	if last, err := s.directory.last(of.DID); err == nil {
		body["didDoc"] = document(of.DID, last.Operation)
	}
	return body
}

func (s *server) refreshSession(w http.ResponseWriter, r *http.Request) error {
	claims, err := s.tokens.verify(r, scopeRefresh)
	if err != nil {
		return err
	}
	grant, ok := s.accounts.revoke(claims.ID)
	if !ok {
		return xrpc.Errorf(http.StatusBadRequest, "ExpiredToken", "Token has been revoked")
	}
	of, err := s.accounts.get(grant.DID.String())
	if err != nil {
		return err
	}
	return s.writeSession(w, of, grant.AppPassword)
}

func (s *server) deleteSession(w http.ResponseWriter, r *http.Request) error {
	claims, err := s.tokens.verify(r, scopeRefresh)
	if err != nil {
		return err
	}
	s.accounts.revoke(claims.ID)
	w.WriteHeader(http.StatusOK)
	return s.save()
}

// caller is the account whose access token a request carries. Errors: *xrpc.Error.
func (s *server) caller(r *http.Request, scopes ...string) (*account, *sessionClaims, error) {
	claims, err := s.tokens.verify(r, scopes...)
	if err != nil {
		return nil, nil, err
	}
	of, err := s.accounts.get(claims.Subject)
	if err != nil {
		return nil, nil, xrpc.Errorf(http.StatusForbidden, "AccountNotFound", "Account not found")
	}
	return of, claims, nil
}

func (s *server) getSession(w http.ResponseWriter, r *http.Request) error {
	of, _, err := s.caller(r, scopeAccess, scopeAppPass)
	if err != nil {
		return err
	}
	xrpc.WriteJSON(w, http.StatusOK, s.sessionBody(of))
	return nil
}

func (s *server) createAppPassword(w http.ResponseWriter, r *http.Request) error {
	of, _, err := s.caller(r, scopeAccess)
	if err != nil {
		return err
	}
	var in struct{ Name string }
	if err := xrpc.ReadJSON(w, r, &in); err != nil {
		return err
	}
	if in.Name == "" || len(in.Name) > 100 {
		return xrpc.InvalidRequest("an app password has a name of 1 to 100 bytes")
	}
	made, err := s.accounts.addAppPassword(of.DID, in.Name, s.now().UTC())
	if errors.Is(err, errNameTaken) {
		return xrpc.InvalidRequest("could not create app-specific password: the name is taken")
	}
	if err := errors.Join(err, s.save()); err != nil {
		return err
	}
	xrpc.WriteJSON(w, http.StatusOK, map[string]any{
		"name": made.Name, "password": made.Password, "createdAt": made.CreatedAt, "privileged": false,
	})
	return nil
}

// getServiceAuth signs a token for another service, under the reference PDS's rules.
func (s *server) getServiceAuth(w http.ResponseWriter, r *http.Request) error {
	of, claims, err := s.caller(r, scopeAccess, scopeAppPass)
	if err != nil {
		return err
	}
	audience, err := xrpc.RequiredParam(r, "aud")
	if err != nil {
		return err
	}
	did, _, _ := strings.Cut(audience, "#")
	if _, err := syntax.ParseDID(did); err != nil {
		return xrpc.InvalidRequest("aud must be a valid atproto DID or did#serviceId reference")
	}
	lxm, err := xrpc.Param(r, "lxm")
	if err != nil {
		return err
	}
	if lxm != "" {
		if _, err := syntax.ParseNSID(lxm); err != nil {
			return xrpc.InvalidRequest("lxm must be a valid NSID")
		}
	}
	if protected[lxm] {
		return xrpc.InvalidRequest("cannot request a service auth token for the following protected method: %s", lxm)
	}
	if claims.Scope == scopeAppPass && privileged(lxm) {
		return xrpc.InvalidRequest("insufficient access to request a service auth token for the following method: %s", lxm)
	}
	now := s.now()
	expires, err := expiry(r, now, lxm)
	if err != nil {
		return err
	}
	token, err := xrpc.SignServiceToken(of.key, of.DID, audience, lxm, now, expires.Sub(now))
	if err != nil {
		return err
	}
	xrpc.WriteJSON(w, http.StatusOK, map[string]string{"token": token})
	return nil
}

// expiry is a service token's end: the exp parameter within bounds, a minute where there is none.
func expiry(r *http.Request, now time.Time, lxm string) (time.Time, error) {
	v, err := xrpc.Param(r, "exp")
	if err != nil || v == "" {
		return now.Add(methodlessTokenLifetime), err
	}
	seconds, err := strconv.ParseInt(v, 10, 64)
	if err != nil {
		return time.Time{}, xrpc.InvalidRequest("exp must be an integer")
	}
	bad := func(why string) (time.Time, error) {
		return time.Time{}, xrpc.Errorf(http.StatusBadRequest, "BadExpiration", "%s", why)
	}
	expires := time.Unix(seconds, 0)
	switch lifetime := expires.Sub(now); {
	case lifetime < 0:
		return bad("expiration is in past")
	case lifetime > maxServiceTokenLifetime:
		return bad("cannot request a token with an expiration more than an hour in the future")
	case lxm == "" && lifetime > methodlessTokenLifetime:
		return bad("cannot request a method-less token with an expiration more than a minute in the future")
	}
	return expires, nil
}

// didWeb is the DID of a server at an http URL on localhost.
func didWeb(serverURL string) string {
	u, err := url.Parse(serverURL)
	if err != nil {
		panic("devnet: our own URL does not parse: " + err.Error())
	}
	return "did:web:" + strings.ReplaceAll(u.Host, ":", "%3A")
}

// randomPassword is a main password.
func randomPassword() string { return rand.Text() }
