// Package imports owns the rules of who may import whom (ARCHITECTURE.md, "Where things are"). Its tests hold
// them over the import graph; .golangci.yml says the most important ones once more, where editors show them.
package imports

import (
	"slices"
	"strings"
)

const (
	module = "atcr.io/"
	indigo = "github.com/bluesky-social/indigo/"
	// postgres is the driver of PostgreSQL.
	postgres = "github.com/jackc/pgx"
)

// layers are the folders under internal/, lowest first. A package imports from lower layers, from its own
// folder, and, among mechanisms alone, from its own layer.
var layers = []struct {
	name, folders string
	peers         bool // may import each other
}{
	{"noun", "oci", false},
	{"mechanism", "httpx xrpc identity plc sqldb envconf daemon blobstore", true},
	{"capability", "pds crew ledger upload registry regtoken session credential outbox index ingest web credhelper", false},
	{"wiring", "hold appview devnet", false},
}

// never are imports that the layers would allow, and that are wrong all the same: folder → prefixes.
var never = map[string][]string{
	// A repo host knows nothing of container images.
	"internal/pds": {module + "internal/oci"},
	// The registry's handlers know nothing of atproto.
	"internal/registry": {module + "api/", module + "internal/identity", module + "internal/xrpc", indigo},
	// The nouns are of the OCI world alone.
	"internal/oci": {indigo},
}

// retired are packages of indigo that its newer ones replace, with traps of their own.
var retired = []string{"carstore", "events", "repomgr", "repo", "mst", "util"}

// folder is the part of a package's path that the rules speak of: two elements, without the module.
func folder(path string) string {
	parts := strings.SplitN(strings.TrimPrefix(path, module), "/", 3)
	return strings.Join(parts[:min(2, len(parts))], "/")
}

func layerOf(folder string) int {
	name, inside := strings.CutPrefix(folder, "internal/")
	if !inside {
		return -1
	}
	for i, l := range layers {
		if slices.Contains(strings.Fields(l.folders), name) {
			return i
		}
	}
	return -1
}

// violation says why the package from (not a test) may not import the package to, or "".
func violation(from, to string) string {
	if old, ok := strings.CutPrefix(to, indigo); ok {
		top, _, _ := strings.Cut(old, "/")
		if slices.Contains(retired, top) {
			return "that package of indigo is retired: use those under atproto/"
		}
		if strings.HasPrefix(old, "atproto/repo") && folder(from) != "internal/pds" && folder(from) != "internal/ingest" {
			return "repos and their trees are internal/pds's"
		}
	}
	if !strings.HasPrefix(from, module) {
		return ""
	}
	source := folder(from)
	if strings.HasPrefix(to, postgres) && source != "internal/sqldb" && !strings.HasPrefix(source, "test/") {
		return "database servers are internal/sqldb's"
	}
	for _, prefix := range never[source] {
		if strings.HasPrefix(to, prefix) {
			return source + " knows nothing of it"
		}
	}
	if !strings.HasPrefix(to, module) || folder(to) == source {
		return ""
	}
	return upward(source, folder(to))
}

// upward judges an import between two of the project's folders.
func upward(source, target string) string {
	tree, _, _ := strings.Cut(source, "/")
	targetTree, _, _ := strings.Cut(target, "/")
	from, to := layerOf(source), layerOf(target)
	switch {
	case tree == "test":
		return ""
	case targetTree == "test":
		return "only tests import test/"
	case targetTree == "cmd":
		return "nothing imports a command"
	case tree == "api" || tree == "lexicons":
		return "generated types stand alone"
	case tree == "cmd" && target == "internal/devnet" && source != "cmd/atcr-demo":
		return "only the demo links the dev network"
	case tree == "cmd":
		return ""
	case from < 0:
		return source + " has no layer: give it one in test/imports and ARCHITECTURE.md"
	case targetTree == "lexicons":
		return ""
	case targetTree == "api":
		if from < layerOf("internal/pds") {
			return "records are for capabilities and above"
		}
		return ""
	case to < 0:
		return target + " has no layer: give it one in test/imports and ARCHITECTURE.md"
	case to > from:
		return "imports go down only"
	case to == from && !layers[from].peers:
		return "a " + layers[from].name + " imports no other: declare a small interface, and let the wiring plug it in"
	}
	return ""
}
