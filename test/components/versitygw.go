package components

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os/exec"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
)

// S3 is a running S3 server, which checks signatures. Its host is localhost where an AppView's is 127.0.0.1:
// Go clients then do not carry a registry's credentials along when they are redirected to it.
type S3 struct {
	Endpoint             string // http://localhost:PORT, path-style addressing
	AccessKey, SecretKey string
	Dir                  string // the server's folder, with one folder a bucket
}

// StartVersityGW starts an S3 server on an empty folder. It has no bucket.
func StartVersityGW(tb TB) *S3 {
	tb.Helper()
	port := FreePort(tb)
	s := &S3{
		Endpoint:  fmt.Sprintf("http://localhost:%d", port),
		AccessKey: "access-key",
		SecretKey: "secret-key",
		Dir:       tb.TempDir(),
	}
	address := fmt.Sprintf("127.0.0.1:%d", port)
	cmd := exec.Command(Path(tb, "versitygw"), "--port", address, "--quiet", "posix", s.Dir)
	cmd.Env = []string{"ROOT_ACCESS_KEY=" + s.AccessKey, "ROOT_SECRET_KEY=" + s.SecretKey}
	start(tb, "versitygw", cmd).ready(tb, listens(address))
	return s
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
