package index

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/api/atcr"
)

// Statuses of an account, in the network's words.
const (
	StatusActive      = "active"
	StatusDeactivated = "deactivated"
	StatusTakendown   = "takendown"
	StatusSuspended   = "suspended"
	StatusDeleted     = "deleted"
)

// Repo is what is known of a repo that is followed.
type Repo struct {
	DID    syntax.DID
	Handle string // "" where unknown
	PDS    string // base URL, "" where unknown
	Rev    string // up to which it was followed or read; "" for not yet
	Data   string // CID of the tree's root at Rev, "" where unknown
	Status string
	// Source is the stream that brings its changes, "" where none is known to.
	Source string
	// Complete: all its records are here, and nothing was missed since.
	Complete bool
	Attempts int   // to read it whole that failed, since the last that did not
	Version  int64 // grows with every change, by whichever process
	// Doubts grows with every reason to read it whole. What was asked for before the last of them does not answer it.
	Doubts int64
}

const repoQuery = `SELECT did, handle, pds, rev, data, status, source, complete, attempts, version, doubts FROM index_repo`

func scanRepo(row interface{ Scan(...any) error }) (r Repo, found bool, err error) {
	var did string
	var complete int
	err = row.Scan(&did, &r.Handle, &r.PDS, &r.Rev, &r.Data, &r.Status, &r.Source, &complete, &r.Attempts, &r.Version, &r.Doubts)
	if errors.Is(err, sql.ErrNoRows) {
		return Repo{}, false, nil
	}
	r.DID, r.Complete = syntax.DID(did), complete != 0
	return r, err == nil, err
}

// Repo is what is known of a repo.
func (x *Index) Repo(ctx context.Context, did syntax.DID) (Repo, bool, error) {
	return scanRepo(x.db.Reader().QueryRowContext(ctx, repoQuery+` WHERE did = ?`, did.String()))
}

// Version grows with every change of a repo, by whichever process; 0 where it is not known.
func (x *Index) Version(ctx context.Context, did syntax.DID) (version int64, err error) {
	err = x.db.Reader().QueryRowContext(ctx, `SELECT version FROM index_repo WHERE did = ?`, did.String()).Scan(&version)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, nil
	}
	return version, err
}

// RecordCID is the CID of a record that is there, "" for none.
func (x *Index) RecordCID(ctx context.Context, did syntax.DID, collection, rkey string) (cid string, err error) {
	t, ok := tables[collection]
	if !ok {
		return "", nil
	}
	err = x.db.Reader().QueryRowContext(ctx, `SELECT cid FROM `+t.name+` WHERE did = ? AND rkey = ?`, did.String(), rkey).Scan(&cid)
	if errors.Is(err, sql.ErrNoRows) {
		return "", nil
	}
	return cid, err
}

// Person finds the repo of a handle, as it was when it was seen last.
func (x *Index) Person(ctx context.Context, handle syntax.Handle) (Repo, bool, error) {
	return scanRepo(x.db.Reader().QueryRowContext(ctx, repoQuery+` WHERE handle = ? AND status = ? LIMIT 1`, handle.Normalize().String(), StatusActive))
}

// Repos are those that are followed, behind after in the order of DIDs, at most limit.
func (x *Index) Repos(ctx context.Context, after syntax.DID, limit int) ([]Repo, error) {
	return x.repos(ctx, repoQuery+` WHERE did > ? ORDER BY did LIMIT ?`, after.String(), limit)
}

// Due are repos that are to be read whole, those that wait longest first.
func (x *Index) Due(ctx context.Context, limit int) ([]Repo, error) {
	return x.repos(ctx, repoQuery+` WHERE complete = 0 AND due_at <= ? AND status <> ? ORDER BY due_at LIMIT ?`, x.now().UnixMilli(), StatusDeleted, limit)
}

func (x *Index) repos(ctx context.Context, query string, args ...any) ([]Repo, error) {
	rows, err := x.db.Reader().QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	var out []Repo
	for rows.Next() {
		r, _, err := scanRepo(rows)
		if err != nil {
			return nil, err
		}
		out = append(out, r)
	}
	return out, rows.Err()
}

// Meet notes who somebody is, and takes up their repo where it is new. What is known already costs no write.
// handle was checked both ways; "" leaves what is known, syntax.HandleInvalid says that there is none. source,
// where not "", is the stream that has the repo.
func (x *Index) Meet(ctx context.Context, did syntax.DID, handle syntax.Handle, pds, source string) error {
	r, found, err := x.Repo(ctx, did)
	if err != nil {
		return err
	}
	name := r.Handle
	if handle != "" {
		name = ""
		if !handle.IsInvalidHandle() {
			name = handle.Normalize().String()
		}
	}
	if found && r.Handle == name && r.PDS == pds && (source == "" || r.Source == source) {
		return nil
	}
	err = x.db.WriteRelaxed(ctx, func(tx *sql.Tx) error {
		w := &writer{x: x, ctx: ctx, tx: tx, did: did}
		if _, err := w.lock(source); err != nil {
			return err
		}
		if name != "" { // whoever had it before has it no longer
			if err := w.exec(`UPDATE index_repo SET handle = '' WHERE handle = ? AND did <> ?`, name, did.String()); err != nil {
				return err
			}
		}
		if err := w.exec(`UPDATE index_repo SET handle = ?, pds = ? WHERE did = ?`, name, clean(pds, 1024), did.String()); err != nil {
			return err
		}
		return w.nameWords(name)
	})
	if err != nil {
		return fmt.Errorf("write the index: %w", err)
	}
	return nil
}

