package index

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/api/atcr"
	"atcr.io/internal/oci"
)

// errBadRecord says that a record is not what its collection asks for.
var errBadRecord = errors.New("the record is not well formed")

const (
	maxDescriptors      = 10_000
	maxAnnotationBytes  = 32 << 10
	maxDescriptionBytes = 100_000
	maxSize             = 1 << 53
	maxText             = 255
)

func bad(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{errBadRecord}, args...)...)
}

// clean is text that every database takes: valid UTF-8, no NUL, at most limit bytes.
func clean(s string, limit int) string {
	s = strings.ToValidUTF8(strings.ReplaceAll(s, "\x00", ""), "?")
	if len(s) > limit {
		s = strings.ToValidUTF8(s[:limit], "")
	}
	return s
}

// repositoryName checks the name of a repository, without its owner.
func repositoryName(s string) error {
	if len(s) > maxText {
		return bad("repository has %d bytes", len(s))
	}
	if _, err := oci.ParseName("x/" + s); err != nil {
		return bad("repository: %s", oci.AsError(err).Message)
	}
	return nil
}

// when is the time that a datetime says, 0 where it says none. One in the future is now: nobody is first for
// good.
func when(text string, now time.Time) int64 {
	at, err := syntax.ParseDatetimeLenient(text)
	if err != nil {
		return 0
	}
	return max(0, min(at.Time().UnixMilli(), now.UnixMilli()))
}

type blobRow struct {
	digest, mediaType string
	size              int64
}

type childRow struct {
	blobRow
	os, architecture, variant, osVersion string
}

type manifestRow struct {
	repository, digest, mediaType, artifactType, configType, hold, subject string
	blobCID, blobMime                                                      string
	blobSize, contentSize, createdAt                                       int64
	annotations                                                            string // JSON object, "" for none
	blobs                                                                  []blobRow
	children                                                               []childRow
}

func parseManifest(value []byte, now time.Time) (*manifestRow, error) {
	var m atcr.Manifest
	if err := json.Unmarshal(value, &m); err != nil {
		return nil, bad("%v", err)
	}
	if err := repositoryName(m.Repository); err != nil {
		return nil, err
	}
	d, err := oci.ParseDigest(m.Digest)
	if err != nil {
		return nil, bad("digest: %s", oci.AsError(err).Message)
	}
	mediaType, err := oci.ParseMediaType(m.MediaType)
	if err != nil {
		return nil, bad("mediaType: %s", oci.AsError(err).Message)
	}
	row := &manifestRow{
		repository: m.Repository, digest: d.String(), mediaType: mediaType, hold: HoldOf(&m),
		artifactType: clean(m.ArtifactType, maxText), createdAt: when(m.CreatedAt, now), annotations: annotations(m.Annotations),
	}
	if b := m.ManifestBlob; b != nil {
		if want := atcr.ContentCID(m.Digest); b.Ref.Link == "" || want != "" && want != b.Ref.Link {
			return nil, bad("manifestBlob has another digest")
		}
		if _, err := syntax.ParseCID(b.Ref.Link); err != nil || b.Size < 0 || b.Size > oci.MaxManifestBytes {
			return nil, bad("manifestBlob is no blob of a manifest")
		}
		row.blobCID, row.blobMime, row.blobSize = b.Ref.Link, clean(b.MimeType, maxText), b.Size
	}
	return row, row.describe(&m)
}

