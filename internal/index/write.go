package index

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/api/atcr"
)

// Change is a record that was written, or is gone.
type Change struct {
	Collection string
	Rkey       string
	CID        string
	Value      []byte // the record as JSON; nil: it is gone
}

// Commit is changes of one repo.
type Commit struct {
	DID syntax.DID
	// Rev is what the repo had behind the changes. "" says that records were seen without one: what is seen
	// counts, whatever came before.
	Rev string
	// InOrder: the commit is a stream's next one of that repo, behind Since. One that was passed already is
	// left out, and a gap is noted. It leads from the tree PrevData to the tree Data; PrevData "" says that
	// there may be changes that it does not name.
	InOrder               bool
	Since, PrevData, Data string
	Source                string // of the stream; "" for none
	Changes               []Change

	observed bool // it counts only where the repo's version is still this
	version  int64
	read     bool // of a repo that was read whole: it counts only where the account was not deleted meanwhile
}

// Cursor is how far a stream was read.
type Cursor struct {
	Source string
	Value  int64
}

// Write makes the changes of commits, all or none, and keeps cursor (the zero value: none). Records that are
// not well formed are kept out and counted.
// Errors: the database's; writing again is safe.
func (x *Index) Write(ctx context.Context, commits []Commit, cursor Cursor) error {
	// One order of repos for all who write, so that none waits for another who waits for it.
	ordered := slices.Clone(commits)
	slices.SortStableFunc(ordered, func(a, b Commit) int { return strings.Compare(a.DID.String(), b.DID.String()) })
	var touched []Touched
	err := x.db.WriteRelaxed(ctx, func(tx *sql.Tx) error {
		touched = nil
		for i := range ordered {
			w := &writer{x: x, ctx: ctx, tx: tx, did: ordered[i].DID, rev: ordered[i].Rev}
			if err := w.commit(&ordered[i]); err != nil {
				return err
			}
			touched = append(touched, w.touched...)
		}
		if cursor.Source == "" {
			return nil
		}
		_, err := tx.ExecContext(ctx, `INSERT INTO index_cursor (source, cursor, updated_at) VALUES (?,?,?)
			ON CONFLICT (source) DO UPDATE SET cursor = excluded.cursor, updated_at = excluded.updated_at`, cursor.Source, cursor.Value, x.now().UnixMilli())
		return err
	})
	if err != nil {
		return fmt.Errorf("write the index: %w", err)
	}
	x.Tell(touched)
	return nil
}

func (x *Index) exec(ctx context.Context, query string, args ...any) error {
	return x.db.WriteRelaxed(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, query, args...)
		return err
	})
}

// writer makes the changes of one repo in a transaction.
type writer struct {
	x       *Index
	ctx     context.Context //nolint:containedctx // a writer lives as long as its transaction
	tx      *sql.Tx
	did     syntax.DID
	rev     string
	touched []Touched
	dirty   []string // repositories of did whose summary may have changed
}

func (w *writer) exec(query string, args ...any) error {
	_, err := w.tx.ExecContext(w.ctx, query, args...)
	return err
}

func (w *writer) commit(c *Commit) error {
	state, err := w.lock(c.Source)
	if err != nil {
		return err
	}
	if c.observed && c.version != state.Version || c.read && state.Status == StatusDeleted {
		return nil
	}
	passed := c.InOrder && c.Rev != "" && c.Rev <= state.Rev
	for i := range c.Changes {
		if passed { // what keeps copies may have them from before the one that passed
			w.x.stale.Inc()
			w.touch(&c.Changes[i], before{})
			continue
		}
		if err := w.change(&c.Changes[i]); err != nil {
			return err
		}
	}
	if c.InOrder && !passed {
		complete := state.Complete && c.follows(state)
		data := c.Data
		if !complete {
			data = "" // at this rev not all is known
		}
		if state.Complete && !complete {
			w.touched = append(w.touched, Touched{DID: w.did})
		}
		if err := w.exec(`UPDATE index_repo SET rev = ?, data = ?, complete = ? WHERE did = ?`, c.Rev, data, complete, w.did.String()); err != nil {
			return err
		}
	}
	if len(w.touched) > 0 {
		if err := w.exec(`UPDATE index_repo SET version = version + 1 WHERE did = ?`, w.did.String()); err != nil {
			return err
		}
	}
	return w.summarise()
}

