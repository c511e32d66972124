package hold

import (
	"cmp"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bluesky-social/indigo/atproto/atcrypto"
)

// filesystemConfig is a hold of defaults on a folder.
func filesystemConfig(t *testing.T) Config {
	t.Helper()
	return Config{
		PublicURL: "http://127.0.0.1:8080", ServerAddr: "127.0.0.1:0", Owner: "did:plc:your-test-did",
		StorageDriver: "filesystem", StorageRootDir: t.TempDir(), Region: "us-east-1", DatabaseDir: t.TempDir(),
		PLCURL: "https://plc.directory", AppViewURL: "https://appview.example", Subscribers: 100, SubscribersPerAddress: 10, LogLevel: "info", Grace: time.Second,
	}
}

// Would catch a setting that is wrong and found only when it is used, or alone instead of with the others.
func TestValidate(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "plain")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		change func(*Config)
		want   []string // each in the error; none: valid
	}{
		"development":           {func(*Config) {}, nil},
		"https":                 {func(c *Config) { c.PublicURL = "https://hold.example.com/" }, nil},
		"http, public":          {func(c *Config) { c.PublicURL = "http://hold.example.com" }, []string{"use https"}},
		"http, private network": {func(c *Config) { c.PublicURL = "http://10.0.0.7:8080" }, []string{"use https"}},
		"the same in test mode": {func(c *Config) { c.PublicURL, c.TestMode = "http://10.0.0.7:8080", true }, nil},
		"test mode and https":   {func(c *Config) { c.PublicURL, c.TestMode = "https://localhost", true }, []string{"TEST_MODE"}},
		"test mode, public":     {func(c *Config) { c.PublicURL, c.TestMode = "http://hold.example.com", true }, []string{"TEST_MODE"}},
		"a path":                {func(c *Config) { c.PublicURL = "https://example.com/hold" }, []string{"HOLD_PUBLIC_URL", "without"}},
		"credentials":           {func(c *Config) { c.PublicURL = "https://u:secretword@example.com" }, []string{"HOLD_PUBLIC_URL"}},
		"no host for a DID":     {func(c *Config) { c.PublicURL = "http://[::1]:8080" }, []string{"HOLD_PUBLIC_URL", "did:web"}},
		"owner is a handle":     {func(c *Config) { c.Owner = "alice.test" }, []string{"HOLD_OWNER", "DID"}},
		"driver":                {func(c *Config) { c.StorageDriver = "gcs" }, []string{"STORAGE_DRIVER", "filesystem"}},
		"s3 without anything":   {func(c *Config) { c.StorageDriver = "s3" }, []string{"S3_BUCKET", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}},
		"s3 endpoint": {func(c *Config) {
			c.StorageDriver, c.S3Bucket, c.AccessKeyID, c.SecretAccessKey, c.S3Endpoint = "s3", "b", "k", "s", "minio:9000"
		}, []string{"S3_ENDPOINT"}},
		"database is a file":    {func(c *Config) { c.DatabaseDir = file }, []string{"HOLD_DATABASE_DIR", "file"}},
		"database like a file":  {func(c *Config) { c.DatabaseDir = "/var/lib/hold/db.sqlite3" }, []string{"HOLD_DATABASE_DIR", "file"}},
		"database empty":        {func(c *Config) { c.DatabaseDir = "" }, []string{"HOLD_DATABASE_DIR", "empty"}},
		"level and addresses":   {func(c *Config) { c.LogLevel, c.ServerAddr, c.DebugAddr = "loud", "8080", "x" }, []string{"HOLD_LOG_LEVEL", "HOLD_SERVER_ADDR", "HOLD_DEBUG_ADDR"}},
		"several at once":       {func(c *Config) { c.Owner, c.LogLevel, c.StorageDriver = "x", "y", "z" }, []string{"HOLD_OWNER", "HOLD_LOG_LEVEL", "STORAGE_DRIVER"}},
		"relative storage root": {func(c *Config) { c.StorageRootDir = "blobs" }, []string{"STORAGE_ROOT_DIR", "absolute"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := filesystemConfig(t)
			test.change(&c)
			err := c.Validate()
			if (err == nil) != (test.want == nil) {
				t.Fatalf("got %v", err)
			}
			for _, want := range test.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q lacks %q", err, want)
				}
			}
			if err != nil && strings.Contains(err.Error(), "secretword") {
				t.Errorf("a password in %q", err)
			}
		})
	}
}

