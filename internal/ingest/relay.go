package ingest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	comatproto "github.com/bluesky-social/indigo/api/atproto"
	"github.com/bluesky-social/indigo/atproto/syntax"
	"github.com/coder/websocket"

	"atcr.io/internal/xrpc"
)

const (
	dialTimeout = 20 * time.Second
	pingEvery   = 5 * time.Second
	pongTimeout = 10 * time.Second
	// framesAhead are those that were read and not looked at yet: with maxFrameBytes the memory of a stream.
	framesAhead = 8
	batchEvents = 200
	cursorEvery = 5 * time.Second
	// liveLag is how late an event may come from a stream that is up to date, and how long it may take to be followed;
	// idleLive how long nothing comes from one that has told all.
	liveLag  = 10 * time.Second
	idleLive = 2 * time.Second
	// regressions are how many events in a row may be older than what came before.
	regressions = 100
)

// relayStream is com.atproto.sync.subscribeRepos of a relay or PDS.
type relayStream struct {
	ingester *Ingester
	base     string
}

func (s *relayStream) name() string { return s.base }

// run connects behind the cursor that is kept, or without one begins with what comes now; and lists what was
// there before, once.
func (s *relayStream) run(ctx context.Context) (read bool, err error) {
	i := s.ingester
	cursor, err := i.config.Sink.Cursor(ctx, s.base)
	if err != nil {
		return false, err
	}
	query := url.Values{}
	if cursor > 0 {
		query.Set("cursor", strconv.FormatInt(cursor, 10))
	}
	conn, err := i.dial(ctx, s.base, "/xrpc/com.atproto.sync.subscribeRepos", query)
	if err != nil {
		return false, err
	}
	defer func() { _ = conn.CloseNow() }()
	var listing sync.WaitGroup
	defer listing.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	listing.Go(func() { i.discoverOnce(ctx, s.base) }) // the stream goes on meanwhile: what changes now is not missed
	frames, failed := readFrames(ctx, conn, maxFrameBytes)
	r := &relayReader{ingester: i, source: s.base, last: cursor, saved: cursor, savedAt: time.Now()}
	return r.run(ctx, conn, frames, failed)
}

// dial opens a WebSocket to a server of the operator's choice.
func (i *Ingester) dial(ctx context.Context, base, path string, query url.Values) (*websocket.Conn, error) {
	target := strings.TrimSuffix(base, "/") + path
	if len(query) > 0 {
		target += "?" + query.Encode()
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	client := *i.config.Trusted
	client.Timeout = 0 // a stream has no end
	conn, res, err := websocket.Dial(ctx, target, &websocket.DialOptions{HTTPClient: &client})
	if res != nil && res.Body != nil {
		_ = res.Body.Close()
	}
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", base, err)
	}
	return conn, nil
}

// readFrames reads ahead, a bounded number. failed gets the one error that ends it.
func readFrames(ctx context.Context, conn *websocket.Conn, limit int64) (frames <-chan []byte, failed <-chan error) {
	conn.SetReadLimit(limit)
	out, end := make(chan []byte, framesAhead), make(chan error, 1)
	go func() {
		defer close(out)
		for {
			_, frame, err := conn.Read(ctx)
			if err != nil {
				end <- err
				return
			}
			select {
			case out <- frame:
			case <-ctx.Done():
				end <- ctx.Err()
				return
			}
		}
	}()
	return out, end
}

// keepAlive notices a server that has gone without a word. Where frames wait to be looked at, it is not the server that is
// silent.
func keepAlive(ctx context.Context, conn *websocket.Conn, frames <-chan []byte) {
	ticker := time.NewTicker(pingEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		if len(frames) == cap(frames) {
			continue
		}
		pong, cancel := context.WithTimeout(ctx, pongTimeout)
		err := conn.Ping(pong)
		cancel()
		if err != nil && len(frames) < cap(frames) {
			_ = conn.CloseNow() // the reader ends
			return
		}
	}
}

// relayReader is one connection.
type relayReader struct {
	ingester *Ingester
	source   string
	last     int64 // seq of the newest event
	saved    int64 // the cursor that is kept
	savedAt  time.Time
	behind   int // events in a row that were older
	waiting  []Commit
}

