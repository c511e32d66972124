package ingest_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"
	"github.com/coder/websocket"
	"github.com/klauspost/compress/zstd"

	"atcr.io/api/atcr"
	"atcr.io/internal/devnet"
	"atcr.io/internal/ingest"
	"atcr.io/internal/sqldb"
)

// dump is what the index says, in lines.
func dump(t *testing.T, db *sqldb.DB) string {
	t.Helper()
	var b strings.Builder
	for _, q := range []string{
		`SELECT did, rkey, cid, repository, digest, created_at FROM index_manifest ORDER BY did, rkey`,
		`SELECT did, rkey, digest, repository, position, size FROM index_blob ORDER BY did, rkey, position`,
		`SELECT did, rkey, cid, repository, tag, digest FROM index_tag ORDER BY did, rkey`,
		`SELECT did, repository, pushed_at, words, '', '' FROM index_repository ORDER BY did, repository`,
		`SELECT word, did, repository, '', '', '' FROM index_word ORDER BY word, did, repository`,
		`SELECT did, rev, data, complete, handle, pds FROM index_repo ORDER BY did`,
	} {
		rows, err := db.Reader().QueryContext(context.Background(), q)
		if err != nil {
			t.Fatal(err)
		}
		for rows.Next() {
			var v [6]any
			if err := rows.Scan(&v[0], &v[1], &v[2], &v[3], &v[4], &v[5]); err != nil {
				t.Fatal(err)
			}
			_, _ = fmt.Fprintln(&b, v[:]...)
		}
		if err := rows.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return b.String()
}

// said is a message of Jetstream.
func said(did, operation, collection, rkey, cid string, at time.Time) []byte {
	raw, err := json.Marshal(map[string]any{
		"did": did, "time_us": at.UnixMicro(), "kind": "commit",
		"commit": map[string]any{
			"rev": "3aaaaaaaaaaaa", "operation": operation, "collection": collection, "rkey": rkey, "cid": cid,
			"record": map[string]any{"$type": collection, "repository": "app", "tag": "1", "manifestDigest": digest("forged"), "createdAt": "2026-01-01T00:00:00Z"},
		},
	})
	if err != nil {
		panic(err)
	}
	return raw
}

// Would catch a Jetstream that is believed: one that says that a tag was moved, made, or deleted, of people who
// did nothing; and hints that are not followed.
func TestJetstream(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.tag(w.alice, "1", "one")
	f := newFirehose(t, websocket.MessageText)
	i, stop := w.run(func(c *ingest.Config) { c.Jetstreams = []string{f.URL} })
	now := time.Now()
	f.send(said(w.alice.DID, "create", atcr.TagNSID, "app:1", atcr.ContentCID(digest("x")), now))
	w.eventually("alice's repo is taken up, and read", w.isTagged(w.alice, "1", "one"))
	w.eventually("it is live", func() bool { return i.Live(ingest.JetstreamSource) })
	w.eventually("it is complete", w.complete(w.alice))
	forged := atcr.ContentCID(digest("forged"))
	f.send(
		said(w.alice.DID, "update", atcr.TagNSID, "app:1", forged, now),
		said(w.alice.DID, "delete", atcr.TagNSID, "app:1", "", now),
		said(w.alice.DID, "create", atcr.TagNSID, "app:2", forged, now),
		said(w.bob.DID, "create", atcr.TagNSID, "app:1", forged, now),
		said("did:plc:nobodynobodynobodynobo", "create", atcr.TagNSID, "app:1", forged, now),
		said("nobody", "create", atcr.TagNSID, "app:1", forged, now),
		said(w.alice.DID, "create", atcr.TagNSID, "no key/", forged, now),
		[]byte("{"), []byte("null"), []byte(`{"did":7}`), nil,
	)
	w.eventually("the lies were looked at", func() bool {
		return w.metric("events_total", "commit") == 6 && w.metric("dropped_total", "malformed") >= 6
	})
	w.tag(w.alice, "3", "three")
	f.send(said(w.alice.DID, "create", atcr.TagNSID, "app:3", "", now))
	w.eventually("what is so is there", w.isTagged(w.alice, "3", "three"))
	if !w.isTagged(w.alice, "1", "one")() || w.tagged(w.alice, "2") != "" || w.tagged(w.bob, "1") != "" {
		t.Errorf("a lie was believed:\n%s", dump(t, w.sink.db))
	}
	if _, followed, err := w.sink.Repo(t.Context(), syntax.DID(w.bob.DID)); err != nil || followed {
		t.Errorf("bob has no images, and is followed: %v", err)
	}
	w.tag(w.alice, "1", "two")
	w.delete(w.alice, atcr.TagNSID, "app:3")
	f.send(said(w.alice.DID, "update", atcr.TagNSID, "app:1", forged, now), said(w.alice.DID, "delete", atcr.TagNSID, "app:3", "", now))
	w.eventually("a moved tag", w.isTagged(w.alice, "1", "two"))
	w.eventually("a deleted tag", w.isTagged(w.alice, "3", ""))
	// A time to come would have us miss all until then.
	f.send(said(w.alice.DID, "update", atcr.TagNSID, "app:1", "", now.Add(1000*time.Hour)))
	w.eventually("the cursor is kept", func() bool {
		cursor, err := w.sink.Cursor(t.Context(), ingest.JetstreamSource)
		return err == nil && cursor > now.UnixMicro() && cursor <= time.Now().UnixMicro()
	})
	stop()
}

// Would catch a PDS that does not answer, and has a change taken for none.
func TestJetstreamUnconfirmed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.tag(w.alice, "1", "one")
	f := newFirehose(t, websocket.MessageText, said(w.alice.DID, "create", atcr.TagNSID, "app:1", "", time.Now()))
	_, _ = w.run(func(c *ingest.Config) { c.Jetstreams = []string{f.URL} })
	w.eventually("alice", w.complete(w.alice))
	w.tag(w.alice, "1", "two")
	down := w.PDS.Inject(func(r *http.Request) bool { return strings.HasPrefix(r.URL.Path, "/xrpc/com.atproto.sync.") }, devnet.Down())
	f.send(said(w.alice.DID, "update", atcr.TagNSID, "app:1", "x", time.Now()))
	w.eventually("the repo is no longer believed", func() bool { return !w.complete(w.alice)() })
	down.Remove()
	if !w.isTagged(w.alice, "1", "one")() {
		t.Error("a change that nobody proved was made")
	}
	w.write(w.alice, "putRecord", map[string]any{"collection": "com.example.x", "rkey": "x", "record": map[string]any{"$type": "com.example.x"}})
	if err := w.sink.Doubt(t.Context(), syntax.DID(w.alice.DID), false); err != nil { // as the time that is waited would
		t.Fatal(err)
	}
	w.eventually("it is read once the PDS is there again", w.isTagged(w.alice, "1", "two"))
}

