package ingest_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/bluesky-social/indigo/atproto/syntax"
	"github.com/coder/websocket"

	"atcr.io/api/atcr"
	"atcr.io/internal/devnet"
	"atcr.io/internal/ingest"
)

// Would catch changes that are not seen, or not after a time away; and a stream that calls itself up to date and
// is not.
func TestFollowPDS(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.tag(w.alice, "old", "one") // before anybody listens: read whole
	relay := func(c *ingest.Config) { c.Relays = []string{w.PDSURL} }
	i, stop := w.run(relay)
	w.eventually("what was there is read", w.isTagged(w.alice, "old", "one"))
	w.eventually("alice's repo is complete", w.complete(w.alice))
	w.eventually("the stream is live", func() bool { return i.Live(w.PDSURL) })
	w.tag(w.alice, "new", "one")
	w.eventually("a new tag", w.isTagged(w.alice, "new", "one"))
	w.tag(w.alice, "new", "two")
	w.eventually("a moved tag", w.isTagged(w.alice, "new", "two"))
	w.delete(w.alice, atcr.TagNSID, "app:old")
	w.eventually("a deleted tag", w.isTagged(w.alice, "old", ""))
	w.put(w.alice, "com.example.other", "x", map[string]any{"$type": "com.example.other"}) // of no concern, but a step
	w.tag(w.alice, "new", "three")
	w.eventually("a tag behind another's record", w.isTagged(w.alice, "new", "three"))
	w.eventually("the reading was counted", func() bool { return w.metric("repos_total", "done") > 0 })
	if !w.complete(w.alice)() || w.metric("repos_total", "done") != 1 {
		t.Errorf("a gap was seen where there is none: %v repos were read", w.metric("repos_total", "done"))
	}
	w.put(w.bob, "com.example.other", "x", map[string]any{"$type": "com.example.other"})
	w.tag(w.bob, "1", "bob's") // somebody new
	w.eventually("bob", w.isTagged(w.bob, "1", "bob's"))
	w.eventually("bob's repo is complete", w.complete(w.bob))
	stop()
	if i.Live(w.PDSURL) {
		t.Error("a stream that ended is live")
	}
	w.tag(w.alice, "new", "four")
	w.delete(w.bob, atcr.TagNSID, "app:1")
	_, _ = w.run(relay)
	w.eventually("what was missed", w.isTagged(w.alice, "new", "four"))
	w.eventually("what was deleted meanwhile", w.isTagged(w.bob, "1", ""))
	if n := w.metric("repos_total", ""); n != 0 {
		t.Errorf("%v repos were read anew after a time away", n)
	}
	if n := w.metric("dropped_total", ""); n != 0 {
		t.Errorf("%v honest events were left out", n)
	}
}

// Would catch an index made anew that differs from one that followed.
func TestReadingAgreesWithFollowing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	i, stop := w.run(func(c *ingest.Config) { c.Relays = []string{w.PDSURL} })
	w.eventually("the stream is live", func() bool { return i.Live(w.PDSURL) })
	for n := range 40 {
		a := w.Accounts[n%2]
		d := digest(fmt.Sprint("image ", n))
		w.put(a, atcr.ManifestNSID, atcr.ManifestRkey(d), atcr.Manifest{
			Repository: fmt.Sprint("app", n%3), Digest: d, MediaType: "application/vnd.oci.image.manifest.v1+json", CreatedAt: "2026-01-01T00:00:00Z",
			Layers: []atcr.ManifestBlobReference{{Digest: d, Size: 1, MediaType: "application/x"}},
		})
		w.tag(a, fmt.Sprint("v", n%5), fmt.Sprint("image ", n))
		if n%4 == 3 {
			w.delete(a, atcr.ManifestNSID, atcr.ManifestRkey(digest(fmt.Sprint("image ", n-2))))
		}
		if n%7 == 6 {
			w.put(a, atcr.TagNSID, "app:bad", map[string]any{"$type": atcr.TagNSID, "repository": n})
		}
	}
	w.tag(w.alice, "last", "last")
	w.tag(w.bob, "last", "last")
	w.eventually("all is there", func() bool { return w.isTagged(w.alice, "last", "last")() && w.isTagged(w.bob, "last", "last")() })
	w.eventually("both are complete", func() bool { return w.complete(w.alice)() && w.complete(w.bob)() })
	stop()
	followed := w.sink
	w.sink = w.newSink()
	read := w.newIngester(func(*ingest.Config) {})
	if err := read.Discover(t.Context(), w.PDSURL, nil); err != nil {
		t.Fatal(err)
	}
	for _, a := range w.Accounts {
		if err := read.ReadRepo(t.Context(), ingest.Repo{DID: syntax.DID(a.DID)}); err != nil {
			t.Fatal(err)
		}
	}
	a, b := dump(t, followed.db), dump(t, w.sink.db)
	if a != b || strings.Count(a, "\n") < 60 {
		t.Errorf("followed:\n%s\nread whole:\n%s", a, b)
	}
}