// Doubt notes that changes of a repo may have been missed: it is to be read whole. Again says that it is to be
// read even where it stands at the rev that is known.
func (x *Index) Doubt(ctx context.Context, did syntax.DID, again bool) error {
	query := `UPDATE index_repo SET complete = 0, due_at = 0, doubts = doubts + 1, version = version + 1 WHERE did = ?`
	if again {
		query = `UPDATE index_repo SET complete = 0, due_at = 0, data = '', doubts = doubts + 1, version = version + 1 WHERE did = ?`
	}
	err := x.exec(ctx, query, did.String())
	x.Tell([]Touched{{DID: did}})
	return err
}

// Leave notes that no stream is known any more to bring a repo's changes.
func (x *Index) Leave(ctx context.Context, did syntax.DID) error {
	err := x.exec(ctx, `UPDATE index_repo SET source = '', complete = 0, due_at = 0, doubts = doubts + 1, version = version + 1 WHERE did = ?`, did.String())
	x.Tell([]Touched{{DID: did}})
	return err
}

// DoubtSource does so for every repo that a stream brings.
func (x *Index) DoubtSource(ctx context.Context, source string) error {
	err := x.exec(ctx, `UPDATE index_repo SET complete = 0, due_at = 0, doubts = doubts + 1, version = version + 1 WHERE source = ?`, source)
	x.Tell([]Touched{{}})
	return err
}

// Postpone notes that a repo could not be read whole, and when it is tried again.
func (x *Index) Postpone(ctx context.Context, did syntax.DID, until time.Time) error {
	return x.exec(ctx, `UPDATE index_repo SET attempts = attempts + 1, due_at = ? WHERE did = ? AND complete = 0`, until.UnixMilli(), did.String())
}

// Confirm notes that a repo stands at rev, of which everything is here. doubts are those from before its PDS was asked:
// with more by now it is not so.
func (x *Index) Confirm(ctx context.Context, did syntax.DID, rev string, doubts int64) error {
	err := x.exec(ctx, `UPDATE index_repo SET complete = 1, attempts = 0, due_at = 0, status = ?, version = version + 1 WHERE did = ? AND rev = ? AND doubts = ?`,
		StatusActive, did.String(), rev, doubts)
	x.Tell([]Touched{{DID: did}})
	return err
}

// SetStatus notes what became of an account. Of a deleted one everything is removed; of one that is not active
// nothing is shown.
func (x *Index) SetStatus(ctx context.Context, did syntax.DID, status string) error {
	err := x.db.WriteRelaxed(ctx, func(tx *sql.Tx) error {
		w := &writer{x: x, ctx: ctx, tx: tx, did: did}
		state, found, err := scanRepo(tx.QueryRowContext(ctx, repoQuery+` WHERE did = ?`, did.String()))
		if err != nil || !found || state.Status == status {
			return err
		}
		if status == StatusDeleted {
			if err := w.purge(); err != nil {
				return err
			}
		}
		return w.exec(`UPDATE index_repo SET status = ?, complete = 0, due_at = 0, doubts = doubts + 1, version = version + 1 WHERE did = ?`, clean(status, 64), did.String())
	})
	if err != nil {
		return fmt.Errorf("write the index: %w", err)
	}
	x.Tell([]Touched{{DID: did}})
	return nil
}

func (w *writer) purge() error {
	for _, t := range []string{"index_manifest", "index_blob", "index_child", "index_tag", "index_star", "index_page", "index_profile", "index_count", "index_crew", "index_repository", "index_word", "index_owner_word", "index_gone"} {
		if err := w.exec(`DELETE FROM `+t+` WHERE did = ?`, w.did.String()); err != nil {
			return err
		}
	}
	return w.exec(`UPDATE index_repo SET rev = '', data = '', handle = '' WHERE did = ?`, w.did.String())
}

// Cursor is how far a stream was read; 0 for not yet.
func (x *Index) Cursor(ctx context.Context, source string) (int64, error) {
	var cursor int64
	err := x.db.Reader().QueryRowContext(ctx, `SELECT cursor FROM index_cursor WHERE source = ?`, source).Scan(&cursor)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, nil
	}
	return cursor, err
}

