// Package registry serves the OCI distribution API below /v2/.
//
// It owns paths, methods, headers, limits and the form of answers, and refuses to own where anything is
// kept and who may have it: those are the four small interfaces that it calls. It knows nothing of atproto.
//
// Source: https://github.com/opencontainers/distribution-spec (spec.md).
package registry

import (
	"context"
	"io"
	"net/http"

	"atcr.io/internal/httpx"
	"atcr.io/internal/oci"
)

// Action is what a request wants to do with a repository. The zero value is "anything": a valid token.
type Action string

// The actions.
const (
	Pull   Action = "pull"
	Push   Action = "push"
	Delete Action = "delete"
)

// Caller is who a request speaks for.
type Caller struct {
	Subject string // "" is nobody
	Session string // opaque here; "" for nobody
	Push    bool   // whether the token also grants push on the repository
	Token   bool   // whether a token was shown: without one, a challenge may help
	Fresh   bool   // asks that nothing be answered from a cache
}

// Authorizer decides who may do what, by a request's token.
type Authorizer interface {
	// Authorize returns the caller if the request may do action on name. Errors: *oci.Error, 401 where a
	// better token could help, 403 where none could.
	Authorize(r *http.Request, name oci.Name, action Action) (Caller, error)
	// Challenge is the WWW-Authenticate header of a 401. err is why, nil where no token was shown.
	Challenge(name oci.Name, action Action, err error) string
}

// Manifest is a manifest as it was pushed.
type Manifest struct {
	MediaType string
	Digest    oci.Digest
	Bytes     []byte // exactly as pushed; not to be changed
	// Served, where it is not nil, is called when the bytes go out: a HEAD and a 304 are no pull.
	Served func()
}

// Manifests keeps manifests and tags. Errors are *oci.Error.
type Manifests interface {
	Get(ctx context.Context, c Caller, name oci.Name, reference oci.Reference) (Manifest, error)
	// Put stores m under its digest and points tags at it. raw was parsed as parsed. On a nil error it is
	// durable and seen by every later Get.
	Put(ctx context.Context, c Caller, name oci.Name, m Manifest, parsed *oci.Manifest, tags []string) error
	// Delete removes a tag, or a manifest with all tags that point at it.
	Delete(ctx context.Context, c Caller, name oci.Name, reference oci.Reference) error
	// Tags are the tags of a repository behind last (""), in lexical order: all of them, or as many as n or more where
	// n is not negative.
	Tags(ctx context.Context, c Caller, name oci.Name, last string, n int) ([]string, error)
	// Referrers are the manifests of a repository whose subject is d.
	Referrers(ctx context.Context, c Caller, name oci.Name, d oci.Digest) ([]oci.Descriptor, error)
}

// Place is where a blob's bytes are.
type Place struct {
	URL string
	// Through: clients that were sent there would take their credentials along, or cannot reach it, so that the bytes
	// go through this registry.
	Through bool
}

// Blobs finds blobs. Errors are *oci.Error.
type Blobs interface {
	// Stat is a blob's size in bytes.
	Stat(ctx context.Context, c Caller, name oci.Name, d oci.Digest) (size int64, err error)
	// Locate is where the client gets the blob's bytes.
	Locate(ctx context.Context, c Caller, name oci.Name, d oci.Digest) (Place, error)
	// Fetch gets the bytes of a Place that clients are not sent to, or the range of them that header asks for. It
	// answers with status 200, 206 or 416; the caller closes the body.
	Fetch(ctx context.Context, p Place, header http.Header) (*http.Response, error)
	// DeleteBlob takes a blob out of the repository; it stays in every other. Errors: CodeBlobUnknown.
	DeleteBlob(ctx context.Context, c Caller, name oci.Name, d oci.Digest) error
}

// BeginOptions is what is known of a blob before its bytes.
type BeginOptions struct {
	Digest    oci.Digest // "" where unknown
	Algorithm string     // "" where unknown
	UserAgent string
}

// Upload is where an upload stands.
type Upload struct {
	Location string // where the client goes on
	Range    string // of the bytes that arrived, "0-0" for none
}

// Chunk is bytes of a blob on their way in.
type Chunk struct {
	Body         io.Reader
	Size         int64 // -1 where unknown
	ContentRange string
	Algorithm    string
}

// RangeError says that a chunk does not begin where the upload stands. Err is an *oci.Error.
type RangeError struct {
	Upload Upload
	Err    error
}

