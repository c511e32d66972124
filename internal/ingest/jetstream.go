package ingest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"sync"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"
	"github.com/klauspost/compress/zstd"

	"atcr.io/internal/xrpc"
)

const (
	maxJetstreamBytes = 2 << 20
	// rewind is how far before the cursor is begun: servers do not agree to the microsecond.
	rewind      = 5 * time.Second
	hintWorkers = 4
	hintTimeout = 10 * time.Second
	// hintsOfRepo is how many records of one repo are asked for in a batch; of more, the whole repo is read.
	hintsOfRepo = 20
)

// jetstream is the first of several servers that can be reached. What it says is not signed: it says where to
// look, and the owner's PDS proves what is there.
type jetstream struct {
	ingester *Ingester
	at       int // which server
}

func (s *jetstream) name() string { return JetstreamSource }

// jetstreamEvent is one message.
//
// Source: https://github.com/bluesky-social/jetstream
type jetstreamEvent struct {
	DID    string `json:"did"`
	TimeUS int64  `json:"time_us"`
	Kind   string `json:"kind"`
	Commit *struct {
		Operation  string `json:"operation"`
		Collection string `json:"collection"`
		Rkey       string `json:"rkey"`
		CID        string `json:"cid"`
	} `json:"commit"`
	Account *struct {
		Active bool   `json:"active"`
		Status string `json:"status"`
	} `json:"account"`
}

// hint is where something is said to have changed.
type hint struct {
	did              syntax.DID
	collection, rkey string
}

func (s *jetstream) run(ctx context.Context) (read bool, err error) {
	i := s.ingester
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	base := i.config.Jetstreams[s.at]
	defer func() {
		if !read { // the next one, next time
			s.at = (s.at + 1) % len(i.config.Jetstreams)
		}
	}()
	cursor, err := i.config.Sink.Cursor(ctx, JetstreamSource)
	if err != nil {
		return false, err
	}
	query := url.Values{"wantedCollections": {namespace + "*"}}
	if cursor > 0 {
		query.Set("cursor", strconv.FormatInt(max(1, cursor-rewind.Microseconds()), 10))
	}
	r := &jetstreamReader{ingester: i, cursor: cursor, saved: cursor, savedAt: time.Now(), hints: map[hint]string{}}
	if i.config.Dictionary != nil {
		query.Set("compress", "true")
		if r.decoder, err = zstd.NewReader(nil, zstd.WithDecoderDicts(i.config.Dictionary), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxJetstreamBytes)); err != nil {
			return false, fmt.Errorf("Jetstream's dictionary: %w", err)
		}
		defer r.decoder.Close()
	}
	conn, err := i.dial(ctx, base, "/subscribe", query)
	if err != nil {
		return false, err
	}
	defer func() { _ = conn.CloseNow() }()
	frames, failed := readFrames(ctx, conn, maxJetstreamBytes)
	go keepAlive(ctx, conn, frames)
	return r.run(ctx, frames, failed)
}

type jetstreamReader struct {
	ingester *Ingester
	decoder  *zstd.Decoder
	cursor   int64 // time of the newest event, in microseconds
	saved    int64
	savedAt  time.Time
	hints    map[hint]string // CID that is said to be there, "" for none
}

func (r *jetstreamReader) run(ctx context.Context, frames <-chan []byte, failed <-chan error) (read bool, err error) {
	// A server that has much to look through, and finds nothing for us, is silent meanwhile.
	quiet := idleLive
	if r.ingester.now().Sub(time.UnixMicro(r.cursor)) > time.Minute && r.cursor > 0 {
		quiet = 15 * idleLive
	}
	idle := time.NewTimer(quiet)
	defer idle.Stop()
	save := time.NewTicker(cursorEvery)
	defer save.Stop()
	late := r.ingester.lateness(JetstreamSource)
	defer late.Stop()
	for {
		select {
		case frame, open := <-frames:
			if !open {
				return read, <-failed
			}
			read = true
			late.Reset(liveLag)
			if err := r.take(ctx, frame); err != nil {
				return read, err
			}
			if len(r.hints) >= batchEvents || len(frames) == 0 && len(r.hints) > 0 {
				if err := r.flush(ctx); err != nil {
					return read, err
				}
			}
			if len(frames) == 0 {
				late.Stop()
			}
			idle.Reset(quiet)
		case <-idle.C:
			if len(frames) == 0 {
				r.ingester.setLive(JetstreamSource, true)
			}
		case <-save.C:
			if err := r.flush(ctx); err != nil {
				return read, err
			}
		}
	}
}

