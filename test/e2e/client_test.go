package e2e

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"atcr.io/test/components"
)

// client is a container client that nobody here wrote, with a configuration folder of its own.
type client struct {
	name string
	// login keeps alice's credentials, so that push works.
	login func(t *testing.T, n *network, account components.Account)
	// push sends the layout (an index with all its platforms) to repository:tag.
	push func(t *testing.T, n *network, image testImage, reference string)
	// pull fetches reference into a new layout and returns its folder.
	pull func(t *testing.T, n *network, reference string) string
	// rewritesIndex: the client writes an index anew before it pushes it, so only what it names is the same.
	rewritesIndex bool
}

func layoutClients(t *testing.T) []client {
	crane, regctl, skopeo := components.Path(t, "crane"), components.Path(t, "regctl"), components.Path(t, "skopeo")
	config := t.TempDir()
	docker := []string{"DOCKER_CONFIG=" + config, "HOME=" + config}
	authfile := filepath.Join(t.TempDir(), "auth.json")
	regctlEnv := []string{"REGCTL_CONFIG=" + filepath.Join(t.TempDir(), "config.json"), "HOME=" + config}
	host := func(n *network) string { return "--host=reg=" + n.registry + ",tls=disabled" }
	return []client{
		{
			name: "crane",
			login: func(t *testing.T, n *network, a components.Account) {
				command(t, docker, crane, "auth", "login", n.registry, "-u", a.Handle, "-p", a.AppPassword)
			},
			push: func(t *testing.T, n *network, image testImage, reference string) {
				command(t, docker, crane, "push", soleEntry(t, image), n.registry+"/"+reference, "--index="+boolText(image.image == nil))
			},
			pull: func(t *testing.T, n *network, reference string) string {
				dir := filepath.Join(t.TempDir(), "out")
				command(t, docker, crane, "pull", "--format=oci", n.registry+"/"+reference, dir)
				return dir
			},
		},
		{
			name: "regctl",
			login: func(t *testing.T, n *network, a components.Account) {
				command(t, regctlEnv, regctl, host(n), "registry", "login", n.registry, "-u", a.Handle, "-p", a.AppPassword, "--skip-check")
			},
			push: func(t *testing.T, n *network, image testImage, reference string) {
				command(t, regctlEnv, regctl, host(n), "image", "copy", "ocidir://"+image.layout+"@"+image.digest, n.registry+"/"+reference)
			},
			pull: func(t *testing.T, n *network, reference string) string {
				dir := filepath.Join(t.TempDir(), "out")
				command(t, regctlEnv, regctl, host(n), "image", "copy", n.registry+"/"+reference, "ocidir://"+dir+":pulled")
				return dir
			},
		},
		{
			name: "skopeo", rewritesIndex: true,
			login: func(t *testing.T, n *network, a components.Account) {
				command(t, nil, skopeo, "login", "--tls-verify=false", "--authfile="+authfile, "-u", a.Handle, "-p", a.AppPassword, n.registry)
			},
			push: func(t *testing.T, n *network, image testImage, reference string) {
				command(t, nil, skopeo, "--insecure-policy", "copy", "--all", "--authfile="+authfile, "--dest-tls-verify=false",
					"oci:"+image.layout, "docker://"+n.registry+"/"+reference)
			},
			pull: func(t *testing.T, n *network, reference string) string {
				dir := filepath.Join(t.TempDir(), "out")
				command(t, nil, skopeo, "--insecure-policy", "copy", "--all", "--authfile="+authfile, "--src-tls-verify=false",
					"docker://"+n.registry+"/"+reference, "oci:"+dir+":pulled")
				return dir
			},
		},
	}
}

// digestOf is the digest that the registry serves a tag with.
func digestOf(t *testing.T, n *network, reference string) string {
	t.Helper()
	repository, tag, _ := strings.Cut(reference, ":")
	req, err := http.NewRequestWithContext(t.Context(), http.MethodHead, "http://"+n.registry+"/v2/"+repository+"/manifests/"+tag, nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	if err := res.Body.Close(); err != nil || res.StatusCode != http.StatusOK {
		t.Fatal(res.Status, err)
	}
	return res.Header.Get("Docker-Content-Digest")
}

func boolText(b bool) string {
	if b {
		return "true"
	}
	return "false"
}

// soleEntry is the layout as crane pushes it: one image or index, not a list of one.
func soleEntry(t *testing.T, image testImage) string {
	t.Helper()
	if image.image != nil {
		return image.layout
	}
	// crane pushes the layout's own index, so index.json is made the image's.
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(image.layout)); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(filepath.Join(dir, "blobs", "sha256", strings.TrimPrefix(image.digest, "sha256:")))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "index.json"), raw, 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

// Would catch anything that only our own code can talk to: the clients are unmodified, the PDS is the
// reference implementation, the S3 server is real.
func TestClients(t *testing.T) {
	t.Parallel()
	for _, driver := range []string{"filesystem", "s3"} {
		t.Run(driver, func(t *testing.T) {
			t.Parallel()
			n := startNetwork(t, driver)
			images := map[string]testImage{"image": newImage(t), "index": newIndex(t)}
			for _, c := range layoutClients(t) {
				c.login(t, n, n.alice)
				for kind, image := range images {
					reference := "alice.test/" + c.name + "/" + kind + ":1.0"
					c.push(t, n, image, reference)
					if c.rewritesIndex && image.image == nil {
						image = image.without(image.digest)
						image.digest = digestOf(t, n, reference)
					}
					sameBlobs(t, image, c.pull(t, n, reference))
					sameBlobs(t, image, c.pull(t, n, strings.TrimSuffix(reference, ":1.0")+"@"+image.digest))
				}
			}
			testDocker(t, n, images)
			testAnonymous(t, n, images)
		})
	}
}

