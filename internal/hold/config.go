package hold

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/bluesky-social/indigo/atproto/atcrypto"
	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/internal/daemon"
	"atcr.io/internal/httpx"
)

// Config is every setting of a hold. The tags are the manual: docs/config.md, .env.hold.example and
// `atcr-hold --help` are made from them.
type Config struct {
	PublicURL     string `env:"HOLD_PUBLIC_URL" required:"true" example:"https://hold.example.com" doc:"The URL under which everybody reaches this hold. Its host is the hold's did:web, which cannot be changed later; with HOLD_DID_METHOD=plc it can."`
	DIDMethod     string `env:"HOLD_DID_METHOD" default:"web" doc:"What kind of identity a new hold gets: web (it is its host name), or plc (registered at HOLD_PLC_URL; it can move to another URL). A hold keeps what it has."`
	ServerAddr    string `env:"HOLD_SERVER_ADDR" default:":8080" doc:"Address to listen on, host:port."`
	Public        bool   `env:"HOLD_PUBLIC" default:"false" doc:"Whether anybody may pull, without an account."`
	AllowAllCrew  bool   `env:"HOLD_ALLOW_ALL_CREW" default:"false" doc:"Whether everybody with an atproto account may push (and pull)."`
	Owner         string `env:"HOLD_OWNER" example:"did:plc:…" doc:"The DID of the hold's owner. Needed at the first start, which writes it into the captain record; it cannot be changed here afterwards."`
	BlueskyPosts  bool   `env:"HOLD_BLUESKY_POSTS_ENABLED" default:"false" doc:"Whether the hold may post to Bluesky about pushes. Recorded in the captain record."`
	AppViewURL    string `env:"HOLD_APPVIEW_URL" default:"https://atcr.io" doc:"The AppView whose pages the hold's posts link to."`
	ProfileAvatar string `env:"HOLD_PROFILE_AVATAR" doc:"Picture of the hold's Bluesky profile: a file or an https URL, png or jpeg, at most 1,000,000 bytes. Default: an image in the binary."`

	Registrations   int           `env:"HOLD_REGISTRATIONS_PER_DAY" default:"200" doc:"With HOLD_ALLOW_ALL_CREW, how many people a day may make themselves members. Members who made themselves so and push nothing for 30 days are removed again."`
	Quotas          string        `env:"HOLD_QUOTAS" doc:"Quotas as JSON, or the path of a file with it: {\"tiers\":{\"free\":\"5GB\",\"pro\":\"100GB\"},\"default\":\"pro\",\"registered\":\"free\"}. default is the tier of members, registered that of people who made themselves members; a crew record's tier comes first; the owner has no limit. Empty: no quotas."`
	OpenQuota       string        `env:"HOLD_OPEN_QUOTA" default:"50GB" doc:"How much all people together may keep here who were not made members by the owner."`
	TrustedAppViews []string      `env:"HOLD_TRUSTED_APPVIEWS" doc:"DIDs of AppViews, comma-separated, whose counts of pulls are believed."`
	Relays          []string      `env:"HOLD_RELAYS" default:"https://bsky.network" doc:"Relays that are asked to read this hold's repo and pass it on to the network, comma-separated. Empty: none. A hold that is not public on the internet asks none."`
	RecordsPerHour  int           `env:"HOLD_RECORDS_PER_HOUR" default:"5000" doc:"How many records one person may have written here in an hour, by pushes or as a crew admin. The owner has no limit. 0: nobody has one."`
	CollectEvery    time.Duration `env:"HOLD_COLLECT_EVERY" default:"24h" doc:"How often blobs are deleted that no manifest has named for 48 hours. 0: only by atcr-hold gc."`

	StorageDriver    string `env:"STORAGE_DRIVER" default:"s3" doc:"Where blobs are stored: s3 or filesystem."`
	AccessKeyID      string `env:"AWS_ACCESS_KEY_ID" doc:"S3 access key."`
	SecretAccessKey  string `env:"AWS_SECRET_ACCESS_KEY" secret:"true" doc:"S3 secret key."`
	Region           string `env:"AWS_REGION" default:"us-east-1" doc:"S3 region."`
	S3Bucket         string `env:"S3_BUCKET" doc:"S3 bucket. It must exist. Required with STORAGE_DRIVER=s3."`
	S3Endpoint       string `env:"S3_ENDPOINT" doc:"URL of the S3 service, path-style addressing. Empty: AWS."`
	S3PublicEndpoint string `env:"S3_PUBLIC_ENDPOINT" doc:"The S3 service's URL as clients see it in presigned URLs. Default: S3_ENDPOINT. Where clients cannot reach it, the hold sends the bytes itself."`
	StorageRootDir   string `env:"STORAGE_ROOT_DIR" default:"/var/lib/atcr/hold" doc:"Folder for blobs with STORAGE_DRIVER=filesystem."`
	DisablePresigned bool   `env:"DISABLE_PRESIGNED_URLS" default:"false" doc:"Send all bytes through the hold, even where the storage can presign URLs."`

	DatabaseDir     string `env:"HOLD_DATABASE_DIR" default:"/var/lib/atcr-hold" doc:"Folder for the hold's database, db.sqlite3. On a local disk, and in your backups."`
	KeyPath         string `env:"HOLD_KEY_PATH" doc:"File of the key that signs the hold's repo (secp256k1; raw 32 bytes, hex or multibase). Default: {HOLD_DATABASE_DIR}/signing.key, made at the first start."`
	PLCURL          string `env:"HOLD_PLC_URL" default:"https://plc.directory" doc:"Directory that resolves did:plc, and has the hold's own with HOLD_DID_METHOD=plc."`
	RotationKeyPath string `env:"HOLD_ROTATION_KEY_PATH" doc:"With HOLD_DID_METHOD=plc, file of the key that may change the hold's identity: its signing key and its URL. Default: {HOLD_DATABASE_DIR}/rotation.key, made at the first start. Needed only for such a change; keep a copy elsewhere (atcr-hold key export-rotation)."`
	RecoveryKey     string `env:"HOLD_RECOVERY_KEY" example:"did:key:…" doc:"With HOLD_DID_METHOD=plc, the public part (did:key) of a key that you keep offline. It stands before the rotation key: for 72 hours it can undo what that one did."`
	HandleResolver  string `env:"HOLD_HANDLE_RESOLVER_URL" doc:"A server with com.atproto.identity.resolveHandle that is asked for handles first. For development networks; empty: DNS and https, as on the network."`
	RequireLxm      bool   `env:"HOLD_REQUIRE_LXM" default:"false" doc:"Whether service tokens for uploads must name their method."`

	RequestsPerAddress    int      `env:"HOLD_REQUESTS_PER_ADDRESS" default:"3000" doc:"How many calls of public methods one address may make in 5 minutes; blobs and the firehose are not counted. An address that is not public is a proxy's or your own, and has no limit. 0: none has one."`
	Subscribers           int      `env:"HOLD_FIREHOSE_SUBSCRIBERS" default:"1000" doc:"How many may follow the firehose at once."`
	SubscribersPerAddress int      `env:"HOLD_FIREHOSE_SUBSCRIBERS_PER_ADDRESS" default:"20" doc:"How many of them may come from one public address."`
	TrustedProxies        []string `env:"HOLD_TRUSTED_PROXIES" example:"10.0.0.0/8" doc:"Addresses or networks of proxies whose X-Forwarded-For is believed, separated by commas. Without it, limits by address are for clients that reach the hold directly."`

	DebugAddr string        `env:"HOLD_DEBUG_ADDR" default:"127.0.0.1:8081" doc:"Private address for /metrics and /debug/pprof/. Empty: none."`
	LogLevel  string        `env:"HOLD_LOG_LEVEL" default:"info" doc:"debug, info, warn or error. debug has a line for every request."`
	Grace     time.Duration `env:"HOLD_SHUTDOWN_GRACE" default:"30s" doc:"How long transfers in flight may go on after the first SIGTERM or Ctrl-C. A second one ends at once."`
	TestMode  bool          `env:"TEST_MODE" default:"false" doc:"For development alone: allows http and private addresses for DIDs, PDSes, holds and storage. Nothing else is relaxed."`

	quotas    Quotas // from Quotas, by Validate
	openQuota Bytes
	proxies   []netip.Prefix   // from TrustedProxies
	now       func() time.Time // nil: time.Now; tests let time pass

	repair      repair        // what a command does to the repo before it is opened
	plcPatience time.Duration // 0: directoryPatience
	joinWait    time.Duration // 0: upload's
}

