package components

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
)

// S3 is a running S3 server, which checks signatures. Its host is localhost where an AppView's is 127.0.0.1:
// Go clients then do not carry a registry's credentials along when they are redirected to it.
type S3 struct {
	Endpoint             string // http://localhost:PORT, path-style addressing
	AccessKey, SecretKey string
	Dir                  string // the server's folder
}

// StartS3 starts an S3 server on an empty folder: versitygw, or with ATCR_TEST_S3=minio MinIO, which `make test`
// neither installs nor runs. It has no bucket.
func StartS3(tb TB) *S3 {
	tb.Helper()
	switch kind := os.Getenv("ATCR_TEST_S3"); kind {
	case "", "versitygw":
		return startVersityGW(tb)
	case "minio":
		return startMinIO(tb)
	default:
		tb.Fatalf("components: ATCR_TEST_S3 is versitygw or minio, not %q", kind)
		return nil
	}
}

func startVersityGW(tb TB) *S3 {
	tb.Helper()
	s, address := newS3(tb)
	cmd := exec.Command(Path(tb, "versitygw"), "--port", address, "--quiet", "posix", s.Dir)
	cmd.Env = []string{"ROOT_ACCESS_KEY=" + s.AccessKey, "ROOT_SECRET_KEY=" + s.SecretKey}
	start(tb, "versitygw", cmd).ready(tb, listens(address))
	return s
}

func startMinIO(tb TB) *S3 {
	tb.Helper()
	s, address := newS3(tb)
	cmd := exec.Command(Path(tb, "minio"), "server", "--quiet", "--address", address, "--console-address", fmt.Sprintf("127.0.0.1:%d", FreePort(tb)), s.Dir)
	cmd.Env = []string{"MINIO_ROOT_USER=" + s.AccessKey, "MINIO_ROOT_PASSWORD=" + s.SecretKey, "MINIO_BROWSER=off", "HOME=" + tb.TempDir()}
	start(tb, "minio", cmd).ready(tb, func(ctx context.Context) error { // it listens before it can
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.Endpoint+"/minio/health/ready", nil)
		if err != nil {
			return err
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		if res.StatusCode != http.StatusOK {
			err = fmt.Errorf("it answers %s", res.Status)
		}
		return errors.Join(err, res.Body.Close())
	})
	return s
}

// newS3 is a server that is to be started at the address.
func newS3(tb TB) (s *S3, address string) {
	tb.Helper()
	port := FreePort(tb)
	return &S3{
		Endpoint:  fmt.Sprintf("http://localhost:%d", port),
		AccessKey: "access-key",
		SecretKey: "secret-key",
		Dir:       tb.TempDir(),
	}, fmt.Sprintf("127.0.0.1:%d", port)
}

// CreateBucket makes an empty bucket.
func (s *S3) CreateBucket(tb TB, bucket string) {
	tb.Helper()
	if err := s.Client(tb).MakeBucket(tb.Context(), bucket, minio.MakeBucketOptions{}); err != nil {
		tb.Fatalf("components: make the bucket %s: %v", bucket, err)
	}
}

// Front is the URL of a proxy in the test's own process, for presigned URLs that name it: see gets each request first.
func (s *S3) Front(tb TB, see func(*http.Request)) string {
	tb.Helper()
	target, err := url.Parse(s.Endpoint)
	if err != nil {
		tb.Fatalf("components: %v", err)
	}
	proxy := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.Out.URL.Scheme, r.Out.URL.Host = target.Scheme, target.Host
		r.Out.Host = r.In.Host // as it was signed
	}}
	l, port := Listen(tb)
	Serve(tb, l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		see(r)
		proxy.ServeHTTP(w, r)
	}), io.NopCloser(nil))
	return "http://localhost:" + port
}

// Client speaks to the server as its root, for tests that look at what lies in a bucket.
func (s *S3) Client(tb TB) *minio.Client {
	tb.Helper()
	client, err := minio.New(s.Endpoint[len("http://"):], &minio.Options{
		Creds:  credentials.NewStaticV4(s.AccessKey, s.SecretKey, ""),
		Region: "us-east-1",
	})
	if err != nil {
		tb.Fatalf("components: %v", err)
	}
	return client
}
