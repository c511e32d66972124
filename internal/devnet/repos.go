package devnet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"path/filepath"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/internal/pds"
	"atcr.io/internal/sqldb"
	"atcr.io/internal/xrpc"
)

// repos are the accounts' repos and their database.
type repos struct {
	db   *sqldb.DB
	host *pds.Host
}

// openRepos takes up the repos of the accounts that are there.
func openRepos(ctx context.Context, dir string, s *server, logger *slog.Logger) (*repos, error) {
	db, err := sqldb.Open(ctx, filepath.Join(dir, "repos.sqlite3"))
	if err != nil {
		return nil, err
	}
	r := &repos{db: db}
	r.host, err = pds.Open(ctx, pds.Config{
		DB: db, Logger: logger, Now: s.now, ServerDID: syntax.DID(s.did), Domains: []string{".test"},
		Authorise: s.authoriseWrite, AuthoriseBlob: r.authoriseBlob(s), DIDDocument: s.didDocument,
	})
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	for _, of := range s.accounts.all() {
		if err := r.create(ctx, of); err != nil {
			return nil, errors.Join(err, r.close())
		}
	}
	return r, nil
}

// create takes up the repo of an account, and makes it where there is none.
func (r *repos) create(ctx context.Context, of *account) error {
	_, err := r.host.AddRepo(ctx, of.DID, of.key, of.Handle.String())
	return err
}

func (r *repos) close() error {
	r.host.Close()
	return r.db.Close()
}

// authoriseWrite lets the owner of a repo write to it, whichever password opened the session.
func (s *server) authoriseWrite(_ context.Context, r *http.Request, _ string, repo *pds.Repo, _ []pds.Write) error {
	of, _, err := s.caller(r, scopeAccess, scopeAppPass)
	if err != nil {
		return err
	}
	if of.DID != repo.DID() {
		return xrpc.Errorf(http.StatusUnauthorized, "AuthenticationRequired", "%s is not your repo", repo.DID())
	}
	return nil
}

func (r *repos) authoriseBlob(s *server) func(context.Context, *http.Request) (*pds.Repo, error) {
	return func(_ context.Context, req *http.Request) (*pds.Repo, error) {
		of, _, err := s.caller(req, scopeAccess, scopeAppPass)
		if err != nil {
			return nil, err
		}
		return r.host.Repo(of.DID)
	}
}

func (s *server) didDocument(_ context.Context, did syntax.DID) (any, error) {
	last, err := s.directory.last(did)
	if err != nil {
		return nil, fmt.Errorf("document of %s: %w", did, err)
	}
	return document(did, last.Operation), nil
}
