package hold

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"atcr.io/internal/blobstore"
)

// storage: an object is written, read and deleted.
func (d *doctor) storage(ctx context.Context) {
	key := blobstore.StagingPrefix + "doctor-" + rand.Text()
	err := d.store.Check(ctx)
	if err == nil {
		err = d.store.Put(ctx, key, []byte(key))
	}
	if err == nil {
		err = errors.Join(d.readBack(ctx, key), d.listed(ctx, key), d.store.Delete(ctx, key))
	}
	d.found("storage", "the credentials need to list, read, write and delete in the bucket or folder, and there must be space", err, "an object was written, listed, read and deleted")
}

func (d *doctor) readBack(ctx context.Context, key string) error {
	o, err := d.store.Open(ctx, key)
	if err != nil {
		return err
	}
	defer func() { _ = o.Close() }()
	got, err := io.ReadAll(io.LimitReader(o, 1<<10))
	if err == nil && string(got) != key {
		err = errors.New("it gives back other bytes than it was given")
	}
	return err
}

func (d *doctor) listed(ctx context.Context, key string) error {
	found := false
	err := d.store.List(ctx, key, func(name string, _ int64) error {
		found = found || name == key
		return nil
	})
	if err == nil && !found {
		err = errors.New("an object that was written is not listed")
	}
	return err
}

// signing is the store where it signs URLs for clients, or why it does not.
func (d *doctor) signing(ctx context.Context) (signer blobstore.Presigner, why string) {
	on, why := d.config.presigning(ctx)
	if s, can := d.store.(blobstore.Presigner); on && can {
		return s, why
	}
	return nil, why
}

func (d *doctor) reachStorage() string {
	return "clients must reach S3_PUBLIC_ENDPOINT (" + d.config.S3PublicEndpoint + "), and it must check signatures for its own name; or set DISABLE_PRESIGNED_URLS=true"
}

// presigned: what clients are sent to answers them.
func (d *doctor) presigned(ctx context.Context) {
	const what = "presigned URLs"
	signer, why := d.signing(ctx)
	if signer == nil {
		d.found(what, "", nil, why)
		return
	}
	key := blobstore.StagingPrefix + "doctor-" + rand.Text()
	err := d.store.Put(ctx, key, []byte(key))
	if err == nil {
		var cors string
		cors, err = d.fetchPresigned(ctx, signer, key)
		why += cors
		_ = d.store.Delete(ctx, key)
	}
	d.found(what, d.reachStorage(), err, why)
}

// fetchPresigned asks by GET, a range, and HEAD. cors is what to say of pages in browsers, which nothing of
// ours needs.
func (d *doctor) fetchPresigned(ctx context.Context, signer blobstore.Presigner, key string) (cors string, err error) {
	target, err := signer.PresignGet(ctx, http.MethodGet, key, time.Minute)
	if err != nil {
		return "", err
	}
	res, err := d.get(ctx, target, "Origin", d.config.PublicURL)
	switch {
	case err != nil:
		return "", err
	case res.StatusCode != http.StatusOK || string(res.body) != key:
		return "", fmt.Errorf("the storage answers %s", res.Status)
	}
	if res.Header.Get("Access-Control-Allow-Origin") == "" {
		cors = " (it sends no CORS headers: pages in browsers cannot read blobs, which container clients do not need)"
	}
	if res, err = d.get(ctx, target, "Range", "bytes=0-3"); err != nil || res.StatusCode != http.StatusPartialContent || string(res.body) != key[:4] {
		return "", errors.Join(errors.New("the storage does not answer ranges, by which pulls go on after a break"), err)
	}
	if target, err = signer.PresignGet(ctx, http.MethodHead, key, time.Minute); err != nil {
		return "", err
	}
	res, err = d.send(ctx, http.MethodHead, target, nil, nil)
	if err == nil && (res.StatusCode != http.StatusOK || res.ContentLength != int64(len(key))) {
		err = fmt.Errorf("the storage answers HEAD with %s and a length of %d", res.Status, res.ContentLength)
	}
	return cors, err
}

// parts: what others may send straight to the storage arrives whole.
func (d *doctor) parts(ctx context.Context) {
	const what = "presigned uploads"
	signer, why := d.signing(ctx)
	store, can := d.store.(blobstore.Multipart)
	if signer == nil || !can {
		d.found(what, "", nil, why)
		return
	}
	d.found(what, d.reachStorage()+". A proxy before it must let PUT pass", d.sendPart(ctx, store), "a part was sent, joined, read and deleted")
}

func (d *doctor) sendPart(ctx context.Context, store blobstore.Multipart) error {
	state, err := store.NewMultipart(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = d.store.Discard(ctx, state) }()
	target, header, err := store.PresignPart(ctx, state, 1, time.Minute)
	if err != nil {
		return err
	}
	data := []byte(rand.Text())
	res, err := d.send(ctx, http.MethodPut, target, header, data)
	if err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("the storage answers PUT with %s", res.Status)
	}
	key, size, err := store.CompleteMultipart(ctx, state, []blobstore.Part{{Number: 1, ETag: res.Header.Get("ETag")}})
	if err == nil && size != int64(len(data)) {
		err = fmt.Errorf("%d bytes arrived, %d were sent", size, len(data))
	}
	if key != "" {
		err = errors.Join(err, d.store.Delete(ctx, key))
	}
	return err
}

// checksums: whether the storage would notice bytes that are not those of their checksum. The hold hashes all
// that passes it, so this is worth knowing and no fault.
func (d *doctor) checksums(ctx context.Context) {
	const what = "checksums"
	signer, why := d.signing(ctx)
	store, can := d.store.(blobstore.Checker)
	if signer == nil || !can {
		d.found(what, "", nil, why)
		return
	}
	key := blobstore.StagingPrefix + "doctor-" + rand.Text()
	defer func() { _ = d.store.Delete(ctx, key) }()
	right, wrong := []byte("right "+key), []byte("wrong "+key)
	var status [2]int
	for i, data := range [][]byte{right, wrong} {
		target, header, err := store.PresignPut(ctx, key, sha256.Sum256(right), time.Minute)
		if err != nil {
			d.found(what, "", err, "")
			return
		}
		res, err := d.send(ctx, http.MethodPut, target, header, data)
		if err != nil {
			d.found(what, d.reachStorage(), err, "")
			return
		}
		status[i] = res.StatusCode
	}
	switch {
	case status[0] != http.StatusOK:
		why = "the storage takes no checksums with a PUT: the hold is what checks them"
	case status[1] == http.StatusOK:
		why = "the storage takes bytes that are not those of their checksum: the hold is what checks them"
	default:
		why = "the storage refuses bytes that are not those of their checksum"
	}
	d.found(what, "", nil, why)
}

// send is a request of another kind, whose answer is not looked into.
func (d *doctor) send(ctx context.Context, method, target string, header map[string]string, body []byte) (fetched, error) {
	req, err := http.NewRequestWithContext(ctx, method, target, bytes.NewReader(body))
	if err != nil {
		return fetched{}, err
	}
	for name, value := range header {
		req.Header.Set(name, value)
	}
	return d.do(req)
}
