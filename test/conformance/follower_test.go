package conformance

import (
	"net/http"
	"net/http/httputil"
	"net/url"
	"regexp"
	"strings"
	"sync/atomic"
)

// follower stands before the AppView and goes where it sends an upload, which container clients do and the suite does
// not: it takes no Location but one below /v2/. So the suite judges the hold's own answers too.
type follower struct {
	appview http.Handler
	hold    string // base URL
	direct  atomic.Int64
}

// followed is where the suite is told to go on: the repository, and the hold's secret.
var followed = regexp.MustCompile(`^/v2/(.+)/blobs/uploads/at-the-hold-([^/]+)$`)

func (f *follower) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if at := followed.FindStringSubmatch(r.URL.Path); at != nil {
		f.direct.Add(1)
		f.atTheHold(at[1], at[2]).ServeHTTP(w, r)
		return
	}
	repository, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v2/"), "/blobs/uploads/")
	f.appview.ServeHTTP(&signpost{ResponseWriter: w, change: func(h http.Header) { f.turn(h, repository) }}, r)
}

// turn makes a Location at the hold one that the suite takes.
func (f *follower) turn(h http.Header, repository string) {
	if secret, ok := strings.CutPrefix(h.Get("Location"), f.hold+"/u/"); ok {
		h.Set("Location", "/v2/"+repository+"/blobs/uploads/at-the-hold-"+secret)
	}
}

func (f *follower) atTheHold(repository, secret string) http.Handler {
	return &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			target, err := url.Parse(f.hold)
			if err != nil {
				panic(err)
			}
			r.Out.URL.Scheme, r.Out.URL.Host, r.Out.URL.Path = target.Scheme, target.Host, "/u/"+secret
			r.Out.Header.Del("Authorization") // as clients do that know another host when they see one
		},
		ModifyResponse: func(res *http.Response) error {
			if location, ok := strings.CutPrefix(res.Header.Get("Location"), "/u/"); ok {
				res.Header.Set("Location", f.hold+"/u/"+location)
			}
			f.turn(res.Header, repository)
			return nil
		},
	}
}

// signpost changes the header before it goes out.
type signpost struct {
	http.ResponseWriter
	change func(http.Header)
	done   bool
}

func (s *signpost) WriteHeader(status int) {
	if !s.done {
		s.change(s.Header())
	}
	s.done = true
	s.ResponseWriter.WriteHeader(status)
}

func (s *signpost) Unwrap() http.ResponseWriter { return s.ResponseWriter }
