package pds_test

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bluesky-social/indigo/atproto/atcrypto"

	"atcr.io/internal/pds"
)

// soon fails the test where fn hangs: a repo that can no longer commit must not hang the suite.
func soon(t *testing.T, fn func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); fn() }()
	select {
	case <-done:
	case <-time.After(time.Minute):
		t.Fatal("the repo takes no writes any more")
	}
}

// apply is Apply, with a panic that reaches the caller as an error.
func apply(t *testing.T, r *pds.Repo, writes ...pds.Write) (result pds.Result, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	return r.Apply(t.Context(), writes, nil)
}

// faultyKey panics instead of signing while armed.
type faultyKey struct {
	*atcrypto.PrivateKeyK256
	armed atomic.Bool
	fired atomic.Int64
}

func (k *faultyKey) HashAndSign(b []byte) ([]byte, error) {
	if k.armed.Load() {
		k.fired.Add(1)
		panic("injected")
	}
	return k.PrivateKeyK256.HashAndSign(b)
}

// Would catch callers who are told that a commit was made that was not, and a repo that takes no writes
// after a panic.
func TestPanicInCommit(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	key := &faultyKey{PrivateKeyK256: w.key}
	host, err := pds.Open(t.Context(), pds.Config{DB: w.db, Logger: adapter().Logger})
	if err != nil {
		t.Fatal(err)
	}
	if w.repo, err = host.AddRepo(t.Context(), did, key, ""); err != nil {
		t.Fatal(err)
	}
	key.armed.Store(true)
	soon(t, func() {
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				if result, err := apply(t, w.repo, put(fmt.Sprintf("p%d", i), i)); err == nil {
					t.Errorf("a commit that panicked was acknowledged: %+v", result)
				}
			})
		}
		wg.Wait()
	})
	if key.fired.Load() == 0 {
		t.Fatal("the fault did not fire")
	}
	key.armed.Store(false)
	soon(t, func() {
		if _, err := apply(t, w.repo, put("after", 1)); err != nil {
			t.Error(err)
		}
	})
	w.check(t, map[string]int{"after": 1})
}

// Would catch a cache that is not told of a commit because another one panicked, and a repo that takes no
// writes afterwards.
func TestPanicInHook(t *testing.T) {
	t.Parallel()
	w := newWorldWith(t, pds.Config{Logger: adapter().Logger})
	told := 0
	w.repo.OnCommit(func([]pds.Op) { panic("injected") })
	w.repo.OnCommit(func([]pds.Op) { told++ })
	for i := range 2 {
		soon(t, func() {
			if _, err := apply(t, w.repo, put(fmt.Sprintf("h%d", i), i)); err != nil {
				t.Errorf("a durable commit was reported as failed: %v", err)
			}
		})
	}
	if told != 2 {
		t.Errorf("the second hook was told of %d commits of 2", told)
	}
	w.check(t, map[string]int{"h0": 0, "h1": 1})
}

// Would catch a commit that is acknowledged, or that memory is ahead of, where all statements went well and
// COMMIT did not.
func TestFailingCOMMIT(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	// A deferred foreign key is looked at by COMMIT alone.
	exec(t, w.db, `CREATE TABLE parent (id INTEGER PRIMARY KEY) STRICT;
		CREATE TABLE child (parent INTEGER REFERENCES parent (id) DEFERRABLE INITIALLY DEFERRED) STRICT;
		CREATE TRIGGER fault AFTER INSERT ON event BEGIN INSERT INTO child (parent) VALUES (1); END`)
	if _, err := w.repo.Apply(t.Context(), []pds.Write{put("a", 1)}, nil); err == nil {
		t.Fatal("the fault did not fire")
	}
	exec(t, w.db, `DROP TRIGGER fault`)
	w.check(t, map[string]int{})
	if _, err := w.repo.Apply(t.Context(), []pds.Write{put("b", 2)}, nil); err != nil {
		t.Fatal(err)
	}
	w.check(t, map[string]int{"b": 2})
}
