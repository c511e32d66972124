package credhelper

import (
	"fmt"
	"io"
	"strings"
	"unicode"
)

// sayTo writes a text and its arguments to people. Arguments come from registries, records and other people's
// servers: what a terminal would obey in them, and not show, becomes a question mark.
func sayTo(w io.Writer, format string, args ...any) {
	shown := make([]any, len(args))
	for i, arg := range args {
		shown[i] = printable(fmt.Sprint(arg))
	}
	_, _ = fmt.Fprintf(w, format, shown...) // nobody reads it: nobody to tell
}

// printable is text without control characters, other than ends of lines and the tabs of files.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' || unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, text)
}