// Would catch a frame that does harm: cut off, out of order, again, or forged; and one that keeps those behind it
// from being read.
func TestHostileFrames(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.tag(w.alice, "1", "one")
	w.tag(w.alice, "1", "two")
	w.tag(w.bob, "1", "bob's")
	frames := w.frames(9) // three a repo, and three commits
	first, second, bobs := frames[6], frames[7], frames[8]
	f := newFirehose(t, websocket.MessageBinary)
	_, _ = w.run(func(c *ingest.Config) { c.Relays = []string{f.URL} })
	f.send(frames[:6]...)
	f.send(nil, []byte("x"), []byte{0xa2}, first[:len(first)/2], first[:len(first)-1], []byte(strings.Repeat("\xff", 1000)))
	f.send(
		swap(t, first, digest("one")[:40], digest("two")[:40]), // a record's bytes
		swap(t, first, "app:1", "app:2"),                       // a path
		swap(t, first, w.alice.DID, w.bob.DID),                 // whose
	)
	// One bit each, all over the frame: the signature, the tree, the operations.
	for at := len(first) / 8; at < len(first); at += len(first) / 24 {
		forged := append([]byte(nil), first...)
		forged[at] ^= 0x04
		f.send(forged)
	}
	w.eventually("forgeries were counted", func() bool { return w.metric("dropped_total", "") >= 20 })
	// Events have a seq: those above may have taken that of the true ones, or one to come. What counts is that
	// no index says what nobody signed, and that what was missed is read.
	for name, want := range map[string]string{"2": ""} {
		if got := w.tagged(w.alice, name); got != want {
			t.Errorf("tag %s names %q", name, got)
		}
	}
	if got := w.tagged(w.bob, "1"); got != "" && got != digest("bob's") {
		t.Errorf("bob's tag names %q", got)
	}

	g := newFirehose(t, websocket.MessageBinary)
	w.sink = w.newSink()
	_, _ = w.run(func(c *ingest.Config) { c.Relays = []string{g.URL} })
	g.send(first, first, first)
	w.eventually("an event that comes again is left out", func() bool { return w.metric("dropped_total", "order") == 2 })
	g.send(bobs, second) // in the wrong order
	w.eventually("bob's", w.isTagged(w.bob, "1", "bob's"))
	w.eventually("an event out of order is left out", func() bool { return w.metric("dropped_total", "order") == 3 })
	w.eventually("what was left out is read", w.isTagged(w.alice, "1", "two"))
}

// Would catch a relay that hides a change: a commit that it holds back, and one whose operations it leaves out.
func TestHiddenChanges(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.tag(w.alice, "1", "one")
	f := newFirehose(t, websocket.MessageBinary, w.frames(7)...)
	_, _ = w.run(func(c *ingest.Config) { c.Relays = []string{f.URL} })
	w.eventually("alice", w.complete(w.alice))
	w.eventually("that was counted", func() bool { return w.metric("repos_total", "done") > 0 }) // a moment after it is seen
	read := w.metric("repos_total", "done")
	w.tag(w.alice, "1", "two")
	w.tag(w.alice, "2", "one")
	f.send(w.frames(9)[8]) // without the one before
	w.eventually("the hidden change", w.isTagged(w.alice, "1", "two"))
	w.eventually("that was counted too", func() bool { return w.metric("repos_total", "done") > read })
	if n := w.metric("repos_total", "done"); n != read+1 {
		t.Errorf("%v repos were read", n-read)
	}
}

