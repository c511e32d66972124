package clients

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"atcr.io/test/components"
)

// docker's images are known by the digest of their config, which names the layers.
func (f *fixture) docker() client {
	d := components.StartDockerd(f.t)
	run := func(ctx context.Context, args ...string) (string, error) {
		out, err := d.Command(ctx, args...).CombinedOutput()
		if err != nil {
			err = fmt.Errorf("docker %s: %w\n%s", strings.Join(args, " "), err, tail(string(out)))
		}
		return string(out), err
	}
	at := func(reference string) string { return f.at("docker", reference) }
	loadAs := func(ctx context.Context, image testImage, reference string) error {
		tag, err := name.NewTag(reference, name.Insecure)
		if err != nil {
			return err
		}
		archive := filepath.Join(f.t.TempDir(), "image.tar")
		if err := tarball.WriteToFile(archive, tag, image.image); err != nil {
			return err
		}
		_, err = run(ctx, "load", "-i", archive)
		return err
	}
	// again removes an image with all its names, and pulls it.
	again := func(ctx context.Context, image testImage, reference string) error {
		return steps(
			func() error { _, err := run(ctx, "rmi", "-f", image.config); return err },
			func() error { _, err := run(ctx, "pull", reference); return err },
			func() error {
				out, err := run(ctx, "image", "inspect", "--format", "{{.Id}}", reference)
				return has(out, err, image.config)
			},
		)
	}
	copied := func(ctx context.Context, from, to string) error {
		return steps(
			func() error { _, err := run(ctx, "pull", from); return err },
			func() error { _, err := run(ctx, "tag", from, to); return err },
			func() error { _, err := run(ctx, "push", to); return err },
			func() error { return again(ctx, f.small, to) },
		)
	}
	return client{name: "docker", origin: origin("docker"), deeds: map[string]func(ctx context.Context) error{
		"login": func(ctx context.Context) error {
			_, err := run(ctx, "login", f.network.registry, "-u", f.network.alice.Handle, "-p", f.network.alice.AppPassword)
			return err
		},
		"push": func(ctx context.Context) error {
			return steps(func() error { return loadAs(ctx, f.small, at("app:1.0")) }, func() error { _, err := run(ctx, "push", at("app:1.0")); return err })
		},
		"pull": func(ctx context.Context) error { return again(ctx, f.small, at("app:1.0")) },
		"copy": func(ctx context.Context) error { return copied(ctx, at("app:1.0"), at("copy:1.0")) },
		"import": func(ctx context.Context) error {
			return copied(ctx, f.network.other+"/peer/app:1.0", at("imported:1.0"))
		},
		"cut push": func(ctx context.Context) error {
			return steps(func() error { return loadAs(ctx, f.large, at("large:1.0")) }, func() error { _, err := run(ctx, "push", at("large:1.0")); return err })
		},
		"cut pull": func(ctx context.Context) error { return again(ctx, f.large, at("large:1.0")) },
	}}
}

// storage is a folder for images of podman or buildah, and what names it.
func (f *fixture) storage() []string {
	dir := f.t.TempDir()
	config := filepath.Join(dir, "storage.conf")
	text := fmt.Sprintf("[storage]\ndriver = \"vfs\"\ngraphroot = %q\nrunroot = %q\n", filepath.Join(dir, "graph"), filepath.Join(dir, "run"))
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		f.t.Fatal(err)
	}
	policy := filepath.Join(dir, "home", ".config", "containers")
	if err := os.MkdirAll(policy, 0o700); err != nil {
		f.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(policy, "policy.json"), []byte(`{"default":[{"type":"insecureAcceptAnything"}]}`), 0o600); err != nil {
		f.t.Fatal(err)
	}
	return []string{
		"CONTAINERS_STORAGE_CONF=" + config, "REGISTRY_AUTH_FILE=" + filepath.Join(dir, "auth.json"), "BUILDAH_ISOLATION=chroot", "HOME=" + filepath.Join(dir, "home"),
		"XDG_RUNTIME_DIR=" + dir,
	}
}

// onStorage is what podman and buildah share.
func (f *fixture) onStorage(name string) (p tool, deeds map[string]func(ctx context.Context) error) {
	p = tool{path: components.Path(f.t, name), env: f.storage()}
	at := func(reference string) string { return f.at(name, reference) }
	pull := func(ctx context.Context, image testImage, reference string) error {
		return steps(
			func() error { _, err := p.run(ctx, "rmi", "-a", "-f"); return err },
			func() error { _, err := p.run(ctx, "pull", "--tls-verify=false", reference); return err },
			func() error {
				out, err := p.run(ctx, "images", "--no-trunc", "--format", "{{.ID}}")
				return has(out, err, strings.TrimPrefix(image.config, "sha256:"))
			},
		)
	}
	copied := func(ctx context.Context, from, to string) error {
		return steps(
			func() error { _, err := p.run(ctx, "pull", "--tls-verify=false", from); return err },
			func() error { _, err := p.run(ctx, "push", "--tls-verify=false", from, to); return err },
			func() error { return pull(ctx, f.small, to) },
		)
	}
	push := func(ctx context.Context, image testImage, reference string) error {
		return steps(
			func() error { _, err := p.run(ctx, "pull", "oci:"+image.layout+":made"); return err },
			func() error { _, err := p.run(ctx, "push", "--tls-verify=false", image.config, reference); return err },
		)
	}
	return p, map[string]func(ctx context.Context) error{
		"login": func(ctx context.Context) error {
			_, err := p.run(ctx, "login", "--tls-verify=false", "-u", f.network.alice.Handle, "-p", f.network.alice.AppPassword, f.network.registry)
			return err
		},
		"push": func(ctx context.Context) error { return push(ctx, f.small, at("app:1.0")) },
		"pull": func(ctx context.Context) error { return pull(ctx, f.small, at("app:1.0")) },
		"copy": func(ctx context.Context) error { return copied(ctx, at("app:1.0"), at("copy:1.0")) },
		"import": func(ctx context.Context) error {
			return copied(ctx, f.network.other+"/peer/app:1.0", at("imported:1.0"))
		},
		"cut push": func(ctx context.Context) error { return push(ctx, f.large, at("large:1.0")) },
		"cut pull": func(ctx context.Context) error { return pull(ctx, f.large, at("large:1.0")) },
	}
}

