package hold

import (
	"bytes"
	"database/sql"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"
	"github.com/coder/websocket"

	"atcr.io/api/atcr"
	"atcr.io/internal/pds"
)

// Would catch an address that asks without end, one that another's calls are counted for, and a proxy for whose
// clients one limit serves.
func TestRequestLimit(t *testing.T) {
	t.Parallel()
	p, c := newPeople(t), &clock{}
	s := startHold(t, p, func(config *Config) {
		open(config)
		c.set(config)
		config.RequestsPerAddress, config.TrustedProxies = 3, []string{"127.0.0.0/8"}
	})
	get := func(path, from string) answer {
		t.Helper()
		return s.send(t, http.MethodGet, path, "", nil, "X-Forwarded-For", from)
	}
	const path = "/xrpc/com.atproto.server.describeServer"
	for i := range 3 {
		a := get(path, "8.8.8.8")
		if a.status != http.StatusOK || a.header.Get("RateLimit-Limit") != "3" || a.header.Get("RateLimit-Remaining") != strconv.Itoa(2-i) || a.header.Get("RateLimit-Policy") != "3;w=300" {
			t.Fatalf("%d %v", a.status, a.header)
		}
		if reset, err := strconv.ParseInt(a.header.Get("RateLimit-Reset"), 10, 64); err != nil || time.Until(time.Unix(reset, 0)) > 6*time.Minute {
			t.Errorf("%v", a.header)
		}
	}
	if a := get(path, "8.8.8.8"); a.status != http.StatusTooManyRequests || a.errorName() != "RateLimitExceeded" || a.header.Get("Retry-After") == "" || a.header.Get("RateLimit-Remaining") != "0" {
		t.Errorf("%d %v %s", a.status, a.header, a.body)
	}
	for _, other := range []string{"8.8.4.4", "192.168.1.7", "2a00:1450::1"} {
		if a := get(path, other); a.status != http.StatusOK {
			t.Errorf("%s: %d", other, a.status)
		}
	}
	for i := range 5 { // a whole network is one client
		if a := get(path, fmt.Sprintf("2a00:1450::%d", i+2)); (a.status == http.StatusOK) != (i < 2) {
			t.Errorf("%d of a network: %d", i, a.status)
		}
	}
	for range 5 {
		if a := get("/xrpc/_health", "8.8.8.8"); a.status != http.StatusOK {
			t.Errorf("%d", a.status)
		}
		if a := get(path, "192.168.1.7"); a.status != http.StatusOK {
			t.Errorf("a private address: %d", a.status)
		}
	}
	c.advance(6 * time.Minute)
	if a := get(path, "8.8.8.8"); a.status != http.StatusOK {
		t.Errorf("the next window: %d", a.status)
	}
}

// Would catch a person who fills the repo, and an image that is larger than what is left of an hour for good.
func TestRecordLimit(t *testing.T) {
	t.Parallel()
	p, c := newPeople(t), &clock{}
	s := startHold(t, p, func(config *Config) {
		open(config)
		c.set(config)
		config.RecordsPerHour = 3
	})
	for _, did := range []syntax.DID{admin, writer} {
		if a := s.addCrew(t, owner, did, map[syntax.DID]string{admin: "crew:admin", writer: "blob:write"}[did]); a.status != http.StatusOK || a.header.Get("RateLimit-Limit") != "" {
			t.Fatalf("%d %v %s", a.status, a.header, a.body)
		}
	}
	for i := range 4 {
		a := s.addCrew(t, admin, syntax.DID(fmt.Sprint("did:plc:new", i)), "blob:read")
		if (a.status == http.StatusOK) != (i < 3) || a.header.Get("RateLimit-Policy") != "3;w=3600" {
			t.Errorf("%d: %d %v %s", i, a.status, a.header, a.body)
		}
	}
	large := message(writer, "app", "large", s.push(t, writer, []byte("{}")))
	for i := range 5 {
		large.Manifest.Layers = append(large.Manifest.Layers, blobInfo(s.push(t, writer, fmt.Append(nil, "layer", i))))
	}
	if a := s.notify(t, writer, large); a.status != http.StatusOK {
		t.Errorf("%d %s", a.status, a.body)
	}
	if a := s.notify(t, writer, message(writer, "app", "next", s.push(t, writer, []byte("{}")))); a.status != http.StatusTooManyRequests || a.header.Get("Retry-After") == "" {
		t.Errorf("%d %s", a.status, a.body)
	}
	if a := s.notify(t, writer, large); a.status != http.StatusOK { // writes nothing
		t.Errorf("a repeated push: %d %s", a.status, a.body)
	}
	c.advance(time.Hour)
	if a := s.notify(t, writer, message(writer, "app", "next", s.push(t, writer, []byte("{}")))); a.status != http.StatusOK {
		t.Errorf("the next hour: %d %s", a.status, a.body)
	}
}

