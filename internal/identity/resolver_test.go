package identity

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"
)

// gate answers only when it is opened, and tells that it was asked.
func gate(text string) (answer http.HandlerFunc, arrived chan struct{}, open chan struct{}) {
	arrived, open = make(chan struct{}, 100), make(chan struct{})
	return func(w http.ResponseWriter, r *http.Request) {
		arrived <- struct{}{}
		select {
		case <-open:
			say(text)(w, r)
		case <-r.Context().Done():
		}
	}, arrived, open
}

// Would catch a directory that is asked by each of many callers, and one caller's hurry that becomes the
// others' error.
func TestSingleFlight(t *testing.T) {
	t.Parallel()
	answer, arrived, open := gate(document(t, alice, "alice.example", k256(t), "Multikey"))
	plc := newServer(t, answer)
	r, _ := newResolver(Config{PLCURL: plc.URL})
	hurried, cancel := context.WithCancel(t.Context())
	first := make(chan error, 1)
	go func() {
		_, err := r.LookupDID(hurried, alice) // the one that asks
		first <- err
	}()
	<-arrived
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if i, err := r.LookupDID(t.Context(), alice); err != nil || i.DID != alice {
				t.Errorf("a patient caller: %v", err)
			}
		})
	}
	cancel()
	if err := <-first; !errors.Is(err, ErrUnavailable) || !errors.Is(err, context.Canceled) {
		t.Errorf("the hurried caller: %v", err)
	}
	close(open)
	wg.Wait()
	if plc.asked() != 1 {
		t.Errorf("asked %d times", plc.asked())
	}
}

// Would catch a caller that waits longer than it said for a slow server.
func TestSlowServer(t *testing.T) {
	t.Parallel()
	answer, arrived, open := gate("")
	plc := newServer(t, answer)
	defer close(open)
	r, _ := newResolver(Config{PLCURL: plc.URL})
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-arrived; cancel() }()
	_, err := r.LookupDID(ctx, alice)
	if !errors.Is(err, ErrUnavailable) || !errors.Is(err, context.Canceled) || len(r.own) != 1 {
		t.Errorf("%v, with %d look-ups under way", err, len(r.own))
	}
}