const (
	replaceBatch = 200
	readAgain    = time.Second
)

// Replace makes the index say of a repo what its records say, all of them, as they were at rev. What was
// written later stays. doubts are those from before the records were read: with more by now it is to be read again.
// Of an account that was deleted meanwhile nothing comes back.
func (x *Index) Replace(ctx context.Context, did syntax.DID, rev, data string, doubts int64, records []Change) error {
	changes, err := x.difference(ctx, did, rev, records)
	if err != nil {
		return err
	}
	for len(changes) > 0 {
		n := min(len(changes), replaceBatch)
		if err := x.Write(ctx, []Commit{{DID: did, Rev: rev, Changes: changes[:n], read: true}}, Cursor{}); err != nil {
			return err
		}
		changes = changes[n:]
	}
	err = x.db.WriteRelaxed(ctx, func(tx *sql.Tx) error {
		w := &writer{x: x, ctx: ctx, tx: tx, did: did}
		state, err := w.lock("")
		if err != nil || state.Status == StatusDeleted {
			return err
		}
		complete, due, status := true, int64(0), StatusActive
		if state.Rev > rev { // commits came meanwhile, and one between may be missing: it is read again
			rev, data, complete, due = state.Rev, "", false, x.now().Add(readAgain).UnixMilli()
		}
		if state.Doubts != doubts {
			data, complete, due, status = "", false, x.now().Add(readAgain).UnixMilli(), state.Status
		}
		return w.exec(`UPDATE index_repo SET rev = ?, data = ?, status = ?, complete = ?, attempts = 0, due_at = ?, version = version + 1 WHERE did = ?`,
			rev, data, status, complete, due, did.String())
	})
	if err != nil {
		return fmt.Errorf("write the index: %w", err)
	}
	x.Tell([]Touched{{DID: did}})
	return nil
}

// difference is what has to change, deletions included.
func (x *Index) difference(ctx context.Context, did syntax.DID, rev string, records []Change) ([]Change, error) {
	type key struct{ collection, rkey string }
	fresh := make(map[key]bool, len(records))
	for i := range records {
		fresh[key{records[i].Collection, records[i].Rkey}] = true
	}
	changes := slices.Clone(records)
	for _, collection := range Collections() {
		rows, err := x.db.Reader().QueryContext(ctx, `SELECT rkey FROM `+tables[collection].name+` WHERE did = ? AND rev <= ?`, did.String(), rev)
		if err != nil {
			return nil, err
		}
		for rows.Next() {
			var rkey string
			if err := rows.Scan(&rkey); err != nil {
				return nil, errors.Join(err, rows.Close())
			}
			if !fresh[key{collection, rkey}] {
				changes = append(changes, Change{Collection: collection, Rkey: rkey})
			}
		}
		if err := errors.Join(rows.Err(), rows.Close()); err != nil {
			return nil, err
		}
	}
	return changes, nil
}

// Observe notes what was read of a record without its repo's rev: Value nil for none. It counts whatever was
// known before, unless the repo changed since version, which the caller knows from before it read. What is known
// already costs no write.
func (x *Index) Observe(ctx context.Context, did syntax.DID, version int64, c Change) error {
	t, ok := tables[c.Collection]
	if !ok {
		return nil
	}
	var cid string
	err := x.db.Reader().QueryRowContext(ctx, `SELECT cid FROM `+t.name+` WHERE did = ? AND rkey = ?`, did.String(), c.Rkey).Scan(&cid)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		if c.Value == nil || !WellFormed(did, c) {
			return nil
		}
	case err != nil:
		return err
	case c.Value != nil && cid == c.CID && cid != "":
		return nil
	}
	return x.Write(ctx, []Commit{{DID: did, Changes: []Change{c}, observed: true, version: version}}, Cursor{})
}

// WellFormed tells whether a manifest or tag record is kept; others are not looked at.
func WellFormed(did syntax.DID, c Change) bool {
	var err error
	switch c.Collection {
	case atcr.ManifestNSID:
		_, err = parseManifest(c.Value, time.Time{})
	case atcr.TagNSID:
		_, err = parseTag(did, c.Value, time.Time{})
	}
	return err == nil
}

// Counts are how many rows there are, for progress and metrics.
type Counts struct{ Repos, Waiting, Manifests, Tags, Repositories int64 }

// Counts reads them; it scans indexes, so it is not for every request.
func (x *Index) Counts(ctx context.Context) (c Counts, err error) {
	err = x.db.Reader().QueryRowContext(ctx, `SELECT (SELECT count(*) FROM index_repo), (SELECT count(*) FROM index_repo WHERE complete = 0 AND status <> 'deleted'),
		(SELECT count(*) FROM index_manifest), (SELECT count(*) FROM index_tag), (SELECT count(*) FROM index_repository)`).
		Scan(&c.Repos, &c.Waiting, &c.Manifests, &c.Tags, &c.Repositories)
	return c, err
}
