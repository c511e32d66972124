package s3

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/s3utils"
)

// presigner signs URLs of GET and HEAD. What is the same in all of them is made once, and the key of a day once a day:
// the client library does all of it again for each, at five times the cost, and a pull asks for one a layer.
//
// Source: https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-query-string-auth.html
type presigner struct {
	origin     string // https://host
	host, path string // path is escaped, up to the object's key
	credential string // the access key, escaped, and what separates it from the day
	secret     string
	region     string
	day        atomic.Pointer[signingDay]
}

// signingDay is what signs on one day of UTC.
type signingDay struct {
	day   string // 20060102
	scope string
	key   []byte
}

// newPresigner learns from a client how a bucket is addressed. Nothing is sent.
func newPresigner(ctx context.Context, client *minio.Client, c Config) (*presigner, error) {
	const key = "k"
	u, err := client.Presign(ctx, http.MethodGet, c.Bucket, key, time.Minute, nil)
	if err != nil {
		return nil, err
	}
	return &presigner{
		origin: u.Scheme + "://" + u.Host, host: u.Host, path: strings.TrimSuffix(u.EscapedPath(), key),
		credential: url.QueryEscape(c.AccessKeyID + "/"), secret: c.SecretAccessKey, region: c.Region,
	}, nil
}

// sign is a URL that answers method for ttl from now on, with a header that says what the bytes are.
func (p *presigner) sign(method, key string, ttl time.Duration, now time.Time) string {
	now = now.UTC()
	stamp := now.Format("20060102T150405Z")
	d := p.today(stamp[:len("20060102")])
	path := p.path + s3utils.EncodePath(key)
	query := "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=" + p.credential + strings.ReplaceAll(d.scope, "/", "%2F") + "&X-Amz-Date=" + stamp +
		"&X-Amz-Expires=" + strconv.FormatInt(int64(ttl/time.Second), 10) + "&X-Amz-SignedHeaders=host&response-content-type=application%2Foctet-stream"
	request := sha256.Sum256([]byte(method + "\n" + path + "\n" + query + "\nhost:" + p.host + "\n\nhost\nUNSIGNED-PAYLOAD"))
	signature := authenticate(d.key, "AWS4-HMAC-SHA256\n"+stamp+"\n"+d.scope+"\n"+hex.EncodeToString(request[:]))
	return p.origin + path + "?" + query + "&X-Amz-Signature=" + hex.EncodeToString(signature)
}

func (p *presigner) today(day string) *signingDay {
	if d := p.day.Load(); d != nil && d.day == day {
		return d
	}
	key := authenticate([]byte("AWS4"+p.secret), day)
	for _, part := range []string{p.region, "s3", "aws4_request"} {
		key = authenticate(key, part)
	}
	d := &signingDay{day: day, scope: day + "/" + p.region + "/s3/aws4_request", key: key}
	p.day.Store(d)
	return d
}

func authenticate(key []byte, text string) []byte {
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(text))
	return mac.Sum(nil)
}
