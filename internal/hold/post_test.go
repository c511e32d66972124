package hold

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/api/atcr"
	"atcr.io/internal/oci"
)

// bskyPost is what readers of a post look at.
type bskyPost struct {
	Text   string
	Langs  []string
	Facets []struct {
		Index    struct{ ByteStart, ByteEnd int }
		Features []struct {
			Type string `json:"$type"`
			DID  string
		}
	}
	Embed struct {
		Type     string `json:"$type"`
		External struct{ URI, Title, Description string }
	}
}

// recordOf is the record that an AppView writes of what it tells a hold.
func (s *server) recordOf(in atcr.HoldNotifyManifestInput) map[string]any {
	r := map[string]any{
		"$type": atcr.ManifestNSID, "repository": in.Repository, "digest": in.ManifestDigest, "mediaType": in.Manifest.MediaType,
		"schemaVersion": 2, "createdAt": "2026-01-01T00:00:00Z", "holdDid": s.did,
	}
	if in.Manifest.Config != nil {
		r["config"] = in.Manifest.Config
	}
	if len(in.Manifest.Layers) > 0 {
		r["layers"] = in.Manifest.Layers
	}
	if len(in.Manifest.Manifests) > 0 {
		r["manifests"] = in.Manifest.Manifests
	}
	return r
}

func manifestURI(in atcr.HoldNotifyManifestInput) string {
	return "at://" + in.UserDid + "/" + atcr.ManifestNSID + "/" + atcr.ManifestRkey(in.ManifestDigest)
}

func posting(p *people, c *clock) func(*Config) {
	return func(config *Config) {
		open(config)
		c.set(config)
		config.BlueskyPosts, config.TestMode, config.HandleResolver = true, true, p.url
	}
}

// onlyPost is the one post of the hold.
func (s *server) onlyPost(t *testing.T) (post bskyPost) {
	t.Helper()
	posts := s.records(t, postNSID)
	if len(posts) != 1 {
		t.Fatalf("%d posts", len(posts))
	}
	for rkey, raw := range posts {
		if _, err := syntax.ParseTID(rkey); err != nil {
			t.Errorf("%s: %v", rkey, err)
		}
		if err := json.Unmarshal([]byte(raw), &post); err != nil {
			t.Fatal(err)
		}
	}
	return post
}

func (s *server) notified(t *testing.T, did syntax.DID, in atcr.HoldNotifyManifestInput) (out atcr.HoldNotifyManifestOutput) {
	t.Helper()
	a := s.notify(t, did, in)
	if a.status != http.StatusOK {
		t.Fatalf("%d %s", a.status, a.body)
	}
	a.json(t, &out)
	return out
}

// posted is the post that a push made, "" for none.
func (s *server) posted(t *testing.T, did syntax.DID, in atcr.HoldNotifyManifestInput) (uri string) {
	t.Helper()
	before := s.records(t, postNSID)
	s.notified(t, did, in)
	s.posts.making.Wait()
	for rkey := range s.records(t, postNSID) {
		if _, ok := before[rkey]; !ok {
			uri += "at://" + s.did.String() + "/" + postNSID + "/" + rkey
		}
	}
	return uri
}

