package clients

import (
	"context"
	"os"
	"path/filepath"
	"strings"

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

// seed puts an image into the other registry, as peer/app:1.0.
func (f *fixture) seed() error {
	crane := tool{path: components.Path(f.t, "crane")}
	_, err := crane.run(f.t.Context(), "push", f.small.layout, f.network.other+"/peer/app:1.0", "--index=false")
	return err
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

func (f *fixture) helm() client {
	home := f.t.TempDir()
	p := tool{path: components.Path(f.t, "helm"), env: []string{"HELM_CONFIG_HOME=" + home, "HELM_CACHE_HOME=" + home, "HELM_DATA_HOME=" + home}}
	charts := "oci://" + f.at("helm", "charts")
	chart := filepath.Join(home, "web")
	return client{name: "helm", origin: origin("helm"), deeds: map[string]func(ctx context.Context) error{
		"login": func(ctx context.Context) error {
			_, err := p.run(ctx, "registry", "login", "--plain-http", f.network.registry, "-u", f.network.alice.Handle, "-p", f.network.alice.AppPassword)
			return err
		},
		"push": func(ctx context.Context) error {
			return steps(
				func() error { return os.Mkdir(chart, 0o700) },
				func() error {
					return os.WriteFile(filepath.Join(chart, "Chart.yaml"), []byte("apiVersion: v2\nname: web\nversion: 0.1.0\ndescription: a chart of the tests\n"), 0o600)
				},
				func() error { _, err := p.run(ctx, "package", chart, "-d", home); return err },
				func() error {
					_, err := p.run(ctx, "push", "--plain-http", filepath.Join(home, "web-0.1.0.tgz"), charts)
					return err
				},
			)
		},
		"pull": func(ctx context.Context) error {
			dir := f.t.TempDir()
			if _, err := p.run(ctx, "pull", "--plain-http", charts+"/web", "--version", "0.1.0", "-d", dir); err != nil {
				return err
			}
			pushed, err := os.ReadFile(filepath.Join(home, "web-0.1.0.tgz"))
			if err != nil {
				return err
			}
			got, err := os.ReadFile(filepath.Join(dir, "web-0.1.0.tgz"))
			return has(string(got), err, string(pushed))
		},
		"list": func(ctx context.Context) error { // which picks the newest of the tags
			out, err := p.run(ctx, "show", "chart", "--plain-http", charts+"/web")
			return has(out, err, "a chart of the tests", "0.1.0")
		},
	}}
}

func (f *fixture) cosign() client {
	dir := f.t.TempDir()
	key := filepath.Join(dir, "cosign")
	p := tool{path: components.Path(f.t, "cosign"), env: []string{"DOCKER_CONFIG=" + dir, "COSIGN_PASSWORD=of-the-tests", "HOME=" + dir}}
	crane := f.crane()
	image, other := f.at("crane", "app@"+f.small.digest), f.at("crane", "large:1.0")
	verify := func(ctx context.Context, what string) (string, error) {
		return p.run(ctx, "verify", "--key", key+".pub", "--insecure-ignore-tlog=true", "--private-infrastructure", "--allow-http-registry", what)
	}
	return client{name: "cosign", origin: origin("cosign"), deeds: map[string]func(ctx context.Context) error{
		"login": func(ctx context.Context) error {
			_, err := p.run(ctx, "login", f.network.registry, "-u", f.network.alice.Handle, "-p", f.network.alice.AppPassword)
			return err
		},
		"sign": func(ctx context.Context) error {
			return steps(
				func() error { return crane.deeds["login"](ctx) },
				func() error { return crane.deeds["push"](ctx) },
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
			if out, err := verify(ctx, other); err == nil {
				return has(out, nil, "an error: nobody signed that image")
			}
			return nil
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
		"copy": func(ctx context.Context) error {
			_, err := p.run(ctx, "copy", "--allow-http-registry", f.at("crane", "app:1.0"), f.at("cosign", "copy:1.0"))
			return err
		},
	}}
}