func (e *RangeError) Error() string { return e.Err.Error() }

func (e *RangeError) Unwrap() error { return e.Err }

// Uploads takes blobs in. id is the last path element of a Location on this host. Errors are *oci.Error or
// *RangeError.
type Uploads interface {
	Begin(ctx context.Context, c Caller, name oci.Name, o BeginOptions) (Upload, error)
	// Mount makes d a blob of name without bytes, if it can. from.Owner may be empty: from anywhere.
	Mount(ctx context.Context, c Caller, name, from oci.Name, d oci.Digest) (done bool, err error)
	Append(ctx context.Context, c Caller, name oci.Name, id string, chunk Chunk) (Upload, error)
	Status(ctx context.Context, c Caller, name oci.Name, id string) (Upload, error)
	// Finish takes the last bytes, if any. On a nil error the blob is durable and has that digest.
	Finish(ctx context.Context, c Caller, name oci.Name, id string, d oci.Digest, chunk Chunk) error
	Cancel(ctx context.Context, c Caller, name oci.Name, id string) error
}

// Config is what a Server is made of.
type Config struct {
	Authorizer Authorizer
	Manifests  Manifests
	Blobs      Blobs
	Uploads    Uploads
	Limiter    Limiter // nil: no limits
	Adapter    *httpx.Adapter
}

// Server is an http.Handler for all paths below /v2/. Mount it where no mux cleans paths before it: a
// redirect of `//` would lose the body of a POST.
type Server struct {
	Config
	routes    map[routeKey]route
	manifests budget
}

// New makes a Server.
func New(c Config) *Server {
	s := &Server{Config: c, routes: map[routeKey]route{}, manifests: budget{limit: manifestsInFlight}}
	if s.Adapter == nil {
		s.Adapter = &httpx.Adapter{}
	}
	for _, row := range s.table() {
		row.handler = s.Adapter.Wrap(row.pattern(), s.translate, s.authorised(row))
		s.routes[routeKey{row.kind, row.method}] = row
	}
	return s
}

// request is what is known of a request before its handler runs.
type request struct {
	path   Path
	action Action
	caller Caller
}

func requestFrom(r *http.Request) *request {
	return httpx.EventFrom(r.Context()).Data.(*request) // every handler runs behind ServeHTTP
}

// Values of headers that every answer has: shared, so not to be changed.
var (
	apiVersion = []string{"registry/2.0"}
	noSniff    = []string{"nosniff"}
	sandbox    = []string{"default-src 'none'; sandbox"}
	noStore    = []string{"no-store"}
	nothing    = []string{"0"}
)

// ServeHTTP finds the route from the path's right-hand end.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h["Docker-Distribution-Api-Version"] = apiVersion
	h["X-Content-Type-Options"] = noSniff
	h["Content-Security-Policy"] = sandbox
	path, err := ParsePath(r.URL.EscapedPath())
	if err != nil {
		s.refuse(w, r, err)
		return
	}
	row, ok := s.routes[routeKey{path.Kind, r.Method}]
	if !ok {
		h.Set("Allow", s.allowed(path.Kind))
		s.refuse(w, r, oci.Errorf(oci.CodeUnsupported, "%s is not supported here", r.Method))
		return
	}
	row.handler.ServeHTTP(w, httpx.WithEvent(r, &httpx.Event{Data: &request{path: path, action: row.action}}))
}

func (s *Server) refuse(w http.ResponseWriter, r *http.Request, err error) {
	s.Adapter.Wrap("/v2/…", oci.WriteError, func(http.ResponseWriter, *http.Request) error { return err }).ServeHTTP(w, r)
}

// authorised puts the access that a row names before its handler.
func (s *Server) authorised(row route) httpx.Handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		q := requestFrom(r)
		event := httpx.EventFrom(r.Context())
		if q.path.Kind != Base {
			event.Repository = q.path.Full
			event.Reference = q.path.Reference
		}
		if q.path.Kind == UploadSession {
			event.Reference = "" // a capability
		}
		caller, err := s.Authorizer.Authorize(r, q.path.Name, row.action)
		if limited := s.take(w, r, caller, q.path.Kind); limited != nil {
			return limited
		}
		if err != nil {
			s.charge(r, caller, err)
			return s.challenged(w, q, err)
		}
		event.DID = caller.Subject
		q.caller, q.caller.Fresh = caller, wantsFresh(r)
		err = row.serve(w, r)
		s.charge(r, caller, err)
		return err
	}
}
