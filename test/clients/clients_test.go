// Package clients runs container clients that nobody here wrote, unmodified, against an AppView and a hold, and writes
// what each of them can do into docs/clients.md.
//
// It owns what is asked of each client, and refuses to own how any of them does it.
package clients

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"atcr.io/test/components/toolbox"
)

var write = flag.Bool("write", false, "write docs/clients.md from this run")

// deeds are the columns of the table, in the order in which they are tried.
var deeds = []struct{ name, about string }{
	{"login", "keeps alice's handle and app password"},
	{"push", "an image or a chart, under a tag"},
	{"pull", "the same bytes, by tag"},
	{"copy", "to another repository, through the client's own store where it has no command for it"},
	{"import", "from another registry (distribution)"},
	{"list", "the tags of a repository"},
	{"sign", "an image with a local key"},
	{"verify", "the signature; of another image it fails"},
	{"attach", "an artifact that refers to an image"},
	{"discover", "what refers to an image"},
	{"delete", "a tag or a manifest, which is gone at once (cosign: the signatures of an image)"},
	{"cut push", "goes on where the connection is cut in the middle of a layer"},
	{"cut pull", "the same, where a layer is pulled"},
}

// client is one of them: what it has a command for. repository is its own on the registry, without the host.
type client struct {
	name   string
	origin string
	deeds  map[string]func(ctx context.Context) error
}

// makers are all clients.
var makers = []struct {
	name string
	make func(*fixture) client
}{
	{"docker", (*fixture).docker}, {"podman", (*fixture).podman}, {"buildah", (*fixture).buildah}, {"ctr", (*fixture).ctr}, {"skopeo", (*fixture).skopeo},
	{"crane", (*fixture).crane}, {"regctl", (*fixture).regctl}, {"oras", (*fixture).oras}, {"helm", (*fixture).helm}, {"cosign", (*fixture).cosign},
}

// Would catch anything that only some clients can do here.
func TestClients(t *testing.T) {
	n := startNetwork(t, false)
	all, results := make([]client, len(makers)), make([]map[string]string, len(makers))
	for i, m := range makers {
		t.Run(m.name, func(t *testing.T) {
			all[i] = m.make(newFixture(t, n))
			results[i] = try(t, n, all[i])
		})
	}
	compareTable(t, all, results)
}

// try does what a client can, one after the other: what fails is said, and the rest goes on.
func try(t *testing.T, n *network, c client) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, d := range deeds {
		do, ok := c.deeds[d.name]
		if !ok {
			continue
		}
		before := n.appview.cuts.Load() + n.hold.cuts.Load()
		switch d.name {
		case "cut push":
			n.appview.in.Store(1 << 20)
			n.hold.in.Store(0)
			if c.name == "ctr" { // which sends its layers to the hold
				n.appview.in.Store(0)
				n.hold.in.Store(1 << 20)
			}
		case "cut pull":
			n.hold.out.Store(1 << 20)
		}
		out[d.name] = "yes"
		err := do(t.Context())
		if strings.HasPrefix(d.name, "cut") {
			if n.appview.cuts.Load()+n.hold.cuts.Load() == before {
				err = errors.Join(err, errors.New("no connection was cut"))
			} else if err != nil { // the same command once more
				out[d.name], err = "again", do(t.Context())
			}
		}
		n.appview.in.Store(0)
		n.hold.in.Store(0)
		n.hold.out.Store(0)
		if err != nil {
			t.Errorf("%s: %v", d.name, err)
			out[d.name] = "no"
		}
	}
	if _, faults := n.witness.take(); len(faults) > 0 {
		t.Errorf("credentials leave the AppView: %q", faults)
	}
	for name := range c.deeds {
		if !slices.ContainsFunc(deeds, func(d struct{ name, about string }) bool { return d.name == name }) {
			t.Errorf("%q is no column", name)
		}
	}
	return out
}

// table is docs/clients.md.
func table(all []client, results []map[string]string) string {
	var b strings.Builder
	b.WriteString(`# Container clients

Written by ` + "`make test-clients ARGS=-write`" + `, from what each client, unmodified, did in that run. yes: it did, and what came of it was
compared; again: the command failed where the connection was cut, and succeeded when it was given once more; –: it has no command
for it. podman, buildah, skopeo and helm also sign, each in its own way, which was not tried.

| client |`)
	for _, d := range deeds {
		b.WriteString(" " + d.name + " |")
	}
	b.WriteString("\n|---|" + strings.Repeat("---|", len(deeds)) + "\n")
	for i, c := range all {
		fmt.Fprintf(&b, "| %s (%s) |", c.name, c.origin)
		for _, d := range deeds {
			fmt.Fprintf(&b, " %s |", orDash(results[i][d.name]))
		}
		b.WriteString("\n")
	}
	b.WriteString("\n| | |\n|---|---|\n")
	for _, d := range deeds {
		fmt.Fprintf(&b, "| %s | %s |\n", d.name, d.about)
	}
	return b.String()
}

func orDash(s string) string {
	if s == "" {
		return "–"
	}
	return s
}

// compareTable fails where the document says something else than this run.
func compareTable(t *testing.T, all []client, results []map[string]string) {
	t.Helper()
	path := filepath.Join("..", "..", "docs", "clients.md")
	now := table(all, results)
	if *write && !t.Failed() {
		if err := os.WriteFile(path, []byte(now), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	// Whether a client comes through a cut by itself depends on where it meets it.
	same := func(s string) string { return strings.ReplaceAll(s, "| again ", "| yes ") }
	if old, err := os.ReadFile(path); err != nil || same(string(old)) != same(now) {
		t.Errorf("docs/clients.md says something else than this run (make test-clients ARGS=-write): %v\n%s", err, now)
	}
}

// fixture makes the clients.
type fixture struct {
	t            *testing.T
	network      *network
	small, large testImage
}

// origin is the version that is pinned, or whose packages these are.
func origin(name string) string {
	if v := toolbox.Version(name); v != "" {
		return v
	}
	return "Debian"
}

// at is a reference on the registry in a client's own repositories.
func (f *fixture) at(client, reference string) string {
	return f.network.registry + "/alice.test/" + client + "/" + reference
}

// missing checks that the registry has no such reference any more.
func (f *fixture) missing(ctx context.Context, client, repository, reference string) error {
	url := "http://" + f.network.registry + "/v2/alice.test/" + client + "/" + repository + "/manifests/" + reference
	req, err := http.NewRequestWithContext(ctx, http.MethodHead, url, nil)
	if err != nil {
		return err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	if err := res.Body.Close(); err != nil {
		return err
	}
	if res.StatusCode != http.StatusNotFound {
		return fmt.Errorf("%s is answered with %s", url, res.Status)
	}
	return nil
}

// has is an error unless text names each of want.
func has(text string, err error, want ...string) error {
	for _, w := range want {
		if err == nil && !strings.Contains(text, w) {
			err = fmt.Errorf("%q is not in:\n%s", w, tail(text))
		}
	}
	return err
}

// steps does one after the other until one fails.
func steps(do ...func() error) error {
	for _, step := range do {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}
