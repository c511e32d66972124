package atcr

import (
	"crypto/sha256"
	"encoding/base32"
	"encoding/hex"
	"strings"
)

// SelfRkey is the key of records of which there is one: captain, profile.
const SelfRkey = "self"

// ManifestRkey is the key of a manifest record: the hex of a sha256 digest ("sha256:…"), sha512-<hex> of
// a sha512 one.
func ManifestRkey(digest string) string {
	if hex, ok := strings.CutPrefix(digest, "sha256:"); ok {
		return hex
	}
	return strings.Replace(digest, ":", "-", 1)
}

// ManifestRkeyIn is the key where ManifestRkey's belongs to another repository of the same person.
func ManifestRkeyIn(digest, repository string) string {
	return ManifestRkey(digest) + ":" + flat(repository)
}

// TagRkey is the key of a tag record.
func TagRkey(repository, tag string) string { return flat(repository) + ":" + tag }

// OldTagRkey is the key under which others are believed to have written tag records.
func OldTagRkey(repository, tag string) string { return flat(repository) + "_" + tag }

// RepoPageRkey is the key of a repository's page.
func RepoPageRkey(repository string) string { return flat(repository) }

// CrewRkey is the key of a member's crew record.
func CrewRkey(member string) string { return hashed(member) }

// StatsRkey is the key of a repository's statistics at a hold.
func StatsRkey(ownerDID, repository string) string { return hashed(ownerDID + "/" + repository) }

// LayerRkey is the key of the record of a blob that a manifest brought.
func LayerRkey(manifestURI, digest string) string { return hashed(manifestURI + "\x00" + digest) }

// flat is a repository name without slashes; "~" occurs in none.
func flat(repository string) string { return strings.ReplaceAll(repository, "/", "~") }

// hashed is base32 (lower case, no padding) of the first 16 bytes of the sha256 of s.
func hashed(s string) string {
	sum := sha256.Sum256([]byte(s))
	return strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(sum[:16]))
}

// ContentCID is the CID of bytes with a sha256 digest ("sha256:…"): version 1, raw. It is "" for others.
//
// Source: https://atproto.com/specs/blob
func ContentCID(digest string) string {
	sum, err := hex.DecodeString(strings.TrimPrefix(digest, "sha256:"))
	if err != nil || len(sum) != sha256.Size || !strings.HasPrefix(digest, "sha256:") {
		return ""
	}
	raw := append([]byte{0x01, 0x55, 0x12, 0x20}, sum...)
	return "b" + strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(raw))
}
