package pds

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/bluesky-social/indigo/atproto/atcrypto"
	"github.com/bluesky-social/indigo/atproto/atdata"
	"github.com/bluesky-social/indigo/atproto/repo"
	"github.com/bluesky-social/indigo/atproto/syntax"
	"github.com/ipfs/go-cid"

	"atcr.io/internal/pds/tree"
)

// SignedWith tells whether the newest commit of did was signed with key. Errors: sql.ErrNoRows, ErrCorrupt.
func (h *Host) SignedWith(ctx context.Context, did syntax.DID, key atcrypto.PublicKey) (bool, error) {
	head, err := readHead(ctx, h.db.Reader(), did)
	if err != nil {
		return false, err
	}
	var commit repo.Commit
	if err := commit.UnmarshalCBOR(bytes.NewReader(head.block)); err != nil {
		return false, fmt.Errorf("%w: head: %w", ErrCorrupt, err)
	}
	return commit.VerifySignature(key) == nil, nil
}

// Rebuild makes the repo of did, which must not be open, of the records that are whole, whatever its head says:
// a new commit, signed with key, and tells everybody who follows. lost is called for each record that is
// damaged, and is no more.
//
// Errors: ErrRepoNotFound; the database's.
func (h *Host) Rebuild(ctx context.Context, did syntax.DID, key atcrypto.PrivateKey, handle string, lost func(path string)) (records int, err error) {
	r := &Repo{host: h, did: did, key: key, handle: handle}
	err = h.publish(ctx, func(tx *sql.Tx, add func(eventBody) error) error {
		var rev string
		err := tx.QueryRowContext(ctx, `SELECT rev FROM repo WHERE did = ?`, did.String()).Scan(&rev)
		if errors.Is(err, sql.ErrNoRows) {
			return ErrRepoNotFound
		}
		if err != nil {
			return err
		}
		damaged, newest, err := r.examine(ctx, tx)
		if err != nil {
			return err
		}
		for _, d := range damaged {
			if err := r.erase(ctx, tx, d); err != nil {
				return err
			}
			lost(d.collection + "/" + d.rkey)
		}
		t, err := loadTree(ctx, tx, did, func() {})
		if err != nil {
			return err
		}
		if err := tx.QueryRowContext(ctx, `SELECT count(*) FROM record WHERE did = ?`, did.String()).Scan(&records); err != nil {
			return err
		}
		return r.refound(ctx, tx, t, max(rev, newest), add)
	})
	return records, err
}

// row is the key of a record's row. What is in it may be damaged, so it is no path.
type row struct{ collection, rkey string }

// examine reads every record: which are damaged, and the newest rev that one has.
func (r *Repo) examine(ctx context.Context, tx *sql.Tx) (damaged []row, newest string, err error) {
	rows, err := tx.QueryContext(ctx, `SELECT collection, rkey, cid, value, rev FROM record WHERE did = ?`, r.did.String())
	if err != nil {
		return nil, "", err
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var at row
		var raw, value []byte
		var rev string
		if err := rows.Scan(&at.collection, &at.rkey, &raw, &value, &rev); err != nil {
			return nil, "", err
		}
		c, err := cid.Cast(raw)
		if err != nil || checkRecord(at.collection+"/"+at.rkey, c, value) != nil {
			damaged = append(damaged, at)
			continue
		}
		if _, err := syntax.ParseTID(rev); err == nil {
			newest = max(newest, rev)
		}
	}
	return damaged, newest, rows.Err()
}

func (r *Repo) erase(ctx context.Context, tx *sql.Tx, at row) error {
	for _, table := range []string{"record", "atblob_ref"} {
		if _, err := tx.ExecContext(ctx, `DELETE FROM `+table+` WHERE did = ? AND collection = ? AND rkey = ?`, r.did.String(), at.collection, at.rkey); err != nil {
			return err
		}
	}
	return nil
}

// refound makes t the repo, with a rev behind last, and tells so.
func (r *Repo) refound(ctx context.Context, tx *sql.Tx, t *tree.Tree, last string, add func(eventBody) error) error {
	root, err := t.Root()
	if err != nil {
		return err
	}
	if _, err := syntax.ParseTID(last); err != nil {
		last = "" // the row is damaged, and by time it is behind all the same
	}
	head, err := r.sign(root, r.nextRev(last))
	if err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, `INSERT INTO repo (did, handle, head, head_block, data, rev) VALUES (?, ?, ?, ?, ?, ?)
		ON CONFLICT (did) DO UPDATE SET handle = excluded.handle, head = excluded.head, head_block = excluded.head_block, data = excluded.data, rev = excluded.rev`,
		r.did.String(), r.handle, head.CID.Bytes(), head.block, head.Data.Bytes(), head.Rev)
	if err != nil {
		return err
	}
	return errors.Join(add(identityEvent(r.did, r.handle)), add(accountEvent(r.did)), add(syncEvent(r.did, head)))
}

// Import makes the repo of a.DID, which must not be open, what the archive has, in one commit that key signs,
// and tells everybody who follows. Whether the archive is to be believed was asked before. missing is called for
// each record that names a blob which is not here.
func (h *Host) Import(ctx context.Context, a *Archive, key atcrypto.PrivateKey, handle string, missing func(path, blob string)) error {
	r := &Repo{host: h, did: a.DID, key: key, handle: handle}
	return h.publish(ctx, func(tx *sql.Tx, add func(eventBody) error) error {
		rev := ""
		if err := tx.QueryRowContext(ctx, `SELECT rev FROM repo WHERE did = ?`, a.DID.String()).Scan(&rev); err != nil && !errors.Is(err, sql.ErrNoRows) {
			return err
		}
		for _, table := range []string{"record", "atblob_ref"} {
			if _, err := tx.ExecContext(ctx, `DELETE FROM `+table+` WHERE did = ?`, a.DID.String()); err != nil {
				return err
			}
		}
		next := r.nextRev(max(rev, a.Rev))
		t := tree.New()
		err := a.Each(ctx, func(path string, c cid.Cid, value []byte) error {
			if err := t.Set(path, c); err != nil {
				return err
			}
			return r.importRecord(ctx, tx, path, c, value, next, missing)
		})
		if err != nil {
			return err
		}
		return r.refound(ctx, tx, t, max(rev, a.Rev), add)
	})
}

func (r *Repo) importRecord(ctx context.Context, tx *sql.Tx, path string, c cid.Cid, value []byte, rev string, missing func(path, blob string)) error {
	collection, rkey, err := syntax.ParseRepoPath(path)
	if err != nil {
		return err
	}
	data, err := decodeRecord(value)
	if err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, `INSERT INTO record (did, collection, rkey, cid, value, rev) VALUES (?, ?, ?, ?, ?, ?)`,
		r.did.String(), collection.String(), rkey.String(), c.Bytes(), value, rev)
	if err != nil {
		return err
	}
	w := &encoded{Write: Write{Collection: collection, Rkey: rkey}, blobs: atdata.ExtractBlobs(data)}
	for _, b := range w.blobs {
		one := &encoded{Write: w.Write, blobs: []atdata.Blob{b}}
		switch err := r.refer(ctx, tx, one); {
		case errors.Is(err, ErrBlobNotFound):
			missing(path, b.Ref.String())
		case err != nil:
			return err
		}
	}
	return nil
}
