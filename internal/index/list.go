package index

import (
	"context"
	"database/sql"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"
)

// Repository is a repository as lists show it.
type Repository struct {
	DID           syntax.DID
	Handle        string // "" where unknown
	Name          string
	Description   string // the page's, Markdown; "" for none
	AvatarCID     string // at the owner's PDS, "" for none
	AvatarMime    string
	PushedAt      time.Time
	Stars         int64
	Pulls, Pushes int64 // as the holds of the repository's images counted them
}

// repositoryQuery selects repositories of accounts that are active. Counts are believed of holds that the
// repository's own manifests name.
const repositoryQuery = `SELECT r.did, p.handle, r.repository, r.pushed_at,
	(SELECT count(DISTINCT s.did) FROM index_star s WHERE s.owner = r.did AND s.repository = r.repository),
	(SELECT coalesce(sum(c.pulls), 0) FROM index_count c WHERE c.owner = r.did AND c.repository = r.repository AND ` + countedHere + `),
	(SELECT coalesce(sum(c.pushes), 0) FROM index_count c WHERE c.owner = r.did AND c.repository = r.repository AND ` + countedHere + `)
	FROM index_repository r JOIN index_repo p ON p.did = r.did AND p.status = 'active' `

const countedHere = `EXISTS (SELECT 1 FROM index_manifest m WHERE m.did = c.owner AND m.repository = c.repository AND m.hold = c.did)`

func (x *Index) repositories(ctx context.Context, where string, args ...any) ([]Repository, error) {
	rows, err := x.db.Reader().QueryContext(ctx, repositoryQuery+where, args...)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	var out []Repository
	for rows.Next() {
		var r Repository
		var did string
		var pushed int64
		if err := rows.Scan(&did, &r.Handle, &r.Name, &pushed, &r.Stars, &r.Pulls, &r.Pushes); err != nil {
			return nil, err
		}
		r.DID, r.PushedAt = syntax.DID(did), time.UnixMilli(pushed).UTC()
		out = append(out, r)
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return nil, err
	}
	return out, x.addPages(ctx, out)
}

// fullName is whose and which.
type fullName struct{ did, repository string }

// namesAtOnce is how many names one query asks for.
const namesAtOnce = 50

// namesAre is a condition that two columns are one of names, with its arguments.
func namesAre(did, repository string, names []fullName) (where string, args []any) {
	one := "(" + did + " = ? AND " + repository + " = ?)"
	where = "(" + one + strings.Repeat(" OR "+one, len(names)-1) + ")"
	for _, n := range names {
		args = append(args, n.did, n.repository)
	}
	return where, args
}

// addPages adds what the owners' pages say.
func (x *Index) addPages(ctx context.Context, of []Repository) error {
	at := map[fullName]*Repository{}
	names := make([]fullName, len(of))
	for i := range of {
		names[i] = fullName{of[i].DID.String(), of[i].Name}
		at[names[i]] = &of[i]
	}
	for chunk := range slices.Chunk(names, namesAtOnce) {
		where, args := namesAre("did", "repository", chunk)
		// Of several pages of one repository the newest comes last.
		rows, err := x.db.Reader().QueryContext(ctx, `SELECT did, repository, description, avatar_cid, avatar_mime FROM index_page WHERE `+where+` ORDER BY updated_at, rkey DESC`, args...)
		if err != nil {
			return err
		}
		for rows.Next() {
			var name fullName
			var description, cid, mime string
			if err := rows.Scan(&name.did, &name.repository, &description, &cid, &mime); err != nil {
				return errors.Join(err, rows.Close())
			}
			if r := at[name]; r != nil {
				r.Description, r.AvatarCID, r.AvatarMime = description, cid, mime
			}
		}
		if err := errors.Join(rows.Err(), rows.Close()); err != nil {
			return err
		}
	}
	return nil
}

// RepositoriesOf are a person's repositories behind after in lexical order, at most limit.
func (x *Index) RepositoriesOf(ctx context.Context, did syntax.DID, after string, limit int) ([]Repository, error) {
	return x.repositories(ctx, `WHERE r.did = ? AND r.repository > ? ORDER BY r.repository LIMIT ?`, did.String(), after, limit)
}

// Repository is one of them.
func (x *Index) Repository(ctx context.Context, did syntax.DID, name string) (Repository, bool, error) {
	found, err := x.repositories(ctx, `WHERE r.did = ? AND r.repository = ?`, did.String(), name)
	if err != nil || len(found) == 0 {
		return Repository{}, false, err
	}
	return found[0], true, nil
}

// Recent are the repositories that were pushed to last, before a time (the zero time: now), at most limit.
func (x *Index) Recent(ctx context.Context, before time.Time, limit int) ([]Repository, error) {
	if before.IsZero() {
		before = x.now().Add(time.Minute)
	}
	return x.repositories(ctx, `WHERE r.pushed_at < ? ORDER BY r.pushed_at DESC, r.did, r.repository LIMIT ?`, before.UnixMilli(), limit)
}

// Starred tells whether a person gave a repository a star.
func (x *Index) Starred(ctx context.Context, by, owner syntax.DID, repository string) (bool, error) {
	var n int
	err := x.db.Reader().QueryRowContext(ctx, `SELECT count(*) FROM index_star WHERE owner = ? AND repository = ? AND did = ?`, owner.String(), repository, by.String()).Scan(&n)
	return n > 0, err
}

