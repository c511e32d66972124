package clients

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// testImage is an image for linux/amd64 of random layers, as an OCI layout and as an archive of one. Its tag there is
// "made".
type testImage struct {
	image   v1.Image
	layout  string
	archive string
	digest  string
	config  string
	blobs   []string // config and layers
}

// newImage makes an image of two layers of so many bytes each.
func newImage(t *testing.T, layerBytes int64) testImage {
	t.Helper()
	image := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	for range 2 {
		layer, err := random.Layer(layerBytes, types.OCILayer)
		if err != nil {
			t.Fatal(err)
		}
		if image, err = mutate.AppendLayers(image, layer); err != nil {
			t.Fatal(err)
		}
	}
	config, err := image.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", "amd64"
	if image, err = mutate.ConfigFile(image, config); err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "layout-") // some clients take a path in lower case alone
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	out := testImage{image: image, layout: dir, archive: filepath.Join(t.TempDir(), "image.tar")}
	path, err := layout.Write(out.layout, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	if err := path.AppendImage(image, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": "made"})); err != nil {
		t.Fatal(err)
	}
	manifest, err := image.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	digest, err := image.Digest()
	if err != nil {
		t.Fatal(err)
	}
	out.digest, out.config = digest.String(), manifest.Config.Digest.String()
	out.blobs = []string{manifest.Config.Digest.Hex}
	for _, l := range manifest.Layers {
		out.blobs = append(out.blobs, l.Digest.Hex)
	}
	if err := writeTar(out.archive, out.layout); err != nil {
		t.Fatal(err)
	}
	return out
}

func writeTar(path, dir string) (err error) {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	w := tar.NewWriter(f)
	err = w.AddFS(os.DirFS(dir))
	return errors.Join(err, w.Close(), f.Close())
}

// isIn checks that a layout has the image's config and layers, whole.
func (i testImage) isIn(dir string) error {
	var found []string
	err := filepath.WalkDir(filepath.Join(dir, "blobs", "sha256"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		raw, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if sum := sha256.Sum256(raw); hex.EncodeToString(sum[:]) != d.Name() {
			return fmt.Errorf("%s has other bytes than its name says", path)
		}
		found = append(found, d.Name())
		return nil
	})
	for _, blob := range i.blobs {
		if err == nil && !slices.Contains(found, blob) {
			err = fmt.Errorf("blob %s was not pulled", blob)
		}
	}
	return err
}