// Would catch a post that says something else than was pushed, whose mention does not cover the pusher's name,
// or that is made twice.
func TestPost(t *testing.T) {
	t.Parallel()
	p, c := newPeople(t), &clock{}
	s := startHold(t, p, posting(p, c))
	config := s.push(t, writer, []byte(`{"architecture":"arm64","os":"linux","variant":"v8"}`))
	layers := []oci.Digest{s.push(t, writer, make([]byte, 1_200_000)), s.push(t, writer, []byte("another"))}
	in := message(writer, "team/app", "m", config, layers...)
	p.repos.keep(manifestURI(in), s.recordOf(in))
	if s.posted(t, writer, in) == "" {
		t.Fatal("no post")
	}
	post := s.onlyPost(t)
	if want := "📦 @writer.test pushed team/app:1.0\n\n1.2 MB · 2 layers · linux/arm64/v8"; post.Text != want {
		t.Errorf("%q, want %q", post.Text, want)
	}
	facet := post.Facets[0]
	if got := post.Text[facet.Index.ByteStart:facet.Index.ByteEnd]; got != "@writer.test" || facet.Features[0].DID != writer.String() || facet.Features[0].Type != "app.bsky.richtext.facet#mention" {
		t.Errorf("the mention covers %q: %+v", got, facet)
	}
	if card := post.Embed.External; post.Embed.Type != "app.bsky.embed.external" || card.URI != "https://appview.example/r/writer.test/team/app" || card.Title != "writer.test/team/app:1.0" || !strings.Contains(card.Description, "docker pull appview.example/writer.test/team/app:1.0") {
		t.Errorf("%+v", post.Embed)
	}
	c.advance(time.Hour)
	if again := s.posted(t, writer, in); again != "" || len(s.records(t, postNSID)) != 1 {
		t.Errorf("a second push of the same: %+v", again)
	}
	in.Tag = "2.0"
	if other := s.posted(t, writer, in); other == "" || len(s.records(t, postNSID)) != 2 {
		t.Errorf("another tag: %+v", other)
	}
	in.Tag = ""
	if none := s.posted(t, writer, in); none != "" {
		t.Errorf("no tag: %+v", none)
	}
	if a := s.send(t, http.MethodGet, "/xrpc/"+getProfileNSID+"?actor="+url.QueryEscape(s.did.String()), "", nil); !strings.Contains(a.body, `"postsCount":2`) {
		t.Errorf("%d %s", a.status, a.body)
	}
}