// Would catch a second server that is never asked, a cursor that is not passed on, and messages that cannot be
// unpacked.
func TestJetstreamServers(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.tag(w.alice, "1", "one")
	dictionary := testDictionary(t)
	encoder, err := zstd.NewWriter(nil, zstd.WithEncoderDict(dictionary))
	if err != nil {
		t.Fatal(err)
	}
	gone := newFirehose(t, websocket.MessageBinary)
	gone.Close()
	at := time.Now().Add(-time.Second)
	f := newFirehose(t, websocket.MessageBinary, encoder.EncodeAll(said(w.alice.DID, "create", atcr.TagNSID, "app:1", "", at), nil), []byte("no zstd"))
	if err := w.sink.Write(t.Context(), nil, ingest.JetstreamSource, at.UnixMicro()); err != nil {
		t.Fatal(err)
	}
	_, _ = w.run(func(c *ingest.Config) { c.Jetstreams, c.Dictionary = []string{gone.URL, f.URL}, dictionary })
	w.eventually("the second server", w.isTagged(w.alice, "1", "one"))
	w.eventually("what cannot be unpacked is left out", func() bool { return w.metric("dropped_total", "malformed") == 1 })
	q := f.connections()[0]
	if cursor, err := strconv.ParseInt(q.Get("cursor"), 10, 64); err != nil || cursor >= at.UnixMicro() || cursor < at.Add(-time.Minute).UnixMicro() || q.Get("compress") != "true" || q.Get("wantedCollections") != "io.atcr.*" {
		t.Errorf("asked with %v", q)
	}
	bomb := encoder.EncodeAll(bytes.Repeat([]byte("a"), 64<<20), nil)
	f.send(bomb, encoder.EncodeAll(said(w.alice.DID, "update", atcr.TagNSID, "app:1", "x", time.Now()), nil))
	w.eventually("a bomb is left out", func() bool { return w.metric("dropped_total", "malformed") == 2 })
	w.eventually("what is behind it is read", func() bool { return w.metric("events_total", "commit") == 2 })
}

