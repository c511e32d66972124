package hold

import (
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"atcr.io/api/atcr"
	"atcr.io/internal/oci"
	"atcr.io/internal/sqldb"
)

// Would catch a blocked person or blob that is still served, a reason that callers do not see, and blocks that
// end with the process.
func TestBlocks(t *testing.T) {
	t.Parallel()
	p := newPeople(t)
	s := startHold(t, p, open)
	if a := s.addCrew(t, owner, writer, "crew:admin"); a.status != http.StatusOK {
		t.Fatal(a.body)
	}
	bad, good := s.push(t, writer, []byte("bad")), s.push(t, stranger, []byte("good"))
	_, begun := s.begin(t, writer)
	_, ready := s.begin(t, writer)
	if a := s.send(t, http.MethodPatch, ready, "", strings.NewReader("all of it")); a.status != http.StatusAccepted {
		t.Fatal(a.body)
	}
	finish := ready + "?digest=" + oci.FromBytes([]byte("all of it")).String()
	do := func(run task, pairs ...string) string {
		t.Helper()
		said := ""
		if err := run(t.Context(), s.Hold, parameters(pairs...), func(l Line) { said += l.Text + "\n" }); err != nil {
			return "error: " + err.Error()
		}
		return said
	}
	for _, test := range []struct{ subject, reason, want string }{
		{bad.String(), "court order 7", "is blocked"}, {writer.String(), "spam", "is blocked"}, {owner.String(), "x", "owns this hold"},
		{"alice", "x", "neither a DID nor a digest"}, {stranger.String(), "", "a reason is needed"}, {stranger.String(), "two\nlines", "a reason is needed"},
	} {
		if said := do(adminBlock, "subject", test.subject, "reason", test.reason); !strings.Contains(said, test.want) {
			t.Errorf("%s: %s", test.subject, said)
		}
	}
	for name, test := range map[string]struct {
		got    answer
		status int
		error  string
		reason string
	}{
		"the blob":             {s.send(t, http.MethodGet, s.blobPath(bad), "", nil), 451, "BlobBlocked", "court order 7"},
		"its URL":              {s.send(t, http.MethodGet, s.blobPath(bad)+"&method=GET", "", nil), 451, "BlobBlocked", "court order 7"},
		"their images":         {s.send(t, http.MethodGet, strings.Replace(s.blobPath(good), "did:plc:any", writer.String(), 1), "", nil), 451, "AccountBlocked", "spam"},
		"their uploads":        {s.call(t, writer, atcr.HoldInitiateUploadNSID, atcr.HoldInitiateUploadInput{Digest: good.String()}), 403, "AccountBlocked", "spam"},
		"their manifests":      {s.notify(t, writer, message(writer, "app", "m", good)), 403, "AccountBlocked", "spam"},
		"their membership":     {s.call(t, writer, atcr.HoldRequestCrewNSID, atcr.HoldRequestCrewInput{}), 403, "AccountBlocked", "spam"},
		"their records":        {s.addCrew(t, writer, reader, "blob:read"), 403, "AccountBlocked", "spam"},
		"their begun uploads":  {s.send(t, http.MethodPatch, begun, "", strings.NewReader("more")), 403, "", "spam"},
		"their last bytes":     {s.send(t, http.MethodPut, finish, "", nil), 403, "", "spam"},
		"others":               {s.send(t, http.MethodGet, s.blobPath(good), "", nil), 200, "", "good"},
		"HEAD of what is left": {s.send(t, http.MethodHead, s.blobPath(good), "", nil), 200, "", ""},
	} {
		if test.got.status != test.status || test.got.errorName() != test.error || !strings.Contains(test.got.body, test.reason) {
			t.Errorf("%s: %d %s", name, test.got.status, test.got.body)
		}
	}
	again, err := openBlocks(t.Context(), s.db)
	if err != nil || len(again.list()) != 2 {
		t.Errorf("after a restart: %v %v", again, err)
	}
	if said := do(adminBlocks); !strings.Contains(said, "court order 7") || !strings.Contains(said, "spam") {
		t.Errorf("%s", said)
	}
	for _, subject := range []string{bad.String(), writer.String()} {
		if said := do(adminUnblock, "subject", subject); !strings.Contains(said, "served again") {
			t.Errorf("%s", said)
		}
	}
	if said := do(adminUnblock, "subject", bad.String()); !strings.Contains(said, "not blocked") {
		t.Errorf("%s", said)
	}
	if a := s.send(t, http.MethodGet, s.blobPath(bad), "", nil); a.status != 200 || s.push(t, writer, []byte("more")) == "" {
		t.Errorf("%d %s", a.status, a.body)
	}
}

// newBlocks are blocks of nobody yet, and the database that keeps them.
func newBlocks(t *testing.T) (*blocks, *sqldb.DB) {
	t.Helper()
	db, err := sqldb.Open(t.Context(), filepath.Join(t.TempDir(), "db.sqlite3"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	b, err := openBlocks(t.Context(), db)
	if err != nil {
		t.Fatal(err)
	}
	return b, db
}

// Would catch a block that is another after a restart.
func TestBlockIsKept(t *testing.T) {
	t.Parallel()
	b, db := newBlocks(t)
	for day := range 2 {
		one := block{Subject: stranger.String(), Reason: fmt.Sprint("reason ", day), At: time.UnixMilli(1_800_000_000_000).AddDate(0, 0, day)}
		if err := b.add(t.Context(), one); err != nil {
			t.Fatal(err)
		}
	}
	again, err := openBlocks(t.Context(), db)
	if err != nil {
		t.Fatal(err)
	}
	if was, is := b.list(), again.list(); !slices.Equal(was, is) {
		t.Errorf("%v became %v", was, is)
	}
}

// Would catch changes of one block at the same moment that leave another in memory than is kept.
func TestBlocksChangeInOneOrder(t *testing.T) {
	t.Parallel()
	b, db := newBlocks(t)
	for round := range 200 {
		var wg sync.WaitGroup
		for i := range 12 {
			wg.Go(func() {
				err := b.add(t.Context(), block{Subject: stranger.String(), Reason: fmt.Sprint(round, i), At: time.UnixMilli(int64(i))})
				if i%3 == 0 {
					err = b.remove(t.Context(), stranger.String())
				}
				if err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		again, err := openBlocks(t.Context(), db)
		if err != nil {
			t.Fatal(err)
		}
		if was, is := b.list(), again.list(); !slices.Equal(was, is) {
			t.Fatalf("%v became %v", was, is)
		}
	}
}