// describe fills what m says of other content.
func (row *manifestRow) describe(m *atcr.Manifest) error {
	if len(m.Layers) > maxDescriptors || len(m.Manifests) > maxDescriptors {
		return bad("more than %d descriptors", maxDescriptors)
	}
	if m.Subject != nil {
		d, err := oci.ParseDigest(m.Subject.Digest)
		if err != nil {
			return bad("subject: %s", oci.AsError(err).Message)
		}
		row.subject = d.String()
	}
	blobs := m.Layers
	if m.Config != nil {
		row.configType = clean(m.Config.MediaType, maxText)
		blobs = append([]atcr.ManifestBlobReference{*m.Config}, m.Layers...)
	}
	for i := range blobs {
		b, err := blob(blobs[i].Digest, blobs[i].MediaType, blobs[i].Size)
		if err != nil {
			return err
		}
		row.contentSize = min(row.contentSize+b.size, maxSize)
		if len(blobs[i].Urls) == 0 {
			row.blobs = append(row.blobs, b)
		}
	}
	for i := range m.Manifests {
		c := &m.Manifests[i]
		b, err := blob(c.Digest, c.MediaType, c.Size)
		if err != nil {
			return err
		}
		child := childRow{blobRow: b}
		if p := c.Platform; p != nil {
			child.os, child.architecture = clean(p.Os, 64), clean(p.Architecture, 64)
			child.variant, child.osVersion = clean(p.Variant, 64), clean(p.OsVersion, 64)
		}
		row.children = append(row.children, child)
	}
	return nil
}

func blob(digest, mediaType string, size int64) (blobRow, error) {
	d, err := oci.ParseDigest(digest)
	if err != nil {
		return blobRow{}, bad("a descriptor's digest: %s", oci.AsError(err).Message)
	}
	if size < 0 || size > maxSize {
		return blobRow{}, bad("a descriptor's size is %d", size)
	}
	return blobRow{d.String(), clean(mediaType, maxText), size}, nil
}

// annotations is m as JSON, "" for none or too much of it.
func annotations(m map[string]string) string {
	if len(m) == 0 {
		return ""
	}
	cleaned := make(map[string]string, len(m))
	for k, v := range m {
		cleaned[clean(k, maxText)] = clean(v, maxAnnotationBytes)
	}
	raw, err := json.Marshal(cleaned)
	if err != nil || len(raw) > maxAnnotationBytes {
		return ""
	}
	return string(raw)
}

// HoldOf is the DID of the hold that a manifest record names, "" for none.
func HoldOf(m *atcr.Manifest) string {
	if m.HoldDid != "" {
		return holdDID(m.HoldDid)
	}
	return holdDID(m.HoldEndpoint)
}

// holdDID reads a hold's DID, or its URL, which older records have; "" for neither.
func holdDID(s string) string {
	if strings.HasPrefix(s, "did:") {
		did, err := syntax.ParseDID(s)
		if err != nil {
			return ""
		}
		return did.String()
	}
	u, err := url.Parse(s)
	if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
		return ""
	}
	did, err := syntax.ParseDID("did:web:" + strings.ReplaceAll(u.Host, ":", "%3A"))
	if err != nil {
		return ""
	}
	return did.String()
}

type tagRow struct {
	repository, tag, manifestRkey, digest string
	changedAt                             int64
}

func parseTag(did syntax.DID, value []byte, now time.Time) (*tagRow, error) {
	var t atcr.Tag
	if err := json.Unmarshal(value, &t); err != nil {
		return nil, bad("%v", err)
	}
	if err := repositoryName(t.Repository); err != nil {
		return nil, err
	}
	if r, err := oci.ParseReference(t.Tag); err != nil || r.Tag == "" {
		return nil, bad("tag is no tag")
	}
	row := &tagRow{repository: t.Repository, tag: t.Tag}
	if rkey, ok := strings.CutPrefix(t.Manifest, "at://"+did.String()+"/"+atcr.ManifestNSID+"/"); ok {
		if _, err := syntax.ParseRecordKey(rkey); err == nil {
			row.manifestRkey = rkey
		}
	}
	if d, err := oci.ParseDigest(t.ManifestDigest); err == nil {
		row.digest = d.String()
	}
	if row.manifestRkey == "" && row.digest == "" {
		return nil, bad("the tag names no manifest of its owner")
	}
	if row.changedAt = when(t.UpdatedAt, now); row.changedAt == 0 {
		row.changedAt = when(t.CreatedAt, now)
	}
	return row, nil
}

