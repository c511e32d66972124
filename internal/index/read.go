package index

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"
)

// Manifest is a manifest record as pages and pulls need it.
type Manifest struct {
	DID          syntax.DID
	Rkey         string
	CID          string // of the record
	Repository   string
	Digest       string
	MediaType    string
	ArtifactType string
	ConfigType   string
	Hold         string // DID, "" where the record names none
	Subject      string // digest, "" for none
	// BlobCID, BlobMime and BlobSize are the manifest's own bytes at the owner's PDS; "" in old records without.
	BlobCID, BlobMime string
	BlobSize          int64
	// ContentSize is the sum of config and layers, in bytes.
	ContentSize int64
	Annotations map[string]string
	CreatedAt   time.Time
	// Platforms are those of an index's children. Lists fill it; the look-ups for pulls do not.
	Platforms []Platform
}

// Platform is what an image runs on, with the child of an index that is for it.
type Platform struct {
	OS, Architecture, Variant, OSVersion string
	Digest                               string
	MediaType                            string
	Size                                 int64 // of the child's manifest
}

// Tag is a tag record.
type Tag struct {
	DID          syntax.DID
	Rkey         string
	CID          string // of the record
	Repository   string
	Name         string
	ManifestRkey string // "" where the record names only a digest
	Digest       string // "" where the record names only the manifest's record
	ChangedAt    time.Time
}

const manifestColumns = `m.did, m.rkey, m.cid, m.repository, m.digest, m.media_type, m.artifact_type, m.config_type, m.hold, m.subject,
	m.blob_cid, m.blob_mime, m.blob_size, m.content_size, m.annotations, m.created_at`

