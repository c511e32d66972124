package hold

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"reflect"
	"sync"

	"github.com/bluesky-social/indigo/atproto/atdata"
	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/api/atcr"
	"atcr.io/internal/ledger"
	"atcr.io/internal/pds"
)

// following is what the hold is about to commit and the ledger must take note of in the same transaction.
type following struct {
	mu          sync.Mutex
	counts      map[syntax.RecordKey]awaited[ledger.Counts] // by the key of the statistics that have them
	registering map[syntax.RecordKey]awaited[syntax.DID]    // by the key of the crew record
	posting     map[syntax.RecordKey]awaited[ledger.Post]   // by the key of the post
}

// awaited is what the ledger notes when a record is committed: that one, and no other under its key.
type awaited[T any] struct {
	note   T
	record json.RawMessage
}

// noted is what to note of op.
func noted[T any](f *following, all *map[syntax.RecordKey]awaited[T], op pds.Op) (note T, ours bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	a, ok := (*all)[op.Rkey]
	return a.note, ok && op.CID.Defined() && isRecord(op, a.record)
}

// isRecord tells whether op writes record.
func isRecord(op pds.Op, record json.RawMessage) bool {
	written, err := atdata.UnmarshalCBOR(op.Value)
	if err != nil {
		return false
	}
	meant, err := atdata.UnmarshalJSON(record)
	if err != nil {
		return false
	}
	meant["$type"] = op.Collection.String()
	return reflect.DeepEqual(written, meant)
}

// follow keeps the ledger true, in the transaction of each commit.
func (h *Hold) follow(ctx context.Context, tx *sql.Tx, _ syntax.DID, ops []pds.Op) error {
	var layers []ledger.Change
	var counts []ledger.Counts
	for _, op := range ops {
		switch op.Collection {
		case atcr.HoldLayerNSID:
			change := ledger.Change{Rkey: op.Rkey}
			if op.CID.Defined() {
				layer, err := decodeLayer(op.Value)
				if err != nil {
					return fmt.Errorf("layer record %s: %w", op.Rkey, err)
				}
				change.Layer = layer
			}
			layers = append(layers, change)
		case atcr.HoldStatsNSID:
			if c, ok := noted(&h.following, &h.following.counts, op); ok {
				counts = append(counts, c)
			}
		case postNSID:
			if post, ours := noted(&h.following, &h.following.posting, op); ours {
				if err := h.ledger.Posted(ctx, tx, post); err != nil {
					return err
				}
			}
		case atcr.HoldCrewNSID:
			did, ours := noted(&h.following, &h.following.registering, op)
			err := h.ledger.Deregister(ctx, tx, op.Rkey)
			if err == nil && ours {
				err = h.ledger.Register(ctx, tx, did)
			}
			if err != nil {
				return err
			}
		}
	}
	if len(counts) > 0 {
		if err := h.ledger.Published(ctx, tx, counts); err != nil {
			return err
		}
	}
	namings, err := h.ledger.Follow(ctx, tx, layers)
	for _, n := range namings {
		if err == nil && h.uploads != nil {
			err = h.uploads.Naming(ctx, tx, n.DID, n.Digest, n.Named)
		}
	}
	return err
}

func decodeLayer(value []byte) (*atcr.HoldLayer, error) {
	data, err := atdata.UnmarshalCBOR(value)
	if err != nil {
		return nil, err
	}
	raw, err := json.Marshal(data)
	if err != nil {
		return nil, err
	}
	layer := &atcr.HoldLayer{}
	return layer, json.Unmarshal(raw, layer)
}

// buildLedger fills the ledger of a hold whose records are older than it.
func (h *Hold) buildLedger(ctx context.Context) error {
	return h.ledger.Build(ctx, func(fn func(ledger.Change) error) error {
		return h.eachRecord(ctx, atcr.HoldLayerNSID, func(r pds.Record) error {
			layer := &atcr.HoldLayer{}
			if !readJSON(r, layer) {
				h.log.Warn("a layer record is not readable, and counts for nobody", "rkey", r.Rkey.String())
				return nil
			}
			return fn(ledger.Change{Rkey: r.Rkey, Layer: layer})
		})
	})
}
