package pds

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	comatproto "github.com/bluesky-social/indigo/api/atproto"
	"github.com/bluesky-social/indigo/atproto/syntax"
	lexutil "github.com/bluesky-social/indigo/lex/util"

	"atcr.io/internal/pds/tree"
)

const (
	// KeepEvents is how long events can be asked for.
	KeepEvents = 72 * time.Hour
	ringEvents = 512
	ringBytes  = 16 << 20
	pageEvents = 256
	pageBytes  = 64 << 10 // a page ends with the event that brings it over: each slow subscriber holds one
)

// errTooSlow says that a subscriber's next events are gone.
var errTooSlow = errors.New("events that were still to be sent are gone")

// Event is a frame of the firehose.
type Event struct {
	Seq   int64
	Frame []byte // header and body, as they go onto the wire
}

// eventBody is an event before it has its place in the sequence.
type eventBody struct {
	kind   string // "#commit"
	encode func(seq int64, at string, w io.Writer) error
}

func commitEvent(m *comatproto.SyncSubscribeRepos_Commit) eventBody {
	return eventBody{"#commit", func(seq int64, at string, w io.Writer) error {
		m.Seq, m.Time = seq, at
		return m.MarshalCBOR(w)
	}}
}

func identityEvent(did syntax.DID, handle string) eventBody {
	return eventBody{"#identity", func(seq int64, at string, w io.Writer) error {
		m := comatproto.SyncSubscribeRepos_Identity{Did: did.String(), Seq: seq, Time: at}
		if handle != "" {
			m.Handle = &handle
		}
		return m.MarshalCBOR(w)
	}}
}

func accountEvent(did syntax.DID) eventBody {
	return eventBody{"#account", func(seq int64, at string, w io.Writer) error {
		m := comatproto.SyncSubscribeRepos_Account{Active: true, Did: did.String(), Seq: seq, Time: at}
		return m.MarshalCBOR(w)
	}}
}

func syncEvent(did syntax.DID, head Head) eventBody {
	return eventBody{"#sync", func(seq int64, at string, w io.Writer) error {
		var car bytes.Buffer
		err := writeCARHeader(&car, head.CID)
		if err == nil {
			_, err = writeCARBlock(&car, tree.Block{CID: head.CID, Data: head.block})
		}
		if err != nil {
			return err
		}
		m := comatproto.SyncSubscribeRepos_Sync{Blocks: lexutil.LexBytes(car.Bytes()), Did: did.String(), Rev: head.Rev, Seq: seq, Time: at}
		return m.MarshalCBOR(w)
	}}
}

// frame is {"op": 1, "t": kind} and the body, both DRISL-CBOR.
func (b eventBody) frame(seq int64, at time.Time) ([]byte, error) {
	var out bytes.Buffer
	out.Write([]byte{0xa2, 0x61, 't', 0x60 | byte(len(b.kind))})
	out.WriteString(b.kind)
	out.Write([]byte{0x62, 'o', 'p', 0x01})
	if err := b.encode(seq, at.UTC().Format("2006-01-02T15:04:05.000Z"), &out); err != nil {
		return nil, fmt.Errorf("encode %s: %w", b.kind, err)
	}
	return out.Bytes(), nil
}

// events is the host's one sequence: the newest in a ring, all of the last days in the table.
type events struct {
	db queryer

	publishing sync.Mutex // held from the choice of a seq to its COMMIT
	last       int64

	mu     sync.Mutex
	ring   []Event       // never empty once there was an event
	newer  chan struct{} // closed when there are newer ones
	pruned int64         // up to here the table may have none any more
	closed bool
}

func openEvents(ctx context.Context, db interface{ Reader() *sql.DB }) (*events, error) {
	e := &events{db: db.Reader(), newer: make(chan struct{})}
	err := db.Reader().QueryRowContext(ctx, `SELECT coalesce(max(seq), 0) FROM event`).Scan(&e.last)
	if err != nil {
		return nil, err
	}
	recent, err := e.stored(ctx, 0, ringEvents, ringBytes, "DESC")
	if err != nil {
		return nil, err
	}
	slices.Reverse(recent)
	e.ring = recent
	return e, nil
}

func (e *events) close() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.closed {
		e.closed = true
		close(e.newer)
	}
}

func (e *events) isClosed() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.closed
}