// Would catch a cursor that is too old, or too new, and hides what happened.
func TestCursors(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.tag(w.alice, "1", "one")
	relay := func(c *ingest.Config) { c.Relays = []string{w.PDSURL} }
	_, stop := w.run(relay)
	w.eventually("alice", w.complete(w.alice))
	stop()
	w.tag(w.alice, "1", "two")
	if err := w.sink.Write(t.Context(), nil, w.PDSURL, 1<<55); err != nil { // from a server that was set back
		t.Fatal(err)
	}
	_, stop = w.run(relay)
	w.eventually("what was missed while the server was set back", w.isTagged(w.alice, "1", "two"))
	stop()
	w.tag(w.alice, "1", "three")
	info := append([]byte{0xa2, 0x61, 't', 0x65, '#', 'i', 'n', 'f', 'o', 0x62, 'o', 'p', 0x01, 0xa1, 0x64, 'n', 'a', 'm', 'e', 0x6e}, "OutdatedCursor"...)
	f := newFirehose(t, websocket.MessageBinary, info)
	if err := w.sink.Meet(t.Context(), syntax.DID(w.alice.DID), "", w.PDSURL, f.URL); err != nil {
		t.Fatal(err)
	}
	if err := w.sink.Write(t.Context(), nil, f.URL, 7); err != nil {
		t.Fatal(err)
	}
	_, _ = w.run(func(c *ingest.Config) { c.Relays = []string{f.URL} })
	w.eventually("what an outdated cursor missed", w.isTagged(w.alice, "1", "three"))
	if q := f.connections(); q[0].Get("cursor") != "7" {
		t.Errorf("asked with %v", q)
	}
}

// Would catch a PDS that says of another's repo, of no repo, or without an end, and is believed or waited for.
func TestHostilePDS(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.tag(w.alice, "1", "one")
	w.tag(w.bob, "1", "bob's")
	i := w.newIngester(func(*ingest.Config) {})
	alice := ingest.Repo{DID: syntax.DID(w.alice.DID)}
	for what, fault := range map[string]devnet.Fault{
		"another's repo": func(rw http.ResponseWriter, r *http.Request, next http.Handler) {
			r.URL.RawQuery = "did=" + w.bob.DID
			next.ServeHTTP(rw, r)
		},
		"endless": devnet.Endless(0),
		"garbage": devnet.Garbage(),
		"down":    devnet.Down(),
		"cut off": func(rw http.ResponseWriter, r *http.Request, next http.Handler) {
			next.ServeHTTP(&cutting{rw, 200}, r)
		},
	} {
		injected := w.PDS.Inject(devnet.Method("com.atproto.sync.getRepo"), fault)
		if what == "endless" { // then each record is asked for, from a list that does not end
			lists := w.PDS.Inject(devnet.Method("com.atproto.repo.listRecords"), func(rw http.ResponseWriter, r *http.Request, _ http.Handler) {
				_ = json.NewEncoder(rw).Encode(map[string]any{"cursor": r.URL.Query().Get("cursor") + "x", "records": []map[string]any{{"uri": "at://x/y/.."}}})
			})
			defer lists.Remove()
		}
		err := i.ReadRepo(t.Context(), alice)
		injected.Remove()
		if err == nil || w.tagged(w.alice, "1") != "" || injected.Fired() == 0 {
			t.Errorf("%s: %v, tag %q", what, err, w.tagged(w.alice, "1"))
		}
	}
	same := w.PDS.Inject(devnet.Method("com.atproto.sync.listRepos"), func(rw http.ResponseWriter, _ *http.Request, _ http.Handler) {
		_ = json.NewEncoder(rw).Encode(map[string]any{"cursor": "same", "repos": []map[string]any{{"did": w.bob.DID}}})
	})
	if err := i.Discover(t.Context(), w.PDSURL, nil); err == nil || same.Fired() != 2 {
		t.Errorf("a list of repos that repeats its cursor: %v after %d pages", err, same.Fired())
	}
	same.Remove()
	endless := w.PDS.Inject(devnet.Method("com.atproto.sync.listRepos"), func(rw http.ResponseWriter, r *http.Request, _ http.Handler) {
		_ = json.NewEncoder(rw).Encode(map[string]any{"cursor": r.URL.Query().Get("cursor") + "x", "repos": []map[string]any{}})
	})
	if err := i.Discover(t.Context(), w.PDSURL, nil); err != nil || endless.Fired() != 1 {
		t.Errorf("a list without repos: %v after %d pages", err, endless.Fired())
	}
	endless.Remove()
	if err := i.ReadRepo(t.Context(), alice); err != nil || !w.isTagged(w.alice, "1", "one")() {
		t.Errorf("the honest PDS: %v", err)
	}
}

