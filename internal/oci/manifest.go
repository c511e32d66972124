package oci

import (
	"bytes"
	"encoding/json"
	"mime"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"
)

// Media types that are parsed; others of `application/` are kept and served as they are.
const (
	MediaTypeImageManifest      = "application/vnd.oci.image.manifest.v1+json"
	MediaTypeImageIndex         = "application/vnd.oci.image.index.v1+json"
	MediaTypeDockerManifest     = "application/vnd.docker.distribution.manifest.v2+json"
	MediaTypeDockerManifestList = "application/vnd.docker.distribution.manifest.list.v2+json"
)

// Limits of a manifest.
const (
	// MaxManifestBytes is what a push may have. The spec asks registries for at least 4 MiB.
	MaxManifestBytes = 8 << 20
	// MaxDescriptors bounds layers or children of one manifest.
	MaxDescriptors = 10_000
	maxJSONDepth   = 64
	// maxJSONValues bounds what decoding costs: 8 MiB of `{},` would become over 1 GB of descriptors.
	// MaxDescriptors children with platform and annotations have about 100,000.
	maxJSONValues = 250_000
)

// Descriptor is the spec's pointer to content.
type Descriptor struct {
	MediaType    string            `json:"mediaType"`
	Digest       Digest            `json:"digest"`
	Size         int64             `json:"size"`
	URLs         []string          `json:"urls,omitempty"`
	Annotations  map[string]string `json:"annotations,omitempty"`
	ArtifactType string            `json:"artifactType,omitempty"`
	Platform     *Platform         `json:"platform,omitempty"`
}

// Platform is what a child of an index runs on.
type Platform struct {
	Architecture string   `json:"architecture"`
	OS           string   `json:"os"`
	OSVersion    string   `json:"os.version,omitempty"`
	OSFeatures   []string `json:"os.features,omitempty"`
	Variant      string   `json:"variant,omitempty"`
}

// Manifest is what this registry reads of a manifest or index. The bytes are the truth; this is for
// finding what they name.
type Manifest struct {
	SchemaVersion int64             `json:"schemaVersion"`
	MediaType     string            `json:"mediaType"`
	ArtifactType  string            `json:"artifactType"`
	Config        *Descriptor       `json:"config"`
	Layers        []Descriptor      `json:"layers"`
	Manifests     []Descriptor      `json:"manifests"`
	Subject       *Descriptor       `json:"subject"`
	Annotations   map[string]string `json:"annotations"`
}

// mediaType is RFC 6838's restricted name, below application/.
var mediaType = regexp.MustCompile(`^application/[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}$`)

// ParseMediaType checks a manifest's Content-Type: only `application/…`, so that nothing pushed can run
// as a page. Parameters are cut off.
func ParseMediaType(contentType string) (string, error) {
	if KnownManifestType(contentType) { // nearly all, and pulls ask often
		return contentType, nil
	}
	mt, _, err := mime.ParseMediaType(contentType)
	if err != nil || !mediaType.MatchString(mt) || len(mt) > 128 {
		return "", Errorf(CodeManifestInvalid, "media type %q is not accepted: a manifest's Content-Type must be an application/… type", clip(contentType))
	}
	return mt, nil
}

// ParseManifest reads raw, pushed as contentType. Known types must be well formed; an unknown application
// type must be a JSON object where it says +json or reads like one, and is otherwise opaque: it then
// names nothing.
//
// Errors: an *Error with CodeManifestInvalid or CodeSizeInvalid.
func ParseManifest(contentType string, raw []byte) (*Manifest, error) {
	if len(raw) > MaxManifestBytes {
		return nil, &Error{Code: CodeSizeInvalid, Status: 413, Message: "the manifest is larger than 8 MiB"}
	}
	known := KnownManifestType(contentType)
	trimmed := bytes.TrimLeft(raw, " \t\r\n")
	if !known && (len(trimmed) == 0 || trimmed[0] != '{') && !strings.HasSuffix(contentType, "json") {
		return &Manifest{MediaType: contentType}, nil
	}
	if !utf8.Valid(raw) {
		return nil, Errorf(CodeManifestInvalid, "the manifest is not UTF-8 text")
	}
	if err := checkJSON(raw); err != nil {
		return nil, err
	}
	var m Manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		if !known && json.Valid(raw) && trimmed[0] == '{' {
			return &Manifest{MediaType: contentType}, nil // its fields mean something else
		}
		return nil, Errorf(CodeManifestInvalid, "the manifest is not the JSON that its type asks for: %v", err)
	}
	if m.MediaType != "" && m.MediaType != contentType {
		return nil, Errorf(CodeManifestInvalid, "the manifest says mediaType %q, the request %q", clip(m.MediaType), clip(contentType))
	}
	m.MediaType = contentType
	if known {
		if err := m.check(); err != nil {
			return nil, err
		}
	}
	if err := m.checkDescriptors(); err != nil {
		return nil, err
	}
	if known {
		if err := checkFields(raw); err != nil {
			return nil, err
		}
	}
	return &m, nil
}

