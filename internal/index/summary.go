package index

import (
	"database/sql"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strings"
	"unicode"
)

const (
	wordsMax    = 120 // of a repository
	wordMaxSize = 48
	wordMinSize = 2
)

// summarise brings the rows of repositories up to date, whose records changed.
func (w *writer) summarise() error {
	slices.Sort(w.dirty)
	for _, repository := range slices.Compact(w.dirty) {
		if err := w.summariseOne(repository); err != nil {
			return err
		}
	}
	return nil
}

// summariseOne: a repository is there where a manifest or a tag of it is.
func (w *writer) summariseOne(repository string) error {
	did := w.did.String()
	var newest, tagged sql.NullInt64
	err := w.tx.QueryRowContext(w.ctx, `SELECT (SELECT max(created_at) FROM index_manifest WHERE did = ? AND repository = ?),
		(SELECT max(changed_at) FROM index_tag WHERE did = ? AND repository = ?)`, did, repository, did, repository).Scan(&newest, &tagged)
	if err != nil {
		return err
	}
	if !newest.Valid && !tagged.Valid {
		return errors.Join(
			w.exec(`DELETE FROM index_repository WHERE did = ? AND repository = ?`, did, repository),
			w.exec(`DELETE FROM index_word WHERE did = ? AND repository = ?`, did, repository))
	}
	pushed := max(newest.Int64, tagged.Int64)
	words, err := w.words(repository)
	if err != nil {
		return err
	}
	joined := strings.Join(words, " ")
	var had string
	err = w.tx.QueryRowContext(w.ctx, `SELECT words FROM index_repository WHERE did = ? AND repository = ?`, did, repository).Scan(&had)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return err
	}
	isNew := err != nil
	err = w.exec(`INSERT INTO index_repository (did, repository, pushed_at, words) VALUES (?,?,?,?)
		ON CONFLICT (did, repository) DO UPDATE SET pushed_at = excluded.pushed_at, words = excluded.words`, did, repository, pushed, joined)
	if err != nil || !isNew && had == joined {
		return err
	}
	return w.writeWords(repository, words)
}

func (w *writer) writeWords(repository string, words []string) error {
	if err := w.exec(`DELETE FROM index_word WHERE did = ? AND repository = ?`, w.did.String(), repository); err != nil {
		return err
	}
	for _, word := range words {
		if err := w.exec(`INSERT INTO index_word (word, did, repository) VALUES (?,?,?)`, word, w.did.String(), repository); err != nil {
			return err
		}
	}
	return nil
}

// nameWords are the words by which all repositories of a person are found: those of the handle.
func (w *writer) nameWords(handle string) error {
	if err := w.exec(`DELETE FROM index_owner_word WHERE did = ?`, w.did.String()); err != nil {
		return err
	}
	for _, word := range words(handle) {
		if err := w.exec(`INSERT INTO index_owner_word (word, did) VALUES (?,?)`, word, w.did.String()); err != nil {
			return err
		}
	}
	return nil
}

// words of a repository: its name, its page, and what its newest manifest says of itself.
func (w *writer) words(repository string) ([]string, error) {
	var description, annotations string
	err := w.tx.QueryRowContext(w.ctx, `SELECT description FROM index_page WHERE did = ? AND repository = ? ORDER BY updated_at DESC, rkey LIMIT 1`,
		w.did.String(), repository).Scan(&description)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return nil, err
	}
	err = w.tx.QueryRowContext(w.ctx, `SELECT annotations FROM index_manifest WHERE did = ? AND repository = ? ORDER BY created_at DESC, rkey DESC LIMIT 1`,
		w.did.String(), repository).Scan(&annotations)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return nil, err
	}
	texts := []string{repository, description}
	var named map[string]string
	if annotations != "" && json.Unmarshal([]byte(annotations), &named) == nil {
		texts = append(texts, named["org.opencontainers.image.title"], named["org.opencontainers.image.description"])
	}
	return words(texts...), nil
}

// words are the distinct words of texts in lower case, at most wordsMax, in lexical order. A name with
// separators, like my-app, is found whole too.
func words(texts ...string) []string {
	found := map[string]bool{}
	add := func(word string) {
		if len(word) >= wordMinSize && len(word) <= wordMaxSize && len(found) < wordsMax {
			found[word] = true
		}
	}
	for _, text := range texts {
		for field := range strings.FieldsFuncSeq(strings.ToLower(text), func(r rune) bool { return unicode.IsSpace(r) || r == '/' || r == ',' }) {
			field = strings.TrimFunc(field, func(r rune) bool { return !unicode.IsLetter(r) && !unicode.IsDigit(r) })
			add(field)
			for part := range strings.FieldsFuncSeq(field, func(r rune) bool { return !unicode.IsLetter(r) && !unicode.IsDigit(r) }) {
				add(part)
			}
			if len(found) >= wordsMax {
				break
			}
		}
	}
	return slices.Sorted(maps.Keys(found))
}
