package oci

import (
	"regexp"
	"strings"
)

// MaxNameBytes bounds a whole name, owner included, as clients do.
const MaxNameBytes = 255

// component is the spec's path component.
var component = regexp.MustCompile(`^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*$`)

// tag is the spec's tag.
var tag = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`)

// owner is a first component as people write it: a handle, did_plc_…, did_web_…, or a DID with colons
// (and %3A), which no client sends but a URL may hold. Whose it is, is not known here.
var owner = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._:%-]*[A-Za-z0-9])?$`)

// Name is `<owner>/<repository>`: the owner is one path component, the repository one or more.
type Name struct {
	Owner      string
	Repository string
}

// ParseName checks the `<name>` of a request path. Errors: an *Error with CodeNameInvalid.
func ParseName(s string) (Name, error) {
	if len(s) > MaxNameBytes {
		return Name{}, Errorf(CodeNameInvalid, "the name has %d bytes, at most %d are allowed", len(s), MaxNameBytes)
	}
	first, rest, ok := strings.Cut(s, "/")
	if !ok {
		return Name{}, Errorf(CodeNameInvalid, "name %q has one part: write <handle>/<repository>, like alice.example.com/app", clip(s))
	}
	if !owner.MatchString(first) {
		return Name{}, Errorf(CodeNameInvalid, "%q is neither a handle nor a DID", clip(first))
	}
	for part := range strings.SplitSeq(rest, "/") {
		if !component.MatchString(part) {
			return Name{}, Errorf(CodeNameInvalid, "repository part %q is not valid: lowercase letters, digits and single . _ - between them", clip(part))
		}
	}
	return Name{Owner: first, Repository: rest}, nil
}

func (n Name) String() string { return n.Owner + "/" + n.Repository }

// Reference is a tag or a digest: exactly one of the two is set.
type Reference struct {
	Tag    string
	Digest Digest
}

// ParseReference checks the `<reference>` of a request path.
// Errors: an *Error, CodeDigestInvalid where it has a colon, else CodeManifestInvalid as the spec's table
// has no code for a bad tag.
func ParseReference(s string) (Reference, error) {
	if strings.Contains(s, ":") {
		d, err := ParseDigest(s)
		return Reference{Digest: d}, err
	}
	if !tag.MatchString(s) {
		return Reference{}, Errorf(CodeManifestInvalid, "tag %q is not valid: at most 128 letters, digits, _ . -, not beginning with . or -", clip(s))
	}
	return Reference{Tag: s}, nil
}

func (r Reference) String() string {
	if r.Tag != "" {
		return r.Tag
	}
	return string(r.Digest)
}
