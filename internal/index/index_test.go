package index_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"
	"github.com/prometheus/client_golang/prometheus"

	"atcr.io/api/atcr"
	"atcr.io/internal/index"
	"atcr.io/internal/oci"
	"atcr.io/internal/sqldb"
	"atcr.io/test/databases"
)

const (
	alice = syntax.DID("did:plc:aliceaaaaaaaaaaaaaaaaaaa")
	bob   = syntax.DID("did:plc:bobbbbbbbbbbbbbbbbbbbbbb")
	hold  = syntax.DID("did:web:hold.example.com")
)

// world is an index in a database of its own.
type world struct {
	*index.Index
	t       *testing.T
	db      *sqldb.DB
	metrics *prometheus.Registry
	now     time.Time
	touched []index.Touched
}

func newWorld(t *testing.T, db *sqldb.DB, contentBytes int64) *world {
	t.Helper()
	w := &world{t: t, db: db, metrics: prometheus.NewRegistry(), now: time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)}
	var err error
	w.Index, err = index.Open(t.Context(), index.Config{DB: db, ContentBytes: contentBytes, Metrics: w.metrics, Now: func() time.Time { return w.now }})
	if err != nil {
		t.Fatal(err)
	}
	w.OnChange(func(touched []index.Touched) { w.touched = append(w.touched, touched...) })
	return w
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// databaseOf is another empty database of a kind.
func databaseOf(t *testing.T, kind string) databases.Database {
	t.Helper()
	if kind == "SQLite" {
		return databases.Database{Kind: kind, Dir: t.TempDir()}
	}
	return databases.Database{Kind: kind, URL: databases.NewPostgres(t)}
}

func TestMain(m *testing.M) { databases.Main(m) }

// rejected is how many records were kept out, and stale how many changes came too late.
func (w *world) metric(name string) (sum float64) {
	w.t.Helper()
	families, err := w.metrics.Gather()
	w.must(err)
	for _, f := range families {
		if f.GetName() == name {
			for _, m := range f.GetMetric() {
				sum += m.GetCounter().GetValue()
			}
		}
	}
	return sum
}

// rev makes revs that are in order.
func rev(n int) string {
	return syntax.NewTIDFromTime(time.Date(2026, 11, 25, 0, 0, n, 0, time.UTC), 0).String()
}

func digest(text string) string { return oci.FromBytes([]byte(text)).String() }