// publish runs fn in the one transaction that makes its rows and its events durable together, and wakes
// subscribers after COMMIT.
func (h *Host) publish(ctx context.Context, fn func(tx *sql.Tx, add func(eventBody) error) error) error {
	e := h.events
	e.publishing.Lock()
	defer e.publishing.Unlock()
	var fresh []Event
	seq := e.last
	err := h.db.Write(ctx, func(tx *sql.Tx) error {
		return fn(tx, func(b eventBody) error {
			now := h.now()
			seq = max(seq+1, now.UnixMicro()) // by time, so that a restored host never falls behind a relay's cursor
			frame, err := b.frame(seq, now)
			if err != nil {
				return err
			}
			fresh = append(fresh, Event{Seq: seq, Frame: frame})
			_, err = tx.ExecContext(ctx, `INSERT INTO event (seq, time, frame) VALUES (?, ?, ?)`, seq, now.UnixMilli(), frame)
			return err
		})
	})
	if err != nil {
		return err
	}
	e.last = seq
	h.spending.add(len(fresh), h.now())
	e.mu.Lock()
	defer e.mu.Unlock()
	e.ring = append(e.ring, fresh...)
	if keep := newest(e.ring, ringEvents, ringBytes); keep < len(e.ring) {
		e.ring = append([]Event(nil), e.ring[len(e.ring)-keep:]...)
	}
	if !e.closed {
		close(e.newer)
		e.newer = make(chan struct{})
	}
	return nil
}

// newest is how many of the last of ring are within limits; at least one.
func newest(ring []Event, events, size int) (n int) {
	for n < min(len(ring), events) {
		if size -= len(ring[len(ring)-1-n].Frame); size < 0 && n > 0 {
			break
		}
		n++
	}
	return n
}

// after is what comes behind cursor: at most a page, from memory where it is there. none says how to wait.
// Errors: errTooSlow.
func (e *events) after(ctx context.Context, cursor int64) (page []Event, none <-chan struct{}, err error) {
	e.mu.Lock()
	newer := e.newer
	if len(e.ring) == 0 || cursor >= e.ring[len(e.ring)-1].Seq {
		e.mu.Unlock()
		return nil, newer, nil
	}
	if cursor >= e.ring[0].Seq {
		i := 0
		for e.ring[i].Seq <= cursor {
			i++
		}
		for size := 0; i < len(e.ring) && len(page) < pageEvents && size < pageBytes; i++ {
			page, size = append(page, e.ring[i]), size+len(e.ring[i].Frame)
		}
		e.mu.Unlock()
		return page, nil, nil
	}
	e.mu.Unlock()
	if page, err = e.stored(ctx, cursor, pageEvents, pageBytes, "ASC"); err != nil {
		return nil, nil, err
	}
	// Looked at behind the query: what the query no longer found was marked before it was deleted.
	e.mu.Lock()
	defer e.mu.Unlock()
	if cursor < e.pruned {
		return nil, nil, errTooSlow
	}
	return page, newer, nil
}

// stored reads events behind cursor from the table, until there are limit of them or they have size bytes.
func (e *events) stored(ctx context.Context, cursor int64, limit, size int, order string) ([]Event, error) {
	rows, err := e.db.QueryContext(ctx, `SELECT seq, frame FROM event WHERE seq > ? ORDER BY seq `+order+` LIMIT ?`, cursor, limit)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	var out []Event
	for size > 0 && rows.Next() {
		var event Event
		if err := rows.Scan(&event.Seq, &event.Frame); err != nil {
			return nil, err
		}
		out, size = append(out, event), size-len(event.Frame)
	}
	return out, rows.Err()
}

// bounds are the first and last seq that can be asked for, 0 and the last where there is none.
func (e *events) bounds(ctx context.Context) (first, last int64, err error) {
	err = e.db.QueryRowContext(ctx, `SELECT coalesce(min(seq), 0), coalesce(max(seq), 0) FROM event`).Scan(&first, &last)
	return first, last, err
}

// Prune deletes events older than KeepEvents, a bounded number a call. The newest stays, however old: it
// says where the sequence stands, and a relay that comes back with it must not be told that it is ahead.
func (h *Host) Prune(ctx context.Context) error {
	return h.db.Write(ctx, func(tx *sql.Tx) error {
		var last int64
		err := tx.QueryRowContext(ctx, `SELECT coalesce(max(seq), 0) FROM
			(SELECT seq FROM event WHERE time < ? AND seq < (SELECT max(seq) FROM event) ORDER BY seq LIMIT 5000)`,
			h.now().Add(-KeepEvents).UnixMilli()).Scan(&last)
		if err != nil || last == 0 {
			return err
		}
		h.events.mu.Lock()
		h.events.pruned = max(h.events.pruned, last)
		h.events.mu.Unlock()
		_, err = tx.ExecContext(ctx, `DELETE FROM event WHERE seq <= ?`, last)
		return err
	})
}
