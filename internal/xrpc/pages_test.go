package xrpc_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"testing"

	"atcr.io/internal/xrpc"
)

// Would catch a part of a list that is taken for the whole: of a server whose cursors repeat or go in a circle, or that
// gives more pages than are read; and one that is asked without end, or beyond a page that is empty.
func TestPages(t *testing.T) {
	t.Parallel()
	var failed = errors.New("visit failed")
	for name, tt := range map[string]struct {
		next  map[string]string // the cursor that each is answered with
		stop  string            // where visit wants no more
		empty string            // where there are no items
		fail  string            // where it fails
		pages []string          // the cursors asked for
		want  func(error) bool
	}{
		"whole":      {next: map[string]string{"": "a", "a": "b"}, pages: []string{"", "a", "b"}},
		"one":        {pages: []string{""}},
		"stopped":    {next: map[string]string{"": "a", "a": "a"}, stop: "a", pages: []string{"", "a"}},
		"empty page": {next: map[string]string{"": "a", "a": "b", "b": "c"}, empty: "b", pages: []string{"", "a", "b"}},
		"failed": {
			next: map[string]string{"": "a", "a": "a"}, fail: "a", pages: []string{"", "a"},
			want: func(err error) bool { return errors.Is(err, failed) },
		},
		"repeats": {next: map[string]string{"": "a", "a": "a"}, pages: []string{"", "a"}, want: noEnd},
		"circle":  {next: map[string]string{"": "a", "a": "b", "b": "c", "c": "a"}, pages: []string{"", "a", "b", "c"}, want: noEnd},
		"endless": {
			next:  map[string]string{"": "a", "a": "b", "b": "c", "c": "d", "d": "e", "e": "f"},
			pages: []string{"", "a", "b", "c", "d"}, want: noEnd,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var asked []string
			s := serve(t, func(w http.ResponseWriter, r *http.Request) {
				q := r.URL.Query()
				if q.Get("repo") != "x" || q.Has("cursor") == (len(asked) == 0) {
					t.Errorf("asked for %s", r.URL)
				}
				asked = append(asked, q.Get("cursor"))
				_, _ = fmt.Fprintf(w, `{"at":%q,"cursor":%q}`, q.Get("cursor"), tt.next[q.Get("cursor")])
			})
			type page struct{ At, Cursor string }
			query := url.Values{"repo": {"x"}}
			err := xrpc.Pages(t.Context(), upstream(), xrpc.UpstreamCall{Base: s.URL, NSID: nsid, Query: query}, 5, func(p page) (int, string, error) {
				switch {
				case tt.fail != "" && p.At == tt.fail:
					return 1, p.Cursor, failed
				case tt.stop != "" && p.At == tt.stop:
					return 1, "", nil
				case tt.empty != "" && p.At == tt.empty:
					return 0, p.Cursor, nil
				}
				return 1, p.Cursor, nil
			})
			if tt.want == nil && err != nil || tt.want != nil && !tt.want(err) || !slices.Equal(asked, tt.pages) {
				t.Errorf("%v, asked for %q", err, asked)
			}
			if query.Has("cursor") {
				t.Error("the caller's query was changed")
			}
		})
	}
	down := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusBadRequest)
		_, _ = io.WriteString(w, `{"error":"RepoNotFound"}`)
	})
	err := xrpc.Pages(t.Context(), upstream(), xrpc.UpstreamCall{Base: down.URL, NSID: nsid}, 5, func(struct{}) (int, string, error) { return 0, "", nil })
	if !xrpc.IsUpstream(err, "RepoNotFound") {
		t.Error(err)
	}
}

// noEnd tells whether a server is said to have given a list without end.
func noEnd(err error) bool {
	e, ok := errors.AsType[*xrpc.UpstreamError](err)
	return ok && e.Invalid && e.Host != "" && e.NSID == nsid
}
