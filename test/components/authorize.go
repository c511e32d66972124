package components

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// Decision is what a person does on the OAuth pages of a PDS.
type Decision struct {
	Account Account // signs in with the main password
	Deny    bool
	Scope   string // what is left of the scope that was asked for; "" for all
}

// Authorize plays a browser and the person before it on the OAuth pages of a reference PDS: it opens target,
// signs in, decides, and returns the URL that leads back to the client, without following it.
//
// It calls what the pages of @atproto/oauth-provider 0.22 (of the previous generation: 0.15) call, which nobody has promised to keep.
func (p *PDS) Authorize(ctx context.Context, target string, d Decision) (callback string, err error) {
	b := &pdsBrowser{ctx: ctx, origin: p.URL, page: target, cookies: map[string]string{}, client: &http.Client{Timeout: time.Minute}}
	header := map[string]string{"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
	if _, err := b.send(http.MethodGet, target, header, nil); err != nil {
		return "", err
	}
	var out struct{ URL string }
	if d.Deny {
		err = b.call("reject", "", map[string]any{}, &out)
	} else {
		err = b.consent(d, &out)
	}
	if err != nil {
		return "", err
	}
	// The answer is the PDS's own page that leads on to the client.
	next, err := url.Parse(out.URL)
	if err != nil {
		return "", err
	}
	query := next.Query()
	callback = query.Get("redirect_uri")
	for name := range query {
		if strings.HasPrefix(name, "redirect_") {
			query.Del(name)
		}
	}
	return callback + "?" + query.Encode(), nil
}

type pdsBrowser struct {
	ctx     context.Context
	origin  string
	page    string
	cookies map[string]string // all are Secure, which a jar would not send to http
	client  *http.Client
}

func (b *pdsBrowser) consent(d Decision, out any) error {
	var in struct {
		Account        struct{ DID, Sub string } // sub at the PDS of the previous generation
		EphemeralToken string
	}
	if err := b.call("sign-in", "", map[string]any{"locale": "en", "username": d.Account.Handle, "password": d.Account.Password}, &in); err != nil {
		return err
	}
	consent := map[string]any{"did": in.Account.DID}
	if in.Account.Sub != "" {
		consent = map[string]any{"sub": in.Account.Sub}
	}
	if d.Scope != "" {
		consent["scope"] = d.Scope
	}
	return b.call("consent", in.EphemeralToken, consent, out)
}

func (b *pdsBrowser) call(endpoint, token string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	header := map[string]string{
		"Content-Type": "application/json", "X-CSRF-Token": b.cookies["csrf-token"], "Sec-Fetch-Site": "same-origin",
		"Sec-Fetch-Mode": "same-origin", "Referer": b.page, "Origin": b.origin,
	}
	if token != "" {
		header["Authorization"] = "Bearer " + token
	}
	raw, err := b.send(http.MethodPost, b.origin+"/@atproto/oauth-provider/~api/"+endpoint, header, body)
	if err != nil {
		return err
	}
	return json.Unmarshal(raw, out)
}

func (b *pdsBrowser) send(method, target string, header map[string]string, body []byte) ([]byte, error) {
	req, err := http.NewRequestWithContext(b.ctx, method, target, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	for name, value := range header {
		req.Header.Set(name, value)
	}
	for name, value := range b.cookies {
		req.AddCookie(&http.Cookie{Name: name, Value: value})
	}
	res, err := b.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = res.Body.Close() }()
	for _, c := range res.Cookies() {
		b.cookies[c.Name] = c.Value
	}
	out, err := io.ReadAll(io.LimitReader(res.Body, 4<<20))
	if err == nil && res.StatusCode >= 400 {
		err = fmt.Errorf("%s: %s: %.300s", req.URL.Path, res.Status, out)
	}
	return out, err
}
