package appview

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/api/atcr"
	"atcr.io/internal/devnet"
	"atcr.io/internal/index"
	"atcr.io/internal/oci"
)

// createAll makes records as their owner's own client would, by key.
func (n *network) createAll(a devnet.Account, collection string, records map[string]any) {
	n.t.Helper()
	var session struct{ AccessJwt string }
	n.post("com.atproto.server.createSession", "", map[string]string{"identifier": a.DID, "password": a.Password}, &session)
	var writes []any
	flush := func() {
		n.post(applyWritesNSID, session.AccessJwt, map[string]any{"repo": a.DID, "writes": writes}, nil)
		writes = nil
	}
	for rkey, record := range records {
		writes = append(writes, map[string]any{"$type": actionCreate, "collection": collection, "rkey": rkey, "value": record})
		if len(writes) == 200 {
			flush()
		}
	}
	if len(writes) > 0 {
		flush()
	}
}

// referrers are all that a registry lists for a digest, page by page.
func (u user) referrers(name string, d oci.Digest) (found map[oci.Digest]map[string]string, pages int) {
	u.t.Helper()
	found = map[oci.Digest]map[string]string{}
	next := "/v2/" + name + "/referrers/" + d.String()
	link := regexp.MustCompile(`^<(.*)>; rel="next"$`)
	for next != "" {
		got := u.must(200, u.do(http.MethodGet, next, nil))
		var page oci.Manifest
		if err := json.Unmarshal([]byte(got.body), &page); err != nil || len(got.body) > 4<<20 {
			u.t.Fatalf("%d bytes: %v", len(got.body), err)
		}
		for _, m := range page.Manifests {
			found[m.Digest] = m.Annotations
		}
		next = ""
		if m := link.FindStringSubmatch(got.header.Get("Link")); m != nil {
			next = m[1]
		}
		if pages++; pages > 100 {
			u.t.Fatal("the pages do not end")
		}
	}
	return found, pages
}

