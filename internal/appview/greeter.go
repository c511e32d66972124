package appview

import (
	"context"
	"encoding/json"
	"log/slog"
	"time"

	"atcr.io/api/atcr"
	"atcr.io/internal/session"
)

// greetTimeout bounds what a first sign-in waits for its profile.
const greetTimeout = 5 * time.Second

// greeter makes the profile of a person who signs in for the first time: without a defaultHold, which means
// the AppView's default.
type greeter struct {
	sessions caller
	holds    *holds
	logger   *slog.Logger
	clock    clock
}

// welcome makes the profile where there is none. That it may fail keeps nobody out.
func (g *greeter) welcome(ctx context.Context, s session.Session) {
	ctx, cancel := context.WithTimeout(ctx, greetTimeout)
	defer cancel()
	profile, err := g.holds.profiles.get(ctx, s.DID)
	if err == nil && profile == nil {
		err = g.create(ctx, s)
		g.holds.profiles.forget(s.DID)
	}
	if err != nil {
		g.logger.Warn("no profile could be made", "did", s.DID.String(), "error", err)
	}
}

func (g *greeter) create(ctx context.Context, s session.Session) error {
	now := g.clock().UTC().Format("2006-01-02T15:04:05.000Z")
	body, err := json.Marshal(map[string]any{
		"repo": s.DID, "collection": atcr.SailorProfileNSID, "rkey": atcr.SelfRkey,
		"record": atcr.SailorProfile{CreatedAt: now, UpdatedAt: now},
	})
	if err != nil {
		return err
	}
	return g.sessions.Call(ctx, s.ID, session.Call{NSID: "com.atproto.repo.createRecord", Body: body, ContentType: "application/json"}, nil)
}
