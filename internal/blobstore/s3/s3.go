// Package s3 keeps blobs in a bucket of any server that speaks S3.
//
// It owns requests, parts, retries and presigned URLs. Memory is a fixed number of part buffers for the whole
// process, however many uploads there are and however large. It refuses to own digests.
package s3

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"atcr.io/internal/blobstore"
)

const (
	// PartBytes is the size of every part but the last; R2 wants them equal. 10,000 parts make 78 GiB.
	PartBytes = 8 << 20
	// PartsInFlight is how many full parts of one object are on their way at once, at most: to a storage that is far.
	PartsInFlight = 3
	// defaultNear is how long the fastest of timedParts takes at most to a storage that is near.
	defaultNear = 75 * time.Millisecond
	timedParts  = 4
	// liveBytes go to the storage at a time, where a part is sent while it is filled.
	liveBytes = 256 << 10
	// defaultBuffers is how many parts are in memory at once, in the whole process.
	defaultBuffers = 6
	maxParts       = 10_000
	maxRetries     = 5
	requestTimeout = 2 * time.Minute
)

// Config is what New needs.
type Config struct {
	Endpoint        string // URL; "" means AWS. Path-style addressing where it is set
	PublicEndpoint  string // the same for presigned URLs; "" means Endpoint
	Region          string // required
	Bucket          string
	AccessKeyID     string
	SecretAccessKey string
	// SpoolDir holds the tails of uploads that pause, and parts of senders that are too slow for a buffer.
	SpoolDir string
	Buffers  int               // 0: 6
	Slow     time.Duration     // how long a sender may keep a buffer; 0: 10 s
	Near     time.Duration     // how long a part takes at most to a storage that is near; 0: 75 ms
	Wrap     http.RoundTripper // nil: a transport of its own; tests count and break requests here
}

// Store is a blobstore.Store over a bucket. Safe for concurrent use.
type Store struct {
	config  Config
	core    minio.Core
	joiner  minio.Core    // as core, but that it waits for an answer as long as its caller does: joining parts may take long
	presign *minio.Client // for what is not read
	gets    *presigner
	pool    chan []byte
	made    chan struct{} // a token for each buffer that was never needed yet
}

var (
	_ blobstore.Store     = (*Store)(nil)
	_ blobstore.Presigner = (*Store)(nil)
	_ blobstore.Multipart = (*Store)(nil)
	_ blobstore.Checker   = (*Store)(nil)
)

// New makes a Store; it sends nothing. Errors: settings that no S3 client takes.
func New(c Config) (*Store, error) {
	if c.Buffers == 0 {
		c.Buffers = defaultBuffers
	}
	if c.Slow == 0 {
		c.Slow = 10 * time.Second
	}
	if c.Near == 0 {
		c.Near = defaultNear
	}
	if c.PublicEndpoint == "" {
		c.PublicEndpoint = c.Endpoint
	}
	s := &Store{config: c, pool: make(chan []byte, c.Buffers), made: make(chan struct{}, c.Buffers)}
	for range c.Buffers {
		s.made <- struct{}{}
	}
	client, err := newClient(c, c.Endpoint, time.Minute)
	if err != nil {
		return nil, fmt.Errorf("S3_ENDPOINT: %w", err)
	}
	s.core = minio.Core{Client: client}
	if client, err = newClient(c, c.Endpoint, 0); err != nil {
		return nil, fmt.Errorf("S3_ENDPOINT: %w", err)
	}
	s.joiner = minio.Core{Client: client}
	if s.presign, err = newClient(c, c.PublicEndpoint, time.Minute); err != nil {
		return nil, fmt.Errorf("S3_PUBLIC_ENDPOINT: %w", err)
	}
	if s.gets, err = newPresigner(context.Background(), s.presign, c); err != nil {
		return nil, fmt.Errorf("S3_BUCKET: %w", err)
	}
	return s, nil
}

