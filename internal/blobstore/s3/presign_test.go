package s3

import (
	"net/http"
	"net/url"
	"testing"
	"time"
)

var presignConfigs = map[string]Config{
	"AWS":            {Region: "eu-central-1", Bucket: "blobs", AccessKeyID: "AKIAIOSFODNN7EXAMPLE", SecretAccessKey: "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"},
	"a dotted name":  {Region: "eu-central-1", Bucket: "blobs.example", AccessKeyID: "A", SecretAccessKey: "S"},
	"a server":       {Endpoint: "http://127.0.0.1:9000", Region: "us-east-1", Bucket: "blobs", AccessKeyID: "key+with/all=", SecretAccessKey: "secret"},
	"a default port": {Endpoint: "https://storage.example:443", Region: "us-east-1", Bucket: "blobs", AccessKeyID: "k", SecretAccessKey: "s"},
	"two endpoints":  {Endpoint: "http://10.0.0.1:9000", PublicEndpoint: "https://blobs.example", Region: "auto", Bucket: "blobs", AccessKeyID: "k", SecretAccessKey: "s"},
}

// Would catch a URL that is not the one the client library signs, which storage of every make takes, on any day.
func TestPresignedAsByLibrary(t *testing.T) {
	t.Parallel()
	for name, c := range presignConfigs {
		s, err := New(c)
		if err != nil {
			t.Fatal(err)
		}
		for _, key := range []string{"docker/registry/v2/blobs/sha256/ab/abcdef/data", "a b/ü+~&?=/c%2f"} {
			for _, method := range []string{http.MethodGet, http.MethodHead} {
				mine := false
				var got, want string
				for range 5 { // the library has a clock of its own
					now := time.Now()
					got = s.gets.sign(method, key, 15*time.Minute, now)
					u, err := s.presign.Presign(t.Context(), method, c.Bucket, key, 15*time.Minute, url.Values{"response-content-type": {"application/octet-stream"}})
					if err != nil {
						t.Fatal(err)
					}
					if want = u.String(); got == want {
						mine = true
						break
					}
				}
				if !mine {
					t.Errorf("%s, %s %s:\n%s, the library:\n%s", name, method, key, got, want)
				}
			}
		}
		before := s.gets.sign(http.MethodGet, "k", time.Minute, time.Date(2026, 12, 31, 23, 59, 59, 0, time.UTC))
		for _, day := range []int{1, 2, 1} {
			after := s.gets.sign(http.MethodGet, "k", time.Minute, time.Date(2027, 1, day, 1, 0, 0, 0, time.FixedZone("east", 2*3600)))
			if fresh, err := New(c); err != nil || fresh.gets.sign(http.MethodGet, "k", time.Minute, time.Date(2027, 1, day-1, 23, 0, 0, 0, time.UTC)) != after || before == after {
				t.Errorf("%s: day %d is signed with another day's key, %v", name, day, err)
			}
		}
	}
}

// BenchmarkPresign is what a redirect to the storage costs, here and by the client library.
func BenchmarkPresign(b *testing.B) {
	c := presignConfigs["AWS"]
	s, err := New(c)
	if err != nil {
		b.Fatal(err)
	}
	const key = "docker/registry/v2/blobs/sha256/ab/abcdefabcdefabcdefabcdefabcdefabcdefabcdefabcdefabcdefabcdefabcd/data"
	b.Run("here", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			s.gets.sign(http.MethodGet, key, time.Minute, time.Now())
		}
	})
	b.Run("library", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := s.presign.Presign(b.Context(), http.MethodGet, c.Bucket, key, time.Minute, url.Values{"response-content-type": {"application/octet-stream"}}); err != nil {
				b.Fatal(err)
			}
		}
	})
}
