package hold

import (
	"bytes"
	"database/sql"
	"encoding/json"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/api/atcr"
	"atcr.io/internal/oci"
)

// Would catch a hold that lets in whom it should not, gives crew:admin, undoes a refusal, or takes a token twice.
func TestRequestCrew(t *testing.T) {
	t.Parallel()
	p, c := newPeople(t), &clock{}
	s := startHold(t, p, func(config *Config) { open(config); c.set(config); config.Registrations = 2 })
	if a := s.addCrew(t, owner, refused); a.status != 200 {
		t.Fatal(a.body)
	}
	ask := func(did syntax.DID, in atcr.HoldRequestCrewInput) answer {
		t.Helper()
		return s.call(t, did, atcr.HoldRequestCrewNSID, in)
	}
	token := s.token(t, stranger, atcr.HoldRequestCrewNSID)
	first := s.send(t, http.MethodPost, "/xrpc/io.atcr.hold.requestCrew", token, strings.NewReader(`{"permissions":["blob:write"]}`))
	var out atcr.HoldRequestCrewOutput
	if first.json(t, &out); first.status != 200 || out.Status != "created" || !strings.HasSuffix(out.Uri, atcr.CrewRkey(stranger.String())) || out.Cid == "" {
		t.Fatalf("%d %s", first.status, first.body)
	}
	if a := s.send(t, http.MethodPost, "/xrpc/io.atcr.hold.requestCrew", token, strings.NewReader(`{}`)); a.status != 401 {
		t.Errorf("the same token again: %d %s", a.status, a.body)
	}
	for name, test := range map[string]struct {
		did    syntax.DID
		in     atcr.HoldRequestCrewInput
		status int
		want   string
	}{
		"member":  {stranger, atcr.HoldRequestCrewInput{}, 200, "already_member"},
		"owner":   {owner, atcr.HoldRequestCrewInput{}, 200, "already_member"},
		"refused": {refused, atcr.HoldRequestCrewInput{}, 200, "already_member"},
		"admin":   {writer, atcr.HoldRequestCrewInput{Permissions: []string{"crew:admin"}}, 400, "InvalidRequest"},
		"role":    {writer, atcr.HoldRequestCrewInput{Role: "owner"}, 400, "InvalidRequest"},
		"nobody":  {nobody, atcr.HoldRequestCrewInput{}, 401, "AuthRequired"},
	} {
		if a := ask(test.did, test.in); a.status != test.status || !strings.Contains(a.body, test.want) {
			t.Errorf("%s: %d %s", name, a.status, a.body)
		}
	}
	crew := s.records(t, atcr.HoldCrewNSID)
	if r := crew[atcr.CrewRkey(refused.String())]; !strings.Contains(r, `"permissions":[]`) {
		t.Errorf("a refusal was undone: %s", r)
	}
	if a := ask(writer, atcr.HoldRequestCrewInput{}); a.status != 200 || !strings.Contains(a.body, "created") {
		t.Errorf("%d %s", a.status, a.body)
	}
	if a := ask(reader, atcr.HoldRequestCrewInput{}); a.status != 429 || a.header.Get("Retry-After") == "" {
		t.Errorf("over the day's number: %d %s", a.status, a.body)
	}
	// Those who push nothing leave again; the owner's members stay.
	blob := s.push(t, writer, []byte("content"))
	c.advance(29 * 24 * time.Hour)
	if a := s.notify(t, writer, message(writer, "app", "m", blob)); a.status != 200 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	c.advance(2 * 24 * time.Hour)
	if err := s.removeIdle(t.Context()); err != nil {
		t.Fatal(err)
	}
	crew = s.records(t, atcr.HoldCrewNSID)
	if len(crew) != 3 || crew[atcr.CrewRkey(stranger.String())] != "" {
		t.Errorf("%v", crew)
	}
	s2 := startHold(t, p, func(config *Config) { config.Public = true })
	if a := s2.call(t, stranger, atcr.HoldRequestCrewNSID, atcr.HoldRequestCrewInput{}); a.status != 403 || a.errorName() != "RegistrationDisabled" {
		t.Errorf("%d %s", a.status, a.body)
	}
}

