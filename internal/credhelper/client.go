package credhelper

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"
)

// The calls of an AppView: docs/device.md.

const (
	clientID       = "docker-credential-atcr"
	maxAnswerBytes = 64 << 10
	callTimeout    = 20 * time.Second
	grantType      = "urn:ietf:params:oauth:grant-type:device_code"
)

// errSignedOut says that the registry does not know this device (any more).
var errSignedOut = errors.New("this device is signed in no longer")

// callError is what a registry answers that is no success.
type callError struct {
	Status      int
	Code        string
	Description string
}

func (e *callError) Error() string {
	if e.Description != "" {
		return e.Description
	}
	return fmt.Sprintf("%s (HTTP %d)", e.Code, e.Status)
}

// baseURL is where a registry is: https, but http on this machine.
func baseURL(registry string) string {
	host := registry
	if h, _, err := net.SplitHostPort(registry); err == nil {
		host = h
	}
	ip, err := netip.ParseAddr(strings.Trim(host, "[]"))
	if host == "localhost" || strings.HasSuffix(host, ".localhost") || err == nil && ip.IsLoopback() {
		return "http://" + registry
	}
	return "https://" + registry
}

type deviceCode struct {
	DeviceCode string `json:"device_code"`
	UserCode   string `json:"user_code"`
	URL        string `json:"verification_uri"`
	Complete   string `json:"verification_uri_complete"`
	ExpiresIn  int    `json:"expires_in"`
	Interval   int    `json:"interval"`
}

func (h *Helper) begin(ctx context.Context, registry, name, platform string) (c deviceCode, err error) {
	err = h.call(ctx, registry, "POST", "/auth/device/code", "", url.Values{"client_id": {clientID}, "device_name": {name}, "platform": {platform}}, &c)
	if err == nil && (c.DeviceCode == "" || c.UserCode == "" || !isWeb(c.URL)) {
		err = fmt.Errorf("%s does not answer like an ATCR registry", registry)
	}
	if !isWeb(c.Complete) {
		c.Complete = c.URL
	}
	return c, err
}

// isWeb keeps other kinds of addresses from the browser.
func isWeb(text string) bool {
	u, err := url.Parse(text)
	return err == nil && (u.Scheme == "https" || u.Scheme == "http") && u.Host != "" && u.User == nil
}

type deviceToken struct {
	Secret string `json:"access_token"`
	DID    string `json:"did"`
	Handle string `json:"handle"`
}

func (h *Helper) poll(ctx context.Context, registry, code string) (t deviceToken, err error) {
	err = h.call(ctx, registry, "POST", "/auth/device/token", "", url.Values{"client_id": {clientID}, "grant_type": {grantType}, "device_code": {code}}, &t)
	if err == nil && (t.Secret == "" || t.DID == "") {
		err = fmt.Errorf("%s gave no secret", registry)
	}
	return t, err
}

type whoAmI struct {
	DID       string    `json:"did"`
	Handle    string    `json:"handle"`
	Name      string    `json:"name"`
	CreatedAt time.Time `json:"createdAt"`
	SignedIn  bool      `json:"signedIn"`
}

// whoAmI asks whether a secret is good. Errors: errSignedOut.
func (h *Helper) whoAmI(ctx context.Context, registry, secret string) (w whoAmI, err error) {
	err = h.call(ctx, registry, "GET", "/auth/whoami", secret, nil, &w)
	return w, err
}

func (h *Helper) revoke(ctx context.Context, registry, secret string) error {
	return h.call(ctx, registry, "POST", "/auth/device/revoke", secret, url.Values{}, nil)
}

// holdReport is what an AppView says of a hold.
type holdReport struct {
	DID        string `json:"did"`
	URL        string `json:"url,omitempty"`
	Default    bool   `json:"default"`
	Chosen     bool   `json:"chosen"`
	MayWrite   bool   `json:"mayWrite"`
	OthersRead bool   `json:"othersRead"`
	Role       string `json:"role,omitempty"`
	Problem    string `json:"problem,omitempty"`
}

func (h *Helper) hold(ctx context.Context, registry, secret string) (r holdReport, err error) {
	err = h.call(ctx, registry, "GET", "/auth/hold", secret, nil, &r)
	return r, err
}

func (h *Helper) knownHolds(ctx context.Context, registry, secret string) ([]holdReport, error) {
	var out struct{ Holds []holdReport }
	err := h.call(ctx, registry, "GET", "/auth/holds", secret, nil, &out)
	return out.Holds, err
}

func (h *Helper) useHold(ctx context.Context, registry, secret, hold string) (r holdReport, err error) {
	err = h.call(ctx, registry, "POST", "/auth/hold", secret, url.Values{"hold": {hold}}, &r)
	return r, err
}

// call is one request. Redirects are not followed: a secret goes to the registry alone.
//
// Errors: errSignedOut, *callError, or the network's.
func (h *Helper) call(ctx context.Context, registry, method, path, secret string, form url.Values, out any) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var body io.Reader
	if form != nil {
		body = strings.NewReader(form.Encode())
	}
	req, err := http.NewRequestWithContext(ctx, method, baseURL(registry)+path, body)
	if err != nil {
		return err
	}
	if form != nil {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	if secret != "" {
		req.Header.Set("Authorization", "Bearer "+secret)
	}
	req.Header.Set("User-Agent", clientID)
	res, err := h.Client.Do(req)
	if err != nil {
		return fmt.Errorf("%s cannot be reached: %w", registry, unwrapURL(err))
	}
	defer func() { _ = res.Body.Close() }()
	raw, err := io.ReadAll(io.LimitReader(res.Body, maxAnswerBytes))
	if err != nil {
		return fmt.Errorf("%s: %w", registry, err)
	}
	if res.StatusCode/100 != 2 {
		return answerError(registry, res, raw)
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(raw, out); err != nil {
		return fmt.Errorf("%s does not answer like an ATCR registry", registry)
	}
	return nil
}

func unwrapURL(err error) error {
	if e, ok := errors.AsType[*url.Error](err); ok {
		return e.Err
	}
	return err
}

func answerError(registry string, res *http.Response, raw []byte) error {
	var said struct {
		Code        string `json:"error"`
		Description string `json:"error_description"`
	}
	if json.Unmarshal(raw, &said) != nil || said.Code == "" {
		return &callError{Status: res.StatusCode, Description: fmt.Sprintf("%s does not answer like an ATCR registry (HTTP %d)", registry, res.StatusCode)}
	}
	if res.StatusCode == http.StatusUnauthorized {
		return errSignedOut
	}
	return &callError{Status: res.StatusCode, Code: said.Code, Description: said.Description}
}
