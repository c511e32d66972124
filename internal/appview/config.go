package appview

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"strings"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/internal/daemon"
	"atcr.io/internal/httpx"
	"atcr.io/internal/sqldb/postgres"
)

// Config is every setting of an AppView. The tags are the manual: docs/config.md, .env.appview.example and
// `atcr-appview --help` are made from them.
type Config struct {
	HTTPAddr       string `env:"ATCR_HTTP_ADDR" default:":5000" doc:"Address to listen on, host:port."`
	BaseURL        string `env:"ATCR_BASE_URL" example:"https://atcr.example.com" doc:"The URL under which everybody reaches this AppView. Default: http on the loopback address, with the port of ATCR_HTTP_ADDR. No hold or bucket may be on this host name or below it: clients forward credentials to subdomains."`
	ServiceName    string `env:"ATCR_SERVICE_NAME" doc:"Name of this registry in its tokens. Default: the host of ATCR_BASE_URL."`
	DefaultHoldDID string `env:"ATCR_DEFAULT_HOLD_DID" required:"true" example:"did:web:hold.example.com" doc:"The hold that people push to who have not chosen one: its DID, or its URL."`

	DatabaseDir        string        `env:"ATCR_DATABASE_DIR" default:"/var/lib/atcr-appview" doc:"Folder for the AppView's database, db.sqlite3: people's sessions, encrypted."`
	DatabaseURL        string        `env:"ATCR_DATABASE_URL" secret:"true" example:"postgres://atcr:password@db.example.com:5432/atcr" doc:"A PostgreSQL database (13 or newer, encoding UTF8) in place of db.sqlite3, for an AppView that outgrows one machine: several processes behind one address share it. All of them need the same ATCR_BASE_URL and the same secret: copy the file that ATCR_SECRET_KEY_FILE names to each machine. A process opens up to 16 connections."`
	SecretKeyFile      string        `env:"ATCR_SECRET_KEY_FILE" doc:"File with the secret that encrypts sessions and signs tokens. Processes that share a database (ATCR_DATABASE_URL) must have the same one: a process with another does not start. Default: {ATCR_DATABASE_DIR}/secret.key, made at the first start."`
	OAuthKeyFile       string        `env:"ATCR_OAUTH_KEY_FILE" doc:"File with the keys by which this AppView shows people's servers who it is. Processes that share a database must have the same: copy it to each machine, as the file of ATCR_SECRET_KEY_FILE. A lost key ends the sessions that it opened; atcr-appview oauth-key rotate ends none. Not used where ATCR_BASE_URL is http on loopback. Default: {ATCR_DATABASE_DIR}/oauth.pem, made at the first start."`
	OAuthPermissionSet string        `env:"ATCR_OAUTH_PERMISSION_SET" example:"io.atcr.authFull" doc:"A published permission set that is asked for first when people sign in: its NSID. Servers that cannot resolve it are asked for single permissions. Empty: single permissions at once."`
	TokenExpiration    time.Duration `env:"ATCR_TOKEN_EXPIRATION" default:"300s" doc:"How long a registry token is good, from 60s to 1h."`

	PLCURL            string   `env:"ATCR_PLC_URL" default:"https://plc.directory" doc:"Directory that resolves did:plc."`
	HandleResolverURL string   `env:"ATCR_HANDLE_RESOLVER_URL" doc:"A server that is asked first what DID a handle has (com.atproto.identity.resolveHandle). Empty: DNS and the handle's own host."`
	AllowMainPassword bool     `env:"ATCR_ALLOW_MAIN_PASSWORD" default:"false" doc:"Whether people may sign in with their account's main password instead of an app password."`
	DirectUploads     string   `env:"ATCR_DIRECT_UPLOADS" default:"auto" doc:"Whether clients send blobs straight to the hold: auto (clients known to drop credentials on the way: containerd), always (but clients known to take credentials along, or to refuse another host: podman, buildah, skopeo, CRI-O, oras, helm), or never. With always a client that nobody knows of may take its registry token to the hold, which can act with it in the repositories that it names, until it ends (ATCR_TOKEN_EXPIRATION): choose that only where you trust every hold that people here push to."`
	SparseIndexes     bool     `env:"ATCR_SPARSE_INDEXES" default:"true" doc:"Whether an index may name manifests that are not in its repository."`
	RateLimit         int      `env:"ATCR_RATE_LIMIT" default:"30000" doc:"Requests a minute of one person, or of one address without a login. Names that nobody has count a hundredfold, requests past the caches twentyfold. Private and loopback addresses are not limited: they are your own network, or a proxy that ATCR_TRUSTED_PROXIES does not name. 0: no limit."`
	TrustedProxies    []string `env:"ATCR_TRUSTED_PROXIES" example:"10.0.0.0/8" doc:"Addresses or networks of proxies whose X-Forwarded-For is believed, separated by commas."`

	RelayURLs           []string `env:"ATCR_RELAY_URLS" example:"https://relay1.us-east.bsky.network" doc:"Relays, or single PDSes, whose firehose (com.atproto.sync.subscribeRepos) is read, separated by commas: all of them. Commits are verified. Empty: none."`
	JetstreamURLs       []string `env:"ATCR_JETSTREAM_URLS" example:"https://jetstream1.us-east.bsky.network,https://jetstream2.us-east.bsky.network" doc:"Jetstream servers, tried in order: one is read. What they say is not signed, so each record is fetched from its owner's PDS with its proof. Empty: none."`
	JetstreamDictionary string   `env:"ATCR_JETSTREAM_DICTIONARY_FILE" doc:"File with the zstd dictionary of the Jetstream servers: their messages are then asked for compressed. Empty: uncompressed."`
	ManifestCacheBytes  int64    `env:"ATCR_MANIFEST_CACHE_BYTES" default:"268435456" doc:"Bytes of manifests that are kept in the database, so that images that were seen before can be pulled while their owner's PDS is down. 0: none."`

	HelperDownloads string `env:"ATCR_HELPER_DOWNLOADS" example:"/usr/share/atcr/helper" doc:"Where releases of docker-credential-atcr lie, with their SHA256SUMS: a folder that this AppView hands out at /downloads/, or the https URL of one. /install.sh and /install.ps1 fetch from it. Empty: none are offered."`

	DebugAddr string        `env:"ATCR_DEBUG_ADDR" default:"127.0.0.1:5001" doc:"Private address for /metrics and /debug/pprof/. Empty: none."`
	LogLevel  string        `env:"ATCR_LOG_LEVEL" default:"info" doc:"debug, info, warn or error. debug has a line for every request."`
	Grace     time.Duration `env:"ATCR_SHUTDOWN_GRACE" default:"30s" doc:"How long requests in flight may go on after the first SIGTERM or Ctrl-C. A second one ends at once."`
	TestMode  bool          `env:"TEST_MODE" default:"false" doc:"For development alone: allows http and private addresses for DIDs, PDSes, holds and storage. Nothing else is relaxed."`

	proxies     []netip.Prefix
	patience    time.Duration // 0: callTimeout; tests have less
	blocksFresh time.Duration // 0: blocksFresh; tests have less
	outboxLooks time.Duration // how often it looks for what is due; 0: as the outbox does; tests have less
}

