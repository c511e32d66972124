package devnet

import (
	"context"
	"crypto/rand"
	"fmt"
	"html/template"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"atcr.io/internal/httpx"
)

var authorizePage = template.Must(template.New("authorize").Parse(`<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Sign in to the local network</title>
<h1>Sign in to the local network</h1>
<p>{{.Client}} asks for your approval.</p>
{{with .Problem}}<p role="alert">{{.}}</p>{{end}}
<form method="post">
<p><label>Handle <input name="identifier" value="{{.Hint}}" autocomplete="username" required></label></p>
<p><label>Password <input name="password" type="password" autocomplete="current-password"></label></p>
{{range .Scopes}}<p><label><input type="checkbox" name="scope" value="{{.}}" checked> {{.}}</label></p>
{{end}}<p><button name="decision" value="approve">Approve</button> <button name="decision" value="deny">Deny</button></p>
</form></html>
`))

type authorizeView struct {
	Client, Hint, Problem string
	Scopes                []string
}

// pending is the request that a browser brings along, if it is still good.
func (o *OAuth) pending(r *http.Request) *oauthRequest {
	o.mu.Lock()
	defer o.mu.Unlock()
	q := o.requests[r.URL.Query().Get("request_uri")]
	if q == nil || q.client.id != r.URL.Query().Get("client_id") || o.now().After(q.expires) {
		return nil
	}
	return q
}

// page asks its reader to sign in and approve.
func (o *OAuth) page(w http.ResponseWriter, r *http.Request) {
	if q := o.pending(r); q != nil {
		writeAuthorizePage(w, http.StatusOK, q, "")
		return
	}
	http.Error(w, "this request is unknown or has expired", http.StatusBadRequest)
}

func writeAuthorizePage(w http.ResponseWriter, status int, q *oauthRequest, problem string) {
	view := authorizeView{Client: q.client.Name, Hint: q.hint, Problem: problem, Scopes: strings.Fields(q.scope)}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	_ = authorizePage.Execute(w, view) // the reader may be gone
}

// decide sends the browser back with a code, or without.
func (o *OAuth) decide(w http.ResponseWriter, r *http.Request) {
	q := o.pending(r)
	if err := r.ParseForm(); q == nil || err != nil {
		http.Error(w, "this request is unknown or has expired", http.StatusBadRequest)
		return
	}
	answer := url.Values{"state": {q.state}, "iss": {o.server.url}}
	if r.PostForm.Get("decision") == "approve" {
		who, app, err := o.server.accounts.login(r.PostForm.Get("identifier"), r.PostForm.Get("password"))
		if err != nil || app != "" {
			writeAuthorizePage(w, http.StatusUnauthorized, q, "Wrong handle or password.")
			return
		}
		q.did = who.DID
		answer.Set("code", o.approve(q, r.PostForm["scope"]))
	} else {
		answer.Set("error", "access_denied")
		answer.Set("error_description", "The person did not approve")
	}
	o.mu.Lock()
	delete(o.requests, r.URL.Query().Get("request_uri"))
	o.mu.Unlock()
	http.Redirect(w, r, q.redirect+"?"+answer.Encode(), http.StatusSeeOther)
}

// approve makes a code for what the person left checked. atproto cannot be unchecked.
func (o *OAuth) approve(q *oauthRequest, checked []string) string {
	o.mu.Lock()
	defer o.mu.Unlock()
	var left []string
	for s := range strings.FieldsSeq(q.scope) {
		if s == "atproto" || slices.Contains(checked, s) {
			left = append(left, s)
		}
	}
	q.scope, q.expires = strings.Join(left, " "), o.now().Add(codeLifetime)
	code := rand.Text()
	o.codes[code] = q
	return code
}

// Decision is what a person does on the authorization page.
type Decision struct {
	Handle, Password string
	Deny             bool
	// Without are scopes that the person unchecks.
	Without []string
}

// Authorize plays a browser and the person before it: it opens the page of the authorization server at
// target, decides, and returns the URL that leads back to the client, without following it.
func (n *Network) Authorize(ctx context.Context, target string, d Decision) (callback string, err error) {
	client := &http.Client{Timeout: 30 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	status, _, page, err := visit(ctx, client, http.MethodGet, target, nil)
	if err != nil || status != http.StatusOK {
		return "", fmt.Errorf("the authorization page: status %d: %.200s: %w", status, page, err)
	}
	form := url.Values{"identifier": {d.Handle}, "password": {d.Password}, "decision": {"approve"}}
	if d.Deny {
		form.Set("decision", "deny")
	}
	for line := range strings.Lines(page) {
		if _, rest, ok := strings.Cut(line, `name="scope" value="`); ok {
			scope, _, _ := strings.Cut(rest, `"`)
			scope = strings.NewReplacer("&amp;", "&", "&#43;", "+").Replace(scope)
			if !slices.Contains(d.Without, scope) {
				form.Add("scope", scope)
			}
		}
	}
	status, location, page, err := visit(ctx, client, http.MethodPost, target, form)
	if err != nil || status != http.StatusSeeOther {
		return "", fmt.Errorf("the authorization page: status %d: %.200s: %w", status, page, err)
	}
	return location, nil
}

func visit(ctx context.Context, client *http.Client, method, target string, form url.Values) (status int, location, page string, err error) {
	req, err := http.NewRequestWithContext(ctx, method, target, strings.NewReader(form.Encode()))
	if err != nil {
		return 0, "", "", err
	}
	if form != nil {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	res, err := client.Do(req)
	if err != nil {
		return 0, "", "", err
	}
	defer func() { _ = res.Body.Close() }()
	body, err := httpx.ReadLimited(res.Body, 1<<20)
	if err != nil {
		return 0, "", "", err
	}
	return res.StatusCode, res.Header.Get("Location"), string(body), nil
}
