package web

import (
	"net/http"
	"slices"
	"strings"
	"time"
)

const (
	cookieLife       = 30 * 24 * time.Hour
	signInCookieLife = 15 * time.Minute
)

// cookieName has the prefix by which browsers keep a cookie to this host and https, where there is https.
func (s *Server) cookieName(name string) string {
	if s.config.Insecure {
		return name
	}
	return "__Host-" + name
}

// setCookie sets a cookie, in place of what was set before in the same answer.
func (s *Server) setCookie(w http.ResponseWriter, name, value string, life time.Duration) {
	age := int(life / time.Second)
	if value == "" {
		age = -1
	}
	name = s.cookieName(name)
	h := w.Header()
	h["Set-Cookie"] = slices.DeleteFunc(h["Set-Cookie"], func(set string) bool { return strings.HasPrefix(set, name+"=") })
	http.SetCookie(w, &http.Cookie{
		Name: name, Value: value, Path: "/", MaxAge: age,
		HttpOnly: true, Secure: !s.config.Insecure, SameSite: http.SameSiteLaxMode,
	})
}

func (s *Server) cookie(r *http.Request, name string) string {
	c, err := r.Cookie(s.cookieName(name))
	if err != nil || len(c.Value) > 256 {
		return ""
	}
	return c.Value
}

// The cookies: who is signed in at this browser, and which sign-in it has begun.
const (
	browserCookie = "atcr"
	signInCookie  = "atcr-signin"
)

// visitor is who is signed in. Errors: ErrSignedOut.
func (s *Server) visitor(r *http.Request) (Visitor, error) {
	secret := s.cookie(r, browserCookie)
	if secret == "" {
		return Visitor{}, ErrSignedOut
	}
	return s.config.SignIn.Visitor(r.Context(), secret)
}
