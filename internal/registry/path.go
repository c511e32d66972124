package registry

import (
	"net/http"
	"strings"

	"atcr.io/internal/oci"
)

// Kind is what a path names.
type Kind int

// The kinds of paths.
const (
	Base              Kind = iota // /v2/
	ManifestReference             // <name>/manifests/<reference>
	Blob                          // <name>/blobs/<digest>
	UploadStart                   // <name>/blobs/uploads/
	UploadSession                 // <name>/blobs/uploads/<id>
	TagList                       // <name>/tags/list
	Referrers                     // <name>/referrers/<digest>
)

func (k Kind) String() string {
	return [...]string{
		"/v2/", "/v2/{name}/manifests/{reference}", "/v2/{name}/blobs/{digest}", "/v2/{name}/blobs/uploads/",
		"/v2/{name}/blobs/uploads/{id}", "/v2/{name}/tags/list", "/v2/{name}/referrers/{digest}",
	}[k]
}

// Path is a parsed request path. Reference is its last element: a tag or digest, or an upload's id, not
// yet looked at; "" where the kind has none.
type Path struct {
	Kind      Kind
	Name      oci.Name
	Full      string // Name as it was written
	Reference string
}

// maxPathBytes bounds a path: a name, an upload's id, and what stands between them.
const maxPathBytes = 8 << 10

// ParsePath reads an escaped request path. A name may have any number of elements, some of them words of
// the API, so the path is read from its right-hand end. Of escapes only %3A is known: names, tags, digests
// and ids need no other, and `%2f` or `%2e` would mean another path to somebody in between.
//
// Errors: an *oci.Error, 404 or 400.
func ParsePath(escaped string) (Path, error) {
	rest, ok := strings.CutPrefix(escaped, "/v2")
	if !ok || len(escaped) > maxPathBytes {
		return Path{}, notFound()
	}
	if rest == "" || rest == "/" {
		return Path{Kind: Base}, nil
	}
	if rest, ok = strings.CutPrefix(rest, "/"); !ok {
		return Path{}, notFound()
	}
	if strings.Contains(rest, "%") {
		rest = strings.NewReplacer("%3A", ":", "%3a", ":").Replace(rest)
		if strings.Contains(rest, "%") {
			return Path{}, oci.Errorf(oci.CodeNameInvalid, "the path has an escaped character: names, tags and digests need none")
		}
	}
	p, name, err := cutRight(rest)
	if err != nil {
		return Path{}, err
	}
	for element := range strings.SplitSeq(name, "/") {
		if element == "" || element == "." || element == ".." {
			return Path{}, oci.Errorf(oci.CodeNameInvalid, "the name has an element %q", element)
		}
	}
	p.Full = name
	p.Name, err = oci.ParseName(name)
	return p, err
}

// cutRight splits off what stands behind the name.
func cutRight(path string) (p Path, name string, err error) {
	for _, start := range []string{"/blobs/uploads/", "/blobs/uploads"} {
		if name, ok := strings.CutSuffix(path, start); ok {
			return Path{Kind: UploadStart}, name, nil
		}
	}
	head, last, _ := cutLast(path)
	if last == "" || last == "." || last == ".." {
		return Path{}, "", oci.Errorf(oci.CodeNameInvalid, "the path ends in %q", last)
	}
	if name, ok := strings.CutSuffix(head, "/blobs/uploads"); ok {
		return Path{Kind: UploadSession, Reference: last}, name, nil
	}
	name, word, ok := cutLast(head)
	if !ok {
		return Path{}, "", notFound()
	}
	switch {
	case word == "manifests":
		return Path{Kind: ManifestReference, Reference: last}, name, nil
	case word == "blobs":
		return Path{Kind: Blob, Reference: last}, name, nil
	case word == "referrers":
		return Path{Kind: Referrers, Reference: last}, name, nil
	case word == "tags" && last == "list":
		return Path{Kind: TagList}, name, nil
	case word == "":
		return Path{}, "", oci.Errorf(oci.CodeNameInvalid, "the path has an empty element")
	}
	return Path{}, "", notFound()
}

func cutLast(path string) (head, last string, ok bool) {
	i := strings.LastIndexByte(path, '/')
	if i < 0 {
		return "", path, false
	}
	return path[:i], path[i+1:], true
}

func notFound() error {
	e := oci.Errorf(oci.CodeUnsupported, "there is nothing at this path: see the OCI distribution specification")
	e.Status = http.StatusNotFound
	return e
}
