package index

import (
	"cmp"
	"context"
	"slices"
	"strings"
)

const (
	// searchTerms bounds the words of a question.
	searchTerms = 5
	// searchLooks bounds the rows that a search looks at: of more, those that are first in lexical order count.
	searchLooks = 500
)

// hit is a repository that has the word that was looked for.
type hit struct {
	word, did, repository string
	pushed                int64
}

// Search finds repositories by words of their names, pages and owners' handles; each word of text may be the
// beginning of one. Those that have a word whole come first, then those whose name has it, then those pushed to
// last; at most limit.
func (x *Index) Search(ctx context.Context, text string, limit int) ([]Repository, error) {
	terms := words(text)
	if len(terms) > searchTerms {
		terms = terms[:searchTerms]
	}
	if len(terms) == 0 {
		return nil, nil
	}
	driver, err := x.rarest(ctx, terms)
	if err != nil {
		return nil, err
	}
	hits, err := x.hits(ctx, terms, driver)
	if err != nil {
		return nil, err
	}
	slices.SortStableFunc(hits, func(a, b hit) int {
		return cmp.Or(cmp.Compare(number(b.word == driver), number(a.word == driver)),
			cmp.Compare(number(strings.Contains(b.repository, driver)), number(strings.Contains(a.repository, driver))),
			cmp.Compare(b.pushed, a.pushed), cmp.Compare(a.did, b.did), cmp.Compare(a.repository, b.repository))
	})
	var names []fullName
	seen := map[fullName]bool{}
	for _, h := range hits {
		if name := (fullName{h.did, h.repository}); !seen[name] {
			seen[name] = true
			names = append(names, name)
		}
	}
	return x.named(ctx, names, limit)
}

// named reads repositories by their names, in that order; those of accounts that are not active are left out.
func (x *Index) named(ctx context.Context, names []fullName, limit int) ([]Repository, error) {
	var out []Repository
	for chunk := range slices.Chunk(names, namesAtOnce) {
		where, args := namesAre("r.did", "r.repository", chunk)
		found, err := x.repositories(ctx, `WHERE `+where, args...)
		if err != nil {
			return nil, err
		}
		byName := make(map[fullName]Repository, len(found))
		for _, r := range found {
			byName[fullName{r.DID.String(), r.Name}] = r
		}
		for _, name := range chunk {
			if r, ok := byName[name]; ok {
				out = append(out, r)
			}
			if len(out) == limit {
				return out, nil
			}
		}
	}
	return out, nil
}

// beyond is behind every word that begins with term.
func beyond(term string) string { return term + "\U0010FFFF" }

// rarest is the term that fewest rows have.
func (x *Index) rarest(ctx context.Context, terms []string) (string, error) {
	best, fewest := terms[0], 2*searchLooks+1
	if len(terms) == 1 {
		return best, nil
	}
	for _, term := range terms {
		var n int
		err := x.db.Reader().QueryRowContext(ctx, `SELECT (SELECT count(*) FROM (SELECT 1 FROM index_word WHERE word >= ? AND word < ? LIMIT ?) w)
			+ (SELECT count(*) FROM (SELECT 1 FROM index_owner_word WHERE word >= ? AND word < ? LIMIT ?) o)`,
			term, beyond(term), searchLooks, term, beyond(term), searchLooks).Scan(&n)
		if err != nil {
			return "", err
		}
		if n < fewest {
			best, fewest = term, n
		}
	}
	return best, nil
}

// hits are repositories that have all terms, driver among them: by a word of their own, or of their owner.
func (x *Index) hits(ctx context.Context, terms []string, driver string) ([]hit, error) {
	also, args := "", []any{driver, beyond(driver), searchLooks}
	for _, term := range terms {
		if term == driver {
			continue
		}
		also += ` AND (EXISTS (SELECT 1 FROM index_word o WHERE o.did = r.did AND o.repository = r.repository AND o.word >= ? AND o.word < ?)
			OR EXISTS (SELECT 1 FROM index_owner_word o WHERE o.did = r.did AND o.word >= ? AND o.word < ?))`
		args = append(args, term, beyond(term), term, beyond(term))
	}
	args = append(args, searchLooks)
	own, err := x.queryHits(ctx, `SELECT w.word, r.did, r.repository, r.pushed_at FROM
		(SELECT word, did, repository FROM index_word WHERE word >= ? AND word < ? ORDER BY word, did, repository LIMIT ?) w
		JOIN index_repository r ON r.did = w.did AND r.repository = w.repository WHERE 1 = 1`+also+` LIMIT ?`, args...)
	if err != nil {
		return nil, err
	}
	owners, err := x.queryHits(ctx, `SELECT w.word, r.did, r.repository, r.pushed_at FROM
		(SELECT word, did FROM index_owner_word WHERE word >= ? AND word < ? ORDER BY word, did LIMIT ?) w
		JOIN index_repository r ON r.did = w.did WHERE 1 = 1`+also+` LIMIT ?`, args...)
	return append(own, owners...), err
}

func (x *Index) queryHits(ctx context.Context, query string, args ...any) ([]hit, error) {
	rows, err := x.db.Reader().QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	var out []hit
	for rows.Next() {
		var h hit
		if err := rows.Scan(&h.word, &h.did, &h.repository, &h.pushed); err != nil {
			return nil, err
		}
		out = append(out, h)
	}
	return out, rows.Err()
}

func number(b bool) int {
	if b {
		return 1
	}
	return 0
}
