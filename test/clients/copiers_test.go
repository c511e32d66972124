package clients

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"atcr.io/test/components"
)

// file is a new file with text in it.
func (f *fixture) file(name, text string) string {
	f.t.Helper()
	path := filepath.Join(f.t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		f.t.Fatal(err)
	}
	return path
}

// newFixture makes images of its own: what is there already is not sent, or in another compression that a client knows
// of. They are in the other registry as peer/app:1.0, peer/large:1.0 and peer/stranger:1.0.
func newFixture(t *testing.T, n *network) *fixture {
	t.Helper()
	f := &fixture{t: t, network: n, small: newImage(t, 200<<10), large: newImage(t, 3<<20)}
	crane := tool{path: components.Path(t, "crane")}
	for name, image := range map[string]testImage{"app": f.small, "large": f.large, "stranger": newImage(t, 1<<10)} {
		if _, err := crane.run(t.Context(), "push", image.layout, n.other+"/peer/"+name+":1.0", "--index=false"); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

// pulled runs a pull into a new layout and compares it.
func (f *fixture) pulled(image testImage, pull func(dir string) (string, error)) error {
	dir := filepath.Join(f.t.TempDir(), "out")
	if _, err := pull(dir); err != nil {
		return err
	}
	return image.isIn(dir)
}

func (f *fixture) crane() client {
	p := tool{path: components.Path(f.t, "crane"), env: []string{"DOCKER_CONFIG=" + f.t.TempDir()}}
	at := func(reference string) string { return f.at("crane", reference) }
	pull := func(ctx context.Context, image testImage, reference string) error {
		return f.pulled(image, func(dir string) (string, error) { return p.run(ctx, "pull", "--format=oci", at(reference), dir) })
	}
	return client{name: "crane", origin: origin("crane"), deeds: map[string]func(ctx context.Context) error{
		"login": func(ctx context.Context) error {
			_, err := p.run(ctx, "auth", "login", f.network.registry, "-u", f.network.alice.Handle, "-p", f.network.alice.AppPassword)
			return err
		},
		"push": func(ctx context.Context) error {
			_, err := p.run(ctx, "push", f.small.layout, at("app:1.0"), "--index=false")
			return err
		},
		"pull": func(ctx context.Context) error { return pull(ctx, f.small, "app:1.0") },
		"copy": func(ctx context.Context) error {
			if _, err := p.run(ctx, "copy", at("app:1.0"), at("copy:1.0")); err != nil {
				return err
			}
			return pull(ctx, f.small, "copy:1.0")
		},
		"import": func(ctx context.Context) error {
			if _, err := p.run(ctx, "copy", f.network.other+"/peer/app:1.0", at("imported:1.0")); err != nil {
				return err
			}
			return pull(ctx, f.small, "imported:1.0")
		},
		"list": func(ctx context.Context) error {
			out, err := p.run(ctx, "ls", at("app"))
			return has(out, err, "1.0")
		},
		"delete": func(ctx context.Context) error {
			if _, err := p.run(ctx, "delete", at("copy@"+f.small.digest)); err != nil {
				return err
			}
			return f.missing(ctx, "crane", "copy", "1.0")
		},
		"cut push": func(ctx context.Context) error {
			_, err := p.run(ctx, "push", f.large.layout, at("large:1.0"), "--index=false")
			return err
		},
		"cut pull": func(ctx context.Context) error { return pull(ctx, f.large, "large:1.0") },
	}}
}

func (f *fixture) regctl() client {
	home := f.t.TempDir()
	p := tool{
		path: components.Path(f.t, "regctl"), env: []string{"REGCTL_CONFIG=" + filepath.Join(home, "config.json"), "HOME=" + home},
		args: []string{"--host=reg=" + f.network.registry + ",tls=disabled", "--host=reg=" + f.network.other + ",tls=disabled"},
	}
	at := func(reference string) string { return f.at("regctl", reference) }
	pull := func(ctx context.Context, image testImage, reference string) error {
		return f.pulled(image, func(dir string) (string, error) {
			return p.run(ctx, "image", "copy", at(reference), "ocidir://"+dir+":pulled")
		})
	}
	return client{name: "regctl", origin: origin("regctl"), deeds: map[string]func(ctx context.Context) error{
		"login": func(ctx context.Context) error {
			_, err := p.run(ctx, "registry", "login", f.network.registry, "-u", f.network.alice.Handle, "-p", f.network.alice.AppPassword)
			return err
		},
		"push": func(ctx context.Context) error {
			_, err := p.run(ctx, "image", "copy", "ocidir://"+f.small.layout+":made", at("app:1.0"))
			return err
		},
		"pull": func(ctx context.Context) error { return pull(ctx, f.small, "app:1.0") },
		"copy": func(ctx context.Context) error {
			if _, err := p.run(ctx, "image", "copy", at("app:1.0"), at("copy:1.0")); err != nil {
				return err
			}
			return pull(ctx, f.small, "copy:1.0")
		},
		"import": func(ctx context.Context) error {
			if _, err := p.run(ctx, "image", "copy", f.network.other+"/peer/app:1.0", at("imported:1.0")); err != nil {
				return err
			}
			return pull(ctx, f.small, "imported:1.0")
		},
		"list": func(ctx context.Context) error {
			out, err := p.run(ctx, "tag", "ls", at("app"))
			return has(out, err, "1.0")
		},
		"attach": func(ctx context.Context) error {
			_, err := p.run(ctx, "artifact", "put", "--artifact-type", "application/x.test", "--subject", at("app:1.0"), "--file", f.file("sbom.json", `{"by":"regctl"}`))
			return err
		},
		"discover": func(ctx context.Context) error {
			out, err := p.run(ctx, "artifact", "list", at("app:1.0"), "--format", "{{jsonPretty .}}")
			return has(out, err, "application/x.test")
		},
		"delete": func(ctx context.Context) error {
			if _, err := p.run(ctx, "tag", "delete", at("copy:1.0")); err != nil {
				return err
			}
			return f.missing(ctx, "regctl", "copy", "1.0")
		},
		"cut push": func(ctx context.Context) error {
			_, err := p.run(ctx, "image", "copy", "ocidir://"+f.large.layout+":made", at("large:1.0"))
			return err
		},
		"cut pull": func(ctx context.Context) error { return pull(ctx, f.large, "large:1.0") },
	}}
}

func (f *fixture) oras() client {
	p := tool{path: components.Path(f.t, "oras"), env: []string{"DOCKER_CONFIG=" + f.t.TempDir()}}
	at := func(reference string) string { return f.at("oras", reference) }
	pull := func(ctx context.Context, image testImage, reference string) error {
		return f.pulled(image, func(dir string) (string, error) {
			return p.run(ctx, "copy", "--from-plain-http", "--to-oci-layout", at(reference), dir+":pulled")
		})
	}
	push := func(ctx context.Context, image testImage, reference string) error {
		_, err := p.run(ctx, "copy", "--from-oci-layout", "--to-plain-http", image.layout+":made", at(reference))
		return err
	}
	return client{name: "oras", origin: origin("oras"), deeds: map[string]func(ctx context.Context) error{
		"login": func(ctx context.Context) error {
			_, err := p.run(ctx, "login", "--plain-http", f.network.registry, "-u", f.network.alice.Handle, "-p", f.network.alice.AppPassword)
			return err
		},
		"push": func(ctx context.Context) error { return push(ctx, f.small, "app:1.0") },
		"pull": func(ctx context.Context) error { return pull(ctx, f.small, "app:1.0") },
		"copy": func(ctx context.Context) error {
			if _, err := p.run(ctx, "copy", "--from-plain-http", "--to-plain-http", at("app:1.0"), at("copy:1.0")); err != nil {
				return err
			}
			return pull(ctx, f.small, "copy:1.0")
		},
		"import": func(ctx context.Context) error {
			if _, err := p.run(ctx, "copy", "--from-plain-http", "--to-plain-http", f.network.other+"/peer/app:1.0", at("imported:1.0")); err != nil {
				return err
			}
			return pull(ctx, f.small, "imported:1.0")
		},
		"list": func(ctx context.Context) error {
			out, err := p.run(ctx, "repo", "tags", "--plain-http", at("app"))
			return has(out, err, "1.0")
		},
		"attach": func(ctx context.Context) error {
			file := f.file("sbom.json", `{"by":"oras"}`)
			_, err := p.run(ctx, "attach", "--plain-http", "--disable-path-validation", "--artifact-type", "application/x.test", at("app:1.0"), file+":application/json")
			return err
		},
		"discover": func(ctx context.Context) error {
			out, err := p.run(ctx, "discover", "--plain-http", "--format", "json", at("app:1.0"))
			return has(out, err, "application/x.test")
		},
		"delete": func(ctx context.Context) error {
			if _, err := p.run(ctx, "manifest", "delete", "--plain-http", "--force", at("copy:1.0")); err != nil {
				return err
			}
			return f.missing(ctx, "oras", "copy", "1.0")
		},
		"cut push": func(ctx context.Context) error { return push(ctx, f.large, "large:1.0") },
		"cut pull": func(ctx context.Context) error { return pull(ctx, f.large, "large:1.0") },
	}}
}

func (f *fixture) skopeo() client {
	p := tool{path: components.Path(f.t, "skopeo"), args: []string{"--insecure-policy"}}
	auth := "--authfile=" + filepath.Join(f.t.TempDir(), "auth.json")
	at := func(reference string) string { return "docker://" + f.at("skopeo", reference) }
	pull := func(ctx context.Context, image testImage, reference string) error {
		return f.pulled(image, func(dir string) (string, error) {
			return p.run(ctx, "copy", "--retry-times=3", auth, "--src-tls-verify=false", at(reference), "oci:"+dir+":pulled")
		})
	}
	copied := func(ctx context.Context, from, to string) error {
		_, err := p.run(ctx, "copy", "--retry-times=3", auth, "--src-tls-verify=false", "--dest-tls-verify=false", from, to)
		return err
	}
	return client{name: "skopeo", origin: origin("skopeo"), deeds: map[string]func(ctx context.Context) error{
		"login": func(ctx context.Context) error {
			_, err := p.run(ctx, "login", "--tls-verify=false", auth, "-u", f.network.alice.Handle, "-p", f.network.alice.AppPassword, f.network.registry)
			return err
		},
		"push": func(ctx context.Context) error { return copied(ctx, "oci:"+f.small.layout+":made", at("app:1.0")) },
		"pull": func(ctx context.Context) error { return pull(ctx, f.small, "app:1.0") },
		"copy": func(ctx context.Context) error {
			if err := copied(ctx, at("app:1.0"), at("copy:1.0")); err != nil {
				return err
			}
			return pull(ctx, f.small, "copy:1.0")
		},
		"import": func(ctx context.Context) error {
			if err := copied(ctx, "docker://"+f.network.other+"/peer/app:1.0", at("imported:1.0")); err != nil {
				return err
			}
			return pull(ctx, f.small, "imported:1.0")
		},
		"list": func(ctx context.Context) error {
			out, err := p.run(ctx, "list-tags", auth, "--tls-verify=false", at("app"))
			return has(out, err, `"1.0"`)
		},
		"delete": func(ctx context.Context) error {
			if _, err := p.run(ctx, "delete", auth, "--tls-verify=false", at("copy:1.0")); err != nil {
				return err
			}
			return f.missing(ctx, "skopeo", "copy", "1.0")
		},
		"cut push": func(ctx context.Context) error { return copied(ctx, "oci:"+f.large.layout+":made", at("large:1.0")) },
		"cut pull": func(ctx context.Context) error { return pull(ctx, f.large, "large:1.0") },
	}}
}

// chart packs a new chart, version 0.1.0, with so many random bytes in it.
func (f *fixture) chart(ctx context.Context, helm tool, name string, bytes int) (path string, err error) {
	dir := f.t.TempDir()
	chart := filepath.Join(dir, name)
	text := "apiVersion: v2\nname: " + name + "\nversion: 0.1.0\ndescription: a chart of the tests\n"
	random := make([]byte, bytes)
	_, _ = rand.Read(random) // never fails
	err = steps(
		func() error { return os.Mkdir(chart, 0o700) },
		func() error { return os.WriteFile(filepath.Join(chart, "Chart.yaml"), []byte(text), 0o600) },
		func() error { return os.WriteFile(filepath.Join(chart, "random.bin"), random, 0o600) },
		func() error { _, err := helm.run(ctx, "package", chart, "-d", dir); return err },
	)
	return filepath.Join(dir, name+"-0.1.0.tgz"), err
}

func (f *fixture) helm() client {
	home := f.t.TempDir()
	p := tool{path: components.Path(f.t, "helm"), env: []string{"HELM_CONFIG_HOME=" + home, "HELM_CACHE_HOME=" + home, "HELM_DATA_HOME=" + home}}
	charts := "oci://" + f.at("helm", "charts")
	var web, large string // packed
	push := func(ctx context.Context, path, to string) error {
		_, err := p.run(ctx, "push", "--plain-http", path, to)
		return err
	}
	// pull compares what is pulled with the chart that was packed as path.
	pull := func(ctx context.Context, from, path string) (pulled string, err error) {
		file := filepath.Base(path)
		dir := f.t.TempDir()
		if _, err := p.run(ctx, "pull", "--plain-http", from+"/"+strings.TrimSuffix(file, "-0.1.0.tgz"), "--version", "0.1.0", "-d", dir); err != nil {
			return "", err
		}
		want, err := os.ReadFile(path)
		if err != nil {
			return "", err
		}
		got, err := os.ReadFile(filepath.Join(dir, file))
		if err == nil && !bytes.Equal(got, want) {
			err = fmt.Errorf("%s was pulled with other bytes", file)
		}
		return filepath.Join(dir, file), err
	}
	copied := func(ctx context.Context, from, to string) error {
		pulled, err := pull(ctx, from, web)
		if err == nil {
			err = push(ctx, pulled, to)
		}
		if err == nil {
			_, err = pull(ctx, to, web)
		}
		return err
	}
	return client{name: "helm", origin: origin("helm"), deeds: map[string]func(ctx context.Context) error{
		"login": func(ctx context.Context) error {
			_, err := p.run(ctx, "registry", "login", "--plain-http", f.network.registry, "-u", f.network.alice.Handle, "-p", f.network.alice.AppPassword)
			return err
		},
		"push": func(ctx context.Context) (err error) {
			if web, err = f.chart(ctx, p, "web", 1<<10); err != nil {
				return err
			}
			return push(ctx, web, charts)
		},
		"pull": func(ctx context.Context) error { _, err := pull(ctx, charts, web); return err },
		"copy": func(ctx context.Context) error { return copied(ctx, charts, "oci://"+f.at("helm", "copies")) },
		"import": func(ctx context.Context) error {
			other := "oci://" + f.network.other + "/peer/charts"
			return steps(
				func() error { return push(ctx, web, other) },
				func() error { return copied(ctx, other, "oci://"+f.at("helm", "imported")) },
			)
		},
		"list": func(ctx context.Context) error { // which picks the newest of the tags
			out, err := p.run(ctx, "show", "chart", "--plain-http", charts+"/web")
			return has(out, err, "a chart of the tests", "0.1.0")
		},
		"cut push": func(ctx context.Context) (err error) {
			if large, err = f.chart(ctx, p, "large", 3<<20); err != nil {
				return err
			}
			return push(ctx, large, charts)
		},
		"cut pull": func(ctx context.Context) error { _, err := pull(ctx, charts, large); return err },
	}}
}

func (f *fixture) cosign() client {
	dir := f.t.TempDir()
	key := filepath.Join(dir, "cosign")
	p := tool{path: components.Path(f.t, "cosign"), env: []string{"DOCKER_CONFIG=" + dir, "COSIGN_PASSWORD=of-the-tests", "HOME=" + dir}}
	at := func(reference string) string { return f.at("cosign", reference) }
	image := at("app@" + f.small.digest)
	verify := func(ctx context.Context, what string) (string, error) {
		return p.run(ctx, "verify", "--key", key+".pub", "--insecure-ignore-tlog=true", "--private-infrastructure", "--allow-http-registry", what)
	}
	save := func(ctx context.Context, what, dir string) error {
		_, err := p.run(ctx, "save", "--allow-http-registry", "--dir", dir, what)
		return err
	}
	pull := func(ctx context.Context, want testImage, what string) error {
		return f.pulled(want, func(dir string) (string, error) { return "", save(ctx, what, dir) })
	}
	// push loads what it saved from the other registry: it takes no other layout.
	push := func(ctx context.Context, name, to string) error {
		saved := filepath.Join(f.t.TempDir(), "saved")
		return steps(
			func() error { return save(ctx, f.network.other+"/peer/"+name+":1.0", saved) },
			func() error { _, err := p.run(ctx, "load", "--allow-http-registry", "--dir", saved, to); return err },
		)
	}
	copied := func(ctx context.Context, from, to string) error {
		_, err := p.run(ctx, "copy", "--allow-http-registry", from, to)
		return err
	}
	return client{name: "cosign", origin: origin("cosign"), deeds: map[string]func(ctx context.Context) error{
		"login": func(ctx context.Context) error {
			_, err := p.run(ctx, "login", f.network.registry, "-u", f.network.alice.Handle, "-p", f.network.alice.AppPassword)
			return err
		},
		"push": func(ctx context.Context) error { return push(ctx, "app", at("app:1.0")) },
		"pull": func(ctx context.Context) error { return pull(ctx, f.small, at("app:1.0")) },
		"copy": func(ctx context.Context) error {
			return steps(
				func() error { return copied(ctx, at("app:1.0"), at("copy:1.0")) },
				func() error { return pull(ctx, f.small, at("copy:1.0")) },
			)
		},
		"import": func(ctx context.Context) error {
			return steps(
				func() error { return copied(ctx, f.network.other+"/peer/app:1.0", at("imported:1.0")) },
				func() error { return pull(ctx, f.small, at("imported:1.0")) },
			)
		},
		"sign": func(ctx context.Context) error {
			return steps(
				func() error { _, err := p.run(ctx, "generate-key-pair", "--output-key-prefix", key); return err },
				func() error {
					_, err := p.run(ctx, "sign", "--yes", "--key", key+".key", "--tlog-upload=false", "--allow-http-registry", image)
					return err
				},
			)
		},
		"verify": func(ctx context.Context) error {
			out, err := verify(ctx, image)
			if err := has(out, err, f.small.digest); err != nil {
				return err
			}
			if err := copied(ctx, f.network.other+"/peer/stranger:1.0", at("app:stranger")); err != nil {
				return err
			}
			out, err = verify(ctx, at("app:stranger"))
			if err == nil {
				return errors.New("an image that nobody signed is verified")
			}
			return has(out, nil, "no signatures found")
		},
		"attach": func(ctx context.Context) error {
			_, err := p.run(ctx, "attest", "--yes", "--key", key+".key", "--tlog-upload=false", "--allow-http-registry", "--type", "custom",
				"--predicate", f.file("predicate.json", `{"by":"cosign"}`), image)
			return err
		},
		"discover": func(ctx context.Context) error {
			out, err := p.run(ctx, "tree", "--allow-http-registry", image)
			return has(strings.ToLower(out), err, "signatures", "attestations")
		},
		"delete": func(ctx context.Context) error { // signatures and attestations, which are tags
			tag := strings.ReplaceAll(f.small.digest, ":", "-")
			return steps(
				func() error { _, err := p.run(ctx, "clean", "--force", "--allow-http-registry", image); return err },
				func() error { return f.missing(ctx, "cosign", "app", tag+".sig") },
				func() error { return f.missing(ctx, "cosign", "app", tag+".att") },
			)
		},
		"cut push": func(ctx context.Context) error { return push(ctx, "large", at("large:1.0")) },
		"cut pull": func(ctx context.Context) error { return pull(ctx, f.large, at("large:1.0")) },
	}}
}
