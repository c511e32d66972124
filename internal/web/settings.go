package web

import (
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
)

// lifetimes are those that an access token can have, in days.
var lifetimes = []int{7, 30, 90, 365}

// done are what a page says after something was done: the URL names one of them, and brings no text.
var done = map[string]string{
	"hold": "Your pushes go to that hold from now on.", "revoked": "It is revoked, and opens nothing more.",
}

func (s *Server) getSettings(w http.ResponseWriter, r *http.Request, v Visitor) error {
	view := settingsPage{Done: done[r.FormValue("done")]}
	return s.showSettings(w, r, v, http.StatusOK, view)
}

// showSettings fills the page. Other people's servers that do not answer leave a hole in it, and do not end it.
func (s *Server) showSettings(w http.ResponseWriter, r *http.Request, v Visitor, status int, view settingsPage) error {
	view.page, view.Lifetimes = s.page("Settings", v), lifetimes
	var items []Item
	var g errgroup.Group
	g.Go(func() (err error) {
		items, err = s.config.Keeping.List(r.Context(), v)
		return err
	})
	g.Go(func() error {
		hold, err := s.config.Holds.Current(r.Context(), v)
		if p, ok := errors.AsType[*Problem](err); ok {
			if view.HoldWrong == "" {
				view.HoldWrong = p.Text
			}
			return nil
		}
		view.Hold = &hold
		return err
	})
	g.Go(func() error {
		view.Holds = s.config.Holds.Known(r.Context(), v)
		return nil
	})
	if err := g.Wait(); err != nil {
		return err
	}
	for _, item := range items {
		list := map[string]*[]Item{KindBrowser: &view.Browsers, KindDevice: &view.Devices, KindToken: &view.Tokens, KindSession: &view.Sessions}[item.Kind]
		*list = append(*list, item)
	}
	return s.render(w, status, "settings", view)
}

func (s *Server) postHold(w http.ResponseWriter, r *http.Request, v Visitor) error {
	hold := strings.TrimSpace(r.PostFormValue("hold"))
	_, err := s.config.Holds.Choose(r.Context(), v, hold)
	if p, ok := errors.AsType[*Problem](err); ok {
		return s.showSettings(w, r, v, p.Status, settingsPage{HoldWrong: p.Text, HoldTyped: hold})
	}
	if err != nil {
		return err
	}
	http.Redirect(w, r, "/settings?done=hold#hold", http.StatusSeeOther)
	return nil
}

// postToken makes an access token and shows its secret: this once.
func (s *Server) postToken(w http.ResponseWriter, r *http.Request, v Visitor) error {
	days, err := strconv.Atoi(r.PostFormValue("days"))
	if err != nil || !slices.Contains(lifetimes, days) {
		return s.showSettings(w, r, v, http.StatusBadRequest, settingsPage{Wrong: "Choose how long the token is good."})
	}
	want := TokenRequest{Name: strings.TrimSpace(r.PostFormValue("name")), Actions: r.PostForm["action"], Lifetime: time.Duration(days) * 24 * time.Hour}
	if want.Name == "" {
		return s.showSettings(w, r, v, http.StatusBadRequest, settingsPage{Wrong: "Give the token a name, so that you know it later."})
	}
	for name := range strings.FieldsSeq(strings.ReplaceAll(r.PostFormValue("repositories"), ",", " ")) {
		if v.Handle != "" {
			name = strings.TrimPrefix(name, v.Handle+"/")
		}
		want.Repositories = append(want.Repositories, name)
	}
	secret, err := s.config.Keeping.NewToken(r.Context(), v, want)
	if p, ok := errors.AsType[*Problem](err); ok {
		return s.showSettings(w, r, v, p.Status, settingsPage{Wrong: p.Text})
	}
	if err != nil {
		return err
	}
	return s.showSettings(w, r, v, http.StatusOK, settingsPage{Secret: secret})
}

func (s *Server) postRevoke(w http.ResponseWriter, r *http.Request, v Visitor) error {
	if err := s.config.Keeping.Revoke(r.Context(), v, r.PostFormValue("kind"), r.PostFormValue("id")); err != nil {
		return err
	}
	http.Redirect(w, r, "/settings?done=revoked", http.StatusSeeOther)
	return nil
}

func (s *Server) getExport(w http.ResponseWriter, r *http.Request, v Visitor) error {
	all, err := s.config.Keeping.Export(r.Context(), v)
	if err != nil {
		return err
	}
	raw, err := json.MarshalIndent(all, "", "  ")
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Disposition", `attachment; filename="atcr-export.json"`)
	_, err = w.Write(append(raw, '\n'))
	return err
}

func (s *Server) getDelete(w http.ResponseWriter, _ *http.Request, v Visitor) error {
	return s.render(w, http.StatusOK, "delete", deletePage{s.page("Delete what is kept here", v)})
}

func (s *Server) postDelete(w http.ResponseWriter, r *http.Request, v Visitor) error {
	if r.PostFormValue("sure") != "yes" {
		return &Problem{Status: http.StatusBadRequest, Title: "Not confirmed", Text: "Tick the box where you are sure.", Again: "/settings/delete"}
	}
	if err := s.config.Keeping.Forget(r.Context(), v); err != nil {
		return err
	}
	s.setCookie(w, browserCookie, "", 0)
	return s.render(w, http.StatusOK, "problem", problemPage{page: s.page("Deleted", Visitor{}), Problem: Problem{
		Title: "Deleted", Text: "This AppView keeps nothing of you any more, but a copy of what your repo shows to everybody. Your images and records are where they were: in your repo and in the holds.",
	}})
}
