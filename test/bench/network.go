package main

import (
	"bufio"
	"context"
	"database/sql"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"atcr.io/internal/index"
	"atcr.io/internal/oci"
	"atcr.io/internal/sqldb"
)

const (
	indexed     = 1_000_000 // manifests, and as many tags
	indexedApps = 100_000   // repositories
	indexedTags = 2000      // of alice, which are asked for
)

// benchIndex compares an AppView whose index has a million manifests and tags with one that has next to none:
// the time of a tag GET that memory cannot answer, and of one that it can; and the time of searches.
func benchIndex(ctx context.Context, b *bench) error {
	h, err := b.startHold(ctx, "hold-index", "STORAGE_DRIVER=filesystem", "STORAGE_ROOT_DIR="+filepath.Join(b.dir, "hold-index-blobs"))
	if err != nil {
		return err
	}
	full := filepath.Join(b.dir, "appview-million")
	if err := os.MkdirAll(full, 0o700); err != nil {
		return err
	}
	began := time.Now()
	if err := fillIndex(ctx, filepath.Join(full, "db.sqlite3")); err != nil {
		return err
	}
	filled := time.Since(began)
	info, err := os.Stat(filepath.Join(full, "db.sqlite3"))
	if err != nil {
		return err
	}
	b.printf("\n## An index of %d manifests and as many tags\n\n%d repositories; filled in %s, %d MB. One tag GET after the other, in turn at both. First: tags that this process was not asked for\nbefore, so that the index is. Again: the same tags.\n\n| index | tag GET | median | p99 |\n|---|---|---|---|\n", indexed, indexedApps, filled.Round(time.Second), info.Size()/1e6)
	if err := b.tagGets(ctx, h); err != nil {
		return err
	}
	return b.searches(ctx, filepath.Join(full, "db.sqlite3"))
}

// tagGets compares two AppViews that both follow alice's repo.
func (b *bench) tagGets(ctx context.Context, h *holdProcess) error {
	names := []string{"appview-empty", "appview-million"}
	urls := make([]string, len(names))
	for i, name := range names {
		appview, err := b.startAppView(ctx, name, h, "ATCR_RELAY_URLS="+b.network.PDSURL, "ATCR_RATE_LIMIT=0")
		if err != nil {
			return err
		}
		if urls[i] = appview.url; i == 0 {
			if err := b.pushTags(ctx, appview); err != nil {
				return err
			}
		}
		if err := waitIndexed(ctx, filepath.Join(b.dir, name, "db.sqlite3"), b.alice.DID); err != nil {
			return err
		}
	}
	var p99 [2][2]time.Duration
	for j, what := range []string{"first", "again"} {
		times, err := tagTimes(ctx, urls)
		if err != nil {
			return err
		}
		for i := range names {
			slices.Sort(times[i])
			p99[i][j] = times[i][len(times[i])*99/100]
			b.printf("| %s | %s | %s | %s |\n", []string{"empty", "1,000,000"}[i], what, times[i][len(times[i])/2].Round(time.Microsecond), p99[i][j].Round(time.Microsecond))
		}
	}
	b.printf("\np99 of that of an empty index: %.2f× first, %.2f× again.\n", float64(p99[1][0])/float64(p99[0][0]), float64(p99[1][1])/float64(p99[0][1]))
	return nil
}

