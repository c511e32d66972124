package appview

import (
	"context"

	"atcr.io/internal/oci"
	"atcr.io/internal/registry"
)

// blockedManifests is registry.Manifests without the digests that are blocked. People and repositories are the
// gate's.
type blockedManifests struct {
	registry.Manifests
	blocks *blocks
}

func (m blockedManifests) Get(ctx context.Context, c registry.Caller, name oci.Name, reference oci.Reference) (registry.Manifest, error) {
	if err := m.blocks.digest(reference.Digest); err != nil {
		return registry.Manifest{}, err
	}
	got, err := m.Manifests.Get(ctx, c, name, reference)
	if err == nil {
		err = m.blocks.digest(got.Digest)
	}
	if err != nil {
		return registry.Manifest{}, err
	}
	return got, nil
}

func (m blockedManifests) Put(ctx context.Context, c registry.Caller, name oci.Name, man registry.Manifest, parsed *oci.Manifest, tags []string) error {
	if err := m.blocks.digest(man.Digest); err != nil {
		return err
	}
	if !m.blocks.none() {
		for _, b := range parsed.Blobs() {
			if err := m.blocks.digest(b.Digest); err != nil {
				return err
			}
		}
	}
	return m.Manifests.Put(ctx, c, name, man, parsed, tags)
}

// blockedBlobs is registry.Blobs without them. Deleting stays allowed.
type blockedBlobs struct {
	registry.Blobs
	blocks *blocks
}

func (b blockedBlobs) Stat(ctx context.Context, c registry.Caller, name oci.Name, d oci.Digest) (int64, error) {
	if err := b.blocks.digest(d); err != nil {
		return 0, err
	}
	return b.Blobs.Stat(ctx, c, name, d)
}

func (b blockedBlobs) Locate(ctx context.Context, c registry.Caller, name oci.Name, d oci.Digest) (registry.Place, error) {
	if err := b.blocks.digest(d); err != nil {
		return registry.Place{}, err
	}
	return b.Blobs.Locate(ctx, c, name, d)
}

// blockedUploads is registry.Uploads without them.
type blockedUploads struct {
	registry.Uploads
	blocks *blocks
	owners owners
}

func (u blockedUploads) Begin(ctx context.Context, c registry.Caller, name oci.Name, o registry.BeginOptions) (registry.Upload, error) {
	if err := u.blocks.digest(o.Digest); err != nil {
		return registry.Upload{}, err
	}
	return u.Uploads.Begin(ctx, c, name, o)
}

// Mount takes nothing from a person or repository that is blocked: the client then uploads.
func (u blockedUploads) Mount(ctx context.Context, c registry.Caller, name, from oci.Name, d oci.Digest) (bool, error) {
	if err := u.blocks.digest(d); err != nil {
		return false, err
	}
	if from.Owner != "" && !u.blocks.none() {
		source, err := u.owners.find(ctx, from.Owner)
		if err != nil || u.blocks.repository(source.DID, from.Repository) != nil {
			return false, nil //nolint:nilerr // no source, no mount
		}
	}
	return u.Uploads.Mount(ctx, c, name, from, d)
}

func (u blockedUploads) Finish(ctx context.Context, c registry.Caller, name oci.Name, id string, d oci.Digest, chunk registry.Chunk) error {
	if err := u.blocks.digest(d); err != nil {
		return err
	}
	return u.Uploads.Finish(ctx, c, name, id, d, chunk)
}