// newClient makes a client that waits for the head of an answer, or with 0 as long as the call may take.
func newClient(c Config, endpoint string, wait time.Duration) (*minio.Client, error) {
	o := &minio.Options{
		Creds: credentials.NewStaticV4(c.AccessKeyID, c.SecretAccessKey, ""), Region: c.Region, // a set region saves asking for it
		Secure: true, BucketLookup: minio.BucketLookupAuto, MaxRetries: maxRetries, Transport: c.Wrap,
	}
	host := "s3." + c.Region + ".amazonaws.com"
	if endpoint != "" {
		u, err := url.Parse(endpoint)
		if err != nil {
			return nil, err
		}
		host, o.Secure, o.BucketLookup = u.Host, u.Scheme == "https", minio.BucketLookupPath
	}
	if o.Transport == nil {
		t, err := minio.DefaultTransport(o.Secure)
		if err != nil {
			return nil, err
		}
		t.MaxIdleConnsPerHost, t.ResponseHeaderTimeout = 64, wait
		t.DialContext = dialWhole(t.DialContext)
		o.Transport = t
	}
	return minio.New(host, o)
}

// Check lists one key, which asks for bucket, credentials and clock at once.
func (s *Store) Check(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		_, err := s.core.ListObjectsV2(s.config.Bucket, blobstore.StagingPrefix, "", "", "", 1)
		done <- err
	}()
	var err error
	select {
	case err = <-done:
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err == nil {
		return nil
	}
	where := s.config.Endpoint
	if where == "" {
		where = "AWS, region " + s.config.Region
	}
	say := "cannot be reached: check S3_ENDPOINT and the network"
	answer := minio.ToErrorResponse(err)
	if answer.StatusCode >= 400 && answer.StatusCode < 500 {
		say = "refuses the credentials or settings: check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION"
	}
	switch answer.Code {
	case "NoSuchBucket":
		say = "has no bucket " + s.config.Bucket + ": make it, or correct S3_BUCKET"
	case "InvalidAccessKeyId", "SignatureDoesNotMatch":
		say = "refuses the credentials: check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
	case "AccessDenied":
		say = "refuses access to bucket " + s.config.Bucket + ": these credentials need to list, read, write and delete in it"
	case "RequestTimeTooSkewed":
		say = "says that this machine's clock is wrong"
	case "AuthorizationHeaderMalformed":
		say = "expects another region: check AWS_REGION"
	}
	return fmt.Errorf("%w: the storage at %s %s (%w)", blobstore.ErrNoBucket, where, say, err)
}

// translate names what the contract names.
func translate(err error) error {
	if err == nil {
		return nil
	}
	switch r := minio.ToErrorResponse(err); {
	case r.Code == "NoSuchKey" || r.Code == "NoSuchUpload" || r.Code == "InvalidPart" || r.Code == "NotFound":
		return fmt.Errorf("%w: %w", blobstore.ErrNotFound, err)
	case r.Code == "EntityTooSmall":
		return fmt.Errorf("%w: %w", blobstore.ErrPartTooSmall, err)
	case r.Code == "NoSuchBucket":
		return fmt.Errorf("%w: %w", blobstore.ErrNoBucket, err)
	case r.Code == "QuotaExceeded" || r.Code == "XMinioStorageFull" || r.Code == "InsufficientCapacity" || r.StatusCode == http.StatusInsufficientStorage:
		return fmt.Errorf("%w: %w", blobstore.ErrNoSpace, err)
	}
	return err
}

// checkKey refuses keys that another driver could not keep.
func checkKey(key string) error {
	for part := range strings.SplitSeq(key, "/") {
		if part == "" || part == "." || part == ".." {
			return fmt.Errorf("s3: key %q is not valid", key)
		}
	}
	return nil
}

// Put is one request.
func (s *Store) Put(ctx context.Context, key string, data []byte) error {
	if err := checkKey(key); err != nil {
		return err
	}
	return s.put(ctx, key, data)
}

func (s *Store) put(ctx context.Context, key string, data []byte) error {
	b := newBody(data)
	defer b.end()
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	_, err := s.core.PutObject(ctx, s.config.Bucket, key, b, int64(len(data)), "", "", minio.PutObjectOptions{
		ContentType: "application/octet-stream", DisableContentSha256: true, SendContentMd5: false,
	})
	return translate(err)
}

