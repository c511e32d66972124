package httpx_test

import (
	"context"
	"errors"
	"testing"

	"atcr.io/internal/httpx"
)

// Would catch a turn that is lost, one key's that is taken by another, and a wait of who said that they do not wait.
func TestLines(t *testing.T) {
	t.Parallel()
	l := httpx.NewLines(2, 1)
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	first, err := l.Enter(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	second, err := l.Try("a")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.Try("a"); !errors.Is(err, httpx.ErrNoTurn) {
		t.Errorf("without a wait: %v", err)
	}
	for range 3 { // who gives up leaves its place
		if _, err := l.Enter(gone, "a"); !errors.Is(err, context.Canceled) {
			t.Errorf("who gave up: %v", err)
		}
	}
	waited := make(chan error)
	for range 2 {
		go func() {
			leave, err := l.Enter(t.Context(), "a")
			if err == nil {
				leave()
			}
			waited <- err
		}()
	}
	if err := <-waited; !errors.Is(err, httpx.ErrNoTurn) {
		t.Errorf("more than may wait: %v", err)
	}
	other, err := l.Try("b")
	if err != nil || l.Len() != 2 {
		t.Errorf("another key: %v, of %d", err, l.Len())
	}
	other()
	first()
	if err := <-waited; err != nil {
		t.Errorf("who waited: %v", err)
	}
	second()
	if l.Len() != 0 {
		t.Errorf("%d keys are remembered", l.Len())
	}
}
