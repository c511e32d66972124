package web

import (
	"context"
	"net/http"
	"strings"
)

// Images are what people have pushed. Errors are *Problem where there is no such image.
type Images interface {
	// Tags are all tags of a repository, in lexical order. owner is a handle or DID as it stands in the name.
	Tags(ctx context.Context, owner, repository string) ([]string, error)
}

// tagsShown bounds a page.
const tagsShown = 100

type imagePage struct {
	page
	Owner, Repository string
	Tags              []string
	More              bool
}

// getImage is where posts and others link to: how an image is pulled, and its tags.
func (s *Server) getImage(w http.ResponseWriter, r *http.Request, v Visitor) error {
	if wait, ok := s.looks.Take(s.config.Caller(r)); !ok {
		return limited(wait)
	}
	owner, repository := r.PathValue("owner"), strings.TrimSuffix(r.PathValue("repository"), "/")
	tags, err := s.config.Images.Tags(r.Context(), owner, repository)
	if err != nil {
		return err
	}
	shown := tags[:min(len(tags), tagsShown)]
	return s.render(w, http.StatusOK, "image", imagePage{
		page: s.page(owner+"/"+repository, v), Owner: owner, Repository: repository, Tags: shown, More: len(tags) > len(shown),
	})
}