// Would catch a member of the owner's who is taken for one who came by themselves, because both happened at once.
func TestOwnersMemberMeanwhile(t *testing.T) {
	t.Parallel()
	s := startHold(t, newPeople(t), open)
	member := func(did syntax.DID) {
		t.Helper()
		if registered, err := s.ledger.Registered(t.Context(), did); err != nil || registered {
			t.Errorf("%s counts as registered: %v", did, err)
		}
		if s.records(t, atcr.HoldCrewNSID)[atcr.CrewRkey(did.String())] == "" {
			t.Errorf("%s is no member", did)
		}
	}
	// The owner's commit comes while a registration is on its way to its own.
	raw, err := json.Marshal(atcr.HoldCrew{Member: stranger.String(), Role: "member", Permissions: []string{"blob:read"}, AddedAt: timestamp(s.now())})
	if err != nil {
		t.Fatal(err)
	}
	rkey := syntax.RecordKey(atcr.CrewRkey(stranger.String()))
	s.following.mu.Lock()
	s.following.registering = map[syntax.RecordKey]awaited[syntax.DID]{rkey: {stranger, raw}}
	s.following.mu.Unlock()
	if a := s.addCrew(t, owner, stranger, "blob:write"); a.status != 200 {
		t.Fatal(a.body)
	}
	member(stranger)
	// It comes after the idle were looked for.
	if a := s.call(t, reader, atcr.HoldRequestCrewNSID, atcr.HoldRequestCrewInput{}); a.status != 200 {
		t.Fatal(a.body)
	}
	if _, err := s.setMember(t.Context(), reader, []string{"blob:read"}, nil); err != nil {
		t.Fatal(err)
	}
	if err := s.removeRegistered(t.Context(), []syntax.DID{reader}); err != nil {
		t.Fatal(err)
	}
	member(reader)
}

// Would catch somebody's data that an export leaves out or a deletion leaves behind, and another's that it takes.
func TestUserData(t *testing.T) {
	t.Parallel()
	p := newPeople(t)
	s := startHold(t, p, open)
	for _, did := range []syntax.DID{writer, stranger} {
		if a := s.call(t, did, atcr.HoldRequestCrewNSID, atcr.HoldRequestCrewInput{}); a.status != 200 {
			t.Fatal(a.body)
		}
		blob := s.push(t, did, []byte("of both"))
		if a := s.notify(t, did, message(did, "app", "m", blob)); a.status != 200 {
			t.Fatal(a.body)
		}
	}
	if err := s.publishStats(t.Context()); err != nil {
		t.Fatal(err)
	}
	export := func(did syntax.DID) (out atcr.HoldExportUserDataOutput) {
		t.Helper()
		a := s.send(t, http.MethodGet, "/xrpc/"+atcr.HoldExportUserDataNSID, s.token(t, did, atcr.HoldExportUserDataNSID), nil)
		if a.json(t, &out); a.status != 200 {
			t.Fatal(a.body)
		}
		return out
	}
	got := export(writer)
	if len(got.LayerRecords) != 1 || len(got.StatsRecords) != 1 || got.CrewRecord == nil || got.IsCaptain || got.UserDid != writer.String() {
		t.Fatalf("%+v", got)
	}
	if !export(owner).IsCaptain {
		t.Error("the owner is no captain")
	}
	if a := s.send(t, http.MethodGet, "/xrpc/"+atcr.HoldExportUserDataNSID, "", nil); a.status != 401 || a.errorName() != "AuthRequired" {
		t.Errorf("nobody: %d %s", a.status, a.body)
	}
	a := s.call(t, writer, atcr.HoldDeleteUserDataNSID, struct{}{})
	var deleted atcr.HoldDeleteUserDataOutput
	if a.json(t, &deleted); a.status != 200 || !deleted.Success || !*deleted.CrewDeleted || *deleted.LayersDeleted != 1 || *deleted.StatsDeleted != 1 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	if got := export(writer); len(got.LayerRecords)+len(got.StatsRecords) != 0 || got.CrewRecord != nil {
		t.Errorf("left: %+v", got)
	}
	if got := export(stranger); len(got.LayerRecords) != 1 || len(got.StatsRecords) != 1 || got.CrewRecord == nil {
		t.Errorf("another's: %+v", got)
	}
}