// Would catch referrers that are left out without a word where there are many, from the PDS or from the index, and a
// list whose size is nobody's bound.
func TestManyReferrers(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	alice := n.as(n.alice, "alice.test/app")
	image := newImage("subject")
	alice.push("alice.test/app", image, "1.0")
	planted := func(i, annotation int) (rkey string, record map[string]any) {
		d := oci.FromBytes(fmt.Append(nil, i))
		return d.Hex(), map[string]any{
			"$type": atcr.ManifestNSID, "repository": "app", "digest": d, "mediaType": oci.MediaTypeImageManifest, "schemaVersion": 2, "holdDid": n.public.did,
			"artifactType": "application/vnd.example", "createdAt": "2026-01-01T00:00:00Z", "subject": map[string]any{"mediaType": oci.MediaTypeImageManifest, "digest": image.digest, "size": 2},
			"manifestBlob": map[string]any{"$type": "blob", "mimeType": oci.MediaTypeImageManifest, "size": 300, "ref": map[string]any{"$link": cidOf(d)}},
			"annotations":  map[string]any{"org.example.note": strings.Repeat("x", annotation)},
		}
	}
	// serve has the PDS list count of them, as it would if alice had pushed them.
	serve := func(count, annotation int) *devnet.Injected {
		return n.PDS.Inject(devnet.Method("com.atproto.repo.listRecords"), func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
			from, _ := strconv.Atoi(r.URL.Query().Get("cursor")) // "" is 0
			limit, _ := strconv.Atoi(r.URL.Query().Get("limit"))
			page := map[string]any{}
			records := []any{}
			for i := from; i < min(from+limit, count); i++ {
				rkey, record := planted(i, annotation)
				records = append(records, map[string]any{"uri": "at://" + n.alice.DID + "/" + atcr.ManifestNSID + "/" + rkey, "cid": cidOf(image.digest), "value": record})
			}
			if page["records"] = records; from+limit < count {
				page["cursor"] = strconv.Itoa(from + limit)
			}
			_ = json.NewEncoder(w).Encode(page) // the client has gone: nobody to tell
		})
	}
	check := func(from string, many, annotation, least int) {
		t.Helper()
		found, pages := n.nobody().referrers("alice.test/app", image.digest)
		if len(found) != many || pages < least {
			t.Errorf("from the %s come %d referrers on %d pages", from, len(found), pages)
		}
		for d, annotations := range found {
			if len(annotations["org.example.note"]) != annotation {
				t.Fatalf("%s: %v", d, annotations)
			}
		}
	}
	listed := serve(4000, 1100)
	check("PDS", 4000, 1100, 2)
	listed.Remove()

	of := n.app.Load().registry.Manifests.(blockedManifests).Manifests.(*manifests).lists
	of.room = 1 << 20 // as it is for referrersBytes
	huge := serve(40, 30_000)
	n.forget()
	refused := n.nobody().do(http.MethodGet, "/v2/alice.test/app/referrers/"+image.digest.String(), nil)
	if refused.status != http.StatusUnprocessableEntity || !strings.Contains(refused.body, "16 MiB") {
		t.Errorf("%d %.200s", refused.status, refused.body)
	}
	huge.Remove()
	of.room = referrersBytes

	write := func(count, annotation int) {
		t.Helper()
		c := index.Commit{DID: syntax.DID(n.alice.DID)}
		for i := range count {
			rkey, record := planted(i, annotation)
			raw, err := json.Marshal(record)
			if err != nil {
				t.Fatal(err)
			}
			c.Changes = append(c.Changes, index.Change{Collection: atcr.ManifestNSID, Rkey: rkey, CID: cidOf(image.digest), Value: raw})
		}
		if err := n.app.Load().view.index.Write(t.Context(), []index.Commit{c}, index.Cursor{}); err != nil {
			t.Fatal(err)
		}
		n.forget()
	}
	n.readsFail() // from here on the index answers
	write(2000, 300)
	check("index", 2000, 300, 1)
	lists := &lists{view: n.app.Load().view, room: 1 << 20}
	if _, err := lists.indexedReferrers(t.Context(), repositoryKey{syntax.DID(n.alice.DID), "app"}); !errors.Is(err, index.ErrTooLong) {
		t.Errorf("of the index: %v", err)
	}
}

// Would catch a list of tags of the index that is cut without a word, and a repository with more of them that cannot be
// paged through.
func TestManyTags(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	n.as(n.alice, "alice.test/app").push("alice.test/app", newImage("many"), "1.0")
	const more = 1000
	n.app.Load().registry.Manifests.(blockedManifests).Manifests.(*manifests).lists.most = more // as it is for tagsIndexed
	err := n.app.Load().db.Write(t.Context(), func(tx *sql.Tx) error {
		_, err := tx.ExecContext(t.Context(), `WITH RECURSIVE c (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < ?)
			INSERT INTO index_tag (did, rkey, rev, cid, repository, tag, manifest_rkey, digest, changed_at) SELECT ?, 'app:' || n, '', '', 'app', 't' || n, '', '', 0 FROM c`, more, n.alice.DID)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	n.readsFail() // from here on the index answers
	n.forget()
	whole := n.nobody().do(http.MethodGet, "/v2/alice.test/app/tags/list", nil)
	if whole.status != http.StatusUnprocessableEntity || !strings.Contains(whole.body, "more than 1000 tags") {
		t.Errorf("%d %.200s", whole.status, whole.body)
	}
	found := map[string]bool{}
	link := regexp.MustCompile(`^<(.*)>; rel="next"$`)
	pages := 0
	for next := "/v2/alice.test/app/tags/list?n=400"; next != "" && pages < 10; pages++ {
		got := n.nobody().must(200, n.nobody().do(http.MethodGet, next, nil))
		var page struct{ Tags []string }
		if err := json.Unmarshal([]byte(got.body), &page); err != nil {
			t.Fatal(err)
		}
		for _, tag := range page.Tags {
			found[tag] = true
		}
		next = ""
		if m := link.FindStringSubmatch(got.header.Get("Link")); m != nil {
			next = m[1]
		}
	}
	if len(found) != more+1 || pages != 3 {
		t.Errorf("%d tags on %d pages", len(found), pages)
	}
}

// subjectOf pushes a manifest that refers to d.
func (u user) subjectOf(name string, d oci.Digest) oci.Digest {
	u.t.Helper()
	config := []byte("{}")
	u.upload(name, config)
	raw, err := json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": oci.MediaTypeImageManifest, "artifactType": "application/vnd.example",
		"config":  map[string]any{"mediaType": "application/vnd.oci.empty.v1+json", "digest": oci.FromBytes(config), "size": len(config)},
		"layers":  []any{},
		"subject": map[string]any{"mediaType": oci.MediaTypeImageManifest, "digest": d, "size": 2},
	})
	if err != nil {
		u.t.Fatal(err)
	}
	own := oci.FromBytes(raw)
	u.must(201, u.put(name, own.String(), raw))
	return own
}