func (r *relayReader) run(ctx context.Context, conn *websocket.Conn, frames <-chan []byte, failed <-chan error) (read bool, err error) {
	alive, cancel := context.WithCancel(ctx)
	defer cancel()
	go keepAlive(alive, conn, frames)
	idle := time.NewTimer(idleLive)
	defer idle.Stop()
	save := time.NewTicker(cursorEvery)
	defer save.Stop()
	late := r.ingester.lateness(r.source)
	defer late.Stop()
	for {
		select {
		case frame, open := <-frames:
			if !open {
				return read, errors.Join(<-failed, r.flush(context.WithoutCancel(ctx)))
			}
			read = true
			late.Reset(liveLag)
			if err := r.take(ctx, frame); err != nil {
				return read, errors.Join(err, r.flush(context.WithoutCancel(ctx)))
			}
			if len(r.waiting) >= batchEvents || len(frames) == 0 && len(r.waiting) > 0 {
				if err := r.flush(ctx); err != nil {
					return read, err
				}
			}
			if len(frames) == 0 {
				late.Stop()
			}
			idle.Reset(idleLive)
		case <-idle.C:
			if len(frames) == 0 { // it has told all
				r.ingester.setLive(r.source, true)
			}
		case <-save.C:
			if err := r.flush(ctx); err != nil {
				return read, err
			}
		}
	}
}

// flush writes what waits, with the cursor.
func (r *relayReader) flush(ctx context.Context) error {
	if len(r.waiting) == 0 && (r.last == r.saved || time.Since(r.savedAt) < cursorEvery) {
		return nil
	}
	if err := r.ingester.config.Sink.Write(ctx, r.waiting, r.source, r.last); err != nil {
		return err
	}
	r.waiting, r.saved, r.savedAt = nil, r.last, time.Now()
	return nil
}

// take looks at one frame. What is wrong with it is its own matter; an error ends the connection.
func (r *relayReader) take(ctx context.Context, frame []byte) error {
	i := r.ingester
	e, err := i.parseFrame(frame)
	if err != nil {
		i.drop(dropMalformed, "source", r.source, "error", err)
		return nil
	}
	switch {
	case e.failure == "FutureCursor":
		// The server was set back. What it has now is read anew.
		i.log.Warn("a firehose was set back", "source", r.source)
		return errors.Join(errors.New("the server says FutureCursor"), r.restart(ctx))
	case e.failure != "":
		return fmt.Errorf("the server says %.100q", e.failure)
	case e.info == "OutdatedCursor":
		i.log.Warn("a firehose no longer has what came behind the cursor: repos are read anew", "source", r.source)
		return errors.Join(errors.New("the server says OutdatedCursor: its repos are listed anew"), r.restart(ctx))
	case e.seq == 0:
		return nil
	case e.seq <= r.last:
		i.drop(dropOrder, "source", r.source, "seq", e.seq)
		if r.behind++; r.behind > regressions {
			return errors.New("the server's sequence was set back")
		}
		return nil
	}
	r.behind, r.last = 0, e.seq
	if at := parseTime(e.at); !at.IsZero() {
		i.setLive(r.source, i.now().Sub(at) < liveLag)
	}
	switch {
	case e.commit != nil:
		return r.commit(ctx, e.commit)
	case e.sync != nil:
		return r.sync(ctx, e.sync)
	case e.identity != nil:
		return r.flushThen(ctx, func() error { return i.identityChanged(ctx, e.identity.Did, r.source) })
	case e.account != nil:
		return r.flushThen(ctx, func() error {
			return i.accountChanged(ctx, e.account.Did, e.account.Active, status(e.account.Status), r.source)
		})
	}
	return nil
}

// restart begins with what comes from now on: what may have been missed is listed and read anew.
func (r *relayReader) restart(ctx context.Context) error {
	r.waiting, r.last, r.saved = nil, 0, 0
	sink := r.ingester.config.Sink
	return errors.Join(sink.Write(ctx, nil, r.source, 0), sink.Write(ctx, nil, listed(r.source), 0), r.ingester.doubtSource(ctx, r.source))
}

func (r *relayReader) flushThen(ctx context.Context, do func() error) error {
	if len(r.waiting) > 0 {
		if err := r.flush(ctx); err != nil {
			return err
		}
	}
	return do()
}