// follows tells whether nothing can have happened between what is known of a repo and the commit's changes.
func (c *Commit) follows(state Repo) bool {
	if c.PrevData == "" {
		return false
	}
	if state.Data != "" {
		return c.PrevData == state.Data
	}
	return c.Since <= state.Rev
}

// lock makes the repo's row where there is none, and lets no other process write to the repo meanwhile.
func (w *writer) lock(source string) (Repo, error) {
	err := w.exec(`INSERT INTO index_repo (did, handle, pds, rev, data, status, source, complete, attempts, due_at, version) VALUES (?,'','','','',?,?,0,0,0,0)
		ON CONFLICT (did) DO UPDATE SET did = excluded.did`, w.did.String(), StatusActive, source)
	if err != nil {
		return Repo{}, err
	}
	r, _, err := scanRepo(w.tx.QueryRowContext(w.ctx, repoQuery+` WHERE did = ?`, w.did.String()))
	if err == nil && source != "" && r.Source != source {
		r.Source = source
		err = w.exec(`UPDATE index_repo SET source = ? WHERE did = ?`, source, w.did.String())
	}
	return r, err
}

// before is what a row of a record was.
type before struct {
	found           bool
	rev, cid        string
	repository, tag string
	tombstone       bool // there is none, and it is known since when
	goneRev         string
}

// table is how one collection is kept.
type table struct {
	name       string
	repository string // column, or an empty literal
	tag        string
	own        bool // its records say what repositories their owner has
	save       func(w *writer, c *Change) error
	remove     func(w *writer, rkey string) error
}

var tables = map[string]table{
	atcr.ManifestNSID:      {"index_manifest", "repository", "''", true, saveManifest, removeManifest},
	atcr.TagNSID:           {"index_tag", "repository", "tag", true, saveTag, nil},
	atcr.RepoPageNSID:      {"index_page", "repository", "''", true, savePage, nil},
	atcr.SailorStarNSID:    {"index_star", "repository", "''", false, saveStar, nil},
	atcr.SailorProfileNSID: {"index_profile", "''", "''", false, saveProfile, nil},
	atcr.HoldStatsNSID:     {"index_count", "repository", "''", false, saveCount, nil},
	atcr.HoldCrewNSID:      {"index_crew", "''", "''", false, saveCrew, nil},
}