// Prefix is what the names of settings that belong to the hold alone begin with.
const Prefix = "HOLD_"

// Validate finds all that is wrong before anything is opened, and fills what follows from other settings.
func (c *Config) Validate() error {
	var problems []error
	add := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }

	if c.PublicURL != "" {
		if u, err := daemon.PublicURL("HOLD_PUBLIC_URL", c.PublicURL, c.TestMode); err != nil {
			problems = append(problems, err)
		} else {
			c.PublicURL = u.String()
			if _, err := syntax.ParseDID(c.WebDID().String()); err != nil {
				add("HOLD_PUBLIC_URL: %s has no host that a did:web can have: use a host name", c.PublicURL)
			}
		}
	}
	if c.Owner != "" {
		if _, err := syntax.ParseDID(c.Owner); err != nil {
			add("HOLD_OWNER: %q is not a DID; it looks like did:plc:abc… (your handle's DID is shown by any atproto client)", c.Owner)
		}
	}
	switch c.StorageDriver {
	case "s3":
		problems = append(problems, c.validateS3()...)
	case "filesystem":
		if !filepath.IsAbs(c.StorageRootDir) {
			add("STORAGE_ROOT_DIR: %q must be an absolute path", c.StorageRootDir)
		}
	default:
		add("STORAGE_DRIVER: %q is not known; use s3 or filesystem", c.StorageDriver)
	}
	if err := daemon.CheckDatabaseDir(c.DatabaseDir); err != nil {
		add("HOLD_DATABASE_DIR: %w", err)
	} else {
		if c.KeyPath == "" {
			c.KeyPath = filepath.Join(c.DatabaseDir, "signing.key")
		}
		if c.RotationKeyPath == "" {
			c.RotationKeyPath = filepath.Join(c.DatabaseDir, "rotation.key")
		}
	}
	if c.DIDMethod == "" {
		c.DIDMethod = methodWeb
	}
	if c.DIDMethod != methodWeb && c.DIDMethod != methodPLC {
		add("HOLD_DID_METHOD: %q is not known; use web or plc", c.DIDMethod)
	}
	if c.RecoveryKey != "" {
		if _, err := atcrypto.ParsePublicDIDKey(c.RecoveryKey); err != nil {
			add("HOLD_RECOVERY_KEY: %q is not a public key; it looks like did:key:z…", c.RecoveryKey)
		}
	}
	var err error
	if c.quotas, err = parseQuotas(c.Quotas); err != nil {
		add("HOLD_QUOTAS: %w", err)
		err = nil
	}
	if c.openQuota = defaultOpenQuota; c.OpenQuota != "" {
		c.openQuota, err = ParseBytes(c.OpenQuota)
	}
	if err != nil {
		add("HOLD_OPEN_QUOTA: %w", err)
	}
	if c.Registrations < 0 {
		add("HOLD_REGISTRATIONS_PER_DAY: must not be negative; 0 means that nobody can make themselves a member")
	}
	if c.CollectEvery != 0 && c.CollectEvery < time.Minute {
		add("HOLD_COLLECT_EVERY: at least a minute, or 0 for never")
	}
	for _, did := range c.TrustedAppViews {
		if _, err := syntax.ParseDID(did); err != nil {
			add("HOLD_TRUSTED_APPVIEWS: %q is not a DID; an AppView's looks like did:web:atcr.example.com", did)
		}
	}
	if _, err := daemon.BaseURL(c.PLCURL); err != nil {
		add("HOLD_PLC_URL: %w", err)
	}
	problems = append(problems, c.validateLimits()...)
	return errors.Join(append(problems,
		daemon.CheckAddress("HOLD_SERVER_ADDR", c.ServerAddr, false),
		daemon.CheckAddress("HOLD_DEBUG_ADDR", c.DebugAddr, true),
		daemon.CheckLogLevel("HOLD_LOG_LEVEL", c.LogLevel))...)
}