// Prefix is what the names of settings that belong to the AppView alone begin with.
const Prefix = "ATCR_"

// Values of ATCR_DIRECT_UPLOADS.
const (
	directAuto   = "auto"
	directAlways = "always"
	directNever  = "never"
)

// Validate finds all that is wrong before anything is opened, and fills what follows from other settings.
func (c *Config) Validate() error {
	var problems []error
	add := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }

	problems = append(problems, daemon.CheckAddress("ATCR_HTTP_ADDR", c.HTTPAddr, false), daemon.CheckAddress("ATCR_DEBUG_ADDR", c.DebugAddr, true))
	if c.BaseURL == "" {
		c.BaseURL = loopbackURL(c.HTTPAddr)
	}
	if u, err := daemon.PublicURL("ATCR_BASE_URL", c.BaseURL, c.TestMode); err != nil {
		problems = append(problems, err)
	} else {
		c.BaseURL = u.String()
		if c.ServiceName == "" {
			c.ServiceName = u.Host
		}
	}
	if strings.ContainsAny(c.ServiceName, "\"\\\r\n") {
		add("ATCR_SERVICE_NAME: %q has a character that it cannot have", c.ServiceName)
	}
	if c.DefaultHoldDID != "" {
		if did, err := holdDID(c.DefaultHoldDID); err != nil {
			add("ATCR_DEFAULT_HOLD_DID: %w", err)
		} else {
			c.DefaultHoldDID = did.String()
		}
	}
	problems = append(problems, c.validateRest()...)
	return errors.Join(problems...)
}

