package index

// migrations of the tables, in the SQL that SQLite and PostgreSQL share. Times are Unix milliseconds.
//
// Rows of records have the key that the record has in its repo, and the rev that they were last changed by;
// "" where that was seen without one.
var migrations = []string{`
CREATE TABLE index_repo (
	did TEXT PRIMARY KEY, handle TEXT NOT NULL, pds TEXT NOT NULL, rev TEXT NOT NULL, data TEXT NOT NULL, status TEXT NOT NULL, source TEXT NOT NULL,
	complete INTEGER NOT NULL, attempts INTEGER NOT NULL, due_at INTEGER NOT NULL, version INTEGER NOT NULL
) STRICT;
CREATE INDEX index_repo_due ON index_repo (complete, due_at);
CREATE INDEX index_repo_handle ON index_repo (handle);
CREATE TABLE index_gone (
	did TEXT NOT NULL, collection TEXT NOT NULL, rkey TEXT NOT NULL, rev TEXT NOT NULL, gone_at INTEGER NOT NULL,
	PRIMARY KEY (did, collection, rkey)
) STRICT, WITHOUT ROWID;
CREATE INDEX index_gone_at ON index_gone (gone_at);
CREATE TABLE index_manifest (
	did TEXT NOT NULL, rkey TEXT NOT NULL, rev TEXT NOT NULL, cid TEXT NOT NULL, repository TEXT NOT NULL, digest TEXT NOT NULL,
	media_type TEXT NOT NULL, artifact_type TEXT NOT NULL, config_type TEXT NOT NULL, hold TEXT NOT NULL, subject TEXT NOT NULL,
	blob_cid TEXT NOT NULL, blob_mime TEXT NOT NULL, blob_size INTEGER NOT NULL, content_size INTEGER NOT NULL, annotations TEXT NOT NULL,
	created_at INTEGER NOT NULL,
	PRIMARY KEY (did, rkey)
) STRICT;
CREATE INDEX index_manifest_digest ON index_manifest (did, repository, digest);
CREATE INDEX index_manifest_created ON index_manifest (did, repository, created_at, rkey);
CREATE INDEX index_manifest_subject ON index_manifest (did, repository, subject) WHERE subject <> '';
CREATE TABLE index_blob (
	did TEXT NOT NULL, rkey TEXT NOT NULL, position INTEGER NOT NULL, repository TEXT NOT NULL, digest TEXT NOT NULL,
	media_type TEXT NOT NULL, size INTEGER NOT NULL,
	PRIMARY KEY (did, rkey, position)
) STRICT, WITHOUT ROWID;
CREATE INDEX index_blob_digest ON index_blob (did, repository, digest);
CREATE TABLE index_child (
	did TEXT NOT NULL, rkey TEXT NOT NULL, position INTEGER NOT NULL, digest TEXT NOT NULL, media_type TEXT NOT NULL, size INTEGER NOT NULL,
	os TEXT NOT NULL, architecture TEXT NOT NULL, variant TEXT NOT NULL, os_version TEXT NOT NULL,
	PRIMARY KEY (did, rkey, position)
) STRICT, WITHOUT ROWID;
CREATE TABLE index_tag (
	did TEXT NOT NULL, rkey TEXT NOT NULL, rev TEXT NOT NULL, cid TEXT NOT NULL, repository TEXT NOT NULL, tag TEXT NOT NULL,
	manifest_rkey TEXT NOT NULL, digest TEXT NOT NULL, changed_at INTEGER NOT NULL,
	PRIMARY KEY (did, rkey)
) STRICT, WITHOUT ROWID;
CREATE INDEX index_tag_name ON index_tag (did, repository, tag);
CREATE INDEX index_tag_changed ON index_tag (did, repository, changed_at);
CREATE TABLE index_star (
	did TEXT NOT NULL, rkey TEXT NOT NULL, rev TEXT NOT NULL, cid TEXT NOT NULL, owner TEXT NOT NULL, repository TEXT NOT NULL,
	created_at INTEGER NOT NULL,
	PRIMARY KEY (did, rkey)
) STRICT, WITHOUT ROWID;
CREATE INDEX index_star_repository ON index_star (owner, repository, did);
CREATE TABLE index_page (
	did TEXT NOT NULL, rkey TEXT NOT NULL, rev TEXT NOT NULL, cid TEXT NOT NULL, repository TEXT NOT NULL, description TEXT NOT NULL,
	avatar_cid TEXT NOT NULL, avatar_mime TEXT NOT NULL, updated_at INTEGER NOT NULL,
	PRIMARY KEY (did, rkey)
) STRICT;
CREATE INDEX index_page_repository ON index_page (did, repository);
CREATE TABLE index_profile (
	did TEXT NOT NULL, rkey TEXT NOT NULL, rev TEXT NOT NULL, cid TEXT NOT NULL, default_hold TEXT NOT NULL, created_at INTEGER NOT NULL,
	PRIMARY KEY (did, rkey)
) STRICT, WITHOUT ROWID;
CREATE TABLE index_count (
	did TEXT NOT NULL, rkey TEXT NOT NULL, rev TEXT NOT NULL, cid TEXT NOT NULL, owner TEXT NOT NULL, repository TEXT NOT NULL,
	pulls INTEGER NOT NULL, pushes INTEGER NOT NULL, last_pull INTEGER NOT NULL, last_push INTEGER NOT NULL,
	PRIMARY KEY (did, rkey)
) STRICT, WITHOUT ROWID;
CREATE INDEX index_count_repository ON index_count (owner, repository);
CREATE TABLE index_repository (
	did TEXT NOT NULL, repository TEXT NOT NULL, pushed_at INTEGER NOT NULL, words TEXT NOT NULL,
	PRIMARY KEY (did, repository)
) STRICT, WITHOUT ROWID;
CREATE INDEX index_repository_pushed ON index_repository (pushed_at, did, repository);
CREATE TABLE index_word (
	word TEXT NOT NULL, did TEXT NOT NULL, repository TEXT NOT NULL,
	PRIMARY KEY (word, did, repository)
) STRICT, WITHOUT ROWID;
CREATE TABLE index_owner_word (word TEXT NOT NULL, did TEXT NOT NULL, PRIMARY KEY (word, did)) STRICT, WITHOUT ROWID;
CREATE INDEX index_owner_word_did ON index_owner_word (did, word);
CREATE INDEX index_word_repository ON index_word (did, repository, word);
CREATE TABLE index_cursor (source TEXT PRIMARY KEY, cursor INTEGER NOT NULL, updated_at INTEGER NOT NULL) STRICT;
CREATE TABLE index_content (digest TEXT PRIMARY KEY, size INTEGER NOT NULL, used_at INTEGER NOT NULL, data BLOB NOT NULL) STRICT;
CREATE INDEX index_content_used ON index_content (used_at);
`, `
CREATE TABLE index_crew (
	did TEXT NOT NULL, rkey TEXT NOT NULL, rev TEXT NOT NULL, cid TEXT NOT NULL, member TEXT NOT NULL,
	PRIMARY KEY (did, rkey)
) STRICT, WITHOUT ROWID;
CREATE INDEX index_crew_member ON index_crew (member, did);
UPDATE index_repo SET complete = 0, due_at = 0 WHERE did IN (SELECT did FROM index_count);
`, `
ALTER TABLE index_repo ADD COLUMN doubts INTEGER NOT NULL DEFAULT 0;
`}
