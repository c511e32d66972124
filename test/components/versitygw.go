package components

import (
	"fmt"
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
