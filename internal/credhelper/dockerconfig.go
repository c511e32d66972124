package credhelper

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// helperName is what docker calls this program: docker-credential-<name>.
const helperName = "atcr"

// dockerConfigPath is the file that docker, podman, crane and others read.
func dockerConfigPath() (string, error) {
	if dir := os.Getenv("DOCKER_CONFIG"); dir != "" {
		return filepath.Join(dir, "config.json"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", err
	}
	return filepath.Join(home, ".docker", "config.json"), nil
}

// member is one entry of a JSON object, as it stands in the file.
type member struct {
	key   string
	value json.RawMessage
}

// readObject reads an object without losing order, numbers or unknown entries.
func readObject(raw []byte) ([]member, error) {
	d := json.NewDecoder(bytes.NewReader(raw))
	token, err := d.Token()
	if err != nil {
		return nil, err
	}
	if token != json.Delim('{') {
		return nil, errors.New("it is not a JSON object")
	}
	var out []member
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return nil, err
		}
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			return nil, err
		}
		out = append(out, member{key.(string), value}) // an object's keys are strings
	}
	if _, err := d.Token(); err != nil {
		return nil, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) { // More says no to a brace too many
		return nil, errors.New("something follows the JSON object")
	}
	return out, nil
}

func writeObject(members []member) json.RawMessage {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, m := range members {
		if i > 0 {
			b.WriteByte(',')
		}
		b.Write(quote(m.key))
		b.WriteByte(':')
		b.Write(m.value)
	}
	b.WriteByte('}')
	return b.Bytes()
}

// quote does not escape <, > and &, as docker does not.
func quote(text string) []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	_ = e.Encode(text) // a string always encodes
	return bytes.TrimSpace(b.Bytes())
}

// editConfig makes registries use this program (or no longer), and changes nothing else. raw may be empty.
//
// Each registry gets an entry of its own in credHelpers: podman and skopeo do not read credsStore.
// Entries that name another program are left alone where undo is asked.
func editConfig(raw []byte, registries []string, undo bool) ([]byte, error) {
	var members []member
	var err error
	if len(bytes.TrimSpace(raw)) > 0 {
		if members, err = readObject(raw); err != nil {
			return nil, err
		}
	}
	const key = "credHelpers"
	at := slices.IndexFunc(members, func(m member) bool { return m.key == key })
	var helpers []member
	if at >= 0 && string(members[at].value) != "null" {
		if helpers, err = readObject(members[at].value); err != nil {
			return nil, fmt.Errorf("%s: %w", key, err)
		}
	}
	before := slices.Clone(helpers)
	for _, registry := range registries {
		i := slices.IndexFunc(helpers, func(m member) bool { return m.key == registry })
		ours := json.RawMessage(quote(helperName))
		switch {
		case undo && i >= 0 && bytes.Equal(helpers[i].value, ours):
			helpers = slices.Delete(helpers, i, i+1)
		case undo:
		case i >= 0:
			helpers[i].value = ours
		default:
			helpers = append(helpers, member{registry, ours})
		}
	}
	if slices.EqualFunc(before, helpers, func(a, b member) bool { return a.key == b.key && bytes.Equal(a.value, b.value) }) {
		return raw, nil
	}
	switch {
	case len(helpers) == 0:
		members = slices.Delete(members, at, at+1)
	case at >= 0:
		members[at].value = writeObject(helpers)
	default:
		members = append(members, member{key, writeObject(helpers)})
	}
	return indent(writeObject(members), raw)
}

// indent writes as the file was written: with tabs, as docker does, or with its spaces.
func indent(compact, like []byte) ([]byte, error) {
	step := "\t"
	for line := range bytes.Lines(like) {
		text := strings.TrimLeft(string(line), " \t")
		if space := string(line)[:len(line)-len(text)]; space != "" && text != "\n" && text != "" {
			step = space
			break
		}
	}
	var b bytes.Buffer
	if err := json.Indent(&b, compact, "", step); err != nil {
		return nil, err
	}
	if len(like) == 0 || like[len(like)-1] == '\n' {
		b.WriteByte('\n')
	}
	return b.Bytes(), nil
}

// helperRegistries are the entries of credHelpers that name this program.
func helperRegistries(raw []byte) []string {
	var config struct {
		CredHelpers map[string]string `json:"credHelpers"`
	}
	if json.Unmarshal(raw, &config) != nil {
		return nil
	}
	var out []string
	for registry, name := range config.CredHelpers {
		if name == helperName {
			out = append(out, registry)
		}
	}
	slices.Sort(out)
	return out
}

// configChange is what configure-docker is about to do.
type configChange struct {
	path     string // where links lead
	old, new []byte
	mode     fs.FileMode
}

// planConfig reads the file and says what would stand in it. A file that is no JSON is an error and stays.
func planConfig(path string, registries []string, undo bool) (configChange, error) {
	if target, err := filepath.EvalSymlinks(path); err == nil {
		path = target // the link stays a link
	}
	c := configChange{path: path, mode: 0o600}
	raw, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return c, err
	}
	if info, err := os.Stat(path); err == nil {
		c.mode = info.Mode().Perm()
	}
	c.old = raw
	if undo && registries == nil {
		registries = helperRegistries(raw)
	}
	if c.new, err = editConfig(raw, registries, undo); err != nil {
		return c, fmt.Errorf("%s was left as it is: it cannot be read as docker's configuration: %w", path, err)
	}
	return c, nil
}

func (c configChange) none() bool { return bytes.Equal(c.old, c.new) }

// apply writes the file, unless it was changed since it was read.
func (c configChange) apply() error {
	now, err := os.ReadFile(c.path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if !bytes.Equal(now, c.old) {
		return fmt.Errorf("%s was changed meanwhile: run this again", c.path)
	}
	if err := os.MkdirAll(filepath.Dir(c.path), 0o700); err != nil {
		return err
	}
	return replaceFile(c.path, c.new, c.mode)
}

// diff shows the lines that go and those that come.
func (c configChange) diff() string {
	old, changed := strings.Split(strings.TrimSuffix(string(c.old), "\n"), "\n"), strings.Split(strings.TrimSuffix(string(c.new), "\n"), "\n")
	start := 0
	for start < len(old) && start < len(changed) && old[start] == changed[start] {
		start++
	}
	end := 0
	for end < len(old)-start && end < len(changed)-start && old[len(old)-1-end] == changed[len(changed)-1-end] {
		end++
	}
	var b strings.Builder
	show := func(mark string, lines []string) {
		for _, line := range lines {
			if line != "" {
				b.WriteString("  " + mark + " " + hideAuth(line) + "\n")
			}
		}
	}
	show(" ", old[max(0, start-2):start])
	show("-", old[start:len(old)-end])
	show("+", changed[start:len(changed)-end])
	show(" ", old[len(old)-end:min(len(old), len(old)-end+2)])
	return b.String()
}

// hideAuth keeps passwords, which some files have, off the screen.
func hideAuth(line string) string {
	first, which := len(line), ""
	for _, key := range []string{`"auth"`, `"identitytoken"`, `"registrytoken"`, `"password"`} {
		if i := strings.Index(line, key); i >= 0 && i < first {
			first, which = i, key
		}
	}
	if which == "" {
		return line
	}
	return line[:first] + which + `: "…"`
}
