// Package envconf fills a tagged struct from the environment, and writes the manual of the settings from the
// same struct: help, an example file, a table, the values in effect.
//
// It owns how settings are read and shown, and refuses to own what they mean: a Config validates itself.
//
// The tags of a field: env (the variable's name), default, required:"true", secret:"true", example, doc.
// Types: string, bool, int, int64, time.Duration, []string (comma-separated).
package envconf

import (
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// maxFileBytes bounds what NAME_FILE may name.
const maxFileBytes = 64 << 10

// Validator is a Config that checks itself, and fills what follows from other settings.
type Validator interface{ Validate() error }

// Load fills cfg, a pointer to a tagged struct, from environ ("NAME=value" each), validates it, and returns
// all problems at once, a line each. A variable with the prefix that no field has is a problem.
func Load(environ []string, prefix string, cfg any) error {
	values := map[string]string{}
	for _, kv := range environ {
		name, value, _ := strings.Cut(kv, "=")
		values[name] = value
	}
	fields := fieldsOf(cfg)
	var problems []error
	for _, f := range fields {
		if err := f.load(values); err != nil {
			problems = append(problems, err)
		}
	}
	problems = append(problems, unknown(values, prefix, fields)...)
	if v, ok := cfg.(Validator); ok {
		if err := v.Validate(); err != nil {
			problems = append(problems, err)
		}
	}
	return errors.Join(problems...)
}

// field is one setting.
type field struct {
	value                   reflect.Value
	name, def, example, doc string
	required, secret        bool
}

func fieldsOf(cfg any) []field {
	v := reflect.ValueOf(cfg)
	if v.Kind() == reflect.Pointer {
		v = v.Elem()
	}
	t := v.Type()
	fields := make([]field, 0, t.NumField())
	for i := range t.NumField() {
		tag := t.Field(i).Tag
		if name := tag.Get("env"); name != "" {
			fields = append(fields, field{
				value: v.Field(i), name: name, def: tag.Get("default"), example: tag.Get("example"), doc: tag.Get("doc"),
				required: tag.Get("required") == "true", secret: tag.Get("secret") == "true",
			})
		}
	}
	return fields
}

// load takes NAME, NAME_FILE or the default.
func (f field) load(values map[string]string) error {
	text, given := values[f.name]
	given = given && text != ""
	if path := values[f.name+"_FILE"]; path != "" {
		if given {
			return fmt.Errorf("%s and %s_FILE are both set: keep one", f.name, f.name)
		}
		content, err := readFile(path)
		if err != nil {
			return fmt.Errorf("%s_FILE: %w", f.name, err)
		}
		text, given = content, content != ""
	}
	if !given {
		// An empty variable means "none" where the default is something.
		if _, set := values[f.name]; set && (f.value.Kind() == reflect.String || f.value.Kind() == reflect.Slice) && f.def != "" && !f.required {
			f.value.SetZero()
			return nil
		}
		if f.required {
			return fmt.Errorf("%s is required: %s", f.name, f.doc)
		}
		text = f.def
	}
	if err := f.set(text); err != nil {
		if f.secret {
			text = "(hidden)"
		}
		return fmt.Errorf("%s: %q %w", f.name, text, err)
	}
	return nil
}

// readFile reads no more than it takes, whatever path is: a pipe or a device has no size.
func readFile(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	raw, err := io.ReadAll(io.LimitReader(f, maxFileBytes+1))
	if err != nil {
		return "", err
	}
	if len(raw) > maxFileBytes {
		return "", fmt.Errorf("%s is larger than 64 KiB", path)
	}
	return strings.TrimRight(string(raw), "\r\n"), nil
}

func (f field) set(text string) error {
	switch f.value.Interface().(type) {
	case string:
		f.value.SetString(text)
	case bool:
		b, err := parseBool(text)
		if err != nil {
			return err
		}
		f.value.SetBool(b)
	case time.Duration:
		d, err := parseDuration(text)
		if err != nil {
			return err
		}
		f.value.SetInt(int64(d))
	case int, int64:
		if text == "" {
			text = "0"
		}
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return errors.New("is not a whole number")
		}
		f.value.SetInt(n)
	case []string:
		var list []string
		for part := range strings.SplitSeq(text, ",") {
			if part = strings.TrimSpace(part); part != "" {
				list = append(list, part)
			}
		}
		f.value.Set(reflect.ValueOf(list))
	default:
		panic("envconf: a field of type " + f.value.Type().String())
	}
	return nil
}

func parseBool(text string) (bool, error) {
	switch strings.ToLower(text) {
	case "true", "1", "yes", "on":
		return true, nil
	case "false", "0", "no", "off", "":
		return false, nil
	}
	return false, errors.New("is neither true nor false")
}

// parseDuration takes Go's form (90s, 5m) and plain seconds.
func parseDuration(text string) (time.Duration, error) {
	if text == "" {
		return 0, nil
	}
	if n, err := strconv.ParseInt(text, 10, 32); err == nil && n >= 0 {
		return time.Duration(n) * time.Second, nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 {
		return 0, errors.New("is no duration: write seconds, or 90s, 5m, 1h")
	}
	return d, nil
}

// injected are the variables that Kubernetes and Docker links put beside ours.
var injected = regexp.MustCompile(`_SERVICE_HOST$|_SERVICE_PORT(_.*)?$|_PORT$|_PORT_[0-9]+_`)

func unknown(values map[string]string, prefix string, fields []field) []error {
	known := map[string]bool{}
	for _, f := range fields {
		known[f.name], known[f.name+"_FILE"] = true, true
	}
	var names []string
	for name := range values {
		if strings.HasPrefix(name, prefix) && !known[name] && !injected.MatchString(name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	var problems []error
	for _, name := range names {
		problems = append(problems, fmt.Errorf("%s is no setting: did you mean %s?", name, nearest(name, fields)))
	}
	return problems
}

// nearest is the setting whose name takes the fewest changes.
func nearest(name string, fields []field) string {
	best, least := "", 1<<30
	for _, f := range fields {
		if d := distance(name, f.name); d < least {
			best, least = f.name, d
		}
	}
	return best
}

// distance is Levenshtein's.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(row[j+1]+1, row[j]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}
