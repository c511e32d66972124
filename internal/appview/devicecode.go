package appview

import (
	"context"
	"errors"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/internal/credential"
	"atcr.io/internal/httpx"
	"atcr.io/internal/oci"
	"atcr.io/internal/session"
	"atcr.io/internal/xrpc"
)

// grantDeviceCode is the grant type of a device that polls.
//
// Source: RFC 8628, section 3.4.
const grantDeviceCode = "urn:ietf:params:oauth:grant-type:device_code"

// deviceServer answers the credential helper: docs/device.md has the calls.
type deviceServer struct {
	directory   directory
	credentials *credential.Store
	sessions    grants
	choice      *chooser
	blocked     func(did string) error     // of a person, nil for nearly all
	address     func(*http.Request) string // for lists
	caller      func(*http.Request) string // for limits
	baseURL     string
}

// grants finds the session that devices and access tokens act with: session.Store.
type grants interface {
	SessionFor(ctx context.Context, a session.Account) (session.Session, error)
}

// routes are open to everybody where they say so; the rest need a credential's secret.
func (d *deviceServer) routes() map[string]httpx.Handler {
	return map[string]httpx.Handler{
		"POST /auth/device/code":   d.postCode,  // everybody
		"POST /auth/device/token":  d.postToken, // who knows a device code
		"GET /auth/whoami":         d.getWhoAmI,
		"POST /auth/device/revoke": d.postRevoke,
		"GET /auth/hold":           d.getHold,
		"POST /auth/hold":          d.postHold,
		"GET /auth/holds":          d.getHolds,
	}
}

// oauthError is an error in OAuth's form. Description is for people.
//
// Source: RFC 6749, section 5.2; RFC 8628, section 3.5; RFC 6750, section 3.
type oauthError struct {
	Status      int
	Code        string
	Description string
	RetryAfter  time.Duration
	Err         error
}

func (e *oauthError) Error() string {
	if e.Err != nil {
		return e.Code + ": " + e.Description + ": " + e.Err.Error()
	}
	return e.Code + ": " + e.Description
}

func (e *oauthError) Unwrap() error { return e.Err }

// writeOAuthError translates err. What it does not know is said to nobody.
func writeOAuthError(w http.ResponseWriter, err error) (status int, code string) {
	e, ok := errors.AsType[*oauthError](err)
	if registry, isOCI := errors.AsType[*oci.Error](err); !ok && isOCI {
		e, ok = &oauthError{Status: registry.HTTPStatus(), Code: strings.ToLower(string(registry.Code)), Description: registry.Message, RetryAfter: registry.RetryAfter}, true
	}
	if limit, limited := errors.AsType[*credential.LimitError](err); limited {
		e, ok = &oauthError{Status: http.StatusTooManyRequests, Code: "temporarily_unavailable", Description: "too many attempts: try again later", RetryAfter: limit.RetryAfter}, true
	}
	if !ok {
		e = &oauthError{Status: http.StatusInternalServerError, Code: "server_error", Description: "internal server error"}
	}
	if e.RetryAfter > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int((e.RetryAfter+time.Second-1)/time.Second)))
	}
	if e.Status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", `Bearer error="`+e.Code+`"`)
	}
	w.Header().Set("Cache-Control", "no-store")
	xrpc.WriteJSON(w, e.Status, map[string]string{"error": e.Code, "error_description": e.Description})
	return e.Status, e.Code
}

// postCode gives a machine its codes.
//
// Source: RFC 8628, sections 3.1 and 3.2. device_name and platform are ours: what the person is shown.
func (d *deviceServer) postCode(w http.ResponseWriter, r *http.Request) error {
	form, err := readForm(w, r)
	if err != nil {
		return err
	}
	if form.Get("client_id") == "" {
		return &oauthError{Status: http.StatusBadRequest, Code: "invalid_request", Description: "client_id is missing: the name of the program"}
	}
	code, err := d.credentials.Begin(r.Context(), credential.Request{
		Name: form.Get("device_name"), Platform: form.Get("platform"), Address: d.address(r), Caller: d.caller(r),
	})
	if err != nil {
		return err
	}
	page := d.baseURL + "/device"
	w.Header().Set("Cache-Control", "no-store")
	xrpc.WriteJSON(w, http.StatusOK, map[string]any{
		"device_code": code.DeviceCode, "user_code": code.UserCode,
		"verification_uri": page, "verification_uri_complete": page + "?" + url.Values{"user_code": {code.UserCode}}.Encode(),
		"expires_in": int(code.ExpiresIn / time.Second), "interval": int(code.Interval / time.Second),
	})
	return nil
}