// Would catch bytes over the quota that are taken, and an owner who is cut.
func TestQuotas(t *testing.T) {
	t.Parallel()
	p := newPeople(t)
	s := startHold(t, p, func(c *Config) {
		open(c)
		c.Quotas = `{"tiers":{"free":"1 KB","pro":2000},"default":"pro","registered":"free"}`
		c.OpenQuota = "1.5 KB"
	})
	if a := s.addCrew(t, owner, writer, "blob:write"); a.status != 200 {
		t.Fatal(a.body)
	}
	send := func(did syntax.DID, n int) answer {
		t.Helper()
		_, url := s.begin(t, did)
		data := bytes.Repeat([]byte(did.String()), n)[:n]
		data[0] = byte(n)
		if a := s.send(t, http.MethodPatch, url, "", bytes.NewReader(data)); a.status != 202 {
			return a
		}
		return s.send(t, http.MethodPut, url+"?digest="+ociDigest(data), "", nil)
	}
	for _, test := range []struct {
		who    string
		did    syntax.DID
		bytes  int
		status int
	}{
		{"a member over", writer, 2001, 403}, {"a member", writer, 2000, 201}, {"a stranger over", stranger, 1001, 403}, {"a stranger", stranger, 1000, 201},
		{"another, over what is open", reader, 600, 403}, {"another", reader, 500, 201}, {"the owner", owner, 100_000, 201},
	} {
		a := send(test.did, test.bytes)
		if a.status != test.status {
			t.Errorf("%s: %d %s", test.who, a.status, a.body)
		}
		if test.status == 403 && (!strings.Contains(a.body, "DENIED") || !strings.Contains(a.body, "hold")) {
			t.Errorf("%s is told %s", test.who, a.body)
		}
		s.quota.mu.Lock()
		clear(s.quota.used) // time passes
		s.quota.all = openUse{}
		s.quota.mu.Unlock()
	}
	var quota atcr.HoldGetQuotaOutput
	s.send(t, http.MethodGet, "/xrpc/io.atcr.hold.getQuota?userDid="+stranger.String(), "", nil).json(t, &quota)
	if quota.TotalSize != 1000 || quota.Limit == nil || *quota.Limit != 1000 || quota.Tier != "free" {
		t.Errorf("%+v", quota)
	}
	if a := s.send(t, http.MethodGet, "/xrpc/io.atcr.hold.getQuota?userDid=alice", "", nil); a.status != 400 || a.errorName() != "InvalidUserDid" {
		t.Errorf("%d %s", a.status, a.body)
	}
	if a := s.send(t, http.MethodGet, "/xrpc/io.atcr.hold.listTiers", "", nil); !strings.Contains(a.body, `[{"name":"free","quotaBytes":1000,"quotaFormatted":"1 KB","scanOnPush":false},{"name":"pro"`) {
		t.Errorf("%s", a.body)
	}
}

// Would catch an upload that is free for a while because it was completed while somebody counted.
func TestCompletedWhileCounted(t *testing.T) {
	t.Parallel()
	s := startHold(t, newPeople(t), open)
	s.push(t, stranger, []byte("ten bytes."))
	s.quota.mu.Lock()
	clear(s.quota.used) // time passes
	s.quota.all = openUse{}
	s.quota.mu.Unlock()
	s.quota.read = func() { s.quota.stored(stranger, 7) }
	if used, err := s.quota.usage(t.Context(), stranger); err != nil || used != 10 {
		t.Fatalf("%d, %v", used, err)
	}
	s.quota.mu.Lock()
	if u, ok := s.quota.used[stranger]; ok {
		t.Errorf("what was read before an upload is remembered: %+v", u)
	}
	s.quota.mu.Unlock()
	if used, err := s.quota.openUsage(t.Context(), reader); err != nil || used != 17 {
		t.Errorf("all people's: %d, %v", used, err)
	}
	s.quota.read = nil
	if used, err := s.quota.usage(t.Context(), stranger); err != nil || used != 10 {
		t.Fatalf("%d, %v", used, err)
	}
	if _, ok := s.quota.used[stranger]; !ok {
		t.Error("it is read each time")
	}
}