// Would catch a post about an image of several platforms that counts manifests for layers.
func TestPostOfAnIndex(t *testing.T) {
	t.Parallel()
	p, c := newPeople(t), &clock{}
	s := startHold(t, p, posting(p, c))
	shared := s.push(t, writer, make([]byte, 2000))
	index := atcr.HoldNotifyManifestInput{Repository: "app", UserDid: writer.String(), ManifestDigest: manifestDigest("index"), Tag: "latest", Manifest: atcr.HoldNotifyManifestManifestInfo{MediaType: oci.MediaTypeImageIndex}}
	for i, architecture := range []string{"amd64", "arm64", "unknown"} {
		child := message(writer, "app", fmt.Sprint("child", i), s.push(t, writer, fmt.Append(nil, "config", i)), shared, s.push(t, writer, fmt.Append(nil, "layer", i)))
		child.Tag = ""
		if out := s.posted(t, writer, child); out != "" {
			t.Error("a child of an index is a post of its own")
		}
		os := "linux"
		if architecture == "unknown" { // as attestations are
			os = architecture
		}
		index.Manifest.Manifests = append(index.Manifest.Manifests, atcr.HoldNotifyManifestManifestChild{
			Digest: child.ManifestDigest, Size: 500, Platform: &atcr.ManifestPlatform{Os: os, Architecture: architecture},
		})
	}
	p.repos.keep(manifestURI(index), s.recordOf(index))
	index.Manifest.Manifests = slices.Clone(index.Manifest.Manifests)
	for i := range index.Manifest.Manifests { // the record says it too
		index.Manifest.Manifests[i].Platform = nil
	}
	if out := s.posted(t, writer, index); out == "" {
		t.Fatalf("%+v", out)
	}
	if got, want := s.onlyPost(t).Text, "📦 @writer.test pushed app:latest\n\n2.0 kB · 4 layers · linux/amd64, linux/arm64"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// Would catch a post about an image that its owner's repo does not have, or about what somebody made up.
func TestNoPost(t *testing.T) {
	t.Parallel()
	p, c := newPeople(t), &clock{}
	s := startHold(t, p, posting(p, c))
	config, layer := s.push(t, writer, []byte("{}")), s.push(t, writer, []byte("layer"))
	for name, change := range map[string]func(record map[string]any){
		"another digest":     func(r map[string]any) { r["digest"] = manifestDigest("else") },
		"another repository": func(r map[string]any) { r["repository"] = "else" },
		"another hold":       func(r map[string]any) { r["holdDid"] = "did:web:other.example" },
		"another config":     func(r map[string]any) { r["config"] = blobInfo(layer) },
		"another layer":      func(r map[string]any) { r["layers"] = []any{blobInfo(oci.FromBytes([]byte("else")))} },
		"another type":       func(r map[string]any) { r["mediaType"] = oci.MediaTypeImageIndex },
		"no form":            func(r map[string]any) { r["layers"] = "none" },
		"nothing":            func(r map[string]any) { clear(r) },
	} {
		in := message(writer, "app", name, config, layer)
		record := s.recordOf(in)
		change(record)
		p.repos.keep(manifestURI(in), record)
		if out := s.posted(t, writer, in); out != "" {
			t.Errorf("%s: %+v", name, out)
		}
	}
	if out := s.posted(t, writer, message(writer, "app", "no record", config, layer)); out != "" {
		t.Errorf("%+v", out)
	}
	if posts := s.records(t, postNSID); len(posts) != 0 {
		t.Errorf("%v", posts)
	}
	quiet := startHold(t, p, func(config *Config) { posting(p, c)(config); config.BlueskyPosts = false })
	in := message(writer, "app", "m", quiet.push(t, writer, []byte("{}")))
	p.repos.keep(manifestURI(in), quiet.recordOf(in))
	if out := quiet.posted(t, writer, in); out != "" {
		t.Errorf("a hold that posts nothing: %+v", out)
	}
}

// Would catch a person about whom a hold posts all day, and posts that stay behind when their person leaves.
func TestPostLimits(t *testing.T) {
	t.Parallel()
	p, c := newPeople(t), &clock{}
	s := startHold(t, p, posting(p, c))
	config := s.push(t, writer, []byte("{}"))
	in := message(writer, "app", "m", config)
	p.repos.keep(manifestURI(in), s.recordOf(in))
	made := 0
	push := func(tag string) bool {
		in.Tag = tag
		return s.posted(t, writer, in) != ""
	}
	for i := range maxPostsPerDay + 2 {
		if push(fmt.Sprint("v", i)) {
			made++
		}
	}
	if made != maxPostsPerDay {
		t.Errorf("%d posts in a day", made)
	}
	var data atcr.HoldExportUserDataOutput
	export := func() {
		s.send(t, http.MethodGet, "/xrpc/"+atcr.HoldExportUserDataNSID, s.token(t, writer, atcr.HoldExportUserDataNSID), nil).json(t, &data)
	}
	if export(); len(data.BlueskyPosts) != maxPostsPerDay {
		t.Errorf("%d posts exported", len(data.BlueskyPosts))
	}
	if a := s.call(t, writer, atcr.HoldDeleteUserDataNSID, struct{}{}); a.status != http.StatusOK {
		t.Fatalf("%d %s", a.status, a.body)
	}
	if export(); len(data.BlueskyPosts) != 0 || len(s.records(t, postNSID)) != 0 {
		t.Errorf("posts that are left: %v", s.records(t, postNSID))
	}
	if push("again") {
		t.Error("deleting data gives the day's posts back")
	}
	c.advance(25 * time.Hour)
	if !push("tomorrow") {
		t.Error("no post the day after")
	}
}

// Would catch a push that waits for the server of who pushed, and a post about somebody who was erased meanwhile.
func TestPostWaitsForNobody(t *testing.T) {
	t.Parallel()
	p, c := newPeople(t), &clock{}
	s := startHold(t, p, posting(p, c))
	in := message(writer, "app", "m", s.push(t, writer, []byte("{}")))
	p.repos.keep(manifestURI(in), s.recordOf(in))
	for _, erased := range []bool{false, true} {
		in.Tag = fmt.Sprint(erased)
		p.repos.mu.Lock() // their server does not answer
		a := s.notify(t, writer, in)
		if erased {
			a = s.call(t, writer, atcr.HoldDeleteUserDataNSID, struct{}{})
		}
		p.repos.mu.Unlock()
		if a.status != http.StatusOK {
			t.Fatal(a.body)
		}
		s.posts.making.Wait()
		if n := len(s.records(t, postNSID)); (n == 0) != erased {
			t.Errorf("erased %v: %d posts", erased, n)
		}
	}
}

// Would catch a post that is lost with the process that was making it, and one that is made twice for that.
func TestPostOutlivesTheHold(t *testing.T) {
	t.Parallel()
	p, c := newPeople(t), &clock{}
	s := startHold(t, p, posting(p, c))
	in := message(writer, "app", "m", s.push(t, writer, []byte("{}")))
	p.repos.keep(manifestURI(in), s.recordOf(in))
	reopen := func() {
		t.Helper()
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		var err error
		if s.Hold, err = Open(t.Context(), s.config, slog.New(slog.DiscardHandler), nil); err != nil {
			t.Fatal(err)
		}
	}
	p.repos.mu.Lock() // their server does not answer
	a := s.notify(t, writer, in)
	reopen()
	p.repos.mu.Unlock()
	if a.status != http.StatusOK {
		t.Fatal(a.body)
	}
	s.posts.making.Wait()
	if post := s.onlyPost(t); !strings.Contains(post.Text, "pushed app:1.0") {
		t.Errorf("%q", post.Text)
	}
	reopen()
	s.posts.making.Wait()
	s.onlyPost(t)
	if due, err := s.ledger.PostsDue(t.Context(), 10); err != nil || len(due) != 0 {
		t.Errorf("%d posts are left, %v", len(due), err)
	}
}

// Would catch a text that no client takes, whatever names people choose.
func TestPostText(t *testing.T) {
	t.Parallel()
	long := pushedImage{owner: "did:plc:abc", handle: syntax.Handle(strings.Repeat("a", 60) + "." + strings.Repeat("b", 60) + ".test"), repository: strings.Repeat("r", 255), tag: strings.Repeat("t", 128), layers: 1000, bytes: 1 << 50}
	for i := range 300 {
		long.addPlatform("linux", fmt.Sprint("arch", i), "")
	}
	plain := pushedImage{owner: "did:plc:abc", repository: "a", tag: "b", layers: 1, bytes: 1}
	plain.addPlatform("linux", "amd64", "")
	plain.addPlatform("linux", "amd64", "")
	plain.addPlatform("linux", "amd64\n@you", "")
	catalog, err := newCatalog()
	if err != nil {
		t.Fatal(err)
	}
	for _, image := range []pushedImage{long, plain, {owner: syntax.DID("did:web:" + strings.Repeat("x", 2000)), repository: "a", tag: "b"}} {
		text, start, end := image.text()
		if n := utf8.RuneCountInString(text); n > 300 || !utf8.ValidString(text) || !strings.HasPrefix(text[start:end], "@") || end > len(text) {
			t.Errorf("%d runes, mention %d to %d: %q", n, start, end, text)
		}
		raw, err := json.Marshal(image.post("https://atcr.io", time.Now()))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := catalog.validate(postNSID, "", decoded(t, raw)); err != nil {
			t.Errorf("%s: %v", raw, err)
		}
	}
	if !slices.Equal(plain.platforms, []string{"linux/amd64"}) || plain.summary() != "1 byte · 1 layer · linux/amd64" || plain.name() != "did_plc_abc/a" {
		t.Errorf("%+v %q", plain, plain.summary())
	}
}
