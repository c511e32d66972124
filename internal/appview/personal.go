package appview

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/internal/credential"
	"atcr.io/internal/outbox"
	"atcr.io/internal/session"
	"atcr.io/internal/sqldb"
	"atcr.io/internal/web"
)

// personal is what the database keeps of a person beside what the settings list. The index is not among it: it
// is a copy of what their repo shows to everybody, and follows that. What is blocked is the operator's.
var personal = slices.Concat(session.Personal, credential.Personal, outbox.Personal, []sqldb.Personal{
	{Table: "recent_blob", Where: "did = ?", Show: "repository, digest, hold, at"},
	{Table: "deleted_blob", Where: "did = ?", Show: "repository, digest, deleted_at"},
	{Table: "part_sent", Where: "(hold, upload) IN (SELECT hold, upload FROM part_upload WHERE subject = ?)"},
	{Table: "part_upload", Where: "subject = ?", Show: "hold, size + tail_size AS bytes, used_at"},
	{Table: "pull_count", Where: "owner = ?", Show: "hold, repository, digest, pulls, due_at"},
})

// export is what a person gets of what is kept of them: no secrets.
type export struct {
	ExportedAt time.Time     `json:"exportedAt"`
	DID        syntax.DID    `json:"did"`
	Handle     string        `json:"handle,omitempty"`
	Browsers   []exportEntry `json:"browsers"`
	Devices    []exportEntry `json:"devices"`
	Tokens     []exportEntry `json:"accessTokens"`
	Sessions   []exportEntry `json:"sessions"`
	// Passing is what is kept for a while, by table.
	Passing     map[string][]map[string]any `json:"keptForAWhile"`
	Explanation string                      `json:"explanation"`
}

type exportEntry struct {
	ID      string     `json:"id"`
	Name    string     `json:"name"`
	Detail  string     `json:"detail"`
	Created time.Time  `json:"createdAt"`
	Used    time.Time  `json:"usedAt"`
	Expires *time.Time `json:"expiresAt,omitempty"`
}

// Export is all that is kept here of the visitor.
func (p *pages) Export(ctx context.Context, v web.Visitor) (any, error) {
	items, err := p.List(ctx, v)
	if err != nil {
		return nil, err
	}
	none := []exportEntry{}
	out := export{
		ExportedAt: time.Now().UTC(), DID: v.DID, Handle: v.Handle, Browsers: none, Devices: none, Tokens: none, Sessions: none, Passing: map[string][]map[string]any{},
		Explanation: "What this AppView keeps of you, without the secrets. Your images, tags and profile are records in your own repo, of which it has a copy as anybody may; their blobs are in holds.",
	}
	lists := map[string]*[]exportEntry{web.KindBrowser: &out.Browsers, web.KindDevice: &out.Devices, web.KindToken: &out.Tokens, web.KindSession: &out.Sessions}
	for _, i := range items {
		e := exportEntry{ID: i.ID, Name: i.Name, Detail: i.Detail, Created: i.Created.UTC(), Used: i.Used.UTC()}
		if !i.Expires.IsZero() {
			expires := i.Expires.UTC()
			e.Expires = &expires
		}
		*lists[i.Kind] = append(*lists[i.Kind], e)
	}
	for _, kept := range personal {
		if kept.Show == "" {
			continue
		}
		rows, err := p.db.Show(ctx, kept, v.DID.String())
		if err != nil {
			return nil, err
		}
		for _, row := range rows {
			readable(row)
			out.Passing[kept.Table] = append(out.Passing[kept.Table], row)
		}
	}
	return out, nil
}

// readable makes dates of what columns count in seconds or milliseconds.
func readable(row map[string]any) {
	for column, value := range row {
		n, ok := value.(int64)
		if !ok || column != "at" && column != "since" && !strings.HasSuffix(column, "_at") {
			continue
		}
		at := time.Unix(n, 0)
		if n > 1e11 { // of seconds that would be the year 5138
			at = time.UnixMilli(n)
		}
		row[column] = at.UTC().Format(time.RFC3339)
	}
}

// Forget ends and removes all of it.
func (p *pages) Forget(ctx context.Context, v web.Visitor) error {
	err := errors.Join(p.credentials.RevokeAll(ctx, v.DID), p.sessions.EndAll(ctx, v.DID))
	return errors.Join(err, p.db.Forget(ctx, v.DID.String(), personal...))
}
