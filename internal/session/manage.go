package session

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/internal/xrpc"
)

// Kind is how a session was opened.
type Kind string

// The ways in which sessions are opened.
const (
	OAuth       Kind = "oauth"
	AppPassword Kind = "app-password"
)

// Info is a session as its person sees it.
type Info struct {
	ID        string
	Kind      Kind
	PDS       string   // base URL
	Scopes    []string // as the server granted them; of OAuth alone
	Missing   []string // permissions that this AppView needs by now and the approval lacks
	CreatedAt time.Time
	UsedAt    time.Time // of the last refresh, so up to an hour ago
}

// Sessions are a person's, the newest use first.
func (s *Store) Sessions(ctx context.Context, did syntax.DID) ([]Info, error) {
	rows, err := s.db.Reader().QueryContext(ctx, `SELECT id, pds, issuer, scope, created_at, used_at FROM session
		WHERE did = ? ORDER BY used_at DESC, id`, did.String())
	if err != nil {
		return nil, fmt.Errorf("list sessions: %w", err)
	}
	defer func() { _ = rows.Close() }()
	var out []Info
	for rows.Next() {
		var i Info
		var issuer, scope string
		var created, used int64
		if err := rows.Scan(&i.ID, &i.PDS, &issuer, &scope, &created, &used); err != nil {
			return nil, fmt.Errorf("list sessions: %w", err)
		}
		i.Kind, i.CreatedAt, i.UsedAt = AppPassword, time.Unix(created, 0), time.Unix(used, 0)
		if issuer != "" {
			i.Kind, i.Scopes, i.Missing = OAuth, strings.Fields(scope), s.missing(scope)
		}
		out = append(out, i)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("list sessions: %w", err)
	}
	return out, nil
}

// missing are the permissions that an approval lacks.
func (s *Store) missing(scope string) []string {
	if s.config.OAuth == nil {
		return nil
	}
	return s.config.OAuth.Missing(scope)
}

// SessionFor is the session by which this AppView acts for a person who is not there: for their devices and
// access tokens. It is the one of OAuth. Errors: ErrGone (nobody signed in, or the account has moved).
func (s *Store) SessionFor(ctx context.Context, a Account) (Session, error) {
	t, err := s.find(ctx, a.DID, byOAuth)
	if err != nil {
		return Session{}, err
	}
	if t.pds != a.PDS {
		return Session{}, fmt.Errorf("%w: the account has moved to another PDS", ErrGone)
	}
	return Session{ID: t.id, DID: t.did}, nil
}

// Another is the session of a person that was used last, but for one. Errors: ErrGone (there is none).
func (s *Store) Another(ctx context.Context, did syntax.DID, not string) (Session, error) {
	t, err := s.scan(s.db.Reader().QueryRowContext(ctx, `SELECT `+columns+` FROM session WHERE did = ? AND id <> ? ORDER BY used_at DESC LIMIT 1`, did.String(), not))
	if err != nil {
		return Session{}, err
	}
	return Session{ID: t.id, DID: t.did}, nil
}

// End ends a session of a person: here, where browsers that it signed in are signed out, and at its server. It
// is ended here even where the server cannot be reached. Errors: ErrGone (there is no such session of theirs).
func (s *Store) End(ctx context.Context, did syntax.DID, id string) error {
	release, err := s.alone(ctx, id)
	if err != nil {
		return err
	}
	defer release()
	t, err := s.load(ctx, id)
	if err != nil && !errors.Is(err, ErrGone) {
		return err
	}
	if err == nil && t.did != did {
		return ErrGone
	}
	if err != nil { // not there; or written with another secret, and then nothing can be told to the server
		if owner, ok, err := s.owner(ctx, id); err != nil || !ok || owner != did {
			return errors.Join(ErrGone, err)
		}
	}
	if err := s.remove(ctx, id); err != nil {
		return err
	}
	if t != nil {
		s.revoke(ctx, t)
	}
	return nil
}

// owner is whose row it is, readable or not.
func (s *Store) owner(ctx context.Context, id string) (did syntax.DID, found bool, err error) {
	rows, err := s.db.Reader().QueryContext(ctx, `SELECT did FROM session WHERE id = ?`, id)
	if err != nil {
		return "", false, fmt.Errorf("read session: %w", err)
	}
	defer func() { _ = rows.Close() }()
	var text string
	if found = rows.Next(); found {
		err = rows.Scan(&text)
	}
	if err = errors.Join(err, rows.Err()); err != nil {
		return "", false, fmt.Errorf("read session: %w", err)
	}
	return syntax.DID(text), found, nil
}

// EndAll ends all sessions of a person, those of their browsers included.
func (s *Store) EndAll(ctx context.Context, did syntax.DID) error {
	all, err := s.Sessions(ctx, did)
	if err != nil {
		return err
	}
	for _, i := range all {
		if err := s.End(ctx, did, i.ID); err != nil && !errors.Is(err, ErrGone) {
			return err
		}
	}
	return s.endBrowsers(ctx, did)
}

// revoke ends a session at its server. That it may fail changes nothing for us.
func (s *Store) revoke(ctx context.Context, t *tokens) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), keepTimeout)
	defer cancel()
	var err error
	if t.byOAuth() {
		err = s.revokeOAuth(ctx, t)
	} else {
		err = s.upstream.JSON(ctx, xrpc.UpstreamCall{
			Base: t.pds, NSID: "com.atproto.server.deleteSession", Method: http.MethodPost, Token: t.refresh,
		}, nil)
	}
	if err != nil {
		s.config.Logger.Warn("a session could not be ended at its server", "did", t.did.String(), "error", err)
	}
}

func (s *Store) revokeOAuth(ctx context.Context, t *tokens) error {
	if s.config.OAuth == nil || t.refresh == "" {
		return nil
	}
	server, err := s.config.OAuth.ServerAt(ctx, t.issuer)
	if err != nil {
		return err
	}
	return s.config.OAuth.Revoke(ctx, server, t.bound, t.refresh)
}

// BoundKeys are our OAuth keys that sessions are bound to, with how many there are of each.
func (s *Store) BoundKeys(ctx context.Context) (map[string]int, error) {
	rows, err := s.db.Reader().QueryContext(ctx, `SELECT client_key, count(*) FROM session WHERE client_key <> '' GROUP BY client_key`)
	if err != nil {
		return nil, fmt.Errorf("count sessions: %w", err)
	}
	defer func() { _ = rows.Close() }()
	out := map[string]int{}
	for rows.Next() {
		var id string
		var n int
		if err := rows.Scan(&id, &n); err != nil {
			return nil, fmt.Errorf("count sessions: %w", err)
		}
		out[id] = n
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("count sessions: %w", err)
	}
	return out, nil
}
