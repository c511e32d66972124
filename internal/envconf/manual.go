package envconf

import (
	"fmt"
	"reflect"
	"strings"
	"time"
)

// Usage is the list of settings for --help.
func Usage(cfg any) string {
	var b strings.Builder
	b.WriteString("Settings:\n")
	for _, f := range fieldsOf(cfg) {
		fmt.Fprintf(&b, "  %s%s\n", f.name, f.note())
		for _, line := range wrap(f.doc, 90) {
			fmt.Fprintf(&b, "      %s\n", line)
		}
	}
	return b.String()
}

// Example is an environment file of KEY=value lines: what is required to be filled in, the defaults as
// comments. For `set -a; source FILE`.
func Example(cfg any) string {
	var b strings.Builder
	b.WriteString("# Each setting may also come from a file that NAME_FILE names. Lines that begin with # show the defaults.\n")
	for _, f := range fieldsOf(cfg) {
		b.WriteString("\n")
		for _, line := range wrap(f.doc, 98) {
			fmt.Fprintf(&b, "# %s\n", line)
		}
		switch {
		case f.required:
			fmt.Fprintf(&b, "%s=%s\n", f.name, f.example)
		case f.def != "":
			fmt.Fprintf(&b, "#%s=%s\n", f.name, f.def)
		default:
			fmt.Fprintf(&b, "#%s=%s\n", f.name, f.example)
		}
	}
	return b.String()
}

// Markdown is the table of the settings.
func Markdown(cfg any) string {
	var b strings.Builder
	b.WriteString("| setting | default | |\n|---|---|---|\n")
	for _, f := range fieldsOf(cfg) {
		def := ""
		switch {
		case f.required:
			def = "required"
		case f.def != "":
			def = "`" + f.def + "`"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", f.name, def, strings.ReplaceAll(f.doc, "|", "\\|"))
	}
	return b.String()
}

// Effective is cfg as KEY=value lines, secrets hidden.
func Effective(cfg any) string {
	var b strings.Builder
	for _, f := range fieldsOf(cfg) {
		fmt.Fprintf(&b, "%s=%s\n", f.name, f.shown())
	}
	return b.String()
}

func (f field) shown() string {
	if f.secret && !f.value.IsZero() {
		return "(hidden)"
	}
	switch v := f.value.Interface().(type) {
	case []string:
		return strings.Join(v, ",")
	case time.Duration:
		return v.String()
	default:
		return fmt.Sprint(reflect.ValueOf(v))
	}
}

func (f field) note() string {
	switch {
	case f.required:
		return " (required)"
	case f.def != "":
		return " (default " + f.def + ")"
	}
	return ""
}

// wrap breaks text at spaces into lines of at most width bytes, where words allow.
func wrap(text string, width int) []string {
	var lines []string
	line := ""
	for word := range strings.FieldsSeq(text) {
		if line != "" && len(line)+1+len(word) > width {
			lines = append(lines, line)
			line = ""
		}
		if line != "" {
			line += " "
		}
		line += word
	}
	return append(lines, line)
}