func (r *jetstreamReader) take(ctx context.Context, frame []byte) error {
	i := r.ingester
	if r.decoder != nil {
		plain, err := r.decoder.DecodeAll(frame, nil)
		if err != nil {
			i.drop(dropMalformed, "source", JetstreamSource, "error", err)
			return nil
		}
		frame = plain
	}
	var e jetstreamEvent
	if err := json.Unmarshal(frame, &e); err != nil || e.TimeUS <= 0 {
		i.drop(dropMalformed, "source", JetstreamSource, "error", err)
		return nil
	}
	did, err := syntax.ParseDID(e.DID)
	if err != nil {
		i.drop(dropMalformed, "source", JetstreamSource, "error", err)
		return nil
	}
	now := i.now()
	r.cursor = max(r.cursor, min(e.TimeUS, now.UnixMicro())) // a time to come would have us miss what comes until then
	i.setLive(JetstreamSource, now.Sub(time.UnixMicro(e.TimeUS)) < liveLag)
	switch {
	case e.Kind == "commit" && e.Commit != nil:
		return r.hint(did, e)
	case e.Kind == "identity":
		return r.flushThen(ctx, func() error { return i.identityChanged(ctx, e.DID, "") })
	case e.Kind == "account" && e.Account != nil:
		return r.flushThen(ctx, func() error { return i.accountChanged(ctx, e.DID, e.Account.Active, e.Account.Status, JetstreamSource) })
	}
	return nil
}

func (r *jetstreamReader) hint(did syntax.DID, e jetstreamEvent) error {
	c := e.Commit
	if !r.ingester.kept[c.Collection] {
		return nil
	}
	if _, err := syntax.ParseRecordKey(c.Rkey); err != nil {
		r.ingester.drop(dropMalformed, "source", JetstreamSource, "error", err)
		return nil
	}
	r.ingester.metrics.events.WithLabelValues("commit").Inc()
	cid := c.CID
	switch {
	case c.Operation == "delete":
		cid = ""
	case cid == "":
		cid = "unknown"
	}
	r.hints[hint{did, c.Collection, c.Rkey}] = cid
	return nil
}

func (r *jetstreamReader) flushThen(ctx context.Context, do func() error) error {
	if err := r.flush(ctx); err != nil {
		return err
	}
	return do()
}

// flush follows the hints, and then keeps the cursor.
func (r *jetstreamReader) flush(ctx context.Context) error {
	if len(r.hints) == 0 && (r.cursor == r.saved || time.Since(r.savedAt) < cursorEvery) {
		return nil
	}
	byRepo := map[syntax.DID][]hint{}
	for h := range r.hints {
		byRepo[h.did] = append(byRepo[h.did], h)
	}
	errs := make(chan error, len(byRepo))
	slots := make(chan struct{}, hintWorkers)
	var running sync.WaitGroup
	for did, hints := range byRepo {
		running.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			errs <- r.follow(ctx, did, hints)
		})
	}
	running.Wait()
	close(errs)
	for err := range errs {
		if err != nil {
			return err
		}
	}
	if err := r.ingester.config.Sink.Write(ctx, nil, JetstreamSource, r.cursor); err != nil {
		return err
	}
	r.hints, r.saved, r.savedAt = map[hint]string{}, r.cursor, time.Now()
	return nil
}

// follow asks the PDS of a repo what is at the paths that hints name. Errors: the Sink's.
func (r *jetstreamReader) follow(ctx context.Context, did syntax.DID, hints []hint) error {
	i := r.ingester
	state, followed, err := i.config.Sink.Repo(ctx, did)
	if err != nil {
		return err
	}
	source := JetstreamSource
	if i.Live(state.Source) {
		source = "" // a relay brings more
	}
	if !followed { // whether there is anything to follow, the PDS says
		who, err := i.config.Directory.LookupDID(ctx, did)
		if err != nil || !i.hasCollections(ctx, did) {
			i.drop(dropHint, "did", did, "error", err)
			return ctx.Err()
		}
		if err := i.config.Sink.Meet(ctx, did, "", who.PDS(), JetstreamSource); err != nil {
			return err
		}
		i.poke()
		return nil
	}
	if len(hints) > hintsOfRepo {
		return i.doubt(ctx, did)
	}
	for _, h := range hints {
		known, err := i.config.Sink.CID(ctx, did, h.collection, h.rkey)
		if err != nil {
			return err
		}
		if said := r.hints[h]; said == known {
			if err := i.config.Sink.Write(ctx, []Commit{{DID: did, Source: source}}, "", 0); err != nil {
				return err
			}
			continue
		}
		commit, err := i.hinted(ctx, h)
		if err != nil {
			i.drop(dropHint, "did", did, "collection", h.collection, "rkey", h.rkey, "error", err)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return i.doubt(ctx, did) // something may have happened: until it is known, the PDS is asked
		}
		commit.Source = source
		if err := i.config.Sink.Write(ctx, []Commit{commit}, "", 0); err != nil {
			return err
		}
	}
	return nil
}

// hinted is what the owner's PDS proves to be at a path.
func (i *Ingester) hinted(ctx context.Context, h hint) (Commit, error) {
	ctx, cancel := context.WithTimeout(ctx, hintTimeout)
	defer cancel()
	who, err := i.config.Directory.LookupDID(ctx, h.did)
	if err != nil {
		return Commit{}, err
	}
	host := xrpc.HostOf(who.PDS())
	if host == "" || i.tripped.open(host) {
		return Commit{}, errors.New("its PDS did not answer a moment ago")
	}
	commit, err := i.proof(ctx, who.PDS(), h.did, h.collection, h.rkey)
	if e, ok := upstreamError(err); ok && (e.Status == 0 || e.Status >= 500) {
		i.tripped.trip(host)
	} else {
		i.tripped.reset(host)
	}
	return commit, err
}