func (c *Config) validateRest() (problems []error) {
	add := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }
	if err := daemon.CheckDatabaseDir(c.DatabaseDir); err != nil {
		add("ATCR_DATABASE_DIR: %w", err)
	} else {
		if c.SecretKeyFile == "" {
			c.SecretKeyFile = filepath.Join(c.DatabaseDir, "secret.key")
		}
		if c.OAuthKeyFile == "" {
			c.OAuthKeyFile = filepath.Join(c.DatabaseDir, "oauth.pem")
		}
	}
	if c.OAuthPermissionSet != "" {
		if _, err := syntax.ParseNSID(c.OAuthPermissionSet); err != nil {
			add("ATCR_OAUTH_PERMISSION_SET: %.100q is no NSID", c.OAuthPermissionSet)
		}
	}
	if c.DatabaseURL != "" {
		if err := postgres.Check(c.DatabaseURL); err != nil {
			add("ATCR_DATABASE_URL: %w", err)
		}
	}
	if c.TokenExpiration < time.Minute || c.TokenExpiration > time.Hour {
		add("ATCR_TOKEN_EXPIRATION: %s is not between 60s and 1h", c.TokenExpiration)
	}
	if c.RateLimit < 0 {
		add("ATCR_RATE_LIMIT: must not be negative; 0 means no limit")
	}
	if _, err := daemon.BaseURL(c.PLCURL); err != nil {
		add("ATCR_PLC_URL: %w", err)
	}
	if c.HandleResolverURL != "" {
		if _, err := daemon.BaseURL(c.HandleResolverURL); err != nil {
			add("ATCR_HANDLE_RESOLVER_URL: %w", err)
		}
	}
	for setting, list := range map[string][]string{"ATCR_RELAY_URLS": c.RelayURLs, "ATCR_JETSTREAM_URLS": c.JetstreamURLs} {
		for i, text := range list {
			u, err := streamURL(text)
			if err != nil {
				add("%s: %w", setting, err)
				continue
			}
			list[i] = u
		}
	}
	if c.ManifestCacheBytes < 0 {
		add("ATCR_MANIFEST_CACHE_BYTES: %d is below zero", c.ManifestCacheBytes)
	}
	if err := checkDownloads(c.HelperDownloads); err != nil {
		problems = append(problems, err)
	}
	problems = append(problems, daemon.CheckOneOf("ATCR_DIRECT_UPLOADS", c.DirectUploads, directAuto, directAlways, directNever),
		daemon.CheckLogLevel("ATCR_LOG_LEVEL", c.LogLevel))
	var err error
	if c.proxies, err = httpx.ParseProxies(c.TrustedProxies); err != nil {
		add("ATCR_TRUSTED_PROXIES: %w", err)
	}
	return problems
}

// streamURL takes the address of a firehose as people write it, wss and Jetstream's path included.
func streamURL(s string) (string, error) {
	s = strings.TrimSuffix(strings.TrimSuffix(s, "/"), "/subscribe")
	if rest, ok := strings.CutPrefix(s, "ws"); ok {
		s = "http" + rest
	}
	u, err := daemon.BaseURL(s)
	if err != nil {
		return "", err
	}
	return u.String(), nil
}

// checkDownloads takes a folder, an https URL, or nothing.
func checkDownloads(text string) error {
	if !strings.Contains(text, "://") {
		if text != "" && !filepath.IsAbs(text) {
			return fmt.Errorf("ATCR_HELPER_DOWNLOADS: %.100q is no absolute path", text)
		}
		return nil
	}
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return fmt.Errorf("ATCR_HELPER_DOWNLOADS: %.100q is neither a folder nor an https URL", text)
	}
	return nil
}

// loopbackURL is where a server that listens on address is reached from the same machine.
func loopbackURL(address string) string {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return ""
	}
	if ip, err := netip.ParseAddr(host); host == "" || err == nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return "http://" + net.JoinHostPort(host, port)
}

// holdDID reads a hold's DID, or its URL, which older records and settings have.
func holdDID(s string) (syntax.DID, error) {
	if strings.HasPrefix(s, "did:") {
		did, err := syntax.ParseDID(s)
		if err != nil {
			return "", fmt.Errorf("%.100q is not a DID", s)
		}
		return did, nil
	}
	u, err := daemon.BaseURL(s)
	if err != nil {
		return "", fmt.Errorf("%.100q is neither a DID nor a URL", s)
	}
	did, err := syntax.ParseDID("did:web:" + strings.ReplaceAll(u.Host, ":", "%3A"))
	if err != nil {
		return "", fmt.Errorf("%.100q has no host that a did:web could have", s)
	}
	return did, nil
}