func status(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// concerns tells whether a commit has a record that is kept.
func (i *Ingester) concerns(m *comatproto.SyncSubscribeRepos_Commit) bool {
	for _, op := range m.Ops {
		if op == nil {
			continue
		}
		if collection, _, ok := strings.Cut(op.Path, "/"); ok && i.kept[collection] {
			return true
		}
	}
	return false
}

// commit checks a commit of a repo that is followed, or is to be now.
func (r *relayReader) commit(ctx context.Context, m *comatproto.SyncSubscribeRepos_Commit) error {
	i := r.ingester
	did, err := syntax.ParseDID(m.Repo)
	if err != nil {
		i.drop(dropMalformed, "source", r.source, "error", err)
		return nil
	}
	_, followed, err := i.config.Sink.Repo(ctx, did)
	if err != nil {
		return err
	}
	if !followed && !i.concerns(m) && !m.TooBig {
		return nil
	}
	i.metrics.events.WithLabelValues("commit").Inc()
	if m.TooBig || m.Rebase {
		if !followed {
			return nil
		}
		return r.flushThen(ctx, func() error { return i.doubt(ctx, did) })
	}
	commit, err := i.verifyCommit(ctx, m)
	if err != nil {
		i.drop(reason(err), "source", r.source, "did", did, "rev", m.Rev, "error", err)
		if followed { // something may have happened all the same
			return r.flushThen(ctx, func() error { return i.doubt(ctx, did) })
		}
		return nil
	}
	if !followed {
		if err := i.meet(ctx, did, r.source); err != nil {
			return err
		}
	}
	commit.Source = r.source
	r.waiting = append(r.waiting, commit)
	return nil
}

// sync: the repo stands elsewhere than its commits said.
func (r *relayReader) sync(ctx context.Context, m *comatproto.SyncSubscribeRepos_Sync) error {
	i := r.ingester
	did, err := syntax.ParseDID(m.Did)
	if err != nil {
		i.drop(dropMalformed, "source", r.source, "error", err)
		return nil
	}
	return r.flushThen(ctx, func() error {
		state, followed, err := i.config.Sink.Repo(ctx, did)
		if err != nil || !followed {
			return err
		}
		i.metrics.events.WithLabelValues("sync").Inc()
		_, commit, err := i.openSync(ctx, did, m.Blocks)
		if err != nil {
			i.drop(reason(err), "source", r.source, "did", did, "error", err)
			return nil
		}
		if state.Complete && state.Rev == commit.Rev {
			return nil
		}
		return i.doubt(ctx, did)
	})
}

// listed is the name under which it is kept whether the repos of a relay were listed.
func listed(base string) string { return "listed " + base }

const discoverAgain = time.Minute

// discoverOnce lists the repos of a relay unless that was done, and tries until it is.
func (i *Ingester) discoverOnce(ctx context.Context, base string) {
	for ctx.Err() == nil {
		done, err := i.config.Sink.Cursor(ctx, listed(base))
		if err == nil && done > 0 {
			return
		}
		if err == nil {
			err = i.Discover(ctx, base, nil)
		}
		if err == nil {
			err = i.config.Sink.Write(ctx, nil, listed(base), 1)
		}
		if err == nil || ctx.Err() != nil {
			return
		}
		i.log.Warn("the repos of a relay could not be listed", "source", base, "error", err)
		sleep(ctx, discoverAgain)
	}
}

// Discover lists the repos of a relay or PDS that have records that are kept, and takes them up. progress, where
// not nil, is called with how many there are so far.
func (i *Ingester) Discover(ctx context.Context, base string, progress func(int)) error {
	found := 0
	take := func(did syntax.DID) error {
		found++
		if progress != nil {
			progress(found)
		}
		return i.meet(ctx, did, base)
	}
	seen := map[syntax.DID]bool{}
	for _, collection := range i.config.Collections {
		err := i.listDIDs(ctx, base, "com.atproto.sync.listReposByCollection", url.Values{"collection": {collection}}, func(did syntax.DID) error {
			if seen[did] {
				return nil
			}
			seen[did] = true
			return take(did)
		})
		if unsupported(err) { // a PDS, or an older relay
			return i.listDIDs(ctx, base, "com.atproto.sync.listRepos", nil, func(did syntax.DID) error {
				if !i.hasCollections(ctx, did) {
					return nil
				}
				return take(did)
			})
		}
		if err != nil {
			return err
		}
	}
	return nil
}

const (
	listPageSize  = 1000
	listPagesMost = 10_000
)

// listDIDs reads all pages of a list of repos. Errors: visit's; *xrpc.UpstreamError, of a list without end too.
func (i *Ingester) listDIDs(ctx context.Context, base, nsid string, query url.Values, visit func(syntax.DID) error) error {
	type page struct {
		Cursor string `json:"cursor"`
		Repos  []struct {
			DID string `json:"did"`
		} `json:"repos"`
	}
	q := url.Values{"limit": {strconv.Itoa(listPageSize)}}
	maps.Copy(q, query)
	return xrpc.Pages(ctx, i.trusted, upstreamCall(base, nsid, q), listPagesMost, func(p page) (int, string, error) {
		for _, r := range p.Repos {
			did, err := syntax.ParseDID(r.DID)
			if err != nil {
				continue
			}
			if err := visit(did); err != nil {
				return 0, "", err
			}
		}
		return len(p.Repos), p.Cursor, nil
	})
}

// unsupported tells whether a server does not have a method.
func unsupported(err error) bool {
	e, ok := upstreamError(err)
	return ok && (e.Status == http.StatusNotImplemented || e.Status == http.StatusNotFound || e.Status == http.StatusMethodNotAllowed ||
		e.Status == http.StatusBadRequest) // the reference PDS says InvalidRequest
}