// Would catch tags that are left pointing at a manifest that was deleted, because they were not on the first pages.
func TestDeleteManifestWithManyTags(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	alice := n.as(n.alice, "alice.test/app")
	image, kept := newImage("deleted"), newImage("kept")
	alice.push("alice.test/app", image, "1.0")
	alice.push("alice.test/app", kept, "zz-kept")
	tags := map[string]any{}
	for i := range 3500 {
		tag := "t" + strconv.Itoa(i)
		tags[atcr.TagRkey("app", tag)] = map[string]any{
			"$type": atcr.TagNSID, "repository": "app", "tag": tag, "createdAt": "2026-01-01T00:00:00Z",
			"manifest": "at://" + n.alice.DID + "/" + atcr.ManifestNSID + "/" + image.digest.Hex(), "manifestDigest": image.digest.String(),
		}
	}
	n.createAll(n.alice, atcr.TagNSID, tags)
	alice.must(202, alice.do(http.MethodDelete, "/v2/alice.test/app/manifests/"+image.digest.String(), nil))
	if left := n.records(n.alice, atcr.TagNSID); len(left) != 1 {
		t.Errorf("%d tags are left", len(left))
	}
	alice.pull("alice.test/app", "zz-kept", kept)
}

// Would catch lists of tags and of referrers that ignore no-cache.
func TestNoCacheOfLists(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	alice := n.as(n.alice, "alice.test/app")
	image := newImage("listed")
	alice.push("alice.test/app", image, "1.0")
	nobody := n.nobody()
	list := func(path string, header ...string) string {
		return nobody.must(200, nobody.do(http.MethodGet, "/v2/alice.test/app"+path, nil, header...)).body
	}
	tags, referrers := "/tags/list", "/referrers/"+image.digest.String()
	list(tags)
	list(referrers)
	n.putRecord(n.alice, atcr.TagNSID, atcr.TagRkey("app", "2.0"), map[string]any{
		"$type": atcr.TagNSID, "repository": "app", "tag": "2.0", "createdAt": "2026-01-01T00:00:00Z",
		"manifest": "at://" + n.alice.DID + "/" + atcr.ManifestNSID + "/" + image.digest.Hex(), "manifestDigest": image.digest.String(),
	})
	if got := list(tags, "Cache-Control", "no-cache"); !strings.Contains(got, "2.0") {
		t.Errorf("tags: %s", got)
	}
	other := n.another(n.public)
	own := other.as(other.alice, "alice.test/app").subjectOf("alice.test/app", image.digest)
	n.ahead.Add(int64(freshEvery)) // the first request of an account's in that time asks the PDS
	if got := list(referrers, "Cache-Control", "no-cache"); !strings.Contains(got, own.String()) {
		t.Errorf("referrers: %s", got)
	}
}

