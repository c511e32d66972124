package hold

import (
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/bluesky-social/indigo/atproto/syntax"
)

// A post's text may have 300 graphemes. All of ours is ASCII but for single signs, so runes are graphemes.
const (
	maxPostRunes      = 300
	maxShownName      = 100 // of a repository, a handle or a DID
	maxShownPlatforms = 8
	maxPlatformBytes  = 40
)

// pushedImage is what a post says.
type pushedImage struct {
	owner      syntax.DID
	handle     syntax.Handle // "" where there is none that leads back
	repository string
	tag        string
	layers     int
	bytes      int64
	platforms  []string
}

// addPlatform adds os/architecture/variant, each once. Attestations say unknown/unknown.
func (p *pushedImage) addPlatform(os, architecture, variant string) {
	name := os + "/" + architecture
	if variant != "" {
		name += "/" + variant
	}
	plain := !strings.ContainsFunc(name, func(c rune) bool {
		return (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && !strings.ContainsRune("/._-", c)
	})
	if os != "" && architecture != "" && os != "unknown" && plain && len(name) <= maxPlatformBytes && !slices.Contains(p.platforms, name) {
		p.platforms = append(p.platforms, name)
	}
}

// identity is how the owner is written in an image's name.
func (p *pushedImage) identity() string {
	if p.handle != "" {
		return p.handle.String()
	}
	return p.owner.String()
}

// name is the image's, as clients take it: they know no ":" in it.
func (p *pushedImage) name() string {
	return strings.ReplaceAll(p.identity(), ":", "_") + "/" + p.repository
}

// page is the image's page at an AppView.
func (p *pushedImage) page(appView string) string {
	path := "/r/" + url.PathEscape(p.identity())
	for part := range strings.SplitSeq(p.repository, "/") {
		path += "/" + url.PathEscape(part)
	}
	return strings.TrimSuffix(appView, "/") + path
}

// text is the post's, with the bytes of it that name the owner.
func (p *pushedImage) text() (text string, mentionStart, mentionEnd int) {
	text = "📦 "
	mentionStart = len(text)
	text += "@" + cut(p.identity(), maxShownName)
	mentionEnd = len(text)
	text += " pushed " + cut(p.repository, maxShownName) + ":" + cut(p.tag, maxShownName/2) + "\n\n" + p.summary()
	return cut(text, maxPostRunes), mentionStart, mentionEnd
}

// summary is size, layers and platforms: 45.2 MB · 3 layers · linux/amd64, linux/arm64.
func (p *pushedImage) summary() string {
	parts := []string{shortBytes(p.bytes), count(p.layers, "layer")}
	if n := len(p.platforms); n > maxShownPlatforms {
		parts = append(parts, count(n, "platform"))
	} else if n > 0 {
		parts = append(parts, strings.Join(p.platforms, ", "))
	}
	return strings.Join(parts, " · ")
}

func count(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return strconv.Itoa(n) + " " + what
}

// shortBytes is a size with one digit behind the point.
func shortBytes(n int64) string {
	for _, u := range []struct {
		name string
		size float64
	}{{"TB", 1e12}, {"GB", 1e9}, {"MB", 1e6}, {"kB", 1e3}} {
		if float64(n) >= u.size {
			return fmt.Sprintf("%.1f %s", float64(n)/u.size, u.name)
		}
	}
	return count(int(n), "byte")
}

// cut shortens text to most runes, and shows that it did.
func cut(text string, most int) string {
	if utf8.RuneCountInString(text) <= most {
		return text
	}
	return string([]rune(text)[:most-1]) + "…"
}

// post is the record.
//
// Source: app.bsky.feed.post, app.bsky.richtext.facet, app.bsky.embed.external
func (p *pushedImage) post(appView string, now time.Time) map[string]any {
	text, start, end := p.text()
	name := p.name()
	pull := name
	if u, err := url.Parse(appView); err == nil {
		pull = u.Host + "/" + name
	}
	return map[string]any{
		"$type": postNSID, "text": text, "langs": []string{"en"}, "createdAt": timestamp(now),
		"facets": []any{map[string]any{
			"index":    map[string]any{"byteStart": start, "byteEnd": end},
			"features": []any{map[string]any{"$type": "app.bsky.richtext.facet#mention", "did": p.owner}},
		}},
		"embed": map[string]any{"$type": "app.bsky.embed.external", "external": map[string]any{
			"uri": p.page(appView), "title": name + ":" + p.tag, "description": "A container image. docker pull " + pull + ":" + p.tag,
		}},
	}
}
