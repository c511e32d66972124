package xrpc

import (
	"context"
	"errors"
	"hash/maphash"
	"maps"
	"net/http"
	"net/url"
)

var errNoEnd = errors.New("the list does not end")

// Pages reads a list that a method gives in pages: each answer, decoded into a new P, goes to visit, which returns how many
// items it had and the cursor of the next one. The list ends where there are none, whatever the cursor, or no cursor; visit
// returns "" where no more is wanted.
//
// A server that gives a cursor again, or more than most pages, has not given the whole list, whatever was visited.
// Errors: *UpstreamError, Invalid for such a list; visit's.
func Pages[P any](ctx context.Context, u Upstream, c UpstreamCall, most int, visit func(P) (items int, next string, err error)) error {
	c.Query = maps.Clone(c.Query)
	if c.Query == nil {
		c.Query = url.Values{}
	}
	seed, given := maphash.MakeSeed(), map[uint64]bool{} // a cursor may be as long as an answer
	for range most {
		var page P
		if err := u.JSON(ctx, c, &page); err != nil {
			return err
		}
		items, next, err := visit(page)
		if err != nil || items == 0 || next == "" {
			return err
		}
		hash := maphash.String(seed, next)
		if given[hash] {
			break
		}
		given[hash] = true
		c.Query.Set("cursor", next)
	}
	return &UpstreamError{Host: HostOf(c.Base), NSID: c.NSID, Status: http.StatusOK, Invalid: true, Err: errNoEnd}
}