// Would catch lists that are kept without a bound of bytes, and a sum of them that drifts.
func TestCacheOfLists(t *testing.T) {
	t.Parallel()
	c := newCache(100, time.Minute, time.Second, time.Now, func(_ context.Context, key int) ([]byte, error) { return make([]byte, key), nil })
	c.weigh(1000, func(b []byte) int { return len(b) })
	for _, key := range []int{300, 400, 300, 900, 100, 2000, 50} {
		if _, err := c.get(t.Context(), key); err != nil {
			t.Fatal(err)
		}
		c.put(key, make([]byte, key))
		var sum int64
		for _, e := range c.kept.Values() {
			sum += int64(len(e.value))
		}
		if sum != c.held.Load() || sum > 1000 {
			t.Errorf("after %d: %d bytes are kept, and it says %d", key, sum, c.held.Load())
		}
	}
	c.forget(50)
	if c.held.Load() != 0 && c.kept.Len() == 0 {
		t.Errorf("nothing is kept, and it says %d", c.held.Load())
	}
}

// Would catch a PDS whose pages do not end, and that is asked for ever, or taken at its word as far as it came.
func TestEndlessPages(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	alice := n.as(n.alice, "alice.test/app")
	alice.push("alice.test/app", newImage("endless"), "1.0")
	n.anew()
	page := 0
	endless := n.PDS.Inject(devnet.Method("com.atproto.repo.listRecords"), func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
		page++
		uri := "at://" + n.alice.DID + "/" + atcr.TagNSID + "/app:" + strconv.Itoa(page)
		_, _ = fmt.Fprintf(w, `{"cursor":"%d","records":[{"uri":%q,"cid":"x","value":{"repository":"app","tag":"t%d"}}]}`, page, uri, page)
	})
	got := n.nobody().do(http.MethodGet, "/v2/alice.test/app/tags/list", nil)
	if got.status != http.StatusBadGateway || endless.Fired() != listPages {
		t.Errorf("after %d pages: %d %.200s", endless.Fired(), got.status, got.body)
	}
}

// Would catch a PDS whose cursors repeat or go in a circle, and whose list is taken for the whole: tags are missing in it,
// and a manifest that is deleted leaves tags behind.
func TestPagesInACircle(t *testing.T) {
	t.Parallel()
	for what, circle := range map[string][]string{"repeats": {"1", "1"}, "goes round": {"1", "2", "3", "1"}} {
		n := newNetwork(t)
		alice := n.as(n.alice, "alice.test/app")
		image := newImage("circle")
		alice.push("alice.test/app", image, "1.0", "2.0")
		n.anew()
		page := 0
		lists := n.PDS.Inject(devnet.Method("com.atproto.repo.listRecords"), func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
			_, _ = fmt.Fprintf(w, `{"cursor":%q,"records":[{"uri":"at://%s/%s/app:t%d","cid":"x","value":{"repository":"app","tag":"t%d"}}]}`,
				circle[page%len(circle)], n.alice.DID, atcr.TagNSID, page, page)
			page++
		})
		got := n.nobody().do(http.MethodGet, "/v2/alice.test/app/tags/list", nil)
		if got.status != http.StatusBadGateway || lists.Fired() != len(circle) {
			t.Errorf("%s: after %d pages: %d %.200s", what, lists.Fired(), got.status, got.body)
		}
		page = 0
		alice = n.as(n.alice, "alice.test/app")
		got = alice.do(http.MethodDelete, "/v2/alice.test/app/manifests/"+image.digest.String(), nil)
		lists.Remove()
		if records := n.records(n.alice, atcr.ManifestNSID); got.status != http.StatusBadGateway || records[image.digest.Hex()] == nil {
			t.Errorf("%s: a deletion: %d %.200s", what, got.status, got.body)
		}
		alice.must(202, alice.do(http.MethodDelete, "/v2/alice.test/app/manifests/"+image.digest.String(), nil))
	}
}

