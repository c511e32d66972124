package pds

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"github.com/ipfs/go-cid"
)

const (
	// MaxBlobBytes bounds an atproto blob: pictures, and manifests on a development network.
	MaxBlobBytes = 10 << 20
	// unreferencedFor is how long a blob may wait for the record that names it.
	unreferencedFor = 24 * time.Hour
)

// Blob is an atproto blob: media of a record, not OCI content.
type Blob struct {
	CID  cid.Cid
	Mime string
	Data []byte
}

// PutBlob keeps data, at most MaxBlobBytes, for a day, and as long as a record names it. The type of one that
// a record names already stays what that record says.
func (r *Repo) PutBlob(ctx context.Context, mime string, data []byte) (Blob, error) {
	b := Blob{CID: sumCID(cid.Raw, data), Mime: mime, Data: data}
	now := r.host.now()
	err := r.host.db.Write(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `DELETE FROM atblob WHERE did = ? AND created_at < ? AND NOT EXISTS
			(SELECT 1 FROM atblob_ref WHERE atblob_ref.did = atblob.did AND atblob_ref.cid = atblob.cid)`,
			r.did.String(), now.Add(-unreferencedFor).UnixMilli())
		if err != nil {
			return err
		}
		return tx.QueryRowContext(ctx, `INSERT INTO atblob (did, cid, mime, size, created_at, data) VALUES (?, ?, ?, ?, ?, ?)
			ON CONFLICT (did, cid) DO UPDATE SET created_at = excluded.created_at, mime = iif(EXISTS
			(SELECT 1 FROM atblob_ref WHERE atblob_ref.did = atblob.did AND atblob_ref.cid = atblob.cid), mime, excluded.mime) RETURNING mime`,
			r.did.String(), b.CID.String(), mime, len(data), now.UnixMilli(), data).Scan(&b.Mime)
	})
	return b, err
}

// GetBlob reads a blob. Errors: ErrBlobNotFound.
func (r *Repo) GetBlob(ctx context.Context, c cid.Cid) (Blob, error) {
	b := Blob{CID: c}
	err := r.host.db.Reader().QueryRowContext(ctx, `SELECT mime, data FROM atblob WHERE did = ? AND cid = ?`, r.did.String(), c.String()).Scan(&b.Mime, &b.Data)
	if errors.Is(err, sql.ErrNoRows) {
		return b, ErrBlobNotFound
	}
	return b, err
}
