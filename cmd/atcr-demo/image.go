package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// entry is a file of an image.
type entry struct {
	name string
	mode int64
	data []byte
}

// executableImage is an image, FROM scratch, that runs this program's --hello: one layer with the program,
// one with a text.
func executableImage(text string) (v1.Image, error) {
	path, err := os.Executable()
	if err != nil {
		return nil, err
	}
	program, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return image([]string{"/atcr-demo", "--hello"},
		entry{"atcr-demo", 0o755, program}, entry{"hello.txt", 0o644, []byte(text)})
}

// runsAnywhere tells whether the program runs in an image that has nothing else: a Linux one that needs no
// dynamic loader.
func runsAnywhere() bool {
	path, err := os.Executable()
	if err != nil || runtime.GOOS != "linux" {
		return false
	}
	f, err := elf.Open(path)
	if err != nil {
		return false
	}
	defer func() { _ = f.Close() }()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return false
		}
	}
	return true
}

// image makes an OCI image with one layer a file.
func image(entrypoint []string, entries ...entry) (v1.Image, error) {
	layers := make([]v1.Layer, len(entries))
	for i, e := range entries {
		var err error
		if layers[i], err = layer(e); err != nil {
			return nil, fmt.Errorf("make the layer of %s: %w", e.name, err)
		}
	}
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	img, err := mutate.AppendLayers(img, layers...)
	if err != nil {
		return nil, err
	}
	file, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	file = file.DeepCopy()
	file.Architecture, file.OS, file.Created = runtime.GOARCH, "linux", v1.Time{Time: time.Now().UTC()}
	file.Config = v1.Config{Entrypoint: entrypoint}
	return mutate.ConfigFile(img, file)
}

// layer is a tar as it is: compressing would take longer than everything else that the demo does.
func layer(e entry) (v1.Layer, error) {
	var content bytes.Buffer
	t := tar.NewWriter(&content)
	header := &tar.Header{Name: e.name, Mode: e.mode, Size: int64(len(e.data)), Typeflag: tar.TypeReg, ModTime: time.Unix(0, 0)}
	if err := t.WriteHeader(header); err != nil {
		return nil, err
	}
	_, err := t.Write(e.data)
	if err := errors.Join(err, t.Close()); err != nil {
		return nil, err
	}
	return static.NewLayer(content.Bytes(), types.OCIUncompressedLayer), nil
}

// content is what an image consists of: its manifest's digest, and digest and size of every blob.
type content struct {
	manifest v1.Hash
	blobs    []v1.Descriptor // config first
	size     int64           // of all, in bytes
}

func contentOf(img v1.Image) (*content, error) {
	digest, err := img.Digest()
	if err != nil {
		return nil, err
	}
	manifest, err := img.Manifest()
	if err != nil {
		return nil, err
	}
	c := &content{manifest: digest, blobs: append([]v1.Descriptor{manifest.Config}, manifest.Layers...)}
	for _, b := range c.blobs {
		c.size += b.Size
	}
	return c, nil
}

// verify hashes what a registry sent against what was pushed: the manifest's bytes and every blob's.
func verify(pulled v1.Image, want *content) error {
	raw, err := pulled.RawManifest()
	if err != nil {
		return err
	}
	if got := sha256.Sum256(raw); hex.EncodeToString(got[:]) != want.manifest.Hex {
		return fmt.Errorf("the pulled manifest is not the pushed one: its bytes hash to sha256:%x, not %s", got, want.manifest)
	}
	config, err := pulled.RawConfigFile()
	if err != nil {
		return err
	}
	if err := verifyBlob(io.NopCloser(bytes.NewReader(config)), want.blobs[0]); err != nil {
		return err
	}
	for _, b := range want.blobs[1:] {
		l, err := pulled.LayerByDigest(b.Digest)
		if err != nil {
			return err
		}
		body, err := l.Compressed()
		if err != nil {
			return err
		}
		if err := verifyBlob(body, b); err != nil {
			return err
		}
	}
	return nil
}

func verifyBlob(body io.ReadCloser, want v1.Descriptor) error {
	h := sha256.New()
	n, err := io.Copy(h, body)
	if err := errors.Join(err, body.Close()); err != nil {
		return fmt.Errorf("blob %s: %w", want.Digest, err)
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != want.Digest.Hex || n != want.Size {
		return fmt.Errorf("blob %s of %d bytes arrived as sha256:%s with %d bytes", want.Digest, want.Size, got, n)
	}
	return nil
}
