package sqldb

import (
	"fmt"
	"strings"
)

// Lines of a migration behind which it is for one kind of database alone, until the next such line.
const (
	onlySQLite   = "-- only SQLite"
	onlyPostgres = "-- only PostgreSQL"
	forBoth      = "-- both"
)

// section leaves out what is for the other kind.
func section(text string, postgres bool) (string, error) {
	var b strings.Builder
	in := true
	for line := range strings.Lines(text) {
		switch mark := strings.TrimSpace(line); {
		case mark == onlySQLite:
			in = !postgres
		case mark == onlyPostgres:
			in = postgres
		case mark == forBoth:
			in = true
		case strings.HasPrefix(strings.ToLower(mark), "-- only "):
			return "", fmt.Errorf("%q: write %q, %q or %q", mark, onlySQLite, onlyPostgres, forBoth)
		case in:
			b.WriteString(line)
		}
	}
	return b.String(), nil
}

// Translate turns the SQL of a migration, written for SQLite, into PostgreSQL's. In CREATE TABLE and ALTER
// TABLE it changes the types (INTEGER → BIGINT, BLOB → BYTEA, REAL → DOUBLE PRECISION, TEXT → TEXT COLLATE
// "C", so that order is that of bytes), INTEGER PRIMARY KEY into a key that the database fills, and x'…' into
// bytes; it takes STRICT and WITHOUT ROWID away. Other statements stay as they are.
//
// A migration may have sections for one kind alone, behind a line "-- only SQLite" or "-- only PostgreSQL",
// until a line "-- both".
//
// Errors: for what it knows to have no counterpart: virtual tables, triggers, COLLATE NOCASE, ANY.
func Translate(text string) (string, error) {
	words, err := scan(text)
	if err != nil {
		return "", err
	}
	t := translation{words: words}
	for t.at < len(t.words) {
		if err := t.statement(); err != nil {
			return "", err
		}
	}
	return strings.TrimSpace(t.out.String()), nil
}

// word is a piece of SQL: a name or keyword, or anything else as it stands.
type word struct {
	text string
	name bool // an unquoted name or keyword
	void bool // white space or a comment
}

func (w word) is(keyword string) bool { return w.name && strings.EqualFold(w.text, keyword) }

func scan(text string) (words []word, err error) {
	for i := 0; i < len(text); {
		n, err := skip(text[i:])
		if err != nil {
			return nil, err
		}
		void := false
		switch {
		case n > 0: // quoted, or a comment
			void = text[i] == '-' || text[i] == '/'
			words = append(words, word{text[i : i+n], false, void})
		case isName(text[i]):
			for n = 1; i+n < len(text) && isName(text[i+n]); n++ {
				continue
			}
			words = append(words, word{text[i : i+n], true, false})
		default:
			n, void = 1, strings.IndexByte(" \t\r\n", text[i]) >= 0
			words = append(words, word{text[i : i+1], false, void})
		}
		i += n
	}
	return words, nil
}

// skip is the length of the string, quoted name or comment that text begins with, 0 for none.
func skip(text string) (int, error) {
	closing, at := "", 1
	switch {
	case text[0] == '\'' || text[0] == '"':
		closing = text[:1]
	case strings.HasPrefix(text, "--"):
		closing, at = "\n", 2
	case strings.HasPrefix(text, "/*"):
		closing, at = "*/", 2
	default:
		return 0, nil
	}
	end := strings.Index(text[at:], closing)
	if end < 0 && closing == "\n" {
		return len(text), nil
	}
	if end < 0 {
		return 0, fmt.Errorf("the SQL has a %.10q that does not end", text)
	}
	return at + end + len(closing), nil // a doubled quote is two strings in a row: it comes out the same
}

func isName(b byte) bool {
	return b == '_' || b >= '0' && b <= '9' || b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z' || b >= 0x80
}

type translation struct {
	words []word
	at    int
	out   strings.Builder
}