// Would catch a change that stays unknown: one that could not be checked, and came while its repo was being read because
// of an earlier one.
func TestDoubtedWhileRead(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.tag(w.alice, "1", "one")
	i := w.newIngester(func(*ingest.Config) {})
	alice := ingest.Repo{DID: syntax.DID(w.alice.DID)}
	if err := i.ReadRepo(t.Context(), alice); err != nil || !w.complete(w.alice)() {
		t.Fatal(err)
	}
	for what, method := range map[string]string{"found unchanged": "com.atproto.sync.getLatestCommit", "read whole": "com.atproto.sync.getRepo"} {
		known, _, err := w.sink.Repo(t.Context(), alice.DID)
		if err != nil {
			t.Fatal(err)
		}
		if what == "read whole" {
			known.Data = ""
		}
		meanwhile := w.PDS.Inject(devnet.Method(method), func(rw http.ResponseWriter, r *http.Request, next http.Handler) {
			next.ServeHTTP(rw, r)
			w.tag(w.alice, "1", what)
			if err := w.sink.Mark(r.Context(), alice.DID, ingest.Mark{Doubt: true}); err != nil {
				t.Error(err)
			}
		})
		err = i.ReadRepo(t.Context(), known)
		meanwhile.Remove()
		if err != nil || meanwhile.Fired() != 1 {
			t.Fatal(err, meanwhile.Fired())
		}
		if w.complete(w.alice)() {
			t.Errorf("%s: it counts as known, with another tag than there is", what)
		}
		if err := i.ReadRepo(t.Context(), alice); err != nil || !w.isTagged(w.alice, "1", what)() || !w.complete(w.alice)() {
			t.Errorf("%s, read again: %v", what, err)
		}
	}
}

// cutting cuts an answer off.
type cutting struct {
	http.ResponseWriter
	left int
}

func (c *cutting) Write(b []byte) (int, error) {
	if len(b) > c.left {
		b = b[:c.left]
	}
	c.left -= len(b)
	if len(b) == 0 {
		panic(http.ErrAbortHandler)
	}
	return c.ResponseWriter.Write(b)
}

// readWorld is a world in which alice has so many tags, v0 and on, and an ingester has read them.
func readWorld(t *testing.T, tags int) (*world, *ingest.Ingester, ingest.Repo) {
	t.Helper()
	w := newWorld(t)
	for n := range tags {
		w.tag(w.alice, fmt.Sprint("v", n), "one")
	}
	i := w.newIngester(func(*ingest.Config) {})
	alice := ingest.Repo{DID: syntax.DID(w.alice.DID)}
	if err := i.ReadRepo(t.Context(), alice); err != nil {
		t.Fatal(err)
	}
	return w, i, alice
}

// Would catch a large repo that cannot be read, or of which what is gone stays.
func TestLargeRepo(t *testing.T) {
	t.Parallel()
	w, i, alice := readWorld(t, 5)
	w.delete(w.alice, atcr.TagNSID, "app:v0")
	w.tag(w.alice, "v1", "two")
	large := w.PDS.Inject(devnet.Method("com.atproto.sync.getRepo"), devnet.Endless(20<<20))
	if err := i.ReadRepo(t.Context(), alice); err != nil || large.Fired() != 1 {
		t.Fatal(err)
	}
	if !w.isTagged(w.alice, "v0", "")() || !w.isTagged(w.alice, "v1", "two")() || !w.isTagged(w.alice, "v4", "one")() || !w.complete(w.alice)() {
		t.Errorf("%s", dump(t, w.sink.db))
	}
}