// waiting are the messages to holds of one person that were not delivered.
func (n *network) waiting(a devnet.Account) (count int) {
	n.t.Helper()
	if err := n.app.Load().db.Reader().QueryRowContext(n.t.Context(), `SELECT count(*) FROM outbox WHERE sender = ?`, a.DID).Scan(&count); err != nil {
		n.t.Fatal(err)
	}
	return count
}

// attempts is how often a message to a hold of one person that is not delivered was tried to be.
func (n *network) attempts(a devnet.Account) (most int) {
	n.t.Helper()
	if err := n.app.Load().db.Reader().QueryRowContext(n.t.Context(), `SELECT coalesce(max(attempts), 0) FROM outbox WHERE sender = ?`, a.DID).Scan(&most); err != nil {
		n.t.Fatal(err)
	}
	return most
}

// Would catch a deletion that a hold is never told of because its PDS took longer over it than the message is held
// back, also over a crash; one that holds up what comes behind it; and one that is waited for though it was never made.
func TestHoldIsToldOfSlowDeletions(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	alice := n.as(n.alice, "alice.test/app")
	told := func(what string, records int) {
		t.Helper()
		n.eventually(what, func() bool { return len(n.layerRecords(n.public)) == records })
	}
	looked := func() {
		t.Helper()
		n.forget() // the minute that the message is held back
		n.eventually("the message is looked at", func() bool { return n.attempts(n.alice) > 0 || n.waiting(n.alice) == 0 })
	}
	remove := func(i testImage) answer {
		return alice.do(http.MethodDelete, "/v2/alice.test/app/manifests/"+i.digest.String(), nil)
	}
	slow, late, never := newImage("slow"), newImage("late"), newImage("never")
	alice.push("alice.test/app", slow, "1.0")
	told("a push", 2)

	arrived, goOn := make(chan bool, 1), make(chan bool)
	held := n.PDS.Inject(devnet.Method(applyWritesNSID), func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		arrived <- true
		<-goOn
		next.ServeHTTP(w, r)
	})
	done := make(chan answer, 1)
	go func() { done <- remove(slow) }()
	<-arrived
	looked()
	close(goOn)
	alice.must(202, <-done)
	held.Remove()
	told("a deletion that took minutes", 0)

	alice.push("alice.test/app", late, "2.0")
	told("a push", 2)
	lost := n.PDS.Inject(devnet.Method(applyWritesNSID), devnet.Down())
	if got := remove(late); got.status/100 != 5 || lost.Fired() == 0 {
		t.Fatalf("%d %s", got.status, got.body)
	}
	lost.Remove()
	looked()
	n.restart()
	alice.push("alice.test/app", never, "3.0")
	told("a push behind a deletion that is not seen yet", 4)
	n.deleteRecord(n.alice, atcr.ManifestNSID, late.digest.Hex()) // the PDS does now what it was asked for
	n.forget()
	told("a deletion that came after a crash", 2)
	n.eventually("nothing waits", func() bool { return n.waiting(n.alice) == 0 })

	lost = n.PDS.Inject(devnet.Method(applyWritesNSID), devnet.Down())
	if got := remove(never); got.status/100 != 5 || lost.Fired() == 0 {
		t.Fatalf("%d %s", got.status, got.body)
	}
	lost.Remove()
	n.ahead.Add(int64(deedWithin))
	n.eventually("a deletion that was never made is given up", func() bool { return n.waiting(n.alice) == 0 })
	if got := n.layerRecords(n.public); len(got) != 2 {
		t.Errorf("%v", got)
	}
}