func scanManifest(row interface{ Scan(...any) error }, more ...any) (*Manifest, error) {
	m := &Manifest{}
	var did, annotations string
	var created int64
	err := row.Scan(append([]any{
		&did, &m.Rkey, &m.CID, &m.Repository, &m.Digest, &m.MediaType, &m.ArtifactType, &m.ConfigType, &m.Hold, &m.Subject,
		&m.BlobCID, &m.BlobMime, &m.BlobSize, &m.ContentSize, &annotations, &created,
	}, more...)...)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	m.DID, m.CreatedAt = syntax.DID(did), time.UnixMilli(created).UTC()
	if annotations != "" {
		if err := json.Unmarshal([]byte(annotations), &m.Annotations); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// ManifestAt is the manifest record at a key, nil for none.
func (x *Index) ManifestAt(ctx context.Context, did syntax.DID, rkey string) (*Manifest, error) {
	return scanManifest(x.db.Reader().QueryRowContext(ctx, `SELECT `+manifestColumns+` FROM index_manifest m WHERE m.did = ? AND m.rkey = ?`, did.String(), rkey))
}

// ManifestOf is a repository's manifest record of a digest, nil for none.
func (x *Index) ManifestOf(ctx context.Context, did syntax.DID, repository, digest string) (*Manifest, error) {
	return scanManifest(x.db.Reader().QueryRowContext(ctx, `SELECT `+manifestColumns+` FROM index_manifest m
		WHERE m.did = ? AND m.repository = ? AND m.digest = ? ORDER BY m.rkey LIMIT 1`, did.String(), repository, digest))
}

// TagOf is a tag's record, nil for none: of several that say they are it, the one that was changed last.
func (x *Index) TagOf(ctx context.Context, did syntax.DID, repository, tag string) (*Tag, error) {
	return scanTag(x.db.Reader().QueryRowContext(ctx, `SELECT did, rkey, cid, repository, tag, manifest_rkey, digest, changed_at FROM index_tag
		WHERE did = ? AND repository = ? AND tag = ? ORDER BY changed_at DESC, rkey LIMIT 1`, did.String(), repository, tag))
}

func scanTag(row interface{ Scan(...any) error }, more ...any) (*Tag, error) {
	t := &Tag{}
	var did string
	var changed int64
	err := row.Scan(append([]any{&did, &t.Rkey, &t.CID, &t.Repository, &t.Name, &t.ManifestRkey, &t.Digest, &changed}, more...)...)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	t.DID, t.ChangedAt = syntax.DID(did), time.UnixMilli(changed).UTC()
	return t, err
}

// NamedSince tells whether a manifest of a repository names a blob, and was made after a time, as its record says.
func (x *Index) NamedSince(ctx context.Context, did syntax.DID, repository, digest string, since time.Time) (bool, error) {
	var one int
	err := x.db.Reader().QueryRowContext(ctx, `SELECT 1 FROM index_blob b JOIN index_manifest m ON m.did = b.did AND m.rkey = b.rkey
		WHERE b.did = ? AND b.repository = ? AND b.digest = ? AND m.created_at > ? LIMIT 1`, did.String(), repository, digest, since.UnixMilli()).Scan(&one)
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	return err == nil, err
}

// HoldOfBlob is the hold at which a repository's blob is, by its newest manifest; "" where none names it.
func (x *Index) HoldOfBlob(ctx context.Context, did syntax.DID, repository, digest string) (string, error) {
	var hold string
	err := x.db.Reader().QueryRowContext(ctx, `SELECT m.hold FROM index_blob b JOIN index_manifest m ON m.did = b.did AND m.rkey = b.rkey
		WHERE b.did = ? AND b.repository = ? AND b.digest = ? AND m.hold <> '' ORDER BY m.created_at DESC LIMIT 1`, did.String(), repository, digest).Scan(&hold)
	if errors.Is(err, sql.ErrNoRows) {
		return "", nil
	}
	return hold, err
}

// TagNames are the tags of a repository behind after in lexical order, at most limit.
func (x *Index) TagNames(ctx context.Context, did syntax.DID, repository, after string, limit int) ([]string, error) {
	rows, err := x.db.Reader().QueryContext(ctx, `SELECT DISTINCT tag FROM index_tag WHERE did = ? AND repository = ? AND tag > ? ORDER BY tag LIMIT ?`,
		did.String(), repository, after, limit)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	var out []string
	for rows.Next() {
		var tag string
		if err := rows.Scan(&tag); err != nil {
			return nil, err
		}
		out = append(out, tag)
	}
	return out, rows.Err()
}

// ErrTooLong says that a list is longer than what is kept in memory of one.
var ErrTooLong = errors.New("the list is too long")

// Referrers are the manifests of a repository that name subject, newest first; "" for those that name any. Errors:
// ErrTooLong.
func (x *Index) Referrers(ctx context.Context, did syntax.DID, repository, subject string) ([]*Manifest, error) {
	if subject == "" {
		return x.manifests(ctx, `WHERE m.did = ? AND m.repository = ? AND m.subject <> '' ORDER BY m.created_at DESC, m.rkey`, did.String(), repository)
	}
	return x.manifests(ctx, `WHERE m.did = ? AND m.repository = ? AND m.subject = ? AND m.subject <> '' ORDER BY m.created_at DESC, m.rkey`,
		did.String(), repository, subject)
}

// listBytes bounds the memory of one list: annotations are other people's.
const listBytes = 32 << 20

// manifests are the rows that where selects. Errors: ErrTooLong, with as many as there was room for.
func (x *Index) manifests(ctx context.Context, where string, args ...any) ([]*Manifest, error) {
	rows, err := x.db.Reader().QueryContext(ctx, `SELECT `+manifestColumns+` FROM index_manifest m `+where, args...)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	var out []*Manifest
	for room := listBytes; rows.Next(); {
		m, err := scanManifest(rows)
		if err != nil {
			return nil, err
		}
		room -= 512
		for k, v := range m.Annotations {
			room -= len(k) + len(v)
		}
		if room < 0 {
			return out, ErrTooLong
		}
		out = append(out, m)
	}
	return out, rows.Err()
}

// HoldsOf are repos that say of a person that they are of its crew. Anybody may write that of anybody: whether it is
// a hold, and lets them, it is asked.
func (x *Index) HoldsOf(ctx context.Context, member syntax.DID, limit int) (out []syntax.DID, err error) {
	rows, err := x.db.Reader().QueryContext(ctx, `SELECT DISTINCT did FROM index_crew WHERE member = ? ORDER BY did LIMIT ?`, member.String(), limit)
	if err != nil {
		return nil, fmt.Errorf("read the index: %w", err)
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		var did syntax.DID
		if err := rows.Scan(&did); err != nil {
			return nil, fmt.Errorf("read the index: %w", err)
		}
		out = append(out, did)
	}
	return out, rows.Err()
}