// Would catch records that a push adds behind the deletion of all that is its owner's, because it was let in before.
func TestDeletedWhilePushed(t *testing.T) {
	t.Parallel()
	s := startHold(t, newPeople(t), func(c *Config) {
		open(c)
		c.Quotas = `{"tiers":{"free":"1 KB"},"registered":"free"}`
	})
	blob := s.push(t, writer, []byte("blob"))
	token, deleted := s.token(t, writer, atcr.HoldDeleteUserDataNSID), make(chan int, 1)
	s.quota.mu.Lock()
	clear(s.quota.used) // time passes
	s.quota.mu.Unlock()
	s.quota.read = sync.OnceFunc(func() { // the push was found permitted
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.config.PublicURL+"/xrpc/"+atcr.HoldDeleteUserDataNSID, strings.NewReader("{}"))
		if err != nil {
			t.Error(err)
			return
		}
		req.Header.Set("Authorization", "Bearer "+token)
		req.Header.Set("Content-Type", "application/json")
		answered := make(chan struct{})
		go func() {
			defer close(answered)
			res, err := s.client.Do(req)
			if err != nil {
				t.Error(err)
				deleted <- 0
				return
			}
			_ = res.Body.Close()
			deleted <- res.StatusCode
		}()
		select {
		case <-answered: // or it waits for the push, which nobody can see
		case <-time.After(100 * time.Millisecond):
		}
	})
	if a := s.notify(t, writer, message(writer, "app", "m", blob)); a.status != 200 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	if status := <-deleted; status != 200 {
		t.Errorf("%d", status)
	}
	if left := s.records(t, atcr.HoldLayerNSID); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

func TestParseQuotas(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]Bytes{"5 GB": 5e9, "1.5KiB": 1536, "7": 7, "0": 0, "3 mb": 3e6} {
		if got, err := ParseBytes(text); err != nil || got != want {
			t.Errorf("%q: %d %v", text, got, err)
		}
	}
	for _, text := range []string{"", "GB", "-1", "5 XB", "1e30 TB", "five", "NaN"} {
		if got, err := ParseBytes(text); err == nil {
			t.Errorf("%q: %d", text, got)
		}
	}
	for _, text := range []string{"{", `{"tiers":{"a":"x"}}`, `{"tiers":{},"default":"a"}`, `{"tier":{}}`, "/no/such/file"} {
		if _, err := parseQuotas(text); err == nil {
			t.Errorf("%q is taken", text)
		}
	}
	raw, err := json.Marshal(map[string]any{"tiers": map[string]any{"a": 1}, "registered": "a"})
	if err != nil {
		t.Fatal(err)
	}
	if q, err := parseQuotas(string(raw)); err != nil || q.Tiers["a"] != 1 || q.Registered != "a" {
		t.Errorf("%+v %v", q, err)
	}
}

func ociDigest(data []byte) string { return oci.FromBytes(data).String() }

// Would catch a deletion that says it is done although the ledger still names records of the person.
func TestUserDataIsLeft(t *testing.T) {
	t.Parallel()
	s := startHold(t, newPeople(t), open)
	// What names a record that is not there cannot be deleted: each round finds it again, as those of a push that goes on.
	err := s.db.Write(t.Context(), func(tx *sql.Tx) error {
		_, err := tx.ExecContext(t.Context(), `INSERT INTO layer (rkey, digest, user_did, size, manifest) VALUES ('left', ?, ?, 1, 'm')`, manifestDigest("x"), writer.String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	a := s.call(t, writer, atcr.HoldDeleteUserDataNSID, struct{}{})
	if a.status != http.StatusConflict || a.errorName() != atcr.HoldDeleteUserDataErrorDeletionFailed || !strings.Contains(a.body, "1 records are left") {
		t.Errorf("%d %s", a.status, a.body)
	}
}