// postToken is a machine asking whether it was approved. Its secret is the answer, once.
//
// Source: RFC 8628, sections 3.4 and 3.5.
func (d *deviceServer) postToken(w http.ResponseWriter, r *http.Request) error {
	form, err := readForm(w, r)
	if err != nil {
		return err
	}
	if form.Get("grant_type") != grantDeviceCode {
		return &oauthError{Status: http.StatusBadRequest, Code: "unsupported_grant_type", Description: "grant_type must be " + grantDeviceCode}
	}
	secret, c, err := d.credentials.Poll(r.Context(), d.caller(r), form.Get("device_code"))
	if errors.Is(err, credential.ErrPending) { // the usual answer: nothing for the log
		writeOAuthError(w, pollError(err))
		return nil
	}
	if err != nil {
		return pollError(err)
	}
	httpx.EventFrom(r.Context()).DID = c.DID.String()
	w.Header().Set("Cache-Control", "no-store")
	xrpc.WriteJSON(w, http.StatusOK, map[string]any{
		"access_token": secret, "token_type": "Bearer", "did": c.DID, "handle": d.handleOf(r.Context(), c.DID), "device_id": c.ID,
	})
	return nil
}

func pollError(err error) error {
	text := map[error]string{
		credential.ErrPending: "nobody has decided yet", credential.ErrSlowDown: "ask less often: five seconds more between two polls",
		credential.ErrExpired: "the code has expired: begin again", credential.ErrDenied: "the request was refused",
	}
	for known, description := range text {
		if errors.Is(err, known) {
			return &oauthError{Status: http.StatusBadRequest, Code: known.Error(), Description: description}
		}
	}
	if errors.Is(err, credential.ErrCode) {
		return &oauthError{Status: http.StatusBadRequest, Code: "invalid_grant", Description: "the code is not known, or was used: begin again"}
	}
	return err
}

// whoAmI is what a device is told of itself.
type whoAmI struct {
	DID       syntax.DID      `json:"did"`
	Handle    string          `json:"handle,omitempty"`
	Kind      credential.Kind `json:"kind"`
	ID        string          `json:"id"`
	Name      string          `json:"name"`
	CreatedAt string          `json:"createdAt"`
	ExpiresAt string          `json:"expiresAt,omitempty"`
	// SignedIn: the person's sign-in at their PDS lives, so that pushes work.
	SignedIn bool `json:"signedIn"`
}

func (d *deviceServer) getWhoAmI(w http.ResponseWriter, r *http.Request) error {
	c, err := d.bearer(r)
	if err != nil {
		return err
	}
	out := whoAmI{
		DID: c.DID, Handle: d.handleOf(r.Context(), c.DID), Kind: c.Kind, ID: c.ID, Name: c.Name, CreatedAt: c.CreatedAt.UTC().Format(time.RFC3339),
	}
	if !c.ExpiresAt.IsZero() {
		out.ExpiresAt = c.ExpiresAt.UTC().Format(time.RFC3339)
	}
	if _, err := d.session(r.Context(), c.DID); err == nil {
		out.SignedIn = true
	} else if !errors.Is(err, session.ErrGone) {
		return err
	}
	w.Header().Set("Cache-Control", "no-store")
	xrpc.WriteJSON(w, http.StatusOK, out)
	return nil
}