// Would catch one client that takes all places at the firehose.
func TestSubscribersPerAddress(t *testing.T) {
	t.Parallel()
	s := startHold(t, newPeople(t), func(config *Config) {
		open(config)
		config.TrustedProxies, config.SubscribersPerAddress, config.Subscribers = []string{"127.0.0.1"}, 1, 3
	})
	dial := func(from string) int {
		t.Helper()
		conn, res, err := websocket.Dial(t.Context(), s.config.PublicURL+"/xrpc/com.atproto.sync.subscribeRepos?cursor=0", &websocket.DialOptions{HTTPHeader: http.Header{"X-Forwarded-For": {from}}})
		if err != nil {
			return res.StatusCode
		}
		t.Cleanup(func() { _ = conn.CloseNow() })
		if _, _, err := conn.Read(t.Context()); err != nil {
			t.Fatal(err)
		}
		return res.StatusCode
	}
	for i, want := range []int{101, 429, 101, 101, 429} {
		from := []string{"8.8.8.8", "8.8.8.8", "192.168.1.1", "192.168.1.1", "9.9.9.9"}[i]
		if got := dial(from); got != want {
			t.Errorf("%d, from %s: %d, want %d", i, from, got, want)
		}
	}
}

// Would catch a stranger or an admin who gives the hold a face, and a picture that is not what was sent.
func TestUploadBlob(t *testing.T) {
	t.Parallel()
	s := startHold(t, newPeople(t), open)
	s.addCrew(t, owner, admin, "crew:admin")
	s.addCrew(t, owner, writer, "blob:write")
	upload := func(token string, body []byte) answer {
		return s.send(t, http.MethodPost, "/xrpc/"+uploadBlobNSID, token, bytes.NewReader(body), "Content-Type", "image/png")
	}
	for did, want := range map[syntax.DID]int{nobody: 401, stranger: 403, writer: 403, admin: 403, owner: 200} {
		if a := upload(s.token(t, did, uploadBlobNSID), defaultAvatar); a.status != want {
			t.Errorf("%q: %d %s", did, a.status, a.body)
		}
	}
	token := s.token(t, owner, uploadBlobNSID)
	for i, want := range []int{200, 401} {
		if a := upload(token, defaultAvatar); a.status != want {
			t.Errorf("use %d of a token: %d %s", i+1, a.status, a.body)
		}
	}
	if a := upload(s.token(t, owner, "com.atproto.repo.createRecord"), defaultAvatar); a.status != 401 {
		t.Errorf("a token for another call: %d %s", a.status, a.body)
	}
	if a := upload(s.token(t, owner, uploadBlobNSID), make([]byte, pds.MaxBlobBytes+1)); a.status != http.StatusRequestEntityTooLarge {
		t.Errorf("too large: %d %s", a.status, a.body)
	}
}