// testAnonymous pulls what each client pushed as nobody, under the account's DID as well.
func testAnonymous(t *testing.T, n *network, images map[string]testImage) {
	t.Helper()
	crane := components.Path(t, "crane")
	config := []string{"DOCKER_CONFIG=" + t.TempDir()}
	owner := strings.ReplaceAll(n.alice.DID, ":", "_")
	for _, reference := range []string{"alice.test/skopeo/index:1.0", owner + "/regctl/index:1.0"} {
		dir := filepath.Join(t.TempDir(), "out")
		command(t, config, crane, "pull", "--format=oci", n.registry+"/"+reference, dir)
		sameBlobs(t, images["index"].without(images["index"].digest), dir)
	}
}

// testDocker pushes the image with a docker daemon, removes it there, pulls it again and compares its id, which is
// the digest of its config, which names its layers, and the bytes of the layers themselves. An index of its own
// is pushed and pulled, and the one that crane pushed.
func testDocker(t *testing.T, n *network, images map[string]testImage) {
	t.Helper()
	d := components.StartDockerd(t)
	reference := n.registry + "/alice.test/docker/image:1.0"
	tag, err := name.NewTag(reference, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	archive := filepath.Join(t.TempDir(), "image.tar")
	if err := tarball.WriteToFile(archive, tag, images["image"].image); err != nil {
		t.Fatal(err)
	}
	d.Run(t, "login", n.registry, "-u", n.alice.Handle, "-p", n.alice.AppPassword)
	d.Run(t, "load", "-i", archive)
	want := d.Run(t, "image", "inspect", "--format", "{{.Id}}", reference)
	d.Run(t, "push", reference)
	d.Run(t, "rmi", "-f", strings.TrimSpace(want))
	d.Run(t, "logout", n.registry)
	d.Run(t, "pull", reference)
	saved := filepath.Join(t.TempDir(), "saved.tar")
	d.Run(t, "save", "-o", saved, reference)
	sameLayers(t, images["image"].image, saved)
	if got := d.Run(t, "image", "inspect", "--format", "{{.Id}}", reference); got != want {
		t.Errorf("docker pulled %s, had pushed %s", got, want)
	}
	testDockerIndex(t, n, d, reference)
	d.Run(t, "pull", n.registry+"/alice.test/crane/index:1.0")
	var inspected []struct {
		RepoDigests []string
	}
	if err := json.Unmarshal([]byte(d.Run(t, "image", "inspect", n.registry+"/alice.test/crane/index:1.0")), &inspected); err != nil {
		t.Fatal(err)
	}
	if len(inspected) != 1 || len(inspected[0].RepoDigests) != 1 || !strings.HasSuffix(inspected[0].RepoDigests[0], images["index"].digest) {
		t.Errorf("docker pulled %+v, want the index %s", inspected, images["index"].digest)
	}
}

// sameLayers compares the layers of what docker saved with those of want.
func sameLayers(t *testing.T, want v1.Image, archive string) {
	t.Helper()
	saved, err := tarball.ImageFromPath(archive, nil)
	if err != nil {
		t.Fatal(err)
	}
	layers := func(i v1.Image) (out []string) {
		all, err := i.Layers()
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range all { // hashed anew, from the bytes
			r, err := l.Uncompressed()
			if err != nil {
				t.Fatal(err)
			}
			h := sha256.New()
			if _, err := io.Copy(h, r); err != nil {
				t.Fatal(err)
			}
			out = append(out, fmt.Sprintf("%x", h.Sum(nil)))
		}
		return out
	}
	if got, want := layers(saved), layers(want); !slices.Equal(got, want) {
		t.Errorf("docker has the layers %v, want %v", got, want)
	}
}

// testDockerIndex has docker make an index of an image that it pushed, push it, and pull it again.
func testDockerIndex(t *testing.T, n *network, d *components.Dockerd, reference string) {
	t.Helper()
	index := n.registry + "/alice.test/docker/index:1.0"
	d.Run(t, "login", n.registry, "-u", n.alice.Handle, "-p", n.alice.AppPassword)
	d.Run(t, "manifest", "create", "--insecure", index, reference)
	d.Run(t, "manifest", "annotate", "--os", "linux", "--arch", "amd64", index, reference)
	said := strings.TrimSpace(d.Run(t, "manifest", "push", "--insecure", index))
	want := said[max(strings.LastIndex(said, "sha256:"), 0):]
	d.Run(t, "logout", n.registry)
	if got := digestOf(t, n, "alice.test/docker/index:1.0"); got != want || !strings.HasPrefix(want, "sha256:") {
		t.Errorf("docker pushed the index %s, the registry has %s", want, got)
	}
	d.Run(t, "rmi", "-f", reference)
	d.Run(t, "pull", index)
	if got := d.Run(t, "image", "inspect", "--format", "{{.RepoDigests}}", index); !strings.Contains(got, want) {
		t.Errorf("docker pulled %s, want the index %s", got, want)
	}
}