// Would catch records that are removed because the list of a large repo was cut off, by cursors that repeat or go in a
// circle.
func TestLargeRepoInACircle(t *testing.T) {
	t.Parallel()
	w, i, alice := readWorld(t, 3)
	w.PDS.Inject(devnet.Method("com.atproto.sync.getRepo"), devnet.Endless(20<<20))
	for what, circle := range map[string]map[string]string{"repeats": {"": "a", "a": "a"}, "goes round": {"": "a", "a": "b", "b": "a"}} {
		lists := w.PDS.Inject(devnet.Method("com.atproto.repo.listRecords"), func(rw http.ResponseWriter, r *http.Request, _ http.Handler) {
			_ = json.NewEncoder(rw).Encode(map[string]any{
				"cursor": circle[r.URL.Query().Get("cursor")], "records": []map[string]any{{"uri": "at://" + w.alice.DID + "/" + atcr.TagNSID + "/app:v0"}},
			})
		})
		err := i.ReadRepo(t.Context(), alice)
		lists.Remove()
		if err == nil || lists.Fired() != len(circle) || !w.isTagged(w.alice, "v2", "one")() {
			t.Errorf("%s: %v after %d pages; v2 is there: %v", what, err, lists.Fired(), w.isTagged(w.alice, "v2", "one")())
		}
	}
}

// Would catch an account that is gone and still shown, and one that a relay alone calls gone.
func TestAccounts(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.tag(w.alice, "1", "one")
	w.tag(w.bob, "1", "bob's")
	f := newFirehose(t, websocket.MessageBinary, w.frames(8)...)
	_, _ = w.run(func(c *ingest.Config) { c.Relays = []string{f.URL} })
	w.eventually("both", func() bool { return w.complete(w.alice)() && w.complete(w.bob)() })
	f.send(accountFrame(1<<54, w.alice.DID, false, "deleted"))
	w.eventually("the event was looked at", func() bool { return w.metric("events_total", "account") == 1 })
	f.send(accountFrame(1<<54+1, "did:plc:nobody", false, "deleted"), accountFrame(1<<54+2, "x", false, "deleted"))
	w.eventually("no DID", func() bool { return w.metric("dropped_total", "malformed") == 1 })
	if !w.isTagged(w.alice, "1", "one")() {
		t.Error("a relay alone removed an account")
	}
	gone := w.PDS.Inject(func(r *http.Request) bool {
		return strings.Contains(r.URL.RawQuery, "bob") || strings.Contains(r.URL.RawQuery, w.bob.DID) || strings.Contains(r.URL.RawQuery, strings.ReplaceAll(w.bob.DID, ":", "%3A"))
	},
		devnet.Refuse(400, "RepoNotFound", "Could not find repo"))
	f.send(accountFrame(1<<54+3, w.bob.DID, false, "deleted"))
	w.eventually("bob's records are gone", w.isTagged(w.bob, "1", ""))
	if gone.Fired() == 0 {
		t.Error("nobody asked the PDS")
	}
	r, _, err := w.sink.Index.Repo(context.Background(), syntax.DID(w.bob.DID))
	if err != nil || r.Status != "deleted" {
		t.Errorf("%+v, %v", r, err)
	}
}

func accountFrame(seq int64, did string, active bool, status string) []byte {
	text := func(s string) []byte {
		if len(s) < 24 {
			return append([]byte{0x60 | byte(len(s))}, s...)
		}
		return append([]byte{0x78, byte(len(s))}, s...)
	}
	out := append([]byte{0xa2, 0x61, 't', 0x68}, "#account"...)
	out = append(out, 0x62, 'o', 'p', 0x01, 0xa5)
	out = append(append(out, text("did")...), text(did)...)
	out = append(out, text("seq")...)
	out = append(out, 0x1b, byte(seq>>56), byte(seq>>48), byte(seq>>40), byte(seq>>32), byte(seq>>24), byte(seq>>16), byte(seq>>8), byte(seq))
	out = append(append(out, text("time")...), text("2026-11-25T00:00:00Z")...)
	out = append(out, text("active")...)
	if active {
		out = append(out, 0xf5)
	} else {
		out = append(out, 0xf4)
	}
	return append(append(out, text("status")...), text(status)...)
}
