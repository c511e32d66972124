package appview

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"atcr.io/api/atcr"
	"atcr.io/internal/devnet"
	"atcr.io/internal/oci"
)

// Would catch an AppView that reads as many lists of one PDS at once as it is asked for, and keeps everybody waiting
// that comes on top.
func TestListsAtOnce(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	const asked = 2 * (listsAtOnceOfHost + listsWaitingOfHost)
	tags := map[string]any{}
	for i := range asked {
		repository := "app" + strconv.Itoa(i)
		tags[atcr.TagRkey(repository, "1.0")] = map[string]any{
			"$type": atcr.TagNSID, "repository": repository, "tag": "1.0", "createdAt": "2026-01-01T00:00:00Z", "manifestDigest": newImage("x").digest.String(),
		}
	}
	n.createAll(n.alice, atcr.TagNSID, tags)
	var reading, most atomic.Int64
	open := make(chan struct{})
	n.PDS.Inject(devnet.Method("com.atproto.repo.listRecords"), func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		now := reading.Add(1)
		defer reading.Add(-1)
		for seen := most.Load(); now > seen && !most.CompareAndSwap(seen, now); seen = most.Load() {
		}
		select {
		case <-open:
		case <-r.Context().Done():
		}
		next.ServeHTTP(w, r)
	})
	answers := make(chan answer, asked)
	for i := range asked {
		path := "/v2/alice.test/app" + strconv.Itoa(i) + "/tags/list"
		go func() { answers <- n.nobody().do(http.MethodGet, path, nil) }()
	}
	for range asked / 2 { // who finds no room is told at once
		got := <-answers
		if got.status != http.StatusServiceUnavailable || got.header.Get("Retry-After") == "" || got.code() != string(oci.CodeTooManyRequests) {
			t.Errorf("%d %v %s", got.status, got.header, got.body)
		}
	}
	n.eventually("all who have a turn are at the PDS", func() bool { return reading.Load() == listsAtOnceOfHost })
	close(open)
	for range asked / 2 {
		if got := <-answers; got.status != http.StatusOK || !strings.Contains(got.body, `["1.0"]`) {
			t.Errorf("who waited: %d %s", got.status, got.body)
		}
	}
	if most.Load() != listsAtOnceOfHost {
		t.Errorf("%d lists were read at once", most.Load())
	}
}

// Would catch a turn that is lost with who gave up waiting for it, and hosts that use up what there is in all.
func TestTurns(t *testing.T) {
	t.Parallel()
	turns := newTurns()
	var done []func()
	take := func(ctx context.Context, host int) error {
		end, err := turns.take(ctx, fmt.Sprint("host", host))
		if err == nil {
			done = append(done, end)
		}
		return err
	}
	for i := range listsAtOnce {
		if err := take(t.Context(), i/listsAtOnceOfHost); err != nil {
			t.Fatal(err)
		}
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	for i := range 2 * (listsWaiting + listsWaitingOfHost) {
		for _, host := range []int{0, 1000 + i} { // one whose turns are taken, and one that waits for a turn of all
			if err := take(gone, host); !errors.Is(err, context.Canceled) {
				t.Fatalf("after %d who gave up: %v", i, err)
			}
		}
	}
	if turns.of.Len() != listsAtOnce/listsAtOnceOfHost {
		t.Errorf("%d hosts are remembered", turns.of.Len())
	}
	waiting := make(chan error, listsWaiting+1)
	for i := range listsWaiting + 1 {
		go func() {
			end, err := turns.take(t.Context(), fmt.Sprint("waits", i))
			if err == nil {
				end()
			}
			waiting <- err
		}()
	}
	if err := <-waiting; oci.AsError(err).HTTPStatus() != http.StatusServiceUnavailable {
		t.Errorf("beyond the queue: %v", err)
	}
	for _, end := range done {
		end()
	}
	for range listsWaiting {
		if err := <-waiting; err != nil {
			t.Error(err)
		}
	}
	if turns.of.Len() != 0 || turns.all.Len() != 0 {
		t.Errorf("%d hosts are remembered, %d lines of all", turns.of.Len(), turns.all.Len())
	}
}