// next is the place of the n-th word from here that is no white space, -1 for none.
func (t *translation) next(n int) int {
	for i := t.at; i < len(t.words); i++ {
		if !t.words[i].void {
			if n == 0 {
				return i
			}
			n--
		}
	}
	return -1
}

// follows tells whether these keywords come next.
func (t *translation) follows(keywords ...string) bool {
	for n, keyword := range keywords {
		if i := t.next(n); i < 0 || !t.words[i].is(keyword) {
			return false
		}
	}
	return true
}

// drop leaves n words out, and the white space before them.
func (t *translation) drop(n int) {
	for range n {
		t.at = t.next(0) + 1
	}
}

func (t *translation) statement() error {
	if i := t.next(0); i >= 0 { // what stands before
		for ; t.at < i; t.at++ {
			t.out.WriteString(t.words[t.at].text)
		}
	}
	for _, foreign := range [][]string{{"CREATE", "VIRTUAL"}, {"CREATE", "TRIGGER"}, {"PRAGMA"}} {
		if t.follows(foreign...) {
			return fmt.Errorf("%s is SQLite's alone: put it behind %q", strings.Join(foreign, " "), onlySQLite)
		}
	}
	table := t.follows("CREATE", "TABLE") || t.follows("ALTER", "TABLE")
	for t.at < len(t.words) {
		if t.words[t.at].text == ";" {
			t.out.WriteString(";")
			t.at++
			return nil
		}
		if t.follows("COLLATE", "NOCASE") {
			return fmt.Errorf("COLLATE NOCASE is SQLite's alone: keep the text in lower case, or use lower()")
		}
		if err := t.word(table); err != nil {
			return err
		}
	}
	return nil
}

// word writes the next word, or what stands for it in the definition of a table.
func (t *translation) word(table bool) error {
	w := t.words[t.at]
	switch {
	case !table || !w.name:
		if table && w.text == "," && (t.trailing(1, "STRICT") || t.trailing(1, "WITHOUT", "ROWID")) {
			t.at++
			return nil
		}
		t.out.WriteString(w.text)
		t.at++
		return nil
	case t.trailing(0, "STRICT"):
		t.drop(1)
		return nil
	case t.trailing(0, "WITHOUT", "ROWID"):
		t.drop(2)
		return nil
	case t.follows("INTEGER", "PRIMARY", "KEY"):
		t.out.WriteString("BIGINT GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY")
		t.drop(3)
		if t.follows("AUTOINCREMENT") {
			t.drop(1)
		}
		return nil
	case w.is("x") && t.at+1 < len(t.words) && strings.HasPrefix(t.words[t.at+1].text, "'"):
		t.out.WriteString(`'\x` + strings.Trim(t.words[t.at+1].text, "'") + `'::bytea`)
		t.at += 2
		return nil
	case w.is("ANY"):
		return fmt.Errorf("a column of any type is SQLite's alone")
	}
	if to, ok := types[strings.ToUpper(w.text)]; ok && t.afterName() {
		t.out.WriteString(to)
	} else {
		t.out.WriteString(w.text)
	}
	t.at++
	return nil
}

var types = map[string]string{
	"INTEGER": "BIGINT", "INT": "BIGINT", "BLOB": "BYTEA", "REAL": "DOUBLE PRECISION", "TEXT": `TEXT COLLATE "C"`,
}

// afterName tells whether the word before is a name, as that of a column is before its type.
func (t *translation) afterName() bool {
	for i := t.at - 1; i >= 0; i-- {
		if w := t.words[i]; !w.void {
			return w.name && !w.is("AS") || strings.HasPrefix(w.text, `"`)
		}
	}
	return false
}

// trailing tells whether these keywords come after n words, as options of a table: behind them it ends, or
// another option follows.
func (t *translation) trailing(n int, keywords ...string) bool {
	for i, keyword := range keywords {
		if at := t.next(n + i); at < 0 || !t.words[at].is(keyword) {
			return false
		}
	}
	end := t.next(n + len(keywords))
	return end < 0 || t.words[end].text == ";" || t.words[end].text == ","
}