// KnownManifestType tells whether mt is one of the four types that are parsed strictly.
func KnownManifestType(mt string) bool {
	switch mt {
	case MediaTypeImageManifest, MediaTypeImageIndex, MediaTypeDockerManifest, MediaTypeDockerManifestList:
		return true
	}
	return false
}

func (m *Manifest) check() error {
	if m.SchemaVersion != 2 {
		return Errorf(CodeManifestInvalid, "schemaVersion is %d, must be 2", m.SchemaVersion)
	}
	isIndex := m.MediaType == MediaTypeImageIndex || m.MediaType == MediaTypeDockerManifestList
	if !isIndex && m.Config == nil {
		return Errorf(CodeManifestInvalid, "an image manifest needs a config")
	}
	if isIndex && (m.Config != nil || m.Layers != nil) {
		return Errorf(CodeManifestInvalid, "an index has no config and no layers")
	}
	if !isIndex && m.Manifests != nil {
		return Errorf(CodeManifestInvalid, "an image manifest has no manifests: push it as an index")
	}
	return nil
}

func (m *Manifest) checkDescriptors() error {
	if len(m.Layers) > MaxDescriptors || len(m.Manifests) > MaxDescriptors {
		return Errorf(CodeManifestInvalid, "the manifest names more than %d things", MaxDescriptors)
	}
	all := make([]*Descriptor, 0, len(m.Layers)+len(m.Manifests)+2)
	all = append(all, m.Config, m.Subject)
	for i := range m.Layers {
		all = append(all, &m.Layers[i])
	}
	for i := range m.Manifests {
		all = append(all, &m.Manifests[i])
	}
	for _, d := range all {
		if d == nil {
			continue
		}
		if _, err := ParseDigest(string(d.Digest)); err != nil {
			return Errorf(CodeManifestInvalid, "a descriptor's digest is not valid: %s", AsError(err).Message)
		}
		if d.Size < 0 {
			return Errorf(CodeManifestInvalid, "the descriptor of %s has a negative size", d.Digest)
		}
	}
	return nil
}

// Fields that decide what a manifest names.
var (
	manifestFields   = []string{"schemaVersion", "mediaType", "artifactType", "config", "layers", "manifests", "subject"}
	descriptorFields = []string{"mediaType", "digest", "size", "urls", "artifactType"}
)

// checkFields refuses a manifest that names one thing to some readers and another to others: a field that is there
// twice, or whose name is spelled in other letters, which encoding/json takes for the same. raw was parsed before.
//
// Source: RFC 8259, section 4.
func checkFields(raw []byte) error {
	return eachField(raw, manifestFields, func(name string, value json.RawMessage) error {
		nothing := func(string, json.RawMessage) error { return nil }
		switch name {
		case "config", "subject":
			return eachField(value, descriptorFields, nothing)
		case "layers", "manifests":
			var all []json.RawMessage
			if err := json.Unmarshal(value, &all); err != nil {
				return err
			}
			for _, d := range all {
				if err := eachField(d, descriptorFields, nothing); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// eachField visits what raw, an object or null, has of names.
func eachField(raw []byte, names []string, visit func(name string, value json.RawMessage) error) error {
	in := json.NewDecoder(bytes.NewReader(raw))
	if begin, err := in.Token(); err != nil || begin == nil {
		return err
	}
	var seen uint
	for in.More() {
		token, err := in.Token()
		if err != nil {
			return err
		}
		var value json.RawMessage
		if err := in.Decode(&value); err != nil {
			return err
		}
		key, _ := token.(string) // as all of an object's are
		at := slices.IndexFunc(names, func(name string) bool { return strings.EqualFold(name, key) })
		if at < 0 {
			continue
		}
		if key != names[at] || seen&(1<<at) != 0 {
			return Errorf(CodeManifestInvalid, "the field %s is there twice, or is spelled in other letters: readers would not agree on what the manifest names", names[at])
		}
		seen |= 1 << at
		if err := visit(key, value); err != nil {
			return err
		}
	}
	return nil
}

// Blobs are the descriptors that the hold must have: config and every layer without urls.
func (m *Manifest) Blobs() []Descriptor {
	var out []Descriptor
	if m.Config != nil {
		out = append(out, *m.Config)
	}
	for _, l := range m.Layers {
		if len(l.URLs) == 0 {
			out = append(out, l)
		}
	}
	return out
}

// checkJSON refuses JSON nested so deep, or of so many values, that decoding it costs more than it should.
func checkJSON(raw []byte) error {
	depth, values, inString, escaped := 0, 0, false, false
	for _, c := range raw {
		switch {
		case escaped:
			escaped = false
		case inString:
			escaped = c == '\\'
			inString = c != '"'
		case c == '"':
			inString = true
		case c == '{' || c == '[':
			values++
			if depth++; depth > maxJSONDepth {
				return Errorf(CodeManifestInvalid, "the manifest is nested deeper than %d levels", maxJSONDepth)
			}
		case c == '}' || c == ']':
			depth--
		case c == ',':
			values++
		}
	}
	if values > maxJSONValues {
		return Errorf(CodeManifestInvalid, "the manifest has more than %d values", maxJSONValues)
	}
	return nil
}
