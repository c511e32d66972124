package oci

import "strings"

// MaxNameBytes bounds a whole name, owner included, as clients do.
const MaxNameBytes = 255

// isComponent is the spec's path component: lower-case letters and digits, with one of ".", "_", "__" or any
// number of "-" between them. Each request's path passes here, so it is not a regular expression.
func isComponent(s string) bool {
	for i := 0; i < len(s); {
		if !isLowerAlnum(s[i]) {
			return false
		}
		for i++; i < len(s) && isLowerAlnum(s[i]); i++ {
		}
		if i == len(s) {
			return true
		}
		switch s[i] {
		case '.':
			i++
		case '_':
			if i++; i < len(s) && s[i] == '_' {
				i++
			}
		case '-':
			for ; i < len(s) && s[i] == '-'; i++ {
			}
		default:
			return false
		}
	}
	return false // empty, or nothing behind a separator
}

func isLowerAlnum(c byte) bool { return 'a' <= c && c <= 'z' || '0' <= c && c <= '9' }

func isAlnum(c byte) bool { return isLowerAlnum(c) || 'A' <= c && c <= 'Z' }

// isTag is the spec's tag.
func isTag(s string) bool {
	if s == "" || len(s) > 128 {
		return false
	}
	for i := range len(s) {
		if c := s[i]; !isAlnum(c) && c != '_' && (i == 0 || c != '.' && c != '-') {
			return false
		}
	}
	return true
}

// isOwner is a first component as people write it: a handle, did_plc_…, did_web_…, or a DID with colons
// (and %3A), which no client sends but a URL may hold. Whose it is, is not known here.
func isOwner(s string) bool {
	if s == "" || !isAlnum(s[0]) || !isAlnum(s[len(s)-1]) || strings.Contains(s, "..") {
		return false
	}
	for i := range len(s) {
		if c := s[i]; !isAlnum(c) && strings.IndexByte("._:%-", c) < 0 {
			return false
		}
	}
	return true
}

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
	if !isOwner(first) {
		return Name{}, Errorf(CodeNameInvalid, "%q is neither a handle nor a DID", clip(first))
	}
	for part := range strings.SplitSeq(rest, "/") {
		if !isComponent(part) {
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
	if !isTag(s) {
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