// Would catch registrations without number by one who leaves and comes back.
func TestRegistrationsOfOneDay(t *testing.T) {
	t.Parallel()
	p, c := newPeople(t), &clock{}
	s := startHold(t, p, func(config *Config) { open(config); c.set(config); config.Registrations = 2 })
	join := func() int { return s.call(t, stranger, atcr.HoldRequestCrewNSID, struct{}{}).status }
	for i, want := range []int{200, 200, 429} {
		if got := join(); got != want {
			t.Errorf("registration %d: %d", i+1, got)
		}
		if a := s.call(t, stranger, atcr.HoldDeleteUserDataNSID, struct{}{}); a.status != http.StatusOK {
			t.Fatal(a.body)
		}
	}
	c.advance(25 * time.Hour)
	if got := join(); got != http.StatusOK {
		t.Errorf("the day after: %d", got)
	}
}

// Would catch a deletion in several commits, one that a push at the same time escapes, one that breaks that push,
// and one that takes bytes which somebody else's image names.
func TestDeleteUserDataDuringPushes(t *testing.T) {
	t.Parallel()
	p := newPeople(t)
	s := startHold(t, p, open)
	if a := s.call(t, writer, atcr.HoldRequestCrewNSID, struct{}{}); a.status != http.StatusOK {
		t.Fatal(a.body)
	}
	shared := s.push(t, writer, []byte("shared"))
	if a := s.notify(t, stranger, message(stranger, "app", "theirs", shared)); a.status != http.StatusOK {
		t.Fatal(a.body)
	}
	for i := range 5 {
		if a := s.notify(t, writer, message(writer, "app", fmt.Sprint("m", i), shared)); a.status != http.StatusOK {
			t.Fatal(a.body)
		}
	}
	if err := s.publishStats(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, url := s.begin(t, writer)
	if a := s.send(t, http.MethodPatch, url, "", strings.NewReader("half")); a.status != http.StatusAccepted {
		t.Fatal(a.body)
	}
	commits := 0
	s.repo.OnCommit(func([]pds.Op) { commits++ })
	if a := s.call(t, writer, atcr.HoldDeleteUserDataNSID, struct{}{}); a.status != http.StatusOK || !strings.Contains(a.body, `"layersDeleted":5`) {
		t.Fatalf("%d %s", a.status, a.body)
	}
	if commits != 1 {
		t.Errorf("%d commits", commits)
	}
	digest := ociDigest([]byte("half and half"))
	if a := s.send(t, http.MethodPatch, url, "", strings.NewReader(" and half")); a.status != http.StatusAccepted {
		t.Errorf("%d %s", a.status, a.body)
	}
	if a := s.send(t, http.MethodPut, url+"?digest="+digest, "", nil); a.status != http.StatusCreated {
		t.Errorf("the push goes on: %d %s", a.status, a.body)
	}
	if a := s.send(t, http.MethodGet, s.blobPath(shared), "", nil); a.status != http.StatusOK || a.body != "shared" {
		t.Errorf("%d %s", a.status, a.body)
	}
	var pushes sync.WaitGroup
	for i := range 8 {
		pushes.Go(func() {
			if a := s.notify(t, writer, message(writer, "app", fmt.Sprint("again", i), shared)); a.status != http.StatusOK {
				t.Errorf("%d %s", a.status, a.body)
			}
		})
	}
	for range 3 {
		if a := s.call(t, writer, atcr.HoldDeleteUserDataNSID, struct{}{}); a.status != http.StatusOK {
			t.Errorf("%d %s", a.status, a.body)
		}
	}
	pushes.Wait()
	if a := s.call(t, writer, atcr.HoldDeleteUserDataNSID, struct{}{}); a.status != http.StatusOK {
		t.Errorf("%d %s", a.status, a.body)
	}
	for rkey, raw := range s.records(t, atcr.HoldLayerNSID) {
		if strings.Contains(raw, writer.String()) {
			t.Errorf("left: %s %s", rkey, raw)
		}
	}
	if blobs, size, err := s.ledger.Usage(t.Context(), writer); err != nil || blobs != 0 || size != 0 {
		t.Errorf("%d blobs, %d bytes, %v", blobs, size, err)
	}
}

// Would catch a config blob of which it is remembered whose images have it, when one of those went with all that
// was somebody's; and a push or pull that is not counted when it comes again, since it failed the first time.
func TestPullsOfWhatWasShared(t *testing.T) {
	t.Parallel()
	s := startHold(t, newPeople(t), func(config *Config) { open(config); config.TrustedProxies = []string{"127.0.0.1"} })
	config := s.push(t, writer, []byte("{}"))
	for _, did := range []syntax.DID{writer, stranger} {
		if a := s.notify(t, did, message(did, "app", "m", config)); a.status != http.StatusOK {
			t.Fatal(a.body)
		}
	}
	get := func(from string) {
		t.Helper()
		if a := s.send(t, http.MethodGet, s.blobPath(config), "", nil, "X-Forwarded-For", from); a.status != http.StatusOK {
			t.Fatal(a.body)
		}
	}
	get("8.8.8.8") // of two images nobody knows which was pulled
	if a := s.call(t, stranger, atcr.HoldDeleteUserDataNSID, struct{}{}); a.status != http.StatusOK {
		t.Fatal(a.body)
	}
	get("8.8.4.4")
	fail := func(on bool) {
		t.Helper()
		query := `DROP TRIGGER full`
		if on {
			query = `CREATE TRIGGER full BEFORE UPDATE ON pending_stats BEGIN SELECT raise(ABORT, 'full'); END`
		}
		if err := s.db.Write(t.Context(), func(tx *sql.Tx) error { _, err := tx.Exec(query); return err }); err != nil {
			t.Fatal(err)
		}
	}
	in := message(writer, "app", "m", config)
	in.Operation = "pull"
	again := message(writer, "app", "another", config)
	fail(true)
	get("8.8.8.4")
	for _, in := range []atcr.HoldNotifyManifestInput{in, again} {
		if a := s.notify(t, writer, in); a.status != http.StatusInternalServerError {
			t.Fatalf("%d %s", a.status, a.body)
		}
	}
	fail(false)
	get("8.8.8.4")
	for _, in := range []atcr.HoldNotifyManifestInput{in, again} {
		if a := s.notify(t, writer, in); a.status != http.StatusOK {
			t.Fatalf("%d %s", a.status, a.body)
		}
	}
	if err := s.publishStats(t.Context()); err != nil {
		t.Fatal(err)
	}
	if r := s.records(t, atcr.HoldStatsNSID)[atcr.StatsRkey(writer.String(), "app")]; !strings.Contains(r, `"pullCount":3`) || !strings.Contains(r, `"pushCount":2`) {
		t.Errorf("%s", r)
	}
}

// Would catch pulls of all the clients behind a proxy that count as one.
func TestPullsBehindAProxy(t *testing.T) {
	t.Parallel()
	s := startHold(t, newPeople(t), func(config *Config) { open(config); config.TrustedProxies = []string{"127.0.0.1"} })
	config := s.push(t, writer, []byte("{}"))
	if a := s.notify(t, writer, message(writer, "app", "m", config)); a.status != http.StatusOK {
		t.Fatal(a.body)
	}
	for _, from := range []string{"8.8.8.8", "8.8.4.4", "8.8.8.8"} {
		if a := s.send(t, http.MethodGet, s.blobPath(config), "", nil, "X-Forwarded-For", from); a.status != http.StatusOK {
			t.Fatal(a.body)
		}
	}
	if err := s.publishStats(t.Context()); err != nil {
		t.Fatal(err)
	}
	if r := s.records(t, atcr.HoldStatsNSID)[atcr.StatsRkey(writer.String(), "app")]; !strings.Contains(r, `"pullCount":2`) {
		t.Errorf("%s", r)
	}
}