// Would catch look-ups without number at once, and a name that is called missing because others were busy.
func TestBusy(t *testing.T) {
	t.Parallel()
	plc := newServer(t, say(document(t, alice, "alice.example", k256(t), "Multikey")))
	r, _ := newResolver(Config{PLCURL: plc.URL})
	for range maxLookups {
		r.own <- struct{}{}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	_, err := slot(ctx, r, alice, r.fetchDID)
	if !errors.Is(err, errBusy) || !errors.Is(err, ErrUnavailable) || plc.asked() != 0 {
		t.Errorf("%v, asked %d times", err, plc.asked())
	}
	<-r.own
	if _, err := r.LookupDID(t.Context(), alice); err != nil || len(r.own) != maxLookups-1 {
		t.Errorf("%v, %d slots taken", err, len(r.own))
	}
}

// Would catch an answer or a failure that is believed too long, or not at all.
func TestCache(t *testing.T) {
	t.Parallel()
	good := document(t, alice, "alice.example", k256(t), "Multikey")
	plc := newServer(t, status(404))
	r, clock := newResolver(Config{PLCURL: plc.URL})
	expect := func(when string, want error, asked int) {
		t.Helper()
		if _, err := r.LookupDID(t.Context(), alice); !errors.Is(err, want) || plc.asked() != asked {
			t.Errorf("%s: asked %d times, want %d: %v", when, plc.asked(), asked, err)
		}
	}
	expect("first", ErrNotFound, 1)
	plc.set(say(good))
	expect("at once", ErrNotFound, 1)
	clock.add(failureFor - time.Second)
	expect("nearly over", ErrNotFound, 1)
	clock.add(time.Second)
	expect("the failure is over", nil, 2)
	clock.add(freshFor - time.Second)
	expect("fresh", nil, 2)
	clock.add(time.Second)
	expect("asked again", nil, 3)

	// An outage: the old answer stands, and the directory is left in peace for a while.
	plc.set(status(500))
	clock.add(freshFor)
	expect("outage", nil, 4)
	expect("outage, at once", nil, 4)
	clock.add(failureFor)
	expect("outage, later", nil, 5)
	clock.add(staleFor - freshFor - failureFor - time.Second)
	expect("outage, nearly a day", nil, 6)
	clock.add(time.Second)
	expect("outage, a day", ErrUnavailable, 7)
	expect("outage, a day, at once", ErrUnavailable, 7)
	plc.set(say(good))
	clock.add(failureFor)
	expect("it is back", nil, 8)

	// Gone is an answer, not an outage.
	plc.set(status(410))
	clock.add(freshFor)
	expect("tombstone", ErrNotFound, 9)
}

// Would catch an answer that was asked for before a change, comes after one that was asked for behind it, and is believed
// for ten minutes.
func TestLateAnswer(t *testing.T) {
	t.Parallel()
	old, arrived, open := gate(document(t, alice, "old.example", k256(t), "Multikey"))
	plc := newServer(t, old)
	r, _ := newResolver(Config{PLCURL: plc.URL})
	first := make(chan error, 1)
	go func() {
		_, err := r.LookupDID(t.Context(), alice)
		first <- err
	}()
	<-arrived
	plc.set(say(document(t, alice, "new.example", k256(t), "Multikey")))
	if i, err := r.Refresh(t.Context(), alice); err != nil || i.Handle != "new.example" {
		t.Fatal(i, err)
	}
	close(open)
	if err := <-first; err != nil {
		t.Fatal(err)
	}
	if i, err := r.LookupDID(t.Context(), alice); err != nil || i.Handle != "new.example" {
		t.Errorf("%s, %v", i.Handle, err)
	}
}

// Would catch a rotation that is never seen, and look-ups that strangers can order without end.
func TestRefresh(t *testing.T) {
	t.Parallel()
	old, fresh := k256(t), k256(t)
	plc := newServer(t, say(document(t, alice, "alice.example", old, "Multikey")))
	r, clock := newResolver(Config{PLCURL: plc.URL})
	if _, err := r.SigningKey(t.Context(), alice); err != nil {
		t.Fatal(err)
	}
	want, err := fresh.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	plc.set(say(document(t, alice, "alice.example", fresh, "Multikey")))
	key, err := r.RefreshSigningKey(t.Context(), alice)
	if err != nil || !key.Equal(want) {
		t.Errorf("refreshed: %v", err)
	}
	if key, err = r.SigningKey(t.Context(), alice); err != nil || !key.Equal(want) {
		t.Errorf("after it: %v", err)
	}
	if _, err := r.Refresh(t.Context(), alice); !errors.Is(err, ErrUnavailable) || plc.asked() != 2 {
		t.Errorf("at once again: %v, asked %d times", err, plc.asked())
	}
	clock.add(refreshEvery + time.Second)
	for i := range maxRefreshes {
		if _, err := r.Refresh(t.Context(), syntax.DID("did:plc:"+string(rune('a'+i%26))+string(rune('a'+i/26)))); errors.Is(err, ErrUnavailable) {
			t.Errorf("%d: %v", i, err)
		}
	}
	asked := plc.asked()
	if _, err := r.Refresh(t.Context(), alice); !errors.Is(err, ErrUnavailable) || plc.asked() != asked {
		t.Errorf("one too many: %v", err)
	}
	clock.add(refreshEvery + time.Second)
	if _, err := r.Refresh(t.Context(), alice); err != nil {
		t.Errorf("later: %v", err)
	}
}

// Would catch a bad token, sent during an outage of the directory, that takes a person's good key away.
func TestRefreshDuringOutage(t *testing.T) {
	t.Parallel()
	plc := newServer(t, say(document(t, alice, "alice.example", k256(t), "Multikey")))
	r, _ := newResolver(Config{PLCURL: plc.URL})
	if _, err := r.SigningKey(t.Context(), alice); err != nil {
		t.Fatal(err)
	}
	plc.set(status(503))
	if _, err := r.RefreshSigningKey(t.Context(), alice); !errors.Is(err, ErrUnavailable) {
		t.Errorf("refresh: %v", err)
	}
	if _, err := r.SigningKey(t.Context(), alice); err != nil {
		t.Errorf("what was known is gone: %v", err)
	}
}