// StarredBy are the repositories that a person gave stars, newest first, at most limit.
func (x *Index) StarredBy(ctx context.Context, by syntax.DID, limit int) ([]Repository, error) {
	return x.repositories(ctx, `JOIN index_star s ON s.owner = r.did AND s.repository = r.repository WHERE s.did = ?
		ORDER BY s.created_at DESC, r.did, r.repository LIMIT ?`, by.String(), limit)
}

// TaggedManifest is a tag with its manifest; Manifest is nil where the tag names one that is not there.
type TaggedManifest struct {
	Tag
	Manifest *Manifest
}

// Tags are a repository's tags, those changed last first, behind after (the zero value: from the first), at
// most limit.
func (x *Index) Tags(ctx context.Context, did syntax.DID, repository string, after Tag, limit int) ([]TaggedManifest, error) {
	at := after.ChangedAt.UnixMilli()
	if after.Rkey == "" {
		at = 1 << 60
	}
	rows, err := x.db.Reader().QueryContext(ctx, `SELECT did, rkey, cid, repository, tag, manifest_rkey, digest, changed_at FROM index_tag
		WHERE did = ? AND repository = ? AND (changed_at < ? OR changed_at = ? AND rkey > ?) ORDER BY changed_at DESC, rkey LIMIT ?`,
		did.String(), repository, at, at, after.Rkey, limit)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	var out []TaggedManifest
	for rows.Next() {
		t, err := scanTag(rows)
		if err != nil {
			return nil, err
		}
		out = append(out, TaggedManifest{Tag: *t})
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return nil, err
	}
	for i := range out {
		if out[i].Manifest, err = x.ofTag(ctx, &out[i].Tag); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// ofTag is the manifest that a tag names, with its platforms.
func (x *Index) ofTag(ctx context.Context, t *Tag) (m *Manifest, err error) {
	if t.ManifestRkey != "" {
		m, err = x.ManifestAt(ctx, t.DID, t.ManifestRkey)
	} else {
		m, err = x.ManifestOf(ctx, t.DID, t.Repository, t.Digest)
	}
	if err != nil || m == nil || m.Repository != t.Repository {
		return nil, err
	}
	return m, x.addPlatforms(ctx, m)
}

// Manifests are a repository's manifests, newest first, behind after (nil: from the first), at most limit.
func (x *Index) Manifests(ctx context.Context, did syntax.DID, repository string, after *Manifest, limit int) ([]*Manifest, error) {
	at, rkey := int64(1)<<60, ""
	if after != nil {
		at, rkey = after.CreatedAt.UnixMilli(), after.Rkey
	}
	out, err := x.manifests(ctx, `WHERE m.did = ? AND m.repository = ? AND (m.created_at < ? OR m.created_at = ? AND m.rkey > ?)
		ORDER BY m.created_at DESC, m.rkey LIMIT ?`, did.String(), repository, at, at, rkey, limit)
	if err != nil && !errors.Is(err, ErrTooLong) { // a shorter page says where the next begins, too
		return nil, err
	}
	for _, m := range out {
		if err := x.addPlatforms(ctx, m); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// addPlatforms are the children of an index.
func (x *Index) addPlatforms(ctx context.Context, m *Manifest) error {
	platforms, err := x.platforms(ctx, `SELECT os, architecture, variant, os_version, digest, media_type, size FROM index_child
		WHERE did = ? AND rkey = ? ORDER BY position LIMIT 200`, m.DID.String(), m.Rkey)
	m.Platforms = platforms
	return err
}

func (x *Index) platforms(ctx context.Context, query string, args ...any) ([]Platform, error) {
	rows, err := x.db.Reader().QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	var out []Platform
	for rows.Next() {
		var p Platform
		if err := rows.Scan(&p.OS, &p.Architecture, &p.Variant, &p.OSVersion, &p.Digest, &p.MediaType, &p.Size); err != nil {
			return nil, err
		}
		out = append(out, p)
	}
	return out, rows.Err()
}

// Blob is what a manifest names, its config first where it has one.
type Blob struct {
	Digest, MediaType string
	Size              int64
}

// Blobs are those of a manifest that are at its hold, in its order.
func (x *Index) Blobs(ctx context.Context, did syntax.DID, rkey string) ([]Blob, error) {
	rows, err := x.db.Reader().QueryContext(ctx, `SELECT digest, media_type, size FROM index_blob WHERE did = ? AND rkey = ? ORDER BY position`, did.String(), rkey)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	var out []Blob
	for rows.Next() {
		var b Blob
		if err := rows.Scan(&b.Digest, &b.MediaType, &b.Size); err != nil {
			return nil, err
		}
		out = append(out, b)
	}
	return out, rows.Err()
}

// DefaultHold is the hold that a person's profile names, "" for none.
func (x *Index) DefaultHold(ctx context.Context, did syntax.DID) (string, error) {
	var hold string
	err := x.db.Reader().QueryRowContext(ctx, `SELECT default_hold FROM index_profile WHERE did = ?`, did.String()).Scan(&hold)
	if errors.Is(err, sql.ErrNoRows) {
		return "", nil
	}
	return hold, err
}