// Open asks for the object's size; its bytes are fetched as they are read.
func (s *Store) Open(ctx context.Context, key string) (blobstore.Object, error) {
	if err := checkKey(key); err != nil {
		return nil, err
	}
	object, err := s.core.Client.GetObject(ctx, s.config.Bucket, key, minio.GetObjectOptions{})
	if err != nil {
		return nil, translate(err)
	}
	if _, err := object.Stat(); err != nil {
		return nil, errors.Join(translate(err), object.Close())
	}
	return object, nil
}

// Stat is one HEAD.
func (s *Store) Stat(ctx context.Context, key string) (int64, error) {
	if err := checkKey(key); err != nil {
		return 0, err
	}
	info, err := s.core.StatObject(ctx, s.config.Bucket, key, minio.StatObjectOptions{})
	return info.Size, translate(err)
}

// Delete is one request; S3 does not say whether there was one.
func (s *Store) Delete(ctx context.Context, key string) error {
	if err := checkKey(key); err != nil {
		return err
	}
	err := translate(s.core.RemoveObject(ctx, s.config.Bucket, key, minio.RemoveObjectOptions{}))
	if errors.Is(err, blobstore.ErrNotFound) {
		return nil
	}
	return err
}

// List pages through the bucket.
func (s *Store) List(ctx context.Context, prefix string, fn func(key string, size int64) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the lister's goroutine
	for object := range s.core.Client.ListObjects(ctx, s.config.Bucket, minio.ListObjectsOptions{Prefix: prefix, Recursive: true}) {
		if object.Err != nil {
			return translate(object.Err)
		}
		if strings.HasSuffix(object.Key, "/") {
			continue // a folder, on servers that have some
		}
		if err := fn(object.Key, object.Size); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// PresignGet signs for the public endpoint; no request is sent.
func (s *Store) PresignGet(_ context.Context, method, key string, ttl time.Duration) (string, error) {
	if err := checkKey(key); err != nil {
		return "", err
	}
	return s.gets.sign(method, key, ttl, time.Now()), nil
}

// PresignPut signs over x-amz-checksum-sha256.
func (s *Store) PresignPut(ctx context.Context, key string, sum [32]byte, ttl time.Duration) (string, map[string]string, error) {
	if err := checkKey(key); err != nil {
		return "", nil, err
	}
	const name = "x-amz-checksum-sha256"
	header := map[string]string{name: base64.StdEncoding.EncodeToString(sum[:])}
	u, err := s.presign.PresignHeader(ctx, http.MethodPut, s.config.Bucket, key, ttl, nil, http.Header{http.CanonicalHeaderKey(name): {header[name]}})
	if err != nil {
		return "", nil, err
	}
	return u.String(), header, nil
}

// NewMultipart begins an upload whose parts others send, under a key of its own.
func (s *Store) NewMultipart(ctx context.Context) ([]byte, error) {
	st := state{Key: blobstore.StagingPrefix + rand.Text()}
	var err error
	if st.UploadID, err = s.newUpload(ctx, st.Key); err != nil {
		return nil, err
	}
	return json.Marshal(st)
}

func (s *Store) newUpload(ctx context.Context, key string) (string, error) {
	id, err := s.core.NewMultipartUpload(ctx, s.config.Bucket, key, minio.PutObjectOptions{ContentType: "application/octet-stream"})
	return id, translate(err)
}

// PresignPart signs a PUT of one part.
func (s *Store) PresignPart(ctx context.Context, raw []byte, number int, ttl time.Duration) (string, map[string]string, error) {
	st, err := parseState(raw)
	if err != nil {
		return "", nil, err
	}
	if number < 1 || number > maxParts {
		return "", nil, fmt.Errorf("s3: part %d: parts are 1 to %d", number, maxParts)
	}
	u, err := s.presign.Presign(ctx, http.MethodPut, s.config.Bucket, st.Key, ttl, url.Values{
		"partNumber": {strconv.Itoa(number)}, "uploadId": {st.UploadID},
	})
	if err != nil {
		return "", nil, err
	}
	return u.String(), nil, nil
}

// CompleteMultipart joins the parts and asks for the size of what came of it.
func (s *Store) CompleteMultipart(ctx context.Context, raw []byte, parts []blobstore.Part) (string, int64, error) {
	st, err := parseState(raw)
	if err != nil {
		return "", 0, err
	}
	done := make([]minio.CompletePart, len(parts))
	for i, p := range parts {
		done[i] = minio.CompletePart{PartNumber: p.Number, ETag: strings.Trim(p.ETag, `"`)}
	}
	_, err = s.joiner.CompleteMultipartUpload(ctx, s.config.Bucket, st.Key, st.UploadID, done, minio.PutObjectOptions{})
	if err != nil && !errors.Is(translate(err), blobstore.ErrNotFound) {
		return "", 0, translate(err)
	}
	size, statErr := s.Stat(ctx, st.Key) // there after an earlier completion, too
	if statErr != nil {
		return "", 0, errors.Join(statErr, translate(err))
	}
	return st.Key, size, nil
}

// state is an unfinished object: for Resume, Discard and presigned parts.
type state struct {
	ID       string `json:"id,omitempty"` // names its files in SpoolDir
	Key      string `json:"key,omitempty"`
	UploadID string `json:"uploadId,omitempty"`
	Parts    []part `json:"parts,omitempty"`
	Tail     string `json:"tail,omitempty"` // a file of SpoolDir
	TailSize int64  `json:"tailSize,omitempty"`
	Boot     string `json:"boot,omitempty"` // of the machine that has the tail
}

type part struct {
	ETag string `json:"e"`
	Size int64  `json:"s"`
}

func parseState(raw []byte) (state, error) {
	var st state
	if err := json.Unmarshal(raw, &st); err != nil || strings.ContainsAny(st.Tail, "/\\") || strings.ContainsAny(st.ID, "/\\.*?[") || st.TailSize < 0 {
		return st, fmt.Errorf("%w: the state is not valid", blobstore.ErrNotFound)
	}
	return st, nil
}

// Discard aborts the upload and removes the tail, and the object where the upload was completed under a key
// of its own. A final key is never touched.
func (s *Store) Discard(ctx context.Context, raw []byte) error {
	st, err := parseState(raw)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	if err := s.abort(ctx, st); err != nil {
		return err
	}
	return s.clearSpool(st)
}

// abort ends the multipart upload of st, or the one that was begun after it.
func (s *Store) abort(ctx context.Context, st state) error {
	if st.UploadID == "" {
		st.UploadID = s.begun(st)
	}
	if st.UploadID == "" {
		return nil
	}
	err := translate(s.core.AbortMultipartUpload(ctx, s.config.Bucket, st.Key, st.UploadID))
	if errors.Is(err, blobstore.ErrNotFound) {
		err = nil
	}
	if strings.HasPrefix(st.Key, blobstore.StagingPrefix) {
		err = errors.Join(err, s.Delete(ctx, st.Key))
	}
	return err
}

// begunFile holds the upload's id until it is completed or aborted.
func (s *Store) begunFile(st state) string { return filepath.Join(s.config.SpoolDir, st.ID+".begun") }

func (s *Store) begun(st state) string {
	if st.ID == "" {
		return ""
	}
	id, err := os.ReadFile(s.begunFile(st))
	if err != nil {
		return ""
	}
	return string(id)
}

// clearSpool removes all files of an upload.
func (s *Store) clearSpool(st state) error {
	var names []string
	if st.Tail != "" {
		names = append(names, filepath.Join(s.config.SpoolDir, st.Tail))
	}
	if st.ID != "" {
		entries, err := os.ReadDir(s.config.SpoolDir)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if strings.HasPrefix(e.Name(), st.ID+".") {
				names = append(names, filepath.Join(s.config.SpoolDir, e.Name()))
			}
		}
	}
	var errs []error
	for _, name := range names {
		if err := os.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// buffer waits for one of the process's part buffers.
func (s *Store) buffer(ctx context.Context) ([]byte, error) {
	select {
	case b := <-s.pool:
		return b, nil
	default:
	}
	select {
	case b := <-s.pool:
		return b, nil
	case <-s.made:
		return make([]byte, PartBytes), nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (s *Store) giveBack(b []byte) { s.pool <- b[:PartBytes] }
