package hold

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"strings"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/api/atcr"
	"atcr.io/internal/pds"
	"atcr.io/internal/xrpc"
)

const (
	getProfileNSID  = "app.bsky.actor.getProfile"
	getProfilesNSID = "app.bsky.actor.getProfiles"
	maxActors       = 25
)

// profileView is what a hold can say of itself: it follows nobody, and does not know who follows it.
//
// Source: app.bsky.actor.defs#profileViewDetailed
type profileView struct {
	DID            string   `json:"did"`
	Handle         string   `json:"handle"`
	DisplayName    string   `json:"displayName,omitempty"`
	Description    string   `json:"description,omitempty"`
	Avatar         string   `json:"avatar,omitempty"`
	Banner         string   `json:"banner,omitempty"`
	FollowersCount int      `json:"followersCount"`
	FollowsCount   int      `json:"followsCount"`
	PostsCount     int64    `json:"postsCount"`
	CreatedAt      string   `json:"createdAt,omitempty"`
	Labels         []string `json:"labels"`
}

// getProfile is the hold's own profile; it knows no others.
func (h *Hold) getProfile(w http.ResponseWriter, r *http.Request) error {
	actor, err := xrpc.RequiredParam(r, "actor")
	if err != nil {
		return err
	}
	own, err := h.isThisHold(actor)
	if err != nil {
		return err
	}
	if !own {
		return xrpc.InvalidRequest("Profile not found: this server knows its own account %s alone", h.did)
	}
	view, err := h.profileView(r.Context())
	if err != nil {
		return err
	}
	xrpc.WriteJSON(w, http.StatusOK, view)
	return nil
}

// getProfiles leaves out whom the hold does not know, as the method asks.
func (h *Hold) getProfiles(w http.ResponseWriter, r *http.Request) error {
	actors := r.URL.Query()["actors"]
	if len(actors) == 0 || len(actors) > maxActors {
		return xrpc.InvalidRequest("parameter \"actors\" is given %d times; 1 to %d are allowed", len(actors), maxActors)
	}
	out := map[string][]profileView{"profiles": {}}
	for _, actor := range actors {
		own, err := h.isThisHold(actor)
		if err != nil {
			return err
		}
		if !own || len(out["profiles"]) > 0 {
			continue
		}
		view, err := h.profileView(r.Context())
		if err != nil {
			return err
		}
		out["profiles"] = append(out["profiles"], view)
	}
	xrpc.WriteJSON(w, http.StatusOK, out)
	return nil
}

func (h *Hold) isThisHold(actor string) (bool, error) {
	if _, err := syntax.ParseAtIdentifier(actor); err != nil {
		return false, xrpc.InvalidRequest("%.100q is neither a DID nor a handle", actor)
	}
	return actor == h.did.String() || h.repo.Handle() != "" && strings.EqualFold(actor, h.repo.Handle()), nil
}

func (h *Hold) profileView(ctx context.Context) (profileView, error) {
	view := profileView{DID: h.did.String(), Handle: h.repo.Handle(), Labels: []string{}}
	if view.Handle == "" {
		view.Handle = syntax.HandleInvalid.String()
	}
	var err error
	if view.PostsCount, err = h.repo.Count(ctx, postNSID); err != nil {
		return view, err
	}
	record, err := h.repo.GetRecord(ctx, profileNSID, atcr.SelfRkey)
	if errors.Is(err, pds.ErrRecordNotFound) {
		return view, nil
	}
	if err != nil {
		return view, err
	}
	var p struct {
		profile
		Banner *atcr.Blob `json:"banner"`
	}
	if err := json.Unmarshal(record.Value, &p); err != nil {
		h.log.Warn("the profile record is not readable", "error", err)
		return view, nil
	}
	view.DisplayName, view.Description, view.CreatedAt = p.DisplayName, p.Description, p.CreatedAt
	view.Avatar = h.pictureURL(&p.Avatar)
	view.Banner = h.pictureURL(p.Banner)
	return view, nil
}

// pictureURL is where a blob of the hold's repo is fetched, "" for none.
func (h *Hold) pictureURL(b *atcr.Blob) string {
	if b == nil || b.Ref.Link == "" {
		return ""
	}
	q := url.Values{"did": {h.did.String()}, "cid": {b.Ref.Link}}
	return h.config.PublicURL + "/xrpc/" + getBlobNSID + "?" + q.Encode()
}