func record(t testing.TB, v any) []byte {
	t.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// change is a record as it is written; its CID is made of its bytes.
func change(collection, rkey string, value []byte) index.Change {
	c := index.Change{Collection: collection, Rkey: rkey, Value: value}
	if value != nil {
		c.CID = atcr.ContentCID(oci.FromBytes(value).String())
	}
	return c
}

func manifest(t testing.TB, repository, text, at string, more func(*atcr.Manifest)) index.Change {
	d := digest(text)
	m := atcr.Manifest{
		Repository: repository, Digest: d, MediaType: oci.MediaTypeImageManifest, SchemaVersion: 2, CreatedAt: at, HoldDid: hold.String(),
		Config:       &atcr.ManifestBlobReference{MediaType: "application/vnd.oci.image.config.v1+json", Size: 10, Digest: digest(text + " config")},
		Layers:       []atcr.ManifestBlobReference{{MediaType: "application/vnd.oci.image.layer.v1.tar+gzip", Size: 1000, Digest: digest(text + " layer")}},
		ManifestBlob: &atcr.Blob{LexiconTypeID: "blob", Ref: atcr.BlobRef{Link: atcr.ContentCID(d)}, MimeType: oci.MediaTypeImageManifest, Size: 500},
	}
	if more != nil {
		more(&m)
	}
	return change(atcr.ManifestNSID, atcr.ManifestRkey(d), record(t, m))
}

func tag(t testing.TB, of syntax.DID, repository, name, text, at string) index.Change {
	d := digest(text)
	return change(atcr.TagNSID, atcr.TagRkey(repository, name), record(t, atcr.Tag{
		Repository: repository, Tag: name, Manifest: "at://" + of.String() + "/" + atcr.ManifestNSID + "/" + atcr.ManifestRkey(d), ManifestDigest: d, CreatedAt: at,
	}))
}

func (w *world) write(did syntax.DID, rev string, changes ...index.Change) {
	w.t.Helper()
	w.must(w.Write(w.t.Context(), []index.Commit{{DID: did, Rev: rev, Changes: changes}}, index.Cursor{}))
}

// tagged is the digest of the manifest that a tag leads to, "" for none.
func (w *world) tagged(did syntax.DID, repository, name string) string {
	w.t.Helper()
	t, err := w.TagOf(w.t.Context(), did, repository, name)
	w.must(err)
	if t == nil {
		return ""
	}
	m, err := w.ManifestAt(w.t.Context(), did, t.ManifestRkey)
	w.must(err)
	if m == nil {
		return "dangling"
	}
	return m.Digest
}

// Would catch an old change that undoes a newer one, whichever way it comes: again, late, or after a deletion.
func TestOrder(t *testing.T) {
	t.Parallel()
	databases.Each(t, func(t *testing.T, on databases.Database) {
		w := newWorld(t, on.Open(t), 0)
		const at = "2026-11-25T00:00:00Z"
		one, two := tag(t, alice, "app", "1", "one", at), tag(t, alice, "app", "1", "two", at)
		gone := index.Change{Collection: atcr.TagNSID, Rkey: one.Rkey}
		w.write(alice, rev(1), manifest(t, "app", "one", at, nil), manifest(t, "app", "two", at, nil))
		for step, s := range []struct {
			rev    string
			change index.Change
			want   string
		}{
			{rev(2), one, "one"},
			{rev(2), one, "one"}, // again
			{rev(4), two, "two"},
			{rev(3), one, "two"}, // late
			{rev(3), gone, "two"},
			{rev(6), gone, ""},
			{rev(5), one, ""}, // late, after it is gone
			{rev(6), two, "two"},
			{"", one, "one"}, // seen at the PDS: that counts
			{rev(1), two, "one"},
			{rev(9), two, "two"},
		} {
			w.write(alice, s.rev, s.change)
			want := ""
			if s.want != "" {
				want = digest(s.want)
			}
			if got := w.tagged(alice, "app", "1"); got != want {
				t.Fatalf("step %d: %q, want %q", step, got, want)
			}
		}
		if n := w.metric("atcr_appview_index_stale_changes_total"); n != 4 {
			t.Errorf("%v changes came too late", n)
		}
	})
}

// Would catch a stream that is believed across a gap, or whose past is taken for its present.
func TestStream(t *testing.T) {
	t.Parallel()
	databases.Each(t, func(t *testing.T, on databases.Database) {
		w := newWorld(t, on.Open(t), 0)
		const at = "2026-11-25T00:00:00Z"
		follow := func(n int, prev, data string, changes ...index.Change) index.Repo {
			t.Helper()
			w.must(w.Write(t.Context(), []index.Commit{{
				DID: alice, Rev: rev(n), Since: rev(n - 1), PrevData: prev, Data: data, InOrder: true, Source: "relay", Changes: changes,
			}}, index.Cursor{Source: "relay", Value: int64(n)}))
			r, found, err := w.Repo(t.Context(), alice)
			if err != nil || !found {
				t.Fatal(found, err)
			}
			return r
		}
		if r := follow(1, "", "tree 1"); r.Complete || r.Source != "relay" {
			t.Errorf("a repo that was never read is complete: %+v", r)
		}
		w.must(w.Replace(t.Context(), alice, rev(2), "tree 2", 0, []index.Change{manifest(t, "app", "one", at, nil), tag(t, alice, "app", "1", "one", at)}))
		if r := follow(3, "tree 2", "tree 3", tag(t, alice, "app", "2", "one", at)); !r.Complete || r.Rev != rev(3) || r.Data != "tree 3" {
			t.Errorf("%+v", r)
		}
		w.touched = nil
		if r := follow(2, "tree 1", "tree 2", index.Change{Collection: atcr.TagNSID, Rkey: atcr.TagRkey("app", "2")}); !r.Complete || r.Rev != rev(3) || w.tagged(alice, "app", "2") == "" {
			t.Errorf("a passed commit did something: %+v", r)
		}
		if !slices.Contains(w.touched, index.Touched{DID: alice, Collection: atcr.TagNSID, Rkey: "app:2", Repository: "app", Tag: "2"}) {
			t.Errorf("nobody is told of what another process may have written: %+v", w.touched)
		}
		if r := follow(5, "tree 4", "tree 5"); r.Complete || r.Rev != rev(5) {
			t.Errorf("a gap is not seen: %+v", r)
		}
		due, err := w.Due(t.Context(), 10)
		if err != nil || len(due) != 1 || due[0].DID != alice {
			t.Errorf("%+v, %v", due, err)
		}
		w.must(w.Postpone(t.Context(), alice, w.now.Add(time.Minute)))
		if due, err = w.Due(t.Context(), 10); err != nil || len(due) != 0 {
			t.Errorf("%+v, %v", due, err)
		}
		if cursor, err := w.Cursor(t.Context(), "relay"); err != nil || cursor != 5 {
			t.Errorf("%d, %v", cursor, err)
		}
	})
}

// Would catch a record of somebody's that stops those of others, or is believed though it contradicts itself.
func TestBadRecords(t *testing.T) {
	t.Parallel()
	databases.Each(t, func(t *testing.T, on databases.Database) {
		w := newWorld(t, on.Open(t), 0)
		const at = "2026-11-25T00:00:00Z"
		d := digest("x")
		blob := func(cid string) string {
			return `"manifestBlob":{"$type":"blob","ref":{"$link":"` + cid + `"},"mimeType":"application/json","size":3}`
		}
		bad := map[string][]string{
			atcr.ManifestNSID: {
				`null`, `[]`, `{}`, `{"repository":"app","digest":"sha256:zz","mediaType":"application/json"}`,
				`{"repository":"App","digest":"` + d + `","mediaType":"application/json"}`,
				`{"repository":"app","digest":"` + d + `","mediaType":"text/html"}`,
				`{"repository":"app","digest":"` + d + `","mediaType":"application/json",` + blob(atcr.ContentCID(digest("y"))) + `}`,
				`{"repository":"app","digest":"` + d + `","mediaType":"application/json",` + blob("") + `}`,
				`{"repository":"app","digest":"` + d + `","mediaType":"application/json","layers":[{"digest":"no","size":1,"mediaType":"a/b"}]}`,
				`{"repository":"app","digest":"` + d + `","mediaType":"application/json","layers":[{"digest":"` + d + `","size":-1,"mediaType":"a/b"}]}`,
				`{"repository":"app","digest":"` + d + `","mediaType":"application/json","schemaVersion":"two"}`,
				`{"repository":"` + strings.Repeat("a", 300) + `","digest":"` + d + `","mediaType":"application/json"}`,
			},
			atcr.TagNSID: {
				`{}`, `{"repository":"app","tag":"` + strings.Repeat("t", 129) + `","manifestDigest":"` + d + `"}`, `{"repository":"app","tag":"1"}`,
				`{"repository":"app","tag":"1","manifest":"at://` + bob.String() + `/io.atcr.manifest/abc"}`, // another's
			},
			atcr.SailorStarNSID: {`{}`, `{"subject":"at://not a did/io.atcr.repo.page/x"}`, `{"subject":{"did":"alice","repository":"app"}}`, `{"subject":7}`},
			atcr.RepoPageNSID:   {`{}`, `{"repository":"../etc"}`},
			atcr.HoldCrewNSID:   {`{}`, `{"member":"alice"}`, `{"member":7}`},
			atcr.HoldStatsNSID:  {`{}`, `{"ownerDid":"` + alice.String() + `","repository":"app","pullCount":-1,"pushCount":0}`},
		}
		n := 0
		for collection, values := range bad {
			for i, value := range values {
				good := manifest(t, "good", "good", at, nil)
				w.write(alice, rev(10+n), change(collection, fmt.Sprintf("bad%d", i), []byte(value)), good)
				n++
			}
		}
		if got := w.metric("atcr_appview_index_rejected_records_total"); got != float64(n) {
			t.Errorf("%v of %d were rejected", got, n)
		}
		if m, err := w.Manifests(t.Context(), alice, "good", nil, 10); err != nil || len(m) != 1 {
			t.Errorf("the good record beside bad ones: %v, %v", m, err)
		}
		// A record that becomes bad is no longer what it was.
		good := tag(t, alice, "good", "1", "good", at)
		w.write(alice, rev(100), good)
		if w.tagged(alice, "good", "1") == "" {
			t.Fatal("no tag")
		}
		w.write(alice, rev(101), change(atcr.TagNSID, good.Rkey, []byte(`{"repository":"good"}`)))
		if got := w.tagged(alice, "good", "1"); got != "" {
			t.Errorf("a tag that is no longer one leads to %s", got)
		}
		// Text that a database refuses is cleaned, and a date ahead of time makes nobody the first for good.
		w.write(bob, rev(1), manifest(t, "odd", "odd", "9999-01-01T00:00:00Z", func(m *atcr.Manifest) {
			m.Annotations = map[string]string{"a\x00b": "c\x00\xff"}
			m.ArtifactType = "application/\x00x"
		}))
		recent, err := w.Recent(t.Context(), time.Time{}, 1)
		if err != nil || len(recent) != 1 || recent[0].Name != "odd" || recent[0].PushedAt.After(w.now) {
			t.Errorf("%+v, %v", recent, err)
		}
	})
}

// Would catch pages that show what is not so: of several records for one thing, of other people's, of holds that
// nobody named.
func TestReadModels(t *testing.T) {
	t.Parallel()
	databases.Each(t, func(t *testing.T, on databases.Database) {
		w := newWorld(t, on.Open(t), 0)
		ctx := t.Context()
		w.must(w.Meet(ctx, alice, "alice.example", "https://pds.example", ""))
		child := digest("child")
		imageIndex := manifest(t, "team/app", "index", "2026-11-01T00:00:00Z", func(m *atcr.Manifest) {
			m.MediaType, m.Config, m.Layers = oci.MediaTypeImageIndex, nil, nil
			m.Manifests = []atcr.ManifestManifestReference{{MediaType: oci.MediaTypeImageManifest, Digest: child, Size: 7, Platform: &atcr.ManifestPlatform{Os: "linux", Architecture: "arm64", Variant: "v8"}}}
			m.Annotations = map[string]string{"org.opencontainers.image.description": "A tiny database"}
		})
		signature := manifest(t, "team/app", "signature", "2026-11-02T00:00:00Z", func(m *atcr.Manifest) {
			m.ArtifactType = "application/vnd.example.signature"
			m.Subject = &atcr.ManifestBlobReference{MediaType: oci.MediaTypeImageIndex, Digest: digest("index"), Size: 500}
		})
		oldTag := change(atcr.TagNSID, atcr.OldTagRkey("team/app", "1.0"), record(t, atcr.Tag{
			Repository: "team/app", Tag: "1.0", ManifestDigest: digest("image"), CreatedAt: "2026-10-01T00:00:00Z",
		}))
		w.write(alice, rev(1), manifest(t, "team/app", "image", "2026-10-01T00:00:00Z", nil), imageIndex, signature, oldTag,
			tag(t, alice, "team/app", "1.0", "index", "2026-11-03T00:00:00Z"),
			change(atcr.RepoPageNSID, atcr.RepoPageRkey("team/app"), record(t, atcr.RepoPage{Repository: "team/app", Description: "# App", UpdatedAt: "2026-11-01T00:00:00Z",
				Avatar: &atcr.Blob{Ref: atcr.BlobRef{Link: atcr.ContentCID(digest("a"))}, MimeType: "image/png", Size: 3}})),
			change(atcr.SailorProfileNSID, "self", record(t, atcr.SailorProfile{DefaultHold: "https://hold.example.com"})))
		w.write(bob, rev(1),
			change(atcr.SailorStarNSID, "a", []byte(`{"subject":{"did":"`+alice.String()+`","repository":"team/app"},"createdAt":"2026-11-01T00:00:00Z"}`)),
			change(atcr.SailorStarNSID, "b", []byte(`{"subject":"at://`+alice.String()+`/io.atcr.repo.page/team~app","createdAt":"2026-11-01T00:00:00Z"}`)),
			change(atcr.HoldStatsNSID, "c", record(t, atcr.HoldStats{OwnerDid: alice.String(), Repository: "team/app", PullCount: 1_000_000})))
		w.write(hold, rev(1), change(atcr.HoldStatsNSID, "c", record(t, atcr.HoldStats{OwnerDid: alice.String(), Repository: "team/app", PullCount: 42, PushCount: 3})),
			change(atcr.HoldCrewNSID, "c", record(t, atcr.HoldCrew{Member: alice.String()})), change(atcr.HoldCrewNSID, "d", record(t, atcr.HoldCrew{Member: alice.String()})))
		if holds, err := w.HoldsOf(ctx, alice, 10); err != nil || !slices.Equal(holds, []syntax.DID{hold}) {
			t.Errorf("alice's holds: %v, %v", holds, err)
		}
		w.write(hold, rev(2), change(atcr.HoldCrewNSID, "c", nil), change(atcr.HoldCrewNSID, "d", record(t, atcr.HoldCrew{Member: bob.String()})))
		if holds, err := w.HoldsOf(ctx, alice, 10); err != nil || len(holds) != 0 {
			t.Errorf("alice's holds when she has left: %v, %v", holds, err)
		}

		repositories, err := w.RepositoriesOf(ctx, alice, "", 10)
		w.must(err)
		want := index.Repository{
			DID: alice, Handle: "alice.example", Name: "team/app", Description: "# App", AvatarCID: atcr.ContentCID(digest("a")), AvatarMime: "image/png",
			PushedAt: time.Date(2026, 11, 3, 0, 0, 0, 0, time.UTC), Stars: 1, Pulls: 42, Pushes: 3,
		}
		if len(repositories) != 1 || repositories[0] != want {
			t.Errorf("repositories: %+v", repositories)
		}
		tags, err := w.Tags(ctx, alice, "team/app", index.Tag{}, 10)
		w.must(err)
		if len(tags) != 2 || tags[0].Manifest == nil || tags[0].Manifest.Digest != digest("index") ||
			!slices.Equal(tags[0].Manifest.Platforms, []index.Platform{{"linux", "arm64", "v8", "", child, oci.MediaTypeImageManifest, 7}}) || tags[1].Manifest.Digest != digest("image") {
			t.Errorf("tags: %+v", tags)
		}
		if got, err := w.TagOf(ctx, alice, "team/app", "1.0"); err != nil || got.Rkey != atcr.TagRkey("team/app", "1.0") {
			t.Errorf("the newer of two records: %+v, %v", got, err)
		}
		if names, err := w.TagNames(ctx, alice, "team/app", "", 10); err != nil || !slices.Equal(names, []string{"1.0"}) {
			t.Errorf("%v, %v", names, err)
		}
		referrers, err := w.Referrers(ctx, alice, "team/app", digest("index"))
		if err != nil || len(referrers) != 1 || referrers[0].ArtifactType != "application/vnd.example.signature" {
			t.Errorf("referrers: %+v, %v", referrers, err)
		}
		page, err := w.Manifests(ctx, alice, "team/app", nil, 2)
		w.must(err)
		rest, err := w.Manifests(ctx, alice, "team/app", page[len(page)-1], 2)
		w.must(err)
		if len(page) != 2 || len(rest) != 1 || rest[0].Digest != digest("image") || rest[0].ContentSize != 1010 {
			t.Errorf("manifests in pages: %d, %+v", len(page), rest)
		}
		if at, err := w.HoldOfBlob(ctx, alice, "team/app", digest("image layer")); err != nil || at != hold.String() {
			t.Errorf("hold of a blob: %q, %v", at, err)
		}
		if at, err := w.DefaultHold(ctx, alice); err != nil || at != hold.String() {
			t.Errorf("default hold: %q, %v", at, err)
		}
		if yes, err := w.Starred(ctx, bob, alice, "team/app"); err != nil || !yes {
			t.Errorf("starred: %v, %v", yes, err)
		}
		if starred, err := w.StarredBy(ctx, bob, 10); err != nil || len(starred) == 0 || starred[0].Name != "team/app" {
			t.Errorf("starred by: %+v, %v", starred, err)
		}
		if person, found, err := w.Person(ctx, "Alice.Example"); err != nil || !found || person.DID != alice {
			t.Errorf("person: %+v, %v", person, err)
		}
	})
}

// Would catch a search that misses a word's beginning, a word of the page or the owner, or finds what is gone.
func TestSearch(t *testing.T) {
	t.Parallel()
	databases.Each(t, func(t *testing.T, on databases.Database) {
		w := newWorld(t, on.Open(t), 0)
		ctx := t.Context()
		const at = "2026-11-01T00:00:00Z"
		w.must(w.Meet(ctx, alice, "alice.example", "", ""))
		w.must(w.Meet(ctx, bob, "bob.dev", "", ""))
		w.write(alice, rev(1), manifest(t, "web/my-database", "a", at, nil), manifest(t, "cache", "b", at, nil),
			change(atcr.RepoPageNSID, "cache", record(t, atcr.RepoPage{Repository: "cache", Description: "Fast *key-value* store, in Go.", UpdatedAt: at})))
		w.write(bob, rev(1), manifest(t, "data", "c", "2026-11-02T00:00:00Z", nil), manifest(t, "database", "d", at, nil))
		for query, want := range map[string][]string{
			"data":           {"data", "web/my-database", "database"}, // the whole word first, then those pushed to last
			"DATABASE":       {"web/my-database", "database"},
			"my-database":    {"web/my-database"},
			"store":          {"cache"},
			"key":            {"cache"},
			"ali":            {"cache", "web/my-database"},
			"alice data":     {"web/my-database"},
			"bob database":   {"database"},
			"nothing at all": nil,
			"":               nil,
			"' OR 1=1 --":    nil,
			"%":              nil,
		} {
			found, err := w.Search(ctx, query, 10)
			w.must(err)
			var names []string
			for _, r := range found {
				names = append(names, r.Name)
			}
			if !slices.Equal(names, want) {
				t.Errorf("%q: %v, want %v", query, names, want)
			}
		}
		w.write(bob, rev(2), index.Change{Collection: atcr.ManifestNSID, Rkey: atcr.ManifestRkey(digest("d"))})
		w.must(w.SetStatus(ctx, alice, index.StatusTakendown))
		if found, err := w.Search(ctx, "database", 10); err != nil || len(found) != 0 {
			t.Errorf("%+v, %v", found, err)
		}
		w.must(w.SetStatus(ctx, alice, index.StatusActive))
		if found, err := w.Search(ctx, "database", 10); err != nil || len(found) != 1 {
			t.Errorf("%+v, %v", found, err)
		}
	})
}

// Would catch a deleted account of which something stays, and one that takes others with it.
func TestDeletedAccount(t *testing.T) {
	t.Parallel()
	databases.Each(t, func(t *testing.T, on databases.Database) {
		w := newWorld(t, on.Open(t), 0)
		ctx := t.Context()
		const at = "2026-11-01T00:00:00Z"
		for _, did := range []syntax.DID{alice, bob} {
			w.must(w.Meet(ctx, did, syntax.Handle(string(did[8:11])+".example"), "", "relay"))
			w.write(did, rev(1), manifest(t, "app", "a", at, nil), tag(t, did, "app", "1", "a", at),
				change(atcr.SailorStarNSID, "a", []byte(`{"subject":{"did":"`+bob.String()+`","repository":"app"}}`)))
		}
		w.must(w.SetStatus(ctx, alice, index.StatusDeleted))
		for _, table := range []string{"index_manifest", "index_blob", "index_child", "index_tag", "index_star", "index_repository", "index_word", "index_owner_word"} {
			var n int
			w.must(w.db.Reader().QueryRowContext(ctx, `SELECT count(*) FROM `+table+` WHERE did = ?`, alice.String()).Scan(&n))
			if n != 0 {
				t.Errorf("%s has %d rows of a deleted account", table, n)
			}
		}
		if r, _, err := w.Repository(ctx, bob, "app"); err != nil || r.Stars != 1 {
			t.Errorf("%+v, %v", r, err)
		}
		if due, err := w.Due(ctx, 10); err != nil || len(due) != 1 || due[0].DID != bob {
			t.Errorf("a deleted account is to be read: %+v, %v", due, err)
		}
	})
}

// Would catch a doubt that is forgotten because its repo was being read when it came, and an account that comes back, or
// is shown again, because it was.
func TestDoubtedWhileRead(t *testing.T) {
	t.Parallel()
	databases.Each(t, func(t *testing.T, on databases.Database) {
		w := newWorld(t, on.Open(t), 0)
		ctx := t.Context()
		const at = "2026-11-01T00:00:00Z"
		all := []index.Change{manifest(t, "app", "a", at, nil), tag(t, alice, "app", "1", "a", at)}
		state := func() index.Repo {
			t.Helper()
			r, _, err := w.Index.Repo(ctx, alice)
			w.must(err)
			return r
		}
		w.must(w.Meet(ctx, alice, "", "", "relay"))
		w.must(w.Replace(ctx, alice, rev(1), "tree", state().Doubts, all))
		for what, doubt := range map[string]func() error{
			"one repo":    func() error { return w.Doubt(ctx, alice, false) },
			"a stream":    func() error { return w.DoubtSource(ctx, "relay") },
			"deactivated": func() error { return w.SetStatus(ctx, alice, index.StatusDeactivated) },
		} {
			for way, read := range map[string]func(doubts int64) error{
				"confirmed": func(doubts int64) error { return w.Confirm(ctx, alice, rev(1), doubts) },
				"replaced":  func(doubts int64) error { return w.Replace(ctx, alice, rev(1), "tree", doubts, all) },
			} {
				before := state()
				if !before.Complete || before.Status != index.StatusActive {
					t.Fatalf("%s, %s: %+v", what, way, before)
				}
				w.must(doubt())
				doubted := state()
				w.must(read(before.Doubts))
				if r := state(); r.Complete || r.Status != doubted.Status {
					t.Errorf("%s, %s: it counts as read: %+v", what, way, r)
				}
				w.now = w.now.Add(time.Minute)
				if due, err := w.Due(ctx, 10); err != nil || len(due) != 1 {
					t.Errorf("%s, %s: it is not read again: %+v, %v", what, way, due, err)
				}
				w.must(w.Replace(ctx, alice, rev(1), "tree", state().Doubts, all))
			}
		}
		before := state()
		w.must(w.SetStatus(ctx, alice, index.StatusDeleted))
		w.must(w.Replace(ctx, alice, rev(1), "tree", before.Doubts, all))
		if r := state(); r.Status != index.StatusDeleted || w.tagged(alice, "app", "1") != "" {
			t.Errorf("a deleted account came back: %+v", r)
		}
	})
}

// dump is all rows of the index's tables that say what records say.
func dump(t testing.TB, db *sqldb.DB) string {
	t.Helper()
	var b strings.Builder
	for _, q := range []string{
		`SELECT did, rkey, cid, repository, digest, media_type, hold, subject, blob_cid, content_size, annotations, created_at FROM index_manifest ORDER BY did, rkey`,
		`SELECT did, rkey, position, repository, digest, media_type, size, '', '', '', '', '' FROM index_blob ORDER BY did, rkey, position`,
		`SELECT did, rkey, position, digest, media_type, size, os, architecture, variant, '', '', '' FROM index_child ORDER BY did, rkey, position`,
		`SELECT did, rkey, cid, repository, tag, manifest_rkey, digest, changed_at, '', '', '', '' FROM index_tag ORDER BY did, rkey`,
		`SELECT did, rkey, cid, owner, repository, created_at, '', '', '', '', '', '' FROM index_star ORDER BY did, rkey`,
		`SELECT did, rkey, cid, repository, description, avatar_cid, updated_at, '', '', '', '', '' FROM index_page ORDER BY did, rkey`,
		`SELECT did, repository, pushed_at, words, '', '', '', '', '', '', '', '' FROM index_repository ORDER BY did, repository`,
		`SELECT word, did, repository, '', '', '', '', '', '', '', '', '' FROM index_word ORDER BY word, did, repository`,
		`SELECT did, rev, complete, status, '', '', '', '', '', '', '', '' FROM index_repo ORDER BY did`,
	} {
		rows, err := db.Reader().QueryContext(context.Background(), q)
		if err != nil {
			t.Fatal(err)
		}
		for rows.Next() {
			values, pointers := make([]any, 12), make([]any, 12)
			for i := range values {
				pointers[i] = &values[i]
			}
			if err := rows.Scan(pointers...); err != nil {
				t.Fatal(err)
			}
			_, _ = fmt.Fprintln(&b, values...)
		}
		if err := rows.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return b.String()
}

// Would catch an index that depends on how its records came: one by one, in any number of steps, or all at once.
func TestReplaceAgrees(t *testing.T) {
	t.Parallel()
	databases.Each(t, func(t *testing.T, on databases.Database) {
		lived, read := newWorld(t, on.Open(t), 0), newWorld(t, databaseOf(t, on.Kind).Open(t), 0)
		const at = "2026-11-01T00:00:00Z"
		now := map[string]index.Change{}
		n := 0
		step := func(changes ...index.Change) {
			n++
			lived.write(alice, rev(n), changes...)
			for _, c := range changes {
				now[c.Collection+"/"+c.Rkey] = c
				if c.Value == nil {
					delete(now, c.Collection+"/"+c.Rkey)
				}
			}
		}
		for i := range 30 {
			repository := fmt.Sprintf("app%d", i%4)
			text := fmt.Sprintf("image %d", i)
			step(manifest(t, repository, text, fmt.Sprintf("2026-11-%02dT00:00:00Z", i%28+1), nil), tag(t, alice, repository, fmt.Sprint("v", i%7), text, at))
			if i%3 == 2 {
				step(index.Change{Collection: atcr.ManifestNSID, Rkey: atcr.ManifestRkey(digest(fmt.Sprintf("image %d", i-2)))})
			}
			if i%5 == 4 {
				step(index.Change{Collection: atcr.TagNSID, Rkey: atcr.TagRkey(repository, fmt.Sprint("v", i%7))},
					change(atcr.RepoPageNSID, repository, record(t, atcr.RepoPage{Repository: repository, Description: text, UpdatedAt: at})))
			}
		}
		var all []index.Change
		for _, c := range now {
			all = append(all, c)
		}
		// What stands in an index that missed everything in between, and has more than there is now.
		read.write(alice, rev(1), manifest(t, "app0", "image 0", "2026-11-01T00:00:00Z", nil), manifest(t, "long-gone", "image x", at, nil))
		for _, w := range []*world{lived, read} {
			w.must(w.Replace(t.Context(), alice, rev(n), "tree", 0, all))
		}
		a, b := dump(t, lived.db), dump(t, read.db)
		if a != b {
			t.Errorf("followed:\n%s\nread whole:\n%s", a, b)
		}
		if !strings.Contains(a, "image") && !strings.Contains(a, "app3") {
			t.Errorf("there is nothing to compare: %s", a)
		}
		// What was written behind the rev that is read stays.
		read.write(alice, rev(n+5), tag(t, alice, "app1", "newest", "image 29", at))
		read.must(read.Replace(t.Context(), alice, rev(n+1), "tree", 0, all))
		if read.tagged(alice, "app1", "newest") == "" {
			t.Error("reading a repo undid what was written meanwhile")
		}
	})
}

// Would catch a cache of manifests that grows, forgets what is asked for, or gives other bytes than were asked for.
func TestContent(t *testing.T) {
	t.Parallel()
	databases.Each(t, func(t *testing.T, on databases.Database) {
		w := newWorld(t, on.Open(t), 100_000)
		ctx := t.Context()
		raw := func(i int) []byte { return bytes.Repeat([]byte{byte(i)}, 5000) }
		first := oci.FromBytes(raw(0))
		for i := range 60 {
			w.now = w.now.Add(2 * time.Hour)
			w.must(w.PutContent(ctx, oci.FromBytes(raw(i)), raw(i)))
			got, err := w.Content(ctx, first)
			w.must(err)
			if !bytes.Equal(got, raw(0)) {
				t.Fatalf("after %d: what is asked for again and again is gone", i)
			}
		}
		var size, rows int
		w.must(w.db.Reader().QueryRowContext(ctx, `SELECT sum(size), count(*) FROM index_content`).Scan(&size, &rows))
		if size > 100_000 || rows < 10 {
			t.Errorf("%d bytes in %d rows", size, rows)
		}
		if got, err := w.Content(ctx, oci.FromBytes(raw(59))); err != nil || got == nil {
			t.Errorf("the newest: %v", err)
		}
		huge := bytes.Repeat([]byte("x"), 50_000)
		w.must(w.PutContent(ctx, oci.FromBytes(huge), huge))
		if got, err := w.Content(ctx, oci.FromBytes(huge)); err != nil || got != nil {
			t.Errorf("one manifest takes half of the room: %v", err)
		}
		// A database that was changed by others does not change an image.
		_, err := w.db.Reader().ExecContext(ctx, `UPDATE index_content SET data = 'x'`)
		if err == nil {
			t.Fatal("the reader writes")
		}
		w.must(w.PutContent(ctx, oci.FromBytes([]byte("right")), []byte("wrong")))
		if got, err := w.Content(ctx, oci.FromBytes([]byte("right"))); err != nil || got != nil {
			t.Errorf("%q, %v", got, err)
		}
	})
}

// Would catch copies that nobody is told to drop.
func TestTouched(t *testing.T) {
	t.Parallel()
	databases.Each(t, func(t *testing.T, on databases.Database) {
		w := newWorld(t, on.Open(t), 0)
		const at = "2026-11-01T00:00:00Z"
		moved := tag(t, alice, "app", "1", "a", at)
		w.write(alice, rev(1), moved)
		renamed := tag(t, alice, "app", "2", "a", at)
		renamed.Rkey = moved.Rkey
		w.touched = nil
		w.write(alice, rev(2), renamed)
		for _, name := range []string{"1", "2"} {
			if !slices.Contains(w.touched, index.Touched{DID: alice, Collection: atcr.TagNSID, Rkey: moved.Rkey, Repository: "app", Tag: name}) {
				t.Errorf("nobody is told of tag %s: %+v", name, w.touched)
			}
		}
		w.touched = nil
		w.must(w.Doubt(t.Context(), alice, false))
		if !slices.Equal(w.touched, []index.Touched{{DID: alice}}) {
			t.Errorf("%+v", w.touched)
		}
	})
}
