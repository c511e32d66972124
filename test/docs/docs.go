// Package docs owns how the project's documents are read: their code blocks, links and names. Its tests run
// what the documents tell people to type, as written, and compare what they name with what there is.
package docs

import (
	"regexp"
	"strings"
)

// Section is the part of a Markdown text under the heading, up to the next heading of that level or above;
// "" where there is none.
func Section(text, heading string) string {
	_, after, ok := strings.Cut("\n"+text, "\n"+heading+"\n")
	if !ok {
		return ""
	}
	level := strings.Index(heading, " ")
	end := regexp.MustCompile(`\n#{1,` + string(rune('0'+level)) + `} `).FindStringIndex(after)
	if end != nil {
		after = after[:end[0]]
	}
	return after
}

// Blocks are the indented code blocks of a Markdown text, without their indent.
func Blocks(text string) (found []string) {
	var current []string
	end := func() {
		if block := strings.TrimRight(strings.Join(current, "\n"), "\n"); block != "" {
			found = append(found, block+"\n")
		}
		current = nil
	}
	before := ""
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n")
		code, indented := strings.CutPrefix(line, "    ")
		switch {
		case indented && (len(current) > 0 || strings.TrimSpace(before) == ""):
			current = append(current, code)
		case line == "" && len(current) > 0:
			current = append(current, "")
		default:
			end()
		}
		before = line
	}
	end()
	return found
}

var link = regexp.MustCompile(`\[[^\]]*\]\(([^)\s]+)\)`)

// links are the targets of a Markdown text's links.
func links(text string) (found []string) {
	for _, m := range link.FindAllStringSubmatch(text, -1) {
		found = append(found, m[1])
	}
	return found
}