func testDictionary(t *testing.T) []byte {
	t.Helper()
	var contents [][]byte
	for n := range 200 {
		contents = append(contents, said(fmt.Sprint("did:plc:", digest(fmt.Sprint(n))[7:31]), "create", atcr.TagNSID, fmt.Sprint("app:", n), atcr.ContentCID(digest(fmt.Sprint(n))), time.UnixMicro(int64(n)*1_000_003)))
	}
	history := bytes.Join(contents[:8], nil)
	dictionary, err := zstd.BuildDict(zstd.BuildDictOptions{ID: 7, Contents: contents, History: history, Offsets: [3]int{1, 4, 8}})
	if err != nil {
		t.Fatal(err)
	}
	return dictionary
}

// Would catch a PDS that proves what another's repo has, and is believed of its own.
func TestJetstreamProofOfAnother(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.tag(w.alice, "1", "one")
	w.tag(w.bob, "1", "bob's")
	f := newFirehose(t, websocket.MessageText, said(w.alice.DID, "create", atcr.TagNSID, "app:1", "", time.Now()))
	_, _ = w.run(func(c *ingest.Config) { c.Jetstreams = []string{f.URL} })
	w.eventually("alice", w.complete(w.alice))
	another := w.PDS.Inject(devnet.Method("com.atproto.sync.getRecord"), func(rw http.ResponseWriter, r *http.Request, next http.Handler) {
		q := r.URL.Query()
		q.Set("did", w.bob.DID)
		r.URL.RawQuery = q.Encode()
		next.ServeHTTP(rw, r)
	})
	f.send(said(w.alice.DID, "update", atcr.TagNSID, "app:1", "x", time.Now()))
	w.eventually("the proof was looked at, and refused", func() bool { return w.metric("dropped_total", "hint") == 1 })
	w.eventually("alice's repo is read anew", w.complete(w.alice))
	if another.Fired() == 0 || !w.isTagged(w.alice, "1", "one")() {
		t.Errorf("asked %d times, the tag names %s", another.Fired(), w.tagged(w.alice, "1"))
	}
}

// blocked is a Sink that takes nothing for a while.
type blocked struct {
	ingest.Sink
	until chan struct{}
	begun chan struct{}
}

func (b *blocked) CID(ctx context.Context, did syntax.DID, collection, rkey string) (string, error) {
	if rkey == "app:stall" {
		close(b.begun)
		<-b.until
	}
	return b.Sink.CID(ctx, did, collection, rkey)
}

// Would catch a firehose that is believed to be up to date while what it brought is not followed.
func TestJetstreamStalled(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.tag(w.alice, "1", "one")
	f := newFirehose(t, websocket.MessageText, said(w.alice.DID, "create", atcr.TagNSID, "app:1", "", time.Now()))
	b := &blocked{Sink: w.sink, until: make(chan struct{}), begun: make(chan struct{})}
	i, _ := w.run(func(c *ingest.Config) { c.Jetstreams, c.Sink = []string{f.URL}, b })
	w.eventually("alice", w.complete(w.alice))
	w.eventually("it is live", func() bool { return i.Live(ingest.JetstreamSource) })
	f.send(said(w.alice.DID, "update", atcr.TagNSID, "app:stall", "x", time.Now()))
	<-b.begun
	w.eventually("it is no longer live", func() bool { return !i.Live(ingest.JetstreamSource) })
	close(b.until)
	w.eventually("it is live again", func() bool { return i.Live(ingest.JetstreamSource) })
}

// Would catch a Jetstream that has an account hidden whose PDS is down.
func TestJetstreamHidesNobody(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.tag(w.alice, "1", "one")
	f := newFirehose(t, websocket.MessageText, said(w.alice.DID, "create", atcr.TagNSID, "app:1", "", time.Now()))
	_, _ = w.run(func(c *ingest.Config) { c.Jetstreams = []string{f.URL} })
	w.eventually("alice", w.complete(w.alice))
	w.PDS.Inject(func(r *http.Request) bool { return strings.HasPrefix(r.URL.Path, "/xrpc/com.atproto.sync.") }, devnet.Down())
	f.send(fmt.Appendf(nil, `{"did":%q,"time_us":%d,"kind":"account","account":{"active":false,"did":%q,"status":"takendown"}}`, w.alice.DID, time.Now().UnixMicro(), w.alice.DID))
	w.eventually("it is not believed to be complete", func() bool { return !w.complete(w.alice)() })
	if r, _, err := w.sink.Repo(t.Context(), syntax.DID(w.alice.DID)); err != nil || !r.Active {
		t.Errorf("%+v, %v", r, err)
	}
}
