package web

import (
	"errors"
	"net/http"
	"net/url"
	"strings"
)

func (s *Server) getHome(w http.ResponseWriter, _ *http.Request, v Visitor) error {
	return s.render(w, http.StatusOK, "home", homePage{page: s.page("A container registry", v), BaseURL: s.config.BaseURL, Downloads: s.config.Downloads != ""})
}

// getNothing answers for every path that is no page.
func (s *Server) getNothing(http.ResponseWriter, *http.Request, Visitor) error {
	return &Problem{Status: http.StatusNotFound, Title: "No such page", Text: "There is nothing at this address.", Again: "/"}
}

func (s *Server) getLogin(w http.ResponseWriter, r *http.Request, v Visitor) error {
	back := localPath(r.FormValue("back"), "/settings")
	again := r.FormValue("again") != "" // more permissions are needed
	if v.DID != "" && !again {
		http.Redirect(w, r, back, http.StatusSeeOther)
		return nil
	}
	return s.showLogin(w, http.StatusOK, loginPage{page: s.page("Sign in", v), Who: v.Name(), Back: back, Consent: again, Missing: v.Missing})
}

func (s *Server) showLogin(w http.ResponseWriter, status int, view loginPage) error {
	// The answer to the form is a redirect to the person's own PDS, wherever that is.
	target := "'self' https:"
	if s.config.Insecure {
		target += " http:"
	}
	w.Header().Set("Content-Security-Policy", policy(target))
	return s.render(w, status, "login", view)
}

// postLogin sends the browser to the person's PDS.
func (s *Server) postLogin(w http.ResponseWriter, r *http.Request, v Visitor) error {
	caller := s.config.Caller(r)
	if wait, ok := s.tries.Take(caller); !ok {
		return limited(wait)
	}
	start := Start{
		Who: strings.TrimSpace(r.PostFormValue("who")), Back: localPath(r.PostFormValue("back"), "/settings"),
		Consent: r.PostFormValue("consent") != "", Browser: s.cookie(r, signInCookie), Caller: caller,
	}
	target, cookie, err := s.config.SignIn.Begin(r.Context(), start)
	if p, ok := errors.AsType[*Problem](err); ok && p.Status < http.StatusInternalServerError {
		return s.showLogin(w, p.Status, loginPage{page: s.page("Sign in", v), Who: start.Who, Back: start.Back, Consent: start.Consent, Wrong: p.Text})
	}
	if err != nil {
		return err
	}
	s.setCookie(w, signInCookie, cookie, signInCookieLife)
	http.Redirect(w, r, target, http.StatusSeeOther)
	return nil
}

// getCallback is where the person's PDS sends the browser back to. v is whoever was signed in until now.
func (s *Server) getCallback(w http.ResponseWriter, r *http.Request, v Visitor) error {
	secret, back, err := s.config.SignIn.Finish(r.Context(), r.URL.Query(), s.cookie(r, signInCookie), r.UserAgent(), s.config.Address(r))
	if err != nil {
		return err
	}
	if v.DID != "" {
		// The new cookie takes the old one's place. Where this fails the old one ends by itself, when its time is over.
		_ = s.config.SignIn.SignOut(r.Context(), v)
	}
	s.setCookie(w, browserCookie, secret, cookieLife)
	http.Redirect(w, r, localPath(back, "/settings"), http.StatusSeeOther)
	return nil
}

func (s *Server) postLogout(w http.ResponseWriter, r *http.Request, v Visitor) error {
	if v.DID != "" {
		if err := s.config.SignIn.SignOut(r.Context(), v); err != nil {
			return err
		}
	}
	s.setCookie(w, browserCookie, "", 0)
	http.Redirect(w, r, "/", http.StatusSeeOther)
	return nil
}

// getDevice shows which machine asks. The URL may bring the code; it never brings the answer.
func (s *Server) getDevice(w http.ResponseWriter, r *http.Request, v Visitor) error {
	code := strings.TrimSpace(r.FormValue("user_code"))
	view := devicePage{page: s.page("Sign in a device", v), UserCode: code}
	if code == "" {
		return s.render(w, http.StatusOK, "device", view)
	}
	m, err := s.config.Devices.Machine(r.Context(), v, s.config.Caller(r), code)
	if p, ok := errors.AsType[*Problem](err); ok && p.Status < http.StatusInternalServerError {
		view.Wrong = p.Text
		return s.render(w, p.Status, "device", view)
	}
	if err != nil {
		return err
	}
	view.Machine = &m
	return s.render(w, http.StatusOK, "device", view)
}

func (s *Server) postDevice(w http.ResponseWriter, r *http.Request, v Visitor) error {
	code, decision := r.PostFormValue("user_code"), r.PostFormValue("decision")
	if decision != "approve" && decision != "refuse" {
		return &Problem{Status: http.StatusBadRequest, Title: "No decision", Text: "The form said neither approve nor refuse.", Again: "/device?" + url.Values{"user_code": {code}}.Encode()}
	}
	caller := s.config.Caller(r)
	m, err := s.config.Devices.Machine(r.Context(), v, caller, code)
	if err == nil {
		err = s.config.Devices.Decide(r.Context(), v, caller, code, decision == "approve")
	}
	if p, ok := errors.AsType[*Problem](err); ok && p.Status < http.StatusInternalServerError {
		return s.render(w, p.Status, "device", devicePage{page: s.page("Sign in a device", v), Wrong: p.Text})
	}
	if err != nil {
		return err
	}
	title := "Refused"
	if decision == "approve" {
		title = "Approved"
	}
	return s.render(w, http.StatusOK, "decided", decidedPage{page: s.page(title, v), Approved: decision == "approve", Machine: m})
}