type starRow struct {
	owner, repository string
	createdAt         int64
}

// parseStar reads both forms of a star's subject: {did, repository}, and the at-uri of a repository's page.
func parseStar(value []byte, now time.Time) (*starRow, error) {
	var s atcr.SailorStar
	if err := json.Unmarshal(value, &s); err != nil {
		return nil, bad("%v", err)
	}
	var of atcr.SailorStarRepositoryRef
	var uri string
	switch {
	case json.Unmarshal(s.Subject, &uri) == nil:
		at, err := syntax.ParseATURI(uri)
		if err != nil || at.Collection().String() != atcr.RepoPageNSID || !at.Authority().IsDID() {
			return nil, bad("subject is no page of a repository")
		}
		of.Did, of.Repository = at.Authority().String(), strings.ReplaceAll(at.RecordKey().String(), "~", "/")
	case json.Unmarshal(s.Subject, &of) != nil:
		return nil, bad("subject is no repository")
	}
	if _, err := syntax.ParseDID(of.Did); err != nil {
		return nil, bad("subject: %v", err)
	}
	if err := repositoryName(of.Repository); err != nil {
		return nil, err
	}
	return &starRow{of.Did, of.Repository, when(s.CreatedAt, now)}, nil
}

type pageRow struct {
	repository, description, avatarCID, avatarMime string
	updatedAt                                      int64
}

func parsePage(value []byte, now time.Time) (*pageRow, error) {
	var p atcr.RepoPage
	if err := json.Unmarshal(value, &p); err != nil {
		return nil, bad("%v", err)
	}
	if err := repositoryName(p.Repository); err != nil {
		return nil, err
	}
	row := &pageRow{repository: p.Repository, description: clean(p.Description, maxDescriptionBytes), updatedAt: when(p.UpdatedAt, now)}
	if a := p.Avatar; a != nil {
		switch a.MimeType {
		case "image/png", "image/jpeg", "image/webp":
			if c, err := syntax.ParseCID(a.Ref.Link); err == nil {
				row.avatarCID, row.avatarMime = c.String(), a.MimeType
			}
		}
	}
	return row, nil
}

type profileRow struct {
	defaultHold string
	createdAt   int64
}

func parseProfile(value []byte, now time.Time) (*profileRow, error) {
	var p atcr.SailorProfile
	if err := json.Unmarshal(value, &p); err != nil {
		return nil, bad("%v", err)
	}
	return &profileRow{holdDID(p.DefaultHold), when(p.CreatedAt, now)}, nil
}

type countRow struct {
	owner, repository                   string
	pulls, pushes, lastPull, lastPushed int64
}

func parseCount(value []byte, now time.Time) (*countRow, error) {
	var s atcr.HoldStats
	if err := json.Unmarshal(value, &s); err != nil {
		return nil, bad("%v", err)
	}
	if _, err := syntax.ParseDID(s.OwnerDid); err != nil {
		return nil, bad("ownerDid: %v", err)
	}
	if err := repositoryName(s.Repository); err != nil {
		return nil, err
	}
	if s.PullCount < 0 || s.PushCount < 0 || s.PullCount > maxSize || s.PushCount > maxSize {
		return nil, bad("counts are below zero or too large")
	}
	return &countRow{s.OwnerDid, s.Repository, s.PullCount, s.PushCount, when(s.LastPull, now), when(s.LastPush, now)}, nil
}

// parseCrew is whom a record of a hold's crew is about. What they may is the hold's to say, when it is asked.
func parseCrew(value []byte) (member string, err error) {
	var c atcr.HoldCrew
	if err := json.Unmarshal(value, &c); err != nil {
		return "", bad("%v", err)
	}
	if _, err := syntax.ParseDID(c.Member); err != nil {
		return "", bad("member: %v", err)
	}
	return c.Member, nil
}
