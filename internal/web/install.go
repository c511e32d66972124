package web

import (
	"bytes"
	"errors"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"text/template"
)

// downloadsURL is where the releases of the credential helper lie, "" for nowhere.
func (s *Server) downloadsURL() string {
	switch {
	case s.config.Downloads == "":
		return ""
	case s.downloads != nil:
		return s.config.BaseURL + "/downloads"
	}
	return strings.TrimSuffix(s.config.Downloads, "/")
}

func (s *Server) getInstallShell(w http.ResponseWriter, _ *http.Request, _ Visitor) error {
	return s.script(w, "install.sh")
}

func (s *Server) getInstallPowerShell(w http.ResponseWriter, _ *http.Request, _ Visitor) error {
	return s.script(w, "install.ps1")
}

// quotable is what stands between quotes in either shell without a meaning of its own.
var quotable = regexp.MustCompile(`^[A-Za-z0-9:/._~%+,=@\[\]-]+$`)

func (s *Server) script(w http.ResponseWriter, name string) error {
	from := s.downloadsURL()
	if !quotable.MatchString(from) || !quotable.MatchString(s.config.Service) {
		return &Problem{Status: http.StatusNotFound, Title: "Nothing to download", Text: "This AppView offers no downloads of the credential helper."}
	}
	raw, err := files.ReadFile("static/" + name)
	if err != nil {
		return err
	}
	t, err := template.New(name).Delims("{{{", "}}}").Parse(string(raw))
	if err != nil {
		return err
	}
	var b bytes.Buffer
	if err := t.Execute(&b, map[string]string{"URL": from, "Service": s.config.Service}); err != nil {
		return err
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, err = w.Write(b.Bytes())
	return err
}

// released are the files that are handed out, whatever else is in the folder.
var released = regexp.MustCompile(`^(SHA256SUMS|docker-credential-atcr_(linux|darwin|windows)_(amd64|arm64)(\.exe)?)$`)

func (s *Server) getDownload(w http.ResponseWriter, r *http.Request, _ Visitor) error {
	name := r.PathValue("file")
	missing := &Problem{Status: http.StatusNotFound, Title: "Nothing to download", Text: "There is no such file here."}
	if s.downloads == nil || !released.MatchString(name) {
		return missing
	}
	f, err := os.Open(filepath.Join(s.config.Downloads, name))
	if errors.Is(err, fs.ErrNotExist) {
		return missing
	}
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Cache-Control", "no-cache")
	http.ServeContent(w, r, "", info.ModTime(), f)
	return nil
}
