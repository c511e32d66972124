package hold

import (
	"context"
	_ "embed" // the default avatar
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"time"

	"atcr.io/api/atcr"
	"atcr.io/internal/httpx"
	"atcr.io/internal/pds"
	"atcr.io/internal/xrpc"
)

const (
	profileNSID    = "app.bsky.actor.profile"
	maxAvatarBytes = 1_000_000 // app.bsky.actor.profile's own limit
)

//go:embed avatar.png
var defaultAvatar []byte

// profile is the hold's public face, as far as the hold writes it. What its owner changed stays.
//
// Source: app.bsky.actor.profile
type profile struct {
	Type        string    `json:"$type"`
	DisplayName string    `json:"displayName"`
	Description string    `json:"description"`
	Avatar      atcr.Blob `json:"avatar"`
	CreatedAt   string    `json:"createdAt"`
}

// introduce writes the profile where there is none. A picture that cannot be had is no reason not to
// start: the one in the binary takes its place, and the log says so.
func (h *Hold) introduce(ctx context.Context) error {
	_, err := h.repo.GetRecord(ctx, profileNSID, atcr.SelfRkey)
	if !errors.Is(err, pds.ErrRecordNotFound) {
		return err
	}
	picture, mime := defaultAvatar, "image/png"
	if source := h.config.ProfileAvatar; source != "" {
		if own, kind, err := h.loadAvatar(ctx, source); err != nil {
			h.log.Warn("HOLD_PROFILE_AVATAR cannot be used: the default picture takes its place", "error", err)
		} else {
			picture, mime = own, kind
		}
	}
	blob, err := h.repo.PutBlob(ctx, mime, picture)
	if err != nil {
		return err
	}
	return h.put(ctx, record{profileNSID, atcr.SelfRkey, profile{
		Type: profileNSID, DisplayName: "ATCR hold " + xrpc.HostOf(h.config.PublicURL),
		Description: "Storage for container images. Who may read and write is in this account's repo.",
		Avatar:      atcr.Blob{LexiconTypeID: "blob", Ref: atcr.BlobRef{Link: blob.CID.String()}, MimeType: mime, Size: int64(len(picture))},
		CreatedAt:   timestamp(h.now()),
	}})
}

// loadAvatar reads a file, or an https URL, whose address is guarded. Errors: too large, no picture.
func (h *Hold) loadAvatar(ctx context.Context, source string) (picture []byte, mime string, err error) {
	if strings.HasPrefix(source, "https://") || strings.HasPrefix(source, "http://") {
		picture, err = h.fetchAvatar(ctx, source)
	} else {
		picture, err = readAvatar(source)
	}
	if err != nil {
		return nil, "", err
	}
	switch mime = http.DetectContentType(picture); mime {
	case "image/png", "image/jpeg":
		return picture, mime, nil
	}
	return nil, "", fmt.Errorf("it is neither png nor jpeg but %s", mime)
}

func readAvatar(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	return httpx.ReadLimited(f, maxAvatarBytes)
}

func (h *Hold) fetchAvatar(ctx context.Context, url string) ([]byte, error) {
	client := httpx.NewClient(httpx.ClientConfig{AllowPrivate: h.config.TestMode, Timeout: 20 * time.Second, FollowRedirects: true, UserAgent: userAgent})
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	res, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = res.Body.Close() }()
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s answered %s", req.URL.Host, res.Status)
	}
	return httpx.ReadLimited(res.Body, maxAvatarBytes)
}
