package session

import "context"

// SessionFor is the session of an account that was used last: what devices and access tokens act with.
// Errors: ErrGone.
func (s *Store) SessionFor(ctx context.Context, a Account) (Session, error) {
	t, err := s.scan(s.db.Reader().QueryRowContext(ctx,
		`SELECT `+columns+` FROM session WHERE did = ? AND pds = ? ORDER BY used_at DESC, id LIMIT 1`, a.DID.String(), a.PDS))
	if err != nil {
		return Session{}, err
	}
	return Session{ID: t.id, DID: t.did}, nil
}