// pushTags pushes an image, and makes many tags of it, straight at the PDS.
func (b *bench) pushTags(ctx context.Context, appview *process) error {
	token, err := registryToken(ctx, appview, b.alice, "repository:alice.test/read:pull,push")
	if err != nil {
		return err
	}
	image, err := pushSmallImage(ctx, appview.url, token, 11)
	if err != nil {
		return err
	}
	manifest := image.digest
	var session struct {
		AccessJwt string `json:"accessJwt"`
	}
	err = callJSON(ctx, "POST", b.network.PDSURL+"/xrpc/com.atproto.server.createSession", "", fmt.Sprintf(`{"identifier":%q,"password":%q}`, b.alice.Handle, b.alice.AppPassword), &session)
	if err != nil {
		return err
	}
	for from := 0; from < indexedTags; from += 200 {
		var writes []string
		for n := from; n < from+200; n++ {
			writes = append(writes, fmt.Sprintf(`{"$type":"com.atproto.repo.applyWrites#create","collection":"io.atcr.tag","rkey":"read:t%d","value":{"$type":"io.atcr.tag","repository":"read","tag":"t%d","manifest":"at://%s/io.atcr.manifest/%s","manifestDigest":%q,"createdAt":"2026-01-01T00:00:00Z"}}`,
				n, n, b.alice.DID, strings.TrimPrefix(manifest, "sha256:"), manifest))
		}
		var out struct{}
		if err := callJSON(ctx, "POST", b.network.PDSURL+"/xrpc/com.atproto.repo.applyWrites", "Bearer "+session.AccessJwt, fmt.Sprintf(`{"repo":%q,"writes":[%s]}`, b.alice.DID, strings.Join(writes, ",")), &out); err != nil {
			return err
		}
	}
	return nil
}

// waitIndexed waits until an AppView has all of alice's tags, and has seen that its firehose tells no more.
func waitIndexed(ctx context.Context, path, did string) error {
	db, err := sqldb.Open(ctx, path)
	if err != nil {
		return err
	}
	defer func() { _ = db.Close() }()
	for until := time.Now().Add(time.Minute); time.Now().Before(until); {
		var tags, complete int
		err := db.Reader().QueryRowContext(ctx, `SELECT (SELECT count(*) FROM index_tag WHERE did = ?), (SELECT coalesce(max(complete), 0) FROM index_repo WHERE did = ?)`, did, did).Scan(&tags, &complete)
		if err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(3 * time.Second): // as long as an idle stream takes to count as up to date
		}
		if tags > indexedTags && complete == 1 {
			return nil
		}
	}
	return fmt.Errorf("the index does not come to have %d tags", indexedTags)
}

// tagTimes asks both in turn, so that a drift of the machine meets both.
func tagTimes(ctx context.Context, urls []string) ([][]time.Duration, error) {
	times := make([][]time.Duration, len(urls))
	connections := make([]net.Conn, len(urls))
	readers := make([]*bufio.Reader, len(urls))
	for i, base := range urls {
		var d net.Dialer
		conn, err := d.DialContext(ctx, "tcp", strings.TrimPrefix(base, "http://"))
		if err != nil {
			return nil, err
		}
		defer func() { _ = conn.Close() }()
		connections[i], readers[i] = conn, bufio.NewReaderSize(conn, 32<<10)
	}
	for n := range indexedTags {
		for i := range urls {
			began := time.Now()
			if _, err := fmt.Fprintf(connections[i], "GET /v2/alice.test/read/manifests/t%d HTTP/1.1\r\nHost: bench\r\n\r\n", n*7919%indexedTags); err != nil {
				return nil, err
			}
			if err := readAnswer(readers[i], 200); err != nil {
				return nil, fmt.Errorf("%s: %w", urls[i], err)
			}
			if n > 20 { // the first ones find the hold
				times[i] = append(times[i], time.Since(began))
			}
		}
	}
	return times, nil
}

// searches times what pages ask of the index.
func (b *bench) searches(ctx context.Context, path string) error {
	db, err := sqldb.Open(ctx, path)
	if err != nil {
		return err
	}
	defer func() { _ = db.Close() }()
	x, err := index.Open(ctx, index.Config{DB: db})
	if err != nil {
		return err
	}
	b.printf("\n| of the index | slowest of 20 |\n|---|---|\n")
	for _, query := range []string{"app", "ap", "app12", "service", "service app4", "owner77", "no-such-thing"} {
		slowest := time.Duration(0)
		for range 20 {
			began := time.Now()
			if _, err := x.Search(ctx, query, 50); err != nil {
				return err
			}
			slowest = max(slowest, time.Since(began))
		}
		b.printf("| search %q | %s |\n", query, slowest.Round(10*time.Microsecond))
	}
	slowest := time.Duration(0)
	for range 20 {
		began := time.Now()
		if _, err := x.Recent(ctx, time.Time{}, 50); err != nil {
			return err
		}
		slowest = max(slowest, time.Since(began))
	}
	b.printf("| recent pushes | %s |\n", slowest.Round(10*time.Microsecond))
	return nil
}

