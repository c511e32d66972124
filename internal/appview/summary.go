package appview

import (
	"encoding/json"
	"strings"

	"atcr.io/api/atcr"
	"atcr.io/internal/oci"
)

const (
	// maxRecordBytes is what a manifest record may have. A PDS takes 1,000,000, and readers fetch many.
	maxRecordBytes = 100_000
	// maxSafeInteger is the largest that every JSON reader keeps exact.
	maxSafeInteger = 1<<53 - 1

	maxMediaTypeBytes    = 128
	maxArtifactTypeBytes = 255
)

// summarise fills everything in record that readers may look at without the bytes. Its createdAt and the
// fields that this version does not know stay.
func (p *push) summarise(record *atcr.Manifest) {
	m := p.parsed
	record.Repository, record.Digest, record.MediaType = p.name.Repository, p.manifest.Digest.String(), p.manifest.MediaType
	record.SchemaVersion = 0
	if m.SchemaVersion >= 0 && m.SchemaVersion <= maxSafeInteger {
		record.SchemaVersion = m.SchemaVersion
	}
	record.HoldDid, record.HoldEndpoint = p.at.String(), ""
	record.ArtifactType = ""
	if len(m.ArtifactType) <= maxArtifactTypeBytes {
		record.ArtifactType = m.ArtifactType
	}
	record.Annotations = plainAnnotations(m.Annotations)
	record.Config, record.Subject = blobReference(m.Config), blobReference(m.Subject)
	record.Layers, record.Manifests = blobReferences(m.Layers), manifestReferences(m.Manifests)
}

// summarisable tells whether a descriptor can stand in a record. One that cannot leaves its list out: half a
// list would mislead.
func summarisable(d *oci.Descriptor) bool {
	return d.Size <= maxSafeInteger && len(d.MediaType) <= maxMediaTypeBytes
}

// plainAnnotations are those that mean the same in a record: a map with a key such as $type or $link is another thing
// there, which a PDS may refuse. All of them are left out then; the bytes have them.
//
// Source: https://atproto.com/specs/data-model, "Data Types".
func plainAnnotations(annotations map[string]string) map[string]string {
	for key := range annotations {
		if strings.HasPrefix(key, "$") {
			return nil
		}
	}
	return annotations
}

func blobReference(d *oci.Descriptor) *atcr.ManifestBlobReference {
	if d == nil || !summarisable(d) {
		return nil
	}
	return &atcr.ManifestBlobReference{
		MediaType: d.MediaType, Size: d.Size, Digest: d.Digest.String(), Urls: d.URLs, Annotations: plainAnnotations(d.Annotations),
	}
}

func blobReferences(list []oci.Descriptor) []atcr.ManifestBlobReference {
	var out []atcr.ManifestBlobReference
	for i := range list {
		r := blobReference(&list[i])
		if r == nil {
			return nil
		}
		out = append(out, *r)
	}
	return out
}

func manifestReferences(list []oci.Descriptor) []atcr.ManifestManifestReference {
	var out []atcr.ManifestManifestReference
	for i := range list {
		d := &list[i]
		if !summarisable(d) {
			return nil
		}
		r := atcr.ManifestManifestReference{MediaType: d.MediaType, Size: d.Size, Digest: d.Digest.String(), Annotations: plainAnnotations(d.Annotations)}
		if d.Platform != nil {
			r.Platform = &atcr.ManifestPlatform{
				Architecture: d.Platform.Architecture, Os: d.Platform.OS, Variant: d.Platform.Variant,
				OsVersion: d.Platform.OSVersion, OsFeatures: d.Platform.OSFeatures,
			}
		}
		out = append(out, r)
	}
	return out
}

// shorten leaves out what a record of at most maxRecordBytes has no room for, the least needed first.
//
// Source: contract, "Records in the user's own repo".
func shorten(record *atcr.Manifest) {
	for _, leaveOut := range []func(){
		func() {
			eachBlobReference(record, func(r *atcr.ManifestBlobReference) { r.Annotations = nil })
			for i := range record.Manifests {
				record.Manifests[i].Annotations = nil
			}
		},
		func() { record.Annotations = nil },
		func() { eachBlobReference(record, func(r *atcr.ManifestBlobReference) { r.Urls = nil }) },
		func() { record.Layers, record.Manifests = nil, nil },
		func() { record.Extra = nil }, // somebody else's fields have no room either
	} {
		if size(record) <= maxRecordBytes {
			return
		}
		leaveOut()
	}
}

func eachBlobReference(record *atcr.Manifest, do func(*atcr.ManifestBlobReference)) {
	for _, r := range []*atcr.ManifestBlobReference{record.Config, record.Subject} {
		if r != nil {
			do(r)
		}
	}
	for i := range record.Layers {
		do(&record.Layers[i])
	}
}

func size(record *atcr.Manifest) int {
	raw, err := json.Marshal(record)
	if err != nil {
		return maxRecordBytes + 1
	}
	return len(raw)
}
