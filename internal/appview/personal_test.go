package appview

import (
	"database/sql"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"atcr.io/internal/devnet"
	"atcr.io/test/databases"
)

// notPersonal are tables, or what their names begin with, that stay when a person has all forgotten: what the
// network shows of them to everybody, and what the operator decided.
var notPersonal = []string{"index_", "blocked"}

// personColumns are what tables call a person.
var personColumns = []string{"did", "subject", "owner", "sender"}

// column is one of a table, as SQLite says.
type column struct {
	name, kind string
	generated  bool // SQLite fills it in
}

// tables are those of the database but notPersonal, with their columns.
func (n *network) tables() map[string][]column {
	n.t.Helper()
	rows, err := n.app.Load().db.Reader().QueryContext(n.t.Context(), `SELECT m.name, c.name, c.type, c.pk > 0 AND c.type = 'INTEGER' AND m.sql LIKE '%AUTOINCREMENT%'
		FROM sqlite_master m JOIN pragma_table_info(m.name) c WHERE m.type = 'table' AND m.name NOT LIKE 'sqlite_%'`)
	if err != nil {
		n.t.Fatal(err)
	}
	defer func() { _ = rows.Close() }()
	out := map[string][]column{}
	for rows.Next() {
		var table string
		var c column
		if err := rows.Scan(&table, &c.name, &c.kind, &c.generated); err != nil {
			n.t.Fatal(err)
		}
		if !slices.ContainsFunc(notPersonal, func(s string) bool { return strings.HasPrefix(table, s) }) {
			out[table] = append(out[table], c)
		}
	}
	if err := rows.Err(); err != nil {
		n.t.Fatal(err)
	}
	return out
}

// mentions are the tables in which somebody's DID stands, in whatever column.
func (n *network) mentions(did string) map[string]bool {
	n.t.Helper()
	out := map[string]bool{}
	for table, columns := range n.tables() {
		for _, c := range columns {
			count := 0
			if err := n.app.Load().db.Reader().QueryRowContext(n.t.Context(), `SELECT count(*) FROM `+table+` WHERE instr(CAST(`+c.name+` AS TEXT), ?) > 0`, did).Scan(&count); err != nil {
				n.t.Fatal(err)
			}
			if count > 0 {
				out[table] = true
			}
		}
	}
	return out
}

// plant puts a row about somebody into every table that has a column for a person, and returns those tables.
func (n *network) plant(did string) []string {
	n.t.Helper()
	var out []string
	for table, columns := range n.tables() {
		var names, marks []string
		var values []any
		about := false
		for _, c := range columns {
			if c.generated {
				continue
			}
			value := any("{}")
			switch {
			case slices.Contains(personColumns, c.name):
				value, about = did, true
			case c.name == "due_at": // not yet, or the outbox would take the row
				value = n.now().Add(time.Hour).UnixMilli()
			case c.kind == "INTEGER":
				value = n.now().Unix()
			case c.kind == "BLOB":
				value = []byte(table)
			}
			names, marks, values = append(names, c.name), append(marks, "?"), append(values, value)
		}
		if !about {
			continue
		}
		out = append(out, table)
		err := n.app.Load().db.Write(n.t.Context(), func(tx *sql.Tx) error {
			_, err := tx.ExecContext(n.t.Context(), fmt.Sprintf(`INSERT INTO %s (%s) VALUES (%s)`, table, strings.Join(names, ","), strings.Join(marks, ",")), values...)
			return err
		})
		if err != nil {
			n.t.Fatalf("%s: %v", table, err)
		}
	}
	return out
}

// Would catch a table, of today or later, of whose rows about a person that person is not told, or that has some
// when all was deleted; and a deletion that takes what is another's.
func TestForgetsEveryTable(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	for _, who := range []devnet.Account{n.alice, n.bob} {
		n.as(who, who.Handle+"/app").push(who.Handle+"/app", newImage("kept of "+who.Handle), "1.0")
		n.device(who)
	}
	alice, bob := n.browser(), n.browser()
	alice.signInAs(n.alice)
	bob.signInAs(n.bob)
	tables := n.plant(n.alice.DID)
	if len(tables) < 9 {
		t.Fatalf("tables with a column for a person: %q", tables)
	}
	err := n.app.Load().db.Write(t.Context(), func(tx *sql.Tx) error { // a part of the upload that was planted
		_, err := tx.ExecContext(t.Context(), `INSERT INTO part_sent (hold, upload, number, etag) VALUES ('{}', '{}', 1, 'x')`)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	var all map[string]any
	if err := json.Unmarshal([]byte(alice.send(http.MethodGet, "/settings/export").body), &all); err != nil {
		t.Fatal(err)
	}
	passing, _ := all["keptForAWhile"].(map[string]any)
	listed := map[string]string{"session": "sessions", "browser": "browsers", "credential": "devices"}
	for _, table := range tables {
		rows, _ := passing[table].([]any)
		if key := listed[table]; key != "" {
			rows, _ = all[key].([]any)
		}
		if len(rows) == 0 {
			t.Errorf("the export has nothing of %s: %v", table, slices.Collect(maps.Keys(all)))
		}
	}
	before := n.mentions(n.bob.DID)
	if at := alice.send(http.MethodPost, "/settings/delete", "sure", "yes"); at.status != http.StatusOK {
		t.Fatalf("delete: %d %s", at.status, at.body)
	}
	parts := 0
	if err := n.app.Load().db.Reader().QueryRowContext(t.Context(), `SELECT count(*) FROM part_sent`).Scan(&parts); err != nil || parts != 0 {
		t.Errorf("%d parts are left, %v", parts, err)
	}
	if left := n.mentions(n.alice.DID); len(left) != 0 {
		t.Errorf("alice is still in %v", left)
	}
	if after := n.mentions(n.bob.DID); !maps.Equal(before, after) {
		t.Errorf("bob was in %v, and is in %v", before, after)
	}
	if at := bob.send(http.MethodGet, "/settings"); at.status != http.StatusOK {
		t.Errorf("bob's settings: %d", at.status)
	}
}

// Would catch what is kept in a database on a server and is not shown or deleted there.
func TestForgetsOnServer(t *testing.T) {
	t.Parallel()
	n := newNetwork(t, "ATCR_DATABASE_URL="+databases.NewPostgres(t))
	n.as(n.alice, "alice.test/app").push("alice.test/app", newImage("kept"), "1.0")
	b := n.browser()
	exported := func() export {
		t.Helper()
		b.signInAs(n.alice)
		var all export
		if err := json.Unmarshal([]byte(b.send(http.MethodGet, "/settings/export").body), &all); err != nil {
			t.Fatal(err)
		}
		return all
	}
	b.callback(n.alice.Handle, "/settings", decision(n.alice)) // begun, not ended
	if all := exported(); len(all.Passing["sign_in"]) != 1 || len(all.Passing["recent_blob"]) == 0 || len(all.Sessions) != 2 {
		t.Errorf("kept: %+v", all)
	}
	if at := b.send(http.MethodPost, "/settings/delete", "sure", "yes"); at.status != http.StatusOK {
		t.Fatalf("delete: %d %s", at.status, at.body)
	}
	if all := exported(); len(all.Passing) != 0 || len(all.Sessions) != 1 {
		t.Errorf("kept after all was deleted: %+v", all)
	}
}