func (c *Config) validateS3() (problems []error) {
	for _, s := range [][2]string{
		{"S3_BUCKET", c.S3Bucket}, {"AWS_ACCESS_KEY_ID", c.AccessKeyID}, {"AWS_SECRET_ACCESS_KEY", c.SecretAccessKey}, {"AWS_REGION", c.Region},
	} {
		if s[1] == "" {
			problems = append(problems, fmt.Errorf("%s: is required with STORAGE_DRIVER=s3 (for a folder on this machine: STORAGE_DRIVER=filesystem)", s[0]))
		}
	}
	for _, s := range [][2]string{{"S3_ENDPOINT", c.S3Endpoint}, {"S3_PUBLIC_ENDPOINT", c.S3PublicEndpoint}} {
		if s[1] == "" {
			continue
		}
		if _, err := daemon.BaseURL(s[1]); err != nil {
			problems = append(problems, fmt.Errorf("%s: %w", s[0], err))
		}
	}
	if c.S3PublicEndpoint == "" {
		c.S3PublicEndpoint = c.S3Endpoint
	}
	return problems
}

// WebDID is the did:web of a hold with this public URL.
func (c *Config) WebDID() syntax.DID {
	u, err := url.Parse(c.PublicURL)
	if err != nil {
		panic("hold: DID of a Config that was not validated")
	}
	return syntax.DID("did:web:" + strings.ReplaceAll(u.Host, ":", "%3A"))
}

