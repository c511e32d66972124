package credential

import (
	"encoding/json"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/internal/sqldb"
)

var migrations = []string{
	`CREATE TABLE credential (
		id         TEXT PRIMARY KEY,
		kind       TEXT NOT NULL,
		did        TEXT NOT NULL,
		hash       BLOB NOT NULL, -- HMAC of the secret
		name       TEXT NOT NULL,
		platform   TEXT NOT NULL,
		address    TEXT NOT NULL,
		scope      TEXT NOT NULL, -- JSON
		created_at INTEGER NOT NULL,
		used_at    INTEGER NOT NULL,
		expires_at INTEGER NOT NULL -- 0: never
	) STRICT;
	CREATE UNIQUE INDEX credential_hash ON credential (hash);
	CREATE INDEX credential_did ON credential (did);
	CREATE TABLE device_code (
		hash       BLOB PRIMARY KEY, -- HMAC of the device code
		user_hash  BLOB NOT NULL, -- HMAC of the user code
		name       TEXT NOT NULL,
		platform   TEXT NOT NULL,
		address    TEXT NOT NULL,
		state      TEXT NOT NULL, -- pending, approved, denied, used
		did        TEXT NOT NULL, -- who decided
		step       INTEGER NOT NULL, -- seconds between polls
		polled_at  INTEGER NOT NULL, -- milliseconds
		created_at INTEGER NOT NULL,
		expires_at INTEGER NOT NULL
	) STRICT;
	CREATE UNIQUE INDEX device_code_user ON device_code (user_hash);
	CREATE INDEX device_code_expires ON device_code (expires_at);`,
}

// Personal is what is kept of people beside credentials: the machines that they have decided about.
var Personal = []sqldb.Personal{{Table: "device_code", Where: "did = ?", Show: "name, platform, address, state, created_at"}}

const columns = `id, kind, did, name, platform, address, scope, created_at, used_at, expires_at`

type scanner interface{ Scan(dest ...any) error }

func scan(row scanner) (Credential, error) {
	var c Credential
	var kind, did, scope string
	var created, used, expires int64
	if err := row.Scan(&c.ID, &kind, &did, &c.Name, &c.Platform, &c.Address, &scope, &created, &used, &expires); err != nil {
		return c, err
	}
	c.Kind, c.DID = Kind(kind), syntax.DID(did)
	c.CreatedAt, c.UsedAt = time.Unix(created, 0), time.Unix(used, 0)
	if expires > 0 {
		c.ExpiresAt = time.Unix(expires, 0)
	}
	return c, json.Unmarshal([]byte(scope), &c.Scope)
}