// Would catch clients that are sent to an address they cannot reach, or kept from one that they can.
func TestPresigning(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		hold, storage string
		disabled      bool
		want          bool
	}{
		{"https://hold.example.com", "https://1.1.1.1", false, true},
		{"https://hold.example.com", "", false, true},
		{"https://hold.example.com", "https://1.1.1.1", true, false},
		{"https://hold.example.com", "http://1.1.1.1", false, false},
		{"https://hold.example.com", "https://minio:9000", false, false},
		{"https://hold.example.com", "https://192.168.1.4", false, false},
		{"http://127.0.0.1:8080", "http://127.0.0.1:9000", false, true},
		{"http://localhost:8080", "http://localhost:9000", false, true},
	} {
		c := Config{PublicURL: test.hold, StorageDriver: "s3", S3Bucket: "bucket", Region: "us-east-1", S3PublicEndpoint: test.storage, DisablePresigned: test.disabled}
		says := "the hold sends the bytes itself: "
		if test.want {
			says = "clients fetch blobs from " + cmp.Or(strings.TrimPrefix(strings.TrimPrefix(test.storage, "https://"), "http://"), "bucket.s3.us-east-1.amazonaws.com")
		}
		if on, why := c.presigning(t.Context()); on != test.want || !strings.HasPrefix(why, says) {
			t.Errorf("%+v: %v, %q", test, on, why)
		}
	}
}

// Would catch a did:web that others cannot resolve.
func TestDID(t *testing.T) {
	t.Parallel()
	for url, want := range map[string]string{
		"https://Hold.Example.com/": "did:web:hold.example.com",
		"http://127.0.0.1:8080":     "did:web:127.0.0.1%3A8080",
	} {
		c := filesystemConfig(t)
		c.PublicURL = url
		if err := c.Validate(); err != nil || c.WebDID().String() != want {
			t.Errorf("%s: %s, %v", url, c.WebDID(), err)
		}
	}
}

// Would catch a key that is made anew for an old repo, a key others can read, and forms that are not read.
func TestSigningKey(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "new", "signing.key")
	if _, err := signingKey(path, true); !errors.Is(err, errNoKey) || !strings.Contains(err.Error(), "HOLD_KEY_PATH") {
		t.Fatalf("a key was made for an old repo: %v", err)
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Fatal("a file was made")
	}
	key, err := signingKey(path, false)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("%v %v", info, err)
	}
	again, err := signingKey(path, true)
	if err != nil || !again.Equal(key) {
		t.Fatalf("another key: %v", err)
	}
	if _, err := makeKey(path); err == nil {
		t.Error("a key file was replaced")
	}
	p256, err := atcrypto.GeneratePrivateKeyP256()
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		content []byte
		ok      bool
	}{
		"raw": {key.Bytes(), true}, "hex": {[]byte(hex.EncodeToString(key.Bytes()) + "\n"), true}, "multibase": {[]byte(key.Multibase() + "\n"), true},
		"p256": {[]byte(p256.Multibase()), false}, "empty": {nil, false}, "short": {key.Bytes()[:31], false}, "zeros": {make([]byte, 32), false}, "text": {[]byte("password"), false},
	} {
		file := filepath.Join(t.TempDir(), "key")
		if err := os.WriteFile(file, test.content, 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := loadKey(file)
		if (err == nil) != test.ok || (test.ok && !got.Equal(key)) {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && strings.Contains(err.Error(), "password") {
			t.Errorf("%s: the key's text is in %q", name, err)
		}
	}
}

// Would catch a link that opens another blob, another method, or for longer.
func TestLink(t *testing.T) {
	t.Parallel()
	l, err := newLinker([]byte("key"))
	if err != nil {
		t.Fatal(err)
	}
	other, err := newLinker([]byte("other"))
	if err != nil {
		t.Fatal(err)
	}
	now := time.Unix(1_800_000_000, 0)
	path := l.path(link{Method: "GET", Digest: "sha256:aa", Expires: now.Add(linkTTL).Unix()})
	secret := strings.Split(path, "/")[2]
	if v, err := l.parse(secret, "GET", now); err != nil || v.Digest != "sha256:aa" {
		t.Fatalf("%+v %v", v, err)
	}
	if _, err := l.parse(secret, "HEAD", now); err != nil {
		t.Errorf("HEAD by a GET link: %v", err)
	}
	head := strings.Split(l.path(link{Method: "HEAD", Digest: "sha256:aa", Expires: now.Add(linkTTL).Unix()}), "/")[2]
	for name, err := range map[string]error{
		"later":      second(l.parse(secret, "GET", now.Add(linkTTL))),
		"other key":  second(other.parse(secret, "GET", now)),
		"GET by it":  second(l.parse(head, "GET", now)),
		"changed":    second(l.parse("A"+secret[1:], "GET", now)),
		"no mac":     second(l.parse(strings.Split(secret, ".")[0], "GET", now)),
		"nothing":    second(l.parse("", "GET", now)),
		"only a dot": second(l.parse(".", "GET", now)),
	} {
		if !errors.Is(err, errBadLink) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func second(_ link, err error) error { return err }
