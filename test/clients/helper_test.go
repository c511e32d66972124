package clients

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"atcr.io/test/components"
)

// Would catch a credential helper that one of the clients cannot use: none of them is logged in, each asks the
// helper, which knows alice, in its own way.
func TestCredentialHelper(t *testing.T) {
	n := startNetwork(t, false)
	f := &fixture{t: t, network: n, small: newImage(t, 100<<10)}
	dir := t.TempDir()
	helper := filepath.Join(dir, "docker-credential-atcr")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", helper, "atcr.io/cmd/docker-credential-atcr").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	config := filepath.Join(dir, "config.json")
	env := []string{
		"PATH=" + dir + ":" + os.Getenv("PATH"), "DOCKER_CONFIG=" + dir, "REGISTRY_AUTH_FILE=" + config, "HOME=" + dir,
		"REGCTL_CONFIG=" + filepath.Join(dir, "regctl.json"), "HELM_CONFIG_HOME=" + dir, "HELM_CACHE_HOME=" + dir, "HELM_DATA_HOME=" + dir,
		"DOCKER_CREDENTIAL_ATCR_DIR=" + filepath.Join(dir, "atcr"), "DOCKER_CREDENTIAL_ATCR_FILE=1",
	}
	p := tool{path: helper, env: env}
	store := exec.CommandContext(t.Context(), helper, "store")
	store.Env = append(os.Environ(), env...)
	store.Stdin = strings.NewReader(fmt.Sprintf(`{"ServerURL":%q,"Username":%q,"Secret":%q}`, n.registry, n.alice.Handle, n.alice.AppPassword))
	if out, err := store.CombinedOutput(); err != nil {
		t.Fatalf("store: %v\n%s", err, out)
	}
	if out, err := p.run(t.Context(), "configure-docker", "--yes"); err != nil {
		t.Fatalf("configure-docker: %v\n%s", err, out)
	}
	chart := filepath.Join(dir, "web")
	if err := os.Mkdir(chart, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(chart, "Chart.yaml"), []byte("apiVersion: v2\nname: web\nversion: 0.1.0\ndescription: a chart of the tests\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	run := func(name string, more []string, args ...string) error {
		_, err := tool{path: components.Path(t, name), env: append(append([]string(nil), env...), more...)}.run(t.Context(), args...)
		return err
	}
	at := func(client string) string { return f.at("helper", client+":1.0") }
	for name, push := range map[string]func(context.Context) error{
		"crane": func(context.Context) error {
			return run("crane", nil, "push", f.small.layout, at("crane"), "--index=false")
		},
		"regctl": func(context.Context) error {
			return run("regctl", nil, "--host=reg="+n.registry+",tls=disabled", "image", "copy", "ocidir://"+f.small.layout+":made", at("regctl"))
		},
		"oras": func(context.Context) error {
			return run("oras", nil, "copy", "--from-oci-layout", "--to-plain-http", f.small.layout+":made", at("oras"))
		},
		"skopeo": func(context.Context) error {
			return run("skopeo", nil, "--insecure-policy", "copy", "--dest-tls-verify=false", "oci:"+f.small.layout+":made", "docker://"+at("skopeo"))
		},
		"podman": func(context.Context) error {
			storage := append(f.storage(), "REGISTRY_AUTH_FILE="+config)
			return steps(
				func() error { return run("podman", storage, "pull", "oci:"+f.small.layout+":made") },
				func() error {
					return run("podman", storage, "push", "--tls-verify=false", f.small.config, at("podman"))
				},
			)
		},
		"buildah": func(context.Context) error {
			storage := append(f.storage(), "REGISTRY_AUTH_FILE="+config)
			return steps(
				func() error { return run("buildah", storage, "pull", "oci:"+f.small.layout+":made") },
				func() error {
					return run("buildah", storage, "push", "--tls-verify=false", f.small.config, at("buildah"))
				},
			)
		},
		"helm": func(context.Context) error {
			return steps(
				func() error { return run("helm", nil, "package", chart, "--destination", dir) },
				func() error {
					return run("helm", nil, "push", "--plain-http", filepath.Join(dir, "web-0.1.0.tgz"), "oci://"+f.at("helper", "charts"))
				},
			)
		},
	} {
		t.Run(name, func(t *testing.T) {
			if err := push(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}
