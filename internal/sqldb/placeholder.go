package sqldb

import (
	"strconv"
	"strings"
)

// Numbered rewrites placeholders of SQLite's kind, ? and ?2, into $1 and $2, outside of strings, quoted names
// and comments. As in SQLite a ? stands for the number after the largest so far.
func Numbered(query string) string {
	if strings.IndexByte(query, '?') < 0 {
		return query
	}
	var b strings.Builder
	b.Grow(len(query) + 16)
	largest := 0
	for i := 0; i < len(query); {
		if n, err := skip(query[i:]); n > 0 || err != nil {
			if err != nil { // the server says what is wrong with it
				n = len(query) - i
			}
			b.WriteString(query[i : i+n])
			i += n
			continue
		}
		if query[i] != '?' {
			b.WriteByte(query[i])
			i++
			continue
		}
		end := i + 1
		for end < len(query) && query[end] >= '0' && query[end] <= '9' {
			end++
		}
		number, err := strconv.Atoi(query[i+1 : end])
		if err != nil {
			number = largest + 1
		}
		largest = max(largest, number)
		b.WriteString("$" + strconv.Itoa(number))
		i = end
	}
	return b.String()
}
