package web

import (
	"bytes"
	"embed"
	"fmt"
	"html/template"
	"net/http"
	"path"
	"strings"
	"time"
)

//go:embed page static
var files embed.FS

// templates are the pages, each with the frame around it.
type templates map[string]*template.Template

func parseTemplates() (templates, error) {
	names, err := files.ReadDir("page")
	if err != nil {
		return nil, err
	}
	out := templates{}
	functions := template.FuncMap{
		"day":  func(t time.Time) string { return t.UTC().Format("2006-01-02") },
		"when": func(t time.Time) string { return t.UTC().Format("2006-01-02 15:04 UTC") },
		"yes": func(b bool) string {
			if b {
				return "yes"
			}
			return "no"
		},
	}
	for _, name := range names {
		base := strings.TrimSuffix(name.Name(), ".html")
		if base == "frame" {
			continue
		}
		t, err := template.New("frame.html").Funcs(functions).Option("missingkey=error").ParseFS(files, "page/frame.html", path.Join("page", name.Name()))
		if err != nil {
			return nil, fmt.Errorf("web: %w", err)
		}
		out[base] = t
	}
	return out, nil
}

// page is what the frame shows. Each page's own struct begins with it.
type page struct {
	Title   string
	Visitor *Visitor
	Service string
}

type homePage struct {
	page
	BaseURL   string
	Downloads bool
}

type loginPage struct {
	page
	Who, Back, Wrong string
	Consent          bool
	Missing          []string
}

type devicePage struct {
	page
	UserCode string
	Machine  *Machine // nil: the code is asked for
	Wrong    string
}

type decidedPage struct {
	page
	Approved bool
	Machine  Machine
}

type settingsPage struct {
	page
	Done      string
	Hold      *Hold // nil: not known, for which HoldWrong says why
	HoldWrong string
	HoldTyped string
	Holds     []Hold
	Browsers  []Item
	Devices   []Item
	Tokens    []Item
	Sessions  []Item
	Lifetimes []int
	Wrong     string // of the form for access tokens
	Secret    string // of a new access token: shown once
}

type deletePage struct{ page }

type problemPage struct {
	page
	Problem   Problem
	RequestID string
}

// render writes a page whole, or an error.
func (s *Server) render(w http.ResponseWriter, status int, name string, view any) error {
	var b bytes.Buffer
	if err := s.templates[name].Execute(&b, view); err != nil {
		return fmt.Errorf("render %s: %w", name, err)
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	_, err := w.Write(b.Bytes())
	return err
}

func (s *Server) page(title string, v Visitor) page {
	p := page{Title: title, Service: s.config.Service}
	if v.DID != "" {
		p.Visitor = &v
	}
	return p
}

func (s *Server) getStyle(w http.ResponseWriter, _ *http.Request, _ Visitor) error {
	raw, err := files.ReadFile("static/style.css")
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "text/css; charset=utf-8")
	w.Header().Set("Cache-Control", "max-age=300")
	_, err = w.Write(raw)
	return err
}
