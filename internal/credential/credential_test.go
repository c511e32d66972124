package credential

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/test/databases"
)

const (
	alice = syntax.DID("did:plc:alice")
	bob   = syntax.DID("did:plc:bob")
)

// world is a store with a clock that stands still.
type world struct {
	*Store
	kind databases.Database
	mu   sync.Mutex
	at   time.Time
}

func (w *world) now() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.at
}

func (w *world) pass(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.at = w.at.Add(d)
}

func TestMain(m *testing.M) { databases.Main(m) }

func newWorld(t *testing.T, d databases.Database) *world {
	t.Helper()
	w := &world{kind: d, at: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
	w.open(t, 1)
	return w
}

func (w *world) open(t *testing.T, secret byte, accepted ...byte) {
	t.Helper()
	db := w.kind.Open(t)
	c := Config{Secret: bytes.Repeat([]byte{secret}, 32), Now: w.now}
	for _, b := range accepted {
		c.Accepted = append(c.Accepted, bytes.Repeat([]byte{b}, 32))
	}
	var err error
	if w.Store, err = Open(t.Context(), db, c); err != nil {
		t.Fatal(err)
	}
}

func (w *world) begin(t *testing.T) Code {
	t.Helper()
	c, err := w.Begin(t.Context(), Request{Name: "laptop\x1b[2J", Platform: "linux/amd64", Address: "192.0.2.1", Caller: "192.0.2.1"})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (w *world) polled(t *testing.T, c Code) (string, error) {
	t.Helper()
	w.pass(PollInterval)
	secret, _, err := w.Poll(t.Context(), "192.0.2.1", c.DeviceCode)
	return secret, err
}

// Would catch a code that is good twice, for nobody, or for somebody other than who approved it.
func TestDevice(t *testing.T) {
	t.Parallel()
	databases.Each(t, testDevice)
}

func testDevice(t *testing.T, d databases.Database) {
	w := newWorld(t, d)
	ctx := t.Context()
	c := w.begin(t)
	if _, err := w.polled(t, c); !errors.Is(err, ErrPending) {
		t.Errorf("before anybody decided: %v", err)
	}
	asked, err := w.Pending(ctx, alice, "192.0.2.9", strings.ToLower(strings.ReplaceAll(c.UserCode, "-", " ")))
	if err != nil || asked.Name != "laptop[2J" || asked.Platform != "linux/amd64" || asked.Address != "192.0.2.1" {
		t.Errorf("the machine is shown as %+v, %v", asked, err)
	}
	if err := w.Decide(ctx, alice, "192.0.2.9", c.UserCode, true); err != nil {
		t.Fatal(err)
	}
	if err := w.Decide(ctx, bob, "192.0.2.9", c.UserCode, true); !errors.Is(err, ErrCode) {
		t.Errorf("decided a second time: %v", err)
	}
	secret, err := w.polled(t, c)
	if err != nil || !strings.HasPrefix(secret, DevicePrefix) {
		t.Fatalf("the secret: %q, %v", secret, err)
	}
	if again, err := w.polled(t, c); !errors.Is(err, ErrCode) || again != "" {
		t.Errorf("redeemed a second time: %q, %v", again, err)
	}
	got, err := w.Verify(ctx, secret)
	if err != nil || got.DID != alice || got.Kind != Device {
		t.Errorf("the secret is of %+v, %v", got, err)
	}
	for _, wrong := range []string{"", DevicePrefix, secret + "A", secret[:len(secret)-1], TokenPrefix + strings.TrimPrefix(secret, DevicePrefix), c.DeviceCode, c.UserCode} {
		if _, err := w.Verify(ctx, wrong); !errors.Is(err, ErrUnknown) {
			t.Errorf("%q is verified: %v", wrong, err)
		}
	}
	w.open(t, 1) // restarted
	if _, err := w.Verify(ctx, secret); err != nil {
		t.Errorf("after a restart: %v", err)
	}
	if err := w.Revoke(ctx, bob, got.ID); !errors.Is(err, ErrUnknown) {
		t.Errorf("revoked by somebody else: %v", err)
	}
	if err := w.Revoke(ctx, alice, got.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Verify(ctx, secret); !errors.Is(err, ErrUnknown) {
		t.Errorf("after it was revoked: %v", err)
	}
}

// Would catch codes that live on after their time or after a refusal, and a poll that need not wait.
func TestCodeEnds(t *testing.T) {
	t.Parallel()
	databases.Each(t, testCodeEnds)
}

func testCodeEnds(t *testing.T, d databases.Database) {
	w := newWorld(t, d)
	ctx := t.Context()
	late, refused, quick, approvedLate := w.begin(t), w.begin(t), w.begin(t), w.begin(t)
	if err := w.Decide(ctx, alice, "a", refused.UserCode, false); err != nil {
		t.Fatal(err)
	}
	if _, err := w.polled(t, refused); !errors.Is(err, ErrDenied) {
		t.Errorf("a refused code: %v", err)
	}
	if _, err := w.polled(t, quick); !errors.Is(err, ErrPending) {
		t.Error(err)
	}
	if _, _, err := w.Poll(ctx, "192.0.2.1", quick.DeviceCode); !errors.Is(err, ErrSlowDown) {
		t.Errorf("polled again at once: %v", err)
	}
	if _, err := w.polled(t, quick); !errors.Is(err, ErrSlowDown) {
		t.Errorf("polled without waiting longer: %v", err)
	}
	if err := w.Decide(ctx, alice, "a", approvedLate.UserCode, true); err != nil {
		t.Fatal(err)
	}
	w.pass(CodeLifetime)
	for what, c := range map[string]Code{"pending": late, "approved": approvedLate} {
		if secret, err := w.polled(t, c); !errors.Is(err, ErrExpired) || secret != "" {
			t.Errorf("an expired code that was %s: %q, %v", what, secret, err)
		}
	}
	if err := w.Decide(ctx, alice, "a", late.UserCode, true); !errors.Is(err, ErrCode) {
		t.Errorf("an expired code is approved: %v", err)
	}
	if _, err := w.polled(t, Code{DeviceCode: "made up"}); !errors.Is(err, ErrCode) {
		t.Errorf("a code that nobody gave out: %v", err)
	}
}

// Would catch polls that make writers wait although there is nothing to write, and that go on without an end.
func TestMadeUpPolls(t *testing.T) {
	t.Parallel()
	databases.Each(t, func(t *testing.T, d databases.Database) {
		w := newWorld(t, d)
		poll := func() error {
			_, _, err := w.Poll(t.Context(), "192.0.2.7", "made up")
			if !errors.Is(err, ErrCode) {
				return fmt.Errorf("poll: %w", err)
			}
			return nil
		}
		err := w.db.Write(t.Context(), func(*sql.Tx) error { return poll() }) // nobody else writes now
		for range maxPollsPerAddress - 1 {
			err = errors.Join(err, poll())
		}
		if err != nil {
			t.Fatal(err)
		}
		_, _, err = w.Poll(t.Context(), "192.0.2.7", "made up")
		if limit, ok := errors.AsType[*LimitError](err); !ok || limit.RetryAfter != limitWindow {
			t.Errorf("one more: %v", err)
		}
		if _, err := w.polled(t, w.begin(t)); !errors.Is(err, ErrPending) {
			t.Errorf("another address: %v", err)
		}
	})
}

// Would catch guessing without an end, by one account from many addresses or from one address by many
// accounts, and a right code that is counted.
func TestGuesses(t *testing.T) {
	t.Parallel()
	databases.Each(t, testGuesses)
}

func testGuesses(t *testing.T, d databases.Database) {
	w := newWorld(t, d)
	c := w.begin(t)
	tries := map[string]func(n int) (syntax.DID, string){
		"one account":       func(n int) (syntax.DID, string) { return alice, fmt.Sprint("address ", n) },
		"one address":       func(n int) (syntax.DID, string) { return syntax.DID(fmt.Sprint("did:plc:", n)), "address" },
		"account + address": func(int) (syntax.DID, string) { return bob, "another" },
	}
	for what, who := range tries {
		for range 2 * maxGuesses { // the right one costs nothing
			did, address := who(0)
			if _, err := w.Pending(t.Context(), did, address, c.UserCode); err != nil {
				t.Fatalf("%s: %v", what, err)
			}
		}
		wrong, limits := 0, 0
		for n := range 1000 {
			did, address := who(n)
			_, err := w.Pending(t.Context(), did, address, fmt.Sprintf("BCDF-%04d", n))
			if _, ok := errors.AsType[*LimitError](err); ok {
				limits++
			} else if errors.Is(err, ErrCode) {
				wrong++
			}
		}
		if wrong != maxGuesses || limits != 1000-maxGuesses {
			t.Errorf("%s: %d of a thousand codes were looked at, want %d", what, wrong, maxGuesses)
		}
	}
	for range maxCodesPerAddress - 1 {
		w.begin(t)
	}
	if _, err := w.Begin(t.Context(), Request{Address: "192.0.2.1", Caller: "192.0.2.1"}); err == nil {
		t.Error("one address is given codes without an end")
	}
}

// Would catch two processes that both redeem one code.
func TestPollRace(t *testing.T) {
	t.Parallel()
	databases.Each(t, testPollRace)
}

func testPollRace(t *testing.T, d databases.Database) {
	w := newWorld(t, d)
	c := w.begin(t)
	if err := w.Decide(t.Context(), alice, "a", c.UserCode, true); err != nil {
		t.Fatal(err)
	}
	w.pass(PollInterval)
	var wg sync.WaitGroup
	secrets := make([]string, 8)
	for i := range secrets {
		wg.Go(func() { secrets[i], _, _ = w.Poll(context.Background(), "192.0.2.1", c.DeviceCode) })
	}
	wg.Wait()
	if got := strings.Join(secrets, ""); strings.Count(got, DevicePrefix) != 1 {
		t.Errorf("secrets given out for one code: %q", secrets)
	}
}

// Would catch an access token that outlives its time, or is made for nothing.
func TestToken(t *testing.T) {
	t.Parallel()
	databases.Each(t, testToken)
}

func testToken(t *testing.T, d databases.Database) {
	w := newWorld(t, d)
	ctx := t.Context()
	scope := Scope{Repositories: []string{"app", "team/*"}, Actions: []string{"pull"}}
	secret, made, err := w.NewToken(ctx, alice, "CI", scope, time.Hour)
	if err != nil || !strings.HasPrefix(secret, TokenPrefix) {
		t.Fatal(secret, err)
	}
	w.pass(time.Hour - time.Second)
	if got, err := w.Verify(ctx, secret); err != nil || got.ID != made.ID || len(got.Scope.Repositories) != 2 {
		t.Errorf("%+v, %v", got, err)
	}
	w.pass(time.Second)
	if _, err := w.Verify(ctx, secret); !errors.Is(err, ErrUnknown) {
		t.Errorf("after its time: %v", err)
	}
	if all, err := w.List(ctx, alice); err != nil || len(all) > 0 {
		t.Errorf("an expired token is listed: %v, %v", all, err)
	}
	for _, bad := range []Scope{{}, {Actions: []string{"admin"}}, {Actions: []string{"pull"}, Repositories: []string{"a*b"}}, {Actions: []string{"pull"}, Repositories: []string{"*"}},
		{Actions: []string{"pull"}, Repositories: []string{"/x"}}, {Actions: []string{"pull"}, Repositories: []string{"Ä"}}, {Actions: []string{"pull"}, Repositories: []string{"x/**"}}} {
		if _, _, err := w.NewToken(ctx, alice, "x", bad, time.Hour); !errors.Is(err, ErrScope) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
	for range maxPerPerson {
		if _, _, err := w.NewToken(ctx, alice, "x", scope, time.Hour); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := w.NewToken(ctx, alice, "x", scope, time.Hour); !errors.Is(err, ErrTooMany) {
		t.Errorf("one more than allowed: %v", err)
	}
	if err := w.RevokeAll(ctx, alice); err != nil {
		t.Fatal(err)
	}
	if all, err := w.List(ctx, alice); err != nil || len(all) > 0 {
		t.Errorf("after all were revoked: %v, %v", all, err)
	}
}

// Would catch a token for one repository that opens another, or another's.
func TestScope(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		scope       Scope
		own, action string
		want        bool
	}{
		{Scope{}, "app", "delete", true},
		{Scope{}, "", "pull", true},
		{Scope{Actions: []string{"pull"}}, "app", "push", false},
		{Scope{Actions: []string{"pull"}}, "", "pull", true},
		{Scope{Repositories: []string{"app"}}, "app", "push", true},
		{Scope{Repositories: []string{"app"}}, "app2", "push", false},
		{Scope{Repositories: []string{"app"}}, "team/app", "push", false},
		{Scope{Repositories: []string{"app"}}, "", "pull", false},
		{Scope{Repositories: []string{"team/*"}}, "team/app/x", "push", true},
		{Scope{Repositories: []string{"team/*"}}, "team", "push", false},
		{Scope{Repositories: []string{"team/*"}}, "teams/app", "push", false},
		{Scope{Repositories: []string{"team/*"}}, "", "pull", false},
	} {
		if got := test.scope.Allows(test.own, test.action); got != test.want {
			t.Errorf("%+v on %q: %s is %v", test.scope, test.own, test.action, got)
		}
	}
}

// Would catch a database from which secrets could be read, and one that opens with another key.
func TestAtRest(t *testing.T) {
	t.Parallel()
	databases.Each(t, testAtRest)
}

func testAtRest(t *testing.T, d databases.Database) {
	w := newWorld(t, d)
	c := w.begin(t)
	secret, _, err := w.NewToken(t.Context(), alice, "x", Scope{Actions: []string{"pull"}}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	var all bytes.Buffer
	rows, err := w.db.Reader().QueryContext(t.Context(), `SELECT hash, user_hash, name FROM device_code UNION ALL SELECT hash, hash, id FROM credential`)
	if err != nil {
		t.Fatal(err)
	}
	for rows.Next() {
		var hash, userHash []byte
		var text string
		if err := rows.Scan(&hash, &userHash, &text); err != nil {
			t.Fatal(err)
		}
		all.WriteString(string(hash) + string(userHash) + text)
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil || all.Len() == 0 {
		t.Fatal(err)
	}
	for _, plain := range []string{secret, c.DeviceCode, c.UserCode, plainCode(c.UserCode)} {
		if strings.Contains(all.String(), plain) {
			t.Errorf("%q stands in the database", plain)
		}
	}
	w.open(t, 2)
	if _, err := w.Verify(t.Context(), secret); !errors.Is(err, ErrUnknown) {
		t.Errorf("with another key: %v", err)
	}
	w.open(t, 2, 1) // the key is exchanged: what is used in the meantime goes on
	if _, err := w.Verify(t.Context(), secret); err != nil {
		t.Errorf("while the key is exchanged: %v", err)
	}
	w.open(t, 2)
	if _, err := w.Verify(t.Context(), secret); err != nil {
		t.Errorf("after the key was exchanged: %v", err)
	}
}