func (f *fixture) podman() client {
	p, deeds := f.onStorage("podman")
	deeds["list"] = func(ctx context.Context) error {
		out, err := p.run(ctx, "search", "--tls-verify=false", "--list-tags", f.at("podman", "app"))
		return has(out, err, "1.0")
	}
	return client{name: "podman", origin: origin("podman"), deeds: deeds}
}

func (f *fixture) buildah() client {
	_, deeds := f.onStorage("buildah")
	return client{name: "buildah", origin: origin("buildah"), deeds: deeds}
}

// ctr is containerd's own client. It keeps no credentials.
func (f *fixture) ctr() client {
	dir, err := os.MkdirTemp("", "ctr-") // a socket's path is short
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket := filepath.Join(dir, "c.sock")
	config := filepath.Join(dir, "config.toml")
	text := fmt.Sprintf("version = 2\nroot = %q\nstate = %q\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = %q\n",
		filepath.Join(dir, "root"), filepath.Join(dir, "state"), socket)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		f.t.Fatal(err)
	}
	p := tool{path: components.Path(f.t, "ctr"), args: []string{"-a", socket}}
	components.Start(f.t, "containerd", exec.Command(components.Path(f.t, "containerd"), "--config", config), func(ctx context.Context) error {
		_, err := p.run(ctx, "version")
		return err
	})
	at := func(reference string) string { return f.at("ctr", reference) }
	user := f.network.alice.Handle + ":" + f.network.alice.AppPassword
	const name = "local/made:1"
	push := func(ctx context.Context, image testImage, reference string) error {
		return steps(
			func() error {
				_, err := p.run(ctx, "image", "import", "--no-unpack", "--index-name", name, image.archive)
				return err
			},
			func() error {
				_, err := p.run(ctx, "image", "tag", "--force", name, reference)
				return err
			},
			func() error {
				_, err := p.run(ctx, "image", "push", "--plain-http", "--user", user, reference)
				return err
			},
		)
	}
	pull := func(ctx context.Context, image testImage, reference string) error {
		return steps(
			func() error {
				_, err := p.run(ctx, "content", "fetch", "--plain-http", "--user", user, reference)
				return err
			},
			func() error {
				out, err := p.run(ctx, "content", "ls", "-q")
				return has(out, err, image.blobs...)
			},
		)
	}
	clear := func(ctx context.Context) error {
		out, err := p.run(ctx, "image", "ls", "-q")
		if err != nil {
			return err
		}
		_, err = p.run(ctx, append([]string{"image", "rm", "--sync"}, strings.Fields(out)...)...)
		return err
	}
	return client{name: "ctr", origin: origin("containerd"), deeds: map[string]func(ctx context.Context) error{
		"push": func(ctx context.Context) error { return push(ctx, f.small, at("app:1.0")) },
		"pull": func(ctx context.Context) error {
			return steps(func() error { return clear(ctx) }, func() error { return pull(ctx, f.small, at("app:1.0")) })
		},
		"copy": func(ctx context.Context) error {
			return steps(
				func() error {
					_, err := p.run(ctx, "image", "tag", "--force", at("app:1.0"), at("copy:1.0"))
					return err
				},
				func() error {
					_, err := p.run(ctx, "image", "push", "--plain-http", "--user", user, at("copy:1.0"))
					return err
				},
				func() error { return pull(ctx, f.small, at("copy:1.0")) },
			)
		},
		"import": func(ctx context.Context) error {
			other := f.network.other + "/peer/app:1.0"
			return steps(
				func() error { _, err := p.run(ctx, "content", "fetch", "--plain-http", other); return err },
				func() error { _, err := p.run(ctx, "image", "tag", "--force", other, at("imported:1.0")); return err },
				func() error {
					_, err := p.run(ctx, "image", "push", "--plain-http", "--user", user, at("imported:1.0"))
					return err
				},
				func() error { return pull(ctx, f.small, at("imported:1.0")) },
			)
		},
		"cut push": func(ctx context.Context) error { return push(ctx, f.large, at("large:1.0")) },
		"cut pull": func(ctx context.Context) error {
			return steps(func() error { return clear(ctx) }, func() error { return pull(ctx, f.large, at("large:1.0")) })
		},
	}}
}