// fillIndex writes rows as records of other people would have become, in bulk.
func fillIndex(ctx context.Context, path string) error {
	db, err := sqldb.Open(ctx, path)
	if err != nil {
		return err
	}
	defer func() { _ = db.Close() }()
	if _, err := index.Open(ctx, index.Config{DB: db}); err != nil {
		return err
	}
	const owners, batch = 10_000, 2000
	perApp := indexed / indexedApps
	for from := 0; from < indexedApps; from += batch {
		err := db.WriteRelaxed(ctx, func(tx *sql.Tx) error {
			insert := func(table, columns string) (*sql.Stmt, error) {
				return tx.PrepareContext(ctx, "INSERT INTO "+table+" ("+columns+") VALUES ("+strings.TrimSuffix(strings.Repeat("?,", strings.Count(columns, ",")+1), ",")+")")
			}
			var statements []*sql.Stmt
			for _, s := range [][2]string{
				{"index_repository", "did, repository, pushed_at, words"},
				{"index_word", "word, did, repository"},
				{"index_manifest", "did, rkey, rev, cid, repository, digest, media_type, artifact_type, config_type, hold, subject, blob_cid, blob_mime, blob_size, content_size, annotations, created_at"},
				{"index_blob", "did, rkey, position, repository, digest, media_type, size"},
				{"index_tag", "did, rkey, rev, cid, repository, tag, manifest_rkey, digest, changed_at"},
				{"index_repo", "did, handle, pds, rev, data, status, source, complete, attempts, due_at, version"},
			} {
				st, err := insert(s[0], s[1])
				if err != nil {
					return err
				}
				statements = append(statements, st)
			}
			for app := from; app < from+batch; app++ {
				did, repository := fmt.Sprintf("did:plc:owner%018d", app%owners), fmt.Sprintf("app%d/service", app)
				exec := func(i int, args ...any) error { _, err := statements[i].ExecContext(ctx, args...); return err }
				if app < owners {
					if err := exec(5, did, fmt.Sprintf("owner%d.example", app), "https://pds.example", "3a", "", "active", "", 1, 0, 0, 1); err != nil {
						return err
					}
				}
				if err := exec(0, did, repository, 1_700_000_000_000+app, ""); err != nil {
					return err
				}
				for _, word := range []string{fmt.Sprintf("app%d", app), "service", "app"} {
					if err := exec(1, word, did, repository); err != nil {
						return err
					}
				}
				for n := range perApp {
					d := oci.FromBytes(fmt.Append(nil, app, n))
					if err := exec(2, did, d.Hex()+":"+strings.ReplaceAll(repository, "/", "~"), "3a", "bafy"+d.Hex(), repository, d.String(), oci.MediaTypeImageManifest, "", "application/vnd.oci.image.config.v1+json", "did:web:hold.example", "", "bafk"+d.Hex(), oci.MediaTypeImageManifest, 500, 1000, "", 1_700_000_000_000+n); err != nil {
						return err
					}
					if err := exec(3, did, d.Hex()+":"+strings.ReplaceAll(repository, "/", "~"), 0, repository, d.String(), "application/vnd.oci.image.layer.v1.tar+gzip", 1000); err != nil {
						return err
					}
					if err := exec(4, did, strings.ReplaceAll(repository, "/", "~")+fmt.Sprintf(":v%d", n), "3a", "bafy"+d.Hex(), repository, fmt.Sprintf("v%d", n), d.Hex(), d.String(), 1_700_000_000_000+n); err != nil {
						return err
					}
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}