// Would catch a deletion that a hold is never told of because too much waited, and a hold that is told of one that did
// not happen, which would let it delete the blobs of an image that is there.
func TestHoldIsToldOfDeletions(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	alice := n.as(n.alice, "alice.test/app")
	image := newImage("told")
	alice.push("alice.test/app", image, "1.0")
	n.eventually("the hold knows", func() bool { return len(n.layerRecords(n.public)) == 2 && n.waiting(n.alice) == 0 })
	path := "/v2/alice.test/app/manifests/" + image.digest.String()
	exec := func(query string, args ...any) {
		t.Helper()
		err := n.app.Load().db.Write(t.Context(), func(tx *sql.Tx) error {
			_, err := tx.ExecContext(t.Context(), query, args...)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	exec(`WITH RECURSIVE c (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < 1000)
		INSERT INTO outbox (sender, recipient, kind, session, body, created_at, due_at, attempts) SELECT ?, 'did:web:elsewhere.example', 'x', '', x'', 0, ?, 0 FROM c`,
		n.alice.DID, int64(1)<<50)
	before := n.rev(n.alice)
	if got := alice.do(http.MethodDelete, path, nil); got.status != http.StatusTooManyRequests || n.rev(n.alice) != before {
		t.Errorf("with 1,000 messages before it: %d %s", got.status, got.body)
	}
	exec(`DELETE FROM outbox`)

	lost := n.PDS.Inject(devnet.Method(applyWritesNSID), devnet.Down()) // which did nothing
	if got := alice.do(http.MethodDelete, path, nil); got.status/100 != 5 || lost.Fired() == 0 {
		t.Fatalf("%d %s", got.status, got.body)
	}
	lost.Remove()
	n.forget() // the minute that the message is held back
	n.eventually("the message is looked at", func() bool { return n.attempts(n.alice) > 0 })
	if got := n.layerRecords(n.public); len(got) != 2 {
		t.Errorf("a hold was told that an image is gone that is there: %v", got)
	}
	alice.pull("alice.test/app", "1.0", image)

	half := n.PDS.Inject(devnet.Method(applyWritesNSID), func(_ http.ResponseWriter, r *http.Request, next http.Handler) {
		next.ServeHTTP(nowhere{}, r)
		panic(http.ErrAbortHandler)
	})
	if got := alice.do(http.MethodDelete, path, nil); got.status/100 != 5 {
		t.Fatalf("%d %s", got.status, got.body)
	}
	half.Remove()
	n.forget()
	n.eventually("a deletion whose answer was lost reaches the hold", func() bool { return len(n.layerRecords(n.public)) == 0 })
}

// nowhere is where an answer gets lost.
type nowhere struct{}

func (nowhere) Header() http.Header         { return http.Header{} }
func (nowhere) Write(p []byte) (int, error) { return len(p), nil }
func (nowhere) WriteHeader(int)             {}

// Would catch what a hold is to be told, and is not because the session by which it was done has ended meanwhile.
func TestHoldIsToldByAnotherSession(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	alice := n.as(n.alice, "alice.test/app")
	n.public.misbehave(func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
		if !strings.HasSuffix(r.URL.Path, atcr.HoldNotifyManifestNSID) {
			return false
		}
		http.Error(w, `{"error":"InternalServerError"}`, http.StatusInternalServerError)
		return true
	})
	alice.push("alice.test/app", newImage("told"), "1.0")
	if err := n.app.Load().sessions.EndAll(t.Context(), syntax.DID(n.alice.DID)); err != nil {
		t.Fatal(err)
	}
	n.public.behave()
	n.restart()
	n.forget()
	n.eventually("it is tried without a session", func() bool { return n.attempts(n.alice) > 1 })
	if n.waiting(n.alice) == 0 {
		t.Fatal("the message was dropped")
	}
	n.as(n.alice, "alice.test/app") // who signs in again
	n.eventually("the hold is told", func() bool {
		n.forget()
		return len(n.layerRecords(n.public)) == 2
	})
}