// Collections are those that are kept, in lexical order.
func Collections() []string {
	out := make([]string, 0, len(tables))
	for name := range tables {
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}

func (w *writer) before(t table, c *Change) (b before, err error) {
	err = w.tx.QueryRowContext(w.ctx, `SELECT rev, cid, `+t.repository+`, `+t.tag+` FROM `+t.name+` WHERE did = ? AND rkey = ?`, w.did.String(), c.Rkey).
		Scan(&b.rev, &b.cid, &b.repository, &b.tag)
	if err == nil {
		b.found = true
		return b, nil
	}
	if !errors.Is(err, sql.ErrNoRows) {
		return b, err
	}
	err = w.tx.QueryRowContext(w.ctx, `SELECT rev FROM index_gone WHERE did = ? AND collection = ? AND rkey = ?`, w.did.String(), c.Collection, c.Rkey).Scan(&b.goneRev)
	if errors.Is(err, sql.ErrNoRows) {
		return b, nil
	}
	b.tombstone = err == nil
	return b, err
}

// change writes one record, unless what is known of it is newer.
func (w *writer) change(c *Change) error {
	t, ok := tables[c.Collection]
	if !ok {
		return nil
	}
	b, err := w.before(t, c)
	if err != nil {
		return err
	}
	w.touch(c, b)
	if w.rev != "" && w.rev < max(b.rev, b.goneRev) {
		w.x.stale.Inc()
		return nil
	}
	if b.found && c.Value != nil && b.cid == c.CID && c.CID != "" {
		if w.rev == "" || w.rev == b.rev {
			return nil
		}
		return w.exec(`UPDATE `+t.name+` SET rev = ? WHERE did = ? AND rkey = ?`, w.rev, w.did.String(), c.Rkey)
	}
	if t.own && b.found {
		w.dirty = append(w.dirty, b.repository)
	}
	if c.Value != nil {
		observed := w.rev
		if w.rev == "" {
			w.rev = b.rev
		}
		err := t.save(w, c)
		w.rev = observed
		if err == nil && b.tombstone {
			err = w.exec(`DELETE FROM index_gone WHERE did = ? AND collection = ? AND rkey = ?`, w.did.String(), c.Collection, c.Rkey)
		}
		if !errors.Is(err, errBadRecord) {
			return err
		}
		w.x.rejected.WithLabelValues(c.Collection).Inc()
		w.x.log.Debug("a record is kept out", "did", w.did, "collection", c.Collection, "rkey", c.Rkey, "error", err)
	}
	return w.remove(t, c, b)
}

// touch notes who may have a copy of what c is, or was.
func (w *writer) touch(c *Change, b before) {
	touched := Touched{DID: w.did, Collection: c.Collection, Rkey: c.Rkey, Repository: b.repository, Tag: b.tag}
	if b.found {
		w.touched = append(w.touched, touched)
	}
	now := touched
	now.Repository, now.Tag = "", ""
	switch c.Collection {
	case atcr.TagNSID:
		if row, err := parseTag(w.did, c.Value, w.x.now()); err == nil {
			now.Repository, now.Tag = row.repository, row.tag
		} else if flat, tag, ok := strings.Cut(c.Rkey, ":"); ok && !b.found { // what its key says that it was
			now.Repository, now.Tag = strings.ReplaceAll(flat, "~", "/"), tag
		}
	case atcr.ManifestNSID:
		if row, err := parseManifest(c.Value, w.x.now()); err == nil {
			now.Repository = row.repository
		}
	}
	if !b.found || now != touched && now.Repository != "" {
		w.touched = append(w.touched, now)
	}
}

func (w *writer) remove(t table, c *Change, b before) error {
	if b.found {
		if err := w.exec(`DELETE FROM `+t.name+` WHERE did = ? AND rkey = ?`, w.did.String(), c.Rkey); err != nil {
			return err
		}
		if t.remove != nil {
			if err := t.remove(w, c.Rkey); err != nil {
				return err
			}
		}
	}
	if w.rev == "" {
		return nil
	}
	return w.exec(`INSERT INTO index_gone (did, collection, rkey, rev, gone_at) VALUES (?,?,?,?,?)
		ON CONFLICT (did, collection, rkey) DO UPDATE SET rev = excluded.rev, gone_at = excluded.gone_at`,
		w.did.String(), c.Collection, c.Rkey, w.rev, w.x.now().UnixMilli())
}

func saveManifest(w *writer, c *Change) error {
	m, err := parseManifest(c.Value, w.x.now())
	if err != nil {
		return err
	}
	if err := removeManifest(w, c.Rkey); err != nil {
		return err
	}
	w.dirty = append(w.dirty, m.repository)
	err = w.exec(`INSERT INTO index_manifest (did, rkey, rev, cid, repository, digest, media_type, artifact_type, config_type, hold, subject,
		blob_cid, blob_mime, blob_size, content_size, annotations, created_at) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)
		ON CONFLICT (did, rkey) DO UPDATE SET rev = excluded.rev, cid = excluded.cid, repository = excluded.repository, digest = excluded.digest,
		media_type = excluded.media_type, artifact_type = excluded.artifact_type, config_type = excluded.config_type, hold = excluded.hold,
		subject = excluded.subject, blob_cid = excluded.blob_cid, blob_mime = excluded.blob_mime, blob_size = excluded.blob_size,
		content_size = excluded.content_size, annotations = excluded.annotations, created_at = excluded.created_at`,
		w.did.String(), c.Rkey, w.rev, c.CID, m.repository, m.digest, m.mediaType, m.artifactType, m.configType, m.hold, m.subject,
		m.blobCID, m.blobMime, m.blobSize, m.contentSize, m.annotations, m.createdAt)
	if err != nil {
		return err
	}
	for i, b := range m.blobs {
		if err := w.exec(`INSERT INTO index_blob (did, rkey, position, repository, digest, media_type, size) VALUES (?,?,?,?,?,?,?)`,
			w.did.String(), c.Rkey, i, m.repository, b.digest, b.mediaType, b.size); err != nil {
			return err
		}
	}
	for i, b := range m.children {
		if err := w.exec(`INSERT INTO index_child (did, rkey, position, digest, media_type, size, os, architecture, variant, os_version)
			VALUES (?,?,?,?,?,?,?,?,?,?)`, w.did.String(), c.Rkey, i, b.digest, b.mediaType, b.size, b.os, b.architecture, b.variant, b.osVersion); err != nil {
			return err
		}
	}
	return nil
}

// removeManifest removes what stands beside a manifest's row.
func removeManifest(w *writer, rkey string) error {
	return errors.Join(
		w.exec(`DELETE FROM index_blob WHERE did = ? AND rkey = ?`, w.did.String(), rkey),
		w.exec(`DELETE FROM index_child WHERE did = ? AND rkey = ?`, w.did.String(), rkey))
}

func saveTag(w *writer, c *Change) error {
	t, err := parseTag(w.did, c.Value, w.x.now())
	if err != nil {
		return err
	}
	w.dirty = append(w.dirty, t.repository)
	return w.exec(`INSERT INTO index_tag (did, rkey, rev, cid, repository, tag, manifest_rkey, digest, changed_at) VALUES (?,?,?,?,?,?,?,?,?)
		ON CONFLICT (did, rkey) DO UPDATE SET rev = excluded.rev, cid = excluded.cid, repository = excluded.repository, tag = excluded.tag,
		manifest_rkey = excluded.manifest_rkey, digest = excluded.digest, changed_at = excluded.changed_at`,
		w.did.String(), c.Rkey, w.rev, c.CID, t.repository, t.tag, t.manifestRkey, t.digest, t.changedAt)
}

func savePage(w *writer, c *Change) error {
	p, err := parsePage(c.Value, w.x.now())
	if err != nil {
		return err
	}
	w.dirty = append(w.dirty, p.repository)
	return w.exec(`INSERT INTO index_page (did, rkey, rev, cid, repository, description, avatar_cid, avatar_mime, updated_at) VALUES (?,?,?,?,?,?,?,?,?)
		ON CONFLICT (did, rkey) DO UPDATE SET rev = excluded.rev, cid = excluded.cid, repository = excluded.repository, description = excluded.description,
		avatar_cid = excluded.avatar_cid, avatar_mime = excluded.avatar_mime, updated_at = excluded.updated_at`,
		w.did.String(), c.Rkey, w.rev, c.CID, p.repository, p.description, p.avatarCID, p.avatarMime, p.updatedAt)
}

func saveStar(w *writer, c *Change) error {
	s, err := parseStar(c.Value, w.x.now())
	if err != nil {
		return err
	}
	return w.exec(`INSERT INTO index_star (did, rkey, rev, cid, owner, repository, created_at) VALUES (?,?,?,?,?,?,?)
		ON CONFLICT (did, rkey) DO UPDATE SET rev = excluded.rev, cid = excluded.cid, owner = excluded.owner, repository = excluded.repository,
		created_at = excluded.created_at`, w.did.String(), c.Rkey, w.rev, c.CID, s.owner, s.repository, s.createdAt)
}

func saveProfile(w *writer, c *Change) error {
	if c.Rkey != atcr.SelfRkey {
		return bad("a profile has the key self")
	}
	p, err := parseProfile(c.Value, w.x.now())
	if err != nil {
		return err
	}
	return w.exec(`INSERT INTO index_profile (did, rkey, rev, cid, default_hold, created_at) VALUES (?,?,?,?,?,?)
		ON CONFLICT (did, rkey) DO UPDATE SET rev = excluded.rev, cid = excluded.cid, default_hold = excluded.default_hold, created_at = excluded.created_at`,
		w.did.String(), c.Rkey, w.rev, c.CID, p.defaultHold, p.createdAt)
}

func saveCount(w *writer, c *Change) error {
	s, err := parseCount(c.Value, w.x.now())
	if err != nil {
		return err
	}
	return w.exec(`INSERT INTO index_count (did, rkey, rev, cid, owner, repository, pulls, pushes, last_pull, last_push) VALUES (?,?,?,?,?,?,?,?,?,?)
		ON CONFLICT (did, rkey) DO UPDATE SET rev = excluded.rev, cid = excluded.cid, owner = excluded.owner, repository = excluded.repository,
		pulls = excluded.pulls, pushes = excluded.pushes, last_pull = excluded.last_pull, last_push = excluded.last_push`,
		w.did.String(), c.Rkey, w.rev, c.CID, s.owner, s.repository, s.pulls, s.pushes, s.lastPull, s.lastPushed)
}

func saveCrew(w *writer, c *Change) error {
	member, err := parseCrew(c.Value)
	if err != nil {
		return err
	}
	return w.exec(`INSERT INTO index_crew (did, rkey, rev, cid, member) VALUES (?,?,?,?,?)
		ON CONFLICT (did, rkey) DO UPDATE SET rev = excluded.rev, cid = excluded.cid, member = excluded.member`, w.did.String(), c.Rkey, w.rev, c.CID, member)
}