// presigning tells whether clients can be sent to the storage, and in words why, or why not.
func (c *Config) presigning(ctx context.Context) (on bool, why string) {
	if c.StorageDriver != "s3" {
		return false, "the hold sends the bytes itself: storage is a folder on this machine"
	}
	if c.DisablePresigned {
		return false, "the hold sends the bytes itself: DISABLE_PRESIGNED_URLS is set"
	}
	if c.S3PublicEndpoint == "" {
		return true, "clients fetch blobs from " + c.S3Bucket + ".s3." + c.Region + ".amazonaws.com"
	}
	storage, err := url.Parse(c.S3PublicEndpoint)
	if err != nil {
		return false, "the hold sends the bytes itself: S3_PUBLIC_ENDPOINT is no URL"
	}
	public, err := url.Parse(c.PublicURL)
	if err != nil {
		return false, "the hold sends the bytes itself: HOLD_PUBLIC_URL is no URL"
	}
	if public.Scheme == "https" && storage.Scheme == "http" {
		return false, "the hold sends the bytes itself: clients refuse to go from https to " + c.S3PublicEndpoint + "; set S3_PUBLIC_ENDPOINT to an https URL"
	}
	if !daemon.PrivateHost(public.Hostname()) && (daemon.PrivateHost(storage.Hostname()) || resolvesPrivate(ctx, storage.Hostname())) {
		return false, "the hold sends the bytes itself: " + storage.Host + " is a private address; set S3_PUBLIC_ENDPOINT to one that clients reach"
	}
	return true, "clients fetch blobs from " + storage.Host
}

// resolvesPrivate tells whether a name resolves, and to private addresses alone.
func resolvesPrivate(ctx context.Context, host string) bool {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	return err == nil && len(ips) > 0 && !slices.ContainsFunc(ips, httpx.PublicAddress)
}
