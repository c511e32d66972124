package daemon

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"atcr.io/internal/httpx"
)

// BaseURL takes http(s)://host[:port] and nothing behind it.
func BaseURL(s string) (*url.URL, error) {
	u, err := url.Parse(s)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
		return nil, fmt.Errorf("%q is not a URL like https://host", s)
	}
	if u.User != nil || u.RawQuery != "" || u.Fragment != "" || (u.Path != "" && u.Path != "/") {
		return nil, fmt.Errorf("%q must be scheme and host alone, without user, path or query", u.Redacted())
	}
	u.Host, u.Path = strings.ToLower(u.Host), ""
	return u, nil
}

// PublicURL is BaseURL for the address of the daemon itself: https, unless it is on loopback or in test
// mode; and test mode is for addresses that nobody else reaches.
func PublicURL(setting, s string, testMode bool) (*url.URL, error) {
	u, err := BaseURL(s)
	switch {
	case err != nil:
		return nil, fmt.Errorf("%s: %w", setting, err)
	case testMode && (u.Scheme == "https" || !PrivateHost(u.Hostname())):
		return nil, fmt.Errorf("TEST_MODE must not be set where others reach it: %s %s is https or public. Unset TEST_MODE", setting, u)
	case u.Scheme == "http" && !testMode && !httpx.IsLoopbackHost(u.Hostname()):
		return nil, fmt.Errorf("%s: http is for loopback addresses (or TEST_MODE=true); use https", setting)
	}
	return u, nil
}

// PrivateHost tells whether a host name means an address that the public internet cannot reach, by its
// form alone.
func PrivateHost(host string) bool {
	if ip, err := netip.ParseAddr(host); err == nil {
		return !httpx.PublicAddress(ip)
	}
	if httpx.IsLoopbackHost(host) || !strings.Contains(host, ".") {
		return true
	}
	return slices.ContainsFunc([]string{".local", ".internal", ".lan", ".test", ".home.arpa", ".svc", ".cluster.local", ".localdomain"},
		func(suffix string) bool { return strings.HasSuffix(host, suffix) })
}

// CheckDatabaseDir refuses what is no folder and could not become one.
func CheckDatabaseDir(dir string) error {
	if dir == "" {
		return errors.New("is empty; name a folder")
	}
	if info, err := os.Stat(dir); err == nil && !info.IsDir() {
		return fmt.Errorf("%q is a file; name the folder that holds db.sqlite3", dir)
	}
	if slices.Contains([]string{".sqlite3", ".sqlite", ".db"}, filepath.Ext(dir)) {
		return fmt.Errorf("%q looks like a file; name the folder that holds db.sqlite3", dir)
	}
	return nil
}

// CheckAddress refuses what is not host:port; empty is "none" where that is allowed.
func CheckAddress(setting, address string, mayBeEmpty bool) error {
	if _, _, err := net.SplitHostPort(address); err != nil && (address != "" || !mayBeEmpty) {
		return fmt.Errorf("%s: %q is not host:port", setting, address)
	}
	return nil
}

// CheckOneOf refuses what is not among the values.
func CheckOneOf(setting, value string, values ...string) error {
	if slices.Contains(values, value) {
		return nil
	}
	last := len(values) - 1
	return fmt.Errorf("%s: %q is not known; use %s or %s", setting, value, strings.Join(values[:last], ", "), values[last])
}

// CheckLogLevel refuses what is no level.
func CheckLogLevel(setting, level string) error {
	return CheckOneOf(setting, level, "debug", "info", "warn", "error")
}