// postRevoke ends the credential that is shown: `logout`. A blocked person may.
func (d *deviceServer) postRevoke(w http.ResponseWriter, r *http.Request) error {
	c, err := d.shown(r)
	if err != nil {
		return err
	}
	if err := d.credentials.Revoke(r.Context(), c.DID, c.ID); err != nil && !errors.Is(err, credential.ErrUnknown) {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// getHold is where the person's pushes go, and what they may there.
func (d *deviceServer) getHold(w http.ResponseWriter, r *http.Request) error {
	return d.answerSession(w, r, func(s session.Session) (any, error) { return d.choice.current(r.Context(), s) })
}

// getHolds lists the holds where the person may write.
func (d *deviceServer) getHolds(w http.ResponseWriter, r *http.Request) error {
	return d.answerSession(w, r, func(s session.Session) (any, error) {
		return map[string]any{"holds": d.choice.known(r.Context(), s)}, nil
	})
}

// answerSession answers with what the person's live session finds out.
func (d *deviceServer) answerSession(w http.ResponseWriter, r *http.Request, ask func(session.Session) (any, error)) error {
	c, err := d.bearer(r)
	if err != nil {
		return err
	}
	s, err := d.liveSession(r.Context(), c.DID)
	if err != nil {
		return err
	}
	out, err := ask(s)
	if err != nil {
		return err
	}
	w.Header().Set("Cache-Control", "no-store")
	xrpc.WriteJSON(w, http.StatusOK, out)
	return nil
}

// postHold chooses another: a DID, a URL, or "" for the AppView's default.
func (d *deviceServer) postHold(w http.ResponseWriter, r *http.Request) error {
	form, err := readForm(w, r)
	if err != nil {
		return err
	}
	c, err := d.bearer(r)
	if err != nil {
		return err
	}
	if c.Kind != credential.Device {
		return &oauthError{Status: http.StatusForbidden, Code: "insufficient_scope", Description: "an access token chooses no hold: use the settings page, or a device"}
	}
	s, err := d.liveSession(r.Context(), c.DID)
	if err != nil {
		return err
	}
	report, err := d.choice.choose(r.Context(), s, form.Get("hold"))
	if err != nil {
		return err
	}
	w.Header().Set("Cache-Control", "no-store")
	xrpc.WriteJSON(w, http.StatusOK, report)
	return nil
}

// bearer is the credential of a request, of a person who is not blocked. Errors: *oauthError, *oci.Error.
func (d *deviceServer) bearer(r *http.Request) (credential.Credential, error) {
	c, err := d.shown(r)
	if err == nil {
		err = d.blocked(c.DID.String())
	}
	return c, err
}

// shown is the credential of a request, whoever's it is. Errors: *oauthError.
func (d *deviceServer) shown(r *http.Request) (credential.Credential, error) {
	scheme, secret, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return credential.Credential{}, &oauthError{Status: http.StatusUnauthorized, Code: "invalid_request", Description: "send the device's secret: Authorization: Bearer atcrd_…"}
	}
	c, err := d.credentials.Verify(r.Context(), strings.TrimSpace(secret))
	if errors.Is(err, credential.ErrUnknown) {
		return c, &oauthError{Status: http.StatusUnauthorized, Code: "invalid_token", Description: "this device is not signed in, or no longer: sign in again"}
	}
	if err == nil {
		httpx.EventFrom(r.Context()).DID = c.DID.String()
	}
	return c, err
}

// session is the one that a person's credentials act with. Errors: session.ErrGone; *oci.Error.
func (d *deviceServer) session(ctx context.Context, did syntax.DID) (session.Session, error) {
	return sessionOf(ctx, d.directory, d.sessions, did)
}

func sessionOf(ctx context.Context, directory directory, sessions grants, did syntax.DID) (session.Session, error) {
	who, err := directory.LookupDID(ctx, did)
	if err != nil {
		return session.Session{}, identityError(did.String(), err)
	}
	return sessions.SessionFor(ctx, session.Account{DID: did, PDS: who.PDS()})
}

func (d *deviceServer) liveSession(ctx context.Context, did syntax.DID) (session.Session, error) {
	s, err := d.session(ctx, did)
	if errors.Is(err, session.ErrGone) {
		return s, &oauthError{
			Status: http.StatusForbidden, Code: "login_required", Err: err,
			Description: "your sign-in at your PDS has ended: sign in at " + d.baseURL + "/settings, and this device works again",
		}
	}
	return s, err
}

// handleOf is a person's handle where it can be found out and leads back to them, else "".
func (d *deviceServer) handleOf(ctx context.Context, did syntax.DID) string {
	return checkedHandle(ctx, d.directory, did)
}

func checkedHandle(ctx context.Context, directory directory, did syntax.DID) string {
	who, err := directory.LookupDID(ctx, did)
	if err != nil || who.Handle == "" || who.Handle == syntax.HandleInvalid {
		return ""
	}
	back, err := directory.Lookup(ctx, who.Handle.AtIdentifier())
	if err != nil || back.DID != did {
		return ""
	}
	return who.Handle.String()
}

// readForm reads the small form of a POST. Errors: *oauthError.
func readForm(w http.ResponseWriter, r *http.Request) (url.Values, error) {
	if mediaType, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || mediaType != "application/x-www-form-urlencoded" {
		return nil, &oauthError{Status: http.StatusUnsupportedMediaType, Code: "invalid_request", Description: "send a form: application/x-www-form-urlencoded"}
	}
	raw, err := httpx.ReadLimited(http.MaxBytesReader(w, r.Body, maxFormBytes), maxFormBytes)
	if err != nil {
		return nil, &oauthError{Status: http.StatusRequestEntityTooLarge, Code: "invalid_request", Description: "the form is too large", Err: err}
	}
	form, err := url.ParseQuery(string(raw))
	if err != nil {
		return nil, &oauthError{Status: http.StatusBadRequest, Code: "invalid_request", Description: "the form cannot be read"}
	}
	return form, nil
}
