package components

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
)

// Distribution is a running registry of the CNCF's distribution project, the peer in measurements.
type Distribution struct {
	Host string // 127.0.0.1:PORT, plain http, no login
	PID  int
}

// StartDistribution starts the registry on a folder of its own, or on a bucket where s3 is not nil. Deletes
// are allowed; nothing is cached but blob descriptors in memory, as its sample configuration has it.
func StartDistribution(tb TB, s3 *S3, bucket string) *Distribution {
	tb.Helper()
	d := &Distribution{Host: fmt.Sprintf("127.0.0.1:%d", FreePort(tb))}
	dir := tb.TempDir()
	storage := fmt.Sprintf("filesystem: {rootdirectory: %q}", filepath.Join(dir, "data"))
	if s3 != nil {
		storage = fmt.Sprintf("s3: {regionendpoint: %q, forcepathstyle: true, secure: false, region: us-east-1, bucket: %q, accesskey: %q, secretkey: %q}",
			s3.Endpoint, bucket, s3.AccessKey, s3.SecretKey)
	}
	config := fmt.Sprintf(`version: 0.1
log: {level: error, accesslog: {disabled: true}}
storage:
  %s
  delete: {enabled: true}
  cache: {blobdescriptor: inmemory}
http: {addr: %q, secret: secret-of-the-tests}
`, storage, d.Host)
	file := filepath.Join(dir, "config.yml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		tb.Fatalf("components: %v", err)
	}
	cmd := exec.Command(Path(tb, "registry"), "serve", file)
	cmd.Env = []string{"OTEL_TRACES_EXPORTER=none"}
	p := start(tb, "distribution", cmd)
	p.ready(tb, func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+d.Host+"/v2/", nil)
		if err != nil {
			return err
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		return res.Body.Close()
	})
	d.PID = cmd.Process.Pid
	return d
}
